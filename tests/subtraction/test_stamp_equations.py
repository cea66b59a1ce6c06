import numpy as np
import pytest
from scipy.signal import convolve2d

from alertprod.subtraction.basis import lead_with_psfs, make_alard_lupton_basis
from alertprod.subtraction.candidates import CandidateList, StampGeometry
from alertprod.subtraction.config import AlardLuptonConfig
from alertprod.subtraction.stamp_equations import (
    N_LOCAL_BACKGROUND,
    build_equations,
    estimate_flux_ratio,
    local_background,
)

NOTHING = np.zeros(0, dtype=np.int64)


@pytest.fixture
def basis(make_psf):
    basis = make_alard_lupton_basis((0.7, 1.4, 2.8), (2, 1, 1), 15)
    return lead_with_psfs(basis, convolved_psf=make_psf(2.0), reference_psf=make_psf(2.4))


def candidates_of(basis, source, target, x, y, config):
    geometry = StampGeometry.for_kernel(basis.size)
    return CandidateList(source, target, x=x, y=y, flux=None, geometry=geometry, config=config)


def equations_of(basis, source, target, x, y, flux_ratio=1.0, **settings):
    config = AlardLuptonConfig(**settings)
    candidates = candidates_of(basis, source, target, x, y, config)
    equations = build_equations(candidates, candidates.take(NOTHING), basis, flux_ratio=flux_ratio, config=config)
    return equations, candidates


def test_residuals_follow_from_the_sums_without_the_pixels(basis, rng, make_field, make_psf):
    field = make_field(rng, shape=(150, 150), n=4, flux=(3000.0, 4000.0))
    source = field.observe(make_psf(2.0), noise=1.0, rng=rng)
    target = field.observe(make_psf(2.4), noise=1.0, rng=rng)
    target.variance[:] = rng.uniform(0.5, 2.0, target.shape)
    equations, candidates = equations_of(basis, source, target, field.x, field.y)
    coefficients = rng.normal(size=(len(equations), len(basis) + N_LOCAL_BACKGROUND)) * 0.1
    mean, rms = equations.measure_residuals(coefficients)
    stamps, source_variance, data, variance, _ = candidates.extract(equations.index)
    kernels = np.tensordot(coefficients[:, : len(basis)], basis.images, axes=1)
    sky = (coefficients[:, len(basis) :] @ local_background(17)).reshape(-1, 17, 17)
    for n in range(len(equations)):
        model = convolve2d(stamps[n], kernels[n], mode="valid") + sky[n]
        pulls = (data[n] - model) / np.sqrt(variance[n] + basis.first_power * source_variance[n])
        assert mean[n] == pytest.approx(pulls.mean(), rel=1e-9)
        assert rms[n] == pytest.approx(np.sqrt((pulls**2).mean()), rel=1e-9)


def test_a_stars_own_sky_is_that_of_its_rim(basis, rng, make_field, make_psf):
    field = make_field(rng, shape=(150, 150), n=4, flux=(3000.0, 4000.0))
    source = field.observe(make_psf(2.0), noise=0.1, rng=rng)
    target = field.observe(make_psf(2.0), noise=1.0, rng=rng)
    equations, candidates = equations_of(basis, source, target, field.x, field.y)
    # Some kernel and an odd sky; what a target that is higher by 7 adds is all that its own sky adds.
    coefficients = rng.normal(size=(len(equations), len(basis) + N_LOCAL_BACKGROUND)) * 0.1
    target.image += 7.0
    higher, _ = equations_of(basis, source, target, field.x, field.y)
    own, of_higher = equations.with_own_sky(coefficients), higher.with_own_sky(coefficients)
    constant = len(basis)
    np.testing.assert_allclose(of_higher[:, constant] - own[:, constant], 7.0, rtol=1e-5)
    np.testing.assert_array_equal(np.delete(own, constant, axis=1), np.delete(coefficients, constant, axis=1))
    stamps, _, data, _, _ = candidates.extract(higher.index)
    for n in range(len(higher)):
        model = convolve2d(stamps[n], np.tensordot(of_higher[n, :constant], basis.images, axes=1), mode="valid")
        residual = data[n] - model - (of_higher[n, constant:] @ local_background(17)).reshape(17, 17)
        residual[2:-2, 2:-2] = np.nan
        assert np.nanmean(residual) == pytest.approx(0.0, abs=1e-9)


