"""The compiled loops of shapes: adaptive moments, and the flux of the Gaussian they describe. Stamps as in `_loops`."""

import numpy as np
from numba import njit

from alertprod._typing import BoolArray, FloatArray

_REACH2 = 32.0
"""Squared radius in sigmas beyond which a Gaussian weight of e^-16 is none."""

_QUICK_STEPS = 12
"""A star of signal-to-noise 15 takes four or five."""


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
    fixed point of the fit to the usable ones. Quick steps first; noise that they do not stand gets the slow ones.
    """
    for i in range(values.shape[0]):
        for j in range(2):
            moments[i, 0] = moments[i, 1] = start_sigma2[i]
            moments[i, 2] = 0.0
            center[i, 0], center[i, 1] = dx[i], dy[i]
            if j == 0:
                ok[i] = _iterate(values[i], usable[i], moments[i], center[i], _QUICK_STEPS, tolerance, 1.5)
            else:
                ok[i] = _iterate(values[i], usable[i], moments[i], center[i], max_iterations, tolerance, 0.0)
            if ok[i]:
                break


@njit(cache=True, nogil=True)
def _iterate(
    values: FloatArray,
    usable: BoolArray,
    moments: FloatArray,
    center: FloatArray,
    max_iterations: int,
    tolerance: float,
    quick_growth: float,
) -> bool:
    """Iterate the moments and centre of one stamp, in place; say whether they converged."""
    size = values.shape[0]
    half = size // 2
    xx, yy, xy = moments[0], moments[1], moments[2]
    cx, cy = center[0], center[1]
    amplitude = 0.0
    converged = False
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
                d = values[j, k] if usable[j, k] else amplitude * g
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
        wxx, wyy, wxy = sxx / s0 - mx * mx, syy / s0 - my * my, sxy / s0 - mx * my
        new_xx, new_yy, new_xy = 2.0 * wxx, 2.0 * wyy, 2.0 * wxy
        if quick_growth > 0.0:
            new_xx, new_yy, new_xy = _remove_weight(xx, yy, xy, wxx, wyy, wxy, quick_growth)
        change = abs(new_xx - xx) + abs(new_yy - yy) + abs(new_xy - xy) + abs(mx) + abs(my)
        xx, yy, xy = new_xx, new_yy, new_xy
        cx += 2.0 * mx
        cy += 2.0 * my
        if change < tolerance * (xx + yy):
            converged = xx * yy - xy * xy > 0.0
            break
    moments[0], moments[1], moments[2] = xx, yy, xy
    center[0], center[1] = cx, cy
    return converged


@njit(cache=True, nogil=True)
def _remove_weight(
    xx: float, yy: float, xy: float, wxx: float, wyy: float, wxy: float, growth: float
) -> tuple[float, float, float]:
    """Return the moments of the Gaussian that has moments `w` under the weight: exact in one step for a Gaussian.

    Where there is none, or one wider by more than `growth`, twice the weighted moments.
    """
    determinant, w_determinant = xx * yy - xy * xy, wxx * wyy - wxy * wxy
    if w_determinant > 0.0 and wxx > 0.0:
        ixx, iyy, ixy = (
            wyy / w_determinant - yy / determinant,
            wxx / w_determinant - xx / determinant,
            xy / determinant - wxy / w_determinant,
        )
        inverse = ixx * iyy - ixy * ixy
        if inverse > 0.0 and ixx > 0.0:
            new_xx, new_yy, new_xy = iyy / inverse, ixx / inverse, -ixy / inverse
            if new_xx + new_yy < growth * (xx + yy):
                return new_xx, new_yy, new_xy
    return 2.0 * wxx, 2.0 * wyy, 2.0 * wxy


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
