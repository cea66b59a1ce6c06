import numpy as np
import pytest

from alertprod.detection.detect import detect
from alertprod.errors import ConfigError
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement import _dipole_loops
from alertprod.measurement.dipole import DipoleConfig, fit_dipoles, measure_naive_dipoles
from alertprod.psf.analytic import GaussianPsf
from alertprod.psf.model import FWHM_PER_SIGMA


def subtract(science, template):
    return MaskedImage(science.image - template.image, science.mask, science.variance + template.variance)


@pytest.fixture
def make_pair(make_image):
    """Return a function that makes (difference, science, template) of stars shifted in the template."""

    def make(shape, psf, stars, shift, *, science_noise=1.0, template_noise=0.25, seed=1, gradient=(0.0, 0.0)):
        moved = [(x + shift[0], y + shift[1], flux) for x, y, flux in stars]
        science = make_image(shape, psf, stars, noise=science_noise, seed=seed)
        template = make_image(shape, psf, moved, noise=template_noise, seed=seed + 1)
        v, u = np.mgrid[: shape[0], : shape[1]]
        plane = (gradient[0] * u + gradient[1] * v).astype(np.float32)
        science.image += plane
        template.image += plane
        return subtract(science, template), science, template

    return make


def fit(images, psf, *, with_images=True, **kwargs):
    difference, science, template = images
    footprints = detect(difference, psf)
    if not with_images:
        return footprints, fit_dipoles(footprints, difference, psf, **kwargs)
    return footprints, fit_dipoles(
        footprints, difference, psf, science=science, science_psf=psf, template=template, template_psf=psf, **kwargs
    )


def test_noise_free_dipole_is_found_exactly(make_pair, psf):
    images = make_pair((80, 80), psf, [(40.2, 39.7, 1000.0)], (0.6, -0.8), seed=5)
    difference, science, template = images
    clean = make_pair((80, 80), psf, [(40.2, 39.7, 1000.0)], (0.6, -0.8), science_noise=0.0, template_noise=0.0)
    for noisy, exact in zip(images, clean, strict=True):
        noisy.image[:] = exact.image
    footprints, dipoles = fit((difference, science, template), psf)
    assert len(footprints) == 1
    assert dipoles.is_dipole[0]
    assert dipoles.flux[0] == pytest.approx(1000.0, rel=1e-3)
    assert (dipoles.x_positive[0], dipoles.y_positive[0]) == pytest.approx((40.2, 39.7), abs=2e-3)
    assert (dipoles.x_negative[0], dipoles.y_negative[0]) == pytest.approx((40.8, 38.9), abs=2e-3)
    assert (dipoles.x[0], dipoles.y[0]) == pytest.approx((40.5, 39.3), abs=2e-3)
    assert dipoles.separation[0] == pytest.approx(1.0, abs=3e-3)
    assert dipoles.flux_difference[0] == pytest.approx(0.0, abs=1.0)


@pytest.mark.parametrize("with_images", [True, False])
def test_two_lobes_four_pixels_apart(make_pair, make_image, with_images):
    """The reference's dipole fitter test: flux 2500 and 2345, lobes 2 pixels off centre, noise 2, a gradient."""
    psf = GaussianPsf(fwhm=2.0 * FWHM_PER_SIGMA, size=31)
    stars = [(50.3, 60.1, 2500.0), (27.2, 24.6, 2345.0)]
    shift = (4.0, 4.0)
    images = make_pair((100, 100), psf, stars, shift, science_noise=2.0, template_noise=2.0, gradient=(1.0, 0.5))
    _, dipoles = fit(images, psf, with_images=with_images)
    assert dipoles.is_dipole.tolist() == [True, True]
    for i in range(2):
        true = min(stars, key=lambda star: abs(star[0] - dipoles.x_positive[i]))
        assert dipoles.flux[i] == pytest.approx(true[2], rel=0.01)
        assert (dipoles.x_positive[i], dipoles.y_positive[i]) == pytest.approx(true[:2], rel=0.01)
        assert (dipoles.x_negative[i] - 4.0, dipoles.y_negative[i] - 4.0) == pytest.approx(true[:2], rel=0.01)
        limit = 0.06 if with_images else 0.5
        assert (dipoles.x[i] - 2.0, dipoles.y[i] - 2.0) == pytest.approx(true[:2], abs=limit)


