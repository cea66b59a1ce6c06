"""Convolve images with kernels that vary over the field.

Cost does not depend on the number of basis functions: the terms of a `SpatialKernel` are composite kernels. The image
is multiplied by each spatial term before its convolution, so that light is spread by the kernel of the place where it
comes from. Done in tiles whose transforms stay in the processor's cache.
"""

import itertools

import numpy as np
import scipy.fft
from numpy.polynomial import chebyshev

from alertprod._bands import map_bands, map_threads, row_bands
from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.subtraction import _loops
from alertprod.subtraction.spatial import SpatialKernel, evaluate_polynomial, normalised_axes, term_degrees

_FILL_RADIUS = 4
"""Reach in pixels when bad pixels are replaced: spans bad columns; inside larger holes there is nothing to know."""

_TILE_SIDES = (256, 512, 1024)
"""Sides of the transforms; the first of which the kernel's rim takes less than a third is used."""

_SUMMED_SIZE = 11
"""Size of the largest constant kernel whose products are summed pixel by pixel: transforms cost more below."""

_ALL_IN_PLACE = 0.99
"""Share of a squared kernel in its middle pixel above which variance is taken not to move."""


def convolve_image(image: FloatArray, kernel: SpatialKernel, *, n_threads: int = 2) -> FloatArray:
    """Convolve with a spatially varying kernel.

    Parameters
    ----------
    image
        Shape of the kernel's box, finite everywhere; see `fill_bad_pixels`.
    kernel
        ``out(x) = sum_u K(u; x - u) image(x - u)``.

    Returns
    -------
    FloatArray
        float32. Beyond the borders the image is taken as mirrored: the rim of half a kernel is a guess.
    """
    half = kernel.size // 2
    ny, nx = image.shape
    if (ny, nx) != kernel.box.shape:
        msg = f"image of shape {image.shape}, kernel for {kernel.box.shape}"
        raise ValueError(msg)
    source = image.astype(np.float32, copy=False)
    if kernel.order == 0 and kernel.size <= _SUMMED_SIZE:
        return _sum_products(source, kernel.terms[0], n_threads=n_threads)
    side = next((s for s in _TILE_SIDES if 2 * half < s // 3), scipy.fft.next_fast_len(6 * half + 2, real=True))
    step = side - 2 * half
    u, v = normalised_axes(kernel.box, x=np.arange(nx) + kernel.box.x_min, y=np.arange(ny) + kernel.box.y_min)
    # Where tiles reach beyond the borders, pixels and polynomials are those of the mirrored place.
    rows = _mirrored(-half, side + -(-ny // step) * step, ny)
    columns = _mirrored(-half, side + -(-nx // step) * step, nx)
    terms_u = chebyshev.chebvander(u, kernel.order).T.astype(np.float32)[:, columns]
    terms_v = chebyshev.chebvander(v, kernel.order).T.astype(np.float32)[:, rows]
    wrapped = np.zeros((len(kernel.terms), side, side))
    wrapped[:, : kernel.size, : kernel.size] = kernel.terms
    transfer = scipy.fft.rfft2(np.roll(wrapped, (-half, -half), axis=(1, 2))).astype(np.complex64)
    degrees = term_degrees(kernel.order)
    result = np.empty((ny, nx), dtype=np.float32)

    def convolve_tile(corner: tuple[int, int]) -> None:
        top, left = corner
        bottom, right = min(top + step, ny), min(left + step, nx)
        if top >= half and left >= half and top + side - half <= ny and left + side - half <= nx:
            block = source[top - half : top - half + side, left - half : left - half + side]
        else:
            block = _cut_out(source, rows[top : top + side], columns[left : left + side])
        along_x = [
            scipy.fft.rfft(block * terms[left : left + side] if i else block, axis=1) for i, terms in enumerate(terms_u)
        ]
        total = scipy.fft.fft(along_x[0], axis=0)
        total *= transfer[0]
        for term, (i, j) in enumerate(degrees[1:], start=1):
            weighted = _loops.scale_rows(along_x[i], terms_v[j, top : top + side]) if j else along_x[i]
            _loops.add_product(total, scipy.fft.fft(weighted, axis=0), transfer[term])
        wanted = scipy.fft.ifft(total, axis=0, overwrite_x=True)[half : half + bottom - top]
        result[top:bottom, left:right] = scipy.fft.irfft(wanted, n=side)[:, half : half + right - left]

    corners = itertools.product(range(0, ny, step), range(0, nx, step))
    map_threads(convolve_tile, corners, n_threads=n_threads)
    return result


def _sum_products(source: FloatArray, kernel: FloatArray, *, n_threads: int) -> FloatArray:
    """Convolve with a small kernel that is the same everywhere."""
    (ny, nx), half = source.shape, len(kernel) // 2
    taps = np.zeros((len(kernel), -(-len(kernel) // 3) * 3), dtype=np.float32)
    taps[:, : len(kernel)] = kernel[::-1, ::-1]
    rows, columns = _mirrored(-half, ny + 2 * half, ny), _mirrored(-half, nx + taps.shape[1] - 1, nx)
    result = np.empty((ny, nx), dtype=np.float32)

    def correlate(band: slice) -> None:
        taken = rows[band.start : band.stop + 2 * half]
        block = np.empty((len(taken), len(columns)), dtype=np.float32)
        block[:, half : half + nx] = source[taken]
        block[:, :half] = _cut_out(source, taken, columns[:half])
        block[:, half + nx :] = _cut_out(source, taken, columns[half + nx :])
        _loops.correlate(block, taps, result[band])

    map_threads(correlate, row_bands(ny), n_threads=n_threads)
    return result


def _cut_out(plane: FloatArray, rows: IntArray, columns: IntArray) -> FloatArray:
    """Return the pixels where rows and columns meet; both are near one another."""
    if columns.size == 0:
        return np.empty((rows.size, 0), dtype=plane.dtype)
    first = columns.min()
    return np.take(plane[:, first : columns.max() + 1][rows], columns - first, axis=1)


def _mirrored(start: int, n: int, length: int) -> IntArray:
    """Return pixel numbers from `start` on, reflected at the borders of an axis, the border pixel repeated."""
    index = np.arange(start, start + n) % (2 * length)
    return np.where(index < length, index, 2 * length - 1 - index)


def convolve_variance(variance: FloatArray, squared_kernel: SpatialKernel, *, n_threads: int = 2) -> FloatArray:
    """Propagate a variance plane: convolve with the kernel's square; covariances between pixels are not kept.

    Parameters
    ----------
    variance
        Positive and finite everywhere.
    squared_kernel
        From `SpatialKernel.squared`.

    Notes
    -----
    The square's sum is followed over the image exactly, its shape is that of the middle: a variance plane is smooth
    but on stars, and there the shape of the kernel varies little. A square that is all in its middle pixel is a factor.
    """
    x, y = squared_kernel.centre
    shape = squared_kernel.compute_image(x=x, y=y)
    total = shape.sum()
    half = squared_kernel.size // 2
    is_moved = not shape[half, half] > _ALL_IN_PLACE * total
    if is_moved:
        constant = SpatialKernel.constant(_crop_negligible(shape / total), squared_kernel.box)
        result = convolve_image(variance, constant, n_threads=n_threads)
        least = np.float32(min(map_bands(lambda first, last: variance[first:last].min(), len(variance))))
    else:
        result = np.empty(variance.shape, dtype=np.float32)
    sums = squared_kernel.terms.sum(axis=(1, 2))

    def scale(rows: slice) -> None:
        if is_moved:
            # Rounding of the transforms must not bring faint pixels beside bright ones to zero or below.
            np.maximum(result[rows], least, out=result[rows])
        else:
            result[rows] = variance[rows]
        if squared_kernel.order == 0:
            result[rows] *= np.float32(total)
        else:
            result[rows] *= evaluate_polynomial(sums, squared_kernel.order, squared_kernel.box, rows=rows)

    map_threads(scale, row_bands(len(result)), n_threads=n_threads)
    return result


def _crop_negligible(shape: FloatArray) -> FloatArray:
    """Cut off the rim whose pixels add up to less than 0.1 % of a kernel of unit sum, keeping the sum."""
    half = shape.shape[0] // 2
    for radius in range(1, half):
        inner = shape[half - radius : half + radius + 1, half - radius : half + radius + 1]
        if inner.sum() > 0.999:
            return inner / inner.sum()
    return shape


def fill_bad_pixels(plane: FloatArray, bad: BoolArray, *, radius: int = _FILL_RADIUS) -> FloatArray:
    """Replace bad pixels so that a convolution spreads something likely.

    Parameters
    ----------
    plane
        Image or variance, shape ``(ny, nx)``.
    bad
        True where the plane must not be used; pixels that are not finite must be among them.
    radius
        How far in rows and columns good pixels are looked for.

    Returns
    -------
    FloatArray
        float32, the plane itself where nothing is bad. Near good pixels their mean weighted with the inverse squared
        distance, else the good pixels' median; zero where there is no good pixel at all.
    """
    plane, bad = np.ascontiguousarray(plane, dtype=np.float32), np.ascontiguousarray(bad)
    if not any(map_bands(lambda first, last: bad[first:last].any(), len(bad))):
        return plane
    stride = max(1, int(np.sqrt(plane.size / 250_000)))
    good = plane[::stride, ::stride][~bad[::stride, ::stride]]
    fallback = float(np.median(good)) if good.size else 0.0
    filled = np.empty_like(plane)
    map_bands(lambda first, last: _loops.fill_bad(plane, bad, radius, fallback, first, last, filled), len(plane))
    return filled


def grow_mask(mask: IntArray, radius: float) -> IntArray:
    """Spread every bit to the pixels within `radius`; returns a new int32 array."""
    offsets_y, offsets_x = _loops.disc_offsets(radius)
    mask = np.ascontiguousarray(mask, dtype=np.int32)
    grown = np.empty_like(mask)
    map_bands(lambda first, last: _loops.spread_mask(mask, offsets_y, offsets_x, first, last, grown), len(mask))
    return grown
