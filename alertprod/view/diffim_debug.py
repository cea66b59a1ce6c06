"""A `Display` that writes what `runDebug` draws as PNG files into a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alertprod._typing import FloatArray, IntArray
from alertprod.geometry.box import Box
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.tasks.protocols import Marker, Segment
from alertprod.view.pair import _average_down, _compute_pulls
from alertprod.view.stretch import compute_center_and_noise, stretch_sky

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_SIDE = 1400
"""Pixels of a picture; larger images are averaged down."""

_LIMIT = 6.0
"""Brightness runs from minus to plus this many times the image's noise."""

_MASK_COLORS: Mapping[str, tuple[float, float, float]] = {
    "DETECTED": (0.15, 0.4, 1.0),
    "DETECTED_NEGATIVE": (0.0, 0.8, 0.8),
    "INTRP": (0.3, 0.8, 0.2),
    "SAT": (0.1, 0.7, 0.1),
    "SAT_TEMPLATE": (0.1, 0.5, 0.1),
    "CR": (1.0, 0.0, 1.0),
    "BAD": (1.0, 0.0, 0.0),
    "STREAK": (0.6, 0.2, 0.9),
    "HIGH_VARIANCE": (0.6, 0.4, 0.1),
    "EDGE": (0.9, 0.9, 0.0),
    "NO_DATA": (1.0, 0.6, 0.0),
}
"""Planes that are shown; where a pixel has several, the last one."""

_SKY_RANGE = (-0.5, 3.6)
"""Of stretched science images and templates: from two below the noise's median to a star of 70 times the noise."""

_STAMP_SIDE = 31
"""Pixels: a PSF and its surroundings."""

_LABEL_HEIGHT = 8
"""Rows of a sheet above each stamp."""

_SAMPLE_COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#7f7f7f", "#9467bd")


