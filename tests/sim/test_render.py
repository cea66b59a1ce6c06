"""Rendering: the pixels are what the truth says."""

from dataclasses import replace

import numpy as np
import pytest

from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import ExposureInfo
from alertprod.images.mask import plane_bits
from alertprod.sim.render import Detector, Seeing, SimulatedPsf, render_exposure
from alertprod.sim.scene import Sources

SHAPE = (181, 221)
CLEAN = Detector(n_cosmic_rays=0, n_bad_columns=0)
WCS = SkyWcs.from_tangent(ra_deg=0.0, dec_deg=40.0, x=110.0, y=90.0, scale_arcsec=0.2, rotation_deg=30.0)


def make_sources(x, y, flux_njy):
    ra, dec = WCS.pixel_to_sky(x=np.asarray(x, float), y=np.asarray(y, float))
    flux = np.asarray(flux_njy, float)
    return Sources(ra, dec, flux, np.zeros_like(flux), np.full(flux.size, "transient", object), np.arange(flux.size))


def render(x=(), y=(), flux_njy=(), *, detector=CLEAN, seeing=None, seed=0):
    return render_exposure(
        make_sources(x, y, flux_njy),
        wcs=WCS,
        shape=SHAPE,
        seeing=seeing or Seeing(),
        detector=detector,
        info=ExposureInfo(),
        rng=np.random.default_rng(seed),
    )


@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.3, -0.45), (0.5, 0.5)])
def test_psf_images_sum_to_one_and_sit_where_the_star_is(offset):
    psf = SimulatedPsf(Seeing(), SHAPE)
    dx, dy = offset
    image = psf.compute_offset_image(x=40.0, y=150.0, dx=dx, dy=dy)
    assert image.shape == (41, 41)
    assert image.sum() == pytest.approx(1.0, abs=1e-12)
    v, u = np.mgrid[-20:21, -20:21]
    # The wings are cut off asymmetrically by a part of a pixel: the first moment feels it a little.
    assert (image * u).sum() == pytest.approx(dx, abs=0.02)
    assert (image * v).sum() == pytest.approx(dy, abs=0.02)


def test_psf_varies_over_the_field_as_it_says():
    seeing = Seeing(fwhm=4.4, variation=0.08)
    psf = SimulatedPsf(seeing, SHAPE)
    middle = psf.compute_fwhm()
    corner, opposite = (psf.compute_fwhm(x=x, y=y) for x, y in ((0, 0), (SHAPE[1] - 1, SHAPE[0] - 1)))
    assert opposite / corner == pytest.approx(1.04 / 0.96, rel=0.01)
    assert middle == pytest.approx((corner + opposite) / 2, rel=0.01)


@pytest.mark.parametrize("seeing", [Seeing(), Seeing(fwhm=3.1, variation=0.0), Seeing(halo_fraction=0.0)])
@pytest.mark.parametrize("flux_njy", [2e5, 3e6])
def test_an_aperture_on_the_noise_free_image_gives_the_true_flux(seeing, flux_njy):
    rendering = render([110.0], [90.0], [flux_njy], seeing=seeing)
    v, u = np.mgrid[: SHAPE[0], : SHAPE[1]]
    square = np.maximum(np.abs(u - 110), np.abs(v - 90)) <= 20
    counts = rendering.true_image[square].sum()
    # Faint stars are drawn to where they are a hundredth of the noise: that is all that may be missing.
    assert counts * CLEAN.njy_per_count == pytest.approx(flux_njy, rel=2e-4)


@pytest.mark.parametrize("flux_njy", [3e3, 3e4, 3e5])
def test_a_psf_fit_on_the_noise_free_image_gives_flux_and_position(flux_njy):
    x, y = 60.3, 120.6
    rendering = render([x], [y], [flux_njy])
    stamp, box = rendering.exposure.psf.compute_stellar_image(x=x, y=y)
    rows, columns = box.slices
    counts = (rendering.true_image[rows, columns] * stamp).sum() / (stamp**2).sum()
    # Enclosed light varies with the seeing over the field, by less than 1e-3.
    assert counts * CLEAN.njy_per_count == pytest.approx(flux_njy, rel=1e-3)


