"""Checks of the inputs: what is broken is named with its numbers, what is merely imperfect passes."""

import re
from dataclasses import replace

import numpy as np
import pytest

from alertprod.errors import ExposureMismatch, TaskError, UnusableExposure
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import PhotoCalib
from alertprod.psf.analytic import GaussianPsf
from alertprod.psf.model import PointSpreadFunction
from alertprod.tasks.image_difference import ImageDifferenceTask
from alertprod.tasks.input_checks import (
    GRID_TOLERANCE_PIXELS,
    PLAUSIBLE_PULL,
    PLAUSIBLE_SIGMA,
    PLAUSIBLE_VARIANCE_RATIO,
    check_difference,
    check_pair,
    check_science,
    check_template,
    compute_grid_offset,
    exclude_implausible,
)

SHAPE = (90, 130)
"""More than one sampled row, and not square."""

CHECKS = {"science": check_science, "template": check_template}


class StampPsf(PointSpreadFunction):
    """Whatever image a test needs; drawn only where `defined`."""

    def __init__(self, image, *, position=(10.0, 10.0), defined=True):
        self._image, self._position, self._defined = np.asarray(image, dtype=float), position, defined

    @property
    def size(self):
        return self._image.shape[0]

    @property
    def average_position(self):
        return self._position

    def compute_offset_image(self, *, x, y, dx, dy):  # noqa: ARG002  one image everywhere
        if not self._defined:
            raise ValueError("no tile here")
        return self._image


def make_wcs(**changes) -> SkyWcs:
    cards = {"ra_deg": 0.0005, "dec_deg": -60.0, "x": 64.0, "y": 44.0, "scale_arcsec": 0.3, "rotation_deg": 20.0}
    return SkyWcs.from_tangent(**{**cards, **changes})


def make_exposure(**changes) -> Exposure:
    planes = MaskedImage(
        np.random.default_rng(5).normal(size=SHAPE).astype(np.float32),
        np.zeros(SHAPE, np.int32),
        np.ones(SHAPE, np.float32),
    )
    exposure = Exposure(masked_image=planes, wcs=make_wcs(), psf=GaussianPsf(fwhm=4.0), info=ExposureInfo(band="r"))
    return replace(exposure, **changes)


@pytest.fixture(params=["science", "template"])
def which(request) -> str:
    return request.param


def test_a_usable_exposure_passes(which):
    CHECKS[which](make_exposure())


def test_a_few_bad_pixels_are_no_error(which):
    exposure = make_exposure()
    exposure.image[3:9] = np.nan
    exposure.variance[10:20], exposure.variance[20:30], exposure.variance[30:40] = 0.0, -1.0, np.nan
    exposure.mask[40:50] = plane_bits("NO_DATA")
    CHECKS[which](exposure)


def test_one_pixel_that_counts_is_enough_wherever_it_is(which):
    exposure = make_exposure()
    kept = exposure.image[77, 41]
    exposure.image[...] = np.nan
    exposure.image[77, 41] = kept
    CHECKS[which](exposure)


@pytest.mark.parametrize(
    ("which", "words"), [("science", "Exposure has no psf"), ("template", "template exposure has")]
)
def test_a_missing_psf_is_named(which, words):
    with pytest.raises(TaskError, match=words):
        CHECKS[which](make_exposure(psf=None))


BROKEN_PSFS = {
    "3 of 9 pixels are not finite": StampPsf([[0, 0, 0], [np.nan, np.inf, np.nan], [0, 0, 0]]),
    "its sum is 0": StampPsf(np.zeros((3, 3))),
    "its sum is -9": StampPsf(-np.ones((3, 3))),
    r"cannot be drawn at x 10.0, y 10.0: no tile here": StampPsf(np.ones((3, 3)), defined=False),
    "its average position is x nan, y 3.0": StampPsf(np.ones((3, 3)), position=(float("nan"), 3.0)),
}


@pytest.mark.parametrize("words", BROKEN_PSFS)
def test_a_broken_psf_is_named_with_its_numbers(which, words):
    with pytest.raises(UnusableExposure, match=words) as caught:
        CHECKS[which](make_exposure(psf=BROKEN_PSFS[words]))
    assert (caught.value.which, caught.value.part) == (which, "psf")


def test_a_psf_without_a_width_serves_a_template_but_no_detection():
    spike = np.zeros((5, 5))
    spike[2, 2] = 1.0
    check_template(make_exposure(psf=StampPsf(spike)))
    with pytest.raises(UnusableExposure, match="no width"):
        check_science(make_exposure(psf=StampPsf(spike)))


def test_a_psf_that_is_nothing_but_a_hole_has_no_width():
    # Its moments come out negative: a Gaussian that fits it does not exist.
    v, u = np.mgrid[-5:6, -5:6]
    ring = np.where(u**2 + v**2 < 9, -0.2, 1.0)
    with pytest.raises(UnusableExposure, match="no width"):
        check_science(make_exposure(psf=StampPsf(ring)))


