import numpy as np
import pytest

from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement import _centroid_loops, _fit_loops
from alertprod.measurement.centroid import fit_centroids
from alertprod.psf.analytic import GaussianPsf, MoffatPsf

SIGMA = 1.8


def fit(image, psf, points, negative=None, start=None):
    points = np.atleast_2d(points)
    start = np.floor(points + 0.5) if start is None else np.atleast_2d(start)
    negative = np.zeros(len(points), dtype=bool) if negative is None else negative
    return fit_centroids(image, psf, x=start[:, 0], y=start[:, 1], is_negative=negative, sigma=psf.compute_sigma())


@pytest.mark.parametrize("point", [(30.0, 30.0), (30.49, 29.51), (30.2, 30.4)])
@pytest.mark.parametrize("flux", [1000.0, -1000.0])
@pytest.mark.parametrize("fwhm", [2.2, 4.4, 8.0])
def test_noise_free_star_is_found_exactly(make_image, point, flux, fwhm):
    psf = GaussianPsf(fwhm=fwhm, size=2 * int(2.5 * fwhm) + 1)
    image = make_image((64, 64), psf, [(*point, flux)])
    centroid = fit(image, psf, point, np.array([flux < 0]))
    assert not centroid.flag[0]
    assert (centroid.x[0], centroid.y[0]) == pytest.approx(point, abs=5e-5)


def test_errors_are_the_cramer_rao_bound_of_a_gaussian(make_image, psf):
    image = make_image((64, 64), psf, [(30.2, 30.3, 500.0)], noise=2.0)
    centroid = fit(image, psf, (30.2, 30.3))
    # White noise: sigma_x = sqrt(2) sigma / snr, snr = flux / (noise sqrt(4 pi sigma^2)).
    snr = 500.0 / (2.0 * np.sqrt(4.0 * np.pi * SIGMA**2))
    assert centroid.x_err[0] == pytest.approx(np.sqrt(2.0) * SIGMA / snr, rel=0.01)
    assert centroid.y_err[0] == pytest.approx(centroid.x_err[0], rel=1e-3)
    assert abs(centroid.x_y_cov[0]) < 1e-3 * centroid.x_err[0] ** 2


