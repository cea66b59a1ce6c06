"""Light curves of the objects of alerts: difference flux against time, detections and forced measurements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.time import Time

from alertprod.association.columns import BANDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {"u": "#6a3d9a", "g": "#1f78b4", "r": "#33a02c", "i": "#ff7f00", "z": "#e31a1c", "y": "#7f3b08"}
_OTHER_COLOR = "0.3"


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
    start = min(time for packet in packets for time, *_ in _points(packet))
    origin = float(np.floor(start))
    bands: set[str] = set()
    for panel, packet in zip(panels, packets, strict=False):
        bands |= _draw_light_curve(panel, packet, origin)
    for panel in panels[len(packets) :]:
        panel.set_axis_off()
    date = Time(origin, format="mjd", scale="tai").strftime("%Y-%m-%d")
    figure.supxlabel(f"days since {date} 0h TAI (MJD {origin:.0f})", fontsize=9)
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


def _points(packet: Mapping[str, Any]) -> list[tuple[float, float, float, str, bool]]:
    """Return (time, flux, error, band, was detected) of every finite flux, forced ones first."""
    rows = [(row, False) for row in packet["prvDiaForcedSources"] or ()]
    rows += [(row, True) for row in (*(packet["prvDiaSources"] or ()), packet["diaSource"])]
    return [
        (row["midpointMjdTai"], row["psfFlux"], row["psfFluxErr"] or 0.0, row["band"] or "", detected)
        for row, detected in rows
        if row["psfFlux"] is not None or row is packet["diaSource"]
    ]


def _draw_light_curve(panel: Axes, packet: Mapping[str, Any], origin: float) -> set[str]:
    points = [point for point in _points(packet) if point[1] is not None]
    panel.axhline(0.0, color="0.75", linewidth=0.8, zorder=0)
    for band in {point[3] for point in points}:
        for detected in (False, True):
            chosen = [point[:3] for point in points if point[3] == band and point[4] == detected]
            if not chosen:
                continue
            time, flux, error = np.array(chosen).T
            color = _COLORS.get(band, _OTHER_COLOR)
            panel.errorbar(
                time - origin,
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
    panel.set_title(f"{source['diaObjectId']}   {_count(n_detections, 'detection')}", fontsize=8.5)
    panel.text(
        0.02, 0.97, f"{source['ra']:.5f}  {source['dec']:+.5f}", transform=panel.transAxes, fontsize=6.5, va="top",
        color="0.4",
    )  # fmt: skip
    panel.tick_params(labelsize=7.5)
    panel.margins(x=0.08, y=0.18)
    return {point[3] for point in points}


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _draw_legend(figure: Figure, bands: set[str]) -> None:
    from matplotlib.lines import Line2D

    known = [band for band in BANDS if band in bands] + sorted(bands - set(BANDS) - {""})
    handles = [
        Line2D([], [], marker="o", linestyle="", color=_COLORS.get(band, _OTHER_COLOR), label=band) for band in known
    ]
    handles += [
        Line2D([], [], marker="o", linestyle="", color="0.3", label="detection"),
        Line2D([], [], marker="s", linestyle="", color="0.3", markerfacecolor="none", label="forced"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8, frameon=False)
