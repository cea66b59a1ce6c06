"""The Grafana dashboard."""

import importlib.util
import json
import re
import shutil
import subprocess

import pytest
from prometheus_servers import OPS

from alertprod.metrics import Metrics

spec = importlib.util.spec_from_file_location("make_dashboards", OPS / "grafana" / "make_dashboards.py")
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)


def test_the_file_is_what_the_code_makes():
    assert made.DASHBOARD.read_text() == made.dump(made.make_dashboard())


def test_every_expression_asks_for_what_is_declared():
    known = {facts.name for facts in Metrics().declared}
    known |= set(re.findall(r"record: (\S+)", (OPS / "prometheus" / "rules.yml").read_text()))
    for panel in made.panels():
        for query in panel.queries:
            for name in re.findall(r"\balertprod[a-z0-9_:]+", query.expr):
                assert name in known or re.sub("_(bucket|sum|count)$", "", name) in known, name


def test_promtool_parses_every_expression(tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    queries = [query for panel in made.panels() for query in panel.queries]
    rules = [{"record": f"panel:query:{n}", "expr": made.fill_in(query.expr)} for n, query in enumerate(queries)]
    path = tmp_path / "panels.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML

    checked = subprocess.run([promtool, "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert f"{len(queries)} rules found" in checked.stdout


def test_panels_lie_beside_and_below_one_another():
    taken = set()
    for panel in made.make_dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_ids_are_unique_and_every_panel_says_what_it_means():
    panels = made.make_dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["description"] for panel in panels if panel["type"] != "row")
