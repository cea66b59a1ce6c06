import numpy as np
import pytest

from alertprod.images.photo_calib import PhotoCalib


def test_an_object_at_the_zero_point_is_one_count():
    calib = PhotoCalib.from_zero_point(27.0)
    # AB magnitude 27 is 10 ** (0.4 * (31.4 - 27)) nJy.
    assert calib.njy_per_count == pytest.approx(10**1.76)
    assert calib.zero_point_mag == pytest.approx(27.0)
    assert PhotoCalib(1.0).zero_point_mag == pytest.approx(31.4)


def test_nominal_is_kept():
    assert PhotoCalib.from_zero_point(25.0, is_nominal=True).is_nominal
    assert not PhotoCalib.from_zero_point(25.0).is_nominal


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_must_be_positive_and_finite(value):
    with pytest.raises(ValueError, match="njy_per_count"):
        PhotoCalib(value)
