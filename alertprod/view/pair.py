"""One subtraction at a glance: science, matched template, difference with its detections, and the noise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alertprod._typing import FloatArray
from alertprod.images.exposure import Exposure
from alertprod.images.mask import MASK_PLANES, plane_bits
from alertprod.measurement.catalog import Catalog
from alertprod.view.stretch import compute_center_and_noise, stretch_sky

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_SIDE = 900
"""Pixels of a panel: what a screen shows; larger images are averaged down."""

_PULL_LIMIT = 6.0
"""Of the difference picture and the histogram, in standard errors."""

_NOT_SKY = plane_bits(*(name for name in MASK_PLANES if name not in ("INJECTED", "INJECTED_TEMPLATE", "INTRP")))
"""Pixels with any of these do not count in the histogram: detections and whatever is broken."""

_POSITIVE_COLOR, _NEGATIVE_COLOR, _DIPOLE_COLOR = "#ff7f0e", "#1fa8ff", "#e377c2"


def plot_pair(
    *, science: Exposure, template: Exposure, difference: Exposure, sources: Catalog, title: str = ""
) -> Figure:
    """Draw the three images of a subtraction and the histogram of its pulls.

    Parameters
    ----------
    science, template, difference
        On one pixel grid; the template is the matched one.
    sources
        `DIA_SOURCE_COLUMNS`, marked on the difference.

    Notes
    -----
    The difference is shown as pulls, pixel over standard error; where it is averaged down the pulls are scaled so that
    pure noise keeps unit width. The histogram is of the full-size pixels without detections; its width is the
    robust one.
    """
    from matplotlib.figure import Figure  # late: plots are for a few commands

    figure = Figure(figsize=(11.0, 10.6), dpi=110, layout="constrained", facecolor="white")
    panels = figure.subplots(2, 2)
    factor = -(-max(science.shape) // _MAX_SIDE)
    # One stretch for both, so that a change shows by eye; their skies may differ.
    _, noise = compute_center_and_noise(_average_down(science.image, factor))
    for panel, exposure, name in ((panels[0, 0], science, "science"), (panels[0, 1], template, "template, matched")):
        image = _average_down(exposure.image, factor)
        center, _ = compute_center_and_noise(image)
        _show(panel, stretch_sky(image, center=center, noise=noise), (-0.5, 4.0), exposure.shape)
        panel.set_title(name, fontsize=10)
    pulls = _compute_pulls(difference)
    # The mean of n independent pulls has width 1 / sqrt(n).
    _show(panels[1, 0], _average_down(pulls, factor) * factor, (-_PULL_LIMIT, _PULL_LIMIT), difference.shape)
    panels[1, 0].set_title(f"difference (pulls), {sources.n_rows} DiaSources", fontsize=10)
    _mark(panels[1, 0], sources)
    _draw_pulls(panels[1, 1], pulls[(difference.mask & _NOT_SKY) == 0])
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def save_pair(
    path: Path, *, science: Exposure, template: Exposure, difference: Exposure, sources: Catalog, title: str = ""
) -> None:
    """Write `plot_pair` as PNG."""
    figure = plot_pair(science=science, template=template, difference=difference, sources=sources, title=title)
    figure.savefig(path)


def _compute_pulls(exposure: Exposure) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        pulls = exposure.image / np.sqrt(exposure.variance)
    pulls[~np.isfinite(pulls) | (exposure.variance <= 0)] = np.nan
    return pulls


def _average_down(image: FloatArray, factor: int) -> FloatArray:
    """Return means of ``factor x factor`` blocks, of their finite pixels; a last block that is not whole is left out."""
    if factor == 1:
        return image
    ny, nx = image.shape[0] // factor, image.shape[1] // factor
    blocks = image[: ny * factor, : nx * factor].reshape(ny, factor, nx, factor)
    finite = np.isfinite(blocks)
    n = finite.sum(axis=(1, 3))
    total = np.where(finite, blocks, 0.0).sum(axis=(1, 3))
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def _show(panel: Axes, image: FloatArray, limits: tuple[float, float], shape: tuple[int, int]) -> None:
    ny, nx = shape
    panel.imshow(
        image, origin="lower", cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest",
        extent=(-0.5, nx - 0.5, -0.5, ny - 0.5),
    )  # fmt: skip
    panel.set_facecolor("#c9d6e2")
    panel.tick_params(labelsize=7.5)


def _mark(panel: Axes, sources: Catalog) -> None:
    dipole = sources["is_dipole"]
    kinds = (
        ("positive", _POSITIVE_COLOR, ~dipole & ~sources["is_negative"]),
        ("negative", _NEGATIVE_COLOR, ~dipole & sources["is_negative"]),
        ("dipole", _DIPOLE_COLOR, dipole),
    )
    for name, color, rows in kinds:
        if rows.any():
            panel.scatter(
                sources["x"][rows], sources["y"][rows], s=70, facecolors="none", edgecolors=color, linewidths=1.1,
                label=f"{int(rows.sum())} {name}",
            )  # fmt: skip
    if sources.n_rows:
        panel.legend(loc="upper right", fontsize=8, framealpha=0.85)


def _draw_pulls(panel: Axes, pulls: FloatArray) -> None:
    pulls = pulls[np.isfinite(pulls)]
    edges = np.linspace(-_PULL_LIMIT, _PULL_LIMIT, 121)
    counts, _ = np.histogram(pulls, bins=edges)
    middles, width = 0.5 * (edges[1:] + edges[:-1]), edges[1] - edges[0]
    density = counts / max(1, pulls.size) / width
    panel.stairs(density, edges, fill=True, color="0.75")
    panel.stairs(density, edges, color="0.3", linewidth=0.8, label="pixels of the sky")
    panel.plot(middles, np.exp(-0.5 * middles**2) / np.sqrt(2 * np.pi), color="#d62728", label="unit normal")
    panel.set_yscale("log")
    panel.set_ylim(1e-7, 1.0)
    panel.set_xlim(-_PULL_LIMIT, _PULL_LIMIT)
    center, robust_width = compute_center_and_noise(pulls)
    panel.text(
        0.03, 0.97,
        f"median {center:+.3f}\nrobust width {robust_width:.3f}\n{pulls.size:,} pixels",
        transform=panel.transAxes, va="top", fontsize=9,
    )  # fmt: skip
    panel.set_title("difference / standard error", fontsize=10)
    panel.legend(loc="upper right", fontsize=8, framealpha=0.85)
    panel.tick_params(labelsize=7.5)
