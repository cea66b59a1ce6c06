"""Compiled loops: over bad pixels, over spectra, over the planes of a subtraction."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from alertprod._typing import BoolArray, FloatArray, IntArray

ComplexArray = NDArray[np.complexfloating[Any, Any]]


@njit(cache=True, nogil=True)
def fill_bad(
    image: FloatArray, bad: BoolArray, radius: int, fallback: float, row_start: int, row_stop: int, filled: FloatArray
) -> None:
    """Copy rows, bad pixels as their neighbours' mean weighted with 1/distance²; `fallback` where none is good."""
    ny, nx = image.shape
    for y in range(row_start, row_stop):
        filled[y] = image[y]
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


@njit(cache=True, nogil=True)
def spread_mask(
    mask: IntArray, offsets_y: IntArray, offsets_x: IntArray, row_start: int, row_stop: int, spread: IntArray
) -> None:
    """Fill rows with the bits of all pixels that reach them by an offset, themselves included.

    Inside areas of equal bits there is nothing to do.
    """
    ny, nx = mask.shape
    reach = offsets_y.max()
    spread[row_start:row_stop] = mask[row_start:row_stop]
    for y in range(max(0, row_start - reach), min(ny, row_stop + reach)):
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
                if row_start <= j < row_stop and 0 <= i < nx:
                    spread[j, i] |= bits


def disc_offsets(radius: float) -> tuple[IntArray, IntArray]:
    """Return the (y, x) offsets of the pixels within `radius`."""
    half = int(np.floor(radius))
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    inside = u * u + v * v <= radius * radius + 1e-9
    return v[inside].astype(np.int64), u[inside].astype(np.int64)


@njit(cache=True, nogil=True, fastmath={"contract"})
def correlate(rows: FloatArray, kernel: FloatArray, out: FloatArray) -> None:
    """Correlate rows with a kernel, summing over its pixels: ``out[y, x] = sum_ji kernel[j, i] rows[y + j, x + i]``.

    Parameters
    ----------
    rows
        float32, shape ``(ny + ky - 1, nx + kx - 1)``.
    kernel
        float32, shape ``(ky, kx)``, kx a multiple of three: that many products are added to a pixel while it is at hand.
    """
    ky, kx = kernel.shape
    ny, nx = out.shape
    for y in range(ny):
        line = out[y]
        line[:] = np.float32(0.0)
        for j in range(ky):
            row = rows[y + j]
            for i in range(0, kx, 3):
                a, b, c = kernel[j, i], kernel[j, i + 1], kernel[j, i + 2]
                first, second, third = row[i : i + nx], row[i + 1 :], row[i + 2 :]
                for x in range(nx):
                    line[x] += a * first[x] + b * second[x] + c * third[x]


@njit(cache=True, nogil=True)
def scale_rows(spectrum: ComplexArray, factors: FloatArray) -> ComplexArray:
    """Multiply each row of a complex array by a real number."""
    scaled = np.empty_like(spectrum)
    for y in range(spectrum.shape[0]):
        factor = factors[y]
        for x in range(spectrum.shape[1]):
            value = spectrum[y, x]
            scaled[y, x] = complex(value.real * factor, value.imag * factor)
    return scaled


@njit(cache=True, nogil=True)
def add_product(total: ComplexArray, first: ComplexArray, second: ComplexArray) -> None:
    """Add the product of two complex arrays to a third."""
    for y in range(total.shape[0]):
        for x in range(total.shape[1]):
            total[y, x] += first[y, x] * second[y, x]


@njit(cache=True, nogil=True)
def subtract_planes(
    image: FloatArray,
    mask: IntArray,
    variance: FloatArray,
    other_image: FloatArray,
    other_mask: IntArray,
    other_variance: FloatArray,
    background: FloatArray,
    cleared: int,
    no_data: int,
    out_image: FloatArray,
    out_mask: IntArray,
    out_variance: FloatArray,
) -> None:
    """Subtract images and background, add variances, join masks; what is not finite becomes a pixel without data."""
    ny, nx = image.shape
    for y in range(ny):
        for x in range(nx):
            value = image[y, x] - other_image[y, x] - background[y, x]
            sum_variance = variance[y, x] + other_variance[y, x]
            bits = (mask[y, x] | other_mask[y, x]) & ~cleared
            if not (np.isfinite(value) and np.isfinite(sum_variance)):
                value = np.float32(np.nan)
                sum_variance = np.float32(np.inf)
                bits |= no_data
            out_image[y, x] = value
            out_mask[y, x] = bits
            out_variance[y, x] = sum_variance


@njit(cache=True, nogil=True, fastmath={"contract"})
def multiply_out(rows: FloatArray, columns: FloatArray) -> FloatArray:
    """Return ``rows @ columns`` in float32 for a handful of terms, quicker than the general product."""
    ny, n_terms = rows.shape
    product = np.zeros((ny, columns.shape[1]), np.float32)
    for y in range(ny):
        line = product[y]
        for k in range(n_terms):
            factor, term = rows[y, k], columns[k]
            for x in range(line.size):
                line[x] += factor * term[x]
    return product
