from pathlib import Path

import numpy as np
import pytest

from alertprod.errors import (
    ConfigError,
    ImageNotYetAvailable,
    NoTemplateCoverage,
    StoreUnavailable,
    TemplateUnreadable,
)
from alertprod.images.fits_io import save_exposure
from alertprod.images.mask import plane_bits
from alertprod.store.sky import compute_footprint
from alertprod.store.template_cache import TemplateCache
from alertprod.store.template_index import INDEX_NAME, index_templates
from alertprod.store.templates import TemplateStore

SHAPE = (60, 80)
NO_DATA = plane_bits("NO_DATA")


class Site:
    """A folder of two tiles side by side (in declination), and what reads them."""

    def __init__(self, root, exposure, wcs):
        self.root, self.exposure, self.wcs = root, exposure, wcs
        (root / "tiles").mkdir()
        # 100 counts of zero point 28.9 are 1000 nJy in a pixel of 0.5 arcsec.
        self.low = self.save("low", dec_deg=2.0 - 12.0 / 3600.0)
        self.high = self.save("high", dec_deg=2.0 + 12.0 / 3600.0)
        self.index_uri = f"{root}/tiles/{INDEX_NAME}"
        index_templates(f"{root}/tiles")
        self.cache = TemplateCache(root / "cache", max_bytes=1 << 30)

    def save(self, name, *, band="r", wcs=None, dec_deg=2.0):
        path = self.root / "tiles" / f"{name}.fits"
        wcs = self.wcs(dec_deg=dec_deg) if wcs is None else wcs
        save_exposure(self.exposure(wcs=wcs, band=band, zero_point=28.9), path)
        return str(path)

    def store(self, *, with_index=True):
        return TemplateStore(self.cache, index_uri=self.index_uri if with_index else None)


@pytest.fixture
def site(tmp_path, exposure, wcs):
    return Site(tmp_path, exposure, wcs)


def test_a_template_is_merged_from_the_tiles_under_the_exposure(site, wcs):
    built = site.store().build_template(wcs(rotation_deg=3.0), SHAPE, "r")
    assert [Path(use.uri).name for use in built.tiles] == ["high.fits", "low.fits"]
    assert built.exposure.shape == SHAPE
    assert built.exposure.psf is not None
    good = (built.exposure.mask & NO_DATA) == 0
    assert built.coverage == pytest.approx(good.mean())
    assert 0.95 < built.coverage < 1.0
    assert built.load_s > 0
    assert built.warp_s > 0


def test_a_template_is_in_nanojansky(site, wcs):
    built = site.store().build_template(wcs(), SHAPE, "r")
    assert built.exposure.photo_calib.njy_per_count == 1.0
    inner = built.exposure.masked_image.cutout(built.exposure.box.grown(-15))
    # 2 counts rms are 20 nJy, at most sqrt(1 / 0.6) times fewer after the interpolation, correlated over some ten pixels.
    assert inner.image.mean() == pytest.approx(1000.0, abs=5 * 20.0 * np.sqrt(10.0 / inner.image.size))
    assert np.median(inner.variance) == pytest.approx(400.0, rel=0.45)
    assert np.median(inner.variance) <= 401.0


def test_pixel_area_scales_the_flux(site, wcs):
    coarse = site.store().build_template(wcs(shape=(20, 20), scale_arcsec=1.0), (20, 20), "r")
    # Surface brightness is what a flat sky keeps: four times the area, four times the flux.
    assert np.nanmean(coarse.exposure.image) == pytest.approx(4000.0, rel=0.01)


def test_a_partly_covered_exposure_says_how_much(site, wcs):
    # `high` ends 15 arcsec above its middle, at + 27; the exposure of 30 arcsec begins at + 24: a tenth, less up to
    # three rows of the kernel.
    tenth = site.store().build_template(wcs(dec_deg=2.0 + 39.0 / 3600.0), SHAPE, "r")
    assert 0.04 < tenth.coverage < 0.101
    half = site.store().build_template(wcs(dec_deg=2.0 + 27.0 / 3600.0), SHAPE, "r")
    assert half.coverage == pytest.approx(0.5, abs=0.06)
    bare = (half.exposure.mask & NO_DATA) != 0
    assert np.isnan(half.exposure.image[bare]).all()
    assert np.isinf(half.exposure.variance[bare]).all()
    assert [Path(use.uri).name for use in half.tiles] == ["high.fits", "low.fits"][: len(half.tiles)]


@pytest.mark.parametrize("place", [{"dec_deg": 3.0}, {"ra_deg": 330.0, "dec_deg": -2.0}])
def test_no_tile_under_the_exposure_is_no_coverage(site, wcs, place):
    with pytest.raises(NoTemplateCoverage) as caught:
        site.store().build_template(wcs(**place), SHAPE, "r", required_coverage=0.2)
    assert (caught.value.fraction, caught.value.required) == (0.0, 0.2)
    with pytest.raises(NoTemplateCoverage):
        site.store().build_template(wcs(**place), SHAPE, "r", tile_uris=[site.low])