def test_a_star_is_its_psf_times_its_flux():
    rendering = render([61.7], [100.2], [1e7])
    stamp, box = rendering.exposure.psf.compute_stellar_image(x=61.7, y=100.2)
    rows, columns = box.slices
    drawn = rendering.true_image[rows, columns]
    np.testing.assert_allclose(drawn / drawn.sum(), stamp, atol=1e-6)


def test_noise_has_the_variance_it_claims():
    rendering = render([50.0, 150.0], [60.0, 120.0], [1e6, 3e6])
    pulls = (rendering.exposure.image - rendering.true_image) / np.sqrt(rendering.exposure.variance)
    assert pulls.mean() == pytest.approx(0.0, abs=5 / np.sqrt(pulls.size))
    assert pulls.std() == pytest.approx(1.0, abs=5 / np.sqrt(2 * pulls.size))
    lag_one = (pulls[:, 1:] * pulls[:, :-1]).mean()
    assert lag_one == pytest.approx(0.0, abs=5 / np.sqrt(pulls.size))


def test_variance_is_photons_sky_and_read_noise():
    detector = replace(CLEAN, gain=2.0, read_noise=6.0, sky_counts=700.0, depth=4.0)
    rendering = render([110.0], [90.0], [1e6], detector=detector)
    expected = ((rendering.true_image + 700.0) / 2.0 + (6.0 / 2.0) ** 2) / 4.0
    np.testing.assert_allclose(rendering.true_variance, expected, rtol=1e-12)
    np.testing.assert_allclose(rendering.exposure.variance, expected, rtol=1e-6)


def test_the_same_random_stream_gives_the_same_pixels():
    detector = Detector()
    first, second, other = (render([110.0], [90.0], [1e5], detector=detector, seed=seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.exposure.image, second.exposure.image)
    np.testing.assert_array_equal(first.exposure.mask, second.exposure.mask)
    assert (first.exposure.image != other.exposure.image).mean() > 0.99
    np.testing.assert_array_equal(first.true_image, other.true_image)


def test_full_wells_are_clipped_masked_and_bleed_along_columns():
    # Twenty times as bright as fills the well.
    rendering = render([110.0], [90.0], [1.2e8])
    exposure = rendering.exposure
    saturated = exposure.mask & plane_bits("SAT") != 0
    assert saturated[90, 110]
    assert (exposure.image[saturated] == CLEAN.saturation_counts).all()
    assert exposure.image.max() == CLEAN.saturation_counts
    rows, columns = np.nonzero(saturated)
    assert np.ptp(rows) > 2 * np.ptp(columns)
    assert exposure.info.saturation == CLEAN.saturation_counts


def test_defects_are_masked_as_a_reduction_would():
    rendering = render(detector=replace(CLEAN, n_cosmic_rays=5, n_bad_columns=2))
    exposure = rendering.exposure
    bad = exposure.mask & plane_bits("BAD") != 0
    struck = exposure.mask & plane_bits("CR") != 0
    assert 1 <= bad.all(axis=0).sum() <= 2
    assert (exposure.image[bad] == 0).all()
    assert struck.any()
    sigma = np.sqrt(exposure.variance)
    assert (exposure.image[struck & ~bad] > 10 * sigma[struck & ~bad]).all()
    assert (np.abs(exposure.image[~(struck | bad)]) < 6 * sigma[~(struck | bad)]).all()


def test_sources_off_the_image_reach_onto_it_and_dark_ones_do_nothing():
    beyond = render([-8.0], [90.0], [1e7])
    assert beyond.true_image[90, 0] > 1.0
    far = render([-500.0, 110.0, 110.0], [90.0, 90.0, 90.0], [1e9, 0.0, -5.0])
    assert not far.true_image.any()


def test_calibration_and_facts_are_the_detectors():
    exposure = render().exposure
    assert exposure.photo_calib.njy_per_count == CLEAN.njy_per_count
    assert (exposure.info.gain, exposure.info.read_noise) == (CLEAN.gain, CLEAN.read_noise)
    assert exposure.image.dtype == exposure.variance.dtype == np.float32
    assert exposure.mask.dtype == np.int32
