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


GRAFANA = OPS.parent / ".cache" / "tools" / "grafana"

TYPES = """
import type { DataQuery } from "@grafana/schema";
import type { Dashboard, Panel, RowPanel } from "RAW/dashboard/x/dashboard_types.gen";
import type { Options as stat } from "RAW/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type {
  Options as timeseries, FieldConfig as timeseriesCustom,
} from "RAW/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";
import type {
  Options as heatmap, FieldConfig as heatmapCustom,
} from "RAW/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
// JSON has the values of enumerations, and leaves out what has a default.
type Written<T> = T extends string ? `${T}` : T extends (infer U)[] ? Written<U>[]
  : T extends object ? { [K in keyof T]?: Written<T[K]> } : T;
interface PrometheusQuery extends DataQuery {
  datasource: { type: string; uid: string };
  expr: string; legendFormat: string; exemplar: boolean; instant: boolean; range: boolean;
  format: "time_series" | "table" | "heatmap";
}
"""
"""What Grafana publishes of its dashboards' types; of Prometheus' queries it publishes none, so those are ours."""


def write_typed(dashboard):
    """Return TypeScript that claims the dashboard to be one, panel by panel."""
    lines = [TYPES.replace("RAW", "./node_modules/@grafana/schema/dist/esm/raw")]

    def claim(value, kind):
        lines.append(f"({json.dumps(value)}) satisfies {kind};")

    claim({**dashboard, "panels": []}, "Written<Dashboard>")
    for panel in json.loads(json.dumps(dashboard["panels"])):
        if panel["type"] == "row":
            claim(panel, "Written<RowPanel>")
            continue
        for query in panel.pop("targets"):
            claim(query, "PrometheusQuery")
        claim(panel.pop("options"), f"Written<{panel['type']}>")
        if (custom := panel["fieldConfig"]["defaults"].pop("custom", None)) is not None:
            claim(custom, f"Written<{panel['type']}Custom>")
        claim(panel, "Written<Panel>")
    return "\n".join(lines)


def test_it_fits_the_types_that_grafana_publishes():
    compiler = GRAFANA / "node_modules" / ".bin" / "tsc"
    if not compiler.exists() or shutil.which("node") is None:
        pytest.skip("Grafana's types are not here; `make deployment-tools` fetches them with npm")
    dashboard = made.make_dashboard()
    broken = json.loads(json.dumps(dashboard))
    next(panel for panel in broken["panels"] if panel["type"] == "stat")["options"]["colorMode"] = "colourful"
    paths = {}
    for name, each in (("good", dashboard), ("broken", broken)):
        paths[name] = GRAFANA / f"{name}.ts"
        paths[name].write_text(write_typed(each))
    checked = subprocess.run(
        [compiler, "--noEmit", "--strict", "--skipLibCheck", "--moduleResolution", "bundler", "--module", "esnext",
         "--target", "es2022", *paths.values()],
        capture_output=True, text=True, check=False, cwd=GRAFANA,
    )  # fmt: skip
    findings = [line for line in checked.stdout.splitlines() if ": error " in line]
    assert [line for line in findings if line.startswith("good.ts")] == []
    assert len(findings) == 1  # or it would find nothing whatever is written
    assert "colourful" in findings[0]


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
