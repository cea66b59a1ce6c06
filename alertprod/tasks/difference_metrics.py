"""Figures of a difference for its metadata: PSF sizes, limiting magnitudes, what is left of stars, pixel counts.

Every function returns a plain dictionary under the reference task's names. What cannot be computed is NaN.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alertprod._bands import map_bands
from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.errors import BadSubtraction
from alertprod.images import _loops
from alertprod.images.exposure import Exposure
from alertprod.images.mask import MASK_PLANES, plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement.catalog import Catalog
from alertprod.measurement.stamps import chunks, cut_stamps
from alertprod.psf.model import PointSpreadFunction
from alertprod.subtraction.basis import compute_trace_fwhm

LIMIT_SIGMA = 5.0
"""A limiting magnitude is that of a point source of this significance."""

FOOTPRINT_RADIUS_FWHM = 2.5
"""Radius of a star's footprint over the PSF's FWHM: where a star of S/N 100, detected at 5 sigma and grown by 2.4 sigma
of the PSF as detection does, ends."""

SKY_FOOTPRINT_RADIUS = 8.0
"""Radius of a sky source's footprint, pixels."""

_MEAN_OVER_MEDIAN = 1.1829
"""Mean over median of the absolute value of Gaussian noise: sqrt(2/pi) / 0.67449."""

_UNUSABLE_PLANES = ("NO_DATA", "BAD", "SAT", "EDGE", "CR")
"""Pixels of these planes say nothing about how well a star was subtracted."""

_ENOUGH_PIXELS = 250_000
"""A median over so many pixels is known to two parts in a thousand; one over sixteen million takes a quarter second."""

_ROWS_AT_ONCE = 1024
"""Rows of a mask that a thread counts at once, each time into a table of all values that there may be."""


def compute_psf_sizes(science: Exposure, template: Exposure) -> dict[str, float]:
    """Return FWHM in pixels as sciencePsfSize and templatePsfSize, from the trace radius at the average position."""
    return {
        f"{name}PsfSize": compute_trace_fwhm(exposure.psf) if exposure.psf is not None else float("nan")
        for name, exposure in (("science", science), ("template", template))
    }


def compute_limiting_magnitudes(
    science: Exposure, template: Exposure, *, sky_planes: Sequence[str]
) -> dict[str, float]:
    """Return AB magnitudes of point sources of 5 sigma on the sky.

    Parameters
    ----------
    sky_planes
        Pixels of these planes are not sky.

    Returns
    -------
    dict
        scienceLimitingMagnitude, templateLimitingMagnitude, and diffimLimitingMagnitude: what a difference of the two
        can reach, from the sum of the two flux variances; the science image's where the template has none.

    Notes
    -----
    The sum of the variances is exact where both PSFs have one shape, and a little bright otherwise. The difference's
    own limit is `compute_limiting_magnitude` of it.
    """
    limits = {
        name: compute_limiting_magnitude(exposure, sky_planes=sky_planes)
        for name, exposure in (("science", science), ("template", template))
    }
    fluxes = [10.0 ** (-0.4 * limit) for limit in limits.values() if np.isfinite(limit)]
    both = float(-2.5 * np.log10(np.hypot.reduce(fluxes))) if np.isfinite(limits["science"]) else float("nan")
    return {**{f"{name}LimitingMagnitude": limit for name, limit in limits.items()}, "diffimLimitingMagnitude": both}


def compute_limiting_magnitude(exposure: Exposure, *, sky_planes: Sequence[str]) -> float:
    """Return the AB magnitude of a point source of 5 sigma on the sky; NaN without sky or a PSF that can be drawn.

    Parameters
    ----------
    sky_planes
        Pixels of these planes are not sky.

    Notes
    -----
    The noise of the optimal flux of a point source is ``sqrt(v / sum(P^2))``, with the median variance v of the sky
    pixels and the PSF P at its average position.
    """
    _, variance = _sample_sky(exposure, sky_planes)
    if exposure.psf is None or not len(variance):
        return float("nan")
    sigma = np.sqrt(float(np.median(variance)) / _compute_psf_power(exposure.psf))
    return float(exposure.photo_calib.zero_point_mag - 2.5 * np.log10(LIMIT_SIGMA * sigma))