class PngDisplay:
    """Writes each picture as one PNG file; a `Display`.

    Parameters
    ----------
    directory
        Where; made when the first picture is.

    Notes
    -----
    Several processes may draw into one folder: a name that is taken gets a number.
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)

    def show(
        self,
        title: str,
        image: Exposure | FloatArray,
        /,
        *,
        markers: Sequence[Marker] = (),
        segments: Sequence[Segment] = (),
        maskTransparency: float = 100.0,
    ) -> None:
        """Draw an image with marks on it; see `Display.show`."""
        figure = plot_image(
            title, image, markers=markers, segments=segments, mask_opacity=1.0 - maskTransparency / 100.0
        )
        self._save(figure, title)

    def stamps(self, title: str, images: Mapping[str, Exposure], markers: Sequence[Marker], /) -> None:
        """Draw squares about each marker; see `Display.stamps`."""
        self._save(plot_stamps(title, images, markers), title)

    def histogram(self, title: str, samples: Mapping[str, FloatArray], /) -> None:
        """Draw distributions of pulls; see `Display.histogram`."""
        self._save(plot_pulls(title, samples), title)

    def _save(self, figure: Figure, title: str) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^A-Za-z0-9]+", "_", title).strip("_") or "picture"
        number = 1
        while True:
            path = self._directory / (f"{stem}.png" if number == 1 else f"{stem}_{number}.png")
            try:
                with path.open("xb") as file:
                    figure.savefig(file, format="png")
            except FileExistsError:
                number += 1
            else:
                return


def plot_image(
    title: str,
    image: Exposure | FloatArray,
    *,
    markers: Sequence[Marker] = (),
    segments: Sequence[Segment] = (),
    mask_opacity: float = 0.0,
) -> Figure:
    """Draw an image in greys, linear about its median, with its mask in colours and marks on it.

    Parameters
    ----------
    mask_opacity
        0 hides the mask, 1 hides what is below it.
    """
    from matplotlib.figure import Figure  # late: plots are for a few commands

    pixels = image.image if isinstance(image, Exposure) else image
    ny, nx = pixels.shape
    factor = -(-max(ny, nx) // _MAX_SIDE)
    scale = min(11.0 / nx, 11.0 / ny)
    figure = Figure(figsize=(nx * scale + 0.6, ny * scale + 0.6), dpi=130, layout="constrained", facecolor="white")
    panel = figure.subplots()
    shown = _average_down(pixels, factor)
    center, noise = compute_center_and_noise(shown)
    # A last block that is not whole is left out.
    extent = (-0.5, shown.shape[1] * factor - 0.5, -0.5, shown.shape[0] * factor - 0.5)
    panel.imshow(
        shown, origin="lower", cmap="gray", vmin=center - _LIMIT * noise, vmax=center + _LIMIT * noise,
        interpolation="nearest", extent=extent,
    )  # fmt: skip
    panel.set_facecolor("#c9d6e2")
    if isinstance(image, Exposure) and mask_opacity > 0:
        panel.imshow(
            _paint_mask(image.mask, factor, mask_opacity), origin="lower", interpolation="nearest", extent=extent
        )
    _draw_marks(panel, markers, segments)
    panel.set_xlim(-0.5, nx - 0.5)
    panel.set_ylim(-0.5, ny - 0.5)
    panel.set_title(title, fontsize=10)
    panel.tick_params(labelsize=7.5)
    return figure


def plot_stamps(title: str, images: Mapping[str, Exposure], markers: Sequence[Marker], *, per_row: int = 6) -> Figure:
    """Draw a sheet of stamps, a group for each marker, the first on top.

    Notes
    -----
    The difference is linear from minus to plus six times each pixel's standard error, black to white; the others are
    stretched about their own levels, in units of one noise, so that a change shows by eye.
    """
    from matplotlib.figure import Figure  # late: plots are for a few commands

    shades = _shade(images)
    group, height = len(images) * (_STAMP_SIDE + 1) + 2, _STAMP_SIDE + _LABEL_HEIGHT
    n_columns, n_rows = min(per_row, len(markers)), -(-len(markers) // per_row)
    sheet = np.full((n_rows * height, n_columns * group), np.nan, dtype=np.float32)
    labels = []
    for k, marker in enumerate(markers):
        row, column = divmod(k, per_row)
        bottom, left = (n_rows - 1 - row) * height, column * group
        for j, shade in enumerate(shades):
            first = left + j * (_STAMP_SIDE + 1)
            sheet[bottom : bottom + _STAMP_SIDE, first : first + _STAMP_SIDE] = _cut(shade, x=marker.x, y=marker.y)
        labels.append(replace(marker, x=left, y=bottom + _STAMP_SIDE, symbol=""))
    width_inches = 12.0 * max(1, n_columns) / per_row + 0.5
    figure = Figure(
        figsize=(width_inches, width_inches * sheet.shape[0] / sheet.shape[1] + 0.5), dpi=130, layout="constrained"
    )
    panel = figure.subplots()
    panel.imshow(sheet, origin="lower", cmap="gray", vmin=-1.0, vmax=1.0, interpolation="nearest")
    panel.set_facecolor("#c9d6e2")
    panel.set_axis_off()
    _draw_marks(panel, labels, ())
    panel.set_title(f"{title} ({', '.join(images)})", fontsize=10)
    return figure


def _shade(images: Mapping[str, Exposure]) -> list[FloatArray]:
    """Return images in shades from -1, black, to 1, white."""
    levels = {name: compute_center_and_noise(image.image) for name, image in images.items()}
    shades = []
    for name, image in images.items():
        if name == "difference":
            shades.append(_compute_pulls(image) / _LIMIT)
        else:
            low, high = _SKY_RANGE
            stretched = stretch_sky(image.image, center=levels[name][0], noise=levels.get("science", levels[name])[1])
            shades.append(2.0 * (stretched - low) / (high - low) - 1.0)
    return shades


def _cut(image: FloatArray, *, x: float, y: float) -> FloatArray:
    """Return the square about a point, NaN where it reaches off the image."""
    stamp = np.full((_STAMP_SIDE, _STAMP_SIDE), np.nan, dtype=np.float32)
    box = Box.centered(x=x, y=y, size=_STAMP_SIDE)
    inside = box.intersection(Box.from_shape(image.shape))
    if inside.area:
        rows = slice(inside.y_min - box.y_min, inside.y_max - box.y_min)
        stamp[rows, inside.x_min - box.x_min : inside.x_max - box.x_min] = image[inside.slices]
    return stamp


def plot_pulls(title: str, samples: Mapping[str, FloatArray]) -> Figure:
    """Draw the densities of samples of pulls on a logarithmic scale, beside the unit normal's."""
    from matplotlib.figure import Figure  # late: plots are for a few commands

    figure = Figure(figsize=(7.5, 5.0), dpi=120, layout="constrained", facecolor="white")
    panel = figure.subplots()
    edges = np.linspace(-_LIMIT, _LIMIT, 61)
    middles, width = 0.5 * (edges[1:] + edges[:-1]), edges[1] - edges[0]
    for color, (name, values) in zip(_SAMPLE_COLORS, samples.items(), strict=False):
        finite = values[np.isfinite(values)]
        if not finite.size:
            continue
        median, sigma = compute_center_and_noise(finite)
        # What is beyond the limits counts in the outermost bins.
        counts, _ = np.histogram(np.clip(finite, edges[0], edges[-1]), bins=edges)
        label = f"{name}: {finite.size:,} pixels, median {median:+.2f}, width {sigma:.2f}"
        filled = counts > 0
        panel.plot(
            middles[filled], counts[filled] / finite.size / width, color=color, linewidth=1.2, marker=".", label=label
        )
    panel.plot(middles, np.exp(-0.5 * middles**2) / np.sqrt(2 * np.pi), color="#d62728", label="unit normal")
    panel.set_yscale("log")
    panel.set_ylim(1e-6, 2.0)
    panel.set_xlim(-_LIMIT, _LIMIT)
    panel.set_xlabel("difference / standard error")
    panel.set_title(title, fontsize=10)
    panel.legend(loc="lower center", fontsize=8, framealpha=0.85)
    panel.tick_params(labelsize=7.5)
    return figure


