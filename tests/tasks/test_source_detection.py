"""`SourceDetectionTask`: the shell about `alertprod.detection.detect`."""

import numpy as np
import pytest

from alertprod.errors import TaskError
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.analytic import GaussianPsf
from alertprod.tasks.source_detection import SourceDetectionConfig, SourceDetectionTask

PSF = GaussianPsf(fwhm=3.5)


def make_difference(sources=((20, 20, 300.0), (50, 30, -300.0))):
    planes = MaskedImage(np.zeros((64, 80), np.float32), np.zeros((64, 80), np.int32), np.ones((64, 80), np.float32))
    for x, y, flux in sources:
        stamp, box = PSF.compute_stellar_image(x=x, y=y)
        inside = box.intersection(planes.box)
        rows, columns = inside.slices
        cut = stamp[inside.y_min - box.y_min :, inside.x_min - box.x_min :]
        planes.image[rows, columns] += flux * cut[: rows.stop - rows.start, : columns.stop - columns.start]
    return Exposure(masked_image=planes, psf=PSF)


def test_both_signs_are_found_counted_and_marked():
    difference = make_difference()
    difference.mask[0, 0] = plane_bits("DETECTED")  # of an earlier run
    task = SourceDetectionTask()
    found = task.run(difference)
    assert len(found.sources) == 2
    assert (found.numPos, found.numNeg) == (1, 1)
    assert (task.metadata["nPositive"], task.metadata["nNegative"]) == (1, 1)
    assert difference.mask[20, 20] == plane_bits("DETECTED")
    assert difference.mask[30, 50] == plane_bits("DETECTED_NEGATIVE")
    assert difference.mask[0, 0] == 0


@pytest.mark.parametrize(("polarity", "counts"), [("positive", (1, 0)), ("negative", (0, 1)), ("both", (1, 1))])
def test_polarity_is_configured(polarity, counts):
    config = SourceDetectionConfig()
    config.thresholdPolarity = polarity
    found = SourceDetectionTask(config).run(make_difference())
    assert (found.numPos, found.numNeg) == counts


def test_threshold_is_the_significance_of_a_point_source():
    difference = make_difference(((40.0, 32.0, 300.0),))
    significance = 300.0 * np.sqrt((PSF.compute_kernel_image(x=40, y=32) ** 2).sum())
    for threshold, n in ((0.97 * significance, 1), (1.03 * significance, 0)):
        config = SourceDetectionConfig()
        config.thresholdValue = threshold
        assert len(SourceDetectionTask(config).run(difference).sources) == n


def test_lobes_that_touch_are_one_source_or_two():
    lobes = ((38.0, 32.0, 400.0), (41.0, 32.0, -400.0))
    assert len(SourceDetectionTask().run(make_difference(lobes)).sources) == 1
    assert len(SourceDetectionTask().run(make_difference(lobes), doMerge=False).sources) == 2


def test_a_score_image_is_not_smoothed_again():
    score = make_difference(())
    score.image[30, 30] = 6.0
    task = SourceDetectionTask()
    assert len(task.run(score, doSmooth=False).sources) == 1
    assert len(task.run(score).sources) == 0


def test_an_exposure_without_a_psf_is_refused():
    difference = make_difference()
    difference.psf = None
    with pytest.raises(TaskError, match="no psf"):
        SourceDetectionTask().run(difference)


def test_each_sign_is_given_beside_what_is_joined():
    lobes = ((38.0, 32.0, 400.0), (44.0, 32.0, -400.0))
    found = SourceDetectionTask().run(make_difference(lobes))
    assert (len(found.sources), len(found.positive), len(found.negative)) == (1, 1, 1)
    assert (found.numPos, found.numNeg) == (1, 1)
    assert found.negative.is_negative.all()