def compute_footprint_ratios(
    difference: Exposure,
    science: Exposure,
    stars: Catalog,
    *,
    prefix: str,
    sky_planes: Sequence[str],
    sky_x: FloatArray | None = None,
    sky_y: FloatArray | None = None,
) -> dict[str, float]:
    """Return how much of the stars' light is left in a difference.

    Parameters
    ----------
    difference, science
        Exposures of one pixel grid; the science exposure's PSF sets the stars' radius.
    stars
        With columns x and y: those the kernel was fitted on.
    prefix
        Beginning of the names: "difference" before, "residual" after detection.
    sky_planes
        Pixels of these planes are not sky.
    sky_x, sky_y
        Positions of sky sources on the difference; without them the sky comes from all its sky pixels.

    Returns
    -------
    dict
        <prefix>FootprintRatioMean, ...Stdev and ...Median over the stars of ``|mean|D| - sky| / mean|S|``, D the difference and
        S the science image, each mean over the usable pixels of the star's footprint; and
        <prefix>FootprintSkyRatioMean and ...Stdev, of the sky sources with no sky taken off. NaN where there is none.

    Notes
    -----
    `sky` is the mean of ``|D|`` that noise alone has: over the sky sources, or else from the median over the sky
    pixels, brought from a median to a mean as for Gaussian noise (a median as it stands would leave an eighth of the
    noise in every star). Stars of which half of the footprint is not usable do not count.
    """
    sky_ratio, sky = np.zeros(0), _compute_sky_level(difference, sky_planes)
    if sky_x is not None and sky_y is not None:
        on_difference, on_science = _measure_discs(difference, science, x=sky_x, y=sky_y, radius=SKY_FOOTPRINT_RADIUS)
        if len(on_difference):
            sky_ratio, sky = on_difference / on_science, float(on_difference.mean())
    ratio = np.zeros(0)
    radius = FOOTPRINT_RADIUS_FWHM * compute_trace_fwhm(science.psf) if science.psf is not None else float("nan")
    if np.isfinite(radius):
        on_difference, on_science = _measure_discs(difference, science, x=stars["x"], y=stars["y"], radius=radius)
        ratio = np.abs(on_difference - sky) / on_science
    return {
        f"{prefix}FootprintRatioMean": _statistic(np.mean, ratio),
        f"{prefix}FootprintRatioStdev": _statistic(np.std, ratio),
        f"{prefix}FootprintRatioMedian": _statistic(np.median, ratio),
        f"{prefix}FootprintSkyRatioMean": _statistic(np.mean, sky_ratio),
        f"{prefix}FootprintSkyRatioStdev": _statistic(np.std, sky_ratio),
    }


def check_footprint_ratio(ratios: Mapping[str, float], *, prefix: str, max_median: float | None) -> None:
    """Refuse a difference in which too much of the stars is left.

    Parameters
    ----------
    ratios
        From `compute_footprint_ratios`, of the same `prefix`.
    max_median
        Limit; None for none.

    Raises
    ------
    BadSubtraction
        Raised if the median is above the limit. NaN, of a difference without stars to judge by, is not.

    Notes
    -----
    The reference holds mean and standard deviation against limits of 0.2 and 0.4. One bright transient beside a faint
    star exceeds both where stars are few, and is no bad subtraction.
    """
    name = f"{prefix}FootprintRatioMedian"
    if max_median is not None and ratios[name] > max_median:
        raise BadSubtraction(name, ratios[name], max_median)


