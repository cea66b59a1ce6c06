"""Square stamps about positions: of an image, and of its PSF drawn on the same pixels."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement import _loops
from alertprod.psf.model import PointSpreadFunction

CHUNK = 64
"""Sources that a thread measures at once: stamps of 41 pixels then take 5 MB, however many sources there are."""

_OUTSIDE = -(1 << 30)
"""Whole pixel that stands for a position that is not finite: off any image."""


@dataclass(frozen=True, slots=True)
class Stamps:
    """Pixels about n positions, shape ``(n, size, size)``.

    Parameters
    ----------
    column, row
        The whole pixel in the middle of each stamp.
    values, variances
        float64; 0 and 1 where not usable.
    usable
        On the image, finite, with variance, and in none of the bad planes.
    """

    column: IntArray
    row: IntArray
    values: FloatArray
    variances: FloatArray
    usable: BoolArray


def nearest_pixels(x: FloatArray, y: FloatArray) -> tuple[IntArray, IntArray]:
    """Return the (column, row) of the pixels that hold the points; far off the image for points not finite."""
    finite = np.isfinite(x) & np.isfinite(y)
    column = np.where(finite, np.floor(np.clip(np.where(finite, x, 0.0), -1e9, 1e9) + 0.5), _OUTSIDE)
    row = np.where(finite, np.floor(np.clip(np.where(finite, y, 0.0), -1e9, 1e9) + 0.5), _OUTSIDE)
    return column.astype(np.int64), row.astype(np.int64)


def cut_stamps(masked_image: MaskedImage, *, x: FloatArray, y: FloatArray, size: int, bad_planes: int) -> Stamps:
    """Cut stamps of odd side `size` about the pixels that hold the points."""
    column, row = nearest_pixels(x, y)
    shape = (len(column), size, size)
    values, variances, usable = np.empty(shape), np.empty(shape), np.empty(shape, dtype=np.bool_)
    _loops.cut_stamps(
        masked_image.image,
        masked_image.variance,
        masked_image.mask,
        bad_planes,
        column,
        row,
        size,
        values,
        variances,
        usable,
    )
    return Stamps(column, row, values, variances, usable)


def draw_psfs(psf: PointSpreadFunction, *, x: FloatArray, y: FloatArray) -> FloatArray:
    """Draw stars of unit flux at the points, on the pixels of their stamps: ``(n, psf.size, psf.size)``.

    Points that are not finite, and points where the PSF has no image, or one that is not finite, get zeros: a fit then
    has no flux to find, and is flagged.
    """
    images = psf.compute_stellar_images(x=x, y=y)
    images[~np.isfinite(images).all(axis=(1, 2))] = 0.0
    return images


def chunks(n: int) -> Iterator[slice]:
    """Split n sources into slices of at most `CHUNK`."""
    for start in range(0, n, CHUNK):
        yield slice(start, min(start + CHUNK, n))
