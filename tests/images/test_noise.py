import numpy as np
import pytest
from scipy import ndimage

from alertprod.images import noise

SIZE = 256


def no_pixels(image):
    return np.zeros(image.shape, dtype=bool)


def make_sky(rng, *, level=100.0, rms=5.0, shape=(SIZE, SIZE)):
    return rng.normal(level, rms, size=shape).astype(np.float32)


def make_stars(rng, shape, *, n, fwhm=4.0, brightest=30000.0):
    """Return noise-free Gaussian stars with fluxes over three decades."""
    image = np.zeros(shape)
    sigma = fwhm / 2.3548
    y, x = np.mgrid[-15:16, -15:16]
    for _ in range(n):
        row, column = (int(rng.integers(16, size - 16)) for size in shape)
        dx, dy = rng.uniform(-0.5, 0.5, size=2)
        star = np.exp(-0.5 * ((x - dx) ** 2 + (y - dy) ** 2) / sigma**2)
        image[row - 15 : row + 16, column - 15 : column + 16] += brightest * 10 ** rng.uniform(-3, 0) * star
    return image


def test_sky_of_a_flat_image_is_its_level_and_scatter():
    image = make_sky(np.random.default_rng(1))
    sky = noise.measure_sky(image, no_pixels(image), cell_size=64)
    assert sky.level.shape == sky.rms.shape == (4, 4)
    # 16 cells of 1024 samples: the median to 1.25 sigma / sqrt(n), the half-scatter to sigma / sqrt(n).
    assert sky.level.mean() == pytest.approx(100.0, abs=5 * 1.25 * 5.0 / np.sqrt(16 * 1024))
    assert sky.rms.mean() == pytest.approx(5.0, abs=5 * 5.0 / np.sqrt(16 * 1024))


def test_stars_and_bad_pixels_hardly_move_the_sky():
    rng = np.random.default_rng(2)
    image = make_sky(rng) + make_stars(rng, (SIZE, SIZE), n=60).astype(np.float32)
    bad = no_pixels(image)
    bad[:, 100:104] = True
    image[bad] = 1e5
    image[50:60, 50:60] = np.nan
    sky = noise.measure_sky(image, bad, cell_size=64)
    assert np.median(sky.rms) == pytest.approx(5.0, rel=0.1)
    assert np.median(sky.level) == pytest.approx(100.0, abs=1.5)


def test_sky_follows_a_gradient_and_scales_with_flux():
    rng = np.random.default_rng(3)
    y = np.arange(SIZE)[:, None]
    image = make_sky(rng) + (0.2 * y).astype(np.float32)
    sky = noise.measure_sky(image, no_pixels(image), cell_size=32)
    level = sky.compute_level_image()
    inner = slice(32, -32)
    assert np.abs((level - 100.0 - 0.2 * y)[inner]).max() < 1.5
    doubled = noise.measure_sky(2 * image, no_pixels(image), cell_size=32)
    np.testing.assert_allclose(doubled.level, 2 * sky.level, rtol=1e-5)
    np.testing.assert_allclose(doubled.rms, 2 * sky.rms, rtol=1e-5)


def test_transposing_the_image_transposes_the_sky():
    image = make_sky(np.random.default_rng(4), shape=(128, 256))
    sky = noise.measure_sky(image, no_pixels(image), cell_size=64)
    turned = noise.measure_sky(np.ascontiguousarray(image.T), no_pixels(image.T), cell_size=64)
    np.testing.assert_allclose(turned.level, sky.level.T, rtol=1e-6)
    np.testing.assert_allclose(turned.rms, sky.rms.T, rtol=1e-6)


def test_cells_without_pixels_take_their_neighbours_values():
    image = make_sky(np.random.default_rng(5))
    bad = no_pixels(image)
    bad[:64, :64] = True
    image[bad] = np.nan
    sky = noise.measure_sky(image, bad, cell_size=64)
    assert sky.level[0, 0] == pytest.approx(100.0, abs=1.0)
    with pytest.raises(ValueError, match="no cell"):
        noise.measure_sky(image, np.ones_like(bad), cell_size=64)


