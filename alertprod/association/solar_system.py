"""Known bodies of the Solar System: where they are at mid-exposure, and which detections are theirs."""

from dataclasses import dataclass

import erfa
import numpy as np

from alertprod._typing import FloatArray, IntArray
from alertprod.association.designations import compute_ss_object_id, pack_designation
from alertprod.association.match import SYSTEMATIC_ERR_ARCSEC, UNMATCHED, match_one_to_one
from alertprod.association.positions import Positions
from alertprod.association.solar_system_columns import ORBIT_COLUMNS, SS_SOURCE_COLUMNS
from alertprod.geometry.sphere import (
    ARCSEC_PER_DEG,
    SphericalPolygon,
    east_and_north,
    separation_arcsec,
    sky_positions,
    unit_vectors,
)
from alertprod.measurement.catalog import Catalog

_SECONDS_PER_DAY = 86400.0
_MJD_ZERO = 2400000.5
_TT_LESS_TAI_DAYS = 32.184 / _SECONDS_PER_DAY
_J2000 = 2451545.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SolarSystemConfig:
    """How far a prediction is trusted."""

    radius_arcsec: float = 1.0
    """The reference's: predictions of numbered bodies are good to a tenth of it."""

    systematic_err_arcsec: float = SYSTEMATIC_ERR_ARCSEC
    """Of predictions and detections against each other, per axis, beside what they say themselves."""

    max_propagation_s: float = 3600.0
    """How far a prediction is carried along at its rate. The Earth's rotation alone bends the path of a body at 1 au by
    0.3 arcsec within an hour."""


@dataclass(frozen=True, slots=True)
class Ephemerides:
    """Predicted positions, many bodies at any epochs.

    Parameters
    ----------
    predictions
        `PREDICTION_COLUMNS`, of rows that have all that is needed.
    orbits
        Some of `ORBIT_COLUMNS`, row by row the orbit of the body in `predictions`.
    """

    predictions: Catalog
    orbits: Catalog


@dataclass(frozen=True, slots=True)
class SolarSystemMatches:
    """The detections that are known bodies.

    Parameters
    ----------
    ss_sources
        `SS_SOURCE_COLUMNS`, one row a detection.
    orbits
        `ORBIT_COLUMNS`, row by row.
    n_predicted
        Bodies that were expected on the exposure.
    """

    ss_sources: Catalog
    orbits: Catalog
    n_predicted: int

    @classmethod
    def none(cls) -> "SolarSystemMatches":
        """Return the matches where nothing was predicted."""
        return cls(Catalog(SS_SOURCE_COLUMNS, 0), Catalog(ORBIT_COLUMNS, 0), 0)


def predict(
    ephemerides: Ephemerides, footprint: SphericalPolygon, *, mjd_tai: float, config: SolarSystemConfig
) -> Ephemerides:
    """Carry the bodies near an exposure along to one moment.

    Parameters
    ----------
    footprint
        Of the exposure.
    mjd_tai
        Its middle.

    Returns
    -------
    Ephemerides
        One row a body, ordered by designation: its prediction nearest in time, moved along a great circle at its
        rate. Rates are in the directions of the new place; distances and velocities stay what they were.

    Notes
    -----
    Bodies within `config.radius_arcsec` of the footprint, or a little beyond, are there.
    """
    table = ephemerides.predictions
    days = mjd_tai - table["mjd_tai"]
    rate = np.hypot(table["ra_rate_deg_d"], table["dec_rate_deg_d"])
    reach = np.radians((footprint.radius_arcsec + config.radius_arcsec) / ARCSEC_PER_DEG + rate * np.abs(days))
    apart = np.linalg.norm(unit_vectors(table["ra_deg"], table["dec_deg"]) - footprint.center, axis=-1)
    near = (np.abs(days) * _SECONDS_PER_DAY <= config.max_propagation_s) & (apart <= reach)
    rows = np.flatnonzero(near)
    rows = rows[np.lexsort((table["mjd_tai"][rows], np.abs(days[rows])))]
    _, first = np.unique(table["designation"][rows].astype(str), return_index=True)
    rows = rows[first]
    moved = _move(table.select(rows), days[rows])
    moved["mjd_tai"] = mjd_tai
    inside = footprint.compute_distance_arcsec(unit_vectors(moved["ra_deg"], moved["dec_deg"])) <= config.radius_arcsec
    return Ephemerides(moved.select(inside), ephemerides.orbits.select(rows[inside]))


