import pickle

import numpy as np
import pytest
from astropy.io import fits

from alertprod.geometry.sphere import separation_arcsec, unit_vectors
from alertprod.geometry.wcs import SkyWcs

SHAPE = (2048, 1024)
SCALE = 0.25
CENTERS = [(150.0, 2.0), (0.0, 0.0), (359.9999, -30.0), (0.0, 90.0), (77.0, -90.0), (200.0, 89.97)]


def make_tan(ra=150.0, dec=2.0, **options):
    settings = {"x": 511.5, "y": 1023.5, "scale_arcsec": SCALE, "rotation_deg": 33.0}
    return SkyWcs.from_tangent(ra_deg=ra, dec_deg=dec, **{**settings, **options})


def tan_header(ra, dec):
    header = fits.Header()
    cards = {
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CRVAL1": ra,
        "CRVAL2": dec,
        "CRPIX1": 512.5,
        "CRPIX2": 1024.5,
        "CD1_1": -SCALE / 3600,
        "CD1_2": 1e-6,
        "CD2_1": 1e-6,
        "CD2_2": SCALE / 3600,
        "CUNIT1": "deg",
        "CUNIT2": "deg",
        "RADESYS": "ICRS",
    }
    for card, value in cards.items():
        header[card] = value
    return header


def make_sip(ra=150.0, dec=2.0):
    header = tan_header(ra, dec)
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    header["A_ORDER"], header["B_ORDER"] = 3, 2
    # Up to 5 pixels at the far corner.
    header["A_2_0"], header["A_0_2"], header["A_3_0"], header["B_1_1"], header["B_0_2"] = 3e-6, 2e-6, 1e-9, -2e-6, 3e-6
    return SkyWcs.from_header(header)


def make_tpv(ra=150.0, dec=2.0):
    header = tan_header(ra, dec)
    header["CTYPE1"], header["CTYPE2"] = "RA---TPV", "DEC--TPV"
    for card, value in (("PV1_0", 1e-4), ("PV1_1", 1.001), ("PV1_4", 5e-3), ("PV2_1", 0.999), ("PV2_7", 2e-2)):
        header[card] = value
    return SkyWcs.from_header(header)


def grid():
    x, y = np.meshgrid(np.linspace(-0.5, SHAPE[1] - 0.5, 9), np.linspace(-0.5, SHAPE[0] - 0.5, 11))
    return x, y


@pytest.mark.parametrize("make", [make_tan, make_sip, make_tpv])
@pytest.mark.parametrize(("ra", "dec"), CENTERS)
def test_pixels_survive_the_way_to_the_sky_and_back(make, ra, dec):
    wcs = make(ra, dec)
    x, y = grid()
    sky = wcs.pixel_to_sky(x=x, y=y)
    assert sky[0].shape == x.shape
    np.testing.assert_allclose(wcs.sky_to_pixel(ra_deg=sky[0], dec_deg=sky[1]), (x, y), atol=2e-4)


@pytest.mark.parametrize("make", [make_tan, make_sip, make_tpv])
@pytest.mark.parametrize(("ra", "dec"), CENTERS)
def test_cards_give_the_same_sky(make, ra, dec):
    wcs = make(ra, dec)
    again = SkyWcs.from_header(wcs.to_header())
    x, y = grid()
    # Twelve digits of 360 degrees: 4e-10 deg.
    assert separation_arcsec(*wcs.pixel_to_sky(x=x, y=y), *again.pixel_to_sky(x=x, y=y)).max() < 1e-5


@pytest.mark.parametrize("make", [make_tan, make_sip, make_tpv])
def test_the_other_side_of_ra_zero_is_the_same_place(make):
    wcs = make(0.0, 10.0)
    x, y = grid()
    ra, dec = wcs.pixel_to_sky(x=x, y=y)
    np.testing.assert_allclose(wcs.sky_to_pixel(ra_deg=ra - 360.0, dec_deg=dec), (x, y), atol=2e-4)


def test_the_first_pixels_centre_is_zero():
    header = tan_header(10.0, 20.0)
    header["CRPIX1"] = header["CRPIX2"] = 1.0
    assert SkyWcs.from_header(header).pixel_to_sky(x=0.0, y=0.0) == (pytest.approx(10.0), pytest.approx(20.0))


