"""Summary statistics of DiaObjects over their sources in the loaded history and the new one.

Every sum runs over rows in the order (object, time, source id), so that a result does not depend on
the order in which a database returned them, not even in its last bit.
"""

import numpy as np

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.association.columns import BANDS, DIA_OBJECT_COLUMNS
from alertprod.association.forced import ForcedConfig, is_good
from alertprod.association.positions import read_covariances, turn_covariances
from alertprod.geometry.sphere import ARCSEC_PER_DEG, sky_positions, unit_vectors
from alertprod.measurement.catalog import Catalog


def summarize_objects(
    sources: Catalog,
    previous: Catalog,
    *,
    validity_start_mjd_tai: float,
    window_days: float = np.inf,
    config: ForcedConfig | None = None,
) -> Catalog:
    """Compute a new version of each object that `sources` name.

    Parameters
    ----------
    sources
        `STORED_DIA_SOURCE_COLUMNS`: all sources of the objects, history and new, each once.
    previous
        `KNOWN_OBJECT_COLUMNS`: earlier versions where there are any; they give the first and last epoch beyond the
        loaded history. Rows of other objects are ignored.
    validity_start_mjd_tai
        When the new versions begin to hold, MJD TAI.
    window_days
        How far statistics reach back from the latest source of each object; first and last epochs know no window.
    config
        Which sources are good ones.

    Returns
    -------
    Catalog
        `DIA_OBJECT_COLUMNS`, one row an object, by increasing id. Statistics without enough usable values are NaN,
        counts 0; the means of forced fluxes are left to `fill_forced_means`.

    Notes
    -----
    The position is the plain mean of unit vectors, its covariance that of the mean of independent positions; NaN if
    one source has none. A flux is usable if it and its positive error are finite. ``max_slope`` is signed, over
    consecutive epochs; sources of one epoch have no slope.
    """
    order = np.lexsort((sources["dia_source_id"], sources["midpoint_mjd_tai"], sources["dia_object_id"]))
    sources = sources.select(order)
    ids, group = np.unique(sources["dia_object_id"], return_inverse=True)
    objects = Catalog(DIA_OBJECT_COLUMNS, len(ids))
    objects["dia_object_id"] = ids
    objects["validity_start_mjd_tai"] = validity_start_mjd_tai
    _fill_epochs(objects, sources, group, previous)
    recent = is_recent(sources, window_days)
    sources, group = sources.select(recent), group[recent]
    objects["n_dia_sources"] = np.bincount(group, minlength=len(ids))
    _fill_positions(objects, sources, group)
    _fill_repeats(objects, sources, group, is_good(sources, config or ForcedConfig()))
    bands = sources["band"].astype(str)
    for band in BANDS:
        _fill_band(objects, sources, group, bands == band, band)
    return objects


def is_recent(rows: Catalog, window_days: float) -> BoolArray:
    """Say which rows are within a window before their object's latest one: the same whichever came to be known last.

    Parameters
    ----------
    rows
        Any with `dia_object_id` and `midpoint_mjd_tai`.
    """
    ids, group = np.unique(rows["dia_object_id"], return_inverse=True)
    latest = np.full(len(ids), -np.inf)
    np.maximum.at(latest, group, rows["midpoint_mjd_tai"])
    return np.asarray(rows["midpoint_mjd_tai"] >= latest[group] - window_days)


def fill_forced_means(objects: Catalog, forced: Catalog, *, window_days: float = np.inf) -> None:
    """Fill in the means of the forced fluxes of each object, band by band.

    Parameters
    ----------
    objects
        `DIA_OBJECT_COLUMNS`, by increasing id.
    forced
        `DIA_FORCED_SOURCE_COLUMNS`, each once; rows of other objects are ignored.
    window_days
        How far back from the latest one of each object.
    """
    forced = forced.select(np.isin(forced["dia_object_id"], objects["dia_object_id"]) & is_recent(forced, window_days))
    order = np.lexsort((forced["dia_forced_source_id"], forced["midpoint_mjd_tai"], forced["dia_object_id"]))
    forced = forced.select(order)
    group = np.searchsorted(objects["dia_object_id"], forced["dia_object_id"])
    flux, err = forced["psf_flux"].astype(float), forced["psf_flux_err"].astype(float)
    bands, usable = forced["band"].astype(str), _usable(flux, err)
    for band in BANDS:
        used = usable & (bands == band)
        mean, mean_err = _weighted_mean(flux[used], err[used], group[used], objects.n_rows)
        objects[f"{band}_fp_flux_mean"], objects[f"{band}_fp_flux_mean_err"] = mean, mean_err


