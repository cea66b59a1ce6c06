"""Prometheus' rules and Alertmanager's routes."""

import re
import shutil
import subprocess

import pytest
import yaml
from prometheus_servers import OPS

from alertprod.metrics import Metrics

RULES = OPS / "prometheus" / "rules.yml"
CASES = (OPS / "prometheus" / "rules_test.yml", OPS / "prometheus" / "rules_slow_test.yml")

groups = yaml.safe_load(RULES.read_text())["groups"]
alerts = {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def run(program, *arguments):
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (Debian: prometheus, prometheus-alertmanager)")
    return subprocess.run(
        [path, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=OPS / "prometheus"
    )


def test_promtool_accepts_rules_and_configuration():
    checked = run("promtool", "check", "config", "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_alert_fires_when_it_should_and_only_then():
    checked = run("promtool", "test", "rules", *CASES)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_amtool_accepts_the_routes():
    checked = run("amtool", "check-config", "alertmanager.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def expected_samples():
    """Yield alert name and the samples that a case expects of it."""
    for path in CASES:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for check in case["promql_expr_test"]:
                if (name := re.search(r'alertname="(\w+)"', check["expr"])) is not None:
                    yield name.group(1), check["exp_samples"]


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    cases = list(expected_samples())
    assert {name for name, samples in cases if samples} == set(alerts)
    assert {name for name, samples in cases if not samples} == set(alerts)


def test_texts_name_only_labels_that_the_alert_has():
    has = {}
    for name, samples in expected_samples():
        for sample in samples:
            has.setdefault(name, set()).update(re.findall(r"(\w+)=", sample["labels"]))
    for name, rule in alerts.items():
        text = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= has[name], name


def test_each_rule_asks_for_metrics_that_are_declared():
    recorded = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    known = {facts.name for facts in Metrics().declared} | recorded
    for group in groups:
        for rule in group["rules"]:
            for name in re.findall(r"\balertprod[a-z0-9_:]+", rule["expr"]):
                assert name in known or re.sub("_(bucket|sum|count)$", "", name) in known, name
    asked = " ".join(rule["expr"] for group in groups for rule in group["rules"])
    assert all(name in asked for name in recorded)


def test_each_alert_says_how_urgent_it_is_and_links_to_its_section_of_the_runbook():
    runbook = (OPS / "runbook.md").read_text()
    headings = {heading.lower() for heading in re.findall(r"^#+ (Alertprod\w+)$", runbook, flags=re.MULTILINE)}
    for name, rule in alerts.items():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["runbook"] == f"ops/runbook.md#{name.lower()}"
        assert name.lower() in headings, name
    assert headings == {name.lower() for name in alerts}  # and no section is left of an alert that is gone
