"""Compiled loops of measurement, over stamps and over sources. Plain arrays in and out.

A stamp is a square of odd side about a whole pixel (`column`, `row`); pixels off the image or unusable have
weight zero. Offsets `dx`, `dy` are from that whole pixel.
"""

import numpy as np
from numba import njit

from alertprod._typing import BoolArray, FloatArray, IntArray


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
        first_x = column[i] - half
        first, last = max(0, -first_x), min(size, nx - first_x)
        for j in range(size):
            y = row[i] + j - half
            if not (0 <= y < ny and first == 0 and last == size):
                for k in range(size):
                    values[i, j, k] = 0.0
                    variances[i, j, k] = 1.0
                    usable[i, j, k] = False
            if 0 <= y < ny:
                for k in range(first, last):
                    d, v, b = image[y, first_x + k], variance[y, first_x + k], mask[y, first_x + k]
                    # One branchless expression: the loop then runs in vectors.
                    good = ((b & bad_bits) == 0) & (v > 0.0) & (v < np.inf) & (abs(d) < np.inf)
                    values[i, j, k] = d if good else 0.0
                    variances[i, j, k] = v if good else 1.0
                    usable[i, j, k] = good


@njit(cache=True, nogil=True)
def fit_psf_fluxes(
    values: FloatArray,
    variances: FloatArray,
    usable: BoolArray,
    psf: FloatArray,
    flux: FloatArray,
    flux_err: FloatArray,
    chi2: FloatArray,
    area: FloatArray,
    n_data: IntArray,
) -> None:
    """Fluxes ``sum(P d) / sum(P^2)`` over usable pixels, with errors from the variances; NaN where there are none.

    `area` is ``sum(P)^2 / sum(P^2)``.
    """
    n, size, _ = values.shape
    for i in range(n):
        total_p, pd, pp, ppv, count = 0.0, 0.0, 0.0, 0.0, 0
        for j in range(size):
            for k in range(size):
                if usable[i, j, k]:
                    p = psf[i, j, k]
                    total_p += p
                    pd += p * values[i, j, k]
                    pp += p * p
                    ppv += p * p * variances[i, j, k]
                    count += 1
        n_data[i] = count
        if not pp > 0.0:
            flux[i] = flux_err[i] = chi2[i] = area[i] = np.nan
            continue
        area[i] = total_p * total_p / pp
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
def fit_peak_likelihoods(
    values: FloatArray,
    variances: FloatArray,
    usable: BoolArray,
    kernels: FloatArray,
    dx: FloatArray,
    dy: FloatArray,
    flux: FloatArray,
    flux_err: FloatArray,
) -> None:
    """Point-source flux at (dx, dy) from those of the 3 x 3 whole pixels about the middle, by a parabola along each axis.

    `kernels` are PSF images centred on a whole pixel. NaN where one of the nine has no usable pixel.
    """
    n, size, _ = values.shape
    estimate, weights = np.empty((3, 3)), np.empty((3, 3))
    for i in range(n):
        total_v = 0.0
        for b in range(3):
            for a in range(3):
                pd = pp = ppv = 0.0
                for j in range(max(0, b - 1), min(size, size + b - 1)):
                    for k in range(max(0, a - 1), min(size, size + a - 1)):
                        if usable[i, j, k]:
                            p = kernels[i, j - b + 1, k - a + 1]
                            pd += p * values[i, j, k]
                            pp += p * p
                            ppv += p * p * variances[i, j, k]
                estimate[b, a] = pd / pp if pp > 0.0 else np.nan
                weights[b, a] = _parabola_weight(a, dx[i]) * _parabola_weight(b, dy[i])
                if a == 1 and b == 1:
                    total_v = np.sqrt(ppv) / pp if pp > 0.0 else np.nan
        flux[i] = (estimate * weights).sum()
        # The nine share nearly all of their pixels: the error is that of the middle one.
        flux_err[i] = total_v


@njit(cache=True, nogil=True)
def _parabola_weight(which: int, offset: float) -> float:
    """Weight of the sample at `which` - 1 for the value at `offset`."""
    if which == 1:
        return 1.0 - offset * offset
    return 0.5 * offset * (offset + which - 1.0)


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
