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
    values: FloatArray,
    variances: FloatArray,
    usable: BoolArray,
    images: FloatArray,
    flux: float,
    a: FloatArray,
    b: FloatArray,
) -> float:
    """Fill the normal equations of the model drawn in `images`, return chi squared."""
    rows, columns = values.shape
    gradient = np.empty(N_PARAMETERS)
    a[:] = 0.0
    b[:] = 0.0
    chi2 = 0.0
    for j in range(rows):
        for k in range(columns):
            if not usable[j, k]:
                continue
            gradient[0] = images[0, j, k]
            for m in range(1, N_PARAMETERS):
                gradient[m] = flux * images[m, j, k]
            w = 1.0 / variances[j, k]
            r = values[j, k] - flux * gradient[0]
            chi2 += w * r * r
            for m in range(N_PARAMETERS):
                b[m] += w * gradient[m] * r
                for q in range(m + 1):
                    a[m, q] += w * gradient[m] * gradient[q]
    for m in range(N_PARAMETERS):
        for q in range(m):
            a[q, m] = a[m, q]
    return chi2


@njit(cache=True, nogil=True)
def _fit_flux(values: FloatArray, usable: BoolArray, image: FloatArray, precision: FloatArray) -> float:
    """Return the flux of a fixed image that fits best with these weights; NaN where no pixel tells."""
    pd = pp = 0.0
    rows, columns = values.shape
    for j in range(rows):
        for k in range(columns):
            if usable[j, k]:
                pd += precision[j, k] * image[j, k] * values[j, k]
                pp += precision[j, k] * image[j, k] * image[j, k]
    return pd / pp if pp > 0.0 else np.nan


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
) -> tuple[bool, FloatArray, FloatArray, float, float, float]:
    """Fit one trail by Levenberg-Marquardt.

    `values`, `variances`, `usable`: (rows, columns); `kernel`: centred PSF image; `nodes`, `weights`: quadrature over
    (-1, 1), weights of sum 1; `start`: middle and vector in the box's pixels.

    Returns converged, the parameters, their covariance, the flux without weights, chi squared of the trail and of a
    point source at its middle. The flux without weights is the one to report: a variance plane made from the data
    would bias the other.
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
    precision = 1.0 / variances
    draw_trail(kernel, p, nodes, weights, images, star, scratch)
    p[0] = _fit_flux(values, usable, images[0], precision)
    if not (-np.inf < p[0] < np.inf and p[0] != 0.0):
        return False, p, covariance, np.nan, np.nan, np.nan
    chi2 = _assemble(values, variances, usable, images, p[0], a, b)
    damping, converged = 1e-3, False
    for _ in range(max_iterations):
        solved, step = solve_damped(a, b, damping, free)
        if not solved:
            damping *= 10.0
            if damping > 1e8:
                break
            continue
        # A step beyond a few pixels leaves the region where the linearisation holds.
        length = 0.0
        for m in range(1, N_PARAMETERS):
            length = max(length, abs(step[m]))
        scale = min(1.0, 4.0 / length) if length > 0.0 else 1.0
        for m in range(N_PARAMETERS):
            trial[m] = p[m] + scale * step[m]
        draw_trail(kernel, trial, nodes, weights, trial_images, star, scratch)
        if length * scale >= 4.0:
            trial[0] = _fit_flux(values, usable, trial_images[0], precision)
        trial_chi2 = _assemble(values, variances, usable, trial_images, trial[0], trial_a, trial_b)
        small = length < 1e-3 and abs(trial[0] - p[0]) < 1e-4 * abs(p[0])
        if trial_chi2 <= chi2:
            p[:], images[:], a[:], b[:] = trial, trial_images, trial_a, trial_b
            chi2 = trial_chi2
            damping *= 0.2
        else:
            damping *= 8.0
        if small or damping > 1e8:
            converged = small
            break
    for m in range(N_PARAMETERS):
        unit = np.zeros(N_PARAMETERS)
        unit[m] = 1.0
        solved, column = solve_damped(a, unit, 0.0, free)
        if not solved:
            covariance[:] = np.nan
            break
        covariance[:, m] = column
    flux = _fit_flux(values, usable, images[0], np.ones((rows, columns)))
    shift_image(kernel, p[1] - columns // 2, p[2] - rows // 2, star, scratch)
    point_flux = _fit_flux(values, usable, star, precision)
    point_chi2 = 0.0
    for j in range(rows):
        for k in range(columns):
            if usable[j, k]:
                point_chi2 += precision[j, k] * (values[j, k] - point_flux * star[j, k]) ** 2
    return converged, p, covariance, flux, chi2, point_chi2


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
