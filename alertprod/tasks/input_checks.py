"""Checks of the two exposures before anything is computed from them: what cannot be differenced is named, with numbers.

A few bad pixels are no error; a plane without a single pixel that counts is. How much of a template is missing is for
`ImageDifferenceTask.checkTemplateIsSufficient` to judge, and is not judged here.
"""

import warnings
from collections.abc import Callable

import numpy as np

from alertprod._bands import map_threads, row_bands
from alertprod._typing import BoolArray, FloatArray
from alertprod.errors import ExposureMismatch, TaskError, UnusableExposure
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.model import PointSpreadFunction, adaptive_moments

GRID_TOLERANCE_PIXELS = 0.05
"""Two WCS that agree to this describe one grid: far above the rounding of cards and the inversion of a distortion, far
below what a matching kernel of first order takes out anyway."""

PLAUSIBLE_PULL = 1e8
"""No detector holds a pixel of so many standard deviations of the sky. One such, be it a slip of a pipeline upstream, would
lift the rounding of float32 above the noise wherever a Fourier transform spreads it: about its own 1e-9 of all pixels."""

PLAUSIBLE_VARIANCE_RATIO = 1e-8
"""A variance so far below the median is none: its pixel would weigh more than all others together, and every ripple on it
would be a source."""

PLAUSIBLE_SIGMA = (1e-12, 1e9)
"""Noise in image units within which squares and sums of pixels and variances stay in float32: from a thousandth of a
nanojansky in Jy up."""

PLAUSIBLE_SIGMA_NJY = (1e-12, 1e12)
"""Noise of a pixel in nJy, of any camera: all-sky ones come near the upper end. Beyond, fluxes leave float32."""

_SAMPLED_ROWS = 64
"""One row in so many is looked at first: in all but broken images that is enough, and costs nothing."""


def check_science(exposure: Exposure) -> None:
    """Refuse a science exposure that nothing can be measured on.

    Raises
    ------
    TaskError
        Raised if it has no PSF.
    UnusableExposure
        Raised if its PSF cannot be drawn, has no positive sum or no width, or if no pixel is finite, has data and a
        positive variance.
    """
    if exposure.psf is None:
        raise TaskError("Exposure has no psf")
    _check_psf("science", exposure.psf, needs_width=True)
    if not _any_pixel(exposure.masked_image, _has_data):
        raise UnusableExposure("science", "mask", f"all {exposure.mask.size} pixels are NO_DATA")
    _check_planes("science", exposure.masked_image)


def check_template(template: Exposure) -> None:
    """Refuse a template that cannot be subtracted.

    Raises
    ------
    TaskError
        Raised if it has no PSF.
    UnusableExposure
        Raised if its PSF cannot be drawn or has no positive sum, or if of the pixels that claim to have data none is
        finite with a positive variance.

    Notes
    -----
    A PSF without a measurable width is allowed: the match then takes its basis from the configuration. So is a
    template without any data: that is a lack of coverage, not a defect.
    """
    if template.psf is None:
        raise TaskError("the template exposure has no psf")
    if not _any_pixel(template.masked_image, _has_data):
        return
    _check_psf("template", template.psf, needs_width=False)
    _check_planes("template", template.masked_image)


def check_difference(difference: Exposure, *, which: str = "difference") -> None:
    """Refuse a difference, or the score image made of it, that nothing can be detected on.

    Parameters
    ----------
    which
        "difference" or "score", for messages.

    Raises
    ------
    UnusableExposure
        Raised if its PSF cannot be drawn, has no positive sum or no width: then what it was made from does not go
        together.
    """
    if difference.psf is None:
        raise TaskError(f"the {which} has no psf")
    _check_psf(which, difference.psf, needs_width=True)


