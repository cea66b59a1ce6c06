"""Compiled loops of measurement, over stamps and over sources. Plain arrays in and out.

A stamp is a square of odd side about a whole pixel (`column`, `row`); pixels off the image or unusable have
weight zero. Offsets `dx`, `dy` are from that whole pixel.
"""

import numpy as np
from numba import njit

from alertprod._typing import BoolArray, FloatArray, IntArray

_N_SIDE = 5
"""Samples on each side that a shifted PSF is interpolated from: good to 2e-4 of the peak at 4.2 pixels FWHM."""

_DERIVATIVE = np.array([5 / 6, -5 / 21, 5 / 84, -5 / 504, 1 / 1260])
"""Central differences of tenth order: PSFs are barely sampled, lower orders would smooth their slopes."""


@njit(cache=True, nogil=True)
def cut_stamps(
    image: FloatArray,
    variance: FloatArray,
    mask: IntArray,
    bad_bits: int,
    column: IntArray,
    row: IntArray,
    size: int,
    values: FloatArray,
    variances: FloatArray,
    usable: BoolArray,
) -> None:
    """Cut square stamps; what is off the image or unusable is zero with variance 1 and `usable` False."""
    ny, nx = image.shape
    half = size // 2
    for i in range(column.size):
        for j in range(size):
            y = row[i] + j - half
            for k in range(size):
                x = column[i] + k - half
                values[i, j, k] = 0.0
                variances[i, j, k] = 1.0
                usable[i, j, k] = False
                if 0 <= y < ny and 0 <= x < nx:
                    d, v = image[y, x], variance[y, x]
                    if (mask[y, x] & bad_bits) == 0 and 0.0 < v < np.inf and -np.inf < d < np.inf:
                        values[i, j, k] = d
                        variances[i, j, k] = v
                        usable[i, j, k] = True


@njit(cache=True, nogil=True)
def fit_psf_fluxes(
    values: FloatArray,
    variances: FloatArray,
    usable: BoolArray,
    psf: FloatArray,
    flux: FloatArray,
    flux_err: FloatArray,
    chi2: FloatArray,
    n_data: IntArray,
) -> None:
    """Fluxes ``sum(P d) / sum(P^2)`` over usable pixels, with errors from the variances; NaN where there are none."""
    n, size, _ = values.shape
    for i in range(n):
        pd, pp, ppv, count = 0.0, 0.0, 0.0, 0
        for j in range(size):
            for k in range(size):
                if usable[i, j, k]:
                    p = psf[i, j, k]
                    pd += p * values[i, j, k]
                    pp += p * p
                    ppv += p * p * variances[i, j, k]
                    count += 1
        n_data[i] = count
        if not pp > 0.0:
            flux[i] = flux_err[i] = chi2[i] = np.nan
            continue
        flux[i] = pd / pp
        flux_err[i] = np.sqrt(ppv) / pp
        total = 0.0
        for j in range(size):
            for k in range(size):
                if usable[i, j, k]:
                    residual = values[i, j, k] - flux[i] * psf[i, j, k]
                    total += residual * residual / variances[i, j, k]
        chi2[i] = total


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
    converged: BoolArray,
) -> None:
    """Newton steps from (dx, dy), in place, with `kernels` (centred PSF images) moved by interpolation.

    Only pixels within `radius` of the start count: a neighbour's wings would pull. `sign` is the flux's.
    """
    n, size, _ = values.shape
    half = size // 2
    psf = np.empty((size, size))
    scratch = np.empty((size, size))
    d_dx = np.empty((size, size))
    d_dy = np.empty((size, size))
    near = np.empty((size, size), dtype=np.bool_)
    for i in range(n):
        converged[i] = False
        x0, y0 = dx[i], dy[i]
        for j in range(size):
            for k in range(size):
                r2 = (k - half - x0) ** 2 + (j - half - y0) ** 2
                near[j, k] = usable[i, j, k] and r2 <= radius * radius
        for _ in range(max_iterations):
            shift_image(kernels[i], dx[i], dy[i], psf, scratch)
            differentiate(psf, d_dx, d_dy)
            ok, f, sx, sy, _, _, _ = newton_step(values[i], variances[i], near, psf, d_dx, d_dy)
            if not ok or f * sign[i] <= 0.0:
                break
            # A step beyond the core leaves the region where the linearisation holds.
            length = np.sqrt(sx * sx + sy * sy)
            if length > 0.5:
                sx, sy = 0.5 * sx / length, 0.5 * sy / length
            dx[i] += sx
            dy[i] += sy
            if length < tolerance:
                converged[i] = True
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
    ok: BoolArray,
) -> None:
    """Make one Newton step with PSF images drawn at (psf_dx, psf_dy): `step` (n, 2), `covariance` (n, 3), `ok`."""
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
        ok[i] = good and f * sign[i] > 0.0 and step[i, 0] ** 2 + step[i, 1] ** 2 < 1.0


