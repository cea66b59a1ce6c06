import numpy as np
import pytest

from alertprod.geometry.wcs import SkyWcs
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog
from alertprod.tasks.match_sources import match_dia_sources, match_sources
from alertprod.tasks.reference_loader import REFERENCE_COLUMNS
from alertprod.tasks.sources import add_sky_positions, make_source_catalog

SCALE = 0.25
WCS = SkyWcs.from_tangent(ra_deg=0.0, dec_deg=30.0, x=100.0, y=100.0, scale_arcsec=SCALE)
SHAPE = (200, 200)
MATCH = {"wcs": WCS, "shape": SHAPE, "radius_arcsec": 0.5}


def make_sources(x, y, **columns):
    return add_sky_positions(make_source_catalog(x=np.array(x), y=np.array(y), **columns), WCS)


def make_dia_sources(x, y):
    sources = Catalog(DIA_SOURCE_COLUMNS, len(x))
    sources["x"], sources["y"] = x, y
    sources["ra_deg"], sources["dec_deg"] = WCS.pixel_to_sky(x=np.array(x), y=np.array(y))
    return sources


def make_reference(x, y, ids):
    objects = Catalog(REFERENCE_COLUMNS, len(x))
    objects["reference_id"] = ids
    objects["ra_deg"], objects["dec_deg"] = WCS.pixel_to_sky(x=np.array(x), y=np.array(y))
    return objects


def test_pairs_know_their_rows_and_how_far_they_are_apart():
    first, second = (
        make_sources([10.0, 99.0, 150.0], [10.0, 100.0, 150.0]),
        make_sources([100.0, 11.0, 50.0], [100.0, 10.0, 9.0]),
    )
    matches = match_sources(first, second, radius_arcsec=1.0)
    assert len(matches) == 2
    assert matches.second_rows.tolist() == [0, 1]
    assert matches.first_rows.tolist() == [1, 0]
    assert matches.first["x"].tolist() == [99.0, 10.0]
    np.testing.assert_allclose(matches.separation_arcsec, SCALE, rtol=1e-4)
    east, north = matches.compute_offsets_arcsec()
    np.testing.assert_allclose(east, -SCALE, rtol=1e-3)  # east is left, also across RA 0
    np.testing.assert_allclose(north, 0.0, atol=1e-3)
    far = matches.select(matches.first_rows == 0)
    assert far.second["x"].tolist() == [11.0]
    assert len(match_sources(first, second, radius_arcsec=0.2)) == 0


def test_each_dia_source_gets_the_nearest_source_and_reference_object():
    dia = make_dia_sources([20.0, 22.0, 100.0, 150.0], [20.0, 20.0, 100.0, 150.0])
    sources = make_sources([21.0, 101.0, 99.5], [20.0, 100.0, 100.0], source_id=np.array([11, 12, 13]))
    reference = make_reference([150.0, 103.0], [151.9, 100.0], [2**62, 5])
    found = match_dia_sources(dia, select_sources=sources, reference=reference, **MATCH)
    # Both lobes of a dipole lie on one star; the object at 103 is three pixels, 0.75 arcsec, away.
    assert found.src_match_id.tolist() == [11, 11, 13, 0]
    assert found.ref_match_id.tolist() == [0, 0, 0, 2**62]
    assert (found.n_src_matches, found.n_ref_matches) == (3, 1)


@pytest.mark.parametrize("missing", [{"select_sources": None}, {"reference": None}, {"wcs": None}])
def test_what_is_not_there_matches_nothing(missing):
    dia = make_dia_sources([20.0], [20.0])
    given = {"select_sources": make_sources([20.0], [20.0]), "reference": make_reference([20.0], [20.0], [9]), **MATCH}
    found = match_dia_sources(dia, **{**given, **missing})
    assert found.n_src_matches == (not {"select_sources", "wcs"} & set(missing))
    assert found.n_ref_matches == (not {"reference", "wcs"} & set(missing))


def test_no_dia_sources_match_nothing():
    found = match_dia_sources(
        make_dia_sources([], []), select_sources=make_sources([2.0], [2.0]), reference=None, **MATCH
    )
    assert found.src_match_id.shape == (0,)
