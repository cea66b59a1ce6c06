import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import BarycentricMeanEcliptic, SkyCoord, get_sun
from astropy.time import Time

from alertprod.association.designations import compute_ss_object_id
from alertprod.association.solar_system import (
    Ephemerides,
    SolarSystemConfig,
    SolarSystemMatches,
    match_solar_system,
    predict,
)
from alertprod.association.solar_system_columns import ORBIT_COLUMNS, PREDICTION_COLUMNS
from alertprod.geometry.sphere import SphericalPolygon, east_and_north, separation_arcsec, sky_positions, unit_vectors
from alertprod.measurement.catalog import Catalog

ARCSEC = 1 / 3600
MJD = 61000.25
FIELD = SphericalPolygon.cap(ra_deg=0.0, dec_deg=0.0, radius_arcsec=100.0)


def make_table(east=(), north=(), *, names=None, mjd=MJD, rate_ra=0.0, rate_dec=0.0, **columns):
    """Predictions at offsets in arcsec from (0, 0)."""
    table = Catalog(PREDICTION_COLUMNS, len(east))
    table["designation"] = np.array(names or [f"2020 A{'ABCDEFGH'[k]}" for k in range(len(east))], dtype=object)
    table["mjd_tai"] = mjd
    table["ra_deg"], table["dec_deg"] = np.array(east) * ARCSEC % 360.0, np.array(north) * ARCSEC
    table["ra_rate_deg_d"], table["dec_rate_deg_d"] = rate_ra, rate_dec
    for name, values in columns.items():
        table[name] = values
    return table


def expect(table, *, orbits=None, mjd=MJD, field=FIELD, **config):
    known = Ephemerides(table, orbits or Catalog((), 0))
    return predict(known, field, mjd_tai=mjd, config=SolarSystemConfig(**config))


def match(sources, table, **config):
    return match_solar_system(sources, expect(table), config=SolarSystemConfig(**config))


# -- prediction --


def test_bodies_are_carried_to_mid_exposure_at_their_rates():
    # 0.48 deg/d towards east and -0.24 towards north: 72 and -36 arcsec in an hour.
    table = make_table([-36.0], [18.0], mjd=MJD - 0.5 / 24, rate_ra=0.48, rate_dec=-0.24)
    moved = expect(table).predictions
    assert separation_arcsec(moved["ra_deg"], moved["dec_deg"], 0.0, 0.0)[0] < 1e-4  # an MJD is good to a microsecond
    assert moved["mjd_tai"].tolist() == [MJD]


@pytest.mark.parametrize(("ra_deg", "dec_deg"), [(0.0, 0.0), (123.0, 60.0), (359.9999, -89.0), (0.0, 89.9999)])
def test_motion_is_along_a_great_circle_with_the_full_rate_anywhere(ra_deg, dec_deg):
    table = make_table([0.0], [0.0], mjd=MJD - 1 / 24, rate_ra=3.0, rate_dec=4.0)
    table["ra_deg"], table["dec_deg"] = ra_deg, dec_deg
    field = SphericalPolygon.cap(ra_deg=ra_deg, dec_deg=dec_deg, radius_arcsec=3000.0)
    moved = expect(table, field=field).predictions
    assert separation_arcsec(ra_deg, dec_deg, moved["ra_deg"], moved["dec_deg"])[0] == pytest.approx(5 / 24 * 3600)
    assert np.hypot(moved["ra_rate_deg_d"], moved["dec_rate_deg_d"])[0] == pytest.approx(5.0)
    # The heading is that of the great circle: back at the same rate is where it came from.
    back = make_table([0.0], [0.0], mjd=MJD, rate_ra=moved["ra_rate_deg_d"], rate_dec=moved["dec_rate_deg_d"])
    back["ra_deg"], back["dec_deg"] = moved["ra_deg"], moved["dec_deg"]
    origin = expect(back, field=field, mjd=MJD - 1 / 24).predictions
    assert separation_arcsec(ra_deg, dec_deg, origin["ra_deg"], origin["dec_deg"])[0] < 1e-6


def test_of_many_epochs_the_nearest_is_used():
    names, epochs = ["a", "b", "a", "b", "a"], MJD + np.array([-0.03, -0.02, 0.01, 0.03, 0.02])
    found = expect(make_table([1, 2, 3, 4, 5], [0] * 5, names=names, mjd=epochs)).predictions
    assert found["designation"].tolist() == ["a", "b"]
    assert (found["ra_deg"] * 3600).tolist() == pytest.approx([3, 2])