@njit(cache=True, nogil=True)
def _corner_area(x: float, y: float, r: float) -> float:
    """Area of the disk of radius r about the origin with 0 <= X <= x, 0 <= Y <= y; x, y >= 0."""
    if x >= r and y >= r:
        return 0.25 * np.pi * r * r
    if x * x + y * y <= r * r:
        return x * y
    x, y = min(x, r), min(y, r)
    # Where the circle crosses the top (xc, y) and the right side (x, yc).
    xc = np.sqrt(max(0.0, r * r - y * y))
    yc = np.sqrt(max(0.0, r * r - x * x))
    angle = np.arctan2(y, xc) - np.arctan2(yc, x)
    return 0.5 * (xc * y + x * yc) + 0.5 * r * r * angle


@njit(cache=True, nogil=True)
def _signed_corner_area(x: float, y: float, r: float) -> float:
    area = _corner_area(abs(x), abs(y), r)
    return area if (x >= 0.0) == (y >= 0.0) else -area


@njit(cache=True, nogil=True)
def pixel_overlap(x: float, y: float, r: float) -> float:
    """Area that the unit pixel centred at (x, y) shares with the disk of radius r about the origin."""
    x0, x1, y0, y1 = x - 0.5, x + 0.5, y - 0.5, y + 0.5
    return (
        _signed_corner_area(x1, y1, r)
        - _signed_corner_area(x0, y1, r)
        - _signed_corner_area(x1, y0, r)
        + _signed_corner_area(x0, y0, r)
    )


@njit(cache=True, nogil=True)
def sum_apertures(
    image: FloatArray,
    variance: FloatArray,
    mask: IntArray,
    bad_bits: int,
    x: FloatArray,
    y: FloatArray,
    radius: float,
    psf: FloatArray,
    psf_column: IntArray,
    psf_row: IntArray,
    psf_flux: FloatArray,
    flux: FloatArray,
    flux_err: FloatArray,
    truncated: BoolArray,
    n_used: IntArray,
) -> None:
    """Sum pixels by their exact overlap with a disk; an unusable pixel counts as the star fitted to the others.

    `psf` (n, size, size) are images of a unit star about (psf_column, psf_row), `psf_flux` their fluxes.
    """
    ny, nx = image.shape
    half = psf.shape[1] // 2
    for i in range(x.size):
        total, noise = 0.0, 0.0
        n_used[i] = 0
        truncated[i] = False
        flux[i] = flux_err[i] = np.nan
        if not (np.isfinite(x[i]) and np.isfinite(y[i])):
            truncated[i] = True
            continue
        for row in range(int(np.floor(y[i] - radius)), int(np.ceil(y[i] + radius)) + 1):
            for column in range(int(np.floor(x[i] - radius)), int(np.ceil(x[i] + radius)) + 1):
                area = pixel_overlap(column - x[i], row - y[i], radius)
                if area <= 0.0:
                    continue
                if row < 0 or row >= ny or column < 0 or column >= nx:
                    truncated[i] = True
                    continue
                d, v = image[row, column], variance[row, column]
                if (mask[row, column] & bad_bits) == 0 and 0.0 < v < np.inf and -np.inf < d < np.inf:
                    total += area * d
                    noise += area * area * v
                    n_used[i] += 1
                elif np.isfinite(psf_flux[i]):
                    j, k = row - psf_row[i] + half, column - psf_column[i] + half
                    if 0 <= j < psf.shape[1] and 0 <= k < psf.shape[2]:
                        total += area * psf_flux[i] * psf[i, j, k]
        if n_used[i] > 0:
            flux[i] = total
            flux_err[i] = np.sqrt(noise)


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
                    if r2 > 32.0:
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
def or_footprints(mask: IntArray, pixel_offsets: IntArray, pixels: IntArray, bits: IntArray) -> None:
    """Or the mask bits of each footprint's pixels."""
    nx = mask.shape[1]
    for i in range(pixel_offsets.size - 1):
        total = 0
        for p in range(pixel_offsets[i], pixel_offsets[i + 1]):
            total |= mask[pixels[p] // nx, pixels[p] % nx]
        bits[i] = total


@njit(cache=True, nogil=True)
def or_and_centers(
    mask: IntArray, column: IntArray, row: IntArray, outside_bits: int, any_bits: IntArray, all_bits: IntArray
) -> None:
    """Or and and the mask bits of the 3 x 3 pixels about each whole pixel; pixels off the image have `outside_bits`."""
    ny, nx = mask.shape
    for i in range(column.size):
        some, every = 0, -1
        for y in range(row[i] - 1, row[i] + 2):
            for x in range(column[i] - 1, column[i] + 2):
                b = mask[y, x] if 0 <= y < ny and 0 <= x < nx else outside_bits
                some |= b
                every &= b
        any_bits[i] = some
        all_bits[i] = every
