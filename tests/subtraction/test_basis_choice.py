import numpy as np
import pytest

from alertprod.subtraction.basis import make_alard_lupton_basis, pick_degrees
from alertprod.subtraction.basis_choice import choose_degrees
from alertprod.subtraction.candidates import CandidateList, StampGeometry
from alertprod.subtraction.config import AlardLuptonConfig
from alertprod.subtraction.stamp_equations import build_equations

DEGREES = (3, 2)


@pytest.fixture
def solve(rng, make_field, make_psf, make_image):
    """Return a function that makes the equations of stars convolved with a combination of the basis."""
    basis = make_alard_lupton_basis((0.8, 1.6), DEGREES, 13)
    config = AlardLuptonConfig()

    def equations_of(coefficients):
        field = make_field(rng, shape=(200, 200), n=9, flux=(2e4, 4e4))
        source = field.observe(make_psf(2.0), noise=0.01, rng=rng)
        kernel = np.tensordot(coefficients, basis.images, axes=1)
        spread = np.fft.irfft2(
            np.fft.rfft2(source.image) * np.fft.rfft2(np.roll(np.pad(kernel, (0, 187)), (-6, -6), axis=(0, 1))),
            s=(200, 200),
        )
        target = make_image(spread + rng.normal(0.0, 1.0, field.shape), 1.0)
        candidates = CandidateList(
            source, target, x=field.x, y=field.y, flux=None, geometry=StampGeometry.for_kernel(13), config=config
        )
        indices = candidates.take(np.zeros(0, dtype=np.int64))
        return build_equations(candidates, indices, basis, flux_ratio=1.0, config=config)

    return equations_of


@pytest.mark.parametrize("truth", [(1, 0), (2, 1), (0, 2)])
def test_degrees_that_made_the_stars_are_found(solve, rng, truth):
    # Every function of the true degrees takes part, far above the noise of stars of 1e4 sigma.
    kept = pick_degrees(DEGREES, truth)
    signs = rng.choice([-0.2, 0.2], size=len(kept))
    degrees, found = choose_degrees(solve(np.r_[1.0, np.where(kept, signs, 0.0)[1:]]), DEGREES)
    assert degrees == truth
    np.testing.assert_array_equal(found, kept)


def test_functions_of_lower_degrees_are_those_of_the_smaller_basis():
    whole = make_alard_lupton_basis((0.8, 1.6), DEGREES, 13)
    lower = make_alard_lupton_basis((0.8, 1.6), (1, 2), 13)
    np.testing.assert_allclose(whole.images[pick_degrees(DEGREES, (1, 2))], lower.images, atol=1e-12)