def test_an_image_of_nan_is_unusable(which):
    exposure = make_exposure()
    exposure.image[...] = np.nan
    with pytest.raises(
        UnusableExposure, match=f"none of the {exposure.image.size} pixels with data is finite"
    ) as caught:
        CHECKS[which](exposure)
    assert caught.value.part == "image"


@pytest.mark.parametrize(
    ("value", "words"), [(0.0, "11700 zero"), (-2.0, "11700 negative"), (np.nan, "11700 not finite")]
)
def test_a_variance_plane_that_says_nothing_is_unusable(which, value, words):
    exposure = make_exposure()
    exposure.variance[...] = value
    with pytest.raises(UnusableExposure, match=words) as caught:
        CHECKS[which](exposure)
    assert caught.value.part == "variance"


def test_pixels_without_data_are_not_blamed(which):
    exposure = make_exposure()
    exposure.mask[5:] = plane_bits("NO_DATA")
    exposure.variance[:5] = 0.0
    with pytest.raises(UnusableExposure, match="none of the 650 pixels with data has a positive one: 650 zero"):
        CHECKS[which](exposure)


def test_planes_that_are_never_good_together_are_unusable(which):
    exposure = make_exposure()
    exposure.image[::2] = np.nan
    exposure.variance[1::2] = 0.0
    with pytest.raises(UnusableExposure, match="5850 are finite and 5850 have a positive variance, but never both"):
        CHECKS[which](exposure)


def test_no_data_anywhere_is_a_defect_of_a_science_image_and_a_lack_of_coverage_of_a_template():
    exposure = make_exposure(masked_image=MaskedImage.empty(SHAPE))
    check_template(exposure)
    with pytest.raises(UnusableExposure, match="all 11700 pixels are NO_DATA"):
        check_science(exposure)


# -- pairs --


def test_a_pair_of_one_band_and_grid_passes():
    check_pair(make_exposure(), make_exposure())


@pytest.mark.parametrize("band", ["r", None])
def test_a_band_that_nobody_says_is_no_other_band(band):
    check_pair(make_exposure(), make_exposure(info=ExposureInfo(band=band)))


@pytest.mark.parametrize("same_grid", [True, False])
def test_another_band_is_refused(same_grid):
    with pytest.raises(ExposureMismatch) as caught:
        check_pair(make_exposure(), make_exposure(info=ExposureInfo(band="g")), same_grid=same_grid)
    assert (caught.value.field, caught.value.science_value, caught.value.template_value) == ("band", "r", "g")


def test_another_shape_is_refused_unless_the_template_will_be_warped():
    whole = make_exposure()
    smaller = make_exposure(masked_image=MaskedImage(whole.image[:-5], whole.mask[:-5], whole.variance[:-5]))
    check_pair(whole, smaller, same_grid=False)
    with pytest.raises(ExposureMismatch) as caught:
        check_pair(whole, smaller)
    assert (caught.value.field, caught.value.science_value, caught.value.template_value) == ("shape", SHAPE, (85, 130))


def test_another_grid_is_refused_with_its_offset_unless_the_template_will_be_warped():
    elsewhere = make_exposure(wcs=make_wcs(x=64.0 + 3.0, y=44.0 - 4.0))
    check_pair(make_exposure(), elsewhere, same_grid=False)
    with pytest.raises(ExposureMismatch, match="up to 5 pixels off"):
        check_pair(make_exposure(), elsewhere)


def test_rounding_of_cards_is_no_other_grid():
    check_pair(make_exposure(), make_exposure(wcs=make_wcs(x=64.0 + 0.5 * GRID_TOLERANCE_PIXELS)))
    with pytest.raises(ExposureMismatch, match="wcs"):
        check_pair(make_exposure(), make_exposure(wcs=make_wcs(x=64.0 + 2.0 * GRID_TOLERANCE_PIXELS)))


def test_a_rotation_shows_at_the_corners():
    # By the small-angle chord: half of the diagonal from the fixed point to the furthest corner.
    angle = 1.0
    turned = make_exposure(wcs=make_wcs(rotation_deg=20.0 + angle))
    furthest = np.hypot(SHAPE[1] - 1 - 64.0, SHAPE[0] - 1 - 44.0)
    expected = 2.0 * np.sin(np.radians(angle) / 2.0) * furthest
    assert compute_grid_offset(make_exposure(), turned) == pytest.approx(expected, rel=1e-4)


def test_without_world_coordinates_pixels_are_taken_as_they_are():
    check_pair(make_exposure(wcs=None), make_exposure())
    check_pair(make_exposure(), make_exposure(wcs=None))


def test_the_other_side_of_the_sky_is_infinitely_far():
    antipode = make_exposure(wcs=make_wcs(ra_deg=180.0005, dec_deg=60.0))
    assert compute_grid_offset(make_exposure(), antipode) == np.inf
    with pytest.raises(ExposureMismatch, match="inf"):
        check_pair(make_exposure(), antipode)


