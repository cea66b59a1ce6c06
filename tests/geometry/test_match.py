import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alertprod.geometry.match import UNMATCHED, match_nearest, match_sky_positions


def points(*values):
    return np.array([[value, 0.0] for value in values])


def test_a_pair_needs_both_sides():
    # Both of the first two are near the one; it is nearest to the second.
    np.testing.assert_array_equal(match_nearest(points(0.0, 0.3, 5.0), points(0.4, 9.0), radius=1.0), [-1, 0, -1])


def test_without_mutuality_two_may_share_a_partner():
    found = match_nearest(points(0.0, 0.3, 5.0), points(0.4, 9.0), radius=1.0, mutual=False)
    np.testing.assert_array_equal(found, [0, 0, UNMATCHED])


def test_rows_that_are_not_finite_match_nothing():
    found = match_nearest(points(0.0, np.nan, 2.0), points(np.inf, 2.0, 0.0), radius=0.5)
    np.testing.assert_array_equal(found, [2, UNMATCHED, 1])


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_empty_tables_match_nothing(n, m):
    found = match_nearest(np.zeros((n, 2)), np.zeros((m, 2)), radius=1.0)
    np.testing.assert_array_equal(found, np.full(n, UNMATCHED))


@given(st.integers(0, 2**32 - 1))
def test_mutual_matches_are_the_same_from_either_side(seed):
    rng = np.random.default_rng(seed)
    here, there = rng.uniform(size=(30, 2)), rng.uniform(size=(20, 2))
    forth, back = match_nearest(here, there, radius=0.1), match_nearest(there, here, radius=0.1)
    rows = np.flatnonzero(forth != UNMATCHED)
    np.testing.assert_array_equal(back[forth[rows]], rows)
    assert len(rows) == (back != UNMATCHED).sum()


@pytest.mark.parametrize(("ra", "dec"), [(0.0, 0.0), (123.0, 89.9999), (50.0, -90.0)])
def test_the_sky_has_no_seam(ra, dec):
    step = 0.9 / 3600
    ra_deg, dec_deg = np.array([ra, ra + 40.0]), np.array([dec, 10.0])
    other = {"other_ra_deg": np.array([ra + 40.0, ra - 1e-9 if dec == 0 else ra]) % 360.0}
    other["other_dec_deg"] = np.array([10.0, dec + step if dec <= 0 else dec - step])
    found = match_sky_positions(ra_deg=ra_deg, dec_deg=dec_deg, **other, radius_arcsec=1.0)
    np.testing.assert_array_equal(found, [1, 0])
    found = match_sky_positions(ra_deg=ra_deg, dec_deg=dec_deg, **other, radius_arcsec=0.8)
    np.testing.assert_array_equal(found, [UNMATCHED, 0])