def test_noise_of_the_convolved_image_adds_its_power_to_the_matrix(basis, rng, make_image):
    dark = [make_image(rng.normal(size=(500, 500)) * 3.0, 9.0) for _ in range(2)]
    x, y = (grid.ravel().astype(float) for grid in np.meshgrid(np.arange(30, 480, 40), np.arange(30, 480, 40)))
    equations, _ = equations_of(basis, *dark, x, y, n_star_per_cell=-1)
    expected = equations.noise.sum() * basis.gram
    found = equations.matrix[:, : len(basis), : len(basis)].sum(axis=0)
    n_pixels = equations.n_pixels.sum()
    # A power has a relative sampling error of sqrt(2/n), n the independent pixels: one in about ten for these kernels.
    np.testing.assert_allclose(np.diag(found), np.diag(expected), rtol=5 * np.sqrt(2 * 10 / n_pixels))


def test_own_kernel_sum_is_the_flux_ratio_within_its_error(basis, rng, make_field, make_psf):
    field = make_field(rng, n=16, flux=(5000.0, 9000.0))
    source = field.observe(make_psf(2.0), noise=0.1, rng=rng)
    target = field.observe(make_psf(2.4), noise=1.0, rng=rng, flux_scale=1.7)
    equations, _ = equations_of(basis, source, target, field.x, field.y, flux_ratio=1.7)
    pulls = (equations.own_sum - 1.7) / equations.own_sum_error
    assert len(pulls) > 8
    assert np.abs(pulls.mean()) < 4 / np.sqrt(len(pulls))
    assert np.sqrt((pulls**2).mean()) < 1.0 + 4 / np.sqrt(2 * len(pulls))
    np.testing.assert_allclose(equations.own_rms, 1.0, atol=5 / np.sqrt(2 * 17**2))


def test_a_star_without_any_light_has_no_kernel(basis, make_image):
    dark = make_image(np.zeros((100, 100)), 1.0)
    equations, _ = equations_of(basis, dark, dark, np.array([50.0]), np.array([50.0]))
    assert np.isnan(equations.own_sum).all()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 3e3])
def test_flux_ratio_is_good_enough_to_weigh_noise(basis, rng, make_field, make_psf, scale):
    field = make_field(rng, n=16, flux=(2000.0, 9000.0))
    source = field.observe(make_psf(2.0), noise=1.0, rng=rng, background=100.0)
    target = field.observe(make_psf(2.4), noise=scale, rng=rng, flux_scale=scale, background=-30.0 * scale)
    candidates = candidates_of(basis, source, target, field.x, field.y, AlardLuptonConfig())
    assert estimate_flux_ratio(candidates, candidates.take(NOTHING)) == pytest.approx(scale, rel=0.1)


def test_selected_and_joined_equations_are_those_of_the_stars(basis, rng, make_field, make_psf):
    field = make_field(rng, n=10, flux=(3000.0, 4000.0))
    image = field.observe(make_psf(2.0), noise=1.0, rng=rng)
    equations, _ = equations_of(basis, image, image, field.x, field.y)
    odd = np.arange(len(equations)) % 2 == 1
    joined = equations.select(odd).joined(equations.select(~odd))
    assert sorted(joined.index) == sorted(equations.index)
    assert joined.matrix.shape == equations.matrix.shape


def test_a_second_pass_takes_the_noise_from_each_stars_own_kernel(basis, rng, make_field, make_psf):
    field = make_field(rng, shape=(200, 200), n=6, flux=(5000.0, 9000.0))
    source = field.observe(make_psf(2.0), noise=2.0, rng=rng)
    target = field.observe(make_psf(2.4), noise=1.0, rng=rng)
    once, _ = equations_of(basis, source, target, field.x, field.y)
    twice, _ = equations_of(basis, source, target, field.x, field.y, iterate_single_kernel=True)
    kernels = once.own_coefficients[:, : len(basis)]
    power = np.einsum("ni,ij,nj->n", kernels, basis.gram, kernels)
    np.testing.assert_allclose(once.noise, once.n_pixels * 4.0 / (1.0 + basis.first_power * 4.0), rtol=1e-6)
    np.testing.assert_allclose(twice.noise, once.n_pixels * 4.0 / (1.0 + power * 4.0), rtol=1e-6)


