"""`ExposurePipeline` with everything real but Kafka: FITS files, template tiles, SQLite, outbox, ledger."""

import copy
import pickle
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from astropy.io import fits
from astropy.table import Table
from installed_scorers import install
from made_skies import NIGHT, render_night

from alertprod.alerts.avro import decode_alert
from alertprod.alerts.cutouts import load_cutout
from alertprod.config import (
    AlertsConfig,
    DaemonConfig,
    InstrumentConfig,
    SolarSystemConfig,
    StoreConfig,
    WorkersConfig,
)
from alertprod.errors import (
    BadSubtraction,
    CorruptImage,
    HeaderMismatch,
    ImageNotYetAvailable,
    InsufficientKernelSources,
    InvalidEvent,
    NoTemplateCoverage,
    StoreUnavailable,
    TemplateUnreadable,
    TooManyDiaSources,
)
from alertprod.factory import WorkerPipeline
from alertprod.images.fits_io import load_exposure, save_exposure
from alertprod.images.profile import load_profile
from alertprod.metrics import FIGURES, STAGES
from alertprod.service import pipeline as pipeline_module
from alertprod.service.pipeline import Stopwatch
from alertprod.service.work import WorkOrder
from alertprod.store.database import Database, upgrade
from alertprod.store.ledger import Claimed, ClaimLost, EventPosition, ExposureKey, Ledger, LedgerState
from alertprod.store.outbox import read_outbox
from alertprod.store.tables import DIA_OBJECT, DIA_SOURCE, SKY_CELL
from alertprod.store.template_index import index_templates
from alertprod.stream.messages import VisitReady


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Two visits of one detector, and an index of the tiles under them."""
    made = render_night(tmp_path_factory.mktemp("night"))
    index_templates(str(made.templates_directory))
    return made


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    path = tmp_path_factory.mktemp("database") / "empty.sqlite"
    upgrade(f"sqlite:///{path}")
    return path


@dataclass
class Bench:
    """One worker's pipeline and the stores it works on."""

    folder: Path
    config: DaemonConfig
    database: Database
    ledger: Ledger
    pipeline: object

    def event(self, night, index=0, **changes) -> VisitReady:
        return VisitReady(**(night.event(index, 0) | changes))

    def order(self, event: VisitReady, *, lease_s=60.0) -> WorkOrder:
        key = ExposureKey(event.instrument, event.visit, event.detector)
        position = EventPosition("visit-ready", 0, event.visit % 100)
        claim = self.ledger.claim(key, owner="here", lease_s=lease_s, event=position)
        assert isinstance(claim, Claimed)
        return WorkOrder(event=event, position=position, claim=claim, received_unix_s=0.0, deadline_s=60.0)

    def process(self, event: VisitReady):
        return self.pipeline.process(self.order(event))

    def alerts(self, result):
        return [decode_alert(message.value) for message in read_outbox(result.outbox.uri, result.outbox.sha256)]

    def row(self, event: VisitReady):
        return self.ledger.get(ExposureKey(event.instrument, event.visit, event.detector))

    def count_rows(self):
        return self.pipeline._apdb.count_rows()


def set_up(
    folder, night, empty_database, *, max_per_exposure=5000, alerts=None, solar_system=None, **difference
) -> Bench:
    path = folder / "alertprod.sqlite"
    shutil.copy(empty_database, path)
    config = DaemonConfig(
        store=StoreConfig(
            database_url=f"sqlite:///{path}",
            outbox_uri=str(folder / "outbox"),
            template_index=str(night.templates_directory / "templates.json"),
            template_cache_directory=str(folder / "cache"),
        ),
        instruments={
            NIGHT.instrument: InstrumentConfig(
                profile=str(night.directory / "profile.toml"), release=3, difference=difference
            )
        },
        alerts=AlertsConfig(max_per_exposure=max_per_exposure, **(alerts or {})),
        solar_system=SolarSystemConfig(**(solar_system or {})),
        workers=WorkersConfig(threads_per_worker=1),
    )
    database = Database(config.store.database_url)
    return Bench(folder, config, database, Ledger(database), WorkerPipeline(config)())


@pytest.fixture
def make_bench(night, empty_database, tmp_path):
    made = []

    def make(**settings) -> Bench:
        folder = tmp_path / f"bench{len(made)}"
        folder.mkdir()
        made.append(set_up(folder, night, empty_database, **settings))
        return made[-1]

    yield make
    for bench in made:
        bench.database.close()