def match_solar_system(
    sources: Catalog, expected: Ephemerides, *, config: SolarSystemConfig | None = None
) -> tuple[Catalog, SolarSystemMatches]:
    """Match an exposure's sources with the bodies expected on it.

    Parameters
    ----------
    sources
        `DIA_SOURCE_COLUMNS`; left as they are.
    expected
        From `predict`, at the middle of the exposure.

    Returns
    -------
    tuple
        The sources, `ss_object_id` filled in, and the matches.
    """
    config = config or SolarSystemConfig()
    predictions = expected.predictions
    matched = match_one_to_one(
        Positions.from_catalog(sources),
        Positions.from_catalog(predictions),
        radius_arcsec=config.radius_arcsec,
        systematic_err_arcsec=config.systematic_err_arcsec,
    )
    rows = np.flatnonzero(matched != UNMATCHED)
    bodies = matched[rows]
    ss_sources = _describe(sources.select(rows), predictions.select(bodies))
    ss_sources["dia_distance_rank"] = _rank(sources, rows, predictions.select(bodies))
    sources = sources.select(np.arange(sources.n_rows))
    sources["ss_object_id"][rows] = ss_sources["ss_object_id"]
    orbits = _fill_orbits(ss_sources["designation"], expected.orbits.select(bodies))
    return sources, SolarSystemMatches(ss_sources, orbits, predictions.n_rows)


def _move(table: Catalog, days: FloatArray) -> Catalog:
    """Move bodies along great circles, in place."""
    start = unit_vectors(table["ra_deg"], table["dec_deg"])
    east, north = east_and_north(table["ra_deg"], table["dec_deg"])
    velocity = np.radians(table["ra_rate_deg_d"])[:, None] * east + np.radians(table["dec_rate_deg_d"])[:, None] * north
    speed = np.linalg.norm(velocity, axis=-1, keepdims=True)
    heading = velocity / np.where(speed > 0, speed, 1.0)
    angle = speed * days[:, None]
    end = np.cos(angle) * start + np.sin(angle) * heading
    heading = np.cos(angle) * heading - np.sin(angle) * start
    table["ra_deg"], table["dec_deg"] = sky_positions(end)
    for name, axis in zip(
        ("ra_rate_deg_d", "dec_rate_deg_d"), east_and_north(table["ra_deg"], table["dec_deg"]), strict=True
    ):
        table[name] = np.degrees(speed[:, 0] * (heading * axis).sum(-1))
    return table


def _describe(sources: Catalog, predictions: Catalog) -> Catalog:
    """Fill in everything of a match that can be computed, row by row."""
    out = Catalog(SS_SOURCE_COLUMNS, sources.n_rows)
    out["dia_source_id"] = sources["dia_source_id"]
    out["designation"] = predictions["designation"]
    out["ss_object_id"] = [compute_ss_object_id(name) for name in predictions["designation"].tolist()]
    ra, dec = np.radians(sources["ra_deg"]), np.radians(sources["dec_deg"])
    for names, angles in (
        (("ecl_lambda_deg", "ecl_beta_deg"), erfa.eqec06(_J2000, 0.0, ra, dec)),
        (("gal_lon_deg", "gal_lat_deg"), erfa.icrs2g(ra, dec)),
    ):
        for name, angle in zip(names, angles, strict=True):
            out[name] = np.degrees(angle)
    out["eph_ra_deg"], out["eph_dec_deg"] = predictions["ra_deg"], predictions["dec_deg"]
    out["eph_v_mag"] = predictions["v_mag"]
    _fill_offsets(out, sources, predictions)
    _fill_geometry(out, predictions)
    return out


def _fill_offsets(out: Catalog, sources: Catalog, predictions: Catalog) -> None:
    rate_ra, rate_dec = predictions["ra_rate_deg_d"], predictions["dec_rate_deg_d"]
    rate = np.hypot(rate_ra, rate_dec)
    out["eph_rate_ra_deg_d"], out["eph_rate_dec_deg_d"], out["eph_rate_deg_d"] = rate_ra, rate_dec, rate
    there = unit_vectors(predictions["ra_deg"], predictions["dec_deg"])
    apart = unit_vectors(sources["ra_deg"], sources["dec_deg"]) - there
    axes = east_and_north(predictions["ra_deg"], predictions["dec_deg"])
    east, north = (np.degrees((apart * axis).sum(-1)) * ARCSEC_PER_DEG for axis in axes)
    out["eph_offset_ra_arcsec"], out["eph_offset_dec_arcsec"] = east, north
    out["eph_offset_arcsec"] = separation_arcsec(
        sources["ra_deg"], sources["dec_deg"], predictions["ra_deg"], predictions["dec_deg"]
    )
    with np.errstate(invalid="ignore"):  # a body that stands still has no track
        along, across = rate_ra / rate, rate_dec / rate
    out["eph_offset_along_track_arcsec"] = east * along + north * across
    out["eph_offset_cross_track_arcsec"] = north * along - east * across


