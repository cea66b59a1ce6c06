"""The compiled fit of a trail: a PSF drawn out along a line. One source at a time, on a box of pixels.

Parameters, in order: flux, x and y of the middle, and the vector (x, y) from the middle to an end. The image of unit
flux is the mean of PSFs at nodes ``middle + s * vector``, s from -1 to 1. Its derivatives by the middle are those of
this mean, those by the vector are those of the mean weighted with s: two images and their slopes are all it takes,
and nothing is singular but the vector of a point.
"""

import numpy as np
from numba import njit

from alertprod._typing import BoolArray, FloatArray
from alertprod.measurement._fit_loops import differentiate, shift_image, solve_damped

N_PARAMETERS = 5

_LONGEST_STEP = 4.0
"""Pixels; a PSF or two."""


@njit(cache=True, nogil=True)
def draw_trail(
    kernel: FloatArray,
    p: FloatArray,
    nodes: FloatArray,
    weights: FloatArray,
    images: FloatArray,
    star: FloatArray,
    scratch: FloatArray,
) -> None:
    """Draw the trail of unit flux and its derivatives by middle and vector: `images`, shape (5, rows, columns)."""
    rows, columns = images.shape[1:]
    images[0], images[3] = 0.0, 0.0
    for n in range(nodes.size):
        x, y = p[1] + nodes[n] * p[3], p[2] + nodes[n] * p[4]
        shift_image(kernel, x - columns // 2, y - rows // 2, star, scratch)
        for j in range(rows):
            for k in range(columns):
                part = weights[n] * star[j, k]
                images[0, j, k] += part
                images[3, j, k] += nodes[n] * part
    # The mean weighted with s stood where its derivative by x goes.
    star[:] = images[3]
    differentiate(images[0], images[1], images[2])
    differentiate(star, images[3], images[4])
    for m in range(1, N_PARAMETERS):
        for j in range(rows):
            for k in range(columns):
                images[m, j, k] = -images[m, j, k]


@njit(cache=True, nogil=True)
def _assemble(
    values: FloatArray, usable: BoolArray, images: FloatArray, flux: float, a: FloatArray, b: FloatArray
) -> float:
    """Fill the normal equations of the model drawn in `images`, return the sum of squared residuals."""
    rows, columns = values.shape
    gradient = np.empty(N_PARAMETERS)
    a[:] = 0.0
    b[:] = 0.0
    total = 0.0
    for j in range(rows):
        for k in range(columns):
            if not usable[j, k]:
                continue
            gradient[0] = images[0, j, k]
            for m in range(1, N_PARAMETERS):
                gradient[m] = flux * images[m, j, k]
            r = values[j, k] - flux * gradient[0]
            total += r * r
            for m in range(N_PARAMETERS):
                b[m] += gradient[m] * r
                for q in range(m + 1):
                    a[m, q] += gradient[m] * gradient[q]
    for m in range(N_PARAMETERS):
        for q in range(m):
            a[q, m] = a[m, q]
    return total


@njit(cache=True, nogil=True)
def _propagate(
    variances: FloatArray, usable: BoolArray, images: FloatArray, flux: float, a: FloatArray
) -> tuple[bool, FloatArray]:
    """Return the covariance of the parameters: the pixels' variances through the solution of the normal equations."""
    rows, columns = variances.shape
    gradient, noise = np.empty(N_PARAMETERS), np.zeros((N_PARAMETERS, N_PARAMETERS))
    for j in range(rows):
        for k in range(columns):
            if usable[j, k]:
                gradient[0] = images[0, j, k]
                for m in range(1, N_PARAMETERS):
                    gradient[m] = flux * images[m, j, k]
                for m in range(N_PARAMETERS):
                    for q in range(N_PARAMETERS):
                        noise[m, q] += variances[j, k] * gradient[m] * gradient[q]
    inverse, free = np.empty((N_PARAMETERS, N_PARAMETERS)), np.ones(N_PARAMETERS, dtype=np.bool_)
    for m in range(N_PARAMETERS):
        unit = np.zeros(N_PARAMETERS)
        unit[m] = 1.0
        solved, inverse[:, m] = solve_damped(a, unit, 0.0, free)
        if not solved:
            return False, noise
    return True, inverse @ noise @ inverse


@njit(cache=True, nogil=True)
def _fit_flux(values: FloatArray, usable: BoolArray, image: FloatArray) -> float:
    """Return the flux of a fixed image that fits best; NaN where no pixel tells."""
    pd = pp = 0.0
    rows, columns = values.shape
    for j in range(rows):
        for k in range(columns):
            if usable[j, k]:
                pd += image[j, k] * values[j, k]
                pp += image[j, k] * image[j, k]
    return pd / pp if pp > 0.0 else np.nan


@njit(cache=True, nogil=True)
def _chi2(values: FloatArray, variances: FloatArray, usable: BoolArray, image: FloatArray, flux: float) -> float:
    total = 0.0
    rows, columns = values.shape
    for j in range(rows):
        for k in range(columns):
            if usable[j, k]:
                total += (values[j, k] - flux * image[j, k]) ** 2 / variances[j, k]
    return total


@njit(cache=True, nogil=True)
def fit_trail(
    values: FloatArray,
    variances: FloatArray,
    usable: BoolArray,
    kernel: FloatArray,
    nodes: FloatArray,
    weights: FloatArray,
    start: FloatArray,
    max_iterations: int,
) -> tuple[bool, FloatArray, FloatArray, float, float]:
    """Fit one trail by least squares (Levenberg-Marquardt).

    `values`, `variances`, `usable`: (rows, columns); `kernel`: centred PSF image; `nodes`, `weights`: quadrature over
    (-1, 1), weights of sum 1; `start`: middle and vector in the box's pixels.

    Returns converged, the parameters, their covariance (NaN where there is none), chi squared of the trail and of a
    point source at its middle.
    """
    rows, columns = values.shape
    p, trial = np.zeros(N_PARAMETERS), np.zeros(N_PARAMETERS)
    p[1:] = start
    images, trial_images = np.zeros((N_PARAMETERS, rows, columns)), np.zeros((N_PARAMETERS, rows, columns))
    star, scratch = np.zeros((rows, columns)), np.zeros((kernel.shape[0], columns))
    a, b = np.zeros((N_PARAMETERS, N_PARAMETERS)), np.zeros(N_PARAMETERS)
    trial_a, trial_b = np.zeros((N_PARAMETERS, N_PARAMETERS)), np.zeros(N_PARAMETERS)
    covariance = np.full((N_PARAMETERS, N_PARAMETERS), np.nan)
    free = np.ones(N_PARAMETERS, dtype=np.bool_)
    draw_trail(kernel, p, nodes, weights, images, star, scratch)
    p[0] = _fit_flux(values, usable, images[0])
    if not (-np.inf < p[0] < np.inf and p[0] != 0.0):
        return False, p, covariance, np.nan, np.nan
    misfit = _assemble(values, usable, images, p[0], a, b)
    damping, converged = 1e-3, False
    for _ in range(max_iterations):
        solved, step = solve_damped(a, b, damping, free)
        if not solved:
            damping *= 10.0
            if damping > 1e8:
                break
            continue
        # A longer step leaves the region where the linearisation holds.
        length = 0.0
        for m in range(1, N_PARAMETERS):
            length = max(length, abs(step[m]))
        scale = min(1.0, _LONGEST_STEP / length) if length > 0.0 else 1.0
        for m in range(N_PARAMETERS):
            trial[m] = p[m] + scale * step[m]
        draw_trail(kernel, trial, nodes, weights, trial_images, star, scratch)
        if scale < 1.0:
            trial[0] = _fit_flux(values, usable, trial_images[0])
        trial_misfit = _assemble(values, usable, trial_images, trial[0], trial_a, trial_b)
        small = length < 1e-3 and abs(trial[0] - p[0]) < 1e-4 * abs(p[0])
        if trial_misfit <= misfit:
            p[:], images[:], a[:], b[:] = trial, trial_images, trial_a, trial_b
            misfit = trial_misfit
            damping *= 0.2
        else:
            damping *= 8.0
        if small or damping > 1e8:
            converged = small
            break
    solved, propagated = _propagate(variances, usable, images, p[0], a)
    if solved:
        covariance[:] = propagated
    shift_image(kernel, p[1] - columns // 2, p[2] - rows // 2, star, scratch)
    point_chi2 = _chi2(values, variances, usable, star, _fit_flux(values, usable, star))
    return converged, p, covariance, _chi2(values, variances, usable, images[0], p[0]), point_chi2


@njit(cache=True, nogil=True)
def footprint_moments(
    values: FloatArray, usable: BoolArray, sign: float
) -> tuple[float, float, float, float, float, float]:
    """Return flux, x, y, and moments xx, yy, xy about them, of the usable pixels of the given sign; NaN without any."""
    total = sx = sy = sxx = syy = sxy = 0.0
    rows, columns = values.shape
    for j in range(rows):
        for k in range(columns):
            d = sign * values[j, k]
            if usable[j, k] and d > 0.0:
                total += d
                sx += d * k
                sy += d * j
                sxx += d * k * k
                syy += d * j * j
                sxy += d * j * k
    if not total > 0.0:
        return np.nan, np.nan, np.nan, np.nan, np.nan, np.nan
    x, y = sx / total, sy / total
    return total, x, y, sxx / total - x * x, syy / total - y * y, sxy / total - x * y
