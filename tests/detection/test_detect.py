import numpy as np
import pytest
from scipy import ndimage, stats
from scipy.signal import correlate

from alertprod.detection import _filter_loops, _loops
from alertprod.detection.detect import DetectionConfig, _disk_half_widths, detect
from alertprod.detection.matched_filter import _separate, compute_significance, make_filter_kernel
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.analytic import GaussianPsf, MoffatPsf

SIGMA = 1.8
SIX_STARS = [(30.0, 30.3, 60.0), (80.4, 31.0, -90.0), (31.0, 81.7, 120.0), (100.2, 90.0, -55.0), (64.0, 64.0, 300.0)]


def positions(footprints):
    return sorted(zip(footprints.x.tolist(), footprints.y.tolist(), strict=True))


def test_significance_of_a_star_is_its_matched_filter_signal_to_noise(make_image, psf):
    image = make_image((64, 64), psf, [(32.0, 32.0, 100.0)], noise=2.0)
    expected = 100.0 * np.sqrt((psf.compute_kernel_image(x=32, y=32) ** 2).sum()) / 2.0
    footprints = detect(image, psf)
    # The filter keeps 99.9 % of the power.
    assert footprints.significance[0] == pytest.approx(expected, rel=1e-3)
    assert (footprints.x[0], footprints.y[0]) == (32, 32)


@pytest.mark.parametrize("profile", [GaussianPsf(fwhm=4.0), MoffatPsf(fwhm=4.0, beta=2.5, size=31)])
def test_filter_keeps_the_signal_to_noise_of_the_exact_psf(profile):
    exact = profile.compute_kernel_image(x=0, y=0)
    kernel = make_filter_kernel(profile)
    kernel_y, kernel_x, _, _ = _separate(kernel)
    border = (exact.shape[0] - kernel.shape[0]) // 2
    used = np.pad(kernel_y.T @ kernel_x, border)
    efficiency = (used * exact).sum() / np.sqrt((used**2).sum() * (exact**2).sum())
    assert efficiency > 0.997


def test_filter_loop_equals_its_numpy_twin(make_image, psf):
    rng = np.random.default_rng(3)
    image = make_image((40, 53), psf, [(20.0, 15.0, 50.0)], seed=5)
    image.variance[:] = rng.uniform(0.5, 2.0, image.shape)
    image.mask[rng.random(image.shape) < 0.05] = plane_bits("BAD")
    image.image[7, 9] = np.nan
    image.variance[30, 30] = np.inf
    kernel_y, kernel_x, squared_y, squared_x = _separate(make_filter_kernel(MoffatPsf(fwhm=4.0, beta=3.0)))
    usable = image.usable(plane_bits("BAD"))
    values = np.where(usable, image.image, 0.0)
    variances = np.where(usable, image.variance, 0.0)
    total = correlate(values, kernel_y.T.astype(float) @ kernel_x, mode="same", method="direct")
    noise = correlate(variances, np.outer(squared_y, squared_x).astype(float), mode="same", method="direct")
    planes = (image.image, image.variance, image.mask, plane_bits("BAD"), kernel_y, kernel_x, squared_y, squared_x)
    whole, bands = np.empty((2, *image.shape), dtype=np.float32)
    _filter_loops.filter_significance(*planes, 0, 40, whole)
    np.testing.assert_allclose(whole, total / np.sqrt(noise), atol=2e-5)
    for first, last in ((0, 3), (3, 30), (30, 40)):
        _filter_loops.filter_significance(*planes, first, last, bands)
    np.testing.assert_array_equal(bands, whole)


def test_pure_noise_has_unit_significance_and_the_expected_rate_of_false_peaks(make_image, psf):
    n, threshold = 1024, 3.8
    image = make_image((n, n), psf, seed=11)
    significance = compute_significance(image, make_filter_kernel(psf), bad_bits=0)
    # Independent samples are about 4 pi sigma^2 pixels each.
    n_independent = n * n / (4.0 * np.pi * SIGMA**2)
    assert significance.std() == pytest.approx(1.0, abs=5.0 / np.sqrt(2.0 * n_independent))
    assert abs(significance.mean()) < 5.0 / np.sqrt(n_independent)
    # Density of the maxima of a Gaussian field above u: (2 pi)^(-3/2) u exp(-u^2/2) times its second spectral moment.
    density = (2.0 * np.pi) ** -1.5 * threshold * np.exp(-0.5 * threshold**2) / (2.0 * SIGMA**2)
    expected = 2.0 * density * n * n
    found = len(detect(image, psf, config=DetectionConfig(threshold=threshold, n_sigma_to_grow=0.0)))
    # The formula is for the excursions; it is good to 10 % at this height.
    assert abs(found - expected) < 4.0 * np.sqrt(expected) + 0.1 * expected


