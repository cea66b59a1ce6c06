"""The compiled dipole fit: one source, up to three images, Levenberg-Marquardt.

Parameters, in order: flux of the positive lobe, x and y of the positive lobe, x and y of the negative, by how much
the flux of the negative lobe is larger, then a plane (level, slope in x, slope in y) under the science and one under
the template image. With the difference alone only the first six.
"""

import numpy as np
from numba import njit

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.measurement._fit_loops import differentiate, shift_image, solve_damped

N_STAR = 6
N_ALL = 12


@njit(cache=True, nogil=True)
def _draw(
    kernel: FloatArray, x: float, y: float, image: FloatArray, d_dx: FloatArray, d_dy: FloatArray, scratch: FloatArray
) -> None:
    """Draw a star at (x, y) of the box's pixels and its derivatives with respect to x and y."""
    rows, columns = image.shape
    shift_image(kernel, x - columns // 2, y - rows // 2, image, scratch)
    differentiate(image, d_dx, d_dy)
    for j in range(rows):
        for k in range(columns):
            d_dx[j, k] = -d_dx[j, k]
            d_dy[j, k] = -d_dy[j, k]


@njit(cache=True, nogil=True)
def _gradient(
    which: int, star: FloatArray, j: int, k: int, p: FloatArray, plane_x: float, plane_y: float, gradient: FloatArray
) -> None:
    """Fill the derivatives of the model at `p` at one pixel of the difference (0), science (1) or template (2)."""
    gradient[:] = 0.0
    if which != 2:
        gradient[0] += star[0, 0, j, k]
        gradient[1] = p[0] * star[0, 1, j, k]
        gradient[2] = p[0] * star[0, 2, j, k]
    if which != 1:
        s = -1.0 if which == 0 else 1.0
        gradient[0] += s * star[1, 0, j, k]
        gradient[3] = s * (p[0] + p[5]) * star[1, 1, j, k]
        gradient[4] = s * (p[0] + p[5]) * star[1, 2, j, k]
        gradient[5] = s * star[1, 0, j, k]
    if which == 1:
        gradient[6], gradient[7], gradient[8] = 1.0, plane_x, plane_y
    elif which == 2:
        gradient[9], gradient[10], gradient[11] = 1.0, plane_x, plane_y


@njit(cache=True, nogil=True)
def _assemble(
    values: FloatArray,
    variances: FloatArray,
    usable: BoolArray,
    kernels: FloatArray,
    weights: FloatArray,
    fitted: BoolArray,
    p: FloatArray,
    stars: FloatArray,
    scratch: FloatArray,
    a: FloatArray,
    b: FloatArray,
) -> float:
    """Draw the model at `p`, fill the normal equations of the `fitted` parameters, return chi squared."""
    n_images, rows, columns = values.shape
    gradient = np.zeros(N_ALL)
    a[:] = 0.0
    b[:] = 0.0
    chi2 = 0.0
    for i in range(n_images):
        # The science image has one star, the template the other.
        if i != 2:
            _draw(kernels[i], p[1], p[2], stars[i, 0, 0], stars[i, 0, 1], stars[i, 0, 2], scratch)
        if i != 1:
            _draw(kernels[i], p[3], p[4], stars[i, 1, 0], stars[i, 1, 1], stars[i, 1, 2], scratch)
        for j in range(rows):
            for k in range(columns):
                if not usable[i, j, k]:
                    continue
                px, py = k - 0.5 * (columns - 1), j - 0.5 * (rows - 1)
                _gradient(i, stars[i], j, k, p, px, py, gradient)
                model = p[0] * gradient[0] + p[5] * gradient[5]
                if i == 1:
                    model += p[6] + p[7] * px + p[8] * py
                elif i == 2:
                    model += p[9] + p[10] * px + p[11] * py
                w = weights[i] / variances[i, j, k]
                r = values[i, j, k] - model
                chi2 += w * r * r
                for m in range(a.shape[0]):
                    if fitted[m] and gradient[m] != 0.0:
                        b[m] += w * gradient[m] * r
                        for q in range(m + 1):
                            a[m, q] += w * gradient[m] * gradient[q]
    for m in range(a.shape[0]):
        for q in range(m):
            a[q, m] = a[m, q]
    return chi2


@njit(cache=True, nogil=True)
def fit_dipole(
    values: FloatArray,
    variances: FloatArray,
    usable: BoolArray,
    kernels: FloatArray,
    weights: FloatArray,
    start: FloatArray,
    max_shift: float,
    max_iterations: int,
    fitted: BoolArray,
) -> tuple[bool, FloatArray, FloatArray, float, int, float, FloatArray]:
    """Fit one dipole.

    `values`, `variances`, `usable`: (1 or 3, rows, columns), difference first, then science and template;
    `kernels`: (1 or 3, size, size), centred PSF images; `weights` multiply inverse variances; `start`: x and y of
    the positive and negative lobe in the box's pixels, from which they may move by `max_shift` along each axis.
    `fitted` (12,) says which parameters are free; the others stay zero.

    Returns ok, the parameters, their covariance, chi squared of the difference and its number of pixels, the
    signal-to-noise of the model on the difference, and the lobes' fluxes fitted apart on the difference
    (positive, negative, variance of their sum).
    """
    n_images, rows, columns = values.shape
    n = N_STAR if n_images == 1 else N_ALL
    p = np.zeros(N_ALL)
    p[1:5] = start
    a, b = np.zeros((n, n)), np.zeros(n)
    trial_a, trial_b = np.zeros((n, n)), np.zeros(n)
    stars = np.zeros((n_images, 2, 3, rows, columns))
    scratch = np.zeros((kernels.shape[1], columns))
    covariance = np.full((n, n), np.nan)
    lobes = np.full(3, np.nan)
    free = fitted[:n].copy()
    # Fluxes and planes are linear: solve for them at the starting positions.
    free[1:5] = False
    chi2 = _assemble(values, variances, usable, kernels, weights, fitted, p, stars, scratch, a, b)
    solved, step = solve_damped(a, b, 0.0, free)
    if not solved or not (step[0] > 0.0 and step[0] + step[5] > 0.0):
        return False, p, covariance, np.nan, 0, np.nan, lobes
    for m in range(n):
        p[m] += step[m]
    free[1:5] = True
    chi2 = _assemble(values, variances, usable, kernels, weights, fitted, p, stars, scratch, a, b)
    damping = 1e-3
    converged = False
    trial = p.copy()
    for _ in range(max_iterations):
        solved, step = solve_damped(a, b, damping, free)
        if not solved:
            damping *= 10.0
            if damping > 1e8:
                break
            continue
        for m in range(n):
            trial[m] = p[m] + step[m]
        for m in range(4):
            trial[m + 1] = min(max(trial[m + 1], start[m] - max_shift), start[m] + max_shift)
        if not trial[0] > 0.0:
            trial[0] = 0.1 * p[0]
        if not trial[0] + trial[5] > 0.0:
            trial[5] = 0.1 * (p[0] + p[5]) - trial[0]
        trial_chi2 = _assemble(
            values, variances, usable, kernels, weights, fitted, trial, stars, scratch, trial_a, trial_b
        )
        moved = 0.0
        for m in range(1, 5):
            moved = max(moved, abs(trial[m] - p[m]))
        small = moved < 1e-4 and abs(trial[0] - p[0]) + abs(trial[5] - p[5]) < 1e-5 * p[0]
        if trial_chi2 <= chi2:
            p[:] = trial
            chi2 = trial_chi2
            a[:] = trial_a
            b[:] = trial_b
            damping *= 0.2
        else:
            damping *= 8.0
        if small or damping > 1e8:
            converged = small
            break
    _assemble(values, variances, usable, kernels, weights, fitted, p, stars, scratch, a, b)
    for m in range(n):
        unit = np.zeros(n)
        unit[m] = 1.0
        solved, column = solve_damped(a, unit, 0.0, free)
        if not solved:
            return False, p, covariance, np.nan, 0, np.nan, lobes
        covariance[:, m] = column
    if n_images == 3:
        covariance = _sandwich(variances, usable, weights, p, stars, covariance)
    diff_chi2, n_data, power = 0.0, 0, 0.0
    pp = pn = nn = dp = dn = vpp = vpn = vnn = 0.0
    for j in range(rows):
        for k in range(columns):
            if usable[0, j, k]:
                plus, minus = stars[0, 0, 0, j, k], stars[0, 1, 0, j, k]
                d, v = values[0, j, k], variances[0, j, k]
                model = p[0] * plus - (p[0] + p[5]) * minus
                diff_chi2 += (d - model) ** 2 / v
                power += model * model / v
                n_data += 1
                pp += plus * plus
                pn += plus * minus
                nn += minus * minus
                dp += plus * d
                dn += minus * d
                vpp += plus * plus * v
                vpn += plus * minus * v
                vnn += minus * minus * v
    determinant = pp * nn - pn * pn
    if determinant > 1e-10 * pp * nn:
        lobes[0] = (nn * dp - pn * dn) / determinant
        lobes[1] = (pp * dn - pn * dp) / determinant
        # Sum of the two as one linear combination of the data: its variance follows at once.
        up, un = (nn - pn) / determinant, (pp - pn) / determinant
        lobes[2] = up * up * vpp + 2.0 * up * un * vpn + un * un * vnn
    return converged, p, covariance, diff_chi2, n_data, np.sqrt(power), lobes


@njit(cache=True, nogil=True)
def _sandwich(
    variances: FloatArray, usable: BoolArray, weights: FloatArray, p: FloatArray, stars: FloatArray, inverse: FloatArray
) -> FloatArray:
    """Covariance of the weighted fit when the difference's noise is the science's less the template's.

    The three images are not independent; the inverse of the normal matrix would be too small.
    """
    n = inverse.shape[0]
    rows, columns = variances.shape[1:]
    noise = np.zeros((n, n))
    gradients = np.zeros((3, N_ALL))
    cov = np.zeros((3, 3))
    for j in range(rows):
        for k in range(columns):
            px, py = k - 0.5 * (columns - 1), j - 0.5 * (rows - 1)
            for i in range(3):
                gradients[i, :] = 0.0
                if usable[i, j, k]:
                    _gradient(i, stars[i], j, k, p, px, py, gradients[i])
                    for m in range(n):
                        gradients[i, m] *= weights[i] / variances[i, j, k]
            vd, vs, vt = variances[0, j, k], variances[1, j, k], variances[2, j, k]
            cov[0, 0], cov[1, 1], cov[2, 2] = vd, vs, vt
            cov[0, 1] = cov[1, 0] = min(vd, vs)
            cov[0, 2] = cov[2, 0] = -min(vt, max(vd - vs, 0.0))
            for m in range(n):
                for q in range(m + 1):
                    total = 0.0
                    for i in range(3):
                        for o in range(3):
                            total += gradients[i, m] * cov[i, o] * gradients[o, q]
                    noise[m, q] += total
    for m in range(n):
        for q in range(m):
            noise[q, m] = noise[m, q]
    return inverse @ noise @ inverse


@njit(cache=True, nogil=True)
def sum_signs(
    image: FloatArray,
    variance: FloatArray,
    mask: IntArray,
    bad_bits: int,
    pixel_offsets: IntArray,
    pixels: IntArray,
    flux: FloatArray,
    noise: FloatArray,
    n_pixels: IntArray,
) -> None:
    """Sum each footprint's usable pixels at or above zero (element 0) and below (element 1), with their variances."""
    nx = image.shape[1]
    for i in range(pixel_offsets.size - 1):
        for p in range(pixel_offsets[i], pixel_offsets[i + 1]):
            row, column = pixels[p] // nx, pixels[p] % nx
            d, v = image[row, column], variance[row, column]
            if (mask[row, column] & bad_bits) == 0 and 0.0 < v < np.inf and -np.inf < d < np.inf:
                k = 0 if d >= 0.0 else 1
                flux[i, k] += d
                noise[i, k] += v
                n_pixels[i, k] += 1