def test_checks_change_nothing(which):
    exposure = make_exposure()
    for plane in (exposure.image, exposure.mask, exposure.variance):
        plane.flags.writeable = False
    CHECKS[which](exposure)
    check_pair(exposure, exposure)


# -- pixels that no detector has measured --


def test_plausible_pixels_are_left_alone():
    exposure = make_exposure()
    exposure.image[3, 4] = 0.5 * PLAUSIBLE_PULL
    exposure.variance[5, 6] = 2.0 * PLAUSIBLE_VARIANCE_RATIO
    exposure.image[7, 8], exposure.variance[7, 9] = np.nan, np.inf
    kept, n = exclude_implausible("science", exposure)
    assert kept is exposure
    assert n == 0


def test_pixels_beyond_any_detector_count_as_no_data_in_a_copy():
    exposure = make_exposure()
    exposure.image[3, 4], exposure.image[3, 5] = 2.0 * PLAUSIBLE_PULL, -2.0 * PLAUSIBLE_PULL
    exposure.variance[5, 6] = 0.5 * PLAUSIBLE_VARIANCE_RATIO
    kept, n = exclude_implausible("science", exposure)
    assert n == 3
    assert np.flatnonzero(kept.mask).size == 3
    for at in ((3, 4), (3, 5), (5, 6)):
        assert np.isnan(kept.image[at])
        assert np.isinf(kept.variance[at])
        assert kept.mask[at] == plane_bits("NO_DATA")
    assert exposure.image[3, 4] == np.float32(2.0 * PLAUSIBLE_PULL)
    assert not exposure.mask.any()


def test_an_image_all_of_which_is_beyond_any_detector_is_unusable():
    exposure = make_exposure()
    exposure.image[...] = 1e30
    with pytest.raises(UnusableExposure, match="all 11700 usable pixels are above"):
        exclude_implausible("science", exposure)


@pytest.mark.parametrize("sigma", [0.5 * PLAUSIBLE_SIGMA[0], 2.0 * PLAUSIBLE_SIGMA[1]])
def test_noise_that_float32_does_not_square_is_unusable(sigma):
    exposure = make_exposure()
    exposure.variance[...] = sigma**2
    with pytest.raises(UnusableExposure, match="template exposure: variance: its median is"):
        exclude_implausible("template", exposure)


@pytest.mark.parametrize("njy_per_count", [1e-20, 1e20])
def test_a_calibration_to_fluxes_of_no_sky_is_unusable(njy_per_count):
    with pytest.raises(UnusableExposure, match=re.escape(f"photo_calib: a pixel's noise is {njy_per_count:.3g} nJy")):
        exclude_implausible("science", make_exposure(photo_calib=PhotoCalib(njy_per_count)))


def test_exposures_without_a_usable_pixel_are_for_other_checks():
    empty = make_exposure(masked_image=MaskedImage.empty(SHAPE))
    assert exclude_implausible("template", empty) == (empty, 0)


# -- differences --


def test_a_difference_is_refused_without_a_psf_or_one_without_width():
    check_difference(make_exposure())
    with pytest.raises(TaskError, match="the difference has no psf"):
        check_difference(make_exposure(psf=None))
    with pytest.raises(UnusableExposure, match="difference exposure: psf: it has no width"):
        check_difference(make_exposure(psf=StampPsf(np.eye(1, 81, 40).reshape(9, 9))))
    with pytest.raises(UnusableExposure, match="score exposure: psf: its sum is -81"):
        check_difference(make_exposure(psf=StampPsf(np.full((9, 9), -1.0))), which="score")


@pytest.mark.parametrize("shape", [(9, 7), (8, 8)])
@pytest.mark.parametrize("which", CHECKS)
def test_a_psf_that_is_no_odd_square_is_refused(which, shape):
    with pytest.raises(UnusableExposure, match=rf"psf: its size is \d, its image \({shape[0]}, {shape[1]}\)"):
        CHECKS[which](make_exposure(psf=StampPsf(np.ones(shape))))


# -- before a sky is fitted --


def test_a_broken_exposure_is_refused_before_anything_is_fitted_to_it():
    task = ImageDifferenceTask()
    with pytest.raises(UnusableExposure, match="science exposure: psf: it has no width"):
        task.characterizeInputs(make_exposure(psf=StampPsf(np.ones((1, 1)))), None)
    with pytest.raises(UnusableExposure, match="template exposure: psf: its sum is -81"):
        task.characterizeInputs(make_exposure(), make_exposure(psf=StampPsf(np.full((9, 9), -1.0))))
    absurd = make_exposure(psf=None)
    absurd.image[...] = 1e30
    with pytest.raises(UnusableExposure, match="template exposure: image: all 11700 usable pixels are above"):
        task.characterizeInputs(make_exposure(), absurd)
