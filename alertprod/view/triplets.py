"""A sheet of alerts: science, template and difference cutouts side by side, with what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from astropy.time import Time

from alertprod._typing import FloatArray
from alertprod.alerts.cutouts import load_cutout
from alertprod.view.stretch import compute_center_and_noise, stretch_sky

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROLES = (("cutoutScience", "science"), ("cutoutTemplate", "template"), ("cutoutDifference", "difference"))

_SKY_RANGE = (-0.5, 3.6)
"""Of the stretched sky: from two below the noise's median to a star of 70 times the noise."""

_DIFFERENCE_SIGMAS = 8.0
"""Difference images run from minus to plus this many times their noise."""

NO_DATA_COLOR = "#c9d6e2"
"""A colour that no grey-scale image has: pixels without data."""


def plot_triplets(packets: Sequence[Mapping[str, Any]], *, alerts_per_row: int = 3) -> Figure:
    """Draw one triplet an alert, in the order given.

    Parameters
    ----------
    packets
        Decoded alerts, at least one.

    Notes
    -----
    Science and template share one stretch, so that a change shows by eye; the difference has its own, symmetric about
    zero: white is brighter than the template, black fainter. Pixels without data are light blue.
    """
    from matplotlib.figure import Figure  # late: plots are for a few commands

    if not packets:
        msg = "no alerts to draw"
        raise ValueError(msg)
    n_columns = min(alerts_per_row, len(packets))
    n_rows = -(-len(packets) // n_columns)
    figure = Figure(figsize=(4.3 * n_columns, 2.05 * n_rows + 0.1), dpi=110, layout=None, facecolor="white")
    for k, packet in enumerate(packets):
        row, column = divmod(k, n_columns)
        axes = [
            figure.add_axes(
                (
                    (column + 0.02 + 0.325 * j) / n_columns,
                    1.0 - (row + 0.965) / n_rows,
                    0.31 / n_columns,
                    0.66 / n_rows,
                )
            )
            for j in range(3)
        ]
        _draw_triplet(axes, packet)
    return figure


def save_triplets(packets: Sequence[Mapping[str, Any]], path: Path, *, max_alerts: int = 24) -> int:
    """Write the sheet of the `max_alerts` most significant alerts as PNG and return how many it shows."""
    chosen = sorted(packets, key=lambda packet: (-(packet["diaSource"]["snr"] or 0.0), packet["diaSourceId"]))
    chosen = chosen[:max_alerts]
    plot_triplets(chosen).savefig(path)
    return len(chosen)


def describe_alert(packet: Mapping[str, Any]) -> tuple[str, str]:
    """Return two lines on an alert: which object and what kind; significance, flux and date."""
    source = packet["diaSource"]
    if source["diaObjectId"] is not None:
        identity = f"object {source['diaObjectId']}"
    else:
        body = packet["ssSource"]
        identity = f"Solar System {(body and body['designation']) or source['ssObjectId']}"
    remarks = [
        text
        for text, holds in (
            ("dipole", source["isDipole"]),
            ("negative", source["isNegative"]),
            ("new", packet["diaObject"] is not None and packet["diaObject"]["nDiaSources"] == 1),
        )
        if holds
    ]
    date = Time(source["midpointMjdTai"], format="mjd", scale="tai").utc.strftime("%Y-%m-%d %H:%M UTC")
    facts = [
        f"S/N {_number(source['snr'])}",
        f"{_number(source['psfFlux'])} ± {_number(source['psfFluxErr'])} nJy",
        source["band"] or "",
        date,
    ]
    return "  ".join([identity, *remarks]), "  ".join(fact for fact in facts if fact)


def _number(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


class StretchedCutout(NamedTuple):
    """A cutout as it is shown."""

    name: str
    image: FloatArray | None
    """NaN where there are no data; None where there is no cutout."""
    low: float
    """What is black."""
    high: float
    """What is white."""


def stretch_cutouts(packet: Mapping[str, Any]) -> list[StretchedCutout]:
    """Return science, template and difference as they are shown: see `plot_triplets`."""
    images = {
        name: None if packet[field] is None else np.asarray(load_cutout(packet[field]).data) for field, name in _ROLES
    }
    sky = [image for name, image in images.items() if image is not None and name != "difference"]
    center, noise = compute_center_and_noise(np.concatenate([image.ravel() for image in sky])) if sky else (0.0, 1.0)
    shown = []
    for name, image in images.items():
        if image is not None and name == "difference":
            limit = _DIFFERENCE_SIGMAS * compute_center_and_noise(image)[1]
            shown.append(StretchedCutout(name, image, -limit, limit))
        else:
            stretched = None if image is None else stretch_sky(image, center=center, noise=noise)
            shown.append(StretchedCutout(name, stretched, *_SKY_RANGE))
    return shown


def draw_cutouts(axes: Sequence[Axes], packet: Mapping[str, Any]) -> None:
    """Draw science, template and difference into three panels."""
    for axis, cutout in zip(axes, stretch_cutouts(packet), strict=True):
        if cutout.image is None:
            axis.text(0.5, 0.5, "none", transform=axis.transAxes, ha="center", va="center", color="0.5", fontsize=8)
        else:
            _show(axis, cutout.image, cutout.low, cutout.high)
        axis.set_title(cutout.name, fontsize=6.5, pad=2, color="0.35")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_box_aspect(1)


def _draw_triplet(axes: Sequence[Axes], packet: Mapping[str, Any]) -> None:
    first, second = describe_alert(packet)
    axes[0].text(0.0, 1.30, first, transform=axes[0].transAxes, fontsize=7.5, fontweight="bold", va="bottom")
    axes[0].text(0.0, 1.15, second, transform=axes[0].transAxes, fontsize=7.5, va="bottom")
    draw_cutouts(axes, packet)


def _show(axis: Axes, image: FloatArray, low: float, high: float) -> None:
    axis.imshow(image, origin="lower", cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    axis.set_facecolor(NO_DATA_COLOR)
    # Two strokes that point at the source and leave it free.
    middle, size = (image.shape[0] - 1) / 2, image.shape[0]
    near, far = 0.12 * size, 0.24 * size
    axis.plot([middle + near, middle + far], [middle, middle], color="#ff8c1a", linewidth=0.9)
    axis.plot([middle, middle], [middle + near, middle + far], color="#ff8c1a", linewidth=0.9)