def _paint_mask(mask: IntArray, factor: int, opacity: float) -> FloatArray:
    """Return RGBA pixels of a mask; where the image is averaged down a block shows what any of its pixels has."""
    ny, nx = mask.shape[0] // factor, mask.shape[1] // factor
    blocks = np.bitwise_or.reduce(mask[: ny * factor, : nx * factor].reshape(ny, factor, nx, factor), axis=(1, 3))
    painted = np.zeros((ny, nx, 4), dtype=np.float32)
    for plane, color in _MASK_COLORS.items():
        painted[(blocks & plane_bits(plane)) != 0] = (*color, opacity)
    return painted


def _draw_marks(panel: Axes, markers: Sequence[Marker], segments: Sequence[Segment]) -> None:
    from matplotlib.patheffects import withStroke  # late: plots are for a few commands

    # A dark rim, so that yellow shows on white stars.
    rim = [withStroke(linewidth=2.8, foreground="#202020")]
    for segment in segments:
        panel.plot(
            [segment.x0, segment.x1], [segment.y0, segment.y1], color=segment.colour, linewidth=1.4, path_effects=rim
        )
    for symbol in sorted({marker.symbol for marker in markers} - {""}):
        group = [marker for marker in markers if marker.symbol == symbol]
        x, y, colours = ([getattr(marker, name) for marker in group] for name in ("x", "y", "colour"))
        if symbol == "o":
            panel.scatter(x, y, s=130, facecolors="none", edgecolors=colours, linewidths=1.4, path_effects=rim)
        else:
            panel.scatter(x, y, s=90, marker=symbol, c=colours, linewidths=1.4, path_effects=rim)
    for marker in markers:
        if marker.label:
            panel.annotate(
                marker.label, (marker.x, marker.y), color=marker.colour, fontsize=7, va="bottom",
                bbox={"facecolor": "#303030", "edgecolor": "none", "pad": 1.0},
            )  # fmt: skip
