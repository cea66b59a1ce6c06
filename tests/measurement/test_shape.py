import numpy as np
import pytest

from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement.shape import measure_shapes
from alertprod.psf.analytic import GaussianPsf, MoffatPsf
from alertprod.psf.model import FWHM_PER_SIGMA

SIGMA = 1.8
POINT = {"x": np.array([40.2]), "y": np.array([39.7])}
POSITIVE = np.array([False])


def test_star_has_the_moments_of_its_psf(make_image, psf):
    shapes = measure_shapes(make_image((80, 80), psf, [(40.2, 39.7, 1000.0)]), psf, **POINT, is_negative=POSITIVE)
    assert (shapes.ixx[0], shapes.iyy[0]) == pytest.approx((SIGMA**2, SIGMA**2), rel=1e-3)
    assert shapes.ixy[0] == pytest.approx(0.0, abs=1e-3)
    assert (shapes.psf_ixx[0], shapes.psf_iyy[0]) == pytest.approx((SIGMA**2, SIGMA**2), rel=1e-3)
    assert shapes.compute_extendedness()[0] == pytest.approx(0.0, abs=1e-3)
    assert (shapes.x[0], shapes.y[0]) == pytest.approx((40.2, 39.7), abs=1e-3)


def test_elliptical_gaussian_has_its_moments(make_image, psf):
    a, b, angle = 3.0, 2.0, np.radians(30.0)
    wide = GaussianPsf(fwhm=np.sqrt(a * b) * FWHM_PER_SIGMA, ellipticity=1.0 - b / a, position_angle_deg=30.0, size=61)
    shapes = measure_shapes(make_image((80, 80), wide, [(40.2, 39.7, 1000.0)]), psf, **POINT, is_negative=POSITIVE)
    c, s = np.cos(angle), np.sin(angle)
    expected = (a * a * c * c + b * b * s * s, a * a * s * s + b * b * c * c, (a * a - b * b) * s * c)
    # The PSF's stamp of 31 pixels cuts at five sigmas.
    assert (shapes.ixx[0], shapes.iyy[0], shapes.ixy[0]) == pytest.approx(expected, rel=2e-3)
    assert shapes.compute_extendedness()[0] == pytest.approx(1.0 - SIGMA**2 / (a * b), rel=5e-3)


def test_psf_moments_are_those_of_the_model(make_image):
    moffat = MoffatPsf(fwhm=4.0, beta=2.5, ellipticity=0.2, position_angle_deg=70.0, size=41)
    shapes = measure_shapes(make_image((80, 80), moffat, [(40.2, 39.7, 1000.0)]), moffat, **POINT, is_negative=POSITIVE)
    expected = moffat.compute_moments(x=40.2, y=39.7)
    assert (shapes.psf_ixx[0], shapes.psf_iyy[0], shapes.psf_ixy[0]) == pytest.approx(expected, rel=2e-3)
    assert (shapes.ixx[0], shapes.iyy[0], shapes.ixy[0]) == pytest.approx(expected, rel=2e-3)


def test_negative_source_scale_and_transpose(make_image, psf):
    image = make_image((80, 80), psf, [(40.2, 39.7, 500.0)], seed=1)
    base = measure_shapes(image, psf, **POINT, is_negative=POSITIVE)
    negated = MaskedImage(-3.0 * image.image, image.mask, image.variance)
    other = measure_shapes(negated, psf, **POINT, is_negative=~POSITIVE)
    assert other.ixx[0] == pytest.approx(base.ixx[0], rel=1e-5)
    turned = MaskedImage(*(np.ascontiguousarray(a.T) for a in (image.image, image.mask, image.variance)))
    swapped = measure_shapes(turned, psf, x=POINT["y"], y=POINT["x"], is_negative=POSITIVE)
    assert (swapped.iyy[0], swapped.ixy[0]) == pytest.approx((base.ixx[0], base.ixy[0]), rel=1e-5)


def test_masked_pixels_do_not_bias_the_moments(make_image, psf):
    image = make_image((80, 80), psf, [(40.2, 39.7, 1000.0)])
    image.image[:, 41] = 1e4
    image.mask[:, 41] = plane_bits("BAD")
    image.image[37, 39] = np.nan
    shapes = measure_shapes(image, psf, **POINT, is_negative=POSITIVE)
    assert (shapes.ixx[0], shapes.iyy[0]) == pytest.approx((SIGMA**2, SIGMA**2), rel=0.01)


def test_moments_of_noisy_stars_scatter_about_the_truth(make_image, psf, scattered):
    n, snr = 400, 50.0
    points = scattered(n, spacing=32, seed=2)
    flux = snr * np.sqrt(4.0 * np.pi * SIGMA**2)
    image = make_image((640, 640), psf, np.column_stack([points, np.full(n, flux)]), seed=3)
    shapes = measure_shapes(image, psf, x=points[:, 0], y=points[:, 1], is_negative=np.zeros(n, dtype=bool))
    assert not shapes.flag.any()
    # The Fisher matrix of (amplitude, Ixx, Iyy) of a Gaussian in white noise: sigma(Ixx) = sqrt(8) Ixx / snr.
    expected = np.sqrt(8.0) * SIGMA**2 / snr
    assert shapes.ixx.mean() == pytest.approx(SIGMA**2, abs=4.0 * expected / np.sqrt(n) + 0.005 * SIGMA**2)
    assert shapes.ixx.std() == pytest.approx(expected, rel=4.0 / np.sqrt(2.0 * n) + 0.02)


def test_no_pixels_is_flagged(make_image, psf):
    image = make_image((80, 80), psf)
    image.image[:] = np.nan
    shapes = measure_shapes(image, psf, **POINT, is_negative=POSITIVE)
    assert shapes.flag[0]
    assert shapes.flag_no_pixels[0]
    assert np.isnan(shapes.ixx[0])
    assert np.isnan(shapes.compute_extendedness()[0])
