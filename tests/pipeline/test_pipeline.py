"""`ExposurePipeline` from pixels to stored alerts, and who else is at work."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from astropy.io import fits
from made_skies import NIGHT
from pipeline_bench import source_facts

from alertprod.alerts.avro import decode_alert
from alertprod.alerts.cutouts import load_cutout
from alertprod.errors import (
    StoreUnavailable,
)
from alertprod.factory import WorkerPipeline
from alertprod.images.profile import load_profile
from alertprod.metrics import FIGURES, STAGES
from alertprod.service import pipeline as pipeline_module
from alertprod.service.pipeline import Stopwatch
from alertprod.store.ledger import ClaimLost, LedgerState
from alertprod.store.outbox import read_outbox
from alertprod.store.tables import DIA_OBJECT, SKY_CELL


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
