"""What one daemon is at, for a terminal: in flight, waiting, latency, the last exposures, and what is wrong."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

Samples = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
"""Metrics as `alertprod.metrics.parse_metrics` reads them."""

OBJECTIVE_S: Final = 60.0
"""Alerts are late after this."""

_LONG_S: Final = 1e4
"""Beyond it seconds are days, of an archive that is sent again."""

_STATE_STYLES: Final = {"working": "bold green", "idle": "green", "starting": "yellow", "wedged": "bold white on red"}
OUTCOME_STYLES: Final = {
    "published": "green",
    "dead_lettered": "red",
    "expired": "red",
    "skipped": "yellow",
    "duplicate": "dim",
    "replayed": "cyan",
}


@dataclass(frozen=True, kw_only=True)
class DaemonStatus:
    """What one daemon answered; `error` says why it did not."""

    url: str
    facts: Mapping[str, Any]
    """Of ``/status``."""
    samples: Samples
    """Of ``/metrics``."""
    error: str | None = None

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the series of a metric that have these labels."""
        series = self.samples.get(f"alertprod_{name}", ())
        return sum(value for found, value in series if labels.items() <= found.items())

    def outcomes(self) -> dict[str, int]:
        """Return how many exposures ended how, since the daemon started; those without any left out."""
        counts: Counter[str] = Counter()
        for labels, value in self.samples.get("alertprod_exposures_total", ()):
            counts[labels["outcome"]] += int(value)
        return {outcome: count for outcome, count in counts.items() if count}

    def share_in_time(self) -> float | None:
        """Return which share of the alerts since the start took a minute at most; None where there were none."""
        n_alerts = self.total("shutter_to_ack_seconds_count")
        return self.total("shutter_to_ack_seconds_bucket", le="60.0") / n_alerts if n_alerts else None

    def latencies_s(self) -> list[float]:
        """Return the latencies of the last published exposures, sorted."""
        return sorted(each["latency_s"] for each in self.facts["last_exposures"] if each["latency_s"] is not None)

    def problems(self) -> list[str]:
        """Return what is wrong, worst first; nothing where all is well."""
        if self.error is not None:
            return [self.error]
        found = [self.facts["loop"]] if self.facts["state"] == "wedged" else []
        found += [f"{part}: {problem}" for part, problem in self.facts["problems"].items()]
        failed = Counter(
            each["reason"] for each in self.facts["last_exposures"] if each["outcome"] in ("dead_lettered", "expired")
        )
        found += [f"{count} of the last exposures failed: {reason}" for reason, count in failed.most_common()]
        for name, text in (
            ("delivery_reports_total", "messages that the broker did not take"),
            ("negative_latencies_total", "alerts from the future: a clock is wrong"),
        ):
            count = self.total(name, **({"outcome": "undelivered"} if name.startswith("delivery") else {}))
            if count:
                found.append(f"{count:.0f} {text}")
        slow = [each for each in self.facts["inflight_exposures"] if each["age_s"] > OBJECTIVE_S]
        found += [
            f"{_name(each)} has been in flight for {each['age_s']:.0f} s{_colon(each.get('problem'))}" for each in slow
        ]
        if (late := self.share_in_time()) is not None and late < 0.98:
            found.append(f"only {late:.1%} of the alerts were in time since the daemon started")
        return found

    def as_json(self) -> dict[str, Any]:
        """Return what a program may want of it."""
        numbers = {} if self.error else {"lag": self.total("consumer_lag"), "outcomes": self.outcomes()}
        return {"url": self.url, "error": self.error, **self.facts, **numbers, "wrong": self.problems()}


def make_status_page(status: DaemonStatus, *, now_unix_s: float, n_last: int = 15) -> RenderableType:
    """Return one daemon's page.

    Parameters
    ----------
    now_unix_s
        For ages, seconds UTC since 1970.
    n_last
        How many of the last exposures are shown.
    """
    if status.error is not None:
        return Panel(Text(status.error, style="red"), title=f"[bold]{status.url}[/]  away", border_style="red")
    state = status.facts["state"]
    problems = status.problems()
    wrong = (
        Group(*(Text(f"• {problem}", style="red") for problem in problems)) if problems else Text("nothing", "green")
    )
    has_failed = any(each["outcome"] == "dead_lettered" for each in status.facts["last_exposures"])
    # What is wrong stands above the lists: a low terminal cuts off what is below.
    parts: list[RenderableType] = [
        _make_numbers(status, now_unix_s),
        Panel(
            wrong,
            title="what is wrong",
            title_align="left",
            subtitle="why in full: alertprod dead-letters ls" if has_failed else None,
            subtitle_align="right",
            border_style="red" if problems else "green",
        ),
    ]
    if status.facts["inflight_exposures"]:
        parts.append(_make_inflight(status.facts["inflight_exposures"]))
    if status.facts["last_exposures"]:
        parts.append(_make_last(status.facts["last_exposures"][:n_last]))
    info = next(iter(status.samples.get("alertprod_build_info", ())), ({}, 0.0))[0]
    name = " ".join(filter(None, [f"alertprod {info.get('version', '')}".strip(), info.get("delivery", "")]))
    title = f"[{_STATE_STYLES.get(state, 'bold')}] {state} [/] {status.url}  [dim]{name}[/]"
    return Group(Rule(title, align="left", style="dim"), *parts)