def test_predictions_far_in_time_are_not_used():
    table = make_table([0, 1], [0, 0], mjd=MJD + np.array([0.99, 1.01]) / 24)
    assert expect(table).predictions["designation"].tolist() == ["2020 AA"]
    assert expect(table, max_propagation_s=7200.0).predictions.n_rows == 2


def test_only_bodies_on_the_exposure_are_expected():
    table = make_table([0, 99, 105, -4000], [0, 0, 0, 0], mjd=MJD - 1 / 25, rate_ra=[0, 0, 0, 25.0])
    # The fourth moves a degree, and is 400 arcsec short.
    found = expect(table).predictions
    assert found["designation"].tolist() == ["2020 AA", "2020 AB"]
    fast = make_table([-3600.0], [0.0], mjd=MJD - 1 / 24, rate_ra=24.0)
    assert expect(fast).predictions.n_rows == 1


def test_an_empty_table_expects_nothing():
    assert expect(make_table()).predictions.n_rows == 0


# -- matches --


def test_a_source_at_a_predicted_place_is_the_body(make_sources):
    sources, matches = match(make_sources([0.5, 30.0], [0.0, 0.0]), make_table([0.0, 50.0], [0.0, 0.0]))
    identity = compute_ss_object_id("2020 AA")
    assert sources["ss_object_id"].tolist() == [identity, 0]
    assert matches.ss_sources["dia_source_id"].tolist() == [1001]
    assert matches.ss_sources["ss_object_id"].tolist() == [identity]
    assert matches.n_predicted == 2


def test_the_radius_is_an_arcsecond_or_what_is_configured(make_sources):
    sources, table = make_sources([1.5], [0.0]), make_table([0.0], [0.0])
    assert match(sources, table)[1].ss_sources.n_rows == 0
    assert match(sources, table, radius_arcsec=2.0)[1].ss_sources.n_rows == 1


def test_uncertain_predictions_yield_to_certain_ones(make_sources):
    table = make_table([0.3, -0.4], [0.0, 0.0], ra_err_deg=np.array([0.01, 0.5]) * ARCSEC, dec_err_deg=0.1 * ARCSEC)
    sources = make_sources([0.0], [0.0], ra_err_deg=0.01 * ARCSEC, dec_err_deg=0.01 * ARCSEC)
    assert match(sources, table)[1].ss_sources["designation"].tolist() == ["2020 AB"]


def test_input_is_left_as_it_is(make_sources):
    sources, table = make_sources([0.0], [0.0]), make_table([0.0], [0.0], mjd=MJD - 0.01, rate_ra=0.001)
    match(sources, table)
    assert sources["ss_object_id"].tolist() == [0]
    assert (table["ra_deg"][0], table["mjd_tai"][0]) == (0.0, MJD - 0.01)


def test_offsets_are_detection_less_prediction_along_and_across_the_motion(make_sources):
    table = make_table([0.0], [0.0], rate_ra=0.3, rate_dec=0.4, v_mag=21.5)
    (row,) = match(make_sources([0.5], [0.1]), table)[1].ss_sources.rows()
    assert row["eph_offset_ra_arcsec"] == pytest.approx(0.5)
    assert row["eph_offset_dec_arcsec"] == pytest.approx(0.1)
    assert row["eph_offset_arcsec"] == pytest.approx(0.26**0.5)
    assert row["eph_offset_along_track_arcsec"] == pytest.approx(0.5 * 0.6 + 0.1 * 0.8)
    # Across: a quarter turn from the motion, from east to north: (-0.8, 0.6).
    assert row["eph_offset_cross_track_arcsec"] == pytest.approx(-0.5 * 0.8 + 0.1 * 0.6)
    assert row["eph_rate_deg_d"] == pytest.approx(0.5)
    assert (row["eph_rate_ra_deg_d"], row["eph_rate_dec_deg_d"]) == pytest.approx((0.3, 0.4))
    assert row["eph_v_mag"] == 21.5
    assert (row["eph_ra_deg"], row["eph_dec_deg"]) == (0.0, 0.0)


def test_a_body_that_stands_still_has_no_track(make_sources):
    (row,) = match(make_sources([0.5], [0.1]), make_table([0.0], [0.0]))[1].ss_sources.rows()
    assert np.isnan(row["eph_offset_along_track_arcsec"])
    assert np.isnan(row["eph_offset_cross_track_arcsec"])
    assert row["eph_rate_deg_d"] == 0.0


