import numpy as np
import pytest
from scipy.signal import convolve2d

from alertprod.subtraction.basis import make_alard_lupton_basis
from alertprod.subtraction.candidates import CandidateList, StampGeometry
from alertprod.subtraction.config import AlardLuptonConfig
from alertprod.subtraction.kernel_solution import build_equations, convolve_stamps, solve_spatial


@pytest.fixture
def basis():
    return make_alard_lupton_basis((0.7, 1.4, 2.8), (2, 1, 1), 15)


def equations_of(basis, source, target, x, y, **settings):
    config = AlardLuptonConfig(**settings)
    candidates = CandidateList(
        source, target, x=x, y=y, flux=None, geometry=StampGeometry.for_kernel(basis.size), config=config
    )
    indices = candidates.take(np.zeros(0, dtype=np.int64))
    return build_equations(candidates, indices, basis, variance_factor=1.0, config=config), candidates


def test_stamps_are_convolved_with_every_basis_kernel(basis, rng):
    stamps = rng.normal(size=(3, 31, 31))
    found = convolve_stamps(stamps, basis, 17)
    for n in range(3):
        for i, kernel in enumerate(basis.images):
            np.testing.assert_allclose(found[n, i], convolve2d(stamps[n], kernel, mode="valid"), atol=1e-12)


def test_residuals_follow_from_the_sums_without_the_pixels(basis, rng, make_field, make_image, make_psf):
    field = make_field(rng, shape=(150, 150), n=4, flux=(3000.0, 4000.0))
    source = field.observe(make_psf(2.0), noise=1.0, rng=rng)
    target = field.observe(make_psf(2.4), noise=1.0, rng=rng)
    target.variance[:] = rng.uniform(0.5, 2.0, target.shape)
    equations, candidates = equations_of(basis, source, target, field.x, field.y)
    coefficients = rng.normal(size=(len(equations), len(basis) + 1)) * 0.1
    mean, rms = equations.measure_residuals(coefficients)
    stamps, source_variance, data, variance, _ = candidates.extract(equations.index)
    kernels = np.tensordot(coefficients[:, :-1], basis.images, axes=1)
    for n in range(len(equations)):
        model = convolve2d(stamps[n], kernels[n], mode="valid") + coefficients[n, -1]
        pulls = (data[n] - model) / np.sqrt(variance[n] + source_variance[n])
        assert mean[n] == pytest.approx(pulls.mean(), rel=1e-9)
        assert rms[n] == pytest.approx(np.sqrt((pulls**2).mean()), rel=1e-9)


def test_own_kernel_sum_is_the_flux_ratio_within_its_error(basis, rng, make_field, make_psf):
    field = make_field(rng, n=16, flux=(2e5, 4e5))
    source = field.observe(make_psf(2.0), noise=0.01, rng=rng)
    target = field.observe(make_psf(2.4), noise=1.0, rng=rng, flux_scale=1.7)
    equations, _ = equations_of(basis, source, target, field.x, field.y)
    pulls = (equations.own_sum - 1.7) / equations.own_sum_error
    assert len(pulls) > 8
    assert np.abs(pulls.mean()) < 4 / np.sqrt(len(pulls))
    assert np.sqrt((pulls**2).mean()) < 1.0 + 4 / np.sqrt(2 * len(pulls))


def test_a_star_without_any_light_has_no_kernel(basis, make_image):
    dark = make_image(np.zeros((100, 100)), 1.0)
    equations, _ = equations_of(basis, dark, dark, np.array([50.0]), np.array([50.0]))
    assert np.isnan(equations.own_sum).all()


def test_noise_of_the_convolved_image_does_not_shrink_the_kernel(basis, rng, make_field, make_psf):
    """Noise in the design matrix pulls coefficients to zero; the expectation of its power is taken out again."""
    deviations = {True: [], False: []}
    for _ in range(8):
        field = make_field(rng, n=25, flux=(500.0, 700.0))
        source = field.observe(make_psf(2.0), noise=2.0, rng=rng)
        target = field.observe(make_psf(2.0), noise=0.5, rng=rng)
        equations, _ = equations_of(basis, source, target, field.x, field.y)
        terms = np.ones((len(equations), 1))
        gram = np.einsum("iyx,jyx->ij", basis.images, basis.images)
        for correct, values in deviations.items():
            solution = solve_spatial(equations, terms, terms, gram=gram, correct_noise_bias=correct)
            kernel = np.tensordot(solution.kernel[:, 0], basis.images, axes=1)
            # With equal PSFs the kernel is a delta function, the peak of which suffers most.
            values.append(kernel[7, 7])
    corrected, shrunk = np.mean(deviations[True]), np.mean(deviations[False])
    assert abs(corrected - 1.0) < abs(shrunk - 1.0)
    assert shrunk < corrected


def test_without_background_its_terms_have_no_columns(basis, rng, make_field, make_psf):
    field = make_field(rng, n=12, flux=(5e4, 6e4))
    source = field.observe(make_psf(2.0), noise=0.1, rng=rng)
    target = field.observe(make_psf(2.4), noise=0.1, rng=rng, flux_scale=0.8)
    equations, _ = equations_of(basis, source, target, field.x, field.y, fit_for_background=False)
    gram = np.einsum("iyx,jyx->ij", basis.images, basis.images)
    solution = solve_spatial(
        equations, np.ones((len(equations), 1)), np.zeros((len(equations), 0)), gram=gram, correct_noise_bias=True
    )
    assert solution.background.size == 0
    assert solution.kernel[0, 0] == pytest.approx(0.8, rel=2e-3)
