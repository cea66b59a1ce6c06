"""Files, events and templates that cannot be used: each has its fate, and the next exposure is unaffected."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from made_skies import NIGHT
from pipeline_bench import source_facts

from alertprod.errors import (
    BadSubtraction,
    CorruptImage,
    HeaderMismatch,
    ImageNotYetAvailable,
    InsufficientKernelSources,
    InvalidEvent,
    NoTemplateCoverage,
    TemplateUnreadable,
    TooManyDiaSources,
)
from alertprod.factory import WorkerPipeline
from alertprod.images.fits_io import load_exposure, save_exposure
from alertprod.images.profile import load_profile
from alertprod.service.pipeline import Stopwatch
from alertprod.store.ledger import LedgerState
from alertprod.store.template_index import index_templates


def altered(bench, night, alter, name="altered.fits", visit=0):
    """Return the path of a copy of an exposure after `alter` was called on it."""
    exposure = load_exposure(night.exposure_path(visit, 0), load_profile("alertprod"))
    path = bench.folder / name
    save_exposure(alter(exposure) or exposure, path)
    return path


def with_cards(bench, night, **cards):
    """Return the path of a copy of the first exposure with other header cards."""
    path = bench.folder / "cards.fits"
    shutil.copy(night.exposure_path(0, 0), path)
    with fits.open(path, mode="update") as hdus:
        for name, value in cards.items():
            for hdu in hdus:
                if name in hdu.header:
                    hdu.header[name] = value
    return path


def missing_image(bench, night):
    path = bench.folder / "nowhere.fits"
    return {"calexp_uri": str(path)}, ImageNotYetAvailable, [str(path), "no such file"]


def truncated_image(bench, night):
    path = bench.folder / "truncated.fits"
    whole = night.exposure_path(0, 0).read_bytes()
    path.write_bytes(whole[: int(0.6 * len(whole))])
    return {"calexp_uri": str(path)}, CorruptImage, [str(path), "["]


def empty_image(bench, night):
    path = bench.folder / "empty.fits"
    path.touch()
    return {"calexp_uri": str(path)}, CorruptImage, [str(path), "empty"]


def image_that_is_text(bench, night):
    path = bench.folder / "text.fits"
    path.write_text("SIMPLE is better than complex\n" * 500)
    return {"calexp_uri": str(path)}, CorruptImage, [str(path)]


def image_without_coordinates(bench, night):
    path = altered(bench, night, lambda exposure: replace(exposure, wcs=None))
    return {"calexp_uri": str(path)}, CorruptImage, [str(path), "no world coordinates"]


def another_visit(bench, night):
    path = night.exposure_path(0, 0)
    wrong = night.visit_id(0) + 5
    return {"visit": wrong}, HeaderMismatch, [str(path), "visit", str(wrong), str(night.visit_id(0))]


def another_detector(bench, night):
    return {"detector": 1}, HeaderMismatch, [str(night.exposure_path(0, 0)), "detector", "1", "0"]


def another_band(bench, night):
    return {"band": "g"}, HeaderMismatch, [str(night.exposure_path(0, 0)), "band", "'g'", "'r'"]


def another_pointing(bench, night):
    dec = night.event(0, 0)["dec_deg"] + 0.05
    return {"dec_deg": dec}, HeaderMismatch, [str(night.exposure_path(0, 0)), "pointing", str(dec)]


def sky_without_templates(bench, night):
    path = with_cards(bench, night, CRVAL2=-25.0, DEC=-25.0)
    return {"calexp_uri": str(path), "dec_deg": -25.0}, NoTemplateCoverage, ["0.0%", "10.0%"]


def unreadable_tile(bench, night):
    tile = bench.folder / "tile.fits"
    whole = next(night.templates_directory.glob("*.fits")).read_bytes()
    tile.write_bytes(whole[: len(whole) // 2])
    return {"template_uris": (str(tile),)}, TemplateUnreadable, [str(tile)]


def tile_of_another_band(bench, night):
    tile = bench.folder / "tile.fits"
    exposure = load_exposure(next(night.templates_directory.glob("*.fits")), load_profile("alertprod"))
    exposure.info.band = "z"
    save_exposure(exposure, tile)
    return {"template_uris": (str(tile),)}, TemplateUnreadable, [str(tile), "band is z", "r"]


def missing_tile(bench, night):
    tile = str(bench.folder / "tile.fits")
    return {"template_uris": (tile,)}, ImageNotYetAvailable, [tile]


def visit_that_does_not_fit(bench, night):
    path = with_cards(bench, night, VISIT=123)
    return {"calexp_uri": str(path), "visit": 123}, InvalidEvent, ["visit", "123", "13 digits"]


def sky_without_stars(bench, night):
    def empty(exposure):
        rng = np.random.default_rng(1)
        sky = np.percentile(exposure.variance, 5)
        exposure.image[...] = np.sqrt(sky) * rng.standard_normal(exposure.shape)
        exposure.variance[...] = sky

    return {"calexp_uri": str(altered(bench, night, empty))}, InsufficientKernelSources, ["3 required"]


def senseless_variance(bench, night):
    def lie(exposure):
        exposure.variance[...] *= 20.0

    return {"calexp_uri": str(altered(bench, night, lie))}, BadSubtraction, ["variance plane", "the limit is 10"]


BAD_INPUTS = [
    missing_image,
    truncated_image,
    empty_image,
    image_that_is_text,
    image_without_coordinates,
    another_visit,
    another_detector,
    another_band,
    another_pointing,
    sky_without_templates,
    unreadable_tile,
    tile_of_another_band,
    missing_tile,
    visit_that_does_not_fit,
    sky_without_stars,
    senseless_variance,
]


@pytest.mark.parametrize("spoil", BAD_INPUTS, ids=[spoil.__name__ for spoil in BAD_INPUTS])
def test_bad_input_has_its_fate_and_the_next_exposure_is_unaffected(bench, night, undisturbed, spoil):
    changes, error, words = spoil(bench, night)
    event = bench.event(night, **changes)
    order = bench.order(event)
    with pytest.raises(error) as caught:
        bench.pipeline.process(order)
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value)
    assert set(bench.count_rows().values()) == {0}
    assert bench.row(event).state is LedgerState.CLAIMED  # its fate is the daemon's to write

    # The same exposure comes again as it should have been.
    assert bench.ledger.release_claim(order.claim)
    good = bench.process(bench.event(night))
    assert [source_facts(alert) for alert in bench.alerts(good)] == undisturbed


def test_too_many_sources_are_a_failed_subtraction(make_bench, night, undisturbed):
    bench = make_bench(max_per_exposure=len(undisturbed) + 3)

    def litter(exposure):
        rng = np.random.default_rng(2)
        for x, y in rng.uniform(40, NIGHT.size - 40, (60, 2)):
            stamp, box = exposure.psf.compute_stellar_image(x=x, y=y)
            rows, columns = box.slices
            exposure.image[rows, columns] += 2500.0 * stamp

    path = altered(bench, night, litter)
    event = bench.event(night, calexp_uri=str(path))
    order = bench.order(event)
    with pytest.raises(TooManyDiaSources) as caught:
        bench.pipeline.process(order)
    assert caught.value.limit == len(undisturbed) + 3
    assert caught.value.n > 40
    assert set(bench.count_rows().values()) == {0}
    bench.ledger.release_claim(order.claim)
    good = bench.process(bench.event(night))
    assert [source_facts(alert) for alert in bench.alerts(good)] == undisturbed


def test_a_tile_that_covers_too_little_is_nothing_to_do(make_bench, night):
    bench = make_bench(requiredTemplateFraction=0.9)
    tile = str(min(night.templates_directory.glob("*.fits")))
    with pytest.raises(NoTemplateCoverage) as caught:
        bench.process(bench.event(night, template_uris=(tile,)))
    assert 0.0 < caught.value.fraction < 0.9
    assert caught.value.required == 0.9


def test_a_tile_of_the_index_that_goes_bad_is_named(make_bench, night, tmp_path):
    # A copy of the templates: the module's must stay good.
    folder = tmp_path / "templates"
    shutil.copytree(night.templates_directory, folder)
    index_templates(str(folder))
    bench = make_bench()
    store = bench.config.store.model_copy(update={"template_index": str(folder / "templates.json")})
    pipeline = WorkerPipeline(bench.config.model_copy(update={"store": store}))()
    tiles = sorted(folder.glob("*.fits"))
    whole = tiles[0].read_bytes()
    tiles[0].write_bytes(whole[:5000])
    with pytest.raises(TemplateUnreadable, match=tiles[0].name):
        pipeline.difference(bench.event(night), Stopwatch())
    tiles[0].unlink()
    with pytest.raises(TemplateUnreadable, match="the index lists it and it is gone"):
        pipeline.difference(bench.event(night), Stopwatch())
    tiles[0].write_bytes(whole)
    assert pipeline.difference(bench.event(night), Stopwatch()).sources.n_rows > 3


def test_overrides_of_the_instrument_reach_the_task(make_bench, night):
    faint = make_bench(**{"detection.thresholdValue": 50.0})
    assert faint.process(faint.event(night)).outbox.n_messages < 3


def test_an_exposure_without_sources_is_stored_without_alerts(make_bench, night):
    bench = make_bench(**{"detection.thresholdValue": 1e6})
    event = bench.event(night)
    result = bench.process(event)
    assert result.outcome == "stored"
    assert result.outbox.n_messages == 0
    assert bench.row(event).state is LedgerState.STORED
    assert bench.alerts(result) == []