@pytest.mark.parametrize("signal_to_noise", [6.0, 7.0])
def test_completeness_is_at_least_that_of_the_pixel_under_the_source(make_image, psf, signal_to_noise):
    flux = signal_to_noise / np.sqrt((psf.compute_kernel_image(x=0, y=0) ** 2).sum())
    grid = np.arange(20, 800, 30)
    stars = [(x, y, flux * (-1) ** (i + j)) for i, x in enumerate(grid) for j, y in enumerate(grid)]
    footprints = detect(make_image((820, 820), psf, stars, seed=2), psf)
    truth = np.array(stars)[:, :2]
    distance = np.hypot(footprints.x[:, None] - truth[:, 0], footprints.y[:, None] - truth[:, 1]).min(axis=0)
    completeness = float((distance < 2.0 * SIGMA).mean())
    # A source is found at least when its own pixel exceeds the threshold; a neighbour may do so too.
    lower = stats.norm.cdf(signal_to_noise - 5.0)
    n = len(stars)
    assert completeness > lower - 4.0 * np.sqrt(lower * (1.0 - lower) / n)


def test_both_signs_are_found_and_the_sign_flip_swaps_them(make_image, psf):
    image = make_image((128, 128), psf, SIX_STARS, seed=1)
    footprints = detect(image, psf)
    image.image *= -1.0
    flipped = detect(image, psf)
    assert positions(footprints) == positions(flipped)
    np.testing.assert_array_equal(footprints.is_negative, ~flipped.is_negative)
    assert footprints.is_negative.sum() == 2
    only = detect(image, psf, config=DetectionConfig(polarity="negative"))
    assert only.is_negative.all()
    assert len(only) == 3


def test_transposed_image_gives_the_same_sources(make_image, psf):
    image = make_image((128, 100), psf, [(x * 0.7, y, f) for x, y, f in SIX_STARS], seed=1)
    transposed = MaskedImage(*(np.ascontiguousarray(a.T) for a in (image.image, image.mask, image.variance)))
    expected = sorted((x, y) for y, x in positions(detect(image, psf)))
    assert positions(detect(transposed, psf)) == expected
    assert len(expected) == 5


def test_whole_pixel_shift_moves_the_sources(make_image, psf):
    image = make_image((128, 128), psf, SIX_STARS, seed=1)
    shifted = MaskedImage(*(np.roll(a, (5, 9), axis=(0, 1)) for a in (image.image, image.mask, image.variance)))
    assert positions(detect(shifted, psf)) == [(x + 9, y + 5) for x, y in positions(detect(image, psf))]


@pytest.mark.parametrize("scale", [1e-4, 1e5])
def test_flux_scale_changes_nothing(make_image, psf, scale):
    image = make_image((128, 128), psf, SIX_STARS, seed=1)
    scaled = MaskedImage(image.image * np.float32(scale), image.mask, image.variance * np.float32(scale**2))
    a, b = detect(image, psf), detect(scaled, psf)
    np.testing.assert_array_equal(a.pixels, b.pixels)
    np.testing.assert_allclose(a.peak_significance, b.peak_significance, rtol=1e-5)


def test_nothing_is_found_where_pixels_are_absent(make_image, psf):
    image = make_image((128, 128), psf, seed=4)
    image.image[20:60, 20:60] = np.nan
    image.image[80:90, 80:90] = 1e6
    image.mask[80:90, 80:90] = plane_bits("NO_DATA")
    image.image[100, 10] = np.inf
    image.variance[5, 5] = np.nan
    image.image[64, 100] = 1e5
    image.mask[64, 100] = plane_bits("CR")
    assert len(detect(image, psf)) == 0


def test_source_beside_a_bad_column_is_found_at_its_place(make_image, psf):
    image = make_image((64, 64), psf, [(32.0, 32.0, 80.0)])
    image.image[:, 34] = 1e4
    image.mask[:, 34] = plane_bits("BAD")
    footprints = detect(image, psf)
    assert positions(footprints) == [(32, 32)]


def test_source_on_the_border_is_found_and_one_mostly_outside_is_not(make_image, psf):
    on_border = detect(make_image((64, 64), psf, [(0.0, 32.0, 200.0)]), psf)
    assert positions(on_border) == [(0, 32)]
    outside = detect(make_image((64, 64), psf, [(-3.0, -3.0, 1000.0)]), psf)
    assert len(outside) == 0