@pytest.fixture
def bench(make_bench):
    return make_bench()


@pytest.fixture
def truth(night):
    return Table.read(night.directory / "truth.ecsv")


def source_facts(alert):
    source = alert["diaSource"]
    return source["diaSourceId"], source["x"], source["y"], source["psfFlux"], source["psfFluxErr"]


@pytest.fixture(scope="module")
def undisturbed(night, empty_database, tmp_path_factory):
    """What a fresh pipeline makes of the first visit."""
    fresh = set_up(tmp_path_factory.mktemp("fresh"), night, empty_database)
    facts = [source_facts(alert) for alert in fresh.alerts(fresh.process(fresh.event(night)))]
    fresh.database.close()
    return facts


# -- two visits --


def test_two_visits_become_alerts_with_their_past(bench, night, truth):
    first_event, second_event = bench.event(night, 0), bench.event(night, 1)
    first, second = bench.process(first_event), bench.process(second_event)
    assert (first.outcome, second.outcome) == ("stored", "stored")
    first_alerts, second_alerts = bench.alerts(first), bench.alerts(second)

    # The first visit has no past.
    assert len(first_alerts) == first.outbox.n_messages > 3
    assert all(alert["prvDiaSources"] is None for alert in first_alerts)
    assert first.counts["new_objects"] == len(first_alerts)
    assert first.counts["matched_objects"] == 0

    # The second knows what the first one saw, as it was told then.
    then = {alert["diaSource"]["diaSourceId"]: alert["diaSource"] for alert in first_alerts}
    with_past = [alert for alert in second_alerts if alert["prvDiaSources"]]
    assert len(with_past) == second.counts["matched_objects"] > 2
    for alert in with_past:
        (previous,) = alert["prvDiaSources"]
        told = then[previous["diaSourceId"]]
        assert previous["psfFlux"] == told["psfFlux"]
        assert previous["midpointMjdTai"] == told["midpointMjdTai"]
        assert alert["diaObject"]["diaObjectId"] == previous["diaObjectId"] == alert["diaSource"]["diaObjectId"]
        assert alert["diaObject"]["nDiaSources"] == 2
        # Seen twice, it is followed: this exposure's forced flux is in the packet.
        (forced,) = alert["prvDiaForcedSources"]
        assert forced["visit"] == second_event.visit
        assert forced["psfFlux"] == pytest.approx(alert["diaSource"]["psfFlux"], abs=alert["diaSource"]["psfFluxErr"])

    # What is bright in the truth is in the alerts of its visit.
    for event, alerts in ((first_event, first_alerts), (second_event, second_alerts)):
        bright = truth[(truth["visit"] == event.visit) & truth["is_measurable"] & (truth["snr"] > 12)]
        assert len(bright) > 1
        for row in bright:
            nearest = min(
                alerts,
                key=lambda a, row=row: np.hypot(a["diaSource"]["x"] - row["x"], a["diaSource"]["y"] - row["y"]),
            )["diaSource"]
            assert np.hypot(nearest["x"] - row["x"], nearest["y"] - row["y"]) < 5.0 * 4.4 / row["snr"]
            assert abs(nearest["psfFlux"] - row["flux_njy"]) < 6.0 * nearest["psfFluxErr"]


def test_ids_are_release_exposure_and_counter(bench, night):
    event = bench.event(night)
    result = bench.process(event)
    packed = load_profile(bench.config.instruments[NIGHT.instrument].profile).create_packer()
    exposure = (3 << 38) | packed.pack(visit=event.visit, detector=event.detector)
    ids = [alert["diaSource"]["diaSourceId"] for alert in bench.alerts(result)]
    assert {identifier >> 19 for identifier in ids} == {exposure}
    assert len(set(ids)) == len(ids)


def test_outbox_ledger_and_tables_say_the_same(bench, night):
    event = bench.event(night)
    result = bench.process(event)
    row = bench.row(event)
    assert row.state is LedgerState.STORED
    assert (row.outbox_uri, row.outbox_sha256) == (result.outbox.uri, result.outbox.sha256)
    assert row.n_alerts == result.outbox.n_messages == len(bench.alerts(result))
    rows = bench.count_rows()
    assert rows["dia_source"] == row.n_alerts
    assert rows["dia_object"] == result.counts["new_objects"]
    assert row.summary["counts"] == result.counts
    assert row.summary["versions"] == result.versions
    assert row.summary["band"] == "r"


