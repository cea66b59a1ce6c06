"""The columns of predicted positions of Solar System bodies, of what a match with one tells, and of their orbits."""

from alertprod.measurement.catalog import Column

_F4, _F8, _I4, _I8, _S = "f4", "f8", "i4", "i8", "O"


def _state_columns(center: str, where: str) -> tuple[Column, ...]:
    return (
        *(Column(f"{center}_{axis}_au", _F8, "au", f"{where} {axis}, ICRS axes") for axis in "xyz"),
        *(Column(f"{center}_v{axis}_km_s", _F8, "km/s", f"{where} velocity along {axis}") for axis in "xyz"),
    )


_FROM_OBSERVER, _FROM_SUN = "from the observer,", "from the Sun,"

PREDICTION_COLUMNS: tuple[Column, ...] = (
    Column("designation", _S, "", "unpacked provisional designation"),
    Column("mjd_tai", _F8, "d", "when the body is there, MJD TAI"),
    Column("ra_deg", _F8, "deg", "right ascension seen by the observer, ICRS"),
    Column("dec_deg", _F8, "deg", "declination"),
    Column("ra_rate_deg_d", _F8, "deg/d", "rate of RA times cos(dec)"),
    Column("dec_rate_deg_d", _F8, "deg/d", "rate of dec"),
    Column("ra_err_deg", _F8, "deg", "standard error of RA times cos(dec)"),
    Column("dec_err_deg", _F8, "deg", "standard error of dec"),
    Column("ra_dec_cov_deg2", _F8, "deg**2", "covariance of RA cos(dec) and dec"),
    Column("v_mag", _F8, "mag", "predicted magnitude in V"),
    Column("phase_angle_deg", _F8, "deg", "angle Sun, body, observer"),
    Column("topo_range_au", _F8, "au", "distance from the observer"),
    Column("topo_range_rate_km_s", _F8, "km/s", "its rate"),
    Column("helio_range_au", _F8, "au", "distance from the Sun"),
    Column("helio_range_rate_km_s", _F8, "km/s", "its rate"),
    *_state_columns("topo", _FROM_OBSERVER),
    *_state_columns("helio", _FROM_SUN),
)
"""A table of predictions: one row a body and epoch. The first six are needed, the others NaN where not known."""

N_NEEDED_PREDICTION_COLUMNS = 6

SS_SOURCE_COLUMNS: tuple[Column, ...] = (
    Column("dia_source_id", _I8, "", "the detection"),
    Column("ss_object_id", _I8, "", "id of the body"),
    Column("designation", _S, "", "unpacked provisional designation"),
    Column("ecl_lambda_deg", _F8, "deg", "ecliptic longitude of the detection, mean ecliptic of J2000"),
    Column("ecl_beta_deg", _F8, "deg", "ecliptic latitude"),
    Column("gal_lon_deg", _F8, "deg", "galactic longitude"),
    Column("gal_lat_deg", _F8, "deg", "galactic latitude"),
    Column("elongation_deg", _F4, "deg", "angle Sun, observer, body"),
    Column("phase_angle_deg", _F4, "deg", "angle Sun, body, observer"),
    Column("topo_range_au", _F4, "au", "distance from the observer"),
    Column("topo_range_rate_km_s", _F4, "km/s", "its rate"),
    Column("helio_range_au", _F4, "au", "distance from the Sun"),
    Column("helio_range_rate_km_s", _F4, "km/s", "its rate"),
    Column("eph_ra_deg", _F8, "deg", "predicted right ascension at mid-exposure"),
    Column("eph_dec_deg", _F8, "deg", "predicted declination"),
    Column("eph_v_mag", _F4, "mag", "predicted magnitude in V"),
    Column("eph_rate_deg_d", _F4, "deg/d", "predicted rate on the sky"),
    Column("eph_rate_ra_deg_d", _F4, "deg/d", "its component in RA, times cos(dec)"),
    Column("eph_rate_dec_deg_d", _F4, "deg/d", "its component in dec"),
    Column("eph_offset_arcsec", _F4, "arcsec", "detection from prediction: separation"),
    Column("eph_offset_ra_arcsec", _F8, "arcsec", "detection less prediction, towards east"),
    Column("eph_offset_dec_arcsec", _F8, "arcsec", "detection less prediction, towards north"),
    Column("eph_offset_along_track_arcsec", _F4, "arcsec", "the same along the motion"),
    Column("eph_offset_cross_track_arcsec", _F4, "arcsec", "the same across it: a quarter turn from it, east to north"),
    *(Column(f"helio_{axis}_au", _F4, "au", f"{_FROM_SUN} {axis}") for axis in "xyz"),
    *(Column(f"helio_v{axis}_km_s", _F4, "km/s", f"{_FROM_SUN} velocity along {axis}") for axis in "xyz"),
    Column("helio_vtot_km_s", _F4, "km/s", "speed seen from the Sun"),
    *(Column(f"topo_{axis}_au", _F4, "au", f"{_FROM_OBSERVER} {axis}") for axis in "xyz"),
    *(Column(f"topo_v{axis}_km_s", _F4, "km/s", f"{_FROM_OBSERVER} velocity along {axis}") for axis in "xyz"),
    Column("topo_vtot_km_s", _F4, "km/s", "speed seen from the observer"),
    Column("dia_distance_rank", _I4, "", "1 for the detection nearest to the prediction, 2 for the next"),
)
"""Every field of the packet's ssSource, in its order."""

