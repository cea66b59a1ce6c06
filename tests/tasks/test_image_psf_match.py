"""`ImagePsfMatchTask`: which image is convolved, and what the results carry."""

import numpy as np
import pytest
from made_skies import SHAPE

from alertprod.errors import InsufficientKernelSources, TaskError
from alertprod.tasks.image_psf_match import (
    ImagePsfMatchConfig,
    ImagePsfMatchTask,
    subtractAlgorithmRegistry,
)


def make_task(**kernel):
    config = ImagePsfMatchConfig()
    config.kernel["AL"].update(**kernel)
    return ImagePsfMatchTask(config)


def test_results_and_metadata_say_what_was_done(pair, stars):
    task = make_task()
    made = task.subtractExposures(pair.template, pair.science, stars)
    assert made.subtractedExposure.shape == made.matchedExposure.shape == SHAPE
    assert made.warpedExposure is pair.template
    assert made.psfMatchingKernel is made.match.kernel
    assert made.backgroundModel is made.match.background
    assert task.metadata["ALKernelSize"] == made.psfMatchingKernel.size == 21
    assert task.metadata["ALBasisMode"] == "convolution"
    assert task.metadata["convolvedExposure"] == "Template"
    assert task.metadata["nKernelSources"] == len(made.kernelSources)
    assert task.metadata["nKernelSources"] + task.metadata["nKernelSourcesRejected"] <= stars.n_rows
    # One flux scale in both images; bright stars hold the sum to far better than their count's noise.
    assert task.metadata["spatialKernelSum"] == pytest.approx(1.0, abs=5e-3)
    assert made.matchedExposure.psf is pair.science.psf
    assert made.matchedExposure.photo_calib == pair.science.photo_calib


def test_the_configurations_mode_goes_before_the_callers_choice(pair, stars):
    for mode, asked, convolved in (
        (None, True, "template"),
        (None, False, "science"),
        ("convolveTemplate", False, "template"),
        ("convolveScience", True, "science"),
        ("auto", False, "template"),
    ):
        task = make_task(spatialKernelOrder=0)
        task.config.mode = mode
        made = task.subtractExposures(pair.template, pair.science, stars, convolveTemplate=asked)
        assert made.match.convolved == convolved


def test_the_template_comes_back_as_it_was_subtracted(pair, stars):
    convolved = make_task().subtractExposures(pair.template, pair.science, stars)
    assert convolved.templateExposure is convolved.matchedExposure
    # Where the science image is convolved, the template is only brought to its scale.
    scaled = pair.template.copy()
    scaled.image[...] *= 3.0
    scaled.variance[...] *= 9.0
    other = make_task(spatialKernelOrder=0).subtractExposures(scaled, pair.science, stars, convolveTemplate=False)
    assert other.match.kernel_sum == pytest.approx(3.0, rel=0.1)
    np.testing.assert_allclose(
        other.templateExposure.image * other.match.kernel_sum, scaled.image, rtol=1e-5, atol=1e-3
    )
    np.testing.assert_allclose(other.templateExposure.variance * other.match.kernel_sum**2, scaled.variance, rtol=1e-5)
    assert other.templateExposure.photo_calib == pair.science.photo_calib
    assert other.templateExposure.psf is scaled.psf
    difference = other.matchedExposure.image - other.templateExposure.image - other.backgroundModel.compute_image()
    np.testing.assert_allclose(other.subtractedExposure.image, difference, atol=0.01)


def test_settings_reach_the_match(pair, stars):
    made = make_task(kernelSizeMin=27, spatialKernelOrder=0).subtractExposures(pair.template, pair.science, stars)
    assert made.psfMatchingKernel.size == 27


def test_too_few_stars_is_an_error_with_its_numbers(pair, stars):
    few = stars.select(np.arange(2))
    with pytest.raises(InsufficientKernelSources) as caught:
        make_task().subtractExposures(pair.template, pair.science, few)
    assert caught.value.n_required == 3
    assert caught.value.n_sources <= 2


@pytest.mark.parametrize("which", ["science", "template"])
def test_an_exposure_without_a_psf_is_named(pair, stars, which):
    exposures = {"science": pair.science.copy(), "template": pair.template.copy()}
    exposures[which].psf = None
    with pytest.raises(TaskError, match=f"the {which} exposure has no psf"):
        make_task().subtractExposures(exposures["template"], exposures["science"], stars)


def test_alard_lupton_is_registered_under_the_field_s_name():
    assert subtractAlgorithmRegistry["al"] is ImagePsfMatchTask