def test_template_shifted_by_a_pixel_makes_dipoles(make_pair):
    """The reference's detection test: ten sources of flux 1000 to 1500, PSF sigma 2.4, the template one pixel up."""
    psf = GaussianPsf(fwhm=2.4 * FWHM_PER_SIGMA, size=41)
    rng = np.random.default_rng(3)
    grid = [(40.0 + 60 * i, 60.0 + 110 * j) for i in range(5) for j in range(2)]
    stars = [(x + rng.uniform(-9, 9), y + rng.uniform(-9, 9), rng.uniform(1000, 1500)) for x, y in grid]
    footprints, dipoles = fit(make_pair((256, 320), psf, stars, (0.0, 1.0), seed=4), psf)
    assert len(footprints) == 10
    assert dipoles.is_dipole.all()
    np.testing.assert_allclose(dipoles.separation, 1.0, rtol=0.1)
    orientation = np.arctan2(dipoles.y_positive - dipoles.y_negative, dipoles.x_positive - dipoles.x_negative)
    np.testing.assert_allclose(orientation, -np.pi / 2, atol=0.2)


def test_pulls_of_position_and_flux_are_normal(make_pair, psf, scattered):
    n = 225
    points = scattered(n, spacing=44, seed=6)
    stars = np.column_stack([points, np.full(n, 1500.0)])
    _, dipoles = fit(make_pair((660, 660), psf, stars, (0.7, 0.4), template_noise=0.7, seed=7), psf)
    assert len(dipoles.x) == n
    order = np.hypot(dipoles.x[:, None] - points[:, 0] - 0.35, dipoles.y[:, None] - points[:, 1] - 0.2).argmin(axis=1)
    width = 4.0 / np.sqrt(2.0 * n)
    for found, true, error in (
        (dipoles.x, points[order, 0] + 0.35, dipoles.x_err),
        (dipoles.y, points[order, 1] + 0.2, dipoles.y_err),
        (dipoles.flux, 1500.0, dipoles.flux_err),
        (dipoles.flux_difference, 0.0, dipoles.flux_difference_err),
    ):
        pull = (found - true) / error
        assert abs(pull.mean()) < 4.0 / np.sqrt(n)
        assert pull.std() == pytest.approx(1.0, abs=width)


def test_swapping_science_and_template_turns_the_dipole_round(make_pair, psf):
    difference, science, template = make_pair((80, 80), psf, [(40.2, 39.7, 1000.0)], (0.6, -0.8))
    _, dipoles = fit((difference, science, template), psf)
    negated = MaskedImage(-difference.image, difference.mask, difference.variance)
    _, turned = fit((negated, template, science), psf)
    assert turned.x[0] == pytest.approx(dipoles.x[0], abs=1e-3)
    assert turned.x_positive[0] == pytest.approx(dipoles.x_negative[0], abs=1e-3)
    assert turned.flux_difference[0] == pytest.approx(-dipoles.flux_difference[0], rel=1e-3)


def test_masked_pixels_do_not_bias_the_dipole(make_pair, psf):
    difference, science, template = make_pair((80, 80), psf, [(40.2, 39.7, 3000.0)], (0.6, -0.8))
    for image in (difference, science, template):
        image.image[:, 39] = np.nan
    _, dipoles = fit((difference, science, template), psf)
    assert dipoles.is_dipole[0]
    assert abs(dipoles.flux[0] - 3000.0) < 5.0 * dipoles.flux_err[0]
    assert abs(dipoles.x[0] - 40.5) < 5.0 * dipoles.x_err[0]


def test_bright_source_with_a_dark_ring_is_no_dipole(make_image, psf):
    science = make_image((80, 80), psf, [(40.0, 40.0, 5000.0), (44.5, 40.0, -300.0)], seed=8)
    template = make_image((80, 80), psf, seed=9)
    footprints, dipoles = fit((subtract(science, template), science, template), psf)
    assert footprints.has_both_signs.tolist() == [True]
    assert dipoles.attempted[0]
    assert not dipoles.is_dipole[0]


def test_source_of_one_sign_is_not_attempted(make_image, psf):
    images = [make_image((80, 80), psf, [(40.0, 40.0, 1000.0)], seed=8), make_image((80, 80), psf, seed=9)]
    _, dipoles = fit((subtract(*images), *images), psf)
    assert not dipoles.attempted.any()
    assert np.isnan(dipoles.x).all()
    assert dipoles.n_data.tolist() == [0]


def test_large_footprint_is_flagged_not_fitted(make_pair, psf):
    images = make_pair((80, 80), psf, [(40.2, 39.7, 1000.0)], (3.0, 0.0))
    footprints, dipoles = fit(images, psf, config=DipoleConfig(max_footprint_area=50))
    assert footprints.area[0] > 50
    assert dipoles.flag.tolist() == [True]
    assert not dipoles.attempted[0]
    assert not dipoles.is_dipole[0]
    _, dipoles = fit(images, psf, config=DipoleConfig(max_footprint_area=int(footprints.area[0])))
    assert dipoles.is_dipole[0]


def test_dipole_on_the_edge_does_not_break_the_fit(make_pair, psf):
    images = make_pair((60, 60), psf, [(1.0, 30.0, 2000.0)], (0.0, 3.0))
    footprints, dipoles = fit(images, psf)
    assert dipoles.attempted.any()
    assert (footprints.x_min >= 0).all()


