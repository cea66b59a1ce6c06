"""Compiled loops over the planes of an image."""

import numpy as np
from numba import njit

from alertprod._typing import BoolArray, FloatArray, IntArray


@njit(cache=True, nogil=True)
def find_usable(image: FloatArray, mask: IntArray, variance: FloatArray, bad_bits: int, usable: BoolArray) -> None:
    """Say where a pixel is finite, has a positive finite variance and none of the bits."""
    ny, nx = image.shape
    for y in range(ny):
        for x in range(nx):
            value, noise = image[y, x], variance[y, x]
            # A finite number less itself is zero; nothing else is.
            usable[y, x] = ((mask[y, x] & bad_bits) == 0) & (value - value == 0) & (noise > 0) & (noise < np.inf)


@njit(cache=True, nogil=True)
def compute_pulls(image: FloatArray, variance: FloatArray, usable: BoolArray, pulls: FloatArray) -> None:
    """Write ``image / sqrt(variance)`` where a pixel is usable, NaN elsewhere."""
    ny, nx = image.shape
    for y in range(ny):
        for x in range(nx):
            pulls[y, x] = image[y, x] / np.sqrt(variance[y, x]) if usable[y, x] else np.float32(np.nan)


@njit(cache=True, nogil=True)
def count_values(values: FloatArray, low: float, per_unit: float, counts: IntArray) -> None:
    """Count finite values in the steps of a histogram; what lies beyond its ends is counted in the outer steps."""
    last = counts.size - 1
    for value in values:
        if value - value == 0:
            place = (value - low) * per_unit
            counts[int(min(max(place, 0.0), last))] += 1


@njit(cache=True, nogil=True)
def collect_values(values: FloatArray, low: float, per_unit: float, wanted: BoolArray, collected: FloatArray) -> None:
    """Copy the finite values of the wanted steps of `count_values`, in their order."""
    last = wanted.size - 1
    n = 0
    for value in values:
        if value - value == 0:
            place = (value - low) * per_unit
            if wanted[int(min(max(place, 0.0), last))]:
                collected[n] = value
                n += 1