def _make_numbers(status: DaemonStatus, now_unix_s: float) -> RenderableType:
    latencies, in_time, outcomes = status.latencies_s(), status.share_in_time(), status.outcomes()
    started = status.samples.get("process_start_time_seconds")
    last = max((value for _, value in status.samples.get("alertprod_last_success_timestamp_seconds", ())), default=0.0)
    cells = [
        ("waiting", f"{status.total('consumer_lag'):.0f}"),
        ("in flight", str(len(status.facts["inflight_exposures"]))),
        ("lanes", f"{status.total('assigned_partitions'):.0f}"),
        ("warm workers", f"{status.total('workers_ready'):.0f}"),
        ("alerts out", f"{status.total('alerts_total', outcome='acked'):.0f}"),
        ("in time", "-" if in_time is None else f"{in_time:.1%}"),
        ("half within", _seconds(_quantile(latencies, 0.5))),
        ("98 % within", _seconds(_quantile(latencies, 0.98))),
        ("up for", "-" if not started else _age(now_unix_s - started[0][1])),
        ("last success", "-" if not last else f"{_age(now_unix_s - last)} ago"),
    ]
    cells += [(outcome, str(count)) for outcome, count in sorted(outcomes.items())]
    texts = [Text.from_markup(f"[dim]{name}[/] [bold]{value}[/]") for name, value in cells]
    return Columns(texts, padding=(0, 3))


def _make_inflight(jobs: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        title="in flight", title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False
    )
    for name in ("exposure", "step", "age s", "tries", "waits s"):
        table.add_column(name, justify="left" if name in ("exposure", "step") else "right", no_wrap=True)
    table.add_column(Text("why", no_wrap=True, overflow="ellipsis"))
    for job in jobs:
        style = "red" if job["age_s"] > OBJECTIVE_S else ""
        waits = f"{job['waits_s']:.0f}" if job["waits_s"] else ""
        why = Text(job.get("problem") or "", no_wrap=True, overflow="ellipsis")
        cells = (_name(job), str(job["step"]), f"{job['age_s']:.1f}", str(job["attempts"] or ""), waits, why)
        table.add_row(*cells, style=style)
    return table


def _make_last(exposures: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        title="last exposures",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    # On 80 columns the last column gives way: an exposure's name cut short is no name. Rich narrows columns that may
    # wrap before all others; that this one's text does not wrap is said by the text.
    table.add_column("UTC", no_wrap=True, min_width=8)
    table.add_column("exposure", no_wrap=True, min_width=max(len(_name(each)) for each in exposures))
    table.add_column("outcome", no_wrap=True, min_width=13)
    table.add_column("alerts", justify="right", no_wrap=True, min_width=6)
    table.add_column("latency", justify="right", no_wrap=True, min_width=7)
    table.add_column(Text("longest stage, or why", no_wrap=True, overflow="ellipsis"))
    for each in exposures:
        latency, outcome = each["latency_s"], each["outcome"]
        stages = {name: seconds for name, seconds in each["stage_seconds"].items() if name != "compute"}
        longest = max(stages, key=lambda name: stages[name], default=None)
        late = Text(
            _seconds(latency),
            "red" if (latency or 0.0) > OBJECTIVE_S else "",
        )
        result = Text(outcome, OUTCOME_STYLES.get(outcome, ""))
        stage = "" if longest is None else f"{longest} {stages[longest]:.2f} s"
        last = Text(each["reason"] or stage, no_wrap=True, overflow="ellipsis")
        table.add_row(
            datetime.fromtimestamp(each["at_unix_s"], tz=UTC).strftime("%H:%M:%S"),
            _name(each),
            result,
            str(each["n_alerts"] or ""),
            late,
            last,
        )
    return table


def _name(each: Mapping[str, Any]) -> str:
    if each.get("visit") is None:
        return str(each.get("event") or f"{each.get('topic')}[{each.get('partition')}]:{each.get('offset')}")
    band = f" {each['band']}" if each.get("band") else ""
    return f"{each['instrument']}/{each['visit']}/{each['detector']}{band}"


def _colon(text: str | None) -> str:
    return f": {text}" if text else ""


def _quantile(values: Sequence[float], q: float) -> float | None:
    return values[min(len(values) - 1, int(q * len(values)))] if values else None


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f} s" if value < _LONG_S else _age(value)


def _age(seconds: float) -> str:
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