def _fill_positions(objects: Catalog, sources: Catalog, group: IntArray) -> None:
    n = objects["n_dia_sources"]
    vectors = unit_vectors(sources["ra_deg"], sources["dec_deg"])
    objects["ra_deg"], objects["dec_deg"] = sky_positions(_sum_by(group, vectors, len(n)))
    covariances = turn_covariances(
        read_covariances(sources),
        ra_deg=sources["ra_deg"],
        dec_deg=sources["dec_deg"],
        to_ra_deg=objects["ra_deg"][group],
        to_dec_deg=objects["dec_deg"][group],
    )
    of_mean = _sum_by(group, covariances, len(n)) / (n.astype(float) * ARCSEC_PER_DEG)[:, None, None] ** 2
    objects["ra_err_deg"], objects["dec_err_deg"] = np.sqrt(of_mean[:, 0, 0]), np.sqrt(of_mean[:, 1, 1])
    objects["ra_dec_cov_deg2"] = of_mean[:, 0, 1]


def _fill_repeats(objects: Catalog, sources: Catalog, group: IntArray, good: BoolArray) -> None:
    """Fill in the epoch of each object's latest good source but one; rows are sorted by object, then time."""
    group, mjd = group[good], sources["midpoint_mjd_tai"][good]
    followed_by_last = np.zeros(len(group), dtype=np.bool_)
    followed_by_last[:-1] = np.diff(group) == 0
    followed_by_last[:-2] &= group[2:] != group[:-2]
    objects["repeated_mjd_tai"][group[followed_by_last]] = mjd[followed_by_last]


def _fill_epochs(objects: Catalog, sources: Catalog, group: IntArray, previous: Catalog) -> None:
    known, rows, earlier = np.intersect1d(
        objects["dia_object_id"], previous["dia_object_id"], assume_unique=True, return_indices=True
    )
    del known
    for name, choose in (("first_dia_source_mjd_tai", np.fmin), ("last_dia_source_mjd_tai", np.fmax)):
        epochs = np.full(objects.n_rows, np.nan)
        epochs[rows] = previous[name][earlier]
        choose.at(epochs, group, sources["midpoint_mjd_tai"])
        objects[name] = epochs


def _fill_band(objects: Catalog, sources: Catalog, group: IntArray, in_band: BoolArray, band: str) -> None:
    flux, err = sources["psf_flux"].astype(float), sources["psf_flux_err"].astype(float)
    used = in_band & _usable(flux, err)
    mean, mean_err = _weighted_mean(flux[used], err[used], group[used], objects.n_rows)
    objects[f"{band}_psf_flux_mean"], objects[f"{band}_psf_flux_mean_err"] = mean, mean_err
    objects[f"{band}_psf_flux_ndata"] = np.bincount(group[used], minlength=objects.n_rows)
    _fill_spread(objects, flux[used], err[used], sources["midpoint_mjd_tai"][used], group[used], band)
    flux, err = sources["science_flux"].astype(float), sources["science_flux_err"].astype(float)
    used = in_band & _usable(flux, err)
    mean, mean_err = _weighted_mean(flux[used], err[used], group[used], objects.n_rows)
    objects[f"{band}_science_flux_mean"], objects[f"{band}_science_flux_mean_err"] = mean, mean_err


def _usable(flux: FloatArray, err: FloatArray) -> BoolArray:
    return np.isfinite(flux) & np.isfinite(err) & (err > 0)


def _weighted_mean(flux: FloatArray, err: FloatArray, group: IntArray, n: int) -> tuple[FloatArray, FloatArray]:
    weight = err**-2
    total = _sum_by(group, weight, n)
    total[total == 0] = np.nan
    return _sum_by(group, weight * flux, n) / total, 1.0 / np.sqrt(total)


def _sum_by(group: IntArray, values: FloatArray, n: int) -> FloatArray:
    """Sum `values` group by group, in the order of the rows."""
    sums = np.zeros((n, *values.shape[1:]))
    np.add.at(sums, group, values)
    return sums


def _fill_spread(
    objects: Catalog, flux: FloatArray, err: FloatArray, mjd: FloatArray, group: IntArray, band: str
) -> None:
    """Fill sigma, extremes, steepest slope and mean error; rows are sorted by object, then time."""
    n = objects.n_rows
    count = np.bincount(group, minlength=n).astype(float)
    count[count == 0] = np.nan
    deviation = flux - (_sum_by(group, flux, n) / count)[group]
    degrees = np.where(count > 1, count - 1, np.nan)
    objects[f"{band}_psf_flux_sigma"] = np.sqrt(_sum_by(group, deviation**2, n) / degrees)
    objects[f"{band}_psf_flux_err_mean"] = _sum_by(group, err, n) / count
    consecutive = (np.diff(group) == 0) & (np.diff(mjd) > 0)
    slope = np.diff(flux)[consecutive] / np.diff(mjd)[consecutive]
    for name, values, of, choose in (
        ("min", flux, group, np.fmin),
        ("max", flux, group, np.fmax),
        ("max_slope", slope, group[1:][consecutive], np.fmax),
    ):
        extreme = np.full(n, np.nan)
        choose.at(extreme, of, values)
        objects[f"{band}_psf_flux_{name}"] = extreme
