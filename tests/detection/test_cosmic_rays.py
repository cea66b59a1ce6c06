import numpy as np
import pytest

from alertprod.detection.cosmic_rays import CosmicRayConfig, find_cosmic_rays, repair_cosmic_rays
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.analytic import GaussianPsf, MoffatPsf


@pytest.mark.parametrize("profile", [GaussianPsf(fwhm=2.2, size=21), MoffatPsf(fwhm=3.0, beta=2.5, size=31)])
def test_stars_at_any_place_on_a_pixel_are_spared(make_image, profile):
    rng = np.random.default_rng(1)
    stars = [
        (x + rng.uniform(-1, 1), y + rng.uniform(-1, 1), 10 ** rng.uniform(2, 5))
        for x in range(20, 300, 20)
        for y in range(20, 300, 20)
    ]
    assert not find_cosmic_rays(make_image((320, 320), profile, stars, seed=2), profile).any()


def test_single_pixels_and_tracks_are_marked_and_nothing_else(make_image, psf):
    image = make_image((128, 128), psf, [(30.0, 30.0, 3000.0), (90.4, 35.5, 800.0)], seed=3)
    injected = np.zeros(image.shape, dtype=bool)
    injected[60, 60] = True
    injected[np.arange(80, 92), np.arange(40, 52)] = True
    injected[100, 70:80] = True
    injected[61, 20] = True
    image.image[injected] += 150.0
    hits = find_cosmic_rays(image, psf)
    np.testing.assert_array_equal(hits, injected)


def test_pure_noise_and_negative_pixels_have_none(make_image, psf):
    image = make_image((512, 512), psf, seed=4)
    image.image[40, 40] = -500.0
    assert not find_cosmic_rays(image, psf).any()


def test_plane_is_set_when_asked_and_values_stay(make_image, psf):
    image = make_image((64, 64), psf, seed=5)
    image.image[20, 30] = 200.0
    before = image.copy()
    find_cosmic_rays(image, psf)
    np.testing.assert_array_equal(image.mask, before.mask)
    find_cosmic_rays(image, psf, set_planes=True)
    np.testing.assert_array_equal(np.argwhere(image.mask & plane_bits("CR")), [[20, 30]])
    np.testing.assert_array_equal(image.image, before.image)


def test_saturated_and_absent_pixels_are_neither_hit_nor_compared_with(make_image, psf):
    image = make_image((64, 64), psf, seed=6)
    image.image[20, 30] = 1e5
    image.mask[20, 30] = plane_bits("SAT")
    image.image[40:50, 40:50] = np.nan
    assert not find_cosmic_rays(image, psf).any()


def test_flux_scale_changes_nothing(make_image, psf):
    image = make_image((64, 64), psf, [(30.0, 30.0, 3000.0)], seed=7)
    image.image[20, 40:43] += 90.0
    scaled = MaskedImage(1e4 * image.image, image.mask, np.float32(1e8) * image.variance)
    hits = find_cosmic_rays(image, psf)
    assert hits.sum() == 3
    np.testing.assert_array_equal(find_cosmic_rays(scaled, psf), hits)


def test_hits_with_too_little_charge_are_left_out(make_image, psf):
    image = make_image((64, 64), psf, seed=8)
    image.image[20, 30] = 40.0
    image.image[40, 10:14] = 40.0
    assert find_cosmic_rays(image, psf).sum() == 5
    hits = find_cosmic_rays(image, psf, config=CosmicRayConfig(min_total=100.0))
    np.testing.assert_array_equal(np.argwhere(hits), [[40, x] for x in range(10, 14)])


@pytest.mark.parametrize("fields", [{"min_sigma": 0.0}, {"n_iterations": -1}])
def test_impossible_settings_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        CosmicRayConfig(**fields)


def test_marked_pixels_are_repaired_from_their_neighbours_and_say_so(make_image, psf):
    image = make_image((64, 64), psf, [(32.0, 32.0, 2000.0)], seed=7)
    clean = image.copy()
    struck = (np.array([20, 20, 20, 50]), np.array([10, 11, 12, 50]))
    image.image[struck] += 900.0
    image.variance[struck] += 450.0
    image.mask[struck] |= plane_bits("CR")
    # Repaired by somebody else: its value is what it is.
    image.mask[5, 5] |= plane_bits("CR", "INTRP")
    image.image[5, 5] = 3.0
    assert repair_cosmic_rays(image) == 4
    noise = np.sqrt(clean.variance[struck])
    # A mean of neighbours on empty sky has less noise than a pixel.
    assert np.abs(image.image[struck]).max() < 4.0 * noise.max()
    np.testing.assert_allclose(image.variance[struck], clean.variance[struck], rtol=0.1)
    assert ((image.mask[struck] & plane_bits("INTRP")) != 0).all()
    assert image.image[5, 5] == 3.0
    untouched = np.ones(image.shape, dtype=bool)
    untouched[struck] = untouched[5, 5] = False
    np.testing.assert_array_equal(image.image[untouched], clean.image[untouched])
    assert repair_cosmic_rays(image) == 0