def test_messages_have_key_and_headers_of_their_packet(bench, night):
    result = bench.process(bench.event(night))
    for message in read_outbox(result.outbox.uri, result.outbox.sha256):
        packet = decode_alert(message.value)
        headers = dict(message.headers)
        assert message.key == b"%d" % packet["diaObject"]["diaObjectId"]
        assert str(packet["diaSource"]["diaSourceId"]).encode() in headers.values()
        assert result.versions["config_hash"].encode() in headers.values()


def test_result_has_times_figures_and_use_of_the_cache(bench, night):
    first, second = bench.process(bench.event(night, 0)), bench.process(bench.event(night, 1))
    assert set(first.stage_seconds) <= set(STAGES)
    assert {"load", "templates", "warp", "psf", "match", "detect", "associate", "packets", "store"} <= set(
        first.stage_seconds
    )
    parts = sum(seconds for name, seconds in first.stage_seconds.items() if name != "compute")
    assert 0.5 * first.stage_seconds["compute"] < parts <= 1.01 * first.stage_seconds["compute"]
    assert set(FIGURES) <= set(first.figures)
    assert first.figures["kernel_sum"] == pytest.approx(1.0, abs=0.02)
    assert first.figures["pull_width"] == pytest.approx(1.0, abs=0.05)
    assert first.figures["template_coverage"] == 1.0
    n_tiles = len(list(night.tiles()))
    assert (first.cache.misses, first.cache.hits) == (n_tiles, 0)
    assert (second.cache.misses, second.cache.hits) == (0, n_tiles)
    assert second.cache.size_bytes == first.cache.size_bytes > 0


def test_what_a_worker_hands_over_does_not_grow_with_its_alerts(make_bench, night):
    many, none = make_bench(), make_bench(**{"detection.thresholdValue": 1e6})
    with_alerts, without = many.process(many.event(night)), none.process(none.event(night))
    assert with_alerts.outbox.n_messages >= 5 > without.outbox.n_messages == 0
    assert len(pickle.dumps(with_alerts)) == pytest.approx(len(pickle.dumps(without)), abs=500)
    assert Path(with_alerts.outbox.uri).stat().st_size > 100 * len(pickle.dumps(with_alerts))


def test_the_event_has_the_last_word_on_times(bench, night):
    later = bench.event(night)
    later = later.model_copy(
        update={"shutter_open_mjd_tai": later.shutter_open_mjd_tai + 1, "shutter_close_mjd_tai": 61001.21}
    )
    (alert, *_) = bench.alerts(bench.process(later))
    assert alert["diaSource"]["midpointMjdTai"] == pytest.approx(
        (later.shutter_open_mjd_tai + later.shutter_close_mjd_tai) / 2, abs=1e-9
    )


def test_the_events_reason_and_target_are_in_the_packets(bench, night):
    event = bench.event(night)
    (alert, *_) = bench.alerts(bench.process(event))
    assert alert["observation_reason"] == event.observation_reason
    assert alert["target_name"] == event.target_name


def test_where_the_event_has_no_reason_and_target_the_image_has_the_word(bench, night, tmp_path):
    path = tmp_path / night.exposure_path(0, 0).name
    shutil.copy(night.exposure_path(0, 0), path)
    with fits.open(path, mode="update") as hdus:
        hdus[0].header["OBJECT"], hdus[0].header["OBSREASN"] = "field 7", "deep drilling"
    event = bench.event(night, calexp_uri=str(path), observation_reason=None, target_name=None)
    alert, *_ = bench.alerts(bench.process(event))
    assert (alert["observation_reason"], alert["target_name"]) == ("deep drilling", "field 7")


def test_cutouts_hold_no_more_of_the_psf_than_is_wanted(make_bench, night):
    bench = make_bench(alerts={"cutout_max_psf_pixels": 25})
    alert, *_ = bench.alerts(bench.process(bench.event(night)))
    assert load_cutout(alert["cutoutDifference"]).psf.shape == (25, 25)


def test_reprocessing_gives_the_same_sources(make_bench, night, undisturbed):
    other = make_bench()
    # Another order of visits, another pipeline: the sources of an exposure are a function of its bytes.
    other.process(other.event(night, 1))
    again = other.alerts(other.process(other.event(night, 0)))
    assert [source_facts(alert) for alert in again] == undisturbed


# -- who else is at work --


