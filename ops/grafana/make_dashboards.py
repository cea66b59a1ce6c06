"""Writes the Grafana dashboard ``alertprod.json``: ``python ops/grafana/make_dashboards.py``; a test compares the two.

`ROWS` is all there is to edit. ``$instrument`` and Grafana's own variables are filled in by Grafana; `fill_in` does it for
Prometheus alone, where tests and the preview ask for the same expressions.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parent / "alertprod.json"

_I = 'instrument=~"$instrument"'
_OBJECTIVE_S = 60


@dataclass(frozen=True)
class Query:
    """One expression and how its series are called."""

    expr: str
    legend: str = ""
    exemplars: bool = False


@dataclass(frozen=True)
class Panel:
    """One panel; `kind` is Grafana's type, `width` in 24ths of the page."""

    title: str
    queries: tuple[Query, ...]
    meaning: str
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 8
    stacked: bool = False
    limit: float | None = None
    """A line: the objective, or what should not be passed."""
    bad_from: float | None = None
    """Of a number: red from here on."""
    low: float | None = None
    """Lowest value of the axis."""
    log: bool = False


@dataclass(frozen=True)
class Row:
    """A heading and its panels."""

    title: str
    panels: tuple[Panel, ...]


def _quantile(q: float, metric: str, by: str = "", where: str = _I, window: str = "$__rate_interval") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{{where}}}[{window}])))"


def _median(metric: str) -> Query:
    return Query(_quantile(0.5, metric, "instrument, band", window="10m"), "{{instrument}} {{band}}")


_FAILED = f'{_I}, outcome=~"dead_lettered|expired"'