def test_touching_lobes_merge_into_one_source_that_keeps_both_peaks(make_image, psf):
    image = make_image((64, 64), psf, [(30.0, 32.0, 100.0), (34.0, 32.0, -120.0)])
    merged = detect(image, psf)
    assert len(merged) == 1
    assert merged.n_peaks[0] == 2
    assert merged.peak_significance[0] < 0 < merged.peak_significance[1]
    assert merged.has_both_signs[0]
    assert not merged.is_negative[0]
    apart = detect(image, psf, config=DetectionConfig(merge=False))
    assert apart.is_negative.tolist() == [True, False]
    assert set(apart.pixels[: apart.area[0]]) & set(apart.pixels[apart.area[0] :]), "grown lobes overlap"


def test_order_is_total_even_among_equal_sources(make_image, psf):
    stars = [(90.0, 20.0, 100.0), (20.0, 90.0, 100.0), (20.0, 20.0, 100.0), (60.0, 60.0, 101.0)]
    footprints = detect(make_image((110, 110), psf, stars), psf)
    found = list(zip(footprints.x.tolist(), footprints.y.tolist(), strict=True))
    assert found == [(60, 60), (20, 20), (90, 20), (20, 90)]


def test_footprints_are_disks_about_the_pixels_over_the_threshold(make_image, psf):
    image = make_image((128, 128), psf, SIX_STARS, seed=1)
    config = DetectionConfig(polarity="positive")
    significance = compute_significance(image, make_filter_kernel(psf), bad_bits=0)
    radius = int(2.4 * SIGMA + 0.5)
    v, u = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    grown = ndimage.binary_dilation(significance >= 5.0, structure=u * u + v * v <= radius * radius)
    labels, count = ndimage.label(grown, structure=np.ones((3, 3)))
    footprints = detect(image, psf, config=config)
    assert len(footprints) == count
    ours = footprints.compute_labels()
    np.testing.assert_array_equal(ours > 0, grown)
    assert len(set(zip(ours[grown].tolist(), labels[grown].tolist(), strict=True))) == count


def test_detected_planes_mark_the_footprints_and_nothing_else(make_image, psf):
    image = make_image((128, 128), psf, SIX_STARS, seed=1)
    image.mask[0, 0] = plane_bits("DETECTED", "SUSPECT")
    footprints = detect(image, psf, set_planes=True)
    labels = footprints.compute_labels()
    negative = np.isin(labels, np.flatnonzero(footprints.is_negative) + 1)
    np.testing.assert_array_equal((image.mask & plane_bits("DETECTED")) != 0, (labels > 0) & ~negative)
    np.testing.assert_array_equal((image.mask & plane_bits("DETECTED_NEGATIVE")) != 0, negative)
    assert image.mask[0, 0] == plane_bits("SUSPECT")


def test_image_and_mask_are_untouched_unless_planes_are_asked_for(make_image, psf):
    image = make_image((128, 128), psf, SIX_STARS, seed=1)
    before = image.copy()
    detect(image, psf)
    np.testing.assert_array_equal(image.image, before.image)
    np.testing.assert_array_equal(image.mask, before.mask)


def test_min_pixels_drops_single_pixels(make_image, psf):
    image = make_image((64, 64), psf, [(20.0, 20.0, 200.0)])
    image.image[50, 50] = 8.0
    config = DetectionConfig(min_pixels=3)
    assert len(detect(image, psf, smooth=False)) == 2
    assert positions(detect(image, psf, smooth=False, config=config)) == [(20, 20)]


def test_score_image_is_thresholded_as_it_is(make_image, psf):
    image = make_image((32, 32), psf)
    image.image[10, 12] = 14.0
    image.variance[:] = 4.0
    footprints = detect(image, psf, smooth=False)
    assert footprints.significance.tolist() == [7.0]


def test_gaussian_of_a_given_sigma_may_stand_for_the_psf(make_image, psf):
    image = make_image((128, 128), psf, SIX_STARS, seed=1)
    assert positions(detect(image, SIGMA)) == positions(detect(image, psf))


@pytest.mark.parametrize("sigma", [0.0, -1.0, np.nan])
def test_impossible_width_is_refused(make_image, psf, sigma):
    with pytest.raises(ValueError, match="PSF sigma"):
        detect(make_image((16, 16), psf), sigma)


def test_detection_everywhere_ends_in_one_footprint(psf):
    image = MaskedImage(
        np.full((64, 64), 100.0, dtype=np.float32), np.zeros((64, 64), np.int32), np.ones((64, 64), np.float32)
    )
    footprints = detect(image, psf)
    assert len(footprints) == 1
    assert footprints.area[0] == 64 * 64


@pytest.mark.parametrize("share", [0.002, 0.35])
def test_labels_equal_those_of_scipy(share):
    painted = (np.random.default_rng(1).random((60, 171)) < share).astype(np.uint8)
    painted[0, 170] = painted[1, 0] = 1
    pixels, component, count = _loops.label_pixels(painted, 1)
    labels, expected = ndimage.label(painted, structure=np.ones((3, 3)))
    assert count == expected
    np.testing.assert_array_equal(pixels, np.flatnonzero(painted))
    np.testing.assert_array_equal(component + 1, labels.reshape(-1)[pixels])


