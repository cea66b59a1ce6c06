"""The daemon with real worker processes and a broker in memory: what becomes of each kind of event."""

import dataclasses
import threading
import time
from pathlib import Path

import pytest
from daemon_bench import make_bench
from daemon_fakes import N_ALERTS, MemoryProducer, make_event

from alertprod.errors import BrokerUnavailable, ConfigError, StoreUnavailable
from alertprod.service.daemon import EXIT_FATAL, EXIT_OK
from alertprod.service.reload import Reloaded
from alertprod.service.steps import Identity
from alertprod.service.work import WorkOrder
from alertprod.store.ledger import EventPosition, ExposureKey, LedgerState
from alertprod.stream.dead_letter import REPLAY_HEADER, parse_dead_letter
from alertprod.stream.errors import MessageRefused, ProducerFenced
from alertprod.stream.messages import NextVisit, decode_visit_summary, encode_event, hash_bodies
from alertprod.stream.records import Lane, Received

OLD = {"shutter_open_mjd_tai": 60_000.0, "shutter_close_mjd_tai": 60_000.1}

EVENTS = {
    # partition: visits in the order they are sent, each with what the pipeline is to do
    0: [(1, "store"), (2, "nothing"), (3, "crash"), (4, "store")],
    1: [(11, "corrupt"), (12, "crash once"), (13, "bug"), (14, "store")],
    2: [(21, "hang once"), (22, "bad"), (23, "away 2"), (24, "lose claim once")],
    3: [(31, "no image"), (32, "eat once"), (33, "store, die once"), (34, "unpicklable")],
}


