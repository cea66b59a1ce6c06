"""Warping: an image interpolated onto another pixel grid, with its mask and variance.

The variance plane is the variance of each pixel by itself. Neighbours share source pixels, so the
noise of a warped image is correlated, and summing its variance over an area underestimates the noise there.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from alertprod._bands import map_threads, row_bands
from alertprod._typing import FloatArray
from alertprod.geometry.box import Box
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf._lanczos import KERNEL_RADII, kernel_table
from alertprod.psf.convolution import convolve_full
from alertprod.psf.transformed import WarpedPsf
from alertprod.resample._loops import map_near, prepare_source, warp_rows
from alertprod.resample.mapping import PixelMapping
from alertprod.resample.noise import compute_noise_kernel

_LEAST_WEIGHT = 0.01
"""Source pixels of less weight do not pass on their mask: what they have wrong arrives a hundredfold weaker."""

_GREATEST_LOSS = 0.1
"""Share of the kernel (absolute weights) that may be missing; a tenth still keeps the value to a few percent."""


def warp_masked_image(
    source: MaskedImage,
    mapping: PixelMapping,
    *,
    kernel: str = "lanczos3",
    n_threads: int = 1,
) -> MaskedImage:
    """Interpolate an image onto the target grid of a mapping.

    Parameters
    ----------
    source
        Image to warp; it is not changed. Pixels that are not finite, have NO_DATA or no positive finite
        variance are left out.
    mapping
        From target to source pixels; its shape is the result's.
    kernel
        ``bilinear``, ``lanczos3`` or ``lanczos5``.
    n_threads
        Threads to share the rows.

    Returns
    -------
    MaskedImage
        float32 planes in fresh arrays. Where the source does not reach: NaN, NO_DATA, infinite variance.

    Raises
    ------
    ValueError
        Raised if there is no such kernel.

    Notes
    -----
    With the weights w of a target pixel, normalised to sum 1, and the area a of a target pixel in
    source pixels: ``image = a sum(w I)``, ``variance = a^2 sum(w^2 V)``. Surface brightness times area, so
    flux is conserved, as long as the target samples the image finely enough: pixels are points, not
    integrated over, and a target much coarser than the source aliases.

    The noise of neighbours is correlated: at a shift of (fx, fy) and lag (k, l), ``cov = a^2 V
    sum_i w_i(fx) w_(i-k)(fx) sum_j w_j(fy) w_(j-l)(fy)`` for a smooth V. For Lanczos kernels the sum of w^2 lies between 1
    (whole-pixel shift) and 0.6 (half a pixel both ways).

    Mask: all planes (EDGE and the DETECTED planes like the others) of source pixels with at least 1 % of the
    weight. Source pixels without a value are left out and the rest normalised to sum 1 again, with
    EDGE set, where they carry up to a tenth of the absolute weight; where they carry more, or are the
    nearest pixel, the target has no data, and keeps their other planes.
    """
    if kernel not in KERNEL_RADII:
        msg = f"kernel is {kernel!r}; one of {', '.join(KERNEL_RADII)} is needed"
        raise ValueError(msg)
    no_data = plane_bits("NO_DATA")
    window = _source_window(source, mapping, KERNEL_RADII[kernel])
    if window is None:
        return MaskedImage.empty(mapping.shape)
    result = MaskedImage(
        np.empty(mapping.shape, np.float32), np.empty(mapping.shape, np.int32), np.empty(mapping.shape, np.float32)
    )
    rows, columns = window
    source = MaskedImage(source.image[window], source.mask[window], source.variance[window])
    shape = source.shape
    # Copies, so that the loop is compiled for one kind of array: writable and contiguous.
    x_nodes, y_nodes, area_nodes = (np.array(nodes, order="C") for nodes in mapping.nodes)
    x_nodes -= columns.start
    y_nodes -= rows.start
    image, variance = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
    flags = np.empty(shape, dtype=np.int32)
    near = np.zeros(shape, dtype=np.uint8)
    table = _padded_table(kernel)

    def prepare(rows: slice) -> int:
        planes = (
            np.array(plane[rows], dtype=dtype, order="C")
            for plane, dtype in ((source.image, np.float32), (source.mask, np.int32), (source.variance, np.float32))
        )
        return prepare_source(*planes, no_data, image[rows], variance[rows], flags[rows])

    def look_around(rows: slice) -> None:
        map_near(flags, KERNEL_RADII[kernel], near, rows.start, rows.stop)

    def fill(rows: slice) -> None:
        warp_rows(
            image,
            variance,
            flags,
            near,
            x_nodes,
            y_nodes,
            area_nodes,
            mapping.step,
            table,
            2 * KERNEL_RADII[kernel],
            _LEAST_WEIGHT,
            _GREATEST_LOSS,
            plane_bits("EDGE"),
            no_data,
            result.image,
            result.mask,
            result.variance,
            rows.start,
            rows.stop,
        )

    if any(map_threads(prepare, row_bands(shape[0]), n_threads=n_threads)):
        map_threads(look_around, row_bands(shape[0]), n_threads=n_threads)
    map_threads(fill, row_bands(mapping.shape[0]), n_threads=n_threads)
    return result


def warp_exposure(
    template: Exposure,
    wcs: SkyWcs,
    shape: tuple[int, int],
    *,
    kernel: str = "lanczos3",
    max_error_pixels: float = 1e-3,
    n_threads: int = 1,
) -> Exposure:
    """Warp an exposure onto the grid of another.

    Parameters
    ----------
    template
        Exposure with world coordinates; it is not changed.
    wcs, shape
        World coordinates, rows and columns of the target grid.
    max_error_pixels
        Bound of the error of positions, in the template's pixels.

    Returns
    -------
    Exposure
        Planes as `warp_masked_image` makes them, `wcs`, and the template's PSF as the warped pixels show it;
        photometric calibration and facts are the template's.

    Raises
    ------
    ValueError
        Raised if the template has no world coordinates, or `PixelMapping.between` fails.
    """
    if template.wcs is None:
        msg = "the exposure to warp has no world coordinates"
        raise ValueError(msg)
    mapping = PixelMapping.between(
        wcs, template.wcs, shape, max_error_pixels=max_error_pixels, source_shape=template.shape
    )
    planes = warp_masked_image(template.masked_image, mapping, kernel=kernel, n_threads=n_threads)
    psf = _warp_psf(template, mapping, planes, kernel, x_min=0, y_min=0)
    noise_kernel = _warp_noise(template, mapping, kernel)
    return replace(
        template, masked_image=planes, wcs=wcs, psf=psf, info=replace(template.info), noise_kernel=noise_kernel
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WarpedTile:
    """An exposure on the target grid, of which only a box was computed.

    Parameters
    ----------
    exposure
        Planes of the box's pixels; `wcs` and `psf` are those of the whole target grid.
    box
        Where they are on it.
    shape
        Rows and columns of the target grid.
    """

    exposure: Exposure
    box: Box
    shape: tuple[int, int]


def warp_tile(
    template: Exposure,
    wcs: SkyWcs,
    shape: tuple[int, int],
    *,
    kernel: str = "lanczos3",
    max_error_pixels: float = 1e-3,
    n_threads: int = 1,
) -> WarpedTile | None:
    """Warp an exposure as `warp_exposure` does, but only the box it covers; None where it covers nothing.

    A tile in the corner of the target costs its own size, in time and memory.
    """
    if template.wcs is None:
        msg = "the exposure to warp has no world coordinates"
        raise ValueError(msg)
    mapping = PixelMapping.between(
        wcs, template.wcs, shape, max_error_pixels=max_error_pixels, source_shape=template.shape
    )
    cropped = mapping.crop_to_source(template.shape)
    if cropped is None:
        return None
    box, part = cropped
    planes = warp_masked_image(template.masked_image, part, kernel=kernel, n_threads=n_threads)
    psf = _warp_psf(template, mapping, planes, kernel, x_min=box.x_min, y_min=box.y_min)
    exposure = replace(
        template, masked_image=planes, wcs=wcs, psf=psf, info=replace(template.info),
        noise_kernel=_warp_noise(template, part, kernel),
    )  # fmt: skip
    return WarpedTile(exposure=exposure, box=box, shape=shape)


def _warp_psf(
    template: Exposure, mapping: PixelMapping, planes: MaskedImage, kernel: str, *, x_min: int, y_min: int
) -> WarpedPsf | None:
    """Return the PSF on the target grid, with the centre of the pixels that have data for its position."""
    if template.psf is None:
        return None
    # On a lattice, because a tile may cover a corner only, and its PSF is of no interest elsewhere.
    every = mapping.step
    rows, columns = np.nonzero((planes.mask[::every, ::every] & plane_bits("NO_DATA")) == 0)
    x, y = (mapping.shape[1] - 1) / 2, (mapping.shape[0] - 1) / 2
    if rows.size:
        x, y = float(columns.mean() * every) + x_min, float(rows.mean() * every) + y_min
    return WarpedPsf(template.psf, mapping, average_position=(x, y), kernel=kernel)


def _warp_noise(template: Exposure, mapping: PixelMapping, kernel: str) -> FloatArray | None:
    """Return the kernel of the warped noise; of what was warped before, that of both, as if it were not turned."""
    mine = compute_noise_kernel(mapping, kernel)
    if mine is None or template.noise_kernel is None:
        return mine
    both: FloatArray = convolve_full(template.noise_kernel, mine)
    return both


_MOST_COLUMNS = 0.7
"""Share of a source's columns above which they are all taken, without a copy."""