def test_core_statistics_are_of_the_pixels_near_the_star(basis, rng, make_field, make_psf):
    field = make_field(rng, shape=(150, 150), n=3, flux=(3000.0, 4000.0))
    source = field.observe(make_psf(2.0), noise=1.0, rng=rng)
    target = field.observe(make_psf(2.4), noise=1.0, rng=rng)
    whole, candidates = equations_of(basis, source, target, field.x, field.y)
    core, _ = equations_of(basis, source, target, field.x, field.y, use_core_stats=True, candidate_core_radius=4)
    np.testing.assert_array_equal(core.matrix, whole.matrix)
    assert (whole.n_tested == 17**2).all()
    assert (core.n_tested == 9**2).all()
    coefficients = rng.normal(size=(len(core), len(basis) + N_LOCAL_BACKGROUND)) * 0.1
    _, rms = core.measure_residuals(coefficients)
    stamps, source_variance, data, variance, _ = candidates.extract(core.index)
    inner = (slice(4, 13), slice(4, 13))
    for n in range(len(core)):
        kernel = np.tensordot(coefficients[n, : len(basis)], basis.images, axes=1)
        sky = (coefficients[n, len(basis) :] @ local_background(17)).reshape(17, 17)
        model = convolve2d(stamps[n], kernel, mode="valid") + sky
        pulls = (data[n] - model) / np.sqrt(variance[n] + basis.first_power * source_variance[n])
        assert rms[n] == pytest.approx(np.sqrt((pulls[inner] ** 2).mean()), rel=1e-9)


def test_equations_in_other_combinations_are_those_of_the_combined_kernels(basis, rng, make_field, make_psf):
    field = make_field(rng, shape=(150, 150), n=3, flux=(3000.0, 4000.0))
    source = field.observe(make_psf(2.0), noise=1.0, rng=rng)
    target = field.observe(make_psf(2.4), noise=1.0, rng=rng)
    equations, candidates = equations_of(basis, source, target, field.x, field.y)
    combinations = np.eye(len(basis))[:4] + np.r_[0.0, rng.normal(size=len(basis) - 1)] * 0.1
    combined = basis.recombined(combinations)
    config = AlardLuptonConfig()
    found = equations.projected(combinations, combined, flux_ratio=1.0, config=config)
    expected = build_equations(candidates, equations.index, combined, flux_ratio=1.0, config=config)
    # The two weigh the noise with the leading kernel of their own; here it is nearly the same, and so is not compared.
    scale = np.abs(expected.matrix).max()
    ratio = equations.noise / expected.noise
    np.testing.assert_allclose(found.matrix, expected.matrix * ratio[:, None, None], atol=1e-9 * scale)
    np.testing.assert_allclose(
        found.vector, expected.vector * ratio[:, None], atol=1e-9 * np.abs(expected.vector).max()
    )


@pytest.mark.parametrize("kind", ["EIGENVALUE", "SVD"])
def test_condition_numbers_do_not_depend_on_units(basis, rng, make_field, make_psf, kind):
    field = make_field(rng, shape=(150, 150), n=3, flux=(3000.0, 4000.0))
    source = field.observe(make_psf(2.0), noise=1.0, rng=rng)
    target = field.observe(make_psf(2.4), noise=1.0, rng=rng)
    settings = {"check_condition_number": True, "condition_number_type": kind}
    equations, _ = equations_of(basis, source, target, field.x, field.y, **settings)
    scale = np.sqrt(np.einsum("nii->ni", equations.matrix))
    scaled = equations.matrix / (scale[:, :, None] * scale[:, None, :])
    np.testing.assert_allclose(equations.own_condition, np.linalg.cond(scaled), rtol=1e-6)
    unasked, _ = equations_of(basis, source, target, field.x, field.y)
    assert np.isnan(unasked.own_condition).all()


def test_a_basis_of_one_kernel_is_solved_for_too(basis, rng, make_field, make_psf):
    field = make_field(rng, shape=(150, 150), n=4, flux=(3000.0, 4000.0))
    source = field.observe(make_psf(2.0), noise=1.0, rng=rng)
    target = field.observe(make_psf(2.4), noise=1.0, rng=rng)
    equations, _ = equations_of(basis, source, target, field.x, field.y)
    alone = np.eye(1, len(basis))
    projected = equations.projected(alone, basis.recombined(alone), flux_ratio=1.0, config=AlardLuptonConfig())
    np.testing.assert_allclose(projected.own_coefficients[:, 0], 1.0, atol=5 * equations.own_sum_error.max())