class Night:
    """A night that is over: what was published, and what the ledger says."""

    def __init__(self, bench, status):
        self.bench, self.status = bench, status
        self.summaries = {}
        for message in bench.broker.of("visit-summary"):
            summary = decode_visit_summary(message.value)
            self.summaries.setdefault(summary.visit, []).append(summary)
        self.letters = {}
        for n, message in enumerate(bench.broker.of("visit-ready-dead-letters")):
            said = parse_dead_letter(
                Received(topic="", partition=0, offset=n, key=message.key, value=message.value, headers=message.headers)
            )
            self.letters[said.visit] = said

    def row(self, visit):
        return self.bench.ledger.get(ExposureKey("Camera", visit, 0))

    def alerts(self, visit):
        mark = f" of Camera/{visit}/0 ".encode()
        return [message for message in self.bench.broker.of("alerts") if mark in message.value]


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Every kind of event on four lanes and two workers, until all offsets are committed."""
    bench = make_bench(
        tmp_path_factory.mktemp("night"), workers=2, partitions=4, image_wait_s=0.3, max_event_age_s=3600.0
    )
    broker = bench.broker
    for partition, visits in EVENTS.items():
        for visit, does in visits:
            broker.send_event(make_event(visit, does=does), partition=partition)
    broker.send_event(make_event(1), partition=0)  # again
    broker.send_event(make_event(1, replay=True), partition=0)
    broker.send_event(make_event(15, **OLD), partition=1)
    broker.send_event(make_event(15, replay=True, **OLD), partition=1)
    broker.send_event(make_event(16, replay=True, **OLD), partition=1)
    broker.send_event(make_event(17, instrument="Unheard-of"), partition=1)
    broker.send("visit-ready", b"\x00garbage", partition=1)
    broker.send_event(make_event(25, does="corrupt once"), partition=2)
    broker.send_event(make_event(25, does="corrupt once"), partition=2)  # again, and once more as a replay
    broker.send_event(make_event(25, does="corrupt once"), partition=2, headers=[(REPLAY_HEADER, b"dead-letter")])
    broker.send(
        "next-visit",
        encode_event(
            NextVisit(instrument="Camera", visit=99, band="r", ra_deg=1, dec_deg=2, shutter_opens_at_mjd_tai=99_000.0)
        ),
    )
    broker.send("next-visit", b"garbage")
    broker.fail_publish = [BrokerUnavailable("away"), BrokerUnavailable("away")]
    bench.start()
    bench.wait_until(
        lambda: all(broker.committed.get(lane, 0) == len(log) for lane, log in broker.log.items()), timeout_s=120
    )
    return Night(bench, bench.stop())


def test_all_is_done_and_the_daemon_ends_well(night):
    assert night.status == EXIT_OK
    assert night.bench.consumer.closed
    assert night.bench.sample("inflight") == 0
    states = night.bench.ledger.count_by_state()
    assert LedgerState.CLAIMED not in states
    assert LedgerState.STORED not in states


@pytest.mark.parametrize("visit", [1, 4, 12, 14, 16, 21, 23, 24, 25, 32, 33])
def test_what_can_be_stored_is_published_once_with_its_summary(night, visit):
    alerts = night.alerts(visit)

    assert len(alerts) == N_ALERTS
    assert [alert.key for alert in alerts] == [b"0", b"1", b"2"]
    assert night.row(visit).state == LedgerState.PUBLISHED
    published = [summary for summary in night.summaries[visit] if summary.outcome == "published"]
    assert len(published) == 1
    assert published[0].n_alerts == N_ALERTS
    assert published[0].sha256 == hash_bodies(alert.value for alert in alerts) == night.row(visit).outbox_sha256
    assert published[0].counts == {"dia_sources": N_ALERTS}
    assert published[0].figures == {"kernel_sum": 1.0}
    assert published[0].versions["config_hash"] == "c0ffee"


def test_alerts_summary_and_offset_are_one_transaction(night):
    for messages, offsets in night.bench.broker.transactions:
        assert len(offsets) == 1
        alerts = [message for message in messages if message.topic == "alerts"]
        summaries = [decode_visit_summary(m.value) for m in messages if m.topic == "visit-summary"]
        if alerts:
            assert [summary.outcome for summary in summaries] == ["published"]


def test_offsets_of_a_lane_are_committed_in_order(night):
    seen = {}
    for _, (offset,) in night.bench.broker.transactions:
        assert offset.offset == seen.get(offset.lane, 0) + 1
        seen[offset.lane] = offset.offset


@pytest.mark.parametrize(
    ("visit", "reason", "deaths"),
    [
        (3, "worker_died", 3),
        (11, "corrupt_image", 0),
        (13, "unexpected", 0),
        (22, "bad_subtraction", 0),
        (31, "image_not_yet_available", 0),
        (34, "unexpected", 0),
    ],
)
def test_what_cannot_be_done_is_a_dead_letter_with_its_reason(night, visit, reason, deaths):
    letter = night.letters[visit]

    assert (letter.reason, letter.worker_deaths, letter.stage) == (reason, deaths, "compute")
    assert (letter.version, letter.config_hash) == ("1.0", "c0ffee")
    (summary,) = night.summaries[visit]
    assert (summary.outcome, summary.reason, summary.n_alerts) == ("dead_lettered", reason, 0)
    row = night.row(visit)
    assert (row.state, row.reason, row.worker_deaths) == (LedgerState.DEAD_LETTERED, reason, deaths)
    assert night.alerts(visit) == []


def test_a_bugs_traceback_travels_with_the_dead_letter(night):
    assert "no such key" in night.letters[13].stacktrace


def test_numbers_of_a_processing_error_survive_the_way_from_the_worker(night):
    assert night.letters[22].message == "residual ratio is 7, the limit is 2"


def test_events_that_cannot_be_read_or_are_nobodys_are_dead_letters_without_summary(night):
    reasons = [dict(m.headers)["alertprod-error-reason"] for m in night.bench.broker.of("visit-ready-dead-letters")]

    assert reasons.count(b"invalid_event") == 2
    assert any(b"Unheard-of" in message.value for message in night.bench.broker.of("visit-ready-dead-letters"))
    assert night.letters[None].stage == "receive"
    assert 17 not in night.summaries


def test_nothing_to_do_is_a_summary_and_no_dead_letter(night):
    (summary,) = night.summaries[2]

    assert (summary.outcome, summary.reason) == ("skipped", "no_template_coverage")
    assert night.row(2).state == LedgerState.SKIPPED
    assert 2 not in night.letters


def test_an_old_event_is_expired_until_it_is_a_replay(night):
    assert [summary.outcome for summary in night.summaries[15]] == ["expired", "published"]
    assert len((night.bench.folder / "diary" / "15.0").read_text().splitlines()) == 1
    assert night.row(15).claims == 2
    assert night.row(16).state == LedgerState.PUBLISHED


def test_a_duplicate_is_counted_and_committed_and_a_replay_goes_to_its_own_topic(night):
    assert night.bench.sample("exposures_total", instrument="Camera", outcome="duplicate") == 2  # visits 1 and 25
    assert night.bench.sample("exposures_total", instrument="Camera", outcome="replayed") == 1
    replayed = night.bench.broker.of("alerts-replay")
    assert [message.value for message in replayed] == [message.value for message in night.alerts(1)]
    assert len((night.bench.folder / "diary" / "1.0").read_text().splitlines()) == 1


def test_a_dead_letter_replay_is_claimed_again(night):
    assert [summary.outcome for summary in night.summaries[25]] == ["dead_lettered", "published"]
    assert night.row(25).claims == 2


def test_a_worker_that_stored_and_died_is_not_computed_again(night):
    stored = {message.value.rpartition(b" ")[2] for message in night.alerts(33)}
    processes = [line.split()[0] for line in (night.bench.folder / "diary" / "33.0").read_text().splitlines()]

    assert stored == {processes[0].encode()}  # the bytes of the first worker, which died after it had stored them


def test_announced_pointings_are_prefetched_and_garbage_is_not(night):
    assert [event.visit for event in night.bench.prefetched] == [99]
    assert night.bench.broker.committed[Lane("next-visit", 0)] == 2
    assert night.bench.sample("prefetches_total", outcome="invalid") == 1


def test_every_exposure_is_counted_once_by_its_outcome(night):
    def outcome(name):
        return night.bench.sample("exposures_total", instrument="Camera", outcome=name)

    assert outcome("published") == 12
    assert outcome("dead_lettered") == 7  # 25 was one before it was published
    assert (outcome("skipped"), outcome("expired")) == (1, 1)
    assert night.bench.sample("exposures_expected_total", instrument="Camera") == 19
    assert night.bench.sample("alerts_total", instrument="Camera", outcome="acked") == 12 * N_ALERTS
    labels = {"instrument": "Camera", "band": "r"}
    # 15, 16 and 25 were sent again on purpose: their latency says nothing.
    assert night.bench.sample("shutter_to_ack_seconds_count", **labels) == (12 - 3) * N_ALERTS
    assert night.bench.sample("shutter_to_published_seconds_count", **labels) == 12 - 3
    assert night.bench.sample("retries_total", reason="broker_unavailable") == 2
    assert night.bench.sample("template_cache_misses_total") == 2 * 11  # the one of visit 33 died with its worker


def test_worker_deaths_are_counted_by_cause(night):
    def deaths(cause):
        return night.bench.sample("worker_deaths_total", cause=cause)

    assert (deaths("deadline"), deaths("memory")) == (1, 1)
    assert deaths("crash") == 3 + 1 + 1


# Smaller scenes, each with a daemon of its own; what needs no worker does not wait for one to be warm.


def store_row(bench, visit, *, offset, owner="daemon-0", lease_s=60.0):
    """Store an exposure as a worker of an earlier daemon would have."""
    event = make_event(visit)
    position = EventPosition("visit-ready", 0, offset)
    claim = bench.ledger.claim(ExposureKey("Camera", visit, 0), owner=owner, lease_s=lease_s, event=position)
    order = WorkOrder(event=event, position=position, claim=claim, received_unix_s=time.time(), deadline_s=9.0)
    return bench.factory()._store(order).outbox


def test_on_assignment_stored_rows_below_the_committed_offset_are_settled_and_others_published(bench):
    for visit in range(3):
        bench.broker.send_event(make_event(visit))
    store_row(bench, 0, offset=0)
    unpublished = store_row(bench, 1, offset=1)
    bench.broker.committed[Lane("visit-ready", 0)] = 1
    bench.start()

    bench.wait_until(lambda: len(bench.broker.transactions) == 2)
    assert bench.stop() == EXIT_OK

    first, second = bench.broker.transactions
    assert hash_bodies(m.value for m in first[0] if m.topic == "alerts") == unpublished.sha256
    assert first[1][0].offset == 2
    assert decode_visit_summary(first[0][-1].value).visit == 1
    assert decode_visit_summary(second[0][-1].value).visit == 2  # the event of visit 1 is not taken again
    assert [bench.ledger.get(ExposureKey("Camera", n, 0)).state for n in range(3)] == [LedgerState.PUBLISHED] * 3
    assert bench.sample("exposures_total", instrument="Camera", outcome="duplicate") == 0


def test_a_predecessors_claim_is_taken_over_without_waiting_for_its_lease(bench):
    key = ExposureKey("Camera", 5, 0)
    bench.ledger.claim(key, owner="daemon-0", lease_s=3600)
    bench.broker.send_event(make_event(5))
    bench.start()

    bench.wait_until(lambda: len(bench.broker.transactions) == 1)

    assert bench.ledger.get(key).claims == 2


def test_somebody_elses_claim_is_left_alone_until_its_lease_is_over(bench):
    key = ExposureKey("Camera", 5, 0)
    bench.ledger.claim(key, owner="another", lease_s=6.0)
    until = time.time() + 6.0
    bench.broker.send_event(make_event(5))
    bench.start()

    bench.wait_until(lambda: len(bench.broker.transactions) == 1)

    assert time.time() >= until
    assert bench.ledger.get(key).owner == "daemon-0"


def test_a_fenced_producer_ends_the_daemon_so_that_it_is_restarted(bench):
    bench.broker.fail_publish = [ProducerFenced("somebody has our transactional id")]
    bench.broker.send_event(make_event(1))
    bench.start()
    bench.thread.join(60.0)

    assert bench.status == EXIT_FATAL
    assert bench.broker.published == []
    assert bench.ledger.get(ExposureKey("Camera", 1, 0)).state == LedgerState.STORED


def test_a_revoked_partitions_exposure_is_finished_before_it_is_let_go(bench):
    bench.broker.send_event(make_event(1, does="sleep 1"))
    bench.start()
    bench.wait_until((bench.folder / "diary" / "1.0").exists)

    bench.consumer.revoke_next = frozenset({Lane("visit-ready", 0)})
    bench.wait_until(lambda: not bench.consumer.revoke_next)
    bench.wait_until(lambda: Lane("visit-ready", 0) not in bench.consumer.assigned)

    assert len(bench.broker.of("alerts")) == N_ALERTS
    assert bench.stop() == EXIT_OK


def test_a_revoked_partitions_exposure_that_takes_too_long_is_dropped_and_its_claim_released(tmp_path):
    bench = make_bench(tmp_path, revoke_s=0.5)
    bench.broker.send_event(make_event(1, does="sleep 2.5"))
    bench.start()
    bench.wait_until((bench.folder / "diary" / "1.0").exists)

    bench.consumer.revoke_next = frozenset({Lane("visit-ready", 0)})
    bench.wait_until(lambda: Lane("visit-ready", 0) not in bench.consumer.assigned)
    assert bench.stop() == EXIT_OK

    row = bench.ledger.get(ExposureKey("Camera", 1, 0))
    assert (row.state, row.lease_until_unix_s, row.worker_deaths) == (LedgerState.CLAIMED, 0.0, 0)
    assert bench.broker.published == []


def test_stopping_drains_what_is_in_flight_and_leaves_the_rest(bench):
    bench.broker.send_event(make_event(1, does="sleep 1"), partition=0)
    bench.broker.send_event(make_event(2), partition=0)
    bench.broker.send_event(make_event(3), partition=1)  # waits for the one worker
    bench.start()
    bench.wait_until((bench.folder / "diary" / "1.0").exists)

    assert bench.stop() == EXIT_OK

    assert decode_visit_summary(bench.broker.of("visit-summary")[-1].value).visit == 1
    assert bench.broker.committed[Lane("visit-ready", 0)] == 1
    assert bench.ledger.get(ExposureKey("Camera", 2, 0)) is None


def test_an_event_claimed_too_often_runs_with_nothing_beside_it(tmp_path):
    bench = make_bench(tmp_path, workers=2)
    key = ExposureKey("Camera", 1, 0)
    for _ in range(3):
        bench.ledger.release_claim(bench.ledger.claim(key, owner="daemon-0", lease_s=60))
    bench.broker.send_event(make_event(1, does="sleep 1"), partition=0)
    bench.broker.send_event(make_event(2, does="sleep 1"), partition=1)
    bench.start()
    bench.wait_until(lambda: len(bench.broker.transactions) == 2)
    bench.stop()

    started = {n: float((tmp_path / "diary" / f"{n}.0").read_text().split()[1]) for n in (1, 2)}
    assert abs(started[1] - started[2]) >= 1.0


def test_a_ledger_that_is_away_is_waited_for(bench, monkeypatch):
    claim, failures = bench.ledger.claim, [StoreUnavailable("locked")] * 3

    def failing(*args, **kwargs):
        if failures:
            raise failures.pop()
        return claim(*args, **kwargs)

    monkeypatch.setattr(bench.ledger, "claim", failing)
    bench.broker.send_event(make_event(1))
    bench.start()

    bench.wait_until(lambda: len(bench.broker.transactions) == 1)

    assert bench.sample("retries_total", reason="store_unavailable") == 3
    assert len(bench.broker.of("alerts")) == N_ALERTS


def test_a_settle_that_fails_is_made_up_for_by_the_committed_offset(bench, monkeypatch):
    settled = bench.ledger.mark_published

    def failing(_key):
        raise StoreUnavailable("locked")

    monkeypatch.setattr(bench.ledger, "mark_published", failing)
    bench.broker.send_event(make_event(1))
    bench.start()
    bench.wait_until(lambda: len(bench.broker.transactions) == 1)
    bench.stop()
    assert bench.ledger.get(ExposureKey("Camera", 1, 0)).state == LedgerState.STORED

    monkeypatch.setattr(bench.ledger, "mark_published", settled)
    bench.start()
    bench.wait_until(lambda: bench.ledger.get(ExposureKey("Camera", 1, 0)).state == LedgerState.PUBLISHED)
    bench.stop()

    assert len(bench.broker.of("alerts")) == N_ALERTS


def test_a_missing_outbox_file_is_a_dead_letter_once_the_event_is_too_old(tmp_path):
    bench = make_bench(tmp_path, max_event_age_s=6.0)
    bench.broker.send_event(make_event(1))
    outbox = store_row(bench, 1, offset=0)
    Path(outbox.uri).unlink()
    bench.start()

    bench.wait_until(lambda: len(bench.broker.transactions) == 1)
    bench.stop()

    (message, _summary), _ = bench.broker.transactions[0]
    assert dict(message.headers)["alertprod-error-reason"] == b"corrupt_outbox"


def test_a_producer_that_cannot_start_keeps_everything_waiting(bench):
    class SlowProducer(MemoryProducer):
        attempts = 0

        def start(self):
            self.attempts += 1
            if self.attempts < 3:
                time.sleep(0.1)
                raise BrokerUnavailable("no answer")

    store_row(bench, 1, offset=0)
    bench.broker.send_event(make_event(1))
    producer = SlowProducer(bench.broker)
    bench.start(producer=producer)

    bench.wait_until(lambda: len(bench.broker.transactions) == 1)

    assert producer.attempts == 3


def test_readiness_follows_workers_and_store(bench, monkeypatch):
    assert "start" in bench.health.problems()
    bench.start()
    bench.wait_until(lambda: not bench.health.problems())
    assert bench.health.live()[0]
    bench.stop()
    assert "start" in bench.health.problems()


def test_a_stored_exposure_that_cannot_be_published_is_dead_lettered_in_the_ledger_too(tmp_path):
    bench = make_bench(tmp_path, outbox_wait_s=0.3)
    bench.broker.send_event(make_event(1))
    bench.broker.send_event(make_event(2))
    outbox = store_row(bench, 1, offset=0)
    Path(outbox.uri).unlink()
    bench.start()

    bench.wait_until(lambda: len(bench.broker.transactions) == 2)  # its lane goes on
    assert bench.stop() == EXIT_OK

    row = bench.ledger.get(ExposureKey("Camera", 1, 0))
    assert (row.state, row.reason) == (LedgerState.DEAD_LETTERED, "corrupt_outbox")
    bench.start()  # and the committed offset does not make it published
    bench.wait_until(lambda: not bench.health.problems())
    assert bench.stop() == EXIT_OK
    assert bench.ledger.get(ExposureKey("Camera", 1, 0)).state == LedgerState.DEAD_LETTERED


def test_an_alert_that_the_broker_refuses_ends_its_exposure_and_not_its_lane(bench):
    bench.broker.fail_publish = [MessageRefused("alerts", b"1", 1 << 24, "too large")]
    bench.broker.send_event(make_event(1))
    bench.broker.send_event(make_event(2))
    bench.start()

    bench.wait_until(lambda: len(bench.broker.transactions) == 2)
    assert bench.stop() == EXIT_OK

    states = [bench.ledger.get(ExposureKey("Camera", visit, 0)) for visit in (1, 2)]
    assert [row.state for row in states] == [LedgerState.DEAD_LETTERED, LedgerState.PUBLISHED]
    assert states[0].reason == "message_refused"


def test_the_replay_of_a_dead_letter_whose_exposure_is_published_by_now_is_refused(bench):
    bench.broker.send_event(make_event(1))
    bench.broker.send_event(make_event(1), headers=[(REPLAY_HEADER, b"dead-letter")])
    bench.start()

    bench.wait_until(lambda: bench.sample("exposures_total", instrument="Camera", outcome="duplicate") == 1)
    assert bench.stop() == EXIT_OK

    assert len(bench.broker.of("alerts")) == N_ALERTS


def test_an_event_that_names_a_file_outside_the_allowed_roots_is_a_dead_letter(tmp_path):
    bench = make_bench(tmp_path)
    store = bench.config.store.model_copy(update={"allowed_roots": ("/data", "s3://night/")})
    bench.config = bench.config.model_copy(update={"store": store})
    good = ("/data/1.fits", "file:///data/deep/2.fits", "s3://night/3.fits")
    bad = ("/etc/passwd", "/data/../etc/passwd", "https://elsewhere/4.fits", "s3://nightly/5.fits", "s3://night/../6.fits",
           "simplecache::s3://night/7.fits")  # fmt: skip
    for visit, uri in enumerate((*good, *bad)):
        bench.broker.send_event(make_event(visit, calexp_uri=uri))
    bench.start()

    bench.wait_until(lambda: len(bench.broker.transactions) == len(good) + len(bad))
    assert bench.stop() == EXIT_OK

    assert len(bench.broker.of("alerts")) == N_ALERTS * len(good)
    letters = bench.broker.of("visit-ready-dead-letters")
    assert [dict(letter.headers)["alertprod-error-reason"] for letter in letters] == [b"invalid_event"] * len(bad)


def test_without_allowed_roots_nothing_is_fetched_over_a_network(bench):
    bench.broker.send_event(make_event(1, calexp_uri="http://169.254.169.254/latest"))
    bench.start()

    bench.wait_until(lambda: len(bench.broker.transactions) == 1)

    assert bench.broker.of("visit-ready-dead-letters")


def test_a_reload_changes_limits_at_once_and_workers_after_what_they_are_at(bench):
    bench.reload = lambda holds: Reloaded(
        config=holds.model_copy(update={"limits": holds.limits.model_copy(update={"max_event_age_s": 1.0})}),
        left_out=("kafka",),
        identity=Identity(owner="daemon-0", version="1.0", config_hash="another"),
        pipeline=dataclasses.replace(bench.factory, outbox=f"{bench.folder}/outbox2"),
        prefetch=None,
    )
    bench.broker.send_event(make_event(1, does="sleep 1"))
    bench.start()
    bench.wait_until((bench.folder / "diary" / "1.0").exists)
    before = bench.workers.process_ids()

    bench.daemon.request_reload()
    bench.wait_until(lambda: bench.sample("reloads_total", outcome="done") == 1)
    bench.wait_until(lambda: len(bench.broker.transactions) == 1)
    bench.wait_until(lambda: bench.workers.n_idle == 1 and bench.workers.process_ids() != before)
    bench.broker.send_event(make_event(2))  # five seconds old: too old now
    bench.broker.send_event(make_event(3, replay=True))
    bench.wait_until(lambda: len(bench.broker.transactions) == 3)
    assert bench.stop() == EXIT_OK

    summaries = [decode_visit_summary(message.value) for message in bench.broker.of("visit-summary")]
    assert [summary.outcome for summary in summaries] == ["published", "expired", "published"]
    assert [summary.versions["config_hash"] for summary in summaries[1:]] == ["another"] * 2
    assert "outbox2" in bench.ledger.get(ExposureKey("Camera", 3, 0)).outbox_uri


def test_a_reload_that_is_refused_changes_nothing(bench):
    def refuse(_holds):
        raise ConfigError("alertprod.toml", "limits.lease_s", "too small")

    bench.reload = refuse
    bench.start()
    bench.daemon.request_reload()
    bench.wait_until(lambda: bench.sample("reloads_total", outcome="refused") == 1)
    bench.broker.send_event(make_event(1))

    bench.wait_until(lambda: len(bench.broker.transactions) == 1)


def test_livez_says_idle_working_and_wedged(bench, monkeypatch):
    bench.broker.send_event(make_event(1, does="sleep 1"))
    bench.start()
    bench.wait_until(lambda: bench.health.describe()["state"] == "working")
    bench.wait_until(lambda: bench.health.describe()["state"] == "idle")
    assert bench.health.has_started

    hold = threading.Event()
    monkeypatch.setattr(bench.ledger, "claim", lambda *_args, **_kwargs: hold.wait(60.0))
    monkeypatch.setattr(bench.health, "_desks", [(name, busy, 0.3) for name, busy, _ in bench.health._desks])
    bench.broker.send_event(make_event(2))
    bench.wait_until(lambda: bench.health.describe()["state"] == "wedged")
    assert "clerk" in bench.health.live()[1]
    hold.set()


def test_a_call_of_the_client_that_never_returns_ends_the_daemon_so_that_it_is_restarted(bench):
    producer = MemoryProducer(bench.broker)
    bench.start(producer=producer)
    bench.wait_until(lambda: not bench.health.problems())

    producer.overdue_s = 31.0
    bench.thread.join(60.0)

    assert bench.status == EXIT_FATAL


def test_what_waits_to_be_published_for_a_lost_lane_is_not_published_when_the_lane_comes_back(bench):
    """The lane is ours again, its offset has not moved: whoever looks it up now publishes it, and nobody else."""
    hold = threading.Event()
    publish = MemoryProducer.publish

    class SlowProducer(MemoryProducer):
        def publish(self, messages, *arguments, **named):
            hold.wait(60.0)
            return publish(self, messages, *arguments, **named)

    bench.broker.send_event(make_event(1), partition=0)
    bench.broker.send_event(make_event(2), partition=1)
    bench.start(producer=SlowProducer(bench.broker))
    rows = [ExposureKey("Camera", visit, 0) for visit in (1, 2)]
    bench.wait_until(lambda: all((row := bench.ledger.get(key)) and row.state == LedgerState.STORED for key in rows))
    lanes = frozenset(Lane("visit-ready", n) for n in (0, 1))
    bench.wait_until(lambda: sum(job.step.value == "publish" for job in bench.daemon._lanes.jobs) == 2)

    bench.consumer.lose_next = lanes  # one is being published, the other waits behind it
    bench.wait_until(lambda: not bench.consumer.lose_next)
    bench.wait_until(lambda: sum(job.step.value == "publish" for job in bench.daemon._lanes.jobs) == 2)
    hold.set()
    bench.wait_until(lambda: all(bench.ledger.get(key).state == LedgerState.PUBLISHED for key in rows))
    assert bench.stop() == EXIT_OK

    # The one under way had a membership that was over, which a broker refuses and this one in memory does not.
    assert len(bench.broker.of("alerts")) == N_ALERTS * 3