def test_another_band_is_no_coverage(site, wcs):
    with pytest.raises(NoTemplateCoverage):
        site.store().build_template(wcs(), SHAPE, "g")


def test_tiles_that_the_event_names_are_taken_instead_of_the_indexs(site, wcs):
    built = site.store().build_template(wcs(), SHAPE, "r", tile_uris=[site.high])
    assert [use.uri for use in built.tiles] == [site.high]
    without_index = site.store(with_index=False).build_template(wcs(), SHAPE, "r", tile_uris=[site.high])
    np.testing.assert_array_equal(without_index.exposure.image, built.exposure.image)


def test_the_order_of_the_tiles_in_the_event_does_not_matter(site, wcs):
    store = site.store()
    one = store.build_template(wcs(), SHAPE, "r", tile_uris=[site.high, site.low])
    other = store.build_template(wcs(), SHAPE, "r", tile_uris=[site.low, site.high, site.low])
    np.testing.assert_array_equal(one.exposure.image, other.exposure.image)


def test_without_index_and_names_there_is_no_coverage(site, wcs):
    with pytest.raises(NoTemplateCoverage):
        site.store(with_index=False).build_template(wcs(), SHAPE, "r")


def test_a_tile_the_event_names_may_still_come(site, wcs):
    with pytest.raises(ImageNotYetAvailable):
        site.store().build_template(wcs(), SHAPE, "r", tile_uris=["/nowhere/a.fits"])


def test_a_tile_of_the_index_that_is_gone_is_unreadable(site, wcs):
    Path(site.low).unlink()
    with pytest.raises(TemplateUnreadable, match=r"low\.fits.*gone"):
        site.store().build_template(wcs(), SHAPE, "r")


def test_a_tile_that_became_corrupt_is_unreadable(site, wcs):
    Path(site.high).write_bytes(b"SIMPLE  =" * 100)
    with pytest.raises(TemplateUnreadable, match=r"high\.fits"):
        site.store().build_template(wcs(), SHAPE, "r")


def test_a_named_tile_of_another_band_is_unreadable(site, wcs):
    green = site.save("green", band="g")
    with pytest.raises(TemplateUnreadable, match="its band is g"):
        site.store().build_template(wcs(), SHAPE, "r", tile_uris=[green])


def test_a_named_tile_without_a_band_is_taken_at_its_word(site, wcs):
    built = site.store().build_template(wcs(), SHAPE, "r", tile_uris=[site.save("any", band=None)])
    assert built.exposure.info.band == "r"


def test_a_tile_without_world_coordinates_is_unreadable(site, wcs, exposure):
    path = site.root / "flat.fits"
    save_exposure(exposure(wcs=None), path)
    with pytest.raises(TemplateUnreadable, match="no world coordinates"):
        site.store().build_template(wcs(), SHAPE, "r", tile_uris=[str(path)])


def test_prefetched_tiles_are_hits(site, wcs):
    store = site.store()
    region = compute_footprint(wcs(), SHAPE)
    assert store.prefetch(region, "r") == 2
    assert store.prefetch(region, "r") == 0
    site.cache.take_counts()
    store.build_template(wcs(), SHAPE, "r")
    counts = site.cache.take_counts()
    assert (counts.hits, counts.misses) == (2, 0)


def test_building_changes_no_cached_tile(site, wcs):
    store = site.store()
    first = store.build_template(wcs(), SHAPE, "r").exposure
    first.image[...] = 0.0
    second = store.build_template(wcs(), SHAPE, "r").exposure
    assert np.nanmean(second.image) == pytest.approx(1000.0, rel=0.01)


def test_a_new_index_is_noticed(site, wcs):
    store = site.store()
    region = compute_footprint(wcs(dec_deg=2.1), SHAPE)
    assert store.find_tiles(region, "r") == []
    site.save("new", dec_deg=2.1)
    index_templates(f"{site.root}/tiles")
    assert [Path(uri).name for uri in store.find_tiles(region, "r")] == ["new.fits"]


def test_an_index_that_breaks_at_night_is_retried(site, wcs):
    store = site.store()
    Path(site.index_uri).write_text("half an ind")
    with pytest.raises(StoreUnavailable):
        store.build_template(wcs(), SHAPE, "r")
    index_templates(f"{site.root}/tiles")
    store.build_template(wcs(), SHAPE, "r")


def test_a_store_without_its_index_does_not_start(tmp_path):
    with pytest.raises(ConfigError, match="templates index"):
        TemplateStore(TemplateCache(tmp_path / "cache", max_bytes=1), index_uri=f"{tmp_path}/{INDEX_NAME}")
