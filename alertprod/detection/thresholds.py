"""What a threshold is compared with: the significance of each pixel, or a level in other units; and which peaks stay."""

from typing import Literal

import numpy as np

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.detection import _loops
from alertprod.detection.background import estimate_background
from alertprod.images.masked_image import MaskedImage

ThresholdType = Literal["pixel_stdev", "stdev", "value", "variance"]

_CLIP_SIGMA = 3.0
_CLIP_ITERATIONS = 10
_N_SAMPLE = 1_000_000
"""Pixels that a scatter is taken from: it is then good to a thousandth."""


def scale_levels(
    smoothed: FloatArray, masked_image: MaskedImage, usable: BoolArray, *, kind: ThresholdType, noise_factor: float
) -> FloatArray:
    """Return a smoothed image in the units of a threshold other than ``pixel_stdev``.

    Parameters
    ----------
    smoothed
        Image smoothed with a kernel of unit sum, image units, shape ``(ny, nx)``.
    masked_image
        What it was made of.
    usable
        Pixels that count for a scatter.
    kind
        ``value``: image units. ``stdev``: the clipped scatter of the smoothed pixels. ``variance``: the noise that the
        variance plane predicts for them, its clipped mean taken for the whole image.
    noise_factor
        Noise of a smoothed pixel over that of a pixel: the root of the kernel's squared sum.

    Raises
    ------
    ValueError
        Raised if no pixel is usable, or all are equal, and a scatter is asked for.
    """
    if kind == "value":
        return smoothed
    source = smoothed if kind == "stdev" else masked_image.variance
    values = source[usable].astype(float)
    mean, sigma = _clipped_statistics(values[:: max(1, len(values) // _N_SAMPLE)])
    unit = sigma if kind == "stdev" else noise_factor * float(np.sqrt(mean))
    if not unit > 0:
        msg = f"a threshold in units of {kind} needs usable pixels that differ; the unit is {unit}"
        raise ValueError(msg)
    return smoothed / np.float32(unit)


def _clipped_statistics(values: FloatArray) -> tuple[float, float]:
    """Return mean and standard deviation within three of them of the mean; NaN without values."""
    for _ in range(_CLIP_ITERATIONS):
        if not len(values):
            break
        mean, sigma = float(values.mean()), float(values.std())
        inside = np.abs(values - mean) <= _CLIP_SIGMA * sigma
        if inside.all():
            return mean, sigma
        values = values[inside]
    return (float(values.mean()), float(values.std())) if len(values) else (float("nan"), float("nan"))


def keep_islands(
    levels: FloatArray,
    pixels: IntArray,
    bits: IntArray,
    *,
    min_pixels: int,
    min_level: float,
) -> BoolArray:
    """Say of each detected pixel whether its island, of its own sign, is large and high enough.

    Parameters
    ----------
    levels
        The image that was thresholded.
    pixels, bits
        Flat indices, rising, and polarity bits of the pixels beyond the threshold.
    min_pixels, min_level
        Fewest pixels of an island, and the level that one of them must reach.
    """
    island, count = _loops.label_islands(pixels, bits, levels.shape[1])
    highest = np.zeros(count)
    np.maximum.at(highest, island, np.abs(levels.reshape(-1)[pixels]))
    good = (np.bincount(island, minlength=count) >= min_pixels) & (highest >= min_level)
    return good[island]


def keep_peaks(
    levels: FloatArray,
    pixels: IntArray,
    bits: IntArray,
    is_peak: BoolArray,
    detected: BoolArray | IntArray,
    *,
    threshold: float,
    bin_size: int,
) -> BoolArray:
    """Say which peaks of islands with several are still beyond the threshold once the local background is off.

    Parameters
    ----------
    levels
        The image that was thresholded; 0 where nothing is known.
    pixels, bits, is_peak
        Flat indices of the pixels beyond the threshold, their polarity bits, and which are peaks.
    detected
        Not zero on pixels that do not count for the background: the grown footprints.
    threshold
        What the image was thresholded at.
    bin_size
        Of the background, pixels.

    Returns
    -------
    BoolArray
        Of each pixel whether it is a peak that stays. The strongest of an island always does, so that no detection is
        lost: culled are bumps on the shoulder of something extended.
    """
    island, count = _loops.label_islands(pixels, bits, levels.shape[1])
    n_peaks = np.bincount(island[is_peak], minlength=count)
    candidates = np.flatnonzero(is_peak & (n_peaks[island] > 1))
    if not len(candidates):
        return is_peak
    flat = pixels[candidates]
    rows, columns = flat // levels.shape[1], flat % levels.shape[1]
    strength = np.abs(levels[rows, columns])
    above = strength - np.where(bits[candidates] == _loops.POSITIVE, 1.0, -1.0) * _local_background(
        levels, detected, rows, columns, bin_size
    )
    order = np.lexsort((flat, -strength, island[candidates]))
    _, first = np.unique(island[candidates][order], return_index=True)
    stays = above >= threshold
    stays[order[first]] = True
    kept = is_peak.copy()
    kept[candidates[~stays]] = False
    return kept


def _local_background(
    levels: FloatArray, detected: BoolArray | IntArray, rows: IntArray, columns: IntArray, bin_size: int
) -> FloatArray:
    """Return the background of `levels` at some pixels; only the bins about them are looked at."""
    sky = np.zeros(levels.shape, dtype=bool)
    found = False
    for row, column in set(zip((rows // bin_size).tolist(), (columns // bin_size).tolist(), strict=True)):
        y, x = max(0, (row - 1) * bin_size), max(0, (column - 1) * bin_size)
        near = (slice(y, (row + 2) * bin_size), slice(x, (column + 2) * bin_size))
        sky[near] = (detected[near] == 0) & (levels[near] != 0)
        found |= bool(sky[near].any())
    if not found:
        return np.zeros(len(rows))
    return estimate_background(levels, sky, bin_size=bin_size).compute_at(x=columns, y=rows)