@pytest.mark.parametrize("shape", [(5, 7), (16, 300), (1, 1)])
def test_images_smaller_than_a_cell_are_one_cell(shape):
    image = make_sky(np.random.default_rng(6), shape=shape)
    if shape == (1, 1):
        with pytest.raises(ValueError, match="no cell"):
            noise.measure_sky(image, no_pixels(image), cell_size=64)
        return
    sky = noise.measure_sky(image, no_pixels(image), cell_size=64)
    assert sky.compute_level_image().shape == shape


def test_pixels_quantised_to_their_scatter_are_measured():
    image = np.round(make_sky(np.random.default_rng(7), rms=1.0))
    sky = noise.measure_sky(image, no_pixels(image), cell_size=64)
    # Rounding adds 1/12; the median of integers may be half a unit off, which the half-scatter feels in full.
    assert np.median(sky.rms) == pytest.approx(np.sqrt(1 + 1 / 12), rel=0.25)


def observe(rng, light, *, gain, read_noise):
    """Return counts of an image of `light` (image units, sky included)."""
    electrons = rng.poisson(light * gain) + rng.normal(0.0, read_noise, size=light.shape)
    return (electrons / gain).astype(np.float32)


def test_variance_from_gain_is_that_of_the_pixels():
    rng = np.random.default_rng(8)
    light = 200.0 + make_stars(rng, (512, 512), n=60)
    image = observe(rng, light, gain=1.9, read_noise=5.0)
    sky = noise.measure_sky(image, no_pixels(image), cell_size=64)
    variance = noise.compute_variance_from_gain(image, no_pixels(image), sky, gain=1.9, read_noise=5.0, pedestal=0.0)
    pulls = (image - light) / np.sqrt(variance)
    assert variance.dtype == np.float32
    # The sky level's own error is some 1 % of the variance.
    assert pulls.std() == pytest.approx(1.0, abs=0.01)
    bright = light > 1000.0
    assert bright.sum() > 300
    assert pulls[bright].std() == pytest.approx(1.0, abs=5 / np.sqrt(2 * bright.sum()))


def test_a_pedestal_has_no_photon_noise():
    rng = np.random.default_rng(9)
    light = np.full((SIZE, SIZE), 200.0)
    image = observe(rng, light, gain=2.0, read_noise=4.0) + np.float32(1000.0)
    sky = noise.measure_sky(image, no_pixels(image), cell_size=64)
    variance = noise.compute_variance_from_gain(image, no_pixels(image), sky, gain=2.0, read_noise=4.0, pedestal=1000.0)
    assert np.median(variance) == pytest.approx(200.0 / 2.0 + 4.0, rel=0.01)


def test_an_empty_sky_has_a_floor_of_noise():
    image = np.zeros((64, 64), dtype=np.float32)
    sky = noise.measure_sky(image, no_pixels(image), cell_size=64)
    variance = noise.compute_variance_from_gain(image, no_pixels(image), sky, gain=2.0, read_noise=0.0, pedestal=0.0)
    np.testing.assert_allclose(variance, 0.25)


def test_variance_does_not_follow_a_pixels_own_noise():
    rng = np.random.default_rng(10)
    image = observe(rng, np.full((SIZE, SIZE), 20.0), gain=1.0, read_noise=0.0)
    sky = noise.measure_sky(image, no_pixels(image), cell_size=64)
    variance = noise.compute_variance_from_gain(image, no_pixels(image), sky, gain=1.0, read_noise=0.0, pedestal=0.0)
    weights = 1.0 / variance
    bias = (weights * image).sum() / weights.sum() - 20.0
    # Weights from single pixels would give -1 (the harmonic mean of a Poisson variable); nine pixels a ninth.
    assert abs(bias) < 0.2


