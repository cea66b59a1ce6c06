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
