"""Detect sources of both signs on an image of known noise: matched filter, threshold, footprints.

The significance of a pixel is the signal-to-noise ratio of a point source centred on it,
``sum(K d) / sqrt(sum(K^2 V))``, not the ratio of a smoothed image to a smoothed variance.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from alertprod._bands import map_bands
from alertprod._ranges import require_ranges
from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.detection import _loops
from alertprod.detection.blends import split_blends
from alertprod.detection.footprints import FootprintSet, build_footprints
from alertprod.detection.matched_filter import (
    compute_levels,
    compute_significance,
    compute_unsmoothed_significance,
    make_filter_kernel,
)
from alertprod.detection.neighbours import find_points, split_neighbours
from alertprod.detection.thresholds import ThresholdType, keep_islands, keep_peaks
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.model import PointSpreadFunction

_POLARITY_BITS = {
    "positive": _loops.POSITIVE,
    "negative": _loops.NEGATIVE,
    "both": _loops.POSITIVE | _loops.NEGATIVE,
}

_DAMAGED_PLANES = ("SAT", "SAT_TEMPLATE", "BAD", "NO_DATA")
"""What is detected on such pixels is the residual of what they lack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionConfig:
    """How sources are found."""

    threshold: float = 5.0
    """Level of the faintest peak, its significance by default: about six false peaks per 4096 x 4096 pixels of white
    noise at 4.4 pixels FWHM."""

    threshold_type: ThresholdType = "pixel_stdev"
    """What the threshold is a multiple of: the noise of each smoothed pixel (pixel_stdev), one clipped scatter of the
    smoothed pixels (stdev), the noise that the variance plane has on average (variance), or the image's unit (value).
    Only the first knows that some places are noisier than others."""

    include_threshold_multiplier: float = 1.0
    """One pixel of a footprint must reach this many thresholds."""

    polarity: Literal["both", "positive", "negative"] = "both"
    """Sign of the peaks that are looked for."""

    merge: bool = True
    """Join positive and negative footprints that touch: the two lobes of a dipole are one source."""

    n_sigma_to_grow: float = 2.4
    """Growth of a footprint in PSF sigmas, the reference's: it then holds the source to the noise."""

    min_pixels: int = 1
    """Fewest pixels beyond the threshold that make a footprint."""

    cull_peaks: bool = True
    """Where a footprint has several peaks of one sign, drop those that a local background lifts beyond the threshold:
    bumps on the shoulder of something extended. The strongest always stays."""

    local_background_bin: int = 64
    """Side of that background's bins in pixels, the reference's."""

    excluded_planes: tuple[str, ...] = ("NO_DATA", "BAD", "SAT", "CR", "EDGE")
    """Pixels of these planes get no weight in the filter, as have those that are not finite or have no variance."""

    min_coverage: float = 0.5
    """Share of the filter's power that must lie on usable pixels for a peak to count; 0.5 is a source on the edge."""

    def __post_init__(self) -> None:
        require_ranges(
            self,
            threshold=(1e-30, 1e30),  # in image units, which may be any
            include_threshold_multiplier=(1e-3, 1e6),
            n_sigma_to_grow=(0.0, 100.0),
            min_pixels=(1, 2**31),
            local_background_bin=(8, 2**31),
            min_coverage=(0.0, 1.0),
        )
        plane_bits(*self.excluded_planes)

    def compute_growth(self, sigma: float) -> int:
        """Return the pixels by which footprints grow on an image of that PSF sigma."""
        return int(self.n_sigma_to_grow * sigma + 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detections:
    """What was detected, three ways; `positive` and `negative` may overlap one another.

    Parameters
    ----------
    sources
        Footprints of both signs, joined where they touch if the configuration says so.
    positive, negative
        Footprints of one sign each, never joined.
    """

    sources: FootprintSet
    positive: FootprintSet
    negative: FootprintSet


def detect(
    masked_image: MaskedImage,
    psf: PointSpreadFunction | float,
    *,
    config: DetectionConfig | None = None,
    smooth: bool = True,
    set_planes: bool = False,
) -> FootprintSet:
    """Detect sources on a background-free image.

    Parameters
    ----------
    masked_image
        Image and its variance; noise is taken as uncorrelated between pixels. Masked and non-finite pixels have no
        weight: a source beside them keeps its significance in what is left.
    psf
        The point spread function (its image at `average_position` is the filter), or the sigma in pixels of a
        Gaussian.
    config
        `DetectionConfig`; the defaults are the reference task's.
    smooth
        Off for an image that is already a matched-filter score: significance is then ``image / sqrt(variance)``.
    set_planes
        Set DETECTED and DETECTED_NEGATIVE on the grown footprints, in place; the bits there before are cleared.

    Returns
    -------
    FootprintSet
        In its fixed total order.

    Notes
    -----
    The filter is the PSF cut to 99.9 % of its power and written as the fewest separable terms that keep 99.8 %
    of the signal-to-noise: a Gaussian filter of the best sigma loses 1 to 2 % on a Moffat profile. Its noise is
    propagated with the same (squared) kernel, so that pure noise has significance N(0, 1) whatever the kernel.
    """
    config = config or DetectionConfig()
    found = _find(masked_image, psf, config, smooth=smooth, set_planes=set_planes)
    return found.make_sources(merge=config.merge, grow=0)


def detect_signs(
    masked_image: MaskedImage,
    psf: PointSpreadFunction | float,
    *,
    config: DetectionConfig | None = None,
    smooth: bool = True,
    set_planes: bool = False,
    grow: int = 0,
) -> Detections:
    """Detect as `detect` does, and return the footprints of each sign beside the joined ones.

    Parameters
    ----------
    masked_image, psf, config, smooth, set_planes
        As for `detect`.
    grow
        Pixels by which footprints of each sign grow, in steps along rows and columns (a diamond), before those of
        both signs are joined: lobes of a wide dipole then touch. Without `merge` nothing grows.
    """
    config = config or DetectionConfig()
    if grow < 0:
        msg = f"grow is {grow}; it is 0 or more pixels"
        raise ValueError(msg)
    found = _find(masked_image, psf, config, smooth=smooth, set_planes=set_planes)
    return Detections(
        sources=found.make_sources(merge=config.merge, grow=grow),
        positive=found.make_footprints(found.painted, (_loops.POSITIVE,)),
        negative=found.make_footprints(found.painted, (_loops.NEGATIVE,)),
    )


def mark_detected(
    masked_image: MaskedImage,
    psf: PointSpreadFunction | float,
    *,
    config: DetectionConfig | None = None,
    smooth: bool = True,
) -> None:
    """Set the planes that `detect` sets with `set_planes`, and make no footprints.

    Parameters
    ----------
    masked_image, psf, config, smooth
        As for `detect`.
    """
    config = config or DetectionConfig()
    _set_detected_planes(masked_image, _find_pixels(masked_image, psf, config, smooth=smooth).painted)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Pixels beyond the threshold, and where they grew to: what footprints are made of."""

    significance: FloatArray
    sigma: float
    pixels: IntArray
    bits: IntArray
    parts: IntArray
    is_point: BoolArray
    is_damaged: BoolArray
    painted: IntArray
    peak_pixels: IntArray
    peak_bits: IntArray

    def make_sources(self, *, merge: bool, grow: int) -> FootprintSet:
        if not merge:
            return self.make_footprints(self.painted, (_loops.POSITIVE, _loops.NEGATIVE))
        painted = self.painted
        if grow:
            painted = painted.copy()
            pixels = np.flatnonzero(painted != 0)  # of truth values it is ten times quicker
            bits = painted.reshape(-1)[pixels]
            _loops.paint_shapes(pixels, bits, np.arange(grow, -1, -1), painted)
        return self.make_footprints(painted, (_loops.POSITIVE | _loops.NEGATIVE,))

    def make_footprints(self, painted: IntArray, groups: tuple[int, ...]) -> FootprintSet:
        """Return the connected areas of `painted`, of each group of signs apart, with the peaks on them."""
        all_pixels, all_owners, all_peaks, all_peak_owners = [], [], [], []
        first_number = 0
        shape = (self.significance.shape[0], self.significance.shape[1])
        for group in groups:
            grown, owner, count = _loops.label_pixels(painted, group)
            owner, count = split_neighbours(
                shape, grown, owner, count, pixels=self.pixels, bits=self.bits & group, parts=self.parts,
                is_point=self.is_point, is_damaged=self.is_damaged,
            )  # fmt: skip
            peaks = self.peak_pixels[(self.peak_bits & group) != 0]
            all_pixels.append(grown)
            all_owners.append(owner + first_number)
            all_peaks.append(peaks)
            all_peak_owners.append(owner[np.searchsorted(grown, peaks)] + first_number)
            first_number += count
        peaks = np.concatenate(all_peaks)
        return build_footprints(
            shape=shape,
            sigma=self.sigma,
            pixels=np.concatenate(all_pixels),
            owner=np.concatenate(all_owners),
            peak_pixels=peaks,
            peak_owner=np.concatenate(all_peak_owners),
            peak_significance=self.significance.reshape(-1)[peaks],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pixels:
    """What is beyond the threshold: the filter and its image, what was compared, flat indices and signs, where they grew."""

    sigma: float
    kernel: FloatArray
    significance: FloatArray
    levels: FloatArray
    pixels: IntArray
    bits: IntArray
    painted: IntArray


def _find_pixels(
    masked_image: MaskedImage, psf: PointSpreadFunction | float, config: DetectionConfig, *, smooth: bool
) -> _Pixels:
    """Filter, threshold and grow."""
    bad_bits = plane_bits(*config.excluded_planes)
    sigma = float(psf) if isinstance(psf, int | float) else psf.compute_sigma()
    if not (np.isfinite(sigma) and sigma > 0):
        msg = f"PSF sigma is {sigma}; a positive finite number of pixels is needed"
        raise ValueError(msg)
    kernel = make_filter_kernel(psf)
    if smooth:
        significance = compute_significance(masked_image, kernel, bad_bits=bad_bits)
    else:
        significance = compute_unsmoothed_significance(masked_image, bad_bits=bad_bits)
    levels = significance
    if config.threshold_type != "pixel_stdev":
        levels = compute_levels(masked_image, kernel, bad_bits=bad_bits, kind=config.threshold_type, smooth=smooth)
    pixels, bits = _threshold(levels, config)
    if config.min_pixels > 1 or config.include_threshold_multiplier > 1.0:
        kept = keep_islands(
            levels,
            pixels,
            bits,
            min_pixels=config.min_pixels,
            min_level=config.threshold * config.include_threshold_multiplier,
        )
        pixels, bits = pixels[kept], bits[kept]
    painted = np.zeros(masked_image.shape, dtype=np.uint8)
    _loops.paint_shapes(pixels, bits, _disk_half_widths(config.compute_growth(sigma)), painted)
    return _Pixels(
        sigma=sigma,
        kernel=kernel,
        significance=significance,
        levels=levels,
        pixels=pixels,
        bits=bits,
        painted=painted,
    )


def _find(
    masked_image: MaskedImage,
    psf: PointSpreadFunction | float,
    config: DetectionConfig,
    *,
    smooth: bool,
    set_planes: bool,
) -> _Found:
    """Threshold, grow and look for peaks."""
    found = _find_pixels(masked_image, psf, config, smooth=smooth)
    kernel, significance, levels = found.kernel, found.significance, found.levels
    pixels, bits, painted = found.pixels, found.bits, found.painted
    bad_bits = plane_bits(*config.excluded_planes)
    is_peak = _loops.find_peaks(levels, pixels, bits)
    if config.cull_peaks:
        is_peak = keep_peaks(
            levels,
            pixels,
            bits,
            is_peak,
            painted,
            threshold=config.threshold,
            bin_size=config.local_background_bin,
        )
    peak_pixels, peak_bits = pixels[is_peak], bits[is_peak]
    n_columns = masked_image.shape[1]
    coverage = _loops.compute_coverage(
        masked_image.image,
        masked_image.variance,
        masked_image.mask,
        bad_bits,
        kernel**2,
        peak_pixels % n_columns,
        peak_pixels // n_columns,
    )
    covered = coverage >= config.min_coverage
    is_peak[is_peak] = covered
    parts = split_blends(
        significance,
        masked_image,
        kernel**2,
        bad_bits=bad_bits,
        pixels=pixels,
        bits=bits,
        is_peak=is_peak,
        min_coverage=config.min_coverage,
    )
    is_damaged = (masked_image.mask[pixels // n_columns, pixels % n_columns] & plane_bits(*_DAMAGED_PLANES)) != 0
    is_point = find_points(significance, kernel, pixels=pixels, parts=parts, is_peak=is_peak, is_damaged=is_damaged)
    if set_planes:
        _set_detected_planes(masked_image, painted)
    return _Found(
        significance=significance,
        sigma=found.sigma,
        pixels=pixels,
        bits=bits,
        parts=parts,
        is_point=is_point,
        is_damaged=is_damaged,
        painted=painted,
        peak_pixels=peak_pixels[covered],
        peak_bits=peak_bits[covered],
    )


def _threshold(levels: FloatArray, config: DetectionConfig) -> tuple[IntArray, IntArray]:
    """Return flat indices of the pixels beyond the threshold, rising, and their polarity bits."""
    n_rows, n_columns = levels.shape
    polarity = _POLARITY_BITS[config.polarity]

    def find(first: int, last: int) -> tuple[IntArray, IntArray]:
        pixels, bits = _loops.threshold_bits(levels[first:last], np.float32(config.threshold), polarity)
        return pixels + first * n_columns, bits

    pixels, bits = zip(*map_bands(find, n_rows), strict=True)
    return np.concatenate(pixels), np.concatenate(bits)


def _disk_half_widths(radius: int) -> IntArray:
    """Return the half-width of a disk's rows, from its middle outwards."""
    return np.sqrt(float(radius * radius) - np.arange(radius + 1.0) ** 2).astype(np.int64)


def _set_detected_planes(masked_image: MaskedImage, painted: IntArray) -> None:
    mask, bits = masked_image.mask, (plane_bits("DETECTED"), plane_bits("DETECTED_NEGATIVE"))
    map_bands(lambda first, last: _loops.set_planes(mask, painted, *bits, first, last), mask.shape[0])