def test_a_lost_claim_leaves_nothing_in_the_database(bench, night):
    event = bench.event(night)
    slow = bench.order(event, lease_s=0.0)
    newcomer = bench.order(event)
    assert newcomer.claim.claims == 2
    with pytest.raises(ClaimLost):
        bench.pipeline.process(slow)
    assert set(bench.count_rows().values()) == {0}
    row = bench.row(event)
    assert (row.state, row.claims, row.outbox_uri) == (LedgerState.CLAIMED, 2, None)
    # The newcomer is not disturbed, and what it stores is its own file.
    result = bench.pipeline.process(newcomer)
    assert bench.row(event).outbox_uri == result.outbox.uri
    assert len(bench.alerts(result)) == result.outbox.n_messages


def test_a_claim_lost_while_computing_is_noticed_when_storing(bench, night, monkeypatch):
    event = bench.event(night)
    order = bench.order(event, lease_s=0.0)
    read_objects = bench.pipeline._apdb.read_objects

    def somebody_takes_over(*args, **kwargs):
        bench.order(event)
        return read_objects(*args, **kwargs)

    monkeypatch.setattr(bench.pipeline._apdb, "read_objects", somebody_takes_over)
    with pytest.raises(ClaimLost):
        bench.pipeline.process(order)
    assert set(bench.count_rows().values()) == {0}
    assert bench.row(event).state is LedgerState.CLAIMED


def test_an_exposure_that_is_stored_is_not_stored_twice(bench, night):
    event = bench.event(night)
    order = bench.order(event)
    first = bench.pipeline.process(order)
    before = bench.count_rows()
    with pytest.raises(ClaimLost):
        bench.pipeline.process(order)
    assert bench.count_rows() == before
    assert bench.row(event).outbox_sha256 == first.outbox.sha256


def test_a_moved_history_is_associated_again_and_the_pixels_are_kept(bench, night, monkeypatch):
    # While the second visit is associated, another worker stores the first one.
    colleague = WorkerPipeline(bench.config)()
    colleagues_order = bench.order(bench.event(night, 0))
    read_objects, reads = bench.pipeline._apdb.read_objects, []

    def read_and_let_the_other_store(*args, **kwargs):
        objects, versions = read_objects(*args, **kwargs)
        reads.append(objects.n_rows)
        if len(reads) == 1:
            colleague.process(colleagues_order)
        return objects, versions

    task = bench.pipeline._instruments[NIGHT.instrument].task
    run, runs = task.run, []
    monkeypatch.setattr(task, "run", lambda **inputs: runs.append(1) or run(**inputs))
    monkeypatch.setattr(bench.pipeline._apdb, "read_objects", read_and_let_the_other_store)
    result = bench.process(bench.event(night, 1))
    assert result.outcome == "stored"
    assert len(runs) == 1
    assert len(reads) == 2
    assert reads[0] == 0
    assert reads[1] > 0
    alerts = bench.alerts(result)
    assert result.counts["matched_objects"] == sum(alert["prvDiaSources"] is not None for alert in alerts) > 2
    # No object was made twice.
    assert bench.count_rows()["dia_object"] == reads[1] + result.counts["new_objects"]


def test_a_history_that_never_rests_is_tried_later(bench, night, monkeypatch):
    read_objects, reads = bench.pipeline._apdb.read_objects, []

    def read_and_move(*args, **kwargs):
        objects, versions = read_objects(*args, **kwargs)
        reads.append(1)
        with bench.database.write() as connection:
            connection.execute(sa.delete(SKY_CELL))
            connection.execute(sa.insert(SKY_CELL), [{"cell": cell, "version": 1000 + len(reads)} for cell in versions])
        return objects, versions

    monkeypatch.setattr(bench.pipeline._apdb, "read_objects", read_and_move)
    event = bench.event(night)
    with pytest.raises(StoreUnavailable, match="moved 20 times"):
        bench.process(event)
    assert len(reads) == 20
    assert bench.row(event).state is LedgerState.CLAIMED
    assert bench.count_rows()["dia_source"] == 0


def test_a_failed_exposure_can_be_tried_again_with_the_same_ids(bench, night, monkeypatch, undisturbed):
    order = bench.order(bench.event(night))
    with monkeypatch.context() as broken:

        def away(*args, **kwargs):
            raise StoreUnavailable("the database is locked")

        broken.setattr(bench.pipeline._apdb, "store_exposure", away)
        with pytest.raises(StoreUnavailable, match="locked"):
            bench.pipeline.process(order)
    again = bench.alerts(bench.pipeline.process(order))
    assert [source_facts(alert) for alert in again] == undisturbed


