import numpy as np
import pytest

from alertprod.association.positions import (
    UNKNOWN_ERR_ARCSEC,
    Positions,
    fill_unknown,
    read_covariances,
    turn_covariances,
)


def test_errors_in_degrees_become_covariances_in_arcsec(make_sources):
    sources = make_sources([0.0], [0.0], ra_err_deg=3e-5, dec_err_deg=6e-5, ra_dec_cov_deg2=9e-10)
    (covariance,) = Positions.from_catalog(sources).covariance_arcsec2
    assert covariance == pytest.approx(np.array([[9e-10, 9e-10], [9e-10, 36e-10]]) * 3600**2, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_errors_that_nobody_measured_are_taken_for_a_faint_sources(make_sources, bad):
    sources = make_sources([0.0], [0.0], ra_err_deg=bad, dec_err_deg=6e-5, ra_dec_cov_deg2=1e-10)
    (covariance,) = Positions.from_catalog(sources).covariance_arcsec2
    assert covariance[0, 0] == UNKNOWN_ERR_ARCSEC**2
    assert covariance[1, 1] == pytest.approx((6e-5 * 3600) ** 2)
    assert np.linalg.eigvalsh(covariance)[0] > 0


@pytest.mark.parametrize("cross", [np.nan, np.inf, 2.0, -1.0])
def test_cross_terms_that_the_errors_do_not_allow_count_as_none(cross):
    covariance = np.array([[[1.0, cross], [cross, 1.0]]])
    np.testing.assert_array_equal(fill_unknown(covariance), [np.eye(2)])


def test_what_is_not_measured_is_nan_before_it_is_filled_in(make_sources):
    sources = make_sources([0.0], [0.0], ra_err_deg=np.inf, dec_err_deg=1e-5)
    (covariance,) = read_covariances(sources)
    assert np.isnan(covariance[0, 0])
    assert np.isnan(covariance[0, 1])
    assert covariance[1, 1] == pytest.approx((1e-5 * 3600) ** 2)


def test_turning_to_the_other_side_of_the_pole_turns_the_ellipse():
    covariance = np.array([[[4.0, 1.0], [1.0, 9.0]]])
    place = {"ra_deg": np.array([10.0]), "dec_deg": np.array([89.9999999])}

    def turn(to_ra_deg):
        return turn_covariances(
            covariance, **place, to_ra_deg=np.array([to_ra_deg]), to_dec_deg=np.array([89.9999999])
        )[0]

    np.testing.assert_allclose(turn(190.0), covariance[0], atol=1e-6)
    np.testing.assert_allclose(turn(100.0), [[9.0, -1.0], [-1.0, 4.0]], atol=1e-6)


def test_turning_and_back_changes_nothing():
    rng = np.random.default_rng(3)
    n = 50
    root = rng.normal(size=(n, 2, 2))
    covariance = root @ np.swapaxes(root, 1, 2)
    here = rng.uniform(0, 360, n), np.full(n, 89.99999)
    there = rng.uniform(0, 360, n), np.full(n, 89.99999)
    turned = turn_covariances(covariance, ra_deg=here[0], dec_deg=here[1], to_ra_deg=there[0], to_dec_deg=there[1])
    back = turn_covariances(turned, ra_deg=there[0], dec_deg=there[1], to_ra_deg=here[0], to_dec_deg=here[1])
    np.testing.assert_allclose(back, covariance, atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(turned), np.linalg.det(covariance), rtol=1e-9)
