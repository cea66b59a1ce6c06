import numpy as np
import pytest

from alertprod.detection.high_variance import HighVarianceConfig, mark_high_variance
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage

BIT = plane_bits("HIGH_VARIANCE")


def make_template(shape=(256, 320)):
    rng = np.random.default_rng(1)
    variance = rng.uniform(0.8, 1.2, shape).astype(np.float32)
    return MaskedImage(np.zeros(shape, np.float32), np.zeros(shape, np.int32), variance)


def test_an_area_of_fewer_exposures_is_marked_and_the_rest_is_not():
    template = make_template()
    template.variance[:, 224:] *= 10.0
    template.variance[:, :64] *= 3.0
    fraction = mark_high_variance(template)
    marked = (template.mask & BIT) != 0
    # Bins of 32 are joined linearly: the border is good to one of them.
    assert marked[:, 256:].all()
    assert not marked[:, :192].any()
    assert fraction == pytest.approx(marked.mean())


def test_a_cliff_does_not_ring():
    template = make_template()
    template.variance[:, 224:] *= 1000.0
    mark_high_variance(template)
    assert not (template.mask[:, :192] & BIT).any()


def test_stars_are_not_meant():
    template = make_template()
    template.variance[100:112, 100:112] += 1000.0
    assert mark_high_variance(template) == 0.0


def test_bits_of_before_are_cleared_and_others_stay():
    template = make_template()
    template.mask[3, 4] = BIT | plane_bits("SAT")
    mark_high_variance(template)
    assert template.mask[3, 4] == plane_bits("SAT")


def test_scale_of_the_variance_does_not_matter():
    a, b = make_template(), make_template()
    for template in (a, b):
        template.variance[:, 224:] *= 10.0
    b.variance *= np.float32(1e6)
    mark_high_variance(a)
    mark_high_variance(b)
    np.testing.assert_array_equal(a.mask, b.mask)


def test_too_little_data_says_nothing():
    template = make_template()
    template.variance[:, 224:] *= 10.0
    template.mask[:240] = plane_bits("NO_DATA")
    before = template.mask.copy()
    assert mark_high_variance(template) is None
    np.testing.assert_array_equal(template.mask, before)
    assert mark_high_variance(template, config=HighVarianceConfig(min_fraction=0.01)) is not None


def test_threshold_is_above_zero():
    with pytest.raises(ValueError, match="threshold"):
        HighVarianceConfig(threshold=0.0)
