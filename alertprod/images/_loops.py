"""Compiled loops over the planes of an image."""

import numpy as np
from numba import njit

from alertprod._typing import BoolArray, FloatArray, IntArray

_BLOCK = 4096
"""Values that are looked at together: they and what is found of them stay in the processor's nearest cache."""


@njit(cache=True, nogil=True)
def find_usable(image: FloatArray, mask: IntArray, variance: FloatArray, bad_bits: int, usable: BoolArray) -> None:
    """Say where a pixel is finite, has a positive finite variance and none of the bits."""
    ny, nx = image.shape
    for y in range(ny):
        for x in range(nx):
            value, noise = image[y, x], variance[y, x]
            # A finite number less itself is zero; nothing else is.
            usable[y, x] = ((mask[y, x] & bad_bits) == 0) & (value - value == 0) & (noise > 0) & (noise < np.inf)


@njit(cache=True, nogil=True, error_model="numpy")
def compute_pulls(image: FloatArray, variance: FloatArray, usable: BoolArray, pulls: FloatArray) -> None:
    """Write ``image / sqrt(variance)`` where a pixel is usable, NaN elsewhere."""
    ny, nx = image.shape
    for y in range(ny):
        for x in range(nx):
            pulls[y, x] = image[y, x] / np.sqrt(variance[y, x]) if usable[y, x] else np.float32(np.nan)


@njit(cache=True, nogil=True)
def select_between(
    values: FloatArray, lows: FloatArray, highs: FloatArray, inside: FloatArray, n_below: IntArray, n_inside: IntArray
) -> int:
    """Copy the finite values of each range to a row of `inside`; return how many values are finite.

    Parameters
    ----------
    values
        Contiguous.
    lows, highs
        The ranges, of the values' own type; their ends belong to them.
    inside
        One row for each range, as long as `values`.
    n_below, n_inside
        Set to how many values lie below each range, and how many were copied.
    """
    n_finite = 0
    one, zero = np.int32(1), np.int32(0)
    n_below[:], n_inside[:] = 0, 0
    within = np.zeros(_BLOCK, dtype=np.uint8)
    eights = within.view(np.uint64)
    for start in range(0, values.size, _BLOCK):
        part = values[start : start + _BLOCK]
        # Counted in numbers as short as the values, by the processor's vectors.
        finite = zero
        for i in range(part.size):
            # A finite number less itself is zero; nothing else is.
            finite += one if part[i] - part[i] == 0 else zero
        n_finite += int(finite)
        within[part.size :] = 0
        for k in range(lows.size):
            low, high = lows[k], highs[k]
            below = zero
            for i in range(part.size):
                value = part[i]
                is_finite = value - value == 0
                below += one if is_finite & (value < low) else zero
                within[i] = is_finite & (value >= low) & (value <= high)
            n_below[k] += int(below)
            n = n_inside[k]
            for eight in range(eights.size):
                # Of most there is none.
                if eights[eight] == 0:
                    continue
                for i in range(8 * eight, 8 * eight + 8):
                    if within[i]:
                        inside[k, n] = part[i]
                        n += 1
            n_inside[k] = n
    return n_finite


@njit(cache=True, nogil=True)
def count_flags(mask: IntArray, known: int, counts: IntArray) -> None:
    """Count the values of a mask, of which only the bits `known` are looked at; neighbours are mostly alike."""
    value, n = np.int64(0), 0
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            if mask[y, x] & known != value:
                counts[value] += n
                value, n = mask[y, x] & known, 0
            n += 1
    counts[value] += n