ROWS = (
    Row(
        "Objective: 98 % within 60 s of shutter close",
        (
            Panel(
                "Alerts in time",
                (
                    Query(
                        f'sum(increase(alertprod_shutter_to_ack_seconds_bucket{{{_I}, le="60.0"}}[$__range]))'
                        f" / sum(increase(alertprod_shutter_to_ack_seconds_count{{{_I}}}[$__range]))"
                    ),
                ),
                "Of the alerts published in the time shown; those of exposures that failed do not exist and are not here.",
                kind="stat", unit="percentunit", width=4, limit=0.98,
            ),
            Panel(
                "Exposures in time",
                (
                    Query(
                        f'sum(increase(alertprod_shutter_to_published_seconds_bucket{{{_I}, le="60.0"}}[$__range]))'
                        f" / (sum(increase(alertprod_shutter_to_published_seconds_count{{{_I}}}[$__range]))"
                        f" + sum(increase(alertprod_exposures_total{{{_FAILED}}}[$__range])))"
                    ),
                ),
                "Of all exposures that came to an end, those given up among them; those without templates are left out.",
                kind="stat", unit="percentunit", width=4, limit=0.98,
            ),
            Panel(
                "Alerts",
                (Query(f'sum(increase(alertprod_alerts_total{{{_I}, outcome="acked"}}[$__range]))'),),
                "Acknowledged by the broker in the time shown.",
                kind="stat", width=4,
            ),
            Panel(
                "Exposures expected",
                (Query(f"sum(increase(alertprod_exposures_expected_total{{{_I}}}[$__range]))"),),
                "Distinct valid events.",
                kind="stat", width=4,
            ),
            Panel(
                "Failed",
                (
                    Query(
                        f'sum(increase(alertprod_exposures_total{{{_I}, outcome=~"dead_lettered|expired"}}[$__range]))'
                    ),
                ),
                "Given up, or too old when their turn came.",
                kind="stat", width=4, bad_from=1,
            ),
            Panel(
                "Firing",
                (Query('count(ALERTS{alertname=~"Alertprod.+", alertstate="firing"}) or vector(0)'),),
                "Alerts of ops/prometheus/rules.yml; each has a section in ops/runbook.md.",
                kind="stat", width=4, bad_from=1,
            ),
            Panel(
                "Shutter close to acknowledged alert",
                tuple(
                    Query(_quantile(q, "alertprod_shutter_to_ack_seconds"), f"{100 * q:g} %") for q in (0.5, 0.95, 0.98, 0.99)
                ),
                "Per alert, when the transaction's commit returned. Between edges of buckets Prometheus interpolates.",
                unit="s", width=12, limit=_OBJECTIVE_S, low=0,
            ),
            Panel(
                "Late",
                tuple(
                    Query(f"alertprod:late:ratio_rate{window}{{{_I}}}", f"{{{{instrument}}}} {{{{sli}}}} {window}")
                    for window in ("5m", "1h", "6h")
                ),
                "Share that missed 60 s; pages at 28.8 % (1 h and 5 min) and 12 % (6 h and 30 min).",
                unit="percentunit", width=12, limit=0.02, low=0,
            ),
        ),
    ),
    Row(
        "Where the time goes",
        (
            Panel(
                "Mean seconds of an exposure, by stage",
                (
                    Query(
                        'sum by (stage) (rate(alertprod_stage_seconds_sum{stage!="compute"}[$__rate_interval]))'
                        ' / on () group_left () sum(rate(alertprod_stage_seconds_count{stage="compute"}[$__rate_interval]))',
                        "{{stage}}",
                    ),
                ),
                "All stages but compute, which is the worker's whole time on an exposure.",
                unit="s", width=12, stacked=True, low=0,
            ),
            Panel(
                "From shutter to worker",
                (
                    Query(_quantile(0.5, "alertprod_shutter_to_event_seconds"), "shutter to event, half"),
                    Query(_quantile(0.98, "alertprod_shutter_to_event_seconds"), "shutter to event, 98 %"),
                    Query(_quantile(0.5, "alertprod_event_wait_seconds"), "event to claim, half"),
                    Query(_quantile(0.98, "alertprod_event_wait_seconds"), "event to claim, 98 %"),
                    Query(_quantile(0.98, "alertprod_stage_seconds", where='stage="compute"'), "compute, 98 %"),
                ),
                "The first is the camera's and the network's, the second waiting for a free worker.",
                unit="s", width=12, low=0,
            ),
            Panel(
                "Exposures by latency",
                (Query(f"sum by (le) (increase(alertprod_shutter_to_published_seconds_bucket{{{_I}}}[$__rate_interval]))", "{{le}}"),),
                "Shutter close to acknowledged publication, exposures without alerts too.",
                kind="heatmap", unit="s", width=12,
            ),
            Panel(
                "Slowest exposures",
                (Query(_quantile(1, "alertprod_shutter_to_published_seconds", "instrument"), "{{instrument}}", exemplars=True),),
                "Upper edge of the slowest exposure's bucket; the marks are exemplars: they name visit and detector. "
                "The slowest by name: alertprod status, alertprod report.",
                unit="s", width=12, limit=_OBJECTIVE_S, low=0,
            ),
        ),
    ),
    Row(
        "Outcomes",
        (
            Panel(
                "Exposures by outcome",
                (Query(f"sum by (outcome) (increase(alertprod_exposures_total{{{_I}}}[$__rate_interval]))", "{{outcome}}"),),
                "Every event ends as one of these.",
                stacked=True, low=0,
            ),
            Panel(
                "Expected and finished",
                (
                    Query(f"sum(alertprod_exposures_expected_total{{{_I}}})", "expected"),
                    Query(
                        f'sum(alertprod_exposures_total{{{_I}, outcome=~"published|skipped|expired|dead_lettered"}})', "finished"
                    ),
                ),
                "Since each daemon's start; the distance is what is in flight.",
                low=0,
            ),
            Panel(
                "Dead letters",
                (Query("sum by (reason) (increase(alertprod_dead_letters_total[$__rate_interval]))", "{{reason}}"),),
                "alertprod dead-letters ls has them.",
                stacked=True, low=0,
            ),
            Panel(
                "Steps tried again",
                (Query("sum by (reason) (increase(alertprod_retries_total[$__rate_interval]))", "{{reason}}"),),
                "Transient failures; what never passes becomes a dead letter at the event's age limit.",
                stacked=True, low=0,
            ),
            Panel(
                "Workers",
                (
                    Query("sum(alertprod_workers_ready)", "warm"),
                    Query("sum by (cause) (increase(alertprod_worker_deaths_total[$__rate_interval]))", "died: {{cause}}"),
                ),
                "Workers that are warm, and those that died or were killed.",
                low=0,
            ),
            Panel(
                "DiaSources",
                (Query(f"sum by (outcome) (increase(alertprod_dia_sources_total{{{_I}}}[$__rate_interval]))", "{{outcome}}"),),
                "What became of them: known objects, new ones, dropped ones by why.",
                stacked=True, low=0,
            ),
        ),
    ),
    Row(
        "Kafka",
        (
            Panel(
                "Consumer lag and in flight",
                (
                    Query("sum(alertprod_consumer_lag)", "waiting"),
                    Query("sum(alertprod_inflight)", "in flight"),
                    Query("sum(alertprod_assigned_partitions)", "lanes"),
                ),
                "Events behind the committed offsets, exposures under way, partitions that are ours.",
                low=0,
            ),
            Panel(
                "Oldest in flight",
                (Query("max by (instance) (alertprod_oldest_inflight_seconds)", "{{instance}}"),),
                "Since its event was received.",
                unit="s", limit=_OBJECTIVE_S, low=0,
            ),
            Panel(
                "Publishing",
                (
                    Query("sum by (outcome) (increase(alertprod_delivery_reports_total[$__rate_interval]))", "messages {{outcome}}"),
                    Query("sum by (outcome) (increase(alertprod_transactions_total[$__rate_interval]))", "transactions {{outcome}}"),
                ),
                "Acknowledged messages and committed transactions; undelivered and aborted should stay at 0.",
                low=0,
            ),
            Panel(
                "Slowest turn of the poll loop",
                (Query(_quantile(1, "alertprod_poll_interval_seconds", "instance", where='job="alertprod"'), "{{instance}}"),),
                "Upper edge of its bucket: beyond 1 s something holds the loop up that should not.",
                unit="s", width=24, limit=1.0, low=0,
            ),
        ),
    ),
    Row(
        "Template cache and process",
        (
            Panel(
                "Template tiles",
                (
                    Query("sum(increase(alertprod_template_cache_hits_total[$__rate_interval]))", "from the cache"),
                    Query("sum(increase(alertprod_template_cache_misses_total[$__rate_interval]))", "from their URI"),
                    Query("sum(increase(alertprod_template_cache_evictions_total[$__rate_interval]))", "made room"),
                ),
                "Tiles that exposures asked for.",
                stacked=True, low=0, width=6,
            ),
            Panel(
                "Announced pointings",
                (Query("sum by (outcome) (increase(alertprod_prefetches_total[$__rate_interval]))", "{{outcome}}"),),
                "Tiles fetched ahead of an exposure.",
                stacked=True, low=0, width=6,
            ),
            Panel(
                "Cache size",
                (Query("sum(alertprod_template_cache_bytes)", "bytes"),),
                "Decoded tiles on disk.",
                unit="bytes", low=0, width=6,
            ),
            Panel(
                "Daemon's memory",
                (Query('process_resident_memory_bytes{job="alertprod"}', "{{instance}}"),),
                "Of the daemon's own process; workers are killed above their limit.",
                unit="bytes", low=0, width=6,
            ),
        ),
    ),
    Row(
        "Science",
        (
            Panel(
                "Width of the pulls", (_median("alertprod_pull_width"),),
                "Median: difference over its noise; 1 where the variance plane is right.", limit=1.0,
            ),
            Panel(
                "Residual at bright stars", (_median("alertprod_residual_ratio"),),
                "Median: rms over the expected noise; 1 is perfect.", limit=1.0,
            ),
            Panel(
                "Kernel sum", (_median("alertprod_kernel_sum"),),
                "Median: ratio of the photometric scales; 1 where both zero points are right.", limit=1.0,
            ),
            Panel(
                "Limiting magnitude", (_median("alertprod_limiting_magnitude"),),
                "Median: AB, point source at 5 sigma on the difference.",
            ),
            Panel(
                "DiaSources of an exposure",
                (Query(f"alertprod:sources_per_exposure:rate10m{{{_I}}}", "{{instrument}}"),),
                "Mean over ten minutes; five times the usual is a ticket.", low=0,
            ),
            Panel(
                "What alerts lack",
                (Query(f"sum by (what) (increase(alertprod_shortcomings_total{{{_I}}}[$__rate_interval]))", "{{what}}"),),
                "Alerts went out without scores, predicted positions or cutouts.", stacked=True, low=0,
            ),
        ),
    ),
)  # fmt: skip


