"""`.ci/audit`: a vulnerability fails, silence of the index is not taken for health."""

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "audit"


@pytest.fixture(scope="module")
def audit():
    loader = importlib.machinery.SourceFileLoader("audit", str(SCRIPT))
    spec = importlib.util.spec_from_loader("audit", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def clean(name):
    return {"name": name, "version": "1", "vulns": []}


def vulnerable(name, *fixes):
    return clean(name) | {"vulns": [{"id": "CVE-1", "fix_versions": list(fixes)}]}


def unknown(name):
    return {"name": name, "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "status", "says"),
    [
        ([clean("a"), clean("b")], 0, "2 packages audited, 0 vulnerabilities"),
        ([clean("a"), vulnerable("b", "1.1")], 1, "b 1: CVE-1, mended in 1.1"),
        ([vulnerable("b")], 1, "no version yet"),
        ([clean("a"), unknown("b")], 0, "unknown to the index: b"),
        ([unknown("a"), unknown("b")], 0, "skipped: this index says nothing"),
    ],
)
def test_what_the_answer_means(audit, packages, status, says):
    found, lines = audit.judge({"dependencies": packages})
    assert found == status
    assert says in "\n".join(lines)


def test_an_audit_that_cannot_be_done_says_why(audit, tmp_path, capsys):
    assert audit.main(str(tmp_path / "absent"), "requirements.txt") == 0
    assert "skipped: no audit:" in capsys.readouterr().err