def _fill_geometry(out: Catalog, predictions: Catalog) -> None:
    """Fill in distances, velocities and angles: the table's where it has them, else from what it has.

    Notes
    -----
    Without vectors the Sun is where it is from the Earth's centre: the observer's place on the ground changes angles
    by 9 arcsec at most, for a body at 1 au.
    """
    mjd = predictions["mjd_tai"]
    earth, _ = erfa.epv00(_MJD_ZERO, mjd + _TT_LESS_TAI_DAYS)
    towards_sun = -np.asarray(earth["p"], dtype=float).reshape(-1, 3)
    topo, topo_v = _read_state(predictions, "topo")
    helio, helio_v = _read_state(predictions, "helio")
    topo_range = _first_known(predictions["topo_range_au"], np.linalg.norm(topo, axis=-1))
    line_of_sight = unit_vectors(predictions["ra_deg"], predictions["dec_deg"])
    sun = np.where(np.isfinite(topo - helio), topo - helio, towards_sun)
    body = _first_known(topo, topo_range[:, None] * line_of_sight)
    from_sun = _first_known(helio, body - sun)
    out["elongation_deg"] = _angle_deg(line_of_sight, sun)
    out["phase_angle_deg"] = _first_known(predictions["phase_angle_deg"], _angle_deg(body, from_sun))
    out["topo_range_au"] = topo_range
    out["helio_range_au"] = _first_known(predictions["helio_range_au"], np.linalg.norm(from_sun, axis=-1))
    for center, place, velocity in (("topo", topo, topo_v), ("helio", helio, helio_v)):
        radial = (place * velocity).sum(-1) / np.linalg.norm(place, axis=-1)
        out[f"{center}_range_rate_km_s"] = _first_known(predictions[f"{center}_range_rate_km_s"], radial)
        out[f"{center}_vtot_km_s"] = np.linalg.norm(velocity, axis=-1)
        for k, axis in enumerate("xyz"):
            out[f"{center}_{axis}_au"], out[f"{center}_v{axis}_km_s"] = place[:, k], velocity[:, k]


def _read_state(predictions: Catalog, center: str) -> tuple[FloatArray, FloatArray]:
    place = np.stack([predictions[f"{center}_{axis}_au"] for axis in "xyz"], axis=-1)
    place[(place == 0).all(axis=-1)] = np.nan  # no body is where the Sun or the observer is
    return place, np.stack([predictions[f"{center}_v{axis}_km_s"] for axis in "xyz"], axis=-1)


def _first_known(values: FloatArray, otherwise: FloatArray) -> FloatArray:
    return np.where(np.isfinite(values), values, otherwise)


def _angle_deg(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the angles between vectors, shape ``(n, 3)``; accurate for small and large ones."""
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1)))


def _rank(sources: Catalog, rows: IntArray, predictions: Catalog) -> IntArray:
    """Return the place of each matched source among all, by their distance from its prediction; 1 is the nearest."""
    everywhere = unit_vectors(sources["ra_deg"], sources["dec_deg"])
    ranks = np.empty(len(rows), dtype=np.int64)
    for k, there in enumerate(unit_vectors(predictions["ra_deg"], predictions["dec_deg"])):
        distance = np.linalg.norm(everywhere - there, axis=-1)
        ranks[k] = 1 + np.count_nonzero(distance < distance[rows[k]])
    return ranks


def _fill_orbits(designations: "np.ndarray[tuple[int], np.dtype[np.object_]]", known: Catalog) -> Catalog:
    orbits = Catalog(ORBIT_COLUMNS, len(designations))
    for column in known.columns:
        orbits[column.name] = known[column.name]
    for row, designation in enumerate(designations.tolist()):
        name = " ".join(designation.split())
        orbits["designation"][row] = orbits["unpacked_primary_provisional_designation"][row] = name
        # The field is required: a name that has no packed form stands for itself.
        orbits["packed_primary_provisional_designation"][row] = pack_designation(name) or name
    return orbits