def test_rotation_turns_up_from_north_to_east():
    ra, dec = make_tan(rotation_deg=0.0).pixel_to_sky(x=[511.5, 501.5], y=[1033.5, 1023.5])
    assert dec[0] > 2.0  # up is north,
    assert ra[1] > 150.0  # left is east
    ra, _ = make_tan(rotation_deg=90.0).pixel_to_sky(x=511.5, y=1033.5)
    assert ra > 150.0
    ra, _ = make_tan(rotation_deg=0.0, east_left=False).pixel_to_sky(x=501.5, y=1023.5)
    assert ra < 150.0


@pytest.mark.parametrize(("ra", "dec"), CENTERS)
def test_the_jacobian_of_a_tangent_plane_is_analytic(ra, dec):
    rotation = 33.0
    wcs = make_tan(ra, dec, rotation_deg=rotation)
    jacobian = wcs.compute_jacobian(x=511.5, y=1023.5)
    angle = np.radians(rotation)
    expected = SCALE / 3600 * np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if abs(dec) < 90:
        np.testing.assert_allclose(jacobian, expected, atol=1e-6 * SCALE / 3600)
    # At a pole east and north turn with the right ascension that is given to it; lengths do not.
    np.testing.assert_allclose(jacobian.T @ jacobian, expected.T @ expected, atol=1e-6 * (SCALE / 3600) ** 2)


@pytest.mark.parametrize("scale_arcsec", [0.25, 30.0])
def test_pixels_of_a_tangent_plane_shrink_with_the_cosine_cubed(scale_arcsec):
    wcs = make_tan(scale_arcsec=scale_arcsec)
    x, y = grid()
    theta = np.arctan(np.radians(scale_arcsec / 3600) * np.hypot(x - 511.5, y - 1023.5))
    # Differences of half a pixel are exact to second order in the pixel's angle.
    np.testing.assert_allclose(
        wcs.compute_pixel_area_arcsec2(x=x, y=y), scale_arcsec**2 * np.cos(theta) ** 3, rtol=1e-6
    )
    assert wcs.compute_pixel_scale_arcsec(x=511.5, y=1023.5) == pytest.approx(scale_arcsec, rel=1e-6)


@pytest.mark.parametrize("make", [make_sip, make_tpv])
def test_the_jacobian_predicts_where_a_neighbour_lies(make):
    wcs = make(0.0, 60.0)
    x, y = 100.0, 1900.0
    east, north = wcs.compute_jacobian(x=x, y=y) @ np.array([3.0, -2.0])
    ra, dec = (np.radians(value) for value in wcs.pixel_to_sky(x=x, y=y))
    step = unit_vectors(*wcs.pixel_to_sky(x=x + 3.0, y=y - 2.0)) - unit_vectors(*np.degrees([ra, dec]))
    assert np.degrees(step @ [-np.sin(ra), np.cos(ra), 0.0]) == pytest.approx(east, rel=1e-3)
    towards_north = [-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)]
    assert np.degrees(step @ towards_north) == pytest.approx(north, rel=1e-3)


@pytest.mark.parametrize("make", [make_tan, make_sip, make_tpv])
def test_shifting_moves_the_pixels_not_the_sky(make):
    wcs = make()
    shifted = wcs.shifted(dx=-100.0, dy=37.0)
    x, y = grid()
    before, after = wcs.pixel_to_sky(x=x, y=y), shifted.pixel_to_sky(x=x - 100.0, y=y + 37.0)
    assert separation_arcsec(*before, *after).max() < 1e-8
    # The first is left as it was.
    assert separation_arcsec(*before, *wcs.pixel_to_sky(x=x, y=y)).max() == 0.0


@pytest.mark.parametrize("make", [make_tan, make_sip, make_tpv])
@pytest.mark.parametrize(("ra", "dec"), CENTERS)
def test_the_cap_holds_every_pixel(make, ra, dec):
    wcs = make(ra, dec)
    x, y = grid()
    separations = separation_arcsec(*wcs.compute_center(SHAPE), *wcs.pixel_to_sky(x=x, y=y))
    radius = wcs.compute_radius_arcsec(SHAPE)
    assert separations.max() <= radius * (1 + 1e-9)
    assert radius == pytest.approx(SCALE * np.hypot(*SHAPE) / 2, rel=0.02)


