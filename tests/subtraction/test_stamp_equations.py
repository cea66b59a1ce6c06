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