def _source_window(source: MaskedImage, mapping: PixelMapping, radius: int) -> tuple[slice, slice] | None:
    """Return the rows and columns that the kernel can reach: the rest need not be read; None where there are none.

    Rows are cut out as they lie in memory; columns cost a copy, and are cut off where they are many.
    """
    x_nodes, y_nodes, _ = mapping.nodes
    reached = []
    for nodes, length in ((y_nodes, source.shape[0]), (x_nodes, source.shape[1])):
        known = nodes[np.isfinite(nodes)]
        if known.size == 0:
            return None
        start = max(0, int(np.floor(known.min())) - radius - 1)
        stop = min(length, int(np.ceil(known.max())) + radius + 2)
        if start >= stop:
            return None
        reached.append(slice(start, stop))
    rows, columns = reached
    width = source.shape[1]
    return rows, columns if columns.stop - columns.start < _MOST_COLUMNS * width else slice(0, width)


@lru_cache(maxsize=len(KERNEL_RADII))
def _padded_table(kernel: str) -> FloatArray:
    """Return the kernel's table in float32, six taps padded to eight: a vector register's worth."""
    table = kernel_table(kernel)
    width = 8 if table.shape[1] == 6 else table.shape[1]
    padded = np.zeros((table.shape[0], width), dtype=np.float32)
    padded[:, : table.shape[1]] = table
    padded.flags.writeable = False
    return padded
