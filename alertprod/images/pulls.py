"""Pixels in units of their noise, and how wide their distribution is."""

from collections.abc import Sequence

import numpy as np

from alertprod._bands import map_bands
from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.images import _loops

_IQR_TO_SIGMA = 0.741301109252801
"""Interquartile range of a normal distribution to its standard deviation."""

_N_SAMPLE = 1 << 18
"""Values that a quantile is first looked for among: it is then known to one in a thousand of all."""

_SAMPLE_ERRORS = 6.0
"""Standard errors of that, on either side, within which it is then found; where it is not, all values are sorted."""

_AT_ONCE = 1 << 18
"""Values that a thread takes at once: they stay in its processor's cache."""


def compute_pulls(
    image: FloatArray, variance: FloatArray, usable: BoolArray, *, out: FloatArray | None = None
) -> FloatArray:
    """Return ``image / sqrt(variance)``: float32, NaN where not `usable`, where the variance must be positive.

    Written to `out`, which may be the image, where it is given.
    """
    pulls = np.empty(image.shape, dtype=np.float32) if out is None else out

    def fill(first: int, last: int) -> None:
        rows = slice(first, last)
        _loops.compute_pulls(image[rows], variance[rows], usable[rows], pulls[rows])

    map_bands(fill, image.shape[0])
    return pulls


def compute_width(pulls: FloatArray) -> float:
    """Return the standard deviation that the interquartile range of the finite pulls stands for; NaN where there is none."""
    low, high = compute_quantiles(pulls, (0.25, 0.75))
    return float(_IQR_TO_SIGMA * (high - low))


def compute_quantiles(values: FloatArray, fractions: Sequence[float]) -> list[float]:
    """Return quantiles of the finite values, as `numpy.percentile` interpolates them; NaN where there is none.

    Parameters
    ----------
    values
        Any shape, contiguous.
    fractions
        From 0 to 1.

    Notes
    -----
    Exact: a sample says between which values a quantile is, and those are sorted; the others are only counted.
    """
    flat = values.reshape(-1)
    sample = flat[:: max(1, flat.size // _N_SAMPLE)]
    sample = np.sort(sample[np.isfinite(sample)])
    ranges = np.array([_find_range(sample, fraction) for fraction in fractions], dtype=flat.dtype)
    lows, highs = np.ascontiguousarray(ranges.T)

    def look(first: int, last: int) -> tuple[int, IntArray, list[FloatArray]]:
        inside = np.empty((len(ranges), last - first), dtype=flat.dtype)
        n_below, n_inside = np.empty((2, len(ranges)), dtype=np.int64)
        n_finite = _loops.select_between(flat[first:last], lows, highs, inside, n_below, n_inside)
        return n_finite, n_below, [row[:n].copy() for row, n in zip(inside, n_inside, strict=True)]

    numbers_finite, numbers_below, parts = zip(*map_bands(look, flat.size, height=_AT_ONCE), strict=True)
    n_finite, n_below = sum(numbers_finite), sum(numbers_below)
    return [
        _pick(flat, fraction, n_finite, int(n), np.concatenate(inside))
        for fraction, n, inside in zip(fractions, n_below, zip(*parts, strict=True), strict=True)
    ]


def _find_range(sample: FloatArray, fraction: float) -> tuple[float, float]:
    """Return between which values a quantile is, as far as a sorted sample can tell."""
    place = fraction * (len(sample) - 1)
    margin = _SAMPLE_ERRORS * np.sqrt(fraction * (1.0 - fraction) * len(sample)) + 2.0
    first, last = int(np.floor(place - margin)), int(np.ceil(place + margin))
    low = sample[first] if first >= 0 else -np.inf
    high = sample[last] if last < len(sample) else np.inf
    return low, high


def _pick(flat: FloatArray, fraction: float, n: int, n_below: int, inside: FloatArray) -> float:
    """Return a quantile of `n` finite values, of which `n_below` lie below those of its range."""
    if n == 0:
        return float("nan")
    place = fraction * (n - 1)
    rank, next_rank = int(place), min(int(place) + 1, n - 1)
    if rank < n_below or next_rank >= n_below + len(inside):
        n_below, inside = 0, flat[np.isfinite(flat)]
    inside.sort()
    below, above = float(inside[rank - n_below]), float(inside[next_rank - n_below])
    return below + (above - below) * (place - rank)
