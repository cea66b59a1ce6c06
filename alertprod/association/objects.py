"""Summary statistics of DiaObjects over their sources in the loaded history and the new one.

Every sum runs over rows in the order (object, time, source id), so that a result does not depend on
the order in which a database returned them, not even in its last bit.
"""

import numpy as np

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.association.columns import BANDS, DIA_OBJECT_COLUMNS
from alertprod.geometry.sphere import sky_positions, unit_vectors
from alertprod.measurement.catalog import Catalog


def summarize_objects(sources: Catalog, previous: Catalog, *, validity_start_mjd_tai: float) -> Catalog:
    """Compute a new version of each object that `sources` name.

    Parameters
    ----------
    sources
        `STORED_DIA_SOURCE_COLUMNS`: all sources of the objects, history and new, each once.
    previous
        `DIA_OBJECT_COLUMNS`: earlier versions where there are any; they give the first and last epoch beyond the
        loaded history. Rows of other objects are ignored.
    validity_start_mjd_tai
        When the new versions begin to hold, MJD TAI.

    Returns
    -------
    Catalog
        `DIA_OBJECT_COLUMNS`, one row an object, by increasing id. Statistics without enough usable values are NaN,
        counts 0.

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
    objects["n_dia_sources"] = np.bincount(group, minlength=len(ids))
    _fill_positions(objects, sources, group)
    _fill_epochs(objects, sources, group, previous)
    bands = sources["band"].astype(str)
    for band in BANDS:
        _fill_band(objects, sources, group, bands == band, band)
    return objects


def _fill_positions(objects: Catalog, sources: Catalog, group: IntArray) -> None:
    n = objects["n_dia_sources"]
    vectors = unit_vectors(sources["ra_deg"], sources["dec_deg"])
    objects["ra_deg"], objects["dec_deg"] = sky_positions(_sum_by(group, vectors, len(n)))
    for name, variance in (
        ("ra_err_deg", sources["ra_err_deg"].astype(float) ** 2),
        ("dec_err_deg", sources["dec_err_deg"].astype(float) ** 2),
        ("ra_dec_cov_deg2", sources["ra_dec_cov_deg2"].astype(float)),
    ):
        of_mean = _sum_by(group, variance, len(n)) / n.astype(float) ** 2
        objects[name] = of_mean if name == "ra_dec_cov_deg2" else np.sqrt(of_mean)


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
