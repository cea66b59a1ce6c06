import numpy as np

from alertprod.geometry.wcs import SkyWcs
from alertprod.tasks.sources import add_sky_positions, make_source_catalog

WCS = SkyWcs.from_tangent(ra_deg=10.0, dec_deg=-20.0, x=50.0, y=60.0, scale_arcsec=0.2)


def test_rows_are_numbered_where_nobody_numbers_them():
    assert make_source_catalog(x=np.zeros(3), y=np.zeros(3))["source_id"].tolist() == [1, 2, 3]
    named = make_source_catalog(x=np.zeros(2), y=np.zeros(2), source_id=np.array([2**60, 7]))
    assert named["source_id"].tolist() == [2**60, 7]


def test_sky_positions_are_those_of_the_pixels_and_the_given_table_keeps_its_own():
    sources = make_source_catalog(x=np.array([50.0, 0.0]), y=np.array([60.0, np.nan]))
    placed = add_sky_positions(sources, WCS)
    np.testing.assert_allclose([placed["ra_deg"][0], placed["dec_deg"][0]], [10.0, -20.0])
    assert np.isnan(placed["dec_deg"][1])
    assert np.isnan(sources["ra_deg"]).all()
