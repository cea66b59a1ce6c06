import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from alertprod import __version__
from alertprod.cli.app import app


def find_commands(command, path=()):
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from find_commands(child, (*path, name))


ALL_COMMANDS = [pytest.param(*found, id=" ".join(found[0]) or "alertprod") for found in find_commands(get_command(app))]


def ask_help(*command, columns=300):
    result = CliRunner().invoke(app, [*command, "--help"], terminal_width=columns, env={"COLUMNS": str(columns)})
    assert result.exit_code == 0
    return result.output


def words_of(text):
    """Return everything but frames and line breaks."""
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize(("path", "command"), ALL_COMMANDS)
def test_help_says_what_the_command_and_each_of_its_options_are_for(path, command):
    text = words_of(ask_help(*path))
    assert words_of(command.help) in text
    for parameter in command.params:
        assert parameter.help, f"{parameter.name} says nothing"
        assert words_of(parameter.help.replace("\\[", "[")) in text  # what is in brackets is markup unless escaped


@pytest.mark.parametrize(("path", "command"), ALL_COMMANDS)
def test_help_is_whole_on_a_terminal_of_eighty_columns(path, command):
    assert "…" not in ask_help(*path, columns=80)


def test_the_version_is_the_packages(alertprod):
    ran = alertprod("--version")
    assert (ran.status, ran.out) == (0, f"alertprod {__version__}\n")


def test_an_unknown_command_and_an_unknown_option_are_wrong_usage(alertprod):
    ran = alertprod("conjure")
    assert ran.status == 2
    assert "No such command 'conjure'" in ran.words
    ran = alertprod("schemas", "ls", "--colour")
    assert ran.status == 2
    assert "--colour" in ran.words


@pytest.mark.parametrize("program", [[sys.executable, "-m", "alertprod"], [f"{sys.prefix}/bin/alertprod"]])
def test_a_process_exits_with_2_where_the_configuration_cannot_be_used(program, tmp_path):
    path = tmp_path / "daemon.toml"
    path.write_text("[workers]\ncount = 0\n")
    done = subprocess.run([*program, "run", "--config", path], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"alertprod: configuration: {path}: workers.count: ")
    assert "Traceback" not in done.stderr


def test_lines_with_paths_are_left_whole_on_any_width(alertprod, tmp_path):
    path = tmp_path / ("long" * 50) / "more"
    path.parent.mkdir()
    path.write_text("[instruments.simcam]")
    ran = alertprod("config", "check", "-c", path)
    assert ran.out.splitlines()[0].startswith(f"{path}: good (hash ")
    ran = alertprod("send", path.with_name("absent.json"), "--dry-run")
    assert f"'{path.parent}/absent.json'" in ran.err
