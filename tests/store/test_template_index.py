import json

import numpy as np
import pytest

from alertprod.errors import ConfigError, CorruptImage
from alertprod.images.fits_io import save_exposure
from alertprod.store.sky import compute_footprint
from alertprod.store.template_index import INDEX_NAME, TemplateIndex, TemplateTile, describe_tile, index_templates

SHAPE = (60, 80)


def tile(wcs, name="a.fits", band="r", **place):
    return TemplateTile(uri=name, band=band, footprint=compute_footprint(wcs(**place), SHAPE))


@pytest.mark.parametrize("dec_deg", [0.0, 89.999, -90.0])
@pytest.mark.parametrize("ra_deg", [0.0, 359.9999, 180.0])
def test_a_query_finds_the_tiles_under_a_region(wcs, ra_deg, dec_deg):
    index = TemplateIndex(
        [
            tile(wcs, "here", ra_deg=ra_deg, dec_deg=dec_deg),
            tile(wcs, "beside", ra_deg=ra_deg, dec_deg=dec_deg + (30.0 if dec_deg < 0.0 else -30.0) / 3600.0),
            tile(wcs, "far", ra_deg=ra_deg, dec_deg=-dec_deg / 2 + 20.0),
            tile(wcs, "other band", band="g", ra_deg=ra_deg, dec_deg=dec_deg),
        ]
    )
    region = compute_footprint(wcs(ra_deg, dec_deg, scale_arcsec=0.1), SHAPE)
    wide = compute_footprint(wcs(ra_deg, dec_deg, scale_arcsec=1.0), SHAPE)
    assert [found.uri for found in index.query(region, "r")] == ["here"]
    assert [found.uri for found in index.query(wide, "r")] == ["beside", "here"]
    assert [found.uri for found in index.query(region, "g")] == ["other band"]
    assert index.query(region, "z") == []


def test_an_empty_index_finds_nothing(wcs):
    assert TemplateIndex([]).query(compute_footprint(wcs(), SHAPE), "r") == []


def test_what_indexing_writes_loading_reads(tmp_path, exposure, wcs):
    (tmp_path / "sub").mkdir()
    save_exposure(exposure(wcs=wcs()), tmp_path / "a.fits")
    save_exposure(exposure(wcs=wcs(dec_deg=2.005), band="g"), tmp_path / "sub" / "b.fits")
    (tmp_path / "notes.txt").write_text("not a tile")
    progress = []
    report = index_templates(str(tmp_path), on_tile=lambda *counts: progress.append(counts))
    assert progress == [(1, 2), (2, 2)]
    assert report.unusable == ()
    loaded = TemplateIndex.load(f"{tmp_path}/{INDEX_NAME}")
    assert [tile.uri for tile in loaded.tiles] == [f"{tmp_path}/a.fits", f"{tmp_path}/sub/b.fits"]
    for found, expected in zip(loaded.tiles, report.index.tiles, strict=True):
        assert (found.band, found.depth_mag, found.psf_fwhm_arcsec) == (
            expected.band,
            expected.depth_mag,
            expected.psf_fwhm_arcsec,
        )
        np.testing.assert_allclose(found.footprint.center, expected.footprint.center, atol=1e-12)


def test_an_indexed_folder_can_be_moved(tmp_path, exposure, wcs):
    (tmp_path / "old").mkdir()
    save_exposure(exposure(wcs=wcs()), tmp_path / "old" / "a.fits")
    index_templates(str(tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")
    assert [tile.uri for tile in TemplateIndex.load(f"{tmp_path}/new/{INDEX_NAME}").tiles] == [f"{tmp_path}/new/a.fits"]


def test_files_that_cannot_be_templates_are_reported_and_left_out(tmp_path, exposure, wcs):
    save_exposure(exposure(wcs=wcs()), tmp_path / "good.fits")
    save_exposure(exposure(wcs=None), tmp_path / "no_wcs.fits")
    save_exposure(exposure(wcs=wcs(), band=None), tmp_path / "no_band.fits")
    (tmp_path / "torn.fits").write_bytes((tmp_path / "good.fits").read_bytes()[:5000])
    report = index_templates(str(tmp_path))
    assert [tile.uri for tile in report.index.tiles] == [f"{tmp_path}/good.fits"]
    assert sorted(str(error).partition("[")[0] for error in report.unusable) == [
        f"{tmp_path}/{name}.fits" for name in ("no_band", "no_wcs", "torn")
    ]


def test_a_band_can_be_given_to_files_without_one(tmp_path, exposure, wcs):
    save_exposure(exposure(wcs=wcs(), band=None), tmp_path / "a.fits")
    assert index_templates(str(tmp_path), band="i").index.tiles[0].band == "i"


def test_the_depth_is_five_sigma_of_a_point_source(exposure, wcs):
    found = describe_tile("a", exposure(wcs=wcs(), variance=9.0, fwhm=4.0, zero_point=27.0))
    sigma = 4.0 / np.sqrt(8.0 * np.log(2.0))
    assert found.depth_mag == pytest.approx(27.0 - 2.5 * np.log10(5.0 * 3.0 * np.sqrt(4.0 * np.pi) * sigma), abs=0.01)
    assert found.psf_fwhm_arcsec == pytest.approx(2.0, rel=0.02)


def test_a_tile_without_a_psf_has_no_depth(exposure, wcs):
    found = describe_tile("a", exposure(wcs=wcs(), has_psf=False))
    assert found.depth_mag is None
    assert found.psf_fwhm_arcsec is None


def test_a_tile_without_world_coordinates_is_corrupt(exposure):
    with pytest.raises(CorruptImage, match="world coordinates"):
        describe_tile("a", exposure(wcs=None))


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "[]",
        "{}",
        '{"format": "other", "version": 1, "tiles": []}',
        '{"format": "alertprod.template_index", "version": 99, "tiles": []}',
    ],
)
def test_what_is_no_index_is_a_config_error(tmp_path, content):
    path = tmp_path / "templates.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError):
        TemplateIndex.load(str(path))


def test_an_index_of_another_store_keeps_its_uris(tmp_path, wcs):
    TemplateIndex([tile(wcs, "memory://tiles/a.fits")]).save(f"{tmp_path}/index.json")
    assert json.loads((tmp_path / "index.json").read_text())["tiles"][0]["uri"] == "memory://tiles/a.fits"
    assert TemplateIndex.load(f"{tmp_path}/index.json").tiles[0].uri == "memory://tiles/a.fits"


def test_an_index_at_any_uri(wcs):
    TemplateIndex([tile(wcs, "memory://tiles/a.fits")]).save("memory://tiles/index.json")
    assert TemplateIndex.load("memory://tiles/index.json").tiles[0].uri == "memory://tiles/a.fits"
