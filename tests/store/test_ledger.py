import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from alertprod.store.database import Database
from alertprod.store.ledger import (
    Busy,
    Claimed,
    ClaimLost,
    EventPosition,
    ExposureKey,
    Finished,
    Ledger,
    LedgerState,
    Stored,
)

KEY = ExposureKey("SimCam", 2026112200001, 7)
EVENT = EventPosition("visit-ready", 3, 41)


def claim(ledger, key=KEY, owner="a", **options):
    return ledger.claim(key, owner=owner, lease_s=60.0, event=EVENT, **options)


def store(database, ledger, claimed, n_alerts=2):
    with database.write() as connection:
        ledger.mark_stored(
            connection,
            claimed,
            n_alerts=n_alerts,
            outbox_uri=f"/outbox/{claimed.key}",
            outbox_sha256="ab",
            summary={"n": 2},
        )


def bring_to(state, database, ledger):
    claimed = claim(ledger)
    match state:
        case LedgerState.STORED:
            store(database, ledger, claimed)
        case LedgerState.PUBLISHED:
            store(database, ledger, claimed)
            ledger.mark_published(KEY)
        case LedgerState.SKIPPED:
            ledger.mark_skipped(claimed, reason="no_template_coverage")
        case LedgerState.EXPIRED:
            ledger.mark_expired(claimed, reason="too_old")
        case LedgerState.DEAD_LETTERED:
            ledger.mark_dead_lettered(claimed, reason="corrupt_image")
    return claimed


def test_a_claim_is_on_the_row_before_any_work(database, ledger, clock):
    claimed = claim(ledger, program_version="1.2", config_hash="beef")
    assert claimed == Claimed(key=KEY, claims=1, worker_deaths=0, owner="a")
    row = Ledger(database).get(KEY)
    assert (row.key, row.state, row.claims, row.owner) == (KEY, LedgerState.CLAIMED, 1, "a")
    assert (row.event, row.program_version, row.config_hash) == (EVENT, "1.2", "beef")
    assert row.lease_until_unix_s == clock.now + 60.0
    assert row.first_claimed_unix_s == row.changed_unix_s == clock.now
    assert row.outbox_uri is None
    assert row.summary is None


def test_an_exposure_nobody_claimed_has_no_row(ledger):
    assert ledger.get(KEY) is None
    assert ledger.count_by_state() == {}


@pytest.mark.parametrize("reopen", [False, True])
def test_an_alive_lease_keeps_everybody_off(ledger, clock, reopen):
    claim(ledger)
    clock.now += 59.0
    assert claim(ledger, owner="b", reopen=reopen) == Busy(owner="a", until_unix_s=clock.now + 1.0)


@pytest.mark.parametrize("reopen", [False, True])
def test_a_lease_that_is_over_is_claimed_again_by_the_next(ledger, clock, reopen):
    first = claim(ledger)
    ledger.count_worker_death(first)
    clock.now += 60.0
    again = claim(ledger, owner="b", reopen=reopen)
    assert again == Claimed(key=KEY, claims=2, worker_deaths=1, owner="b")
    assert ledger.get(KEY).first_claimed_unix_s == clock.now - 60.0


@pytest.mark.parametrize("reopen", [False, True])
def test_a_stored_exposure_is_never_claimed_again(database, ledger, clock, reopen):
    bring_to(LedgerState.STORED, database, ledger)
    clock.now += 1e6
    outcome = claim(ledger, owner="b", reopen=reopen)
    assert isinstance(outcome, Stored)
    assert outcome.row.outbox_uri == f"/outbox/{KEY}"
    assert outcome.row.outbox_sha256 == "ab"
    assert outcome.row.summary == {"n": 2}
    assert outcome.row.n_alerts == 2
    assert outcome.row.event == EVENT


@pytest.mark.parametrize("reopen", [False, True])
def test_a_published_exposure_is_never_claimed_again(database, ledger, clock, reopen):
    bring_to(LedgerState.PUBLISHED, database, ledger)
    clock.now += 1e6
    outcome = claim(ledger, owner="b", reopen=reopen)
    assert isinstance(outcome, Finished)
    assert outcome.state is LedgerState.PUBLISHED


@pytest.mark.parametrize("state", [LedgerState.SKIPPED, LedgerState.EXPIRED, LedgerState.DEAD_LETTERED])
def test_an_end_without_stored_bytes_is_final_for_events_and_open_to_a_replay(database, ledger, clock, state):
    claimed = bring_to(state, database, ledger)
    ledger.count_worker_death(claimed)
    clock.now += 1e6
    outcome = claim(ledger, owner="b")
    assert isinstance(outcome, Finished)
    assert outcome.state is state
    assert outcome.row.reason is not None
    again = claim(ledger, owner="b", reopen=True)
    assert again == Claimed(key=KEY, claims=2, worker_deaths=0, owner="b")
    row = ledger.get(KEY)
    assert (row.state, row.reason, row.summary) == (LedgerState.CLAIMED, None, None)


def test_the_row_remembers_the_event_of_the_latest_claim(ledger, clock):
    claim(ledger)
    clock.now += 60.0
    later = EventPosition("visit-ready", 5, 2)
    ledger.claim(KEY, owner="b", lease_s=1.0, event=later)
    assert ledger.get(KEY).event == later