def test_gradients_equal_numerical_derivatives(psf):
    """The twin of the assembly: its right-hand side is the slope of chi squared at the model's own parameters."""
    rng = np.random.default_rng(10)
    shape = (3, 27, 29)
    values, variances = rng.normal(0, 1, shape), rng.uniform(0.5, 2.0, shape)
    usable = rng.random(shape) < 0.95
    kernels = np.stack([psf.compute_kernel_image(x=0, y=0)] * 3)
    weights = np.array([1.0, 0.25, 0.25])
    p = np.array([300.0, 15.2, 13.1, 12.3, 12.9, 20.0, 1.0, 0.1, -0.2, -1.0, 0.05, 0.1])
    fitted = np.ones(12, dtype=bool)
    stars, scratch = np.zeros((3, 2, 3, 27, 29)), np.zeros((31, 29))
    a, b = np.zeros((12, 12)), np.zeros(12)

    def chi2(q):
        return _dipole_loops._assemble(values, variances, usable, kernels, weights, fitted, q, stars, scratch, a, b)

    slopes = []
    for m in range(12):
        step = np.zeros(12)
        step[m] = 1e-3
        slopes.append(-0.5 * (chi2(p + step) - chi2(p - step)) / 2e-3)
    chi2(p)
    # The derivative images are differences of the sampled PSF, good to 2e-3 of their largest value.
    np.testing.assert_allclose(b, slopes, rtol=0.01, atol=5e-3 * np.abs(slopes).max())
    matrix = a.copy()
    _, solution = _dipole_loops.solve_damped(a, b, 0.0, np.ones(12, dtype=bool))
    np.testing.assert_allclose(matrix @ solution, b, rtol=1e-6, atol=1e-9)


def varied_and_moved(make_image, psf, *, gradient=(0.0, 0.0), seed=1):
    """Return (difference, science, template) of a star of flux 3000 where the template has one of 2400."""
    science = make_image((80, 80), psf, [(40.2, 39.7, 3000.0)], seed=seed)
    template = make_image((80, 80), psf, [(37.7, 37.2, 2400.0)], noise=0.5, seed=seed + 1)
    v, u = np.mgrid[:80, :80]
    for image in (science, template):
        image.image += (gradient[0] * u + gradient[1] * v + 3.0 * np.hypot(*gradient)).astype(np.float32)
    return subtract(science, template), science, template


def test_lobes_may_have_fluxes_of_their_own(make_image, psf):
    images = varied_and_moved(make_image, psf)
    _, apart = fit(images, psf, config=DipoleConfig(fit_separate_neg_params=True))
    assert abs(apart.flux_positive[0] - 3000.0) < 4.5 * apart.flux_positive_err[0]
    assert abs(apart.flux_negative[0] + 2400.0) < 4.5 * apart.flux_negative_err[0]
    assert apart.flux[0] == pytest.approx(0.5 * (apart.flux_positive[0] - apart.flux_negative[0]))
    assert apart.chi2_per_dof[0] == pytest.approx(1.0, abs=4.0 * np.sqrt(2.0 / apart.n_data[0]))
    assert apart.is_dipole[0]
    _, shared = fit(images, psf)
    assert shared.flux_positive[0] == -shared.flux_negative[0] == shared.flux[0]
    assert 2400.0 < shared.flux[0] < 3000.0
    assert shared.chi2_per_dof[0] > 1.5


def test_pulls_of_separate_fluxes_and_lobes_are_normal(make_image, psf, scattered):
    n = 144
    points = scattered(n, spacing=48, seed=11)
    science = make_image((576, 576), psf, np.column_stack([points, np.full(n, 1500.0)]), seed=12)
    moved = np.column_stack([points + np.array([2.5, 1.0]), np.full(n, 1300.0)])
    template = make_image((576, 576), psf, moved, noise=0.7, seed=13)
    config = DipoleConfig(fit_separate_neg_params=True)
    _, dipoles = fit((subtract(science, template), science, template), psf, config=config)
    assert len(dipoles.x) == n
    row = np.hypot(dipoles.x_positive[:, None] - points[:, 0], dipoles.y_positive[:, None] - points[:, 1]).argmin(
        axis=1
    )
    for found, true, error in (
        (dipoles.flux_positive, 1500.0, dipoles.flux_positive_err),
        (dipoles.flux_negative, -1300.0, dipoles.flux_negative_err),
        (dipoles.flux, 1400.0, dipoles.flux_err),
        (dipoles.x_positive, points[row, 0], dipoles.x_positive_err),
        (dipoles.y_positive, points[row, 1], dipoles.y_positive_err),
        (dipoles.x_negative, points[row, 0] + 2.5, dipoles.x_negative_err),
        (dipoles.y_negative, points[row, 1] + 1.0, dipoles.y_negative_err),
    ):
        pull = (found - true) / error
        assert abs(pull.mean()) < 4.0 / np.sqrt(n)
        assert pull.std() == pytest.approx(1.0, abs=4.0 / np.sqrt(2.0 * n))


