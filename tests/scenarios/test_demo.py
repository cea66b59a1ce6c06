"""The demonstration, as somebody runs it who has just installed the package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from alertprod.alerts.avro import read_alerts

pytestmark = pytest.mark.slow


def test_a_small_night_ends_without_problems_and_can_be_looked_at(tmp_path):
    directory = tmp_path / "demo"
    command = [sys.executable, "-m", "alertprod", "demo", "-d", directory, "--visits", "2", "--size", "512", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["problems"] == []
    assert result["outcomes"] == {"published": result["n_exposures"]} == {"published": 4}
    alerts = list(read_alerts(Path(result["files"]["alerts"])))
    assert len(alerts) == result["n_alerts"] > 4
    assert 0.0 < result["latency_p50_s"] <= result["latency_p98_s"] < 30.0
    (label, injected, found) = result["bins"][-1]
    assert label.startswith("over ")
    assert injected == found > 0
    for path in result["files"].values():
        assert Path(path).exists()
    assert Path(result["files"]["cutout triplets"]).read_bytes().startswith(b"\x89PNG")
    log = [json.loads(line) for line in Path(result["files"]["daemon log"]).read_text().splitlines()]
    assert [line["event"] for line in log if line["level"] in ("error", "critical")] == []
    assert log[-1]["event"] == "stopped"


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    command = [sys.executable, "-m", "alertprod", "demo", "-d", tmp_path, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"alertprod: configuration: --directory: {tmp_path}: is not empty, and no earlier demonstration made it\n"
    )
    assert (tmp_path / "thesis.tex").read_text() == "mine"
