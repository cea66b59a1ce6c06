import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alertprod.geometry.sphere import east_and_north, separation_arcsec, sky_positions, unit_vectors

ras, decs = st.floats(0.0, 360.0, exclude_max=True), st.floats(-90.0, 90.0)


@given(ras, decs)
def test_positions_survive_the_way_through_vectors(ra, dec):
    vector = unit_vectors(ra, dec)
    assert np.linalg.norm(vector) == pytest.approx(1.0)
    back_ra, back_dec = sky_positions(vector)
    assert separation_arcsec(ra, dec, back_ra, back_dec) < 1e-8
    assert 0.0 <= back_ra <= 360.0


@given(ras, decs, ras, decs)
def test_separation_is_symmetric_and_at_most_half_a_turn(ra1, dec1, ra2, dec2):
    there, back = separation_arcsec(ra1, dec1, ra2, dec2), separation_arcsec(ra2, dec2, ra1, dec1)
    assert there == pytest.approx(back)
    assert 0.0 <= there <= 180.0 * 3600 + 1e-6


@pytest.mark.parametrize(
    ("first", "second", "degrees"),
    [
        ((0.0, 0.0), (1e-7, 0.0), 1e-7),
        ((359.9999, 0.0), (0.0001, 0.0), 2e-4),
        ((10.0, 89.9999), (190.0, 89.9999), 2e-4),
        ((0.0, 90.0), (77.0, 90.0), 0.0),
        ((0.0, 0.0), (180.0, 0.0), 180.0),
        ((0.0, -90.0), (0.0, 90.0), 180.0),
        ((30.0, 60.0), (31.0, 60.0), 2 * np.degrees(np.arcsin(np.cos(np.pi / 3) * np.sin(np.radians(0.5))))),
    ],
)
def test_known_separations(first, second, degrees):
    # Unit vectors are good to 1e-16, which is 2e-11 arcsec; near 180 degrees the complement is used.
    assert separation_arcsec(*first, *second) == pytest.approx(degrees * 3600, rel=1e-8, abs=1e-9)


def test_arrays_keep_their_shape():
    ra = np.arange(6.0).reshape(2, 3)
    assert unit_vectors(ra, ra).shape == (2, 3, 3)
    assert separation_arcsec(ra, ra, 0.0, 0.0).shape == (2, 3)
    assert sky_positions(unit_vectors(ra, ra))[0].shape == (2, 3)


def test_vectors_need_not_be_of_unit_length():
    ra, dec = sky_positions(3.0 * unit_vectors(123.0, -45.0))
    assert (ra, dec) == (pytest.approx(123.0), pytest.approx(-45.0))


@given(ras, decs)
def test_east_north_and_up_are_a_right_handed_frame(ra, dec):
    east, north = east_and_north(ra, dec)
    np.testing.assert_allclose(np.stack([east, north]) @ np.stack([east, north]).T, np.eye(2), atol=1e-14)
    np.testing.assert_allclose(np.cross(east, north), unit_vectors(ra, dec), atol=1e-14)
    assert north[2] >= -1e-16  # towards the pole
