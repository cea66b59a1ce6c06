import numpy as np
import pytest

from alertprod.detection import _loops
from alertprod.detection.background import (
    Background,
    _interpolation_matrix,
    _with_outer_slopes,
    estimate_background,
)


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
    # A single bin has no slope; more of them have it to the image's edge.
    atol = [0.01 if length == 20 else 1e-4 for length in shape]
    np.testing.assert_allclose(drawn, image, atol=10 * atol[0] + 20 * atol[1] + 0.01)


def test_a_gradient_goes_on_to_the_edge_of_the_image():
    y, x = np.mgrid[:160, :200]
    image = 3.0 - 0.05 * x + 0.02 * y + 1e-4 * x * y
    background = estimate_background(image, np.ones(image.shape, dtype=bool), bin_size=40)
    # The median of a bin of a plane is the plane's value in the middle, of a twisted plane within its twist's half bin.
    for linear in (False, True):
        np.testing.assert_allclose(background.compute_image(linear=linear), image, atol=2 * 1e-4 * 20**2)
    border = np.array([0, 199, 100, 0]), np.array([0, 159, 0, 80])
    drawn = background.compute_image()[border[1], border[0]]
    np.testing.assert_allclose(background.compute_at(x=border[0], y=border[1]), drawn, rtol=1e-5, atol=1e-5)


def test_the_slope_beyond_the_outer_bins_is_the_smaller_of_two_and_none_where_they_disagree():
    def draw(*levels):
        image = np.repeat(np.array(levels, dtype=float), 10)[None, :] * np.ones((10, 1))
        return estimate_background(image, np.ones(image.shape, dtype=bool), bin_size=10).compute_image(linear=True)[0]

    # From the centre at 4.5 to the first pixel, at the slope per bin of ten pixels.
    assert draw(6.0, 4.0, 3.0, 3.0)[0] == pytest.approx(6.0 + 1.0 * 0.45)
    assert draw(9.0, 3.0, 3.0, 3.0)[0] == pytest.approx(9.0)
    assert draw(9.0, 3.0, 5.0, 3.0)[0] == pytest.approx(9.0)
    assert draw(6.0, 3.0)[-1] == pytest.approx(3.0 - 3.0 * 0.45)


def test_noise_alone_is_no_variation_and_a_gradient_is():
    rng = np.random.default_rng(6)
    noise = rng.normal(0.0, 2.0, (512, 512))
    everywhere = np.ones(noise.shape, dtype=bool)
    # What a median absolute deviation of 64 bins leaves by chance: 0.15 of the bins' own error.
    error = 1.2533 * 2.0 / 32.0
    assert estimate_background(noise, everywhere, bin_size=64).measure_variation() < 0.7 * error
    ramp = np.linspace(-5.0, 5.0, 512)[None, :]
    found = estimate_background(noise + ramp, everywhere, bin_size=64).measure_variation()
    # The median absolute deviation of a uniform distribution of full width w is w/4.
    assert found == pytest.approx(1.4826 * 10.0 / 4.0, rel=0.15)
    # A bright galaxy in two of 64 bins is not the sky.
    noise[:60, :120] += 100.0
    assert estimate_background(noise, everywhere, bin_size=64).measure_variation() < error


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


@pytest.mark.parametrize("n_bins", [1, 2, 3, 9])
@pytest.mark.parametrize("linear", [False, True])
def test_the_drawn_surface_equals_the_product_of_the_interpolation_matrices(n_bins, linear):
    rng = np.random.default_rng(8)
    bins = Background(
        level=rng.normal(size=(n_bins, 4)), sigma=rng.uniform(1.0, 2.0, (n_bins, 4)),
        row_centers=np.arange(n_bins) * 11.0 + 5.2, column_centers=np.arange(4) * 9.0 + 4.0,
        shape=(11 * n_bins, 36), n_sampled=99.0,
    )  # fmt: skip
    rows, columns = (
        _interpolation_matrix(tuple(centers), length, linear=linear)
        for centers, length in ((bins.row_centers, 11 * n_bins), (bins.column_centers, 36))
    )
    expected = rows.astype(float) @ _with_outer_slopes(bins.level) @ columns.T.astype(float)
    # Sums of a few dozen products in single precision.
    np.testing.assert_allclose(bins.compute_image(linear=linear), expected, atol=3e-6)
    image = np.ones(bins.shape, dtype=np.float32)
    bins.subtract_from(image)
    np.testing.assert_allclose(image, 1.0 - bins.compute_image(), atol=3e-7)
    with pytest.raises(ValueError, match="shape"):
        bins.subtract_from(image[1:])


def test_bins_larger_than_the_sample_are_looked_at_on_a_grid():
    image = np.arange(20.0 * 33.0, dtype=np.float32).reshape(20, 33)
    usable = np.ones(image.shape, dtype=bool)
    usable[4, 6], image[8, 18] = False, np.nan
    edges = np.array([0, 15, 33])
    samples = np.empty((2, 99), dtype=np.float32)
    numbers = _loops.sample_bins(image, usable, 2, 20, edges, 60, samples)
    for j, (start, stop) in enumerate(((0, 15), (15, 33))):
        step = int(np.sqrt(18 * (stop - start) / 60))
        expected = image[2:20:step, start:stop:step][usable[2:20:step, start:stop:step]]
        expected = expected[np.isfinite(expected)]
        assert numbers[j] == len(expected)
        np.testing.assert_array_equal(np.sort(samples[j])[: len(expected)], np.sort(expected))
        assert np.isinf(np.sort(samples[j])[len(expected) :]).all()
