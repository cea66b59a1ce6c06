"""The compiled fit of centroids: Gauss-Newton in flux and position. Stamps as in `_loops`."""

import numpy as np
from numba import njit

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.measurement._fit_loops import differentiate, shift_image

CONVERGED, OUT_OF_ITERATIONS, NO_CURVATURE, WRONG_SIGN, RAN_AWAY = range(5)
"""How the fit of a centroid ends."""


@njit(cache=True, nogil=True)
def newton_step(
    values: FloatArray, variances: FloatArray, usable: BoolArray, psf: FloatArray, d_dx: FloatArray, d_dy: FloatArray
) -> tuple[bool, float, float, float, float, float, float]:
    """One weighted Gauss-Newton step for flux and position of a star drawn as `psf`.

    Returns ok, flux, step in x, step in y, and the covariance (xx, yy, xy) of the position. Weights are inverse
    variances.
    """
    a00 = a01 = a02 = a11 = a12 = a22 = b0 = b1 = b2 = 0.0
    rows, columns = values.shape
    for j in range(rows):
        for k in range(columns):
            if usable[j, k]:
                w = 1.0 / variances[j, k]
                p, gx, gy, d = psf[j, k], -d_dx[j, k], -d_dy[j, k], values[j, k]
                a00 += w * p * p
                a01 += w * p * gx
                a02 += w * p * gy
                a11 += w * gx * gx
                a12 += w * gx * gy
                a22 += w * gy * gy
                b0 += w * p * d
                b1 += w * gx * d
                b2 += w * gy * d
    # Linear in (f, f dx, f dy): the three-by-three system by cofactors.
    c00 = a11 * a22 - a12 * a12
    c01 = a02 * a12 - a01 * a22
    c02 = a01 * a12 - a02 * a11
    c11 = a00 * a22 - a02 * a02
    c12 = a01 * a02 - a00 * a12
    c22 = a00 * a11 - a01 * a01
    determinant = a00 * c00 + a01 * c01 + a02 * c02
    if not determinant > 1e-10 * a00 * a11 * a22:
        return False, 0.0, 0.0, 0.0, np.nan, np.nan, np.nan
    f = (c00 * b0 + c01 * b1 + c02 * b2) / determinant
    fx = (c01 * b0 + c11 * b1 + c12 * b2) / determinant
    fy = (c02 * b0 + c12 * b1 + c22 * b2) / determinant
    if f == 0.0:
        return False, 0.0, 0.0, 0.0, np.nan, np.nan, np.nan
    f2 = determinant * f * f
    return True, f, fx / f, fy / f, c11 / f2, c22 / f2, c12 / f2


@njit(cache=True, nogil=True)
def fit_centroids(
    values: FloatArray,
    variances: FloatArray,
    usable: BoolArray,
    kernels: FloatArray,
    dx: FloatArray,
    dy: FloatArray,
    sign: FloatArray,
    radius: float,
    max_iterations: int,
    tolerance: float,
    status: IntArray,
) -> None:
    """Newton steps from (dx, dy), in place, with `kernels` (centred PSF images) moved by interpolation.

    Only pixels within `radius` of the start count: a neighbour's wings would pull. `sign` is the flux's, `status`
    one of `CONVERGED`, `OUT_OF_ITERATIONS`, `NO_CURVATURE` and `WRONG_SIGN`.
    """
    n, size, _ = values.shape
    half = size // 2
    psf = np.empty((size, size))
    scratch = np.empty((size, size))
    d_dx = np.empty((size, size))
    d_dy = np.empty((size, size))
    near = np.empty((size, size), dtype=np.bool_)
    for i in range(n):
        status[i] = OUT_OF_ITERATIONS
        x0, y0 = dx[i], dy[i]
        for j in range(size):
            for k in range(size):
                r2 = (k - half - x0) ** 2 + (j - half - y0) ** 2
                near[j, k] = usable[i, j, k] and r2 <= radius * radius
        for _ in range(max_iterations):
            shift_image(kernels[i], dx[i], dy[i], psf, scratch)
            differentiate(psf, d_dx, d_dy)
            ok, f, sx, sy, _, _, _ = newton_step(values[i], variances[i], near, psf, d_dx, d_dy)
            if not ok:
                status[i] = NO_CURVATURE
                break
            if f * sign[i] <= 0.0:
                status[i] = WRONG_SIGN
                break
            # A step beyond the core leaves the region where the linearisation holds.
            length = np.sqrt(sx * sx + sy * sy)
            if length > 0.5:
                sx, sy = 0.5 * sx / length, 0.5 * sy / length
            dx[i] += sx
            dy[i] += sy
            if length < tolerance:
                status[i] = CONVERGED
                break


@njit(cache=True, nogil=True)
def polish_centroids(
    values: FloatArray,
    variances: FloatArray,
    usable: BoolArray,
    psf: FloatArray,
    psf_dx: FloatArray,
    psf_dy: FloatArray,
    radius: float,
    sign: FloatArray,
    step: FloatArray,
    covariance: FloatArray,
    status: IntArray,
) -> None:
    """Make one Newton step with PSF images drawn at (psf_dx, psf_dy): `step` (n, 2), `covariance` (n, 3), `status`."""
    n, size, _ = values.shape
    half = size // 2
    d_dx = np.empty((size, size))
    d_dy = np.empty((size, size))
    near = np.empty((size, size), dtype=np.bool_)
    for i in range(n):
        for j in range(size):
            for k in range(size):
                r2 = (k - half - psf_dx[i]) ** 2 + (j - half - psf_dy[i]) ** 2
                near[j, k] = usable[i, j, k] and r2 <= radius * radius
        differentiate(psf[i], d_dx, d_dy)
        good, f, step[i, 0], step[i, 1], covariance[i, 0], covariance[i, 1], covariance[i, 2] = newton_step(
            values[i], variances[i], near, psf[i], d_dx, d_dy
        )
        if not good:
            status[i] = NO_CURVATURE
        elif f * sign[i] <= 0.0:
            status[i] = WRONG_SIGN
        else:
            status[i] = CONVERGED if step[i, 0] ** 2 + step[i, 1] ** 2 < 1.0 else RAN_AWAY