_ORBIT_ANGLES = ("i", "node", "argperi", "mean_anomaly")
_NON_GRAVITATIONAL = ("yarkovsky", "srp", "a1", "a2", "a3", "dt")
_ELEMENTS = ("a", "q", "e", "i", "node", "argperi", "peri_time", *_NON_GRAVITATIONAL)
_DERIVED = ("mean_anomaly", "period", "mean_motion")
_ORBIT_UNITS = {
    **dict.fromkeys(("a", "q"), "au"),
    **dict.fromkeys(_ORBIT_ANGLES, "deg"),
    **dict.fromkeys(("peri_time", "period"), "d"),
    "mean_motion": "deg/d",
}


def _elements(names: tuple[str, ...]) -> tuple[Column, ...]:
    return tuple(Column(name, _F8, _ORBIT_UNITS.get(name, ""), f"element {name}") for name in names)


def _uncertainties(names: tuple[str, ...]) -> tuple[Column, ...]:
    return tuple(
        Column(f"{name}_unc", _F8, _ORBIT_UNITS.get(name, ""), f"uncertainty of element {name}") for name in names
    )


ORBIT_INTEGERS = ("orbit_type_int", "u_param", "nopp", "nobs_total", "nobs_total_sel")
ORBIT_TIMES = ("created_at", "updated_at", "fitting_datetime")

ORBIT_COLUMNS: tuple[Column, ...] = (
    Column("id", _I4, "", "row of the Minor Planet Center's table; 0 here"),
    Column("designation", _S, "", "unpacked primary provisional designation"),
    Column("packed_primary_provisional_designation", _S, "", "packed designation"),
    Column("unpacked_primary_provisional_designation", _S, "", "unpacked designation"),
    Column("mpc_orb_jsonb", _S, "", "the whole orbit as JSON"),
    Column("created_at", _S, "us", "when the row was made, since 1970 UTC"),
    Column("updated_at", _S, "us", "when the row was changed, since 1970 UTC"),
    Column("orbit_type_int", _S, "", "class of the orbit"),
    Column("u_param", _S, "", "uncertainty parameter U"),
    Column("nopp", _S, "", "oppositions"),
    Column("arc_length_total", _F8, "d", "length of the arc"),
    Column("arc_length_sel", _F8, "d", "length of the arc that was used"),
    Column("nobs_total", _S, "", "observations"),
    Column("nobs_total_sel", _S, "", "observations that were used"),
    *_elements((*_ELEMENTS, *_DERIVED)),
    *_uncertainties((*_ELEMENTS, *_DERIVED)),
    Column("epoch_mjd", _F8, "d", "epoch of the elements, MJD TT"),
    Column("h", _F8, "mag", "absolute magnitude"),
    Column("g", _F8, "", "slope of the phase function"),
    Column("not_normalized_rms", _F8, "arcsec", "rms of the residuals"),
    Column("normalized_rms", _F8, "", "rms of the normalised residuals"),
    Column("earth_moid", _F8, "au", "least distance of the orbit from the Earth's"),
    Column("fitting_datetime", _S, "us", "when the orbit was fitted, since 1970 UTC"),
)
"""Every field of the packet's mpc_orbits, in its order and under its names. Whole numbers that may be missing are
Python's, None where they are: 0 is a value here."""
