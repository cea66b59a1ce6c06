"""Light curves of the objects of alerts: difference flux against time, detections and forced measurements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from astropy.time import Time

from alertprod._typing import FloatArray
from alertprod.association.columns import BANDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_COLORS = {"u": "#6a3d9a", "g": "#1f78b4", "r": "#33a02c", "i": "#ff7f00", "z": "#e31a1c", "y": "#7f3b08"}
_OTHER_COLOR = "#4d4d4d"

_MINUTES_BELOW_DAYS: Final = 0.1
_HOURS_BELOW_DAYS: Final = 2.0

_VAGUE: Final = 5.0
"""Times the median error of an object's fluxes, beyond which one, cut by an edge say, does not set the axis."""

_WHOLE_FROM_NJY: Final = 20.0
"""Ticks of an axis as long as this are whole numbers of nJy."""


def choose_objects(packets: Iterable[Mapping[str, Any]], *, max_objects: int) -> list[Mapping[str, Any]]:
    """Return the latest alert of each object, those with the longest history first."""
    latest: dict[int, Mapping[str, Any]] = {}
    for packet in packets:
        object_id = packet["diaSource"]["diaObjectId"]
        if object_id is None:
            continue
        other = latest.get(object_id)
        if other is None or packet["diaSource"]["midpointMjdTai"] > other["diaSource"]["midpointMjdTai"]:
            latest[object_id] = packet
    ordered = sorted(latest.values(), key=lambda p: (-_n_points(p), p["diaSource"]["diaObjectId"]))
    return ordered[:max_objects]