def test_ranks_tell_how_many_detections_are_nearer(make_sources):
    # The nearer of two sources is taken by another body.
    table = make_table([0.0, 0.5], [0.0, 0.0], ra_err_deg=0.05 * ARCSEC, dec_err_deg=0.05 * ARCSEC)
    sources = make_sources([-0.6, 0.45], [0.0, 0.0], ra_err_deg=0.2 * ARCSEC, dec_err_deg=0.2 * ARCSEC)
    _, matches = match(sources, table)
    ranks = dict(
        zip(matches.ss_sources["designation"].tolist(), matches.ss_sources["dia_distance_rank"].tolist(), strict=True)
    )
    assert ranks == {"2020 AA": 2, "2020 AB": 1}


@pytest.mark.parametrize(("ra_deg", "dec_deg"), [(0.0, 0.0), (83.6, 22.0), (266.4, -29.0), (120.0, 89.0)])
def test_ecliptic_and_galactic_coordinates_agree_with_astropy(make_sources, ra_deg, dec_deg):
    sources, table = make_sources([0.0], [0.0]), make_table([0.0], [0.0])
    for rows in (sources, table):
        rows["ra_deg"], rows["dec_deg"] = ra_deg, dec_deg
    field = SphericalPolygon.cap(ra_deg=ra_deg, dec_deg=dec_deg, radius_arcsec=100.0)
    (row,) = match_solar_system(sources, expect(table, field=field))[1].ss_sources.rows()
    place = SkyCoord(ra_deg * u.deg, dec_deg * u.deg)
    ecliptic = place.transform_to(BarycentricMeanEcliptic(equinox="J2000"))
    assert separation_arcsec(row["ecl_lambda_deg"], row["ecl_beta_deg"], ecliptic.lon.deg, ecliptic.lat.deg) < 0.1
    galactic = place.galactic
    assert separation_arcsec(row["gal_lon_deg"], row["gal_lat_deg"], galactic.l.deg, galactic.b.deg) < 0.1


def test_solar_elongation_is_known_from_the_time_alone(make_sources):
    (row,) = match(make_sources([0.0], [0.0]), make_table([0.0], [0.0]))[1].ss_sources.rows()
    sun = get_sun(Time(MJD, format="mjd", scale="tai"))
    apart = SkyCoord(0 * u.deg, 0 * u.deg, frame=sun.frame.replicate_without_data()).separation(sun)
    assert row["elongation_deg"] == pytest.approx(apart.deg, abs=0.02)  # aberration, and ICRS for GCRS
    for name in ("phase_angle_deg", "topo_range_au", "helio_range_au", "helio_x_au", "topo_vtot_km_s", "eph_v_mag"):
        assert np.isnan(row[name]), name


def states(east_au):
    """An observer at 1 au from the Sun on the x axis, a body `east_au` farther out along RA 0."""
    return {
        "topo_x_au": east_au, "topo_y_au": 0.0, "topo_z_au": 0.0,
        "topo_vx_km_s": 3.0, "topo_vy_km_s": 4.0, "topo_vz_km_s": 12.0,
        "helio_x_au": 1.0 + east_au, "helio_y_au": 0.0, "helio_z_au": 0.0,
        "helio_vx_km_s": -2.0, "helio_vy_km_s": 20.0, "helio_vz_km_s": 0.0,
    }  # fmt: skip


def test_distances_velocities_and_angles_follow_from_state_vectors(make_sources):
    (row,) = match(make_sources([0.0], [0.0]), make_table([0.0], [0.0], **states(1.5)))[1].ss_sources.rows()
    assert (row["topo_range_au"], row["helio_range_au"]) == (1.5, 2.5)
    assert (row["topo_range_rate_km_s"], row["helio_range_rate_km_s"]) == (3.0, -2.0)
    assert row["topo_vtot_km_s"] == 13.0
    assert row["helio_vtot_km_s"] == pytest.approx(404**0.5)
    assert (row["helio_x_au"], row["topo_vz_km_s"]) == (2.5, 12.0)
    assert row["elongation_deg"] == pytest.approx(180.0)  # opposition
    assert row["phase_angle_deg"] == pytest.approx(0.0)


