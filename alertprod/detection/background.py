"""The smooth background of an image: clipped medians in bins, joined by cubic splines."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import distance_transform_edt

from alertprod._bands import map_bands
from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.detection import _loops

_CLIP_SIGMA = 3.0
_CLIP_ITERATIONS = 5
_MAX_PIXELS_PER_BIN = 1024
"""Pixels looked at in a bin of any size, at least: the median is then good to 4 % of the noise."""

_MEDIAN_ERROR = 1.2533
"""Standard error of a median of normal deviates, in units of a mean's: the root of pi/2."""

_LEAST_SHARE = 1e-12
"""A bin with less weight than this in a pixel's spline is left out: float32 has 6e-8."""

_MIN_FRACTION = 0.1
"""Bins with less usable area than this borrow the level of the nearest better one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """Levels and noise in bins, and how to draw them on the pixels.

    Parameters
    ----------
    level, sigma
        Clipped median and robust standard deviation of each bin, shape ``(n_rows, n_columns)``, image units.
    row_centers, column_centers
        Bin centres in pixels.
    shape
        Rows and columns of the image.
    n_sampled
        Median number of pixels that were looked at in a bin.
    """

    level: FloatArray
    sigma: FloatArray
    row_centers: FloatArray
    column_centers: FloatArray
    shape: tuple[int, int]
    n_sampled: float

    def compute_image(self, *, linear: bool = False) -> FloatArray:
        """Return the background at each pixel: float32, shape of the image.

        With `linear` bins are joined by straight lines: beside a cliff a cubic spline rings, a line does not.

        Notes
        -----
        Beyond the outer bins' centres the slope goes on, for the half bin that is left: the smaller of the slopes of the
        outer two pairs of bins, none where their signs differ. What one bin alone has is not led on.
        """
        image = np.zeros(self.shape, dtype=np.float32)
        _Surface.through(self.level, self, linear=linear).add_to(image)
        return image

    def subtract_from(self, image: FloatArray) -> None:
        """Take the background off an image of its shape, in place, as ``image -= background.compute_image()`` does."""
        _Surface.through(self.level, self).add_to(image, sign=-1.0)

    def measure_variation(self) -> float:
        """Return the robust standard deviation of the levels over the image, the noise of the sky in bins taken out.

        Notes
        -----
        The noise is that of a median, ``1.2533 sigma / sqrt(n)``, of the pixels that were looked at in a bin. Robust,
        so that it is the sky's: a few bins full of a galaxy do not count.
        """
        scatter = 1.4826 * float(np.median(np.abs(self.level - np.median(self.level))))
        expected = _MEDIAN_ERROR * float(np.median(self.sigma)) / np.sqrt(self.n_sampled)
        return float(np.sqrt(max(0.0, scatter**2 - expected**2)))

    def compute_at(self, *, x: IntArray, y: IntArray) -> FloatArray:
        """Return the background at some whole pixels, without drawing the rest: float64, shape of `x`."""
        rows = _interpolation_matrix(tuple(self.row_centers), self.shape[0], linear=False)[y]
        columns = _interpolation_matrix(tuple(self.column_centers), self.shape[1], linear=False)[x]
        return np.einsum("ij,ij->i", rows @ _with_outer_slopes(self.level), columns)

    def compute_sigma_image(self) -> FloatArray:
        """Return the pixels' noise as seen around each pixel: float32, shape of the image."""
        image = np.zeros(self.shape, dtype=np.float32)
        _Surface.through(self.sigma, self, slopes=False).add_to(image)
        return np.maximum(image, np.float32(self.sigma.min()), out=image)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Surface:
    """What `_loops.draw_rows` makes a spline, or straight lines, through the values of bins from."""

    knots: FloatArray
    piece: IntArray
    weights: FloatArray

    @classmethod
    def through(cls, values: FloatArray, bins: Background, *, linear: bool = False, slopes: bool = True) -> "_Surface":
        """Return the surface through values of the bins, shape ``(n_rows, n_columns)``, that goes on beyond them or not."""
        padded = _with_outer_slopes(values) if slopes else np.pad(values, ((0, 2), (0, 2)))
        columns = _interpolation_matrix(tuple(bins.column_centers), bins.shape[1], linear=linear)
        levels = padded.astype(np.float32) @ columns.T
        centers, n = bins.row_centers, len(bins.row_centers)
        curvatures = np.zeros((n, n))
        if n > 2 and not linear:
            curvatures = CubicSpline(centers, np.eye(n), bc_type="natural")(centers, 2)
            curvatures[np.abs(curvatures) < _LEAST_SHARE * np.abs(curvatures).max()] = 0.0
        knots = np.concatenate([levels[:n], curvatures.astype(np.float32) @ levels[:n], levels[n:]])
        piece, weights = _piece_weights(centers, bins.shape[0])
        return cls(knots=knots, piece=piece, weights=weights)

    def add_to(self, image: FloatArray, *, sign: float = 1.0) -> None:
        """Add the surface, times `sign`, to an image."""
        shape = (len(self.piece), self.knots.shape[1])
        if image.shape != shape:
            msg = f"a surface of shape {shape} and an image of shape {image.shape}"
            raise ValueError(msg)

        def add(first: int, last: int) -> None:
            _loops.draw_rows(self.knots, self.piece, self.weights, first, last, sign, image)

        map_bands(add, shape[0])