def test_painting_equals_dilation_by_a_disk():
    detected = ndimage.binary_dilation(np.random.default_rng(2).random((50, 61)) < 0.01, iterations=3)
    pixels = np.flatnonzero(detected)
    painted = np.zeros(detected.shape, dtype=np.uint8)
    _loops.paint_shapes(pixels, np.ones(len(pixels), dtype=np.uint8), _disk_half_widths(4), painted)
    v, u = np.mgrid[-4:5, -4:5]
    np.testing.assert_array_equal(painted > 0, ndimage.binary_dilation(detected, structure=u * u + v * v <= 16))


def test_peaks_equal_those_of_a_maximum_filter():
    significance = np.random.default_rng(3).normal(size=(40, 40)).astype(np.float32)
    pixels, bits = _loops.threshold_bits(significance, np.float32(0.5), 3)
    is_peak = _loops.find_peaks(significance, pixels, bits)
    largest = (significance == ndimage.maximum_filter(significance, 3, mode="nearest")) & (significance >= 0.5)
    smallest = (significance == ndimage.minimum_filter(significance, 3, mode="nearest")) & (significance <= -0.5)
    np.testing.assert_array_equal(pixels[is_peak], np.flatnonzero(largest | smallest))


@pytest.mark.parametrize(("polarity", "n_sigma"), [(1, 0.5), (2, 0.5), (3, 0.5), (3, 3.5), (3, 9.0)])
def test_pixels_beyond_the_threshold_equal_those_of_array_operations(polarity, n_sigma):
    significance = np.random.default_rng(4).normal(size=(30, 201)).astype(np.float32)
    significance[3, 7], significance[5, 200] = np.nan, n_sigma
    pixels, bits = _loops.threshold_bits(significance, np.float32(n_sigma), polarity)
    with np.errstate(invalid="ignore"):
        expected = (1 * (significance >= n_sigma) + 2 * (significance <= -n_sigma)) & polarity
    np.testing.assert_array_equal(pixels, np.flatnonzero(expected))
    np.testing.assert_array_equal(bits, expected.reshape(-1)[pixels])


def test_detected_planes_equal_those_of_array_operations():
    rng = np.random.default_rng(5)
    mask, painted = rng.integers(0, 16, (20, 30)).astype(np.int32), rng.integers(0, 4, (20, 30)).astype(np.uint8)
    expected = (mask & ~6) | np.where(painted & 1, 2, 0) | np.where(painted & 2, 4, 0)
    expected[15:] = mask[15:]
    _loops.set_planes(mask, painted, 2, 4, 0, 15)
    np.testing.assert_array_equal(mask, expected)


def test_plateau_has_one_peak():
    significance = np.full((5, 6), 7.0, dtype=np.float32)
    pixels, bits = _loops.threshold_bits(significance, np.float32(5.0), 3)
    assert _loops.find_peaks(significance, pixels, bits).sum() == 1


def test_neighbours_of_one_sign_that_touch_only_when_grown_are_two(make_image, psf):
    # 14 pixels apart: beyond the threshold they are islands, grown by 2.4 sigma they touch.
    stars = [(30.0, 30.0, 300.0), (42.0, 30.0, 150.0)]
    footprints = detect(make_image((60, 80), psf, stars, noise=1.0), psf)
    assert list(zip(footprints.x.tolist(), footprints.y.tolist(), strict=True)) == [(30, 30), (42, 30)]
    # Every grown pixel has exactly one owner, the nearer star.
    assert len(np.unique(footprints.pixels)) == len(footprints.pixels)
    for i, x in enumerate((30, 42)):
        _, columns = footprints.footprint_pixels(i)
        assert np.all(np.abs(columns - x) <= np.abs(columns - (72 - x)))


def test_opposite_neighbours_that_touch_when_grown_stay_one(make_image, psf):
    stars = [(30.0, 30.0, 300.0), (42.0, 30.0, -300.0)]
    footprints = detect(make_image((60, 80), psf, stars, noise=1.0), psf)
    assert len(footprints) == 1
    assert footprints.has_both_signs.all()


def test_splitting_does_not_depend_on_the_axes(make_image, psf):
    stars = [(30.0, 30.0, 300.0), (42.0, 31.0, 150.0), (30.0, 44.0, 200.0)]
    upright = detect(make_image((80, 80), psf, stars, noise=1.0), psf)
    lying = detect(make_image((80, 80), psf, [(y, x, flux) for x, y, flux in stars], noise=1.0), psf)
    assert sorted(zip(upright.x, upright.y, strict=True)) == sorted(zip(lying.y, lying.x, strict=True))
    assert len(upright) == 3
