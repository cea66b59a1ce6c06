import numpy as np
import pytest
from scipy import ndimage

from alertprod.detection import _loops
from alertprod.detection.detect import DetectionConfig, detect, detect_signs
from alertprod.detection.matched_filter import make_filter_kernel
from alertprod.detection.thresholds import keep_islands, keep_peaks

STARS = [(30.0, 30.0, 300.0), (90.0, 40.0, -300.0), (60.0, 90.0, 150.0)]


def positions(footprints):
    return sorted(zip(footprints.x.tolist(), footprints.y.tolist(), strict=True))


def test_islands_are_the_components_of_one_sign():
    rng = np.random.default_rng(1)
    bits = rng.choice([0, 0, _loops.POSITIVE, _loops.NEGATIVE], (40, 53)).astype(np.uint8)
    pixels = np.flatnonzero(bits)
    island, count = _loops.label_islands(pixels, bits.reshape(-1)[pixels], 53)
    total = 0
    for sign in (_loops.POSITIVE, _loops.NEGATIVE):
        labels, n = ndimage.label(bits == sign, structure=np.ones((3, 3)))
        mine = bits.reshape(-1)[pixels] == sign
        theirs = labels.reshape(-1)[pixels[mine]]
        assert len(np.unique(np.stack([island[mine], theirs]), axis=1).T) == n
        total += n
    assert count == total
    assert _loops.label_islands(pixels[:0], pixels[:0].astype(np.uint8), 53)[1] == 0


def test_value_is_compared_with_the_smoothed_image(make_image, psf):
    image = make_image((120, 120), psf, STARS, noise=1.0)
    kernel = make_filter_kernel(psf)
    # The peak of a star of flux 1 smoothed with the normalised kernel.
    border = (psf.size - len(kernel)) // 2
    peak = (kernel * psf.compute_kernel_image(x=60, y=60)[border : psf.size - border, border : psf.size - border]).sum()
    for threshold, expected in ((140.0, 3), (160.0, 2), (310.0, 0)):
        config = DetectionConfig(threshold=threshold * peak, threshold_type="value")
        assert len(detect(image, psf, config=config)) == expected
    raw = DetectionConfig(threshold=0.9 * 150.0 * psf.compute_kernel_image(x=60, y=60).max(), threshold_type="value")
    assert len(detect(image, psf, smooth=False, config=raw)) == 3


def test_stdev_is_the_scatter_of_the_pixels_whatever_the_plane_says(make_image, psf):
    image = make_image((256, 256), psf, STARS, noise=1.0, seed=3)
    expected = positions(detect(image, psf))
    assert expected == [(30, 30), (60, 90), (90, 40)]
    image.variance *= np.float32(0.3)
    assert len(detect(image, psf)) > 20
    found = detect(image, psf, config=DetectionConfig(threshold_type="stdev"))
    assert positions(found) == expected
    assert found.significance[0] > 1.7 * 300.0 / np.sqrt(4.0 * np.pi * 1.8**2), (
        "significance stays the one of the variance plane"
    )


def test_variance_is_one_number_for_the_whole_image(make_image, psf):
    image = make_image((256, 256), psf, STARS, noise=1.0, seed=3)
    assert positions(detect(image, psf, config=DetectionConfig(threshold_type="variance"))) == positions(
        detect(image, psf)
    )
    # A patch of ten times the noise: the mean plane does not know it, each pixel's does.
    patch = np.random.default_rng(4).normal(0.0, 10.0, (60, 60))
    image.image[180:240, 180:240], image.variance[180:240, 180:240] = patch, 100.0
    assert len(detect(image, psf)) == 3
    labels = detect(image, psf, config=DetectionConfig(threshold_type="variance")).compute_labels()
    assert (labels[180:240, 180:240] > 0).mean() > 0.5


def test_a_scatter_of_nothing_is_refused(make_image, psf):
    image = make_image((32, 32), psf)
    with pytest.raises(ValueError, match="stdev"):
        detect(image, psf, config=DetectionConfig(threshold_type="stdev"))
    image.variance[:] = np.nan
    with pytest.raises(ValueError, match="variance"):
        detect(image, psf, config=DetectionConfig(threshold_type="variance"))


def test_a_footprint_needs_one_pixel_as_high_as_the_multiplier_asks(make_image, psf):
    image = make_image((120, 120), psf, STARS, noise=1.0)
    brightest, _, faintest = detect(image, psf).significance
    multiplier = 0.5 * (brightest + faintest) / 5.0
    config = DetectionConfig(include_threshold_multiplier=multiplier)
    found = detect(image, psf, config=config)
    assert positions(found) == [(30, 30), (90, 40)]
    # What stays has all of its pixels beyond the plain threshold.
    np.testing.assert_array_equal(found.area, detect(image, psf).area[:2])


