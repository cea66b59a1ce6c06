"""Tables for the terminal: alerts, and what became of exposures."""

from collections.abc import Iterable, Mapping
from typing import Any

from astropy.time import Time
from rich.box import SIMPLE_HEAD
from rich.table import Table


def make_alerts_table(packets: Iterable[Mapping[str, Any]], *, title: str | None = None) -> Table:
    """Return two lines an alert, in the order given; what is null is a dash.

    Notes
    -----
    Two lines, so that 80 columns hold ids of 19 digits whole: an id cut short is no id.
    """
    table = Table(title=title, header_style="bold", box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("diaSource\ndiaObject", no_wrap=True)
    table.add_column("visit/detector band\nmidpoint, TAI", no_wrap=True)
    for name in ("ra\ndec", "S/N", "flux\n± nJy", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    for packet in packets:
        source, parent, body = packet["diaSource"], packet["diaObject"], packet["ssSource"]
        kinds = [word for word, field in (("dipole", "isDipole"), ("negative", "isNegative")) if source[field]]
        time = Time(source["midpointMjdTai"], format="mjd", scale="tai").strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(
            f"{source['diaSourceId']}\n{_text(source['diaObjectId'] if body is None else body['designation'])}",
            f"{source['visit']}/{source['detector']} {_text(source['band'])}\n{time}",
            f"{source['ra']:.6f}\n{source['dec']:+.6f}",
            _number(source["snr"], ".1f"),
            f"{_number(source['psfFlux'], '.0f')}\n{_number(source['psfFluxErr'], '.0f')}",
            _text(parent and parent["nDiaSources"]),
            "\n".join(kinds),
        )
    return table


def make_exposures_table(summaries: Iterable[Mapping[str, Any]], *, title: str | None = None) -> Table:
    """Return one row a visit summary, in the order given, and a last row of totals.

    Parameters
    ----------
    summaries
        Records of the topic of visit summaries; ``counts``, ``stage_seconds`` and ``figures`` may lack any key.
    """
    summaries = list(summaries)
    # 80 columns hold it with the longest outcome.
    table = Table(
        title=title,
        header_style="bold",
        box=SIMPLE_HEAD,
        show_footer=len(summaries) > 1,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    n_alerts = sum(summary["n_alerts"] for summary in summaries)
    n_new = sum(summary["counts"].get("new_objects", 0) for summary in summaries)
    seconds = sum(_work_seconds(summary) for summary in summaries)
    table.add_column("visit", justify="right", footer=f"{len(summaries)} in all", no_wrap=True)
    table.add_column("det", justify="right")
    table.add_column("outcome", no_wrap=True, min_width=9)
    table.add_column("alerts", justify="right", footer=str(n_alerts), no_wrap=True)
    table.add_column("new", justify="right", footer=str(n_new), no_wrap=True)
    table.add_column("kernel sum", justify="right", min_width=6)
    table.add_column("pull width", justify="right", min_width=5)
    table.add_column("work s", justify="right", footer=f"{seconds:.1f}", min_width=5, no_wrap=True)
    table.add_column("latency s", justify="right", min_width=7)
    for summary in summaries:
        outcome, reason = summary["outcome"], summary["reason"]
        style = {"published": "green", "dead_lettered": "red"}.get(outcome, "yellow")
        table.add_row(
            str(summary["visit"]),
            str(summary["detector"]),
            f"[{style}]{outcome}[/]" + (f" ({reason})" if reason else ""),
            str(summary["n_alerts"]),
            _text(summary["counts"].get("new_objects")),
            _number(summary["figures"].get("kernel_sum"), ".3f"),
            _number(summary["figures"].get("pull_width"), ".3f"),
            _number(_work_seconds(summary), ".1f"),
            _number(summary["latency_s"], ".1f"),
        )
    return table


def _work_seconds(summary: Mapping[str, Any]) -> float:
    """Return a worker's time on an exposure: ``compute``, which holds the other stages, or their sum."""
    stages = summary["stage_seconds"]
    return float(stages["compute"] if "compute" in stages else sum(stages.values()))


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)
