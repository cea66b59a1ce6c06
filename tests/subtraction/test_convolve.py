import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from scipy.signal import convolve2d

from alertprod.geometry.box import Box
from alertprod.subtraction import _loops
from alertprod.subtraction.convolve import convolve_image, convolve_variance, fill_bad_pixels, grow_mask
from alertprod.subtraction.spatial import SpatialKernel, spatial_terms


def gaussian(size, sigma):
    half = size // 2
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    image = np.exp(-0.5 * (u**2 + v**2) / sigma**2)
    return image / image.sum()


def test_constant_kernel_is_an_ordinary_convolution(rng):
    image = rng.normal(size=(300, 270)).astype(np.float32)
    kernel = rng.normal(size=(7, 7))
    found = convolve_image(image, SpatialKernel.constant(kernel, Box.from_shape(image.shape)))
    expected = convolve2d(image, kernel, mode="valid")
    # Rounding of a float32 transform of 256 x 256 values.
    np.testing.assert_allclose(found[3:-3, 3:-3], expected, atol=1e-6 * np.abs(expected).max() * 16)


@pytest.mark.parametrize("size", [1, 3, 5, 7, 9, 11, 13])
@pytest.mark.parametrize("shape", [(70, 133), (4, 3)])
def test_constant_kernels_of_all_sizes_see_the_image_mirrored(size, shape, rng):
    image, kernel = rng.normal(size=shape).astype(np.float32), rng.normal(size=(size, size))
    found = convolve_image(image, SpatialKernel.constant(kernel, Box.from_shape(shape)))
    mirrored = np.pad(image, size // 2, mode="symmetric")
    # Of float32: sums of up to 169 products, or transforms of 256 x 256 values.
    np.testing.assert_allclose(found, convolve2d(mirrored, kernel, mode="valid"), atol=2e-5 * np.abs(kernel).sum())


def test_light_is_spread_by_the_kernel_of_the_place_it_comes_from(rng):
    shape = (90, 120)
    box = Box.from_shape(shape)
    kernel = SpatialKernel(rng.normal(size=(3, 5, 5)), 1, box)
    image = np.zeros(shape, dtype=np.float32)
    expected = np.zeros(shape)
    for x, y in [(20, 30), (100, 80), (60, 10), (61, 11)]:
        image[y, x] = 10.0
        expected[y - 2 : y + 3, x - 2 : x + 3] += 10.0 * kernel(x, y)
    np.testing.assert_allclose(convolve_image(image, kernel), expected, atol=1e-4)


def test_higher_orders_follow_their_terms(rng):
    shape = (64, 64)
    box = Box.from_shape(shape)
    kernel = SpatialKernel(rng.normal(size=(6, 3, 3)), 2, box)
    image = rng.normal(size=shape).astype(np.float32)
    y, x = np.mgrid[0:64, 0:64]
    terms = spatial_terms(2, box, x=x.ravel(), y=y.ravel()).T.reshape(6, 64, 64)
    expected = sum(convolve2d(image * t, k, mode="same") for t, k in zip(terms, kernel.terms, strict=True))
    np.testing.assert_allclose(convolve_image(image, kernel)[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-4)


def test_number_of_threads_does_not_change_a_bit(rng):
    image = rng.normal(size=(600, 300)).astype(np.float32)
    kernel = SpatialKernel(rng.normal(size=(3, 9, 9)), 1, Box.from_shape(image.shape))
    assert np.array_equal(convolve_image(image, kernel, n_threads=1), convolve_image(image, kernel, n_threads=2))


def test_wide_kernels_and_images_narrower_than_a_tile_agree_with_direct_sums(rng):
    image = rng.normal(size=(40, 150)).astype(np.float32)
    kernel = gaussian(101, 12.0)
    found = convolve_image(image, SpatialKernel.constant(kernel, Box.from_shape(image.shape)))
    mirrored = np.pad(image, 50, mode="symmetric")
    np.testing.assert_allclose(found, convolve2d(mirrored, kernel, mode="valid"), atol=1e-5)


def test_variance_of_white_noise_is_what_the_convolved_pixels_show(rng):
    shape = (400, 400)
    kernel = SpatialKernel.constant(gaussian(11, 1.2), Box.from_shape(shape))
    noise = rng.normal(0.0, 3.0, shape).astype(np.float32)
    variance = convolve_variance(np.full(shape, 9.0, dtype=np.float32), kernel.squared())
    pixels = convolve_image(noise, kernel)
    # Pixels within a kernel are not independent: one in about 4 pi sigma^2 is.
    n_independent = noise.size / (4 * np.pi * 1.2**2)
    assert pixels.var() == pytest.approx(variance.mean(), rel=5 * np.sqrt(2 / n_independent))


def test_variance_follows_a_varying_kernel_where_it_is_smooth():
    shape = (200, 300)
    box = Box.from_shape(shape)
    narrow, wide = gaussian(15, 1.0), gaussian(15, 2.0)
    kernel = SpatialKernel(np.array([(narrow + wide) / 2, (wide - narrow) / 2, 0 * wide]), 1, box)
    variance = convolve_variance(np.full(shape, 4.0, dtype=np.float32), kernel.squared())
    for x in (30, 150, 280):
        assert variance[100, x] == pytest.approx(4.0 * (kernel(x, 100) ** 2).sum(), rel=1e-4)


def test_variance_stays_positive_beside_a_spike():
    variance = np.ones((100, 100), dtype=np.float32)
    variance[50, 50] = 1e9
    kernel = SpatialKernel.constant(gaussian(9, 0.8), Box.from_shape(variance.shape))
    assert convolve_variance(variance, kernel.squared()).min() > 0


def test_kernel_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="shape"):
        convolve_image(
            np.zeros((10, 10), dtype=np.float32), SpatialKernel.constant(np.ones((3, 3)), Box.from_shape((9, 9)))
        )


def test_filling_is_the_weighted_mean_of_good_neighbours(rng):
    image = rng.normal(size=(30, 40)).astype(np.float32)
    bad = rng.uniform(size=image.shape) < 0.2
    image[bad] = np.nan
    filled = fill_bad_pixels(image, bad)
    expected = image.copy()
    for y, x in np.argwhere(bad):
        rows, columns = np.mgrid[max(0, y - 4) : min(30, y + 5), max(0, x - 4) : min(40, x + 5)]
        good = ~bad[rows, columns]
        weights = 1.0 / ((rows - y) ** 2 + (columns - x) ** 2)[good]
        expected[y, x] = np.sum(weights * image[rows, columns][good]) / weights.sum()
    np.testing.assert_allclose(filled, expected, rtol=1e-5, atol=1e-6)


def test_large_holes_take_the_median_and_nothing_left_gives_zero():
    image = np.full((50, 50), 7.0, dtype=np.float32)
    bad = np.zeros(image.shape, dtype=bool)
    bad[10:40, 10:40] = True
    image[bad] = np.nan
    assert fill_bad_pixels(image, bad)[25, 25] == 7.0
    assert np.all(fill_bad_pixels(image, np.ones_like(bad)) == 0.0)


@pytest.mark.parametrize("radius", [0.0, 1.0, 2.5, 6.0])
def test_mask_bits_spread_over_a_disc_each(rng, radius):
    mask = np.zeros((60, 50), dtype=np.int32)
    for bit in range(3):
        mask[rng.uniform(size=mask.shape) < 0.01] |= 1 << bit
    mask[20:40, 10:30] |= 4
    offsets_y, offsets_x = _loops.disc_offsets(radius)
    reach = int(radius)
    disc = np.zeros((2 * reach + 1, 2 * reach + 1), dtype=bool)
    disc[offsets_y + reach, offsets_x + reach] = True
    grown = grow_mask(mask, radius)
    for bit in range(3):
        assert np.array_equal((grown >> bit) & 1, binary_dilation((mask >> bit) & 1, disc))
