import numpy as np
import pytest

from alertprod.subtraction.basis import lead_with_psfs, make_alard_lupton_basis
from alertprod.subtraction.candidates import CandidateList, StampGeometry
from alertprod.subtraction.config import AlardLuptonConfig
from alertprod.subtraction.kernel_solution import local_background_terms, solve_spatial
from alertprod.subtraction.stamp_equations import build_equations


def solve(source, target, psfs, field, *, correct_noise_bias=True, fit_for_background=True, flux_ratio=1.0):
    basis = lead_with_psfs(
        make_alard_lupton_basis((0.7, 1.4, 2.8), (4, 2, 2), 21), convolved_psf=psfs[0], reference_psf=psfs[1]
    )
    config = AlardLuptonConfig(fit_for_background=fit_for_background)
    candidates = CandidateList(
        source, target, x=field.x, y=field.y, flux=None, geometry=StampGeometry.for_kernel(21), config=config
    )
    indices = candidates.take(np.zeros(0, dtype=np.int64))
    equations = build_equations(candidates, indices, basis, flux_ratio=flux_ratio, config=config)
    ones = np.ones((len(equations), 1))
    background_terms = local_background_terms(0, source.box, x=equations.x, y=equations.y, side=23)
    solution = solve_spatial(
        equations,
        ones,
        background_terms[:, :, : int(fit_for_background)],
        basis=basis,
        flux_ratio=flux_ratio,
        correct_noise_bias=correct_noise_bias,
    )
    return solution, np.tensordot(solution.kernel[:, 0], basis.images, axes=1)


def test_noise_of_the_convolved_image_does_not_bias_the_kernel_sum(rng, make_field, make_psf):
    """Uncorrected, noise in the design matrix is off by several per cent with these equal, faint, noisy images."""
    psfs = make_psf(2.4), make_psf(2.4)
    sums = {True: [], False: []}
    for _ in range(10):
        field = make_field(rng, shape=(400, 400), n=45, flux=(700.0, 1400.0))
        source, target = (field.observe(psf, noise=1.0, rng=rng) for psf in psfs)
        for correct, values in sums.items():
            values.append(solve(source, target, psfs, field, correct_noise_bias=correct)[1].sum())
    error = np.std(sums[True]) / np.sqrt(10)
    assert error < 0.006
    assert abs(np.mean(sums[True]) - 1.0) < 3 * error
    assert abs(np.mean(sums[False]) - 1.0) > 3 * error


def test_without_information_the_kernel_is_that_of_the_psfs(rng, make_field, make_psf):
    psfs = make_psf(2.0), make_psf(2.8)
    field = make_field(rng, n=4, flux=(150.0, 200.0))
    source, target = (field.observe(psf, noise=noise, rng=rng) for psf, noise in zip(psfs, (1.0, 1.0), strict=True))
    _, kernel = solve(source, target, psfs, field)
    v, u = np.mgrid[-10:11, -10:11]
    wanted = np.exp(-0.5 * (u**2 + v**2) / (2.8**2 - 2.0**2))
    overlap = (kernel * wanted).sum() / np.sqrt((kernel**2).sum() * (wanted**2).sum())
    assert overlap > 0.8


def test_without_background_its_terms_have_no_columns(rng, make_field, make_psf):
    psfs = make_psf(2.0), make_psf(2.4)
    field = make_field(rng, n=12, flux=(5e4, 6e4))
    source = field.observe(psfs[0], noise=0.1, rng=rng)
    target = field.observe(psfs[1], noise=0.1, rng=rng, flux_scale=0.8)
    solution, kernel = solve(source, target, psfs, field, fit_for_background=False, flux_ratio=0.8)
    assert solution.background.size == 0
    assert kernel.sum() == pytest.approx(0.8, rel=2e-3)