def check_pair(science: Exposure, template: Exposure, *, same_grid: bool = True) -> None:
    """Refuse two exposures that do not belong together.

    Parameters
    ----------
    same_grid
        Shapes and WCS must agree too; off, where the template is going to be warped.

    Raises
    ------
    ExposureMismatch
        Raised if the bands differ, where both have one; with `same_grid`, if the shapes differ, or the WCS put a
        pixel further apart than `GRID_TOLERANCE_PIXELS`, where both have one.
    """
    bands = science.info.band, template.info.band
    if None not in bands and bands[0] != bands[1]:
        raise ExposureMismatch("band", *bands)
    if not same_grid:
        return
    if science.shape != template.shape:
        raise ExposureMismatch("shape", science.shape, template.shape)
    offset = compute_grid_offset(science, template)
    if not offset <= GRID_TOLERANCE_PIXELS:
        raise ExposureMismatch("wcs", "its grid", f"pixels up to {offset:.3g} pixels off")


def exclude_implausible(which: str, exposure: Exposure) -> tuple[Exposure, int]:
    """Treat pixels that no detector can have measured as pixels without data.

    Parameters
    ----------
    which
        "science", "template" or "difference", for messages.
    exposure
        It has passed `check_science` or `check_template`. Not changed.

    Returns
    -------
    tuple
        The exposure, itself where all pixels are plausible; and the number of those that are not: above
        `PLAUSIBLE_PULL` times the noise, or of a variance below `PLAUSIBLE_VARIANCE_RATIO` of the median.

    Raises
    ------
    UnusableExposure
        Raised if the median noise is not within `PLAUSIBLE_SIGMA`, or not within `PLAUSIBLE_SIGMA_NJY` in nJy, or if no
        usable pixel is plausible.
    """
    planes = exposure.masked_image
    variances = _list_variances(planes)
    if not variances.size:
        return exposure, 0
    typical = float(np.median(variances))
    least, most = PLAUSIBLE_SIGMA
    if not least**2 <= typical <= most**2:
        raise UnusableExposure(
            which, "variance", f"its median is {typical:.3g}, not within {least**2:g} to {most**2:g}"
        )
    sigma_njy = typical**0.5 * exposure.photo_calib.njy_per_count
    if not PLAUSIBLE_SIGMA_NJY[0] <= sigma_njy <= PLAUSIBLE_SIGMA_NJY[1]:
        least, most = PLAUSIBLE_SIGMA_NJY
        problem = f"a pixel's noise is {sigma_njy:.3g} nJy, not within {least:g} to {most:g}"
        raise UnusableExposure(which, "photo_calib", problem)
    most_pixel, least_variance = (
        np.float32(PLAUSIBLE_PULL * typical**0.5),
        np.float32(PLAUSIBLE_VARIANCE_RATIO * typical),
    )

    def has_implausible(rows: slice) -> bool:
        return bool((np.abs(planes.image[rows]) > most_pixel).any() or (planes.variance[rows] < least_variance).any())

    if not any(map_threads(has_implausible, row_bands(planes.shape[0]))):
        return exposure, 0
    usable = planes.usable(plane_bits("NO_DATA"))
    beyond = usable & ((np.abs(planes.image) > most_pixel) | (planes.variance < least_variance))
    n_beyond = int(np.count_nonzero(beyond))
    if n_beyond == 0:
        return exposure, 0
    if n_beyond == np.count_nonzero(usable):
        problem = f"all {n_beyond} usable pixels are above {PLAUSIBLE_PULL:g} standard deviations of {typical**0.5:.3g}"
        raise UnusableExposure(which, "image", problem)
    exposure = exposure.copy()
    exposure.image[beyond] = np.nan
    exposure.variance[beyond] = np.inf
    exposure.mask[beyond] |= np.int32(plane_bits("NO_DATA"))
    return exposure, n_beyond


def compute_grid_offset(science: Exposure, template: Exposure) -> float:
    """Return how far apart the two WCS put a pixel at most, in pixels of the template.

    Returns
    -------
    float
        0 where either has no WCS: pixels are then taken as they are. Infinite where a position has no counterpart.
    """
    if science.wcs is None or template.wcs is None or science.wcs is template.wcs:
        return 0.0
    ny, nx = science.shape
    x, y = (axis.ravel() for axis in np.meshgrid(np.linspace(0.0, nx - 1.0, 3), np.linspace(0.0, ny - 1.0, 3)))
    ra, dec = science.wcs.pixel_to_sky(x=x, y=y)
    template_x, template_y = template.wcs.sky_to_pixel(ra_deg=ra, dec_deg=dec)
    distance = np.hypot(template_x - x, template_y - y)
    return float(distance.max()) if np.isfinite(distance).all() else float("inf")


