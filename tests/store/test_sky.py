import astropy.units as u
import numpy as np
import pytest
from astropy_healpix import HEALPix

from alertprod.geometry.sphere import sky_positions, unit_vectors
from alertprod.geometry.wcs import SkyWcs
from alertprod.store.sky import CELL_ORDER, compute_cells, compute_cells_of_region, compute_footprint

PLACES = [(0.0, 0.0), (359.999, 41.8), (77.0, 90.0), (10.0, -89.99), (45.0, -60.0)]


def field(place, shape=(1000, 2000), scale_arcsec=1.0):
    return SkyWcs.from_tangent(ra_deg=place[0], dec_deg=place[1], x=1000.0, y=500.0, scale_arcsec=scale_arcsec), shape


@pytest.mark.parametrize("place", PLACES)
def test_a_footprint_holds_every_pixel_and_no_more(place):
    wcs, shape = field(place)
    footprint = compute_footprint(wcs, shape)
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-0.5, 1999.5, 500), rng.uniform(-0.5, 999.5, 500)
    assert footprint.contains(unit_vectors(*wcs.pixel_to_sky(x=x, y=y))).all()
    outside = np.array([[-1.0, 500.0], [2000.0, 500.0], [1000.0, -1.0], [1000.0, 1000.0]])
    assert not footprint.contains(unit_vectors(*wcs.pixel_to_sky(x=outside[:, 0], y=outside[:, 1]))).any()


@pytest.mark.parametrize("place", PLACES)
def test_the_cells_of_a_region_hold_every_point_within_its_padding(place):
    wcs, shape = field(place)
    cells = compute_cells_of_region(compute_footprint(wcs, shape), padding_arcsec=60.0)
    rng = np.random.default_rng(2)
    x, y = rng.uniform(-60.0, 2059.0, 3000), rng.uniform(-60.0, 1059.0, 3000)
    ra, dec = wcs.pixel_to_sky(x=x, y=y)
    within = compute_footprint(wcs, shape).compute_distance_arcsec(unit_vectors(ra, dec)) <= 60.0
    assert within.sum() > 2500
    assert np.isin(compute_cells(ra[within], dec[within]), cells).all()
    assert (np.diff(cells) > 0).all()


@pytest.mark.parametrize("place", PLACES)
def test_the_cells_of_a_region_are_not_many_more_than_it_needs(place):
    wcs, shape = field(place)
    footprint = compute_footprint(wcs, shape)
    healpix = HEALPix(nside=2**CELL_ORDER, order="nested")
    cell_arcsec = healpix.pixel_resolution.to_value(u.arcsec)
    # Cells within 1.1 cells of the rectangle (their circumscribed circles touch it).
    width, height, reach = 2000.0, 1000.0, 1.1 * cell_arcsec
    area = width * height + 2 * reach * (width + height) + np.pi * reach**2
    assert compute_cells_of_region(footprint).size == pytest.approx(area / cell_arcsec**2, rel=0.15)


def test_cells_are_those_of_healpix():
    ra, dec = sky_positions(unit_vectors(np.array([0.0, 120.0, 359.0]), np.array([90.0, -45.0, 0.0])))
    expected = HEALPix(nside=2**CELL_ORDER, order="nested").lonlat_to_healpix(ra * u.deg, dec * u.deg)
    np.testing.assert_array_equal(compute_cells(ra, dec), expected)
    assert compute_cells(np.empty(0), np.empty(0)).shape == (0,)