def panels() -> list[Panel]:
    """Return every panel, in order."""
    return [panel for row in ROWS for panel in row.panels]


def fill_in(expr: str, *, window: str = "5m", whole: str = "1h", instrument: str = ".+") -> str:
    """Return an expression with Grafana's variables replaced."""
    return expr.replace("$__rate_interval", window).replace("$__range", whole).replace("$instrument", instrument)


def _targets(panel: Panel) -> list[dict[str, Any]]:
    return [
        {
            "refId": chr(ord("A") + n),
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "exemplar": query.exemplars,
            "instant": panel.kind == "stat",
            "range": panel.kind != "stat",
            "format": "heatmap" if panel.kind == "heatmap" else "time_series",
        }
        for n, query in enumerate(panel.queries)
    ]


def _field_config(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.low is not None:
        defaults["min"] = panel.low
    is_share = panel.kind == "stat" and panel.limit is not None
    first, beyond = ("red", "green") if is_share else ("green", "red")
    steps: list[dict[str, Any]] = [{"color": first, "value": None}]
    if panel.limit is not None:
        steps.append({"color": beyond, "value": panel.limit})
    if panel.bad_from is not None:
        steps.append({"color": "red", "value": panel.bad_from})
    defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.kind == "stat":
        defaults["decimals"] = 2 if panel.unit == "percentunit" else 0
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 40 if panel.stacked else 5,
            "showPoints": "auto",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "line" if panel.limit is not None else "off"},
        }
    return {"defaults": defaults, "overrides": []}