def _check_psf(which: str, psf: PointSpreadFunction, *, needs_width: bool) -> None:
    x, y = psf.average_position
    if not np.isfinite([x, y]).all():
        raise UnusableExposure(which, "psf", f"its average position is x {x}, y {y}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a sum of nothing, divided by: found below
        try:
            image: FloatArray = psf.compute_kernel_image(x=x, y=y)
        except ValueError as error:
            raise UnusableExposure(which, "psf", f"cannot be drawn at x {x:.1f}, y {y:.1f}: {error}") from error
        if image.shape != (psf.size, psf.size) or psf.size % 2 == 0:
            raise UnusableExposure(
                which, "psf", f"its size is {psf.size}, its image {image.shape}; an odd square is needed"
            )
        n_bad = int(np.count_nonzero(~np.isfinite(image)))
        if n_bad:
            raise UnusableExposure(which, "psf", f"{n_bad} of {image.size} pixels are not finite")
        if not image.sum() > 0:
            raise UnusableExposure(which, "psf", f"its sum is {image.sum():.3g}")
        if not needs_width:
            return
        try:
            ixx, iyy, ixy = adaptive_moments(image)
        except ValueError as error:
            raise UnusableExposure(which, "psf", f"it has no width: {error}") from error
    if not ixx * iyy - ixy**2 > 0:
        raise UnusableExposure(which, "psf", f"it has no width: Ixx {ixx:.3g}, Iyy {iyy:.3g}, Ixy {ixy:.3g}")


def _check_planes(which: str, planes: MaskedImage) -> None:
    """Refuse planes without a pixel that counts, and say which plane is to blame."""
    if _any_pixel(planes, lambda part: part.usable(plane_bits("NO_DATA"))):
        return
    data = _has_data(planes)
    n = int(np.count_nonzero(data))
    image, variance = planes.image[data], planes.variance[data]
    n_finite = int(np.count_nonzero(np.isfinite(image)))
    if n_finite == 0:
        raise UnusableExposure(which, "image", f"none of the {n} pixels with data is finite")
    n_weighted = int(np.count_nonzero(np.isfinite(variance) & (variance > 0)))
    if n_weighted == 0:
        kinds = {"zero": variance == 0, "negative": variance < 0, "not finite": ~np.isfinite(variance)}
        counts = ", ".join(f"{np.count_nonzero(kind)} {name}" for name, kind in kinds.items())
        raise UnusableExposure(which, "variance", f"none of the {n} pixels with data has a positive one: {counts}")
    raise UnusableExposure(
        which,
        "planes",
        f"of the {n} pixels with data {n_finite} are finite and {n_weighted} have a positive variance, but never both",
    )


def _list_variances(planes: MaskedImage) -> FloatArray:
    """Return the variances of the usable pixels of a sample of the rows, of all of them where the sample has none."""
    for step in (_SAMPLED_ROWS, 1):
        rows = MaskedImage(planes.image[::step], planes.mask[::step], planes.variance[::step])
        variances = rows.variance[rows.usable(plane_bits("NO_DATA"))]
        if variances.size:
            break
    return variances


def _has_data(planes: MaskedImage) -> BoolArray:
    return (planes.mask & plane_bits("NO_DATA")) == 0


def _any_pixel(planes: MaskedImage, is_good: Callable[[MaskedImage], BoolArray]) -> bool:
    """Say whether any pixel is good; a sample of the rows is asked first."""
    rows = slice(None, None, _SAMPLED_ROWS)
    sample = MaskedImage(planes.image[rows], planes.mask[rows], planes.variance[rows])
    return bool(is_good(sample).any() or is_good(planes).any())
