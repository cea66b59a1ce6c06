"""Apply aperture corrections to the fluxes of a catalog."""

from collections.abc import Collection, Mapping

import numpy as np

from alertprod._typing import FloatArray
from alertprod.images.ap_corr import ApCorrMap, ApertureCorrection
from alertprod.measurement.catalog import Catalog


def apply_ap_corr(
    catalog: Catalog,
    ap_corr_map: ApCorrMap,
    *,
    ignored: Collection[str] = (),
    proxies: Mapping[str, str] | None = None,
    flag_failures: bool = True,
) -> dict[str, int]:
    """Multiply fluxes and their errors by the factor at each source's centroid, in place.

    Parameters
    ----------
    catalog
        With columns ``x`` and ``y``, pixels. A flux is corrected where ``<name>`` and ``<name>_err`` are columns; those
        of ``<name>_ap_corr``, ``<name>_ap_corr_err`` and ``<name>_flag_ap_corr`` that are there are filled.
    ap_corr_map
        The correction of each flux; names that are no columns are left alone.
    ignored
        Fluxes that stay as they are.
    proxies
        For a flux that the map does not name, the one whose correction it takes.
    flag_failures
        Set ``<name>_flag`` too where a correction fails.

    Returns
    -------
    dict
        By corrected flux, the number of sources whose correction failed: where the factor is not finite or not
        positive the flux stays as it was, and ``<name>_flag_ap_corr`` says so.

    Notes
    -----
    The correction's own error is common to all sources at a place; it is reported beside the flux, not folded into
    the flux's error.
    """
    corrections = dict(ap_corr_map)
    for flux, proxy in (proxies or {}).items():
        if flux not in corrections and proxy in corrections:
            corrections[flux] = corrections[proxy]
    x, y = catalog["x"].astype(float), catalog["y"].astype(float)
    return {
        name: _apply(catalog, name, correction, x, y, flag_failures=flag_failures)
        for name, correction in corrections.items()
        if name in catalog and f"{name}_err" in catalog and name not in ignored
    }


def _apply(
    catalog: Catalog, name: str, correction: ApertureCorrection, x: FloatArray, y: FloatArray, *, flag_failures: bool
) -> int:
    factor = correction.factor.evaluate(x=x, y=y)
    failed = ~(np.isfinite(factor) & (factor > 0.0))
    catalog[name] = np.where(failed, catalog[name], catalog[name] * factor)
    catalog[f"{name}_err"] = np.where(failed, catalog[f"{name}_err"], catalog[f"{name}_err"] * factor)
    error = np.full_like(factor, np.nan) if correction.error is None else correction.error.evaluate(x=x, y=y)
    filled = {
        f"{name}_ap_corr": np.where(failed, np.nan, factor),
        f"{name}_ap_corr_err": np.where(failed, np.nan, error),
        f"{name}_flag_ap_corr": failed,
    }
    for column, values in filled.items():
        if column in catalog:
            catalog[column] = values
    if flag_failures and f"{name}_flag" in catalog:
        catalog[f"{name}_flag"] |= failed
    return int(failed.sum())