def test_corners_are_the_outer_ones_counter_clockwise():
    x, y = make_tan().sky_to_pixel(
        **dict(zip(("ra_deg", "dec_deg"), make_tan().compute_corners((10, 20)), strict=True))
    )
    np.testing.assert_allclose(x, [-0.5, 19.5, 19.5, -0.5], atol=1e-6)
    np.testing.assert_allclose(y, [-0.5, -0.5, 9.5, 9.5], atol=1e-6)


def test_points_behind_the_sky_have_no_pixel():
    assert np.isnan(make_tan().sky_to_pixel(ra_deg=330.0, dec_deg=-2.0)).all()
    assert np.isnan(make_sip().sky_to_pixel(ra_deg=330.0, dec_deg=-2.0)).all()


def test_points_far_outside_are_where_they_are_or_nowhere():
    wcs = make_sip()
    rng = np.random.default_rng(1)
    ra, dec = 150.0 + rng.uniform(-20, 20, size=200), 2.0 + rng.uniform(-20, 20, size=200)
    x, y = wcs.sky_to_pixel(ra_deg=ra, dec_deg=dec)
    found = np.isfinite(x)
    back = wcs.pixel_to_sky(x=x[found], y=y[found])
    assert separation_arcsec(*back, ra[found], dec[found]).max(initial=0.0) < 0.1


def test_one_point_behind_the_sky_does_not_spoil_the_others():
    for make in (make_tan, make_sip, make_tpv):
        ra, dec = make().pixel_to_sky(x=100.0, y=200.0)
        x, y = make().sky_to_pixel(ra_deg=[330.0, float(ra)], dec_deg=[-2.0, float(dec)])
        assert (x[1], y[1]) == (pytest.approx(100.0, abs=1e-3), pytest.approx(200.0, abs=1e-3))


@pytest.mark.parametrize("make", [make_tan, make_sip, make_tpv])
def test_a_wcs_travels_between_processes(make):
    wcs = make()
    again = pickle.loads(pickle.dumps(wcs))
    assert again.pixel_to_sky(x=10.0, y=20.0) == wcs.pixel_to_sky(x=10.0, y=20.0)


def test_declination_may_come_first():
    header = tan_header(10.0, -30.0)
    swapped = header.copy()
    for card in ("CTYPE", "CRVAL"):
        swapped[f"{card}1"], swapped[f"{card}2"] = header[f"{card}2"], header[f"{card}1"]
    for column in "12":
        swapped[f"CD1_{column}"], swapped[f"CD2_{column}"] = header[f"CD2_{column}"], header[f"CD1_{column}"]
    x, y = grid()
    straight, crossed = SkyWcs.from_header(header), SkyWcs.from_header(swapped)
    sky = straight.pixel_to_sky(x=x, y=y)
    assert separation_arcsec(*sky, *crossed.pixel_to_sky(x=x, y=y)).max() < 1e-8
    np.testing.assert_allclose(crossed.sky_to_pixel(ra_deg=sky[0], dec_deg=sky[1]), (x, y), atol=1e-6)


def test_a_matrix_left_behind_by_resampling_is_not_used():
    header = tan_header(10.0, -30.0)
    for element in ("1_1", "1_2", "2_1", "2_2"):
        header[f"PC{element}"] = 2.0 * header[f"CD{element}"]
    wcs = SkyWcs.from_header(header)
    assert wcs.compute_pixel_scale_arcsec(x=100, y=100) == pytest.approx(SCALE, rel=1e-3)
    assert header["PC1_1"] == 2.0 * header["CD1_1"]


@pytest.mark.parametrize(
    ("cards", "problem"),
    [
        ({"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"}, "right ascension"),
        ({"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}, "no celestial axes"),
        ({"RADESYS": "FK4", "EQUINOX": 1950.0}, "FK4"),
        ({"RADESYS": "FK5", "EQUINOX": 1975.0}, "1975"),
    ],
)
def test_other_skies_are_refused(cards, problem):
    header = tan_header(10.0, -30.0)
    header.update(cards)
    with pytest.raises(ValueError, match=problem):
        SkyWcs.from_header(header)


def test_cards_carry_no_times():
    header = tan_header(10.0, -30.0)
    header["MJD-OBS"], header["DATE-OBS"] = 60000.0, "2023-02-25T00:00:00"
    assert not [card for card in SkyWcs.from_header(header).to_header() if card.startswith(("MJD", "DATE"))]
