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


def test_errors_of_the_moments_are_their_scatter(make_image, scattered):
    n, snr = 400, 40.0
    stretched = GaussianPsf(fwhm=4.5, ellipticity=0.4, position_angle_deg=35.0, size=35)
    points = scattered(n, spacing=36, seed=4)
    flux = snr / np.sqrt((stretched.compute_kernel_image(x=0, y=0) ** 2).sum())
    image = make_image((720, 720), stretched, np.column_stack([points, np.full(n, flux)]), seed=5)
    shapes = measure_shapes(image, stretched, x=points[:, 0], y=points[:, 1], is_negative=np.zeros(n, dtype=bool))
    truth = stretched.compute_moments(x=0, y=0)
    moments = (shapes.ixx, shapes.iyy, shapes.ixy)
    for measured, error, true in zip(moments, shapes.compute_errors(), truth, strict=True):
        pull = (measured - true) / error
        # Second order in 1 / snr shifts the mean by some hundredths.
        assert abs(pull.mean()) < 4.0 / np.sqrt(n) + 0.1
        assert pull.std() == pytest.approx(1.0, abs=4.0 / np.sqrt(2.0 * n) + 0.03)


def test_gaussian_flux_of_a_star_is_its_flux(make_image, psf):
    image = make_image((80, 80), psf, [(40.2, 39.7, 1000.0)], noise=2.0)
    shapes = measure_shapes(image, psf, **POINT, is_negative=POSITIVE)
    assert shapes.flux[0] == pytest.approx(1000.0, rel=1e-3)
    assert shapes.flux_err[0] == pytest.approx(2.0 * np.sqrt(4.0 * np.pi * SIGMA**2), rel=1e-3)
    negated = measure_shapes(MaskedImage(-image.image, image.mask, image.variance), psf, **POINT, is_negative=~POSITIVE)
    assert negated.flux[0] == pytest.approx(-shapes.flux[0], rel=1e-6)


def test_gaussian_flux_of_an_extended_source_holds_what_a_point_source_fit_loses(make_image, psf):
    wide = GaussianPsf(fwhm=3.0 * FWHM_PER_SIGMA, size=61)
    image = make_image((80, 80), wide, [(40.2, 39.7, 1000.0)])
    shapes = measure_shapes(image, psf, **POINT, is_negative=POSITIVE)
    assert shapes.flux[0] == pytest.approx(1000.0, rel=2e-3)


def test_without_moments_there_is_no_gaussian_flux(make_image, psf):
    image = make_image((80, 80), psf)
    image.image[:] = np.nan
    shapes = measure_shapes(image, psf, **POINT, is_negative=POSITIVE)
    assert np.isnan(shapes.flux[0])
    assert np.isnan(shapes.compute_errors()).all()


def test_quick_steps_end_where_the_slow_ones_of_the_numpy_twin_do(make_image):
    """The twin: the slow fixed point ``M = 2 M_w`` in NumPy ends where the compiled one does."""
    moffat = MoffatPsf(fwhm=4.0, beta=2.5, ellipticity=0.3, position_angle_deg=20.0, size=41)
    image = make_image((80, 80), moffat, [(40.0, 40.0, 300.0)], seed=6)
    shapes = measure_shapes(image, moffat, x=np.array([40.0]), y=np.array([40.0]), is_negative=POSITIVE)
    stamp = image.image[20:61, 20:61].astype(float)
    v, u = np.mgrid[-20:21, -20:21].astype(float)
    m, cx, cy = np.diag([4.0, 4.0]), 0.0, 0.0
    for _ in range(200):
        inverse = np.linalg.inv(m)
        du, dv = u - cx, v - cy
        w = np.exp(-0.5 * (inverse[0, 0] * du**2 + 2.0 * inverse[0, 1] * du * dv + inverse[1, 1] * dv**2)) * stamp
        mx, my = (w * du).sum() / w.sum(), (w * dv).sum() / w.sum()
        xx, yy = (w * du * du).sum() / w.sum() - mx * mx, (w * dv * dv).sum() / w.sum() - my * my
        xy = (w * du * dv).sum() / w.sum() - mx * my
        m, cx, cy = 2.0 * np.array([[xx, xy], [xy, yy]]), cx + 2.0 * mx, cy + 2.0 * my
    assert (shapes.ixx[0], shapes.iyy[0], shapes.ixy[0]) == pytest.approx((m[0, 0], m[1, 1], m[0, 1]), rel=1e-3)
