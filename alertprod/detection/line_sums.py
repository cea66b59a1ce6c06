"""Sums along all straight lines of an image, and the lines that stand out.

Lines live on the image given, whose first pixel's centre is (0, 0); its border is half a pixel further out.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alertprod._bands import map_threads
from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.detection import _streak_loops as _loops

_BLOCK = 8
"""Neighbouring lines, in angle and in place, of which only the strongest is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line from edge to edge of an image: where it begins, its unit vector, its length; pixels."""

    x0: float
    y0: float
    direction_x: float
    direction_y: float
    length: float

    @property
    def ends(self) -> tuple[float, float, float, float]:
        """Begin and end: x0, y0, x1, y1."""
        return (
            self.x0,
            self.y0,
            self.x0 + self.length * self.direction_x,
            self.y0 + self.length * self.direction_y,
        )

    def shift(self, at_begin: float, at_end: float, shape: tuple[int, int]) -> "Line | None":
        """Return the line moved across by this much at its begin and at its end, again from edge to edge."""
        x0, y0, x1, y1 = self.ends
        dx, dy = self.direction_x, self.direction_y
        moved = (x0 - at_begin * dy, y0 + at_begin * dx, x1 - at_end * dy, y1 + at_end * dx)
        return line_through(moved, shape)


def line_through(points: Sequence[float], shape: tuple[int, int]) -> Line | None:
    """Return the line through two points, x0, y0, x1, y1, from edge to edge of an image; None where it passes by."""
    xa, ya, xb, yb = points
    length = float(np.hypot(xb - xa, yb - ya))
    dx, dy = (xb - xa) / length, (yb - ya) / length
    first, last = -np.inf, np.inf
    for start, step, n in ((xa, dx, shape[1]), (ya, dy, shape[0])):
        if step == 0.0:
            if not -0.5 <= start <= n - 0.5:
                return None
            continue
        a, b = sorted(((-0.5 - start) / step, (n - 0.5 - start) / step))
        first, last = max(first, a), min(last, b)
    if not last > first:
        return None
    return Line(
        x0=float(xa + first * dx),
        y0=float(ya + first * dy),
        direction_x=float(dx),
        direction_y=float(dy),
        length=float(last - first),
    )


def compute_distances(ends: FloatArray, others: FloatArray) -> FloatArray:
    """Return how far the ends of other lines are from a line: the larger of two, shape ``(n,)``.

    Parameters
    ----------
    ends
        x0, y0, x1, y1 of the line.
    others
        Shape ``(n, 4)``, the same of the others.
    """
    x0, y0, x1, y1 = ends
    dx, dy = x1 - x0, y1 - y0
    length = np.hypot(dx, dy)
    first = np.abs((others[:, 1] - y0) * dx - (others[:, 0] - x0) * dy)
    last = np.abs((others[:, 3] - y0) * dx - (others[:, 2] - x0) * dy)
    return np.maximum(first, last) / length


@dataclass(frozen=True, slots=True, kw_only=True)
class LineCandidates:
    """Lines that stand out; each array has one entry a line.

    Parameters
    ----------
    ends
        Shape ``(n, 4)``: x0, y0, x1, y1, from edge to edge of the image.
    widths
        In pixels along a row or column, whichever the line crosses at the larger angle.
    significance
        Signed sum over the root of the number of pixels.
    noise
        The scatter of that quantity over all lines of the same width and nearly the same direction, at least 1.
    """

    ends: FloatArray
    widths: IntArray
    significance: FloatArray
    noise: FloatArray

    def __len__(self) -> int:
        return len(self.widths)

    def select(self, rows: BoolArray | IntArray) -> "LineCandidates":
        """Return the lines that a mask or indices pick."""
        return LineCandidates(
            ends=self.ends[rows],
            widths=self.widths[rows],
            significance=self.significance[rows],
            noise=self.noise[rows],
        )


def find_lines(
    sums: FloatArray, numbers: FloatArray, *, widths: tuple[int, ...], threshold: float, min_length: float
) -> LineCandidates:
    """Find the lines whose sum is beyond the noise.

    Parameters
    ----------
    sums, numbers
        Shape ``(ny, nx)``, float32: what is summed, of variance `numbers` a pixel.
    widths
        Numbers of neighbouring lines that are taken together.
    threshold
        In units of the scatter over all lines of one width and nearly one direction, where that is above 1.
    min_length
        Shortest line that counts, in pixels with all of their weight.

    Notes
    -----
    The fast Radon transform (Brady 1998) gives all lines of one octant in n log n additions a row; the image turned and
    mirrored gives the other three. Strips of the whole and of half the image's height are looked at: in the latter a
    trail that ends in the middle of the image stands out more.
    """
    ny, nx = sums.shape
    full = float(numbers.max(initial=0.0))

    def find_in_half(transposed: bool) -> list[LineCandidates]:  # noqa: FBT001 -- called by map
        planes = [plane.T if transposed else plane for plane in (sums, numbers)]
        n_rows, n_columns = planes[0].shape
        height = 1 << max(1, int(np.ceil(np.log2(n_rows))))
        # Used for both octants: fresh memory costs as much as what is done in it.
        transformed = np.zeros((2, 2, height, height + n_columns), dtype=np.float32)
        scratch = np.empty((2, height, height + n_columns), dtype=np.float32)
        found = []
        for mirrored in (False, True):
            for plane, out in zip(planes, transformed, strict=True):
                _transform(plane[:, ::-1] if mirrored else plane, scratch, out)
            for level, strip_height in enumerate((height // 2, height)):
                for width in widths:
                    lines = _loops.find_strong_lines(
                        transformed[0, level], transformed[1, level], n_rows, strip_height, width,
                        min_length * width * full, threshold, _BLOCK,
                    )  # fmt: skip
                    strip, t, x, value, scatter = lines.T
                    x = x - height + 0.5 * (width - 1)
                    y = strip * strip_height
                    ends = np.stack([x, y, x + t, y + strip_height - 1], axis=1)
                    if mirrored:
                        ends[:, [0, 2]] = n_columns - 1 - ends[:, [0, 2]]
                    if transposed:
                        ends = ends[:, [1, 0, 3, 2]]
                    line_widths = np.full(len(ends), width)
                    found.append(LineCandidates(ends=ends, widths=line_widths, significance=value, noise=scatter))
        return found

    parts = list(itertools.chain.from_iterable(map_threads(find_in_half, (False, True))))
    points = np.concatenate([part.ends for part in parts])
    lines_found = [line_through(row, (ny, nx)) for row in points.tolist()]
    inside = np.array([line is not None for line in lines_found], dtype=bool)
    return LineCandidates(
        ends=np.array([line.ends for line in lines_found if line is not None]).reshape(-1, 4),
        widths=np.concatenate([part.widths for part in parts])[inside],
        significance=np.concatenate([part.significance for part in parts])[inside],
        noise=np.concatenate([part.noise for part in parts])[inside],
    )


def _transform(plane: FloatArray, scratch: FloatArray, out: FloatArray) -> None:
    """Write the sums along the lines of one octant in strips of half and of the whole of the height of `out`.

    `out` is zero, or holds the sums of another plane of this shape; `scratch` has its shape.
    """
    n_rows, (height, _) = len(plane), scratch.shape[1:]
    scratch[...] = 0.0
    scratch[0, :n_rows, height:] = plane
    _loops.sum_lines(scratch[0], scratch[1], n_rows, height, height // 2, out)
