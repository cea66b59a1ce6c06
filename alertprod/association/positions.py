"""Positions on the sky with their errors, in one convention wherever they come from.

A covariance is of the offsets east and north *at the position*, in arcsec: the error of RA is that of RA cos(dec), as
`ra_err_deg` of every catalog has it. East at one position is not east at another: beside the pole a second of arc
apart they may be opposite, so a covariance is turned before it meets another.
"""

from dataclasses import dataclass

import numpy as np

from alertprod._typing import FloatArray, IntArray
from alertprod.geometry.sphere import ARCSEC_PER_DEG, east_and_north
from alertprod.measurement.catalog import Catalog

UNKNOWN_ERR_ARCSEC = 0.2
"""Taken for an error that nobody measured, or that is zero: a faint source's."""


@dataclass(frozen=True, slots=True)
class Positions:
    """Places with covariances.

    Parameters
    ----------
    ra_deg, dec_deg
        ICRS, shape ``(n,)``; not finite where there is none.
    covariance_arcsec2
        Of the offsets (east, north) at the place, shape ``(n, 2, 2)``; finite and positive definite.
    """

    ra_deg: FloatArray
    dec_deg: FloatArray
    covariance_arcsec2: FloatArray

    @classmethod
    def from_catalog(cls, catalog: Catalog) -> "Positions":
        """Take the positions of a catalog with `ra_deg`, `dec_deg` and their errors; fill in errors nobody knows."""
        return cls(catalog["ra_deg"], catalog["dec_deg"], fill_unknown(read_covariances(catalog)))

    def select(self, rows: IntArray) -> "Positions":
        """Return the positions in some rows."""
        return Positions(self.ra_deg[rows], self.dec_deg[rows], self.covariance_arcsec2[rows])


def read_covariances(catalog: Catalog) -> FloatArray:
    """Return the covariances of a catalog's positions, arcsec², shape ``(n, 2, 2)``; NaN where not measured."""
    ra_err, dec_err = (catalog[name].astype(float) * ARCSEC_PER_DEG for name in ("ra_err_deg", "dec_err_deg"))
    cross = catalog["ra_dec_cov_deg2"].astype(float) * ARCSEC_PER_DEG**2
    covariance = np.stack([np.stack([ra_err**2, cross], axis=-1), np.stack([cross, dec_err**2], axis=-1)], axis=-2)
    covariance[~np.isfinite(covariance)] = np.nan
    return covariance


def fill_unknown(covariance_arcsec2: FloatArray) -> FloatArray:
    """Return covariances with `UNKNOWN_ERR_ARCSEC` in place of errors that are zero or not finite, shape ``(n, 2, 2)``.

    Notes
    -----
    A cross term that is not finite, or larger than the errors allow, counts as none.
    """
    filled = covariance_arcsec2.copy()
    for axis in range(2):
        variance = filled[:, axis, axis]
        variance[~(np.isfinite(variance) & (variance > 0))] = UNKNOWN_ERR_ARCSEC**2
    cross = filled[:, 0, 1]
    fits = cross**2 < filled[:, 0, 0] * filled[:, 1, 1]
    filled[:, 0, 1] = filled[:, 1, 0] = np.where(fits, cross, 0.0)
    return filled


def turn_covariances(
    covariance: FloatArray, *, ra_deg: FloatArray, dec_deg: FloatArray, to_ra_deg: FloatArray, to_dec_deg: FloatArray
) -> FloatArray:
    """Return covariances of (east, north) at one place in terms of east and north at a place close by.

    Parameters
    ----------
    covariance
        Shape ``(n, 2, 2)``, at (`ra_deg`, `dec_deg`), shape ``(n,)``.
    """
    east, north = east_and_north(ra_deg, dec_deg)
    to_east, to_north = east_and_north(to_ra_deg, to_dec_deg)
    turn = np.stack(
        [
            np.stack([(to_east * east).sum(-1), (to_east * north).sum(-1)], axis=-1),
            np.stack([(to_north * east).sum(-1), (to_north * north).sum(-1)], axis=-1),
        ],
        axis=-2,
    )
    return np.asarray(turn @ covariance @ np.swapaxes(turn, -1, -2))