def test_the_tables_own_numbers_go_before_derived_ones(make_sources):
    table = make_table(
        [0.0], [0.0], **states(1.5), topo_range_au=1.4, helio_range_au=2.4, phase_angle_deg=7.0,
        topo_range_rate_km_s=1.0, helio_range_rate_km_s=2.0,
    )  # fmt: skip
    (row,) = match(make_sources([0.0], [0.0]), table)[1].ss_sources.rows()
    assert row["topo_range_au"] == pytest.approx(1.4)
    assert row["helio_range_au"] == pytest.approx(2.4)
    assert (row["phase_angle_deg"], row["topo_range_rate_km_s"], row["helio_range_rate_km_s"]) == (7.0, 1.0, 2.0)


def test_a_distance_alone_gives_angles_through_the_earths_place(make_sources):
    (row,) = match(make_sources([0.0], [0.0]), make_table([0.0], [0.0], topo_range_au=2.0))[1].ss_sources.rows()
    sun = get_sun(Time(MJD, format="mjd", scale="tai"))
    elongation, to_sun = np.radians(row["elongation_deg"]), sun.distance.to_value(u.au)
    helio = np.sqrt(4.0 + to_sun**2 - 4.0 * to_sun * np.cos(elongation))  # law of cosines
    assert row["helio_range_au"] == pytest.approx(helio, abs=1e-4)
    assert row["phase_angle_deg"] == pytest.approx(np.degrees(np.arcsin(to_sun * np.sin(elongation) / helio)), abs=0.02)
    assert np.isnan(row["helio_x_au"])


def test_orbits_come_from_the_table_and_names_from_the_designation(make_sources):
    orbits = Catalog([column for column in ORBIT_COLUMNS if column.name in ("a", "u_param", "mpc_orb_jsonb")], 2)
    orbits["a"], orbits["u_param"], orbits["mpc_orb_jsonb"] = [2.5, 3.5], [0, None], ["{}", None]
    expected = expect(make_table([0.0, 20.0], [0.0, 0.0], names=["my rock", "2020 AB"]), orbits=orbits)
    _, matches = match_solar_system(make_sources([0.0, 20.0], [0.0, 0.0]), expected)
    rows = {row["designation"]: row for row in matches.orbits.rows()}
    assert rows["my rock"]["packed_primary_provisional_designation"] == "my rock"
    assert rows["2020 AB"]["packed_primary_provisional_designation"] == "K20A00B"
    assert rows["2020 AB"]["unpacked_primary_provisional_designation"] == "2020 AB"
    assert [rows[name]["u_param"] for name in ("my rock", "2020 AB")] == [0, None]
    assert [rows[name]["a"] for name in ("my rock", "2020 AB")] == [2.5, 3.5]
    assert np.isnan(rows["my rock"]["e"])


def test_nothing_matches_nothing(make_sources):
    none = SolarSystemMatches.none()
    assert (none.ss_sources.n_rows, none.orbits.n_rows, none.n_predicted) == (0, 0, 0)
    sources, matches = match(make_sources([], []), make_table([0.0], [0.0]))
    assert (sources.n_rows, matches.ss_sources.n_rows, matches.n_predicted) == (0, 0, 1)


def test_a_circular_orbit_is_followed_to_a_tenth_of_an_arcsecond_over_half_an_hour(make_sources):
    """A body at 2.5 au about the Sun, seen from an Earth at 1 au, both on circles: the truth by geometry."""

    def seen(days):
        earth = 2 * np.pi * days / 365.25
        body = 0.3 + 2 * np.pi * days / (365.25 * 2.5**1.5)
        line = 2.5 * np.array([np.cos(body), np.sin(body), 0.1]) - np.array([np.cos(earth), np.sin(earth), 0.0])
        return line / np.linalg.norm(line)

    step, half_hour = 1e-4, 1 / 48
    rate = np.degrees((seen(step) - seen(-step)) / (2 * step))
    ra, dec = sky_positions(seen(0.0))
    east, north = east_and_north(ra, dec)
    table = make_table([0.0], [0.0], mjd=MJD - half_hour, rate_ra=rate @ east, rate_dec=rate @ north)
    table["ra_deg"], table["dec_deg"] = ra, dec
    field = SphericalPolygon.cap(ra_deg=float(ra), dec_deg=float(dec), radius_arcsec=100.0)
    moved = expect(table, field=field).predictions
    there = unit_vectors(moved["ra_deg"], moved["dec_deg"])[0]
    assert np.degrees(np.linalg.norm(there - seen(half_hour))) * 3600 < 0.1
    assert np.degrees(np.linalg.norm(seen(0.0) - seen(half_hour))) * 3600 > 5.0
