"""The compiled loops of shapes: adaptive moments, and the flux of the Gaussian they describe. Stamps as in `_loops`."""

import numpy as np
from numba import njit

from alertprod._typing import BoolArray, FloatArray

_REACH2 = 32.0
"""Squared radius in sigmas beyond which a Gaussian weight of e^-16 is none."""


@njit(cache=True, nogil=True)
def adaptive_moments(
    values: FloatArray,
    usable: BoolArray,
    dx: FloatArray,
    dy: FloatArray,
    start_sigma2: FloatArray,
    max_iterations: int,
    tolerance: float,
    moments: FloatArray,
    center: FloatArray,
    ok: BoolArray,
) -> None:
    """Moments of the elliptical Gaussian that fits each stamp best, in place: (xx, yy, xy) and centre (x, y).

    The fixed point of Gaussian-weighted moments; unusable pixels count as the current Gaussian, which makes it the
    fixed point of the fit to the usable ones.
    """
    n, size, _ = values.shape
    half = size // 2
    for i in range(n):
        xx = yy = start_sigma2[i]
        xy = 0.0
        cx, cy = dx[i], dy[i]
        amplitude = 0.0
        ok[i] = False
        for _ in range(max_iterations):
            determinant = xx * yy - xy * xy
            if not (determinant > 0.01 and xx > 0.1 and yy > 0.1 and xx + yy < 0.5 * size * size):
                break
            if not (abs(cx) < half and abs(cy) < half):
                break
            s0 = sx = sy = sxx = syy = sxy = gg = 0.0
            for j in range(size):
                v = j - half - cy
                for k in range(size):
                    u = k - half - cx
                    r2 = (yy * u * u - 2.0 * xy * u * v + xx * v * v) / determinant
                    if r2 > _REACH2:
                        continue
                    g = np.exp(-0.5 * r2)
                    d = values[i, j, k] if usable[i, j, k] else amplitude * g
                    gd = g * d
                    gg += g * g
                    s0 += gd
                    sx += gd * u
                    sy += gd * v
                    sxx += gd * u * u
                    syy += gd * v * v
                    sxy += gd * u * v
            if not s0 > 0.0:
                break
            amplitude = s0 / gg
            mx, my = sx / s0, sy / s0
            new_xx = 2.0 * (sxx / s0 - mx * mx)
            new_yy = 2.0 * (syy / s0 - my * my)
            new_xy = 2.0 * (sxy / s0 - mx * my)
            change = abs(new_xx - xx) + abs(new_yy - yy) + abs(new_xy - xy) + abs(mx) + abs(my)
            xx, yy, xy = new_xx, new_yy, new_xy
            cx += 2.0 * mx
            cy += 2.0 * my
            if change < tolerance * (xx + yy):
                ok[i] = xx * yy - xy * xy > 0.0
                break
        moments[i, 0], moments[i, 1], moments[i, 2] = xx, yy, xy
        center[i, 0], center[i, 1] = cx, cy


@njit(cache=True, nogil=True)
def fit_gaussian_fluxes(
    values: FloatArray,
    variances: FloatArray,
    usable: BoolArray,
    center: FloatArray,
    moments: FloatArray,
    flux: FloatArray,
    flux_err: FloatArray,
) -> None:
    """Fluxes ``sum(G d) / sum(G^2)`` of Gaussians of given centre (x, y) and moments (xx, yy, xy); NaN where those are.

    `center` is an offset from the stamp's middle.
    """
    n, size, _ = values.shape
    half = size // 2
    for i in range(n):
        flux[i] = flux_err[i] = np.nan
        xx, yy, xy = moments[i, 0], moments[i, 1], moments[i, 2]
        determinant = xx * yy - xy * xy
        if not determinant > 0.0:
            continue
        scale = 1.0 / (2.0 * np.pi * np.sqrt(determinant))
        gd = gg = ggv = 0.0
        for j in range(size):
            v = j - half - center[i, 1]
            for k in range(size):
                u = k - half - center[i, 0]
                r2 = (yy * u * u - 2.0 * xy * u * v + xx * v * v) / determinant
                if r2 <= _REACH2 and usable[i, j, k]:
                    g = scale * np.exp(-0.5 * r2)
                    gd += g * values[i, j, k]
                    gg += g * g
                    ggv += g * g * variances[i, j, k]
        if gg > 0.0:
            flux[i] = gd / gg
            flux_err[i] = np.sqrt(ggv) / gg