def count_pixels(mask: IntArray, *, bad_planes: Sequence[str], planes: Sequence[str] = ()) -> dict[str, float]:
    """Count the pixels of a difference.

    Parameters
    ----------
    mask
        Of the difference after detection, shape ``(ny, nx)``.
    bad_planes
        A pixel of any of these is bad.
    planes
        Planes to give the share of.

    Returns
    -------
    dict
        nGoodPixels, nBadPixels, nPixelsDetectedPositive, nPixelsDetectedNegative, nBadPixelsDetectedPositive,
        nBadPixelsDetectedNegative; and <plane>_mask_fraction, the plane in lower case, of all pixels.

    Raises
    ------
    KeyError
        Raised if there is no plane of a name.
    """
    values, counts = _count_values(mask)

    def count(*names: str, within: BoolArray | bool = True) -> int:
        return int(counts[((values & plane_bits(*names)) != 0) & within].sum())

    bad = (values & plane_bits(*bad_planes)) != 0
    n_bad = count(*bad_planes)
    return {
        "nGoodPixels": mask.size - n_bad,
        "nBadPixels": n_bad,
        "nPixelsDetectedPositive": count("DETECTED"),
        "nPixelsDetectedNegative": count("DETECTED_NEGATIVE"),
        "nBadPixelsDetectedPositive": count("DETECTED", within=bad),
        "nBadPixelsDetectedNegative": count("DETECTED_NEGATIVE", within=bad),
        **{f"{plane.lower()}_mask_fraction": count(plane) / mask.size for plane in planes},
    }


def _compute_psf_power(psf: PointSpreadFunction) -> float:
    """Return the sum of the squared PSF at its average position; NaN where it cannot be drawn."""
    x, y = psf.average_position
    try:
        return float((psf.compute_kernel_image(x=x, y=y) ** 2).sum())
    except ValueError:
        return float("nan")


def _compute_sky_level(difference: Exposure, sky_planes: Sequence[str]) -> float:
    """Return the mean of |D| that the noise of the sky pixels has; NaN where there are none."""
    image, _ = _sample_sky(difference, sky_planes)
    return _MEAN_OVER_MEDIAN * float(np.median(np.abs(image))) if len(image) else float("nan")


def _sample_sky(exposure: Exposure, sky_planes: Sequence[str]) -> tuple[FloatArray, FloatArray]:
    """Return values and variances of the sky pixels, of a part of the rows where there are more than enough."""
    step = max(1, exposure.image.size // _ENOUGH_PIXELS)
    rows = MaskedImage(exposure.image[::step], exposure.mask[::step], exposure.variance[::step])
    sky = rows.usable(plane_bits(*sky_planes))
    return rows.image[sky], rows.variance[sky]


def _measure_discs(
    difference: Exposure, science: Exposure, *, x: FloatArray, y: FloatArray, radius: float
) -> tuple[FloatArray, FloatArray]:
    """Return the means of |difference| and |science| over discs; those of which half is not usable are left out."""
    half = int(np.ceil(radius))
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    disc = u**2 + v**2 <= radius**2
    bits = plane_bits(*_UNUSABLE_PLANES)
    means = []
    for part in chunks(len(x)):
        stamps = [
            cut_stamps(exposure.masked_image, x=x[part], y=y[part], size=2 * half + 1, bad_planes=bits)
            for exposure in (difference, science)
        ]
        inside = disc & stamps[0].usable & stamps[1].usable
        n = inside.sum(axis=(1, 2))
        sums = [np.where(inside, np.abs(stamp.values), 0.0).sum(axis=(1, 2)) for stamp in stamps]
        # Half of it, and not all exactly zero, which no star is.
        enough = (2 * n >= disc.sum()) & (sums[1] > 0)
        means.append(np.stack([total[enough] / n[enough] for total in sums]))
    on_difference, on_science = np.concatenate(means, axis=1) if means else np.zeros((2, 0))
    return on_difference, on_science


def _count_values(mask: IntArray) -> tuple[IntArray, IntArray]:
    """Return the values that occur in a mask, and how often: all counts of planes follow from these few numbers."""
    n_values = 1 << (max(MASK_PLANES.values()) + 1)

    def count(first: int, last: int) -> IntArray:
        counts = np.zeros(n_values, dtype=np.int64)
        # Bits that are no plane's mean nothing here, whoever has set them.
        _loops.count_flags(mask[first:last], n_values - 1, counts)
        return counts

    totals = sum(map_bands(count, mask.shape[0], height=_ROWS_AT_ONCE), start=np.zeros(n_values, dtype=np.int64))
    values = np.flatnonzero(totals)
    return values, totals[values]


def _statistic(function: Callable[[FloatArray], np.floating[Any]], values: FloatArray) -> float:
    return float(function(values)) if len(values) else float("nan")
