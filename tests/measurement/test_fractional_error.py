"""How well subtracted light is known follows from what is left of constant stars."""

import numpy as np
import pytest

from alertprod.measurement.fractional_error import estimate_fractional_error

N = 400


def draw_stars(fraction, *, seed=3):
    rng = np.random.default_rng(seed)
    flux = 10.0 ** rng.uniform(3.0, 6.0, N)
    errors = np.sqrt(50.0**2 + flux)
    return rng.normal(size=N) * np.hypot(errors, fraction * flux), errors, flux


def test_noise_alone_is_no_fractional_error():
    estimates = [estimate_fractional_error(*draw_stars(0.0, seed=seed)) for seed in range(200)]
    # Two standard errors, on one side: 2.3 % of the draws; five standard errors of that share above it.
    assert np.count_nonzero(estimates) / len(estimates) < 0.023 + 5 * np.sqrt(0.023 / len(estimates))


@pytest.mark.parametrize("fraction", [0.005, 0.02, 0.1])
def test_a_fraction_is_found_to_its_statistical_error(fraction):
    estimates = np.array([estimate_fractional_error(*draw_stars(fraction, seed=seed)) for seed in range(50)])
    # The median of a hundred deviates is known to 12 %; a part of the width of the faintest of them is noise.
    assert estimates.mean() == pytest.approx(fraction, rel=5 * 0.13 / np.sqrt(50))
    assert estimates.std() < 0.2 * fraction


def test_the_unit_of_the_fluxes_does_not_matter():
    flux, errors, whole = draw_stars(0.02)
    assert estimate_fractional_error(1e-4 * flux, 1e-4 * errors, 1e-4 * whole) == pytest.approx(
        estimate_fractional_error(flux, errors, whole), rel=1e-2
    )


def test_a_few_variable_stars_do_not_count():
    flux, errors, whole = draw_stars(0.0)
    flux[np.argsort(-whole)[:5]] = 0.5 * np.sort(whole)[-5:]
    assert estimate_fractional_error(flux, errors, whole) == 0.0


def test_few_stars_and_stars_without_a_flux_tell_nothing():
    flux, errors, whole = draw_stars(0.1)
    assert estimate_fractional_error(flux[:19], errors[:19], whole[:19]) == 0.0
    flux[19:] = np.nan
    assert estimate_fractional_error(flux, errors, whole) == 0.0


def test_residuals_as_large_as_the_stars_are_the_end_of_the_scale():
    _, errors, whole = draw_stars(0.0)
    assert estimate_fractional_error(5.0 * whole, errors, whole) == 1.0