@pytest.mark.parametrize("fit_background", [1, 2])
def test_planes_under_the_images_are_no_flux(make_pair, psf, fit_background):
    images = make_pair((80, 80), psf, [(40.2, 39.7, 2000.0)], (1.5, 1.0), gradient=(0.8, -0.5), seed=14)
    _, dipoles = fit(images, psf, config=DipoleConfig(fit_background=fit_background))
    assert dipoles.is_dipole[0]
    # Wings of the star outside its footprint are in the plane taken from there: a per cent of the flux.
    systematic = 0.01 * 2000.0 if fit_background == 1 else 0.0
    assert abs(dipoles.flux[0] - 2000.0) < 4.5 * dipoles.flux_err[0] + systematic


def test_without_planes_flat_images_are_fitted_best(make_pair, psf):
    images = make_pair((80, 80), psf, [(40.2, 39.7, 2000.0)], (1.5, 1.0), seed=15)
    _, none = fit(images, psf, config=DipoleConfig(fit_background=0))
    _, planes = fit(images, psf)
    assert none.flux_err[0] < planes.flux_err[0]
    assert abs(none.flux[0] - 2000.0) < 4.5 * none.flux_err[0]


def test_background_is_0_1_or_2():
    with pytest.raises(ConfigError, match="fit_background"):
        DipoleConfig(fit_background=3)


def test_all_sources_are_fitted_on_demand(make_image, psf):
    images = [make_image((80, 80), psf, [(40.0, 40.0, 1000.0)], seed=16), make_image((80, 80), psf, seed=17)]
    _, dipoles = fit((subtract(*images), *images), psf, config=DipoleConfig(fit_all_dia_sources=True))
    assert dipoles.attempted.tolist() == [True]
    assert not dipoles.is_dipole[0]


def test_pixels_beyond_the_border_are_told(make_pair, psf):
    images = make_pair((80, 80), psf, [(40.2, 39.7, 2000.0), (6.0, 60.0, 2000.0)], (0.0, 1.5), seed=18)
    footprints, dipoles = fit(images, psf)
    order = np.argsort(footprints.x)
    assert dipoles.is_dipole[order].tolist() == [True, True]
    assert dipoles.flag_edge[order].tolist() == [True, False]


def test_lobe_off_the_image_is_no_dipole(make_pair, psf):
    images = make_pair((80, 80), psf, [(2.5, 40.0, 4000.0)], (-3.5, 0.0), seed=19)
    _, dipoles = fit(images, psf, config=DipoleConfig(fit_all_dia_sources=True))
    assert dipoles.attempted.tolist() == dipoles.flag.tolist() == dipoles.flag_edge.tolist() == [True]
    assert not dipoles.is_dipole[0]


def test_orientation_is_the_angle_from_negative_to_positive(make_pair, psf):
    _, dipoles = fit(make_pair((80, 80), psf, [(40.2, 39.7, 3000.0)], (1.0, -1.0), seed=20), psf)
    # The template's star lies right of and below the science image's: the vector points up and to the left.
    assert dipoles.orientation_deg[0] == pytest.approx(135.0, abs=3.0)


def test_naive_sums_equal_their_numpy_twin(make_pair, psf):
    difference, _, _ = make_pair((80, 80), psf, [(40.2, 39.7, 2000.0), (20.0, 60.0, 500.0)], (1.5, 1.0), seed=21)
    footprints = detect(difference, psf)
    rows, columns = footprints.footprint_pixels(0)
    difference.mask[rows[0], columns[0]] = plane_bits("BAD")
    difference.image[rows[5], columns[5]] = np.nan
    naive = measure_naive_dipoles(footprints, difference)
    for i in range(len(footprints)):
        rows, columns = footprints.footprint_pixels(i)
        d, v = difference.image[rows, columns].astype(float), difference.variance[rows, columns].astype(float)
        good = np.isfinite(d) & (difference.mask[rows, columns] == 0)
        for k, chosen in enumerate((good & (d >= 0), good & (d < 0))):
            assert naive.flux[i, k] == pytest.approx(d[chosen].sum())
            assert naive.flux_err[i, k] == pytest.approx(np.sqrt(v[chosen].sum()))
            assert naive.n_pixels[i, k] == chosen.sum()
    # Lobes two pixels apart cancel in part; what is left is alike.
    assert naive.flux[0, 0] == pytest.approx(-naive.flux[0, 1], abs=5.0 * np.hypot(*naive.flux_err[0]))
