"""`DecorrelateALKernelSpatialTask`: modes, PSFs, inputs untouched."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from lsst.pex.config import FieldValidationError
from made_skies import make_pair

from alertprod.errors import TaskError
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.subtraction.alard_lupton import match_images
from alertprod.subtraction.config import AlardLuptonConfig
from alertprod.subtraction.decorrelate import NOISE_MASK_PLANES, compute_mean_variance
from alertprod.subtraction.preconvolve import preconvolve
from alertprod.tasks.decorrelate import DecorrelateALKernelSpatialTask

SETTINGS = AlardLuptonConfig(spatial_kernel_order=0, spatial_bg_order=0)


def subtract(pair, science=None, psf=None, convolve="template"):
    match = match_images(
        science or pair.science.masked_image,
        pair.template.masked_image,
        science_psf=psf or pair.science.psf,
        template_psf=pair.template.psf,
        star_x=pair.star_x,
        star_y=pair.star_y,
        star_flux=pair.star_flux,
        config=SETTINGS,
        convolve=convolve,
    )
    return match, replace(pair.science, masked_image=match.difference, psf=match.psf)


@pytest.fixture(scope="module")
def matched(pair):
    return subtract(pair)


@pytest.fixture(scope="module")
def scored(pair):
    filtered = preconvolve(pair.science.masked_image, pair.science.psf)
    return filtered, *subtract(pair, filtered.masked_image, filtered.psf)


def sky_pulls(exposure, pair):
    away = np.full(exposure.shape, True)
    rows, columns = np.indices(exposure.shape)
    for x, y in [*zip(pair.star_x, pair.star_y, strict=True), (70.3, 90.2), (150.6, 60.4), (100.1, 170.7)]:
        away &= np.hypot(columns - x, rows - y) > 12
    away &= exposure.mask == 0
    return (exposure.image / np.sqrt(exposure.variance))[away]


def mean_variances(pair, difference):
    ignored = (difference.mask & plane_bits(*NOISE_MASK_PLANES)) != 0
    return tuple(compute_mean_variance(exposure.variance, ignored) for exposure in (pair.science, pair.template))


def test_the_difference_gets_white_noise_and_the_psf_of_its_pixels(pair, matched):
    match, difference = matched
    task = DecorrelateALKernelSpatialTask()
    made = task.run(pair.science, pair.template, difference, match.kernel)
    pulls = sky_pulls(made.correctedExposure, pair)
    assert pulls.std() == pytest.approx(1.0, abs=5.0 / np.sqrt(2.0 * pulls.size) + 0.01)
    neighbours = made.correctedExposure.image[20:-20, 20:-20]
    assert np.corrcoef(neighbours[:, 1:].ravel(), neighbours[:, :-1].ravel())[0, 1] < 0.3
    assert made.correctedExposure.psf.compute_sigma() < difference.psf.compute_sigma()
    assert made.correctedExposure.wcs is difference.wcs
    assert made.correctedExposure.photo_calib == difference.photo_calib
    expected = mean_variances(pair, difference)
    assert (task.metadata["scienceMeanVariance"], task.metadata["templateMeanVariance"]) == expected
    assert made.correctionKernel.kernel_sum() == pytest.approx(1.0, abs=1e-9)


def test_inputs_are_left_as_they_are(pair, scored):
    filtered, match, score = scored
    before = [exposure.copy() for exposure in (pair.science, pair.template, score)]
    DecorrelateALKernelSpatialTask().run(
        pair.science, pair.template, score, match.kernel, preConvKernel=filtered.kernel, preConvMode=True
    )
    for old, new in zip(before, (pair.science, pair.template, score), strict=True):
        for plane in ("image", "mask", "variance"):
            np.testing.assert_array_equal(getattr(old, plane), getattr(new, plane))


def test_where_the_science_image_was_convolved_the_roles_are_changed(pair):
    match, difference = subtract(pair, convolve="science")
    task = DecorrelateALKernelSpatialTask()
    made = task.run(pair.science, pair.template, difference, match.kernel, templateMatched=False)
    expected = mean_variances(pair, difference)
    assert (task.metadata["scienceMeanVariance"], task.metadata["templateMeanVariance"]) == expected
    pulls = sky_pulls(made.correctedExposure, pair)
    assert pulls.std() == pytest.approx(1.0, abs=5.0 / np.sqrt(2.0 * pulls.size) + 0.01)


def test_a_difference_without_a_psf_takes_that_of_the_image_not_convolved(pair, matched):
    match, difference = matched
    task = DecorrelateALKernelSpatialTask()
    known = task.run(pair.science, pair.template, difference, match.kernel).correctedExposure.psf
    made = task.run(pair.science, pair.template, replace(difference, psf=None), match.kernel).correctedExposure.psf
    np.testing.assert_array_equal(made.compute_kernel_image(x=9, y=9), known.compute_kernel_image(x=9, y=9))


@pytest.mark.parametrize("given", [False, True])
def test_a_score_is_a_significance_whether_or_not_its_filter_is_given(pair, scored, given):
    filtered, match, score = scored
    made = DecorrelateALKernelSpatialTask().run(
        pair.science,
        pair.template,
        score,
        match.kernel,
        preConvKernel=filtered.kernel if given else None,
        preConvMode=True,
    )
    pulls = sky_pulls(made.correctedExposure, pair)
    # One independent value per area of the filter, 8 pi sigma^2.
    n_independent = pulls.size / (8 * np.pi * 1.87**2)
    assert pulls.std() == pytest.approx(1.0, abs=5.0 / np.sqrt(2.0 * n_independent))
    # The brightest transient: its flux is its peak over that of the PSF.
    exposure = made.correctedExposure
    drawn, box = exposure.psf.compute_stellar_image(x=70.3, y=90.2)
    row, column = np.unravel_index(drawn.argmax(), drawn.shape)
    peak = exposure.image[box.y_min + row, box.x_min + column]
    sigma = np.sqrt(exposure.variance[90, 70]) / drawn.max()
    assert peak / drawn.max() == pytest.approx(4000.0, abs=4.0 * sigma)


def test_modes_that_contradict_one_another_are_refused(pair, matched):
    match, difference = matched
    task = DecorrelateALKernelSpatialTask()
    with pytest.raises(TaskError, match="preConvKernel means nothing"):
        task.run(pair.science, pair.template, difference, match.kernel, preConvKernel=np.ones((3, 3)) / 9)
    with pytest.raises(TaskError, match="preConvMode needs templateMatched"):
        task.run(pair.science, pair.template, difference, match.kernel, preConvMode=True, templateMatched=False)
    with pytest.raises(TaskError, match="the science exposure has no psf"):
        task.run(replace(pair.science, psf=None), pair.template, difference, match.kernel, preConvMode=True)


def test_an_exposure_without_a_finite_pixel_comes_back_as_it_was(pair, matched, caplog):
    match, difference = matched
    empty = replace(difference, masked_image=MaskedImage.empty(difference.shape))
    with caplog.at_level(logging.WARNING):
        made = DecorrelateALKernelSpatialTask().run(pair.science, pair.template, empty, match.kernel)
    assert "no finite pixel" in caplog.text
    assert made.correctionKernel is None
    assert np.isnan(made.correctedExposure.image).all()


def test_a_template_that_has_all_the_noise_is_warned_of(matched, caplog):
    pair = make_pair()
    match, difference = matched
    quiet = pair.science.copy()
    quiet.variance[...] = 1e-3
    task = DecorrelateALKernelSpatialTask()
    task.config.maxVarianceRatio = 100.0
    with caplog.at_level(logging.WARNING):
        task.run(quiet, pair.template, difference, match.kernel)
    assert "times the other's noise variance" in caplog.text


def test_settings_reach_the_core(pair, matched):
    match, difference = matched
    task = DecorrelateALKernelSpatialTask()
    task.config.completeVarPlanePropagation = False
    made = task.run(pair.science, pair.template, difference, match.kernel).correctedExposure
    # A factor for each plane: the ratio to a combination of the two is the same everywhere.
    design = np.stack([pair.science.variance[30:-30, 30:-30].ravel(), pair.template.variance[30:-30, 30:-30].ravel()])
    wanted = made.variance[30:-30, 30:-30].ravel()
    factors = np.linalg.lstsq(design.T, wanted, rcond=None)[0]
    np.testing.assert_allclose(factors @ design, wanted, rtol=1e-4)
    task.config.ignoreMaskPlanes = ["NONE"]
    with pytest.raises(FieldValidationError, match="NONE"):
        task.config.validate()