def test_footprints_grow_before_they_are_joined():
    lobes = ((28.0, 32.0, 300.0), (48.0, 32.0, -300.0))
    assert len(SourceDetectionTask().run(make_difference(lobes)).sources) == 2
    assert len(SourceDetectionTask().run(make_difference(lobes), growFootprint=4).sources) == 1
    assert len(SourceDetectionTask().run(make_difference(lobes), doMerge=False, growFootprint=4).sources) == 2


def test_factor_multiplies_the_threshold():
    difference = make_difference(((40.0, 32.0, 300.0),))
    significance = 300.0 * np.sqrt((PSF.compute_kernel_image(x=40, y=32) ** 2).sum())
    for factor, n in ((0.97 * significance / 5.0, 1), (1.03 * significance / 5.0, 0)):
        found = SourceDetectionTask().run(difference, factor=factor)
        assert (len(found.sources), found.factor) == (n, factor)


@pytest.mark.parametrize("kind", ["pixel_stdev", "stdev", "variance", "value"])
def test_threshold_is_in_the_units_that_are_configured(kind):
    difference = make_difference()
    noise = np.random.default_rng(1).normal(size=difference.shape).astype(np.float32)
    difference.masked_image.image += noise
    config = SourceDetectionConfig()
    config.thresholdType = kind
    assert len(SourceDetectionTask(config).run(difference).sources) == 2
    # A value of 5 in the image's unit is far more than the noise of 0.2 that smoothing leaves.
    config.thresholdValue = 3.0 if kind == "value" else 20.0
    assert len(SourceDetectionTask(config).run(difference).sources) == 2
    config.thresholdValue = 100.0
    assert len(SourceDetectionTask(config).run(difference).sources) == 0


def test_background_is_taken_off_where_asked_for():
    difference = make_difference(((20.0, 20.0, 300.0), (60.0, 40.0, 300.0)))
    sources = difference.image.copy()
    difference.masked_image.image += np.float32(0.5)
    untouched = difference.copy()
    assert SourceDetectionTask().run(untouched).background is None
    np.testing.assert_array_equal(untouched.image, sources + np.float32(0.5))
    config = SourceDetectionConfig()
    config.reEstimateBackground = True
    found = SourceDetectionTask(config).run(difference)
    # Pixels outside the footprints hold what is left of the sources' wings.
    np.testing.assert_allclose(difference.image, sources, atol=0.1)
    assert found.background.level.mean() == pytest.approx(0.5, abs=0.1)


def test_names_and_defaults_are_the_reference_s():
    config = SourceDetectionConfig()
    assert (config.thresholdValue, config.thresholdType, config.thresholdPolarity) == (5.0, "pixel_stdev", "both")
    assert (config.minPixels, config.nSigmaToGrow, config.includeThresholdMultiplier) == (1, 2.4, 1.0)
    assert (config.doTempLocalBackground, config.tempLocalBackgroundBinSize, config.reEstimateBackground) == (
        True,
        64,
        False,
    )


@pytest.mark.parametrize("changes", [{}, {"minPixels": 10}, {"thresholdType": "stdev"}, {"reEstimateBackground": True}])
@pytest.mark.parametrize("doSmooth", [True, False])
def test_marking_sets_the_planes_that_detecting_sets(changes, doSmooth):
    task = SourceDetectionTask(SourceDetectionConfig(**changes))
    marked, detected = (make_difference(((20, 20, 300.0), (50, 30, -600.0), (60, 60, 900.0))) for _ in range(2))
    marked.mask[0, 0] = plane_bits("DETECTED")
    task.mark(marked, doSmooth=doSmooth)
    found = task.run(detected, doSmooth=doSmooth, doMerge=False)
    assert len(found.sources) > 0
    np.testing.assert_array_equal(marked.mask, detected.mask)
    np.testing.assert_array_equal(marked.image, detected.image)


def test_marking_needs_a_psf():
    difference = make_difference()
    difference.psf = None
    with pytest.raises(TaskError, match="psf"):
        SourceDetectionTask().mark(difference)