def plot_light_curves(packets: Sequence[Mapping[str, Any]], *, n_columns: int = 3) -> Figure:
    """Draw one panel an alert: its object's sources and forced sources, the trigger among them.

    Parameters
    ----------
    packets
        Decoded alerts of different objects, at least one; `choose_objects` picks them.

    Notes
    -----
    Filled symbols are detections, open ones forced measurements; bars are one standard error. Fluxes are nJy on the
    difference, so zero is the template's brightness.
    """
    from matplotlib.figure import Figure  # late: plots are for a few commands

    if not packets:
        msg = "no light curves to draw"
        raise ValueError(msg)
    n_columns = min(n_columns, len(packets))
    n_rows = -(-len(packets) // n_columns)
    figure = Figure(figsize=(4.2 * n_columns, 2.6 * n_rows + 0.4), dpi=110, layout="constrained", facecolor="white")
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    times = choose_time_axis(packets)
    bands: set[str] = set()
    for panel, packet in zip(panels, packets, strict=False):
        bands |= draw_light_curve_panel(panel, packet, times)
    for panel in panels[len(packets) :]:
        panel.set_axis_off()
    figure.supxlabel(times.label, fontsize=9)
    figure.supylabel("difference flux (nJy)", fontsize=9)
    _draw_legend(figure, bands)
    return figure


def save_light_curves(packets: Iterable[Mapping[str, Any]], path: Path, *, max_objects: int = 12) -> int:
    """Write the page of the `max_objects` longest light curves as PNG and return how many it shows."""
    chosen = choose_objects(packets, max_objects=max_objects)
    plot_light_curves(chosen).savefig(path)
    return len(chosen)


def _n_points(packet: Mapping[str, Any]) -> int:
    return 1 + len(packet["prvDiaSources"] or ()) + len(packet["prvDiaForcedSources"] or ())


class Point(NamedTuple):
    """One flux of an object on a difference."""

    mjd_tai: float
    flux: float
    """nJy."""
    error: float
    """Standard error, nJy; 0 where not known."""
    band: str
    detected: bool
    """Else measured at the object's place without being detected, or beside that."""


def list_points(packet: Mapping[str, Any]) -> list[Point]:
    """Return every finite flux of an alert's object, forced ones first."""
    rows = [(row, False) for row in packet["prvDiaForcedSources"] or ()]
    rows += [(row, True) for row in (*(packet["prvDiaSources"] or ()), packet["diaSource"])]
    return [
        Point(row["midpointMjdTai"], row["psfFlux"], row["psfFluxErr"] or 0.0, row["band"] or "", detected)
        for row, detected in rows
        if row["psfFlux"] is not None
    ]


class TimeAxis(NamedTuple):
    """What times are drawn against: days of a season, hours of a night, minutes of a demonstration."""

    origin_mjd_tai: float
    units_per_day: float
    label: str

    def place(self, mjd_tai: FloatArray) -> FloatArray:
        """Return where times (MJD TAI) stand on the axis."""
        return np.asarray((mjd_tai - self.origin_mjd_tai) * self.units_per_day)


def choose_time_axis(packets: Iterable[Mapping[str, Any]]) -> TimeAxis:
    """Return an axis on which the times of all points of these alerts, at least one, are numbers of few digits."""
    times = [packet["diaSource"]["midpointMjdTai"] for packet in packets]
    times += [point.mjd_tai for packet in packets for point in list_points(packet)]
    first, span = min(times), max(times) - min(times)
    if span < _MINUTES_BELOW_DAYS:
        origin = float(np.floor(first * 1440.0)) / 1440.0
        moment = Time(origin + 0.25 / 86400.0, format="mjd", scale="tai").strftime("%Y-%m-%d %H:%M")
        return TimeAxis(origin, 1440.0, f"minutes since {moment} TAI")
    origin = float(np.floor(first))
    date = Time(origin, format="mjd", scale="tai").strftime("%Y-%m-%d")
    if span < _HOURS_BELOW_DAYS:
        return TimeAxis(origin, 24.0, f"hours since {date} 0h TAI (MJD {origin:.0f})")
    return TimeAxis(origin, 1.0, f"days since {date} 0h TAI (MJD {origin:.0f})")


def band_color(band: str) -> str:
    """Return the colour that a band is drawn in."""
    return _COLORS.get(band, _OTHER_COLOR)


def draw_light_curve_panel(panel: Axes, packet: Mapping[str, Any], times: TimeAxis) -> set[str]:
    """Draw one object's fluxes against time and return the bands that there are."""
    points = list_points(packet)
    panel.axhline(0.0, color="0.75", linewidth=0.8, zorder=0)
    for band in {point[3] for point in points}:
        for detected in (False, True):
            chosen = [point[:3] for point in points if point[3] == band and point[4] == detected]
            if not chosen:
                continue
            time, flux, error = np.array(chosen).T
            color = band_color(band)
            panel.errorbar(
                times.place(time),
                flux,
                yerr=error,
                fmt="o" if detected else "s",
                markersize=4.5 if detected else 6.5,
                markerfacecolor=color if detected else "none",
                color=color,
                linewidth=0.9,
                zorder=3 if detected else 2,
            )
    source = packet["diaSource"]
    n_detections = 1 + len(packet["prvDiaSources"] or ())
    identity = source["diaObjectId"] if packet["ssSource"] is None else packet["ssSource"]["designation"]
    panel.set_title(f"{identity}   {_count(n_detections, 'detection')}", fontsize=8.5)
    panel.text(
        0.02, 0.97, f"{source['ra']:.5f}  {source['dec']:+.5f}", transform=panel.transAxes, fontsize=6.5, va="top",
        color="0.4",
    )  # fmt: skip
    panel.tick_params(labelsize=7.5)
    panel.margins(x=0.08, y=0.18)
    _limit_fluxes(panel, points)
    panel.yaxis.set_major_formatter("{x:,.0f}" if np.ptp(panel.get_ylim()) >= _WHOLE_FROM_NJY else "{x:g}")
    return {point[3] for point in points}


def _limit_fluxes(panel: Axes, points: Sequence[Point]) -> None:
    """Let the axis follow the fluxes that are known; say how many of those that are not lie beyond it."""
    fluxes, errors = np.array([point.flux for point in points]), np.array([point.error for point in points])
    if not errors.any():
        return
    is_known = errors <= _VAGUE * np.median(errors[errors > 0])
    if is_known.all():
        return
    low = min(0.0, float((fluxes - errors)[is_known].min()))
    high = max(0.0, float((fluxes + errors)[is_known].max()))
    margin = 0.18 * (high - low)
    panel.set_ylim(low - margin, high + margin)
    n_beyond = int(((fluxes < low - margin) | (fluxes > high + margin)).sum())
    if n_beyond:
        panel.text(
            0.98, 0.03, f"{n_beyond} of large error beyond", transform=panel.transAxes, fontsize=6.5, ha="right",
            color="0.4",
        )  # fmt: skip


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _draw_legend(figure: Figure, bands: set[str]) -> None:
    handles = make_legend_handles(bands)
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8, frameon=False)


def make_legend_handles(bands: set[str]) -> list[Line2D]:
    """Return what a legend shows: a colour a band, a symbol a kind of measurement."""
    from matplotlib.lines import Line2D

    known = [band for band in BANDS if band in bands] + sorted(bands - set(BANDS) - {""})
    return [
        *(Line2D([], [], marker="o", linestyle="", color=band_color(band), label=band) for band in known),
        Line2D([], [], marker="o", linestyle="", color="0.3", label="detection"),
        Line2D([], [], marker="s", linestyle="", color="0.3", markerfacecolor="none", label="forced"),
    ]
