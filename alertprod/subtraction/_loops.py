"""Compiled loops over bad pixels: fill them, spread their mask bits."""

import numpy as np
from numba import njit

from alertprod._typing import BoolArray, FloatArray, IntArray


@njit(cache=True, nogil=True)
def fill_bad(image: FloatArray, bad: BoolArray, radius: int, fallback: float) -> FloatArray:
    """Replace bad pixels by their neighbours' mean weighted with 1/distance²; `fallback` where none is good."""
    ny, nx = image.shape
    filled = image.copy()
    for y in range(ny):
        for x in range(nx):
            if not bad[y, x]:
                continue
            total = 0.0
            weight_sum = 0.0
            for j in range(max(0, y - radius), min(ny, y + radius + 1)):
                for i in range(max(0, x - radius), min(nx, x + radius + 1)):
                    if not bad[j, i]:
                        weight = 1.0 / ((j - y) * (j - y) + (i - x) * (i - x))
                        total += weight * image[j, i]
                        weight_sum += weight
            filled[y, x] = total / weight_sum if weight_sum > 0.0 else fallback
    return filled


@njit(cache=True, nogil=True)
def spread_mask(mask: IntArray, offsets_y: IntArray, offsets_x: IntArray) -> IntArray:
    """OR each pixel's bits onto the pixels at the offsets; inside areas of equal bits there is nothing to do."""
    ny, nx = mask.shape
    spread = mask.copy()
    for y in range(ny):
        for x in range(nx):
            bits = mask[y, x]
            if bits == 0:
                continue
            if (
                (y == 0 or (mask[y - 1, x] & bits) == bits)
                and (y == ny - 1 or (mask[y + 1, x] & bits) == bits)
                and (x == 0 or (mask[y, x - 1] & bits) == bits)
                and (x == nx - 1 or (mask[y, x + 1] & bits) == bits)
            ):
                continue
            for k in range(len(offsets_y)):
                j = y + offsets_y[k]
                i = x + offsets_x[k]
                if 0 <= j < ny and 0 <= i < nx:
                    spread[j, i] |= bits
    return spread


def disc_offsets(radius: float) -> tuple[IntArray, IntArray]:
    """Return the (y, x) offsets of the pixels within `radius`."""
    half = int(np.floor(radius))
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    inside = u * u + v * v <= radius * radius + 1e-9
    return v[inside].astype(np.int64), u[inside].astype(np.int64)
