"""`MaskStreaksTask`: the shell about `find_streaks`."""

import numpy as np
import pytest
from lsst.pex.config import FieldValidationError

from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.tasks.mask_streaks import MaskStreaksConfig, MaskStreaksTask


def make_planes(*, brightness=5.0):
    image = np.random.default_rng(1).normal(size=(256, 256))
    y, x = np.mgrid[:256, :256]
    image += brightness * np.exp(-0.5 * ((y - 40.0 - 0.5 * x) / 2.0) ** 2)
    return MaskedImage(image.astype(np.float32), np.zeros(image.shape, np.int32), np.ones(image.shape, np.float32))


def test_a_trail_is_marked_and_described():
    planes, task = make_planes(), MaskStreaksTask()
    found = task.run(planes)
    np.testing.assert_array_equal((planes.mask & plane_bits("STREAK")) != 0, found.mask)
    (line,) = found.lines
    assert line.angle_deg == pytest.approx(np.degrees(np.arctan(0.5)), abs=0.3)
    assert task.metadata["nStreaks"] == 1
    assert task.metadata["streakMaskFraction"] == pytest.approx(found.mask.mean())


def test_an_exposure_is_as_good_as_its_planes():
    planes = make_planes()
    np.testing.assert_array_equal(
        MaskStreaksTask().run(Exposure(masked_image=planes)).mask, MaskStreaksTask().run(make_planes()).mask
    )
    assert (planes.mask & plane_bits("STREAK")).any()


def test_without_a_trail_nothing_is_marked():
    planes = make_planes(brightness=0.0)
    found = MaskStreaksTask().run(planes)
    assert found.lines == ()
    assert not planes.mask.any()


def test_mask_grows_with_the_number_of_sigmas():
    config = MaskStreaksConfig()
    config.nSigmaMask = 6.0
    assert MaskStreaksTask(config).run(make_planes()).mask.sum() > 1.5 * MaskStreaksTask().run(make_planes()).mask.sum()


def test_impossible_settings_are_refused():
    config = MaskStreaksConfig()
    config.badMaskPlanes = ["NOTHING"]
    with pytest.raises(FieldValidationError, match="NOTHING"):
        config.validate()
    config = MaskStreaksConfig()
    config.minLength = 2.0
    with pytest.raises(FieldValidationError, match="minLength"):
        config.validate()
