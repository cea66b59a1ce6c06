"""The daemon's pipeline on a Butler: images by URI, templates by place, differences put back."""

import pytest

pytest.importorskip("lsst.daf.butler", reason="the extra lsst is not installed; `make butler` adds it")

import sqlite3
import threading
from contextlib import closing
from dataclasses import replace

import numpy as np
from butler_repository import DETECTOR, INPUTS, INSTRUMENT, SHAPE, SKYMAP, TRACT, WCS
from lsst.daf.butler import Butler, DatasetRef
from made_skies import TRANSIENTS

from alertprod.butler import _lock_wait
from alertprod.butler.access import ButlerAccess
from alertprod.butler.images import ButlerImages, format_uri
from alertprod.config import ButlerConfig, DaemonConfig, InstrumentConfig, StoreConfig
from alertprod.errors import ConfigError, DatasetMismatch, ImageNotYetAvailable, NoTemplateCoverage
from alertprod.factory import WorkerPipeline, check_start
from alertprod.factory import _create_prefetch as create_prefetch
from alertprod.service.work import WorkOrder
from alertprod.store.database import Database
from alertprod.store.files import is_allowed
from alertprod.store.images import ImageStore
from alertprod.store.ledger import Claimed, EventPosition, ExposureKey, Ledger
from alertprod.store.sky import compute_footprint
from alertprod.stream.messages import NextVisit, VisitReady

RUN = "alertprod/differences"
DATA_ID = {"instrument": INSTRUMENT, "visit": 1, "detector": DETECTOR}
URI = f"butler:calexp?instrument={INSTRUMENT}&visit=1&detector={DETECTOR}"
TILE = f"butler:deepCoadd?band=r&skymap={SKYMAP}&tract={TRACT}&patch=0"


@pytest.fixture
def images(made):
    return ButlerImages(ButlerAccess(made.root, collections=INPUTS), template_dataset="deepCoadd", skymap=SKYMAP)


def configure(made, folder, **butler) -> DaemonConfig:
    settings = {"repository": str(made.root), "collections": INPUTS, "template_dataset": "deepCoadd"}
    return DaemonConfig(
        store=StoreConfig(
            database_url=f"sqlite:///{folder}/alertprod.sqlite",
            outbox_uri=str(folder / "outbox"),
            template_index=str(folder / "there-is-none.json"),
            template_cache_directory=str(folder / "cache"),
            allowed_roots=(str(folder),),
        ),
        butler=ButlerConfig(**{**settings, "difference_run": RUN, **butler}),
        instruments={INSTRUMENT: InstrumentConfig()},
    )


def make_event(visit=1, **changes) -> VisitReady:
    facts = {
        "instrument": INSTRUMENT,
        "visit": visit,
        "detector": DETECTOR,
        "band": "r",
        "shutter_open_mjd_tai": 61000.0 + visit,
        "shutter_close_mjd_tai": 61000.0 + visit + 30.0 / 86400.0,
        "exposure_time_s": 30.0,
        "ra_deg": 150.0,
        "dec_deg": 2.0,
        "calexp_uri": URI.replace("visit=1", f"visit={visit}"),
        "sent_at_mjd_tai": 61000.0 + visit,
    }
    return VisitReady(**{**facts, **changes})


class Worker:
    """A pipeline as a worker process has it, and the ledger that it claims from."""

    def __init__(self, config: DaemonConfig) -> None:
        database = Database(config.store.open_url())
        database.upgrade()
        self.ledger, self.pipeline = Ledger(database), WorkerPipeline(config)()

    def process(self, event: VisitReady):
        position = EventPosition("visit-ready", 0, event.visit)
        key = ExposureKey(event.instrument, event.visit, event.detector)
        claim = self.ledger.claim(key, owner="here", lease_s=60.0, event=position)
        assert isinstance(claim, Claimed)
        return self.pipeline.process(
            WorkOrder(event=event, position=position, claim=claim, received_unix_s=0.0, deadline_s=60.0)
        )


def test_an_image_is_loaded_by_its_uri(images, made):
    store = ImageStore({"butler": images})
    found = store.load(URI)
    np.testing.assert_array_equal(found.image, made.pairs[1].science.image)
    assert store.stamp(URI) == store.stamp(URI) != store.stamp(URI.replace("visit=1", "visit=2"))


def test_a_datasets_uri_leads_back_to_it(made, images):
    with Butler.from_config(made.root, collections=INPUTS) as butler:
        refs = [*butler.query_datasets("calexp"), *butler.query_datasets("deepCoadd")]
    assert all(isinstance(ref, DatasetRef) for ref in refs)
    assert [images.stamp(format_uri(ref)).version for ref in refs] == [str(ref.id) for ref in refs]


def test_tiles_under_a_region_are_named(images):
    uris = images.find_tiles(compute_footprint(WCS, SHAPE), "r")
    assert [images.load(uri).shape[0] for uri in uris] == [SHAPE[0]] * 2
    assert images.find_tiles(compute_footprint(WCS, SHAPE), "g") == []


def test_events_may_name_datasets_wherever_files_are_allowed():
    assert is_allowed(URI, [])
    assert is_allowed(URI, ["/data/night"])


