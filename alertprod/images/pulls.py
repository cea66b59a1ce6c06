"""Pixels in units of their noise, and how wide their distribution is."""

from collections.abc import Sequence

import numpy as np

from alertprod._typing import BoolArray, FloatArray
from alertprod.images import _loops

_IQR_TO_SIGMA = 0.741301109252801
"""Interquartile range of a normal distribution to its standard deviation."""

_LOW, _PER_UNIT, _N_STEPS = -8.0, 256.0, 4096
"""Of a histogram of what is N(0, 1), more or less: a quartile's step then holds a few thousand of 4096 x 4096 pixels.
Another distribution costs time, not precision."""


def compute_pulls(image: FloatArray, variance: FloatArray, usable: BoolArray) -> FloatArray:
    """Return ``image / sqrt(variance)``: float32, NaN where not `usable`, where the variance must be positive."""
    pulls = np.empty(image.shape, dtype=np.float32)
    _loops.compute_pulls(image, variance, usable, pulls)
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
    Exact, in two passes: one counts the values in the steps of a histogram, the other sorts those of the few steps that
    the quantiles are in. NumPy's selection moves all of them about.
    """
    flat = values.reshape(-1)
    counts = np.zeros(_N_STEPS, dtype=np.int64)
    _loops.count_values(flat, _LOW, _PER_UNIT, counts)
    n = int(counts.sum())
    if n == 0:
        return [float("nan")] * len(fractions)
    places = [fraction * (n - 1) for fraction in fractions]
    ranks = np.array([[int(place), min(int(place) + 1, n - 1)] for place in places])
    steps = np.searchsorted(np.cumsum(counts), ranks, side="right")
    wanted = np.zeros(_N_STEPS, dtype=np.bool_)
    wanted[steps] = True
    collected = np.empty(int(counts[wanted].sum()), dtype=values.dtype)
    _loops.collect_values(flat, _LOW, _PER_UNIT, wanted, collected)
    collected.sort()
    # How many values of steps that nobody wanted lie below each step.
    left_out = np.cumsum(np.where(wanted, 0, counts))
    below, above = collected[ranks - left_out[steps]].T.astype(float)
    weights = np.array(places) - ranks[:, 0]
    return [float(value) for value in below + (above - below) * weights]
