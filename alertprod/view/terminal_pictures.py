"""Pictures out of characters: an alert's cutouts and its light curve, for a terminal.

Each character cell holds two pixels, one above the other: the upper half block in the colour of the one, on the colour of
the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from alertprod._typing import FloatArray
from alertprod.view.light_curves import band_color, list_points
from alertprod.view.triplets import NO_DATA_COLOR, stretch_cutouts

_HALF_BLOCK = "▀"
_GAP = 2
"""Columns between two cutouts."""

_DETECTED, _FORCED, _BAR = "●", "○", "│"


def draw_triplet(packet: Mapping[str, Any], *, width: int = 80) -> Segments:
    """Draw science, template and difference side by side, as wide as they are or as the terminal allows.

    Parameters
    ----------
    packet
        A decoded alert.
    width
        Columns of the terminal.
    """
    most = max(4, (width - 2 * _GAP) // 3)
    pictures: list[tuple[str, FloatArray | None]] = []
    for cutout in stretch_cutouts(packet):
        if cutout.image is None:
            pictures.append((cutout.name, None))
            continue
        # Sky is drawn with the first row at the bottom.
        levels = np.clip((cutout.image[::-1] - cutout.low) / (cutout.high - cutout.low), 0.0, 1.0)
        pictures.append((cutout.name, _shrink(levels, most)))
    side = max((image.shape[1] for _, image in pictures if image is not None), default=8)
    n_lines = -(-side // 2)
    segments: list[Segment] = []
    for number, (name, _) in enumerate(pictures):
        segments.append(Segment(" " * _GAP if number else ""))
        segments.append(Segment(name.center(side)[:side], Style(dim=True)))
    segments.append(Segment.line())
    for line in range(n_lines):
        for number, (_, image) in enumerate(pictures):
            segments.append(Segment(" " * _GAP if number else ""))
            if image is None:
                text = "none" if line == n_lines // 2 else ""
                segments.append(Segment(text.center(side), Style(dim=True)))
            else:
                segments += _draw_line(image, 2 * line)
        segments.append(Segment.line())
    return Segments(segments)


def draw_light_curve(packet: Mapping[str, Any], *, width: int = 80, height: int = 12) -> Text:
    """Draw difference flux against time: filled circles are detections, open ones forced measurements.

    Parameters
    ----------
    packet
        A decoded alert.
    width, height
        Of the whole drawing, in characters.
    """
    points = [point for point in list_points(packet) if point.flux is not None]
    if not points:
        return Text("no fluxes")
    low = min(0.0, *(point.flux - point.error for point in points))
    high = max(0.0, *(point.flux + point.error for point in points))
    if high <= low:
        high = low + 1.0
    first, last = min(point.mjd_tai for point in points), max(point.mjd_tai for point in points)
    span = (last - first) or 1.0
    labels = [_number(high - (high - low) * row / (height - 2)) for row in range(height - 1)]
    margin = max(map(len, labels)) + 2
    n_columns, n_rows = max(8, width - margin), height - 1
    cells: list[list[tuple[str, str]]] = [[(" ", "")] * n_columns for _ in range(n_rows)]

    def row_of(flux: float) -> int:
        return round((high - flux) / (high - low) * (n_rows - 1))

    zero = row_of(0.0)
    cells[zero] = [("┈", "bright_black")] * n_columns
    for point in points:
        column = round((point.mjd_tai - first) / span * (n_columns - 1)) if last > first else n_columns // 2
        color = band_color(point.band)
        for row in range(row_of(point.flux + point.error), row_of(point.flux - point.error) + 1):
            if cells[row][column][0] not in (_DETECTED, _FORCED):
                cells[row][column] = (_BAR, color)
        cells[row_of(point.flux)][column] = (_DETECTED if point.detected else _FORCED, color)
    text = Text(no_wrap=True)
    shown = {0, n_rows - 1, zero}
    for row, line in enumerate(cells):
        label = "0" if row == zero else labels[row]
        is_shown = row in shown and (row == zero or abs(row - zero) > 0)
        text.append((label if is_shown else "").rjust(margin - 2), "dim")
        text.append(" ┤" if is_shown else " │", "dim")
        for character, color in line:
            text.append(character, color)
        text.append("\n")
    text.append(" " * (margin - 1))
    text.append_text(_make_time_axis(first, last, n_columns + 1, [point.band for point in points]))
    return text


def _draw_line(image: FloatArray, row: int) -> list[Segment]:
    upper = image[row] if row < len(image) else np.full(image.shape[1], np.nan)
    lower = image[row + 1] if row + 1 < len(image) else None
    segments = []
    for column, level in enumerate(upper):
        below = None if lower is None else _color(lower[column])
        segments.append(Segment(_HALF_BLOCK, Style(color=_color(level), bgcolor=below)))
    return segments


def _color(level: float) -> str:
    if math.isnan(level):
        return NO_DATA_COLOR
    grey = round(255 * level)
    return f"#{grey:02x}{grey:02x}{grey:02x}"


def _shrink(image: FloatArray, most: int) -> FloatArray:
    """Return the image with at most so many pixels a side: the means of what falls into each."""
    n = image.shape[0]
    if n <= most:
        return image
    edges = np.linspace(0, n, most + 1)
    starts, ends = np.floor(edges[:-1]).astype(int), np.ceil(edges[1:]).astype(int)
    shrunk = np.full((most, most), np.nan)
    for j in range(most):
        for i in range(most):
            block = image[starts[j] : ends[j], starts[i] : ends[i]]
            finite = block[np.isfinite(block)]
            if finite.size:
                shrunk[j, i] = finite.mean()
    return shrunk


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.3g}"


def _make_time_axis(first: float, last: float, width: int, bands: Sequence[str]) -> Text:
    """Return the line below the points: the times of the ends, and between them what the symbols mean."""
    key = Text("nJy in ", "dim")
    for band in dict.fromkeys(bands):
        key.append(band or "?", band_color(band)).append(" ")
    key.append(f" {_DETECTED} detection  {_FORCED} forced", "dim")
    left, right = f"MJD {first:.3f}", f"{last:.3f}" if last > first else ""
    room = width - len(left) - len(right)
    if len(key) > room - 2:
        key = Text()
    before = (room - len(key)) // 2
    return Text.assemble((left, "dim"), " " * before, key, " " * (room - len(key) - before), (right, "dim"))