@pytest.mark.parametrize(
    ("uri", "error", "says"),
    [
        ("butler:", DatasetMismatch, "a Butler's URI is"),
        (URI.replace("calexp", "calexps"), DatasetMismatch, "no such dataset type"),
        (URI.replace("detector=", "detectr="), DatasetMismatch, "no key of its data ids"),
        (URI.replace("visit=1", "visit=one"), DatasetMismatch, "is no number"),
        (URI.partition("&detector")[0], DatasetMismatch, "needs detector too"),
        (URI.replace("visit=1", "visit=77"), ImageNotYetAvailable, "visit=77"),
    ],
)
def test_a_uri_that_names_nothing_is_an_error_of_the_event(images, uri, error, says):
    with pytest.raises(error, match=says):
        images.load(uri)
    with pytest.raises(error, match=says):
        images.stamp(uri)


def test_differences_are_not_kept_where_nobody_said_where(images, made):
    with pytest.raises(ConfigError, match="no collection is named to put"):
        images.keep_difference(made.pairs[1].science, DATA_ID)


def test_a_dataset_that_is_no_image_is_refused(fresh):
    made = fresh()
    access = ButlerAccess(made.root, collections=INPUTS, run="numbers")
    access.put({"a": 1}, "numbers", DATA_ID)
    with pytest.raises(DatasetMismatch, match="is a dict, not an exposure"):
        ButlerImages(access).load(URI.replace("calexp", "numbers"))


def test_a_worker_reads_from_the_butler_and_puts_its_difference_back(fresh, tmp_path):
    made = fresh()
    worker = Worker(configure(made, tmp_path))
    result = worker.process(make_event())
    assert result.outcome == "stored"
    assert result.outbox.n_messages == len(TRANSIENTS)
    assert "difference_not_kept" not in result.counts
    assert result.stage_seconds["keep"] > 0
    with Butler.from_config(made.root, collections=RUN) as butler:
        difference = butler.get("deepDiff_differenceExp", DATA_ID)
    for x, y, flux in TRANSIENTS:
        assert np.sign(difference.image[round(y), round(x)]) == np.sign(flux)

    # Visit 2, whose event names one of the two tiles itself.
    result = worker.process(make_event(2, template_uris=[TILE]))
    assert result.figures["template_coverage"] == pytest.approx(made.tiles[0].shape[1] / SHAPE[1], abs=0.02)


def test_an_exposure_that_is_tried_again_replaces_its_difference(fresh):
    made = fresh()
    writer = ButlerAccess(made.root, collections=INPUTS, run=RUN)
    images = ButlerImages(ButlerAccess(made.root, collections=INPUTS), differences=writer)
    first = replace(made.pairs[1].science, wcs=WCS)
    again = first.copy()
    again.image[...] += 1.0
    images.keep_difference(first, DATA_ID)
    images.keep_difference(again, DATA_ID)
    with Butler.from_config(made.root, collections=RUN) as butler:
        np.testing.assert_array_equal(butler.get("deepDiff_differenceExp", DATA_ID).image, again.image)


def test_alerts_go_out_without_a_difference_that_cannot_be_kept(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(_lock_wait, "LOCK_WAIT_S", 0.1)
    made = fresh()
    worker = Worker(configure(made, tmp_path))
    with closing(sqlite3.connect(made.root / "gen3.sqlite3", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # somebody writes: reading goes on
        result = worker.process(make_event())
        connection.execute("ROLLBACK")
    assert result.outcome == "stored"
    assert result.outbox.n_messages == len(TRANSIENTS)
    assert result.counts["difference_not_kept"] == 1


def test_an_announced_visit_brings_its_patches_into_the_cache(made, tmp_path):
    config = configure(made, tmp_path, difference_run=None)
    config = config.model_copy(update={"instruments": {INSTRUMENT: InstrumentConfig(field_radius_deg=0.02)}})
    Database(config.store.open_url()).upgrade()
    prefetch = create_prefetch(config)
    visit = NextVisit(
        instrument=INSTRUMENT, visit=9, band="r", ra_deg=150.0, dec_deg=2.0, shutter_opens_at_mjd_tai=61003.0
    )
    thread = threading.Thread(target=prefetch, args=(visit,))  # the daemon announces from another than it starts in
    thread.start()
    thread.join()
    assert len(list((tmp_path / "cache").glob("*.tile"))) == 2


def test_no_patch_under_an_exposure_is_nothing_to_do(fresh, tmp_path):
    worker = Worker(configure(fresh(), tmp_path, skymap="another"))
    with pytest.raises(NoTemplateCoverage):
        worker.process(make_event())


@pytest.mark.parametrize(
    ("butler", "field"), [({"collections": ("nobody",)}, "collections"), ({"repository": "nowhere"}, "butler.yaml")]
)
def test_a_daemon_does_not_start_on_a_repository_that_it_cannot_open(made, tmp_path, butler, field):
    with pytest.raises(ConfigError) as caught:
        check_start(configure(made, tmp_path, **butler), source="test")
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"difference_run": "a"}, "need a repository"), ({"repository": "/repo"}, "collections must name")],
)
def test_a_section_that_does_not_fit_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        ButlerConfig(**settings)