def test_bad_pixels_lend_no_light_to_their_neighbours():
    image = np.full((64, 64), 10.0, dtype=np.float32)
    image[30, 30] = np.nan
    image[40, 40] = 1e6
    bad = ~np.isfinite(image) | (image > 1e5)
    variance = noise.add_photon_noise(
        np.full(image.shape, 4.0, np.float32), image, bad, np.full(image.shape, 10.0, np.float32), slope=1.0
    )
    np.testing.assert_allclose(variance, 4.0)


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 200])
def test_photon_noise_in_strips_is_that_of_the_whole(rows):
    rng = np.random.default_rng(rows)
    image = rng.normal(10.0, 3.0, size=(rows, 50)).astype(np.float32)
    image[rows // 2, 20] = 500.0
    sky_variance, level = np.full(image.shape, 9.0, np.float32), np.full(image.shape, 10.0, np.float32)
    excess = image - level
    smooth = ndimage.uniform_filter(excess.astype(float), size=3, mode="nearest")
    for also_below in (False, True):
        faint = smooth if also_below else np.maximum(smooth, 0.0)
        expected = 9.0 + 0.5 * np.where(excess < 15.0, faint, excess)
        found = noise.add_photon_noise(
            sky_variance.copy(), image, no_pixels(image), level, slope=0.5, also_below=also_below
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_photon_slope_is_found_without_knowing_the_gain():
    rng = np.random.default_rng(11)
    light = 500.0 + make_stars(rng, (1024, 1024), n=600)
    image = observe(rng, light, gain=1.9, read_noise=5.0)
    sky = noise.measure_sky(image, no_pixels(image), cell_size=64)
    slope = noise.estimate_photon_slope(image, no_pixels(image), sky)
    assert slope.error < 0.1 / 1.9
    # The sky's scatter, to which it is scaled, is a few per cent too wide among so many stars.
    assert slope.value == pytest.approx(1 / 1.9, abs=4 * slope.error + 0.06 / 1.9)


def test_resampling_lowers_slope_and_sky_alike():
    rng = np.random.default_rng(12)
    light = 500.0 + make_stars(rng, (1024, 1024), n=600)
    image = observe(rng, light, gain=1.9, read_noise=5.0)
    shifted = ndimage.shift(image, (0.4, 0.3), order=3).astype(np.float32)
    slopes, ratios = [], []
    for pixels in (image, shifted):
        sky = noise.measure_sky(pixels, no_pixels(pixels), cell_size=64)
        slopes.append(noise.estimate_photon_slope(pixels, no_pixels(pixels), sky))
        ratios.append(np.median(sky.rms) ** 2)
    expected = slopes[0].value * ratios[1] / ratios[0]
    assert ratios[1] < 0.9 * ratios[0]
    assert slopes[1].value == pytest.approx(expected, abs=4 * np.hypot(slopes[0].error, slopes[1].error))


def test_an_image_without_stars_has_no_slope():
    image = make_sky(np.random.default_rng(13))
    sky = noise.measure_sky(image, no_pixels(image), cell_size=64)
    assert noise.estimate_photon_slope(image, no_pixels(image), sky) is None


def test_noise_cannot_be_taken_from_pixels_without_any():
    image = np.ones((64, 64), dtype=np.float32)
    sky = noise.measure_sky(image, no_pixels(image), cell_size=64)
    with pytest.raises(ValueError, match="no scatter"):
        noise.compute_variance_from_pixels(image, no_pixels(image), sky, slope=0.0)


def test_saturated_pixels_are_counted_without_their_surroundings():
    image = np.zeros((20, 20), dtype=np.float32)
    image[5, 5], image[19, 0] = 70000.0, np.inf
    mask = np.zeros((20, 20), dtype=np.int32)
    assert noise.mask_saturated(image, mask, level=60000.0, bit=2, grow=1) == 2
    assert np.argwhere(mask).tolist() == [
        [4, 4],
        [4, 5],
        [4, 6],
        [5, 4],
        [5, 5],
        [5, 6],
        [6, 4],
        [6, 5],
        [6, 6],
        [18, 0],
        [18, 1],
        [19, 0],
        [19, 1],
    ]
    mask[:] = 0
    noise.mask_saturated(image, mask, level=60000.0, bit=2, grow=0)
    assert np.argwhere(mask).tolist() == [[5, 5], [19, 0]]