def test_compute_changes_no_database(bench, night):
    event = bench.event(night)
    differenced = bench.pipeline.difference(event, Stopwatch())
    assert differenced.sources.n_rows > 3
    assert set(bench.count_rows().values()) == {0}


# -- bad input --


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


# -- scores --


def test_a_scorer_by_its_name_gives_scores_that_are_stored_and_sent(
    make_bench, night, undisturbed, tmp_path, monkeypatch
):
    install(tmp_path, monkeypatch)
    bench = make_bench(alerts={"scorer": "sharpness", "scorer_options": {"name": "mine"}})
    first, second = bench.process(bench.event(night, 0)), bench.process(bench.event(night, 1))
    alerts = bench.alerts(first)
    assert [source_facts(alert) for alert in alerts] == undisturbed
    scored = {alert["diaSourceId"]: alert["diaSource"]["reliability"] for alert in alerts}
    assert all(0.0 <= score <= 1.0 for score in scored.values())
    assert {alert["diaSource"]["reliabilityVersion"] for alert in alerts} == {"mine 1.0"}
    assert first.counts["scorer_failed"] == 0
    assert first.stage_seconds["score"] > 0
    # The next visit finds them in the history.
    earlier = [row for alert in bench.alerts(second) for row in alert["prvDiaSources"] or ()]
    assert len(earlier) > 2
    for row in earlier:
        assert row["reliability"] == scored[row["diaSourceId"]]
        assert row["reliabilityVersion"] == "mine 1.0"


def test_sources_below_the_limit_are_neither_stored_nor_sent(make_bench, night, undisturbed, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch)
    options = {"scores": [0.6, 0.2]}
    bench = make_bench(alerts={"scorer": "fixed", "scorer_options": options, "min_reliability": 0.5})
    result = bench.process(bench.event(night))
    n_kept = len(range(0, len(undisturbed), 2))
    assert result.counts["dropped_low_reliability"] == len(undisturbed) - n_kept
    assert result.outbox.n_messages == bench.count_rows()["dia_source"] == n_kept
    assert bench.row(bench.event(night)).summary["counts"] == result.counts


def test_a_scorer_that_fails_degrades_the_alerts_and_loses_none(make_bench, night, undisturbed, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch)
    bench = make_bench(alerts={"scorer": "broken", "scorer_options": {"how": "raises"}, "min_reliability": 0.5})
    result = bench.process(bench.event(night))
    alerts = bench.alerts(result)
    assert [source_facts(alert) for alert in alerts] == undisturbed
    assert {alert["diaSource"]["reliability"] for alert in alerts} == {None}
    assert result.counts["scorer_failed"] == 1


# -- known bodies --


def write_ephemerides(path, alerts, *, rate=0.3, hours=0.25, **columns):
    """Predict the sources of some alerts, for a while before they were seen."""
    sources = [alert["diaSource"] for alert in alerts]
    dec = np.array([source["dec"] for source in sources])
    step = rate * hours / 24.0
    Table(
        {
            "designation": [f"2020 A{'ABCDEFGH'[k]}" for k in range(len(sources))],
            "mjd_tai": [source["midpointMjdTai"] - hours / 24.0 for source in sources],
            "ra_deg": np.array([source["ra"] for source in sources]) - step / np.cos(np.radians(dec)),
            "dec_deg": dec,
            "ra_rate_deg_d": np.full(len(sources), rate),
            "dec_rate_deg_d": np.zeros(len(sources)),
            **columns,
        }
    ).write(path, overwrite=True)
    return str(path)


def test_known_bodies_are_told_from_others_by_the_events_table(bench, make_bench, night):
    plain = bench.alerts(bench.process(bench.event(night)))
    table = write_ephemerides(bench.folder / "bodies.ecsv", plain[:2], h=[18.5, 19.5], u_param=[0, 3])
    other = make_bench()
    result = other.process(other.event(night, ephemeris_uri=table))
    alerts = other.alerts(result)
    bodies = {alert["ssSource"]["designation"]: alert for alert in alerts if alert["ssSource"] is not None}
    assert set(bodies) == {"2020 AA", "2020 AB"}
    assert [alert["diaSourceId"] for alert in bodies.values()] == [alert["diaSourceId"] for alert in plain[:2]]
    assert result.counts["solar_system"] == result.counts["solar_system_expected"] == 2
    assert "ephemerides_failed" not in result.counts
    body = bodies["2020 AA"]
    assert body["ssSource"]["ephOffset"] < 0.05
    assert body["ssSource"]["ephRateRa"] == pytest.approx(0.3)
    assert (body["mpc_orbits"]["h"], body["mpc_orbits"]["u_param"], body["mpc_orbits"]["e"]) == (18.5, 0, None)
    assert body["diaObject"] is body["prvDiaSources"] is body["prvDiaForcedSources"] is None
    keys = [message.key for message in read_outbox(result.outbox.uri, result.outbox.sha256)]
    assert b"%d" % int.from_bytes(b"K20A00A", "big") in keys
    # They are stored as what they are, and found no object.
    rows = other.count_rows()
    assert (rows["dia_source"], rows["dia_object"]) == (len(plain), len(plain) - 2)
    with other.database.read() as connection:
        stored = connection.execute(sa.select(DIA_SOURCE.c.ss_object_id).where(DIA_SOURCE.c.ss_object_id != 0))
        assert set(stored.scalars()) == {alert["ssSource"]["ssObjectId"] for alert in bodies.values()}


