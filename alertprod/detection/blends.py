"""Blends: sources of one sign so close that their pixels beyond the threshold touch, told apart by the dip between them.

A source that is one must stay one: the noise in its wings, a trail, a star that a bad column crosses.
"""

import numpy as np

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.detection import _blend_loops, _loops
from alertprod.images.masked_image import MaskedImage

MIN_DIP = 5.0 * float(np.sqrt(2.0))
"""Significance by which the saddle lies below the lower peak: five standard deviations of a difference of two pixels."""

DIP_SHARE = 0.3
"""The same as a share of the lower peak: what the brightness of a trail may vary. Two equal points reach it 4.1 PSF
sigmas apart, where each has 1.5 % of the other's light in its own flux."""

PEAK_SHARE = 0.05
"""Of the higher peak, what the lower one has at least: a PSF is not known better in its wings, and a spike or a ring that
the model lacks is no source."""


def split_blends(
    significance: FloatArray,
    masked_image: MaskedImage,
    weight: FloatArray,
    *,
    bad_bits: int,
    pixels: IntArray,
    bits: IntArray,
    is_peak: BoolArray,
    min_coverage: float,
) -> IntArray:
    """Give each source among touching pixels a number.

    Parameters
    ----------
    significance
        The matched-filter significance, shape ``(ny, nx)``.
    masked_image, weight, bad_bits
        What it was made of: the image, the filter's squared kernel, and the bits of pixels without weight.
    pixels, bits, is_peak
        Flat indices, rising, of the pixels beyond the threshold, their signs, and which of them are peaks that count.
    min_coverage
        Where less of the filter's power than this lies on usable pixels, there is no telling a dip.

    Returns
    -------
    IntArray
        Of each pixel the number of its part, from 0: eight-connected pixels of one sign, or what a dip of more than
        `MIN_DIP`, `DIP_SHARE` and `PEAK_SHARE` sets apart of them.

    Notes
    -----
    A watershed from the peaks down, in which a lower peak that no such dip sets apart joins the higher one. Levels are
    what they would be if all pixels were usable, so that a masked column is no dip.
    """
    n_columns = significance.shape[1]
    island, count = _loops.label_islands(pixels, bits, n_columns)
    crowded = np.flatnonzero((np.bincount(island[is_peak], minlength=count) > 1)[island])
    if not len(crowded):
        return island
    flat = pixels[crowded]
    coverage = _loops.compute_coverage(
        masked_image.image, masked_image.variance, masked_image.mask, bad_bits, weight, flat % n_columns, flat // n_columns
    )  # fmt: skip
    level = np.abs(significance.reshape(-1)[flat]) / np.sqrt(np.maximum(coverage, min_coverage))
    level[coverage < min_coverage] = level.max()
    summits = _blend_loops.flood(
        level, flat, island[crowded], is_peak[crowded], n_columns, MIN_DIP, DIP_SHARE, PEAK_SHARE
    )
    # A part whose peaks do not count would be lost: its island stays whole then.
    empty = np.bincount(summits[is_peak[crowded]], minlength=len(flat)) == 0
    is_whole = np.zeros(count, dtype=bool)
    is_whole[island[crowded][empty[summits]]] = True
    parts = island.copy()
    parts[crowded] = np.where(is_whole[island[crowded]], island[crowded], count + summits)
    return np.unique(parts, return_inverse=True)[1]