def _options(panel: Panel) -> dict[str, Any]:
    match panel.kind:
        case "stat":
            return {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "value"}
        case "heatmap":
            return {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"mode": "scheme", "scheme": "Blues"}}
        case _:
            return {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }


def make_dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    made: list[dict[str, Any]] = []
    y = 0
    for row in ROWS:
        made.append({"id": len(made) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": [],
                     "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}})  # fmt: skip
        y += 1
        x = height = 0
        for panel in row.panels:
            if x + panel.width > 24:
                x, y = 0, y + height
            height = 4 if panel.kind == "stat" else 8
            made.append(
                {
                    "id": len(made) + 1,
                    "type": panel.kind,
                    "title": panel.title,
                    "description": panel.meaning,
                    "datasource": {"type": "prometheus", "uid": "${datasource}"},
                    "gridPos": {"h": height, "w": panel.width, "x": x, "y": y},
                    "targets": _targets(panel),
                    "fieldConfig": _field_config(panel),
                    "options": _options(panel),
                }
            )
            x += panel.width
        y += height
    return {
        "uid": "alertprod",
        "title": "alertprod",
        "description": "Made by ops/grafana/make_dashboards.py; edit that.",
        "tags": ["alertprod"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "utc",
        "annotations": {"list": []},
        "links": [],
        "templating": {
            "list": [
                {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0},
                {
                    "name": "instrument",
                    "label": "Instrument",
                    "type": "query",
                    "datasource": {"type": "prometheus", "uid": "${datasource}"},
                    "query": {"query": "label_values(alertprod_exposures_expected_total, instrument)", "refId": "A"},
                    "refresh": 2,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".+",
                    "current": {"text": "All", "value": "$__all"},
                    "hide": 0,
                },
            ]
        },
        "panels": made,
    }


def dump(dashboard: dict[str, Any]) -> str:
    """Return the file's text."""
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(dump(make_dashboard()), encoding="utf-8")
