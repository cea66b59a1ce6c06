import numpy as np
import pytest

from alertprod.images import _loops
from alertprod.images.masked_image import MaskedImage
from alertprod.images.pulls import compute_pulls, compute_quantiles, compute_width


@pytest.mark.parametrize("scale", [1e-12, 1.0, 3e4])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 1000])
def test_quantiles_are_those_of_a_full_sort(n, scale):
    values = (scale * np.random.default_rng(n).normal(size=n)).astype(np.float32)
    fractions = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    expected = np.quantile(values.astype(float), fractions)
    assert compute_quantiles(values, fractions) == pytest.approx(expected, rel=1e-12, abs=1e-12 * scale)


def test_quantiles_are_exact_where_a_sample_misleads():
    # Every fourth value is sampled: of these none is above 0, of all of them three in four.
    values = np.random.default_rng(1).random(1 << 22).astype(np.float32)
    values[::4] *= -1.0
    assert compute_quantiles(values, (0.25, 0.75)) == pytest.approx(np.quantile(values, (0.25, 0.75)), rel=1e-6)


def test_quantiles_leave_out_what_is_not_finite():
    values = np.array([np.nan, 3.0, np.inf, 1.0, -np.inf, 2.0], dtype=np.float32)
    assert compute_quantiles(values, (0.0, 0.5, 1.0)) == [1.0, 2.0, 3.0]
    assert np.isnan(compute_quantiles(values[:1], (0.5,))).all()


def test_quantiles_of_equal_values_are_that_value():
    assert compute_quantiles(np.full(10_000, 0.3, dtype=np.float32), (0.25, 0.75)) == [np.float32(0.3)] * 2


def test_the_width_of_noise_is_that_of_its_variance():
    rng = np.random.default_rng(1)
    variance = rng.uniform(1.0, 9.0, (300, 400)).astype(np.float32)
    image = (np.sqrt(variance) * rng.normal(size=variance.shape)).astype(np.float32)
    image[5, 7], usable = 1e30, np.ones(image.shape, dtype=bool)
    # Standard error of a standard deviation from quartiles: 1.17 sigma / sqrt(n).
    assert compute_width(compute_pulls(image, variance, usable)) == pytest.approx(1.0, abs=5 * 1.17 / image.size**0.5)


def test_pulls_are_quotients_where_pixels_are_usable():
    rng = np.random.default_rng(2)
    image, variance = rng.normal(size=(2, 9, 11)).astype(np.float32)
    usable = variance > 0
    pulls = compute_pulls(image, variance, usable)
    assert np.isnan(pulls[~usable]).all()
    np.testing.assert_array_equal(pulls[usable], image[usable] / np.sqrt(variance[usable]))
    replaced = image.copy()
    assert compute_pulls(replaced, variance, usable, out=replaced) is replaced
    np.testing.assert_array_equal(replaced, pulls)


def test_the_loop_finds_the_pixels_usable_that_array_operations_find():
    rng = np.random.default_rng(3)
    odd = np.array([np.nan, np.inf, -np.inf, 0.0, -1.0, 1.0], dtype=np.float32)
    image, variance = odd[rng.integers(0, odd.size, (2, 40, 50))]
    mask = rng.integers(0, 4, image.shape).astype(np.int32)
    usable = np.empty(mask.shape, dtype=bool)
    _loops.find_usable(image, mask, variance, 2, usable)
    twin = ((mask & 2) == 0) & np.isfinite(image) & np.isfinite(variance) & (variance > 0)
    np.testing.assert_array_equal(usable, twin)


def test_a_view_has_the_usable_pixels_of_the_whole():
    rng = np.random.default_rng(4)
    odd = np.array([np.nan, np.inf, 0.0, 1.0], dtype=np.float32)
    image, variance = odd[rng.integers(0, odd.size, (2, 30, 30))]
    whole = MaskedImage(image, rng.integers(0, 4, image.shape).astype(np.int32), variance)
    part = MaskedImage(*(plane[3:20, 5:17] for plane in (whole.image, whole.mask, whole.variance)))
    np.testing.assert_array_equal(part.usable(1), whole.usable(1)[3:20, 5:17])


def test_the_values_of_a_mask_are_counted_as_array_operations_do():
    mask = np.repeat(np.random.default_rng(5).integers(0, 16, (20, 30)), 3, axis=1).astype(np.int32)
    mask[3, 4] = -1
    counts = np.zeros(8, dtype=np.int64)
    _loops.count_flags(mask, 7, counts)
    np.testing.assert_array_equal(counts, np.bincount((mask & 7).ravel(), minlength=8))
