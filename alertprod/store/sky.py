"""Where exposures lie on the sky: their footprints, and the HEALPix cells that the history is kept by."""

import astropy.units as u
import numpy as np
from astropy_healpix import HEALPix

from alertprod._typing import FloatArray, IntArray
from alertprod.geometry.sphere import ARCSEC_PER_DEG, SphericalPolygon, sky_positions, unit_vectors
from alertprod.geometry.wcs import SkyWcs

CELL_ORDER = 10
"""Cells of 3.4 arcmin: a 14' detector reads about 40 of them, a 2 degree one 1500. Written into every row of
`dia_object`: another order is another database."""

_HEALPIX = HEALPix(nside=2**CELL_ORDER, order="nested")

_CELL_RADIUS_ARCSEC = 1.1 * float(_HEALPIX.pixel_resolution.to_value(u.arcsec))
"""No corner of a HEALPix cell is farther from its centre: the most drawn-out reach 1.04 square roots of its area."""

_POINTS_PER_SIDE = 8
"""Between the corners of a detector: distortion bends its sides outwards by less than a pixel between these."""


def compute_footprint(wcs: SkyWcs, shape: tuple[int, int]) -> SphericalPolygon:
    """Return the convex polygon about all pixels, outer edges included, of an image of `shape` (rows, columns).

    Raises
    ------
    ValueError
        Raised if the image's border has no place on the sky.
    """
    ny, nx = shape
    along = np.linspace(0.0, 1.0, _POINTS_PER_SIDE + 1)[:-1]
    x = np.concatenate([along, np.ones_like(along), 1.0 - along, np.zeros_like(along)]) * nx - 0.5
    y = np.concatenate([np.zeros_like(along), along, np.ones_like(along), 1.0 - along]) * ny - 0.5
    return SphericalPolygon.hull(*wcs.pixel_to_sky(x=x, y=y))


def compute_cells(ra_deg: FloatArray, dec_deg: FloatArray) -> IntArray:
    """Return the cell of each position, ICRS degrees: nested HEALPix indices, int64 of the same shape."""
    return np.asarray(_HEALPIX.lonlat_to_healpix(np.asarray(ra_deg) * u.deg, np.asarray(dec_deg) * u.deg), dtype="i8")


def compute_cells_of_region(region: SphericalPolygon, *, padding_arcsec: float = 0.0) -> IntArray:
    """Return, sorted, every cell that has a point within `padding_arcsec` of the region, and a few about them."""
    ra, dec = sky_positions(region.center)
    reach = (region.radius_arcsec + padding_arcsec) / ARCSEC_PER_DEG
    cells = np.asarray(_HEALPIX.cone_search_lonlat(ra * u.deg, dec * u.deg, radius=reach * u.deg), dtype="i8")
    lon, lat = _HEALPIX.healpix_to_lonlat(cells)
    centers = unit_vectors(lon.to_value(u.deg), lat.to_value(u.deg))
    near = region.compute_distance_arcsec(centers) <= padding_arcsec + _CELL_RADIUS_ARCSEC
    return np.sort(cells[near])
