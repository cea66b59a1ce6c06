"""Compiled loops that every fit of stars shares: a PSF image moved, its derivatives, a small linear system."""

import numpy as np
from numba import njit

from alertprod._typing import BoolArray, FloatArray

_N_SIDE = 5
"""Samples on each side that a shifted PSF is interpolated from: good to 2e-4 of the peak at 4.2 pixels FWHM."""

_DERIVATIVE = np.array([5 / 6, -5 / 21, 5 / 84, -5 / 504, 1 / 1260])
"""Central differences of tenth order: PSFs are barely sampled, lower orders would smooth their slopes."""


@njit(cache=True, nogil=True)
def _lagrange_weights(offset: float, weights: FloatArray) -> None:
    """Weights of the samples at 1 - m ... m for the value at `offset` in [0, 1): exact for polynomials."""
    m = _N_SIDE
    for k in range(2 * m):
        weight = 1.0
        for other in range(2 * m):
            if other != k:
                weight *= (offset - (other - m + 1)) / (k - other)
        weights[k] = weight


@njit(cache=True, nogil=True)
def shift_image(image: FloatArray, dx: float, dy: float, shifted: FloatArray, scratch: FloatArray) -> None:
    """Draw `image` moved by (dx, dy) on the pixels of `shifted`, middles aligned; zero outside `image`.

    Lagrange interpolation along each axis. `scratch` has shape (rows of image, columns of shifted).
    """
    m = _N_SIDE
    rows, columns = image.shape
    out_rows, out_columns = shifted.shape
    weights = np.empty(2 * m)
    base = np.floor(-dx)
    _lagrange_weights(-dx - base, weights)
    first = int(base) - m + 1 + columns // 2 - out_columns // 2
    for j in range(rows):
        for k in range(out_columns):
            total = 0.0
            for t in range(2 * m):
                source = k + first + t
                if 0 <= source < columns:
                    total += weights[t] * image[j, source]
            scratch[j, k] = total
    base = np.floor(-dy)
    _lagrange_weights(-dy - base, weights)
    first = int(base) - m + 1 + rows // 2 - out_rows // 2
    for j in range(out_rows):
        for k in range(out_columns):
            shifted[j, k] = 0.0
        for t in range(2 * m):
            source = j + first + t
            if 0 <= source < rows:
                w = weights[t]
                for k in range(out_columns):
                    shifted[j, k] += w * scratch[source, k]


@njit(cache=True, nogil=True)
def differentiate(image: FloatArray, d_dx: FloatArray, d_dy: FloatArray) -> None:
    """Differentiate along columns and rows by central differences; zero beyond the edges."""
    rows, columns = image.shape
    for j in range(rows):
        for k in range(columns):
            gx, gy = 0.0, 0.0
            for t in range(1, _DERIVATIVE.size + 1):
                c = _DERIVATIVE[t - 1]
                right = image[j, k + t] if k + t < columns else 0.0
                left = image[j, k - t] if k - t >= 0 else 0.0
                up = image[j + t, k] if j + t < rows else 0.0
                down = image[j - t, k] if j - t >= 0 else 0.0
                gx += c * (right - left)
                gy += c * (up - down)
            d_dx[j, k] = gx
            d_dy[j, k] = gy


@njit(cache=True, nogil=True)
def solve_damped(a: FloatArray, b: FloatArray, damping: float, free: BoolArray) -> tuple[bool, FloatArray]:
    """Solve the damped system for the free parameters; zeros for the rest and on a singular matrix."""
    n = a.shape[0]
    step = np.zeros(n)
    lower = np.zeros((n, n))
    for i in range(n):
        if not free[i]:
            lower[i, i] = 1.0
            continue
        for j in range(i + 1):
            total = a[i, j] if free[j] else 0.0
            if i == j:
                total *= 1.0 + damping
            for k in range(j):
                total -= lower[i, k] * lower[j, k]
            if i == j:
                if not total > 1e-12 * a[i, i]:
                    return False, step
                lower[i, i] = np.sqrt(total)
            elif free[j]:
                lower[i, j] = total / lower[j, j]
    for i in range(n):
        if free[i]:
            total = b[i]
            for k in range(i):
                total -= lower[i, k] * step[k]
            step[i] = total / lower[i, i]
    for i in range(n - 1, -1, -1):
        if free[i]:
            total = step[i]
            for k in range(i + 1, n):
                total -= lower[k, i] * step[k]
            step[i] = total / lower[i, i]
    return True, step
