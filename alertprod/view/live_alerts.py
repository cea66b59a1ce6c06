"""A live table of alerts: the newest at the bottom, how many there were and how fast they come."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from astropy.time import Time
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

_RATE_WINDOW_S = 30.0
"""Alerts of a visit come at once: a rate over less would jump about."""

_ROWS_BESIDE = 5
"""Lines of the terminal that are no alerts: the head's two, the table's own two, one to spare."""

_WIDE = 106
"""Columns from which there is room for visit and detector."""


class LiveAlerts:
    """What `rich.live.Live` shows; tell it of each alert.

    Parameters
    ----------
    title
        What is looked at.
    clock
        Seconds, for the rate.
    """

    def __init__(self, title: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._clock = title, clock
        self._rows: deque[Mapping[str, Any]] = deque(maxlen=500)
        self._problem = ""
        self._arrivals: deque[float] = deque()
        self.n_alerts = 0
        self.n_unreadable = 0

    def add(self, packet: Mapping[str, Any]) -> None:
        """Show an alert."""
        self.n_alerts += 1
        self._rows.append(packet)
        self._arrivals.append(self._clock())

    def add_unreadable(self, problem: str) -> None:
        """Show that something was none, and why the last such thing was none."""
        self.n_unreadable += 1
        self._problem = problem

    def rate_hz(self) -> float:
        """Return alerts a second over the last half minute."""
        now = self._clock()
        while self._arrivals and now - self._arrivals[0] > _RATE_WINDOW_S:
            self._arrivals.popleft()
        return len(self._arrivals) / _RATE_WINDOW_S

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.height or console.height
        yield Group(self._head(), self._table(max(1, height - _ROWS_BESIDE), wide=options.max_width >= _WIDE))

    def _head(self) -> Text:
        head = Text.assemble((self._title, "bold"), f"  {self.n_alerts:,} alerts  {self.rate_hz():.1f}/s")
        if self.n_unreadable:
            head.append(f"\n{self.n_unreadable:,} unreadable, the last: {self._problem}", "red")
        head.no_wrap, head.overflow = True, "ellipsis"
        return head

    def _table(self, n_rows: int, *, wide: bool) -> Table:
        table = Table(box=SIMPLE_HEAD, header_style="bold", padding=0, pad_edge=False, show_edge=False)
        table.add_column("UTC", no_wrap=True)
        if wide:
            table.add_column("visit/detector", no_wrap=True)
        table.add_column("object", no_wrap=True)
        table.add_column("b", no_wrap=True)
        for name in ("ra", "dec", "S/N", "flux nJy", "n"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column(" kind", no_wrap=True)
        for row in list(self._rows)[-n_rows:]:
            table.add_row(*_cells(row, wide=wide))
        return table


def describe_line(packet: Mapping[str, Any]) -> str:
    """Return one alert on one line, for pipes and logs: every word as ``awk`` likes it."""
    source = packet["diaSource"]
    return (
        f"{source['midpointMjdTai']:.5f} {source['visit']}/{source['detector']} {source['band'] or '-'}"
        f" alert {source['diaSourceId']} object {source['diaObjectId'] or source['ssObjectId']}"
        f" ra {source['ra']:.6f} dec {source['dec']:+.6f}"
        f" flux {_number(source['psfFlux'], '.0f')} ± {_number(source['psfFluxErr'], '.0f')} nJy"
        f" S/N {_number(source['snr'], '.1f')} history {len(packet['prvDiaSources'] or ())}"
    )


def _cells(packet: Mapping[str, Any], *, wide: bool) -> list[str]:
    source, parent, body = packet["diaSource"], packet["diaObject"], packet["ssSource"]
    moment = Time(source["midpointMjdTai"], format="mjd", scale="tai").utc
    kinds = [word for word, field in (("dip", "isDipole"), ("neg", "isNegative")) if source[field]]
    if body is None and parent is not None and parent["nDiaSources"] == 1:
        kinds.insert(0, "new")
    digits = 6 if wide else 4  # 80 columns hold the longest ids, fluxes and kinds with four
    identity = source["diaObjectId"] if body is None else body["designation"] or body["ssObjectId"]
    return [
        moment.strftime("%H:%M:%S"),
        *([f"{source['visit']}/{source['detector']}"] if wide else []),
        str(identity),
        source["band"] or "-",
        f"{source['ra']:.{digits}f}",
        f"{source['dec']:+.{digits}f}",
        _number(source["snr"], ".1f"),
        _number(source["psfFlux"], ",.0f"),
        "-" if parent is None else str(parent["nDiaSources"]),
        " " + " ".join(kinds),
    ]


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)