def estimate_background(image: FloatArray, usable: BoolArray, *, bin_size: int) -> Background:
    """Estimate the background and its noise.

    Parameters
    ----------
    image
        Shape ``(ny, nx)``, any unit.
    usable
        False where a pixel says nothing of the background: masked, under a source. What is not finite never does.
    bin_size
        Side of a bin in pixels; bins are stretched so that a whole number of them fits.

    Raises
    ------
    ValueError
        Raised if no pixel is usable.

    Notes
    -----
    The clip is at three robust sigmas about the median until nothing changes, five times at most. In crowded
    fields the level includes the unresolved light, which is what a star's aperture sees as well.
    """
    if bin_size < 1:
        msg = f"bin_size is {bin_size}; at least one pixel is needed"
        raise ValueError(msg)
    row_edges, column_edges = _edges(image.shape[0], bin_size), _edges(image.shape[1], bin_size)
    # All pixels, where what is not usable is spread so evenly that a sample of them meets nothing else.
    for most in (_MAX_PIXELS_PER_BIN, image.size):
        level, sigma, number = _loops.clipped_medians(
            image, usable, row_edges, column_edges, _CLIP_SIGMA, _CLIP_ITERATIONS, most
        )
        known = number >= np.maximum(
            1.0, _MIN_FRACTION * _loops.count_sampled(row_edges, column_edges, _MAX_PIXELS_PER_BIN)
        )
        if not known.any():
            known = number > 0
        if known.any():
            break
    else:
        msg = "no usable pixel to estimate a background from"
        raise ValueError(msg)
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    rows, columns = nearest
    return Background(
        level=level[rows, columns],
        sigma=sigma[rows, columns],
        row_centers=0.5 * (row_edges[:-1] + row_edges[1:] - 1),
        column_centers=0.5 * (column_edges[:-1] + column_edges[1:] - 1),
        shape=(image.shape[0], image.shape[1]),
        n_sampled=float(np.median(number[known])),
    )


def _edges(length: int, bin_size: int) -> IntArray:
    n_bins = max(1, round(length / bin_size))
    return np.linspace(0, length, n_bins + 1).round().astype(np.int64)


@lru_cache(maxsize=16)
def _interpolation_matrix(places: tuple[float, ...], length: int, *, linear: bool) -> FloatArray:
    """Return the ``(length, n + 2)`` float32 matrix that takes bin values, and the two slopes beyond them, to pixels.

    Of bins that are centred at `places`; read-only, as others get the same.
    """
    centers, n, pixels = np.array(places), len(places), np.arange(length)
    positions = np.clip(pixels, centers[0], centers[-1])
    if n == 1:
        inner = np.ones((length, 1))
    elif linear or n == 2:
        inner = np.stack([np.interp(positions, centers, row) for row in np.eye(n)], axis=1)
    else:
        inner = CubicSpline(centers, np.eye(n), bc_type="natural")(positions)
    # In bins, which are all as wide as the first, to a pixel.
    width = centers[1] - centers[0] if n > 1 else 1.0
    beyond = np.stack([np.maximum(centers[0] - pixels, 0.0), np.maximum(pixels - centers[-1], 0.0)], axis=1) / width
    # A far bin's share falls off by a factor of four a bin, soon to numbers that a processor multiplies slowly.
    inner[np.abs(inner) < _LEAST_SHARE] = 0.0
    matrix = np.concatenate([inner, beyond], axis=1).astype(np.float32)
    matrix.flags.writeable = False
    return matrix


def _piece_weights(centers: FloatArray, length: int) -> tuple[IntArray, FloatArray]:
    """Return the bin before each pixel, and six float32 weights: of two levels, two curvatures, two slopes beyond.

    Notes
    -----
    With t the share of the way from one bin's centre to the next and h its length, a spline of second derivatives M is
    ``(1 - t) f + t g + h^2 / 6 ((1 - t)^3 - (1 - t)) M_f + h^2 / 6 (t^3 - t) M_g``.
    """
    n, pixels = len(centers), np.arange(length)
    positions = np.clip(pixels, centers[0], centers[-1])
    piece = np.clip(np.searchsorted(centers, positions, side="right") - 1, 0, max(n - 2, 0))
    step = np.diff(centers)[piece] if n > 1 else np.ones(length)
    t = (positions - centers[piece]) / step
    curved = [step**2 / 6.0 * (share**3 - share) for share in (1.0 - t, t)]
    width = centers[1] - centers[0] if n > 1 else 1.0
    beyond = [np.maximum(centers[0] - pixels, 0.0) / width, np.maximum(pixels - centers[-1], 0.0) / width]
    return piece, np.stack([1.0 - t, t, *curved, *beyond], axis=1).astype(np.float32)


def _with_outer_slopes(values: FloatArray) -> FloatArray:
    """Append to each axis of the bins' values what they change by, in a bin, before the first and after the last one."""
    for _ in range(2):
        ends = [_outer_slope(values[:3]), _outer_slope(values[::-1][:3])]
        values = np.concatenate([values, np.stack(ends)]).T
    return values


def _outer_slope(values: FloatArray) -> FloatArray:
    """Return what the values change by outwards, from the outer three rows, outermost first."""
    if len(values) == 1:
        return np.zeros_like(values[0])
    outer = values[0] - values[1]
    inner = values[1] - values[2] if len(values) == 3 else outer
    return np.where(outer * inner > 0, np.copysign(np.minimum(np.abs(outer), np.abs(inner)), outer), 0.0)