def test_the_configurations_table_serves_events_that_name_none(bench, make_bench, night):
    plain = bench.alerts(bench.process(bench.event(night)))
    table = write_ephemerides(bench.folder / "bodies.ecsv", plain[:1])
    other = make_bench(solar_system={"ephemeris_uri": table})
    assert other.process(other.event(night)).counts["solar_system"] == 1
    # The event's own goes before it.
    empty = write_ephemerides(bench.folder / "empty.ecsv", [])
    another = make_bench(solar_system={"ephemeris_uri": table})
    assert another.process(another.event(night, ephemeris_uri=empty)).counts["solar_system"] == 0


@pytest.mark.parametrize("trouble", ["missing", "broken", "of something else"])
def test_a_table_that_cannot_be_used_costs_the_names_of_bodies_and_nothing_else(bench, night, undisturbed, trouble):
    path = bench.folder / "bodies.ecsv"
    if trouble == "broken":
        path.write_bytes(b"\x89PNG")
    elif trouble == "of something else":
        Table({"star": ["Vega"]}).write(path)
    result = bench.process(bench.event(night, ephemeris_uri=str(path)))
    assert result.outcome == "stored"
    assert [source_facts(alert) for alert in bench.alerts(result)] == undisturbed
    assert result.counts["ephemerides_failed"] == 1
    assert result.counts["solar_system"] == 0


# -- late exposures --


def test_an_exposure_that_is_processed_late_knows_nothing_of_what_came_after(bench, night):
    late_event = bench.event(night, 0)
    later = bench.alerts(bench.process(bench.event(night, 1)))
    late = bench.process(late_event)
    alerts = bench.alerts(late)
    assert late.counts["matched_objects"] > 2
    for alert in alerts:
        assert alert["prvDiaSources"] is None
        assert alert["diaObject"]["nDiaSources"] == 1
        assert alert["diaObject"]["lastDiaSourceMjdTai"] == alert["diaSource"]["midpointMjdTai"]
        assert {forced["visit"] for forced in alert["prvDiaForcedSources"]} <= {late_event.visit}
    # It belongs to the object that the later visit made; what is stored of that knows both.
    object_ids = {alert["diaObject"]["diaObjectId"] for alert in alerts}
    assert len(object_ids & {alert["diaObject"]["diaObjectId"] for alert in later}) == late.counts["matched_objects"]
    with bench.database.read() as connection:
        counts = connection.execute(sa.select(DIA_OBJECT.c.n_dia_sources)).scalars().all()
    assert counts.count(2) == late.counts["matched_objects"]


def test_stages_that_are_entered_again_add_up():
    watch = Stopwatch()
    watch.add("store", 1.0)
    with watch.stage("store"):
        pass
    assert 1.0 <= watch.seconds["store"] < 1.5
    with pytest.raises(ArithmeticError), watch.stage("load"):
        raise ArithmeticError
    assert "load" in copy.copy(watch.seconds)


def test_alerts_that_are_too_large_for_the_brokers_go_out_without_what_is_large(bench, night, monkeypatch):
    limit = 20_000
    monkeypatch.setattr(pipeline_module, "_MAX_ALERT_BYTES", limit)
    result = bench.process(bench.event(night))
    messages = list(read_outbox(result.outbox.uri, result.outbox.sha256))
    assert result.counts["shortened_alerts"] == len(messages) > 0
    for message in messages:
        assert len(message.value) <= limit
        assert dict(message.headers)["left_out"] == b"cutouts"
        assert decode_alert(message.value)["cutoutDifference"] is None
