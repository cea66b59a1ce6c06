"""`FindCosmicRaysTask`: the shell about `find_cosmic_rays`."""

import numpy as np
import pytest
from lsst.pex.config import FieldValidationError

from alertprod.errors import TaskError, TooManyCosmicRays
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.analytic import GaussianPsf
from alertprod.tasks.find_cosmic_rays import FindCosmicRaysConfig, FindCosmicRaysTask

PSF = GaussianPsf(fwhm=4.2, size=25)
HITS = [(20, 30), (40, 10), (40, 11), (40, 12)]


def make_exposure(*, level=60.0, gain=None):
    image = np.random.default_rng(1).normal(size=(64, 64))
    for x, y in ((45.3, 20.7), (50.0, 50.0)):
        stamp, box = PSF.compute_stellar_image(x=x, y=y)
        rows, columns = box.slices
        cut = image[rows, columns]
        cut += 5000.0 * stamp[: cut.shape[0], : cut.shape[1]]
    for y, x in HITS:
        image[y, x] += level
    planes = MaskedImage(image.astype(np.float32), np.zeros(image.shape, np.int32), np.ones(image.shape, np.float32))
    return Exposure(masked_image=planes, psf=PSF, info=ExposureInfo(gain=gain))


def test_exactly_the_hit_pixels_are_marked_and_values_stay():
    exposure, task = make_exposure(), FindCosmicRaysTask()
    before = exposure.image.copy()
    found = task.run(exposure)
    assert [tuple(place) for place in np.argwhere(found.mask)] == HITS
    np.testing.assert_array_equal((exposure.mask & plane_bits("CR")) != 0, found.mask)
    np.testing.assert_array_equal(exposure.image, before)
    assert found.nPixels == task.metadata["cosmic_ray_count"] == 4


def test_without_hits_there_are_none():
    exposure = make_exposure(level=0.0)
    assert FindCosmicRaysTask().run(exposure).nPixels == 0
    assert not exposure.mask.any()


def test_least_charge_is_asked_for_where_the_gain_is_known():
    # One pixel of 60 units holds 120 electrons at a gain of 2, three of them 360.
    found = FindCosmicRaysTask().run(make_exposure(gain=2.0))
    assert [tuple(place) for place in np.argwhere(found.mask)] == HITS[1:]
    assert FindCosmicRaysTask().run(make_exposure(gain=3.0)).nPixels == 4


def test_too_many_are_an_error_and_leave_the_exposure_as_it_was():
    config = FindCosmicRaysConfig()
    config.nCrPixelMax = 3
    exposure, task = make_exposure(), FindCosmicRaysTask(config)
    with pytest.raises(TooManyCosmicRays, match="4 pixels look like cosmic rays, the limit is 3"):
        task.run(exposure)
    assert not exposure.mask.any()
    assert task.metadata["cosmic_ray_count"] == 4
    config.nCrPixelMax = 4
    assert FindCosmicRaysTask(config).run(exposure).nPixels == 4


def test_values_are_replaced_where_they_are_not_to_be_kept():
    config = FindCosmicRaysConfig()
    config.keepCRs = False
    exposure = make_exposure()
    before = exposure.copy()
    found = FindCosmicRaysTask(config).run(exposure)
    # The mean of neighbours on empty sky is noise of less than one standard deviation.
    assert np.abs(exposure.image[found.mask]).max() < 4.0
    np.testing.assert_array_equal(exposure.image[~found.mask], before.image[~found.mask])
    assert (exposure.mask[found.mask] == plane_bits("CR", "INTRP")).all()


def test_an_exposure_without_a_psf_is_refused():
    exposure = make_exposure()
    exposure.psf = None
    with pytest.raises(TaskError, match="no psf"):
        FindCosmicRaysTask().run(exposure)


def test_names_and_defaults_are_the_reference_s():
    config = FindCosmicRaysConfig()
    assert (config.minSigma, config.cond3_fac, config.cond3_fac2) == (6.0, 2.0, 0.35)
    assert (config.niteration, config.keepCRs, config.nCrPixelMax) == (6, True, 1_000_000)
    config.minSigma = 0.0
    with pytest.raises(FieldValidationError, match="minSigma"):
        config.validate()
