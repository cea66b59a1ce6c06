import numpy as np
import pytest

from alertprod.detection import _loops
from alertprod.detection.background import estimate_background


def test_level_and_noise_of_a_flat_sky():
    image = np.random.default_rng(1).normal(100.0, 3.0, (256, 320)).astype(np.float32)
    background = estimate_background(image, np.ones(image.shape, dtype=bool), bin_size=64)
    n = 32 * 32
    # A quarter of a bin's pixels are looked at. A median's error is 1.25 sigma / sqrt(n); there are 20 bins.
    assert np.abs(background.level - 100.0).max() < 4.0 * 1.25 * 3.0 / np.sqrt(n)
    # Clipping at three sigmas shortens the scatter by 1 %.
    assert np.abs(background.sigma - 3.0).max() < 4.0 * 1.17 * 3.0 / np.sqrt(n) + 0.03
    assert background.compute_image().shape == image.shape
    assert background.compute_sigma_image().min() > 2.5


@pytest.mark.parametrize("shape", [(200, 300), (64, 300), (100, 64), (20, 20)])
def test_slope_is_followed(shape):
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = (10.0 + 0.02 * x - 0.01 * y).astype(np.float32)
    drawn = estimate_background(image, np.ones(shape, dtype=bool), bin_size=20).compute_image()
    inner = (slice(10, -9), slice(10, -9))
    np.testing.assert_allclose(drawn[inner], image[inner], atol=0.03)
    # Beyond the outer bins' centres the level is kept: half a bin of slope.
    np.testing.assert_allclose(drawn, image, atol=10 * 0.03 + 0.03)


def test_sources_are_clipped_away():
    rng = np.random.default_rng(2)
    image = rng.normal(0.0, 1.0, (256, 256)).astype(np.float32)
    image.reshape(-1)[rng.choice(image.size, image.size // 20, replace=False)] += 500.0
    level = estimate_background(image, np.ones(image.shape, dtype=bool), bin_size=64).level
    # The 5 % that were hit move the median by half of 5 % of a sigma's rank, 0.07 sigma, before the clip removes them.
    assert np.abs(level).max() < 4.0 * 1.25 / 32.0


def test_masked_pixels_do_not_count_and_masked_bins_borrow():
    image = np.full((128, 128), 5.0, dtype=np.float32)
    usable = np.ones(image.shape, dtype=bool)
    image[:64, :64] = 1000.0
    usable[:64, :64] = False
    image[100, 100] = np.nan
    drawn = estimate_background(image, usable, bin_size=32).compute_image()
    np.testing.assert_allclose(drawn, 5.0, rtol=1e-5)


def test_offset_and_scale_carry_through():
    image = np.random.default_rng(3).normal(0.0, 1.0, (128, 128))
    everywhere = np.ones(image.shape, dtype=bool)
    plain = estimate_background(image, everywhere, bin_size=32).level
    changed = estimate_background(7.0 * image + 30.0, everywhere, bin_size=32).level
    np.testing.assert_allclose(changed, 7.0 * plain + 30.0, rtol=1e-6)


def test_image_without_a_usable_pixel_is_refused():
    with pytest.raises(ValueError, match="no usable pixel"):
        estimate_background(np.zeros((20, 20)), np.zeros((20, 20), dtype=bool), bin_size=10)


def test_bins_need_a_size():
    with pytest.raises(ValueError, match="bin_size"):
        estimate_background(np.zeros((20, 20)), np.ones((20, 20), dtype=bool), bin_size=0)


def test_clipped_median_equals_its_numpy_twin():
    rng = np.random.default_rng(4)
    image = rng.normal(size=(30, 40)) + (rng.random((30, 40)) < 0.1) * 50.0
    usable = rng.random((30, 40)) < 0.8
    edges_y, edges_x = np.array([0, 15, 30]), np.array([0, 13, 40])
    level, sigma, number = _loops.clipped_medians(image, usable, edges_y, edges_x, 3.0, 5, 10**6)
    for i in range(2):
        for j in range(2):
            part = (slice(edges_y[i], edges_y[i + 1]), slice(edges_x[j], edges_x[j + 1]))
            values = image[part][usable[part]]
            assert number[i, j] == len(values)
            for _ in range(6):
                middle = np.median(values)
                spread = 1.4826 * np.median(np.abs(values - middle))
                kept = values[np.abs(values - middle) <= 3.0 * spread]
                if len(kept) == len(values):
                    break
                values = kept
            assert level[i, j] == pytest.approx(middle)
            assert sigma[i, j] == pytest.approx(spread)


def test_values_at_pixels_are_those_of_the_drawn_image():
    rng = np.random.default_rng(3)
    image = rng.normal(size=(130, 170)) + np.linspace(0.0, 5.0, 170)
    background = estimate_background(image, np.ones(image.shape, dtype=bool), bin_size=20)
    x, y = rng.integers(0, 170, 50), rng.integers(0, 130, 50)
    np.testing.assert_allclose(background.compute_at(x=x, y=y), background.compute_image()[y, x], rtol=1e-5, atol=1e-5)


def test_lines_between_bins_stay_within_them():
    image = np.where(np.arange(160) < 80, 1.0, 1000.0) * np.ones((64, 1))
    background = estimate_background(image, np.ones(image.shape, dtype=bool), bin_size=16)
    straight = background.compute_image(linear=True)
    assert (straight.min(), straight.max()) == (pytest.approx(1.0), pytest.approx(1000.0))
    assert background.compute_image().min() < 0.0, "a spline rings"


def test_a_sample_that_meets_masked_pixels_only_is_not_the_last_word():
    # Bins so large that every second pixel of a row is looked at, all of which are masked.
    image = np.random.default_rng(4).normal(5.0, 1.0, (128, 128)).astype(np.float32)
    usable = np.zeros(image.shape, dtype=bool)
    usable[:, 1::2] = True
    level = estimate_background(image, usable, bin_size=128).level
    assert np.abs(level - 5.0).max() < 5.0 * 1.25 / np.sqrt(128 * 64)
    with pytest.raises(ValueError, match="no usable pixel"):
        estimate_background(image, np.zeros_like(usable), bin_size=128)