def test_a_renewed_lease_lives_on(ledger, clock):
    claimed = claim(ledger)
    clock.now += 50.0
    assert ledger.renew(claimed, lease_s=60.0)
    clock.now += 50.0
    assert isinstance(claim(ledger, owner="b"), Busy)


def test_a_released_claim_is_free_at_once(ledger):
    assert ledger.release_claim(claim(ledger))
    assert claim(ledger, owner="b").claims == 2


@pytest.mark.parametrize("method", ["mark_skipped", "mark_expired", "mark_dead_lettered"])
def test_a_lost_claim_cannot_end_the_exposure(ledger, clock, method):
    lost = claim(ledger)
    clock.now += 60.0
    claim(ledger, owner="b")
    assert not getattr(ledger, method)(lost, reason="late")
    assert ledger.get(KEY).state is LedgerState.CLAIMED


def test_a_lost_claim_can_neither_renew_nor_release_nor_store(database, ledger, clock):
    lost = claim(ledger)
    clock.now += 60.0
    held = claim(ledger, owner="b")
    assert not ledger.renew(lost, lease_s=60.0)
    assert not ledger.release_claim(lost)
    with pytest.raises(ClaimLost, match="SimCam/2026112200001/7"):
        store(database, ledger, lost)
    store(database, ledger, held)
    with pytest.raises(ClaimLost):
        store(database, ledger, held)


def test_the_owner_may_store_after_his_lease_while_nobody_else_claimed(database, ledger, clock):
    claimed = claim(ledger)
    clock.now += 1e6
    store(database, ledger, claimed)
    assert ledger.get(KEY).state is LedgerState.STORED


def test_worker_deaths_are_counted_apart_from_claims(ledger, clock):
    claimed = claim(ledger)
    assert [ledger.count_worker_death(claimed) for _ in range(3)] == [1, 2, 3]
    row = ledger.get(KEY)
    assert (row.claims, row.worker_deaths, row.state) == (1, 3, LedgerState.CLAIMED)


def test_publishing_settles_once(database, ledger):
    bring_to(LedgerState.STORED, database, ledger)
    assert ledger.mark_published(KEY)
    assert not ledger.mark_published(KEY)
    assert ledger.count_by_state() == {LedgerState.PUBLISHED: 1}


def test_a_claim_alone_cannot_be_published(ledger):
    claim(ledger)
    assert not ledger.mark_published(KEY)


def test_stored_rows_of_a_partition_come_by_offset_and_without_the_settled(database, ledger):
    for detector, (topic, partition, offset) in enumerate(
        [("t", 0, 9), ("t", 0, 3), ("t", 1, 4), ("u", 0, 5), ("t", 0, 7), ("t", 0, 8)]
    ):
        key = ExposureKey("SimCam", 1, detector)
        claimed = ledger.claim(key, owner="a", lease_s=60.0, event=EventPosition(topic, partition, offset))
        if detector != 5:
            store(database, ledger, claimed)
    ledger.mark_published(ExposureKey("SimCam", 1, 4))
    assert [row.event.offset for row in ledger.rows_stored("t", 0)] == [3, 9]
    assert ledger.rows_stored("t", 2) == []


def test_instruments_visits_and_detectors_are_distinct(ledger):
    keys = [ExposureKey("A", 1, 2), ExposureKey("B", 1, 2), ExposureKey("A", 2, 2), ExposureKey("A", 1, 1)]
    assert all(isinstance(claim(ledger, key), Claimed) for key in keys)


def test_states_of_outboxes_leave_out_files_without_a_row(database, ledger):
    bring_to(LedgerState.STORED, database, ledger)
    assert ledger.states_of_outboxes([f"/outbox/{KEY}", "/outbox/none"]) == {f"/outbox/{KEY}": LedgerState.STORED}


def test_of_many_threads_exactly_one_claims(database_url, clock):
    n_threads, n_rounds = 4, 10
    databases = [Database(database_url) for _ in range(n_threads)]
    ledgers = [Ledger(database, clock=clock) for database in databases]
    barrier = threading.Barrier(n_threads)

    def run(i, key):
        barrier.wait()
        return ledgers[i].claim(key, owner=str(i), lease_s=60.0)

    with ThreadPoolExecutor(n_threads) as pool:
        for _ in range(2):  # new rows, then rows whose lease is over
            for n in range(n_rounds):
                key = ExposureKey("SimCam", n, 0)
                outcomes = list(pool.map(run, range(n_threads), [key] * n_threads))
                winners = [outcome for outcome in outcomes if isinstance(outcome, Claimed)]
                assert len(winners) == 1
                assert all(
                    outcome == Busy(winners[0].owner, clock.now + 60.0)
                    for outcome in outcomes
                    if outcome not in winners
                )
            clock.now += 61.0
    for database in databases:
        database.close()


def claim_all(url, owner, n, results):
    ledger = Ledger(Database(url))
    results.put(
        [n for n in range(n) if isinstance(ledger.claim(ExposureKey("P", n, 0), owner=owner, lease_s=60.0), Claimed)]
    )


def test_of_two_processes_exactly_one_claims(database_url):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=claim_all, args=(database_url, name, 60, results)) for name in "ab"]
    for process in processes:
        process.start()
    claimed = results.get(timeout=60) + results.get(timeout=60)
    for process in processes:
        process.join(30)
    assert sorted(claimed) == list(range(60))
