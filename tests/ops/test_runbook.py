"""The runbook: that it has a section for everything, and that its commands exist."""

import re

import pytest
from command_lines import assert_understood, shell_lines
from prometheus_servers import OPS

from alertprod.errors import AlertprodError
from alertprod.metrics import DEAD_LETTER_REASONS
from alertprod.service import daemon

TEXT = (OPS / "runbook.md").read_text()


def test_each_exit_status_has_its_section():
    # 1 is what any command ends with when it failed.
    known = {getattr(daemon, name) for name in dir(daemon) if name.startswith("EXIT_")} | {1}
    assert {int(number) for number in re.findall(r"^### Exit status (\d+)$", TEXT, flags=re.MULTILINE)} == known


@pytest.mark.parametrize("line", sorted({line for line in shell_lines(TEXT) if line.startswith("alertprod ")}))
def test_commands_are_understood(line):
    assert_understood(line)


def test_links_lead_to_headings():
    headings = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", TEXT, flags=re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= headings


def test_files_that_are_named_are_there():
    for path in re.findall(r"\bops/[\w./-]+\.(?:md|yml|yaml|sh|toml|txt|service)\b", TEXT):
        assert (OPS.parent / path).exists(), path


def test_reasons_of_dead_letters_are_explained():
    # Roots of the tree, which nobody raises; and the broker, without which there are no dead letters either.
    never = {"bad_input_error", "processing_error", "transient_error", "broker_unavailable"}
    assert [reason for reason in DEAD_LETTER_REASONS if reason not in never and f"`{reason}`" not in TEXT] == []
    assert AlertprodError.reason() not in DEAD_LETTER_REASONS
