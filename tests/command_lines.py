"""The lines of a page's shell blocks, and what the command line makes of them."""

import re
import shlex

import click
import typer

from alertprod.cli.app import app

_SHELL_BLOCK = re.compile(r"```sh\n(.*?)```", flags=re.DOTALL)


def shell_lines(text: str) -> list[str]:
    """Return the commands of the shell blocks: comments off, continued lines joined."""
    lines = [line for block in _SHELL_BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    # A # within quotes is none of a comment's: shlex knows.
    return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def assert_understood(line: str, *, is_whole: bool = True) -> None:
    """Parse a line that runs alertprod as alertprod would; where it is not whole, arguments may lack.

    Values are left alone: files that a page names are the reader's. Unknown options are `click.UsageError`.
    """
    words = [word for word in shlex.split(line)[1:] if word != "&"]
    command = typer.main.get_command(app)
    context = click.Context(command, info_name="alertprod")
    while hasattr(command, "commands"):
        assert words, line
        if command.name == "simulate" and words[0] not in command.commands:
            words.insert(0, "night")  # which that group does by itself
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
        context = click.Context(command, info_name=command.name, parent=context)
    given, _, _ = command.make_parser(context).parse_args(args=words)
    lacking = [each.name for each in command.params if each.required and not given.get(each.name)]
    assert not (is_whole and lacking), f"{line}: no {', '.join(lacking)}"