@pytest.mark.parametrize("profile", [GaussianPsf(fwhm=4.2, size=31), MoffatPsf(fwhm=4.2, beta=3.0, size=31)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_centroid_pulls_are_normal(make_image, scattered, profile, sign):
    n = 900
    points = scattered(n, spacing=32, seed=1)
    snr = 20.0
    flux = sign * snr / np.sqrt((profile.compute_kernel_image(x=0, y=0) ** 2).sum())
    image = make_image((960, 960), profile, np.column_stack([points, np.full(n, flux)]), seed=2)
    centroid = fit(image, profile, points, np.full(n, sign < 0))
    assert not centroid.flag.any()
    for found, true, error in ((centroid.x, points[:, 0], centroid.x_err), (centroid.y, points[:, 1], centroid.y_err)):
        pull = (found - true) / error
        assert abs(pull.mean()) < 4.0 / np.sqrt(n)
        # Second order in 1 / snr adds a few per mille to the width.
        assert pull.std() == pytest.approx(1.0, abs=4.0 / np.sqrt(2.0 * n) + 0.01)


def test_faint_sources_scatter_little_more_than_the_bound(make_image, psf, scattered):
    n = 900
    points = scattered(n, spacing=32, seed=3)
    snr = 6.0
    flux = snr * np.sqrt(4.0 * np.pi * SIGMA**2)
    image = make_image((960, 960), psf, np.column_stack([points, np.full(n, flux)]), seed=4)
    centroid = fit(image, psf, points)
    good = ~centroid.flag
    assert good.mean() > 0.98
    scatter = 1.4826 * np.median(np.abs(centroid.x - points[:, 0])[good])
    assert scatter < 1.1 * np.sqrt(2.0) * SIGMA / snr


def test_masked_pixels_do_not_bias_the_centroid(make_image, psf):
    image = make_image((64, 64), psf, [(30.2, 30.3, 1000.0)])
    image.image[:, 31] = 1e5
    image.mask[:, 31] = plane_bits("BAD")
    image.image[28, 27] = np.nan
    centroid = fit(image, psf, (30.2, 30.3))
    assert (centroid.x[0], centroid.y[0]) == pytest.approx((30.2, 30.3), abs=1e-3)


def test_shift_transpose_and_scale_carry_through(make_image, psf):
    image = make_image((64, 64), psf, [(30.2, 33.4, 200.0)], seed=5)
    base = fit(image, psf, (30.2, 33.4))
    rolled = MaskedImage(*(np.roll(a, (3, -4), axis=(0, 1)) for a in (image.image, image.mask, image.variance)))
    moved = fit(rolled, psf, (26.2, 36.4))
    assert (moved.x[0] + 4, moved.y[0] - 3) == pytest.approx((base.x[0], base.y[0]), abs=1e-6)
    turned = MaskedImage(*(np.ascontiguousarray(a.T) for a in (image.image, image.mask, image.variance)))
    swapped = fit(turned, psf, (33.4, 30.2))
    assert (swapped.y[0], swapped.x[0]) == pytest.approx((base.x[0], base.y[0]), abs=1e-6)
    scaled = fit(MaskedImage(image.image * 100, image.mask, image.variance * 10000), psf, (30.2, 33.4))
    assert (scaled.x[0], scaled.x_err[0]) == pytest.approx((base.x[0], base.x_err[0]), rel=1e-5)


def test_start_within_a_psf_sigma_does_not_matter(make_image, psf):
    image = make_image((64, 64), psf, [(30.2, 30.3, 200.0)], seed=6)
    starts = np.array([(30, 30), (31, 31), (29, 30), (31, 29)], dtype=float)
    centroid = fit(image, psf, np.full((4, 2), (30.2, 30.3)), start=starts)
    # Pixels at the rim of the fitted disk come and go.
    assert np.ptp(centroid.x) < 0.02 * centroid.x_err[0]
    assert np.ptp(centroid.y) < 0.02 * centroid.y_err[0]


def test_star_on_the_edge_is_found(make_image, psf):
    image = make_image((64, 64), psf, [(0.3, 63.2, 1000.0)])
    centroid = fit(image, psf, (0.3, 63.2))
    assert (centroid.x[0], centroid.y[0]) == pytest.approx((0.3, 63.2), abs=1e-3)


def test_failure_keeps_the_starting_point_and_says_so(make_image, psf):
    image = make_image((64, 64), psf, [(30.0, 30.0, -1000.0)])
    image.image[40:, 40:] = np.nan
    points = np.array([(30.0, 30.0), (55.0, 55.0)])
    centroid = fit(image, psf, points)
    assert centroid.flag.tolist() == [True, True], "wrong sign; no pixel"
    np.testing.assert_array_equal(centroid.x, points[:, 0])
    assert np.isnan(centroid.x_err).all()


def test_shifted_image_equals_the_drawn_one(psf):
    kernel = psf.compute_kernel_image(x=0, y=0)
    for dx, dy in ((0.0, 0.0), (0.3, -0.45), (-2.0, 1.0), (4.7, -3.2)):
        shifted = np.empty((25, 27))
        _fit_loops.shift_image(kernel, dx, dy, shifted, np.empty((kernel.shape[0], 27)))
        v, u = np.mgrid[-12:13, -13:14]
        expected = np.exp(-0.5 * ((u - dx) ** 2 + (v - dy) ** 2) / SIGMA**2) / (2.0 * np.pi * SIGMA**2)
        np.testing.assert_allclose(shifted, expected, atol=4e-4 * kernel.max())


def test_derivatives_are_those_of_the_profile(psf):
    kernel = psf.compute_kernel_image(x=0, y=0)
    d_dx, d_dy = np.empty(kernel.shape), np.empty(kernel.shape)
    _fit_loops.differentiate(kernel, d_dx, d_dy)
    half = psf.size // 2
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    # The formula's error is k^10 / 2772 of the derivative at frequency k, and a Gaussian has little beyond k = 2.
    np.testing.assert_allclose(d_dx, -u / SIGMA**2 * kernel, atol=2e-3 * np.abs(d_dx).max())
    np.testing.assert_allclose(d_dy, -v / SIGMA**2 * kernel, atol=2e-3 * np.abs(d_dy).max())


def test_newton_step_equals_its_numpy_twin(psf):
    rng = np.random.default_rng(7)
    p = psf.compute_kernel_image(x=0, y=0)
    d_dx, d_dy = np.gradient(p, axis=1), np.gradient(p, axis=0)
    values, variances = 100.0 * p + rng.normal(0, 0.1, p.shape), rng.uniform(0.01, 0.02, p.shape)
    usable = rng.random(p.shape) < 0.9
    design = np.stack([p, -d_dx, -d_dy])[:, usable]
    weight = 1.0 / variances[usable]
    normal = (design * weight) @ design.T
    f, fx, fy = np.linalg.solve(normal, (design * weight) @ values[usable])
    covariance = np.linalg.inv(normal) / f**2
    ok, flux, sx, sy, vxx, vyy, vxy = _centroid_loops.newton_step(values, variances, usable, p, d_dx, d_dy)
    assert ok
    expected = [f, fx / f, fy / f, covariance[1, 1], covariance[2, 2], covariance[1, 2]]
    np.testing.assert_allclose([flux, sx, sy, vxx, vyy, vxy], expected, rtol=1e-8)


CAUSES = ("flag_no_second_derivative", "flag_not_at_maximum", "flag_not_converged", "flag_reset_to_peak")


def causes(centroid, i=0):
    return [name for name in CAUSES if getattr(centroid, name)[i]]


def test_a_failure_has_one_cause(make_image, psf):
    image = make_image((100, 100), psf, [(30.0, 30.0, -1000.0), (60.0, 60.0, 3000.0)])
    image.image[80:, :20] = np.nan
    # A peak that is a pit; no pixel at all; a place on the flank of a star; the star itself.
    points = np.array([(30.0, 30.0), (8.0, 92.0), (65.0, 60.0), (60.0, 60.0)])
    centroid = fit(image, psf, points)
    assert causes(centroid, 0) == ["flag_not_at_maximum"]
    assert causes(centroid, 1) == ["flag_no_second_derivative"]
    assert causes(centroid, 2) == ["flag_reset_to_peak"]
    assert causes(centroid, 3) == []
    assert centroid.flag.tolist() == [True, True, True, False]
    assert (centroid.x[2], centroid.y[2]) == (65.0, 60.0)


def test_every_failure_on_noise_has_exactly_one_cause(make_image, psf):
    rng = np.random.default_rng(8)
    image = make_image((300, 300), psf, seed=9)
    points = rng.integers(0, 300, (300, 2)).astype(float)
    centroid = fit(image, psf, points)
    assert centroid.flag.any()
    n_causes = sum(getattr(centroid, name).astype(int) for name in CAUSES)
    np.testing.assert_array_equal(n_causes, centroid.flag.astype(int))


def test_fits_near_the_edge_are_told_from_those_it_breaks(make_image, psf):
    image = make_image((64, 64), psf, [(2.3, 40.2, 1000.0), (32.0, 32.0, 1000.0), (62.0, 5.0, -1000.0)])
    centroid = fit(image, psf, np.array([(2.3, 40.2), (32.0, 32.0), (62.0, 5.0)]))
    assert centroid.flag_near_edge.tolist() == [True, False, True]
    assert centroid.flag.tolist() == centroid.flag_edge.tolist() == [False, False, True]


def test_position_worse_than_a_psf_sigma_is_flagged(make_image, psf):
    faint = 1.0 * np.sqrt(4.0 * np.pi * SIGMA**2)
    image = make_image((64, 64), psf, [(32.0, 32.0, faint)])
    # Standard error of each coordinate sqrt(2) sigma at signal-to-noise 1.
    assert fit(image, psf, (32.0, 32.0)).flag_almost_no_second_derivative[0]
    image = make_image((64, 64), psf, [(32.0, 32.0, 10.0 * faint)])
    assert not fit(image, psf, (32.0, 32.0)).flag_almost_no_second_derivative[0]
