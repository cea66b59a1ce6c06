"""Pixels in units of their noise, and how wide their distribution is."""

from collections.abc import Sequence

import numpy as np

from alertprod._bands import map_bands
from alertprod._typing import BoolArray, FloatArray
from alertprod.images import _loops

_IQR_TO_SIGMA = 0.741301109252801
"""Interquartile range of a normal distribution to its standard deviation."""

_N_SAMPLE = 1 << 20
"""Values that a quantile is first looked for among: it is then known to one in two thousand of all."""

_SAMPLE_ERRORS = 6.0
"""Standard errors of that, on either side, within which it is then found; where it is not, all values are sorted."""

_AT_ONCE = 1 << 18
"""Values that a thread takes at once: they stay in its processor's cache."""


def compute_pulls(image: FloatArray, variance: FloatArray, usable: BoolArray) -> FloatArray:
    """Return ``image / sqrt(variance)``: float32, NaN where not `usable`, where the variance must be positive."""
    pulls = np.empty(image.shape, dtype=np.float32)

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
    return [_find_quantile(flat, sample, fraction) for fraction in fractions]


def _find_quantile(flat: FloatArray, sample: FloatArray, fraction: float) -> float:
    place = fraction * (len(sample) - 1)
    margin = _SAMPLE_ERRORS * np.sqrt(fraction * (1.0 - fraction) * len(sample)) + 2.0
    first, last = int(np.floor(place - margin)), int(np.ceil(place + margin))
    low = sample[first] if first >= 0 else flat.dtype.type(-np.inf)
    high = sample[last] if last < len(sample) else flat.dtype.type(np.inf)

    def look(first: int, last: int) -> tuple[int, int, FloatArray]:
        inside = np.empty(last - first, dtype=flat.dtype)
        n_finite, n_below, n_inside = _loops.select_between(flat[first:last], low, high, inside)
        return n_finite, n_below, inside[:n_inside].copy()

    numbers_finite, numbers_below, parts = zip(*map_bands(look, flat.size, height=_AT_ONCE), strict=True)
    n, n_below, inside = sum(numbers_finite), sum(numbers_below), np.concatenate(parts)
    if n == 0:
        return float("nan")
    place = fraction * (n - 1)
    rank, next_rank = int(place), min(int(place) + 1, n - 1)
    if rank < n_below or next_rank >= n_below + len(inside):
        n_below, inside = 0, flat[np.isfinite(flat)]
    inside.sort()
    below, above = float(inside[rank - n_below]), float(inside[next_rank - n_below])
    return below + (above - below) * (place - rank)
