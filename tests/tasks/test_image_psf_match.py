"""`ImagePsfMatchTask`: which image is convolved, what the results carry, where kernel sources come from."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from lsst.pex.config import FieldValidationError
from made_skies import SHAPE, TRANSIENTS

from alertprod.errors import ExposureMismatch, InsufficientKernelSources, TaskError
from alertprod.images.mask import plane_bits
from alertprod.resample.warp import warp_exposure
from alertprod.subtraction.cell_set import CandidateStatus
from alertprod.subtraction.config import DeltaFunctionConfig
from alertprod.tasks.image_psf_match import (
    ImagePsfMatchConfig,
    ImagePsfMatchTask,
    PsfMatchConfigDF,
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


# --- matching without subtracting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("convolve_template", [True, False])
def test_a_match_is_what_would_be_subtracted(pair, stars, convolve_template):
    task = make_task(spatialKernelOrder=0)
    subtracted = task.subtractExposures(pair.template, pair.science, stars, convolve_template)
    matched = task.matchExposures(pair.template, pair.science, stars, convolve_template)
    np.testing.assert_array_equal(matched.matchedExposure.image, subtracted.matchedExposure.image)
    assert matched.matchedImage is matched.matchedExposure.masked_image
    assert not hasattr(matched, "subtractedExposure")
    assert matched.matchedExposure.wcs is pair.science.wcs


def test_every_star_is_in_the_cells_with_its_fate(pair, stars):
    made = make_task().subtractExposures(pair.template, pair.science, stars)
    cells = made.kernelCellSet
    assert len(cells) == stars.n_rows
    np.testing.assert_array_equal(np.flatnonzero(cells.status == CandidateStatus.GOOD), np.sort(made.kernelSources))
    np.testing.assert_array_equal(cells.compute_spatial_kernel(3), made.psfMatchingKernel(stars["x"][3], stars["y"][3]))


def test_the_bases_numbers_are_in_the_metadata(pair, stars):
    task = make_task()
    made = task.subtractExposures(pair.template, pair.science, stars)
    metadata = task.metadata
    assert metadata["kernelBasisSet"] == "alard-lupton"
    assert metadata["ALBasisNGauss"] == 3
    assert metadata["ALBasisDegGauss"] == [4, 2, 2]
    assert len(metadata["ALBasisSigGauss"]) == 3
    assert metadata["nKernelBasis"] == 27
    assert metadata["spatialConditionNum"] == made.match.condition_number
    np.testing.assert_allclose(metadata["spatialBackgroundCoefficients"], made.backgroundModel.coefficients)


# --- kinds of kernel -------------------------------------------------------------------------------------------------


def test_delta_functions_are_a_choice_of_the_configuration(pair, stars):
    config = ImagePsfMatchConfig()
    config.kernel.name = "DF"
    config.kernel["DF"].kernelSize = 13
    config.kernel["DF"].scaleByFwhm = False
    task = ImagePsfMatchTask(config)
    made = task.subtractExposures(pair.template, pair.science, stars)
    assert made.psfMatchingKernel.size == 13
    assert task.metadata["kernelBasisSet"] == "delta-function"
    assert task.metadata["nKernelBasis"] == 6
    assert task.metadata["kernelRegularizationStrength"] > 0
    assert "ALBasisNGauss" not in task.metadata
    pulls = (made.subtractedExposure.image / np.sqrt(made.subtractedExposure.variance))[16:-16, 16:-16]
    width = 1.4826 * np.median(np.abs(pulls - np.median(pulls)))
    # A robust width is good to 1.2/sqrt(n); some per cent of the pixels are stars' cores, whose kernel is not perfect.
    assert width == pytest.approx(1.0, abs=5 * 1.2 / np.sqrt(pulls.size) + 0.01)


def test_defaults_of_delta_functions_are_those_of_the_core():
    assert PsfMatchConfigDF().makeSettings() == DeltaFunctionConfig()
    for name, described in PsfMatchConfigDF._fields.items():
        assert " " in described.doc, name


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("AL", "conditionNumberType", "TRACE"),
        ("AL", "spatialModelType", "legendre"),
        ("AL", "kernelBasisSet", "delta-function"),
        ("DF", "lambdaType", "best"),
        ("DF", "regularizationBorderPenalty", -1.0),
        ("DF", "centralRegularizationStencil", 7),
        ("DF", "useBicForKernelBasis", True),
    ],
)
def test_settings_that_mean_nothing_are_refused_under_their_names(kind, field, value):
    config = ImagePsfMatchConfig()
    config.kernel.name = kind

    def set_and_check():
        setattr(config.kernel[kind], field, value)
        config.validate()

    with pytest.raises(FieldValidationError, match=field):
        set_and_check()


# --- grids and bands -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moved(pair):
    """The template on a grid of its own, larger and shifted."""
    wcs = pair.science.wcs.shifted(dx=20.3, dy=15.6)
    return warp_exposure(pair.template, wcs, (SHAPE[0] + 40, SHAPE[1] + 36))


def test_a_template_of_another_grid_is_warped_first(pair, stars, moved):
    made = make_task().subtractExposures(moved, pair.science, stars)
    by_hand = warp_exposure(moved, pair.science.wcs, SHAPE)
    np.testing.assert_array_equal(made.warpedExposure.image, by_hand.image)
    np.testing.assert_array_equal(
        made.subtractedExposure.image,
        make_task().subtractExposures(by_hand, pair.science, stars).subtractedExposure.image,
    )
    assert moved.shape != SHAPE


def test_grids_that_differ_are_an_error_where_nothing_is_to_be_warped(pair, stars, moved):
    with pytest.raises(ExposureMismatch) as caught:
        make_task().subtractExposures(moved, pair.science, stars, doWarping=False)
    assert caught.value.field == "shape"
    aside = replace(pair.template, wcs=pair.template.wcs.shifted(dx=2.0, dy=0.0))
    with pytest.raises(TaskError, match="2 pixels off"):
        make_task().matchExposures(aside, pair.science, stars, doWarping=False)


def test_shapes_that_differ_without_world_coordinates_are_an_error(pair, stars, moved):
    with pytest.raises(ExposureMismatch) as caught:
        make_task().subtractExposures(replace(moved, wcs=None), pair.science, stars)
    assert caught.value.template_value == moved.shape


def test_a_template_of_elsewhere_is_an_error(pair, stars, moved):
    elsewhere = replace(moved, wcs=moved.wcs.shifted(dx=900.0, dy=0.0))
    with pytest.raises(TaskError, match="does not overlap"):
        make_task().subtractExposures(elsewhere, pair.science, stars)


def test_bands_that_differ_are_an_error(pair, stars):
    other = replace(pair.template, info=replace(pair.template.info, band="g"))
    with pytest.raises(ExposureMismatch) as caught:
        make_task().subtractExposures(other, pair.science, stars)
    assert (caught.value.field, caught.value.science_value, caught.value.template_value) == ("band", "r", "g")


# --- kernel sources --------------------------------------------------------------------------------------------------


def test_kernel_sources_are_the_stars_of_the_image(pair):
    before = pair.science.mask.copy()
    counter = itertools.count(1)
    found = make_task().getSelectSources(pair.science, idFactory=lambda: next(counter))
    np.testing.assert_array_equal(pair.science.mask, before)
    new = np.array([(x, y) for x, y, change in TRANSIENTS if change > 0])
    truth = np.concatenate([np.column_stack([pair.star_x, pair.star_y]), new])
    distance = np.hypot(found["x"][:, None] - truth[:, 0], found["y"][:, None] - truth[:, 1])
    # Peaks are whole pixels: at most 0.71 from the star but for noise.
    assert (distance.min(axis=1) < 1.2).all()
    assert found.n_rows > 0.9 * len(truth)
    matched = distance.argmin(axis=1)
    is_star = matched < len(pair.star_x)
    ratio = found["flux"][is_star] / pair.star_flux[matched[is_star]]
    assert np.median(ratio) == pytest.approx(1.0, abs=0.1)
    assert (np.diff(found["flux"]) <= 0).all()
    assert (found["snr"] > 10).all()
    np.testing.assert_array_equal(found["source_id"], np.arange(1, found.n_rows + 1))
    ra, dec = pair.science.wcs.pixel_to_sky(x=found["x"], y=found["y"])
    np.testing.assert_allclose(found["ra_deg"], ra)
    np.testing.assert_allclose(found["dec_deg"], dec)


def test_sources_with_bad_pixels_or_of_odd_size_are_no_kernel_sources(pair):
    science = pair.science.copy()
    every = make_task().getSelectSources(science)
    x, y = int(every["x"][0]), int(every["y"][0])
    science.mask[y + 1, x] |= plane_bits("SAT")
    without = make_task().getSelectSources(science)
    assert np.hypot(without["x"] - x, without["y"] - y).min() > 3
    config = ImagePsfMatchConfig()
    config.selectMaxPixels = 10
    assert ImagePsfMatchTask(config).getSelectSources(pair.science).n_rows < every.n_rows / 2


def test_a_width_serves_where_there_is_no_psf(pair):
    blind = replace(pair.science, psf=None)
    with pytest.raises(TaskError, match="no psf"):
        make_task().getSelectSources(blind)
    sigma = pair.science.psf.compute_sigma()
    given, known = make_task().getSelectSources(blind, sigma=sigma), make_task().getSelectSources(pair.science)
    np.testing.assert_array_equal(given["x"], known["x"])


def test_an_image_that_was_smoothed_before_is_not_smoothed_again(pair):
    found = make_task().getSelectSources(pair.science, doSmooth=False)
    values = pair.science.image[found["y"].astype(int), found["x"].astype(int)]
    np.testing.assert_array_equal(found["flux"], values)


def test_kernel_sources_are_found_where_none_are_given(pair):
    task = make_task()
    made = task.subtractExposures(pair.template, pair.science)
    assert len(made.kernelCellSet) == task.metadata["nSelectSources"]
    assert task.metadata["spatialKernelSum"] == pytest.approx(1.0, abs=5e-3)


# --- what is said of a doubtful fit ----------------------------------------------------------------------------------


def test_fits_on_few_stars_are_warned_about(pair, stars, caplog):
    few = stars.select(np.argsort(-stars["flux"])[:6])
    with caplog.at_level("WARNING"):
        make_task().subtractExposures(pair.template, pair.science, few)
    assert any("poorly constrained" in message for message in caplog.messages)
    caplog.clear()
    with caplog.at_level("WARNING"):
        made = make_task(spatialKernelOrder=3).subtractExposures(pair.template, pair.science, few)
    assert any("underconstrained" in m and f"to {made.psfMatchingKernel.order}" in m for m in caplog.messages)


def test_a_spatial_fit_that_is_badly_conditioned_is_warned_about(pair, stars, caplog):
    with caplog.at_level("WARNING"):
        make_task(maxSpatialConditionNumber=2.0).subtractExposures(pair.template, pair.science, stars)
    assert any("condition number" in message for message in caplog.messages)


def test_a_control_sample_is_solved_in_the_same_basis(pair, stars):
    task = make_task()
    made = task.subtractExposures(pair.template, pair.science, stars.select(np.arange(0, stars.n_rows, 2)))
    control = task.makeControlCandidates(stars.select(np.arange(1, stars.n_rows, 2)), pair.science, made)
    assert control.basis is made.kernelCellSet.basis
    assert (control.status != CandidateStatus.GOOD).all()
    solved = control.is_solved
    assert solved.sum() > 10
    # Their median flux ratio is that of the kernel stars, within five errors of two medians.
    sums = [control.own_sum[solved], made.kernelCellSet.own_sum[made.kernelSources]]
    errors = [1.25 * 1.4826 * np.median(np.abs(s - np.median(s))) / np.sqrt(len(s)) for s in sums]
    assert abs(np.median(sums[0]) - np.median(sums[1])) < 5 * np.hypot(*errors)
