"""Writes ``ops/metrics.md`` from what the code declares: ``python ops/make_metrics_page.py``; a test compares the two."""

from pathlib import Path

from alertprod.metrics import (
    ALERT_OUTCOMES,
    DEAD_LETTER_REASONS,
    DELIVERY_OUTCOMES,
    EXPOSURE_OUTCOMES,
    LATENCY_EDGES_S,
    OTHER,
    POLL_EDGES_S,
    PREFETCH_OUTCOMES,
    RELOAD_OUTCOMES,
    RETRY_REASONS,
    SHORTCOMINGS,
    SOURCE_OUTCOMES,
    STAGE_EDGES_S,
    STAGES,
    TRANSACTION_OUTCOMES,
    WORKER_DEATHS,
    Metrics,
)

PAGE = Path(__file__).parent / "metrics.md"

_HEAD = f"""# Metrics

Made from the code by `python ops/make_metrics_page.py`; do not edit. The daemon serves them at `/metrics`
(`[http]`, port 9117), in Prometheus' text format or, with exemplars, as OpenMetrics.

Units are seconds, bytes, or counts. Labels come from closed sets; what is not in a set is counted as `{OTHER}`, so no event
can make series without end. Nothing is labelled by visit, detector or object: the slowest exposures are named by the
exemplars of `alertprod_shutter_to_published_seconds`, by `alertprod status`, by the visit summaries and by `alertprod report`.
Counters and latencies exist from the start at 0, so that a rate sees their first count. Counters restart with the daemon;
`rate()` and `increase()` know that.

"""

_LABELS = {
    "instrument": "the instruments of the configuration",
    "band": "the bands of the instrument (`bands` in its table)",
    "stage": ", ".join(f"`{stage}`" for stage in STAGES),
    "what": ", ".join(f"`{what}`" for what in SHORTCOMINGS),
    "cause": ", ".join(f"`{cause}`" for cause in WORKER_DEATHS),
    "version, schema, config_hash, delivery": "what is running",
}

_VALUES = {
    "alertprod_exposures_total": EXPOSURE_OUTCOMES,
    "alertprod_alerts_total": ALERT_OUTCOMES,
    "alertprod_delivery_reports_total": DELIVERY_OUTCOMES,
    "alertprod_transactions_total": TRANSACTION_OUTCOMES,
    "alertprod_reloads_total": RELOAD_OUTCOMES,
    "alertprod_prefetches_total": PREFETCH_OUTCOMES,
    "alertprod_dia_sources_total": SOURCE_OUTCOMES,
    "alertprod_dead_letters_total": DEAD_LETTER_REASONS,
    "alertprod_retries_total": RETRY_REASONS,
}
"""Outcomes and reasons, where one word of a label means another thing in another metric."""


def make_page() -> str:
    """Return the page's text."""
    metrics = Metrics()
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for facts in metrics.declared:
        labels = ", ".join(f"`{label}`" for label in facts.labels)
        lines.append(f"| `{facts.name}` | {facts.kind} | {labels} | {facts.meaning} |")
    lines += ["", "## Labels", "", "| label | values |", "|---|---|"]
    lines += [f"| {name} | {values} |" for name, values in _LABELS.items()]
    for facts in metrics.declared:
        if facts.name in _VALUES:
            label = facts.labels[-1]
            values = ", ".join(f"`{value}`" for value in _VALUES[facts.name])
            lines.append(f"| {label} of `{facts.name}` | {values} |")
    lines += [
        "",
        "## Buckets",
        "",
        f"Latencies since shutter close: {', '.join(map(str, LATENCY_EDGES_S))} s. Edges lie on 60 s, the requirement, and on 120 s.",
        "",
        f"Stages and waits: {', '.join(map(str, STAGE_EDGES_S))} s.",
        "",
        f"The poll loop: {', '.join(map(str, POLL_EDGES_S))} s.",
        "",
        "Beside these, `process_*` and `python_gc_*` of the daemon's own process; workers are processes of their own, whose",
        "durations and counts arrive with their results.",
        "",
    ]
    return _HEAD + "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