def test_islands_are_kept_by_size_and_height():
    levels = np.zeros((6, 8))
    levels[1, 1:4] = 6.0
    levels[4, 1], levels[4, 6] = 20.0, -7.0
    pixels, bits = _loops.threshold_bits(levels.astype(np.float32), np.float32(5.0), 3)
    assert keep_islands(levels, pixels, bits, min_pixels=2, min_level=0.0).tolist() == [True] * 3 + [False] * 2
    assert keep_islands(levels, pixels, bits, min_pixels=1, min_level=7.0).tolist() == [False] * 3 + [True] * 2


def test_bumps_on_something_extended_are_no_peaks(psf):
    y, x = np.mgrid[:128, :128]
    levels = 12.0 * np.exp(-0.5 * ((y - 64) ** 2 + (x - 64) ** 2) / 40.0**2)
    for cx, height in ((64, 40.0), (90, 3.0)):
        levels += height * np.exp(-0.5 * ((y - 64) ** 2 + (x - cx) ** 2) / 2.5**2)
    for sign in (1.0, -1.0):
        signed = (sign * levels).astype(np.float32)
        pixels, bits = _loops.threshold_bits(signed, np.float32(9.0), 3)
        is_peak = _loops.find_peaks(signed, pixels, bits)
        assert sorted(pixels[is_peak] % 128) == [64, 90]
        nothing = np.zeros((128, 128), dtype=bool)
        kept = keep_peaks(signed, pixels, bits, is_peak, nothing, threshold=9.0, bin_size=32)
        assert (pixels[kept] % 128).tolist() == [64]


def test_the_strongest_peak_of_each_island_stays(psf):
    levels = np.full((64, 64), 6.0, dtype=np.float32)
    levels[20, 20], levels[40, 40] = 6.5, 7.0
    pixels, bits = _loops.threshold_bits(levels, np.float32(5.0), 3)
    is_peak = np.isin(pixels, [20 * 64 + 20, 40 * 64 + 40])
    nothing = np.zeros((64, 64), dtype=bool)
    kept = keep_peaks(levels, pixels, bits, is_peak, nothing, threshold=5.0, bin_size=16)
    assert pixels[kept].tolist() == [40 * 64 + 40]


def test_close_stars_on_a_flat_sky_keep_their_peaks(make_image, psf):
    stars = [(40.0, 40.0, 300.0), (48.0, 40.0, 200.0), (90.0, 90.0, -200.0)]
    image = make_image((128, 128), psf, stars, noise=1.0, seed=6)
    assert (
        detect(image, psf).n_peaks.sum() == detect(image, psf, config=DetectionConfig(cull_peaks=False)).n_peaks.sum()
    )


def test_each_sign_has_its_own_footprints_beside_the_joined_ones(make_image, psf):
    image = make_image((64, 96), psf, [(28.0, 32.0, 100.0), (36.0, 32.0, -120.0), (70.0, 30.0, 90.0)])
    found = detect_signs(image, psf)
    assert len(found.sources) == 2
    assert positions(found.positive) == [(28, 32), (70, 30)]
    assert positions(found.negative) == [(36, 32)]
    assert found.negative.is_negative.all()
    apart = detect_signs(image, psf, config=DetectionConfig(merge=False))
    assert (
        positions(apart.sources) == positions(found.positive) + positions(found.negative)[:1] or len(apart.sources) == 3
    )


@pytest.mark.parametrize("grow", [0, 1, 2, 5])
def test_growth_before_the_join_is_a_diamond(make_image, psf, grow):
    image = make_image((64, 96), psf, [(30.0, 32.0, 100.0), (70.0, 30.0, -90.0)], seed=1)
    plain = detect(image, psf)
    grown = detect_signs(image, psf, grow=grow)
    cross = ndimage.generate_binary_structure(2, 1)
    expected = plain.compute_labels() > 0
    if grow:
        expected = ndimage.binary_dilation(expected, structure=cross, iterations=grow)
    np.testing.assert_array_equal(grown.sources.compute_labels() > 0, expected)
    assert len(grown.sources) == 2
    assert grown.positive.area[0] == plain.area[0], "the footprints of one sign do not grow"


def test_lobes_too_far_apart_join_once_they_grow(make_image, psf):
    image = make_image((64, 96), psf, [(30.0, 32.0, 100.0), (47.0, 32.0, -100.0)])
    assert len(detect(image, psf)) == 2
    joined = detect_signs(image, psf, grow=4)
    assert len(joined.sources) == 1
    assert joined.sources.has_both_signs.all()
    apart = detect_signs(image, psf, config=DetectionConfig(merge=False), grow=4)
    assert len(apart.sources) == 2


@pytest.mark.parametrize("fields", [{"include_threshold_multiplier": 0.0}, {"local_background_bin": 0}])
def test_impossible_settings_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        DetectionConfig(**fields)


def test_growth_is_not_negative(make_image, psf):
    with pytest.raises(ValueError, match="grow"):
        detect_signs(make_image((32, 32), psf), psf, grow=-1)
