"""Worker processes and their pool."""

import os
import signal
import time
from dataclasses import dataclass

import psutil
import pytest
from daemon_fakes import FakePipelineFactory, make_event

from alertprod.config import LogConfig, WorkersConfig
from alertprod.errors import CorruptImage, StoreUnavailable
from alertprod.service.work import WorkOrder
from alertprod.service.worker import Died, Finished, StartFailed, WorkerPool
from alertprod.store.database import Database
from alertprod.store.ledger import EventPosition, ExposureKey, Ledger

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class FailingFactory:
    def __call__(self):
        raise StoreUnavailable("no database")


@pytest.fixture
def ledger(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/ledger.sqlite")
    database.upgrade()
    for name in ("outbox", "diary"):
        (tmp_path / name).mkdir()
    return Ledger(database)


@pytest.fixture
def make_pool(tmp_path):
    pools = []

    def make(factory=None, **config):
        factory = factory or FakePipelineFactory(
            f"sqlite:///{tmp_path}/ledger.sqlite", str(tmp_path / "outbox"), str(tmp_path / "diary")
        )
        pools.append(WorkerPool(factory, WorkersConfig(**config), LogConfig(level="error")))
        return pools[-1]

    yield make
    for pool in pools:
        pool.stop()


def order(ledger, visit, does, deadline_s=30.0):
    event = make_event(visit, does=does)
    claim = ledger.claim(ExposureKey("Camera", visit, 0), owner="me", lease_s=60)
    return WorkOrder(
        event=event,
        position=EventPosition("visit-ready", 0, visit),
        claim=claim,
        received_unix_s=time.time(),
        deadline_s=deadline_s,
    )


def wait_for(pool, condition):
    """Poll until a report fulfils `condition`, or the pool does where it takes no report."""
    until = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until:
        for report in pool.poll():
            if condition(report):
                return report
        time.sleep(0.01)
    pytest.fail("timed out")


def wait_until_idle(pool, n=1):
    until = time.monotonic() + TIMEOUT_S
    while pool.n_idle < n:
        pool.poll()
        assert time.monotonic() < until
        time.sleep(0.01)


def is_end_of(ticket):
    return lambda report: getattr(report, "ticket", None) == ticket


def test_one_worker_stores_raises_and_reports_one_order_after_the_other(ledger, make_pool):
    pool = make_pool(count=1)
    assert pool.n_ready == 0
    wait_until_idle(pool)
    results = {}
    for ticket, does in enumerate(["store", "corrupt", "bug", "unpicklable", "store"]):
        pool.submit(ticket, order(ledger, ticket, does))
        assert (pool.n_idle, pool.n_busy) == (0, 1)
        results[ticket] = wait_for(pool, is_end_of(ticket)).result
        assert pool.n_idle == 1

    assert results[0].outcome == results[4].outcome == "stored"
    assert isinstance(results[1].error, CorruptImage)
    assert (results[1].error.hdu, results[1].error.problem) == ("IMAGE", "truncated")
    assert "KeyError" in results[2].traceback
    assert "cannot be pickled" in results[3].traceback


def test_without_an_idle_worker_an_order_is_refused(ledger, make_pool):
    with pytest.raises(RuntimeError, match="idle"):
        make_pool(count=1).submit(1, order(ledger, 1, "store"))


@pytest.mark.parametrize(("does", "cause"), [("crash", "crash"), ("hang", "deadline"), ("eat", "memory")])
def test_a_worker_that_crashes_hangs_or_outgrows_its_memory_is_replaced(ledger, make_pool, does, cause):
    pool = make_pool(count=1, memory_limit_bytes=300 << 20)
    wait_until_idle(pool)
    (victim,) = pool.process_ids()
    pool.submit(7, order(ledger, 7, does, deadline_s=1.0 if does == "hang" else 30.0))

    report = wait_for(pool, is_end_of(7))

    assert isinstance(report, Died)
    assert report.cause == cause
    assert not psutil.pid_exists(victim)
    wait_until_idle(pool)
    pool.submit(8, order(ledger, 8, "store"))
    assert isinstance(wait_for(pool, is_end_of(8)), Finished)


def test_a_worker_killed_from_outside_is_a_crash_and_loses_only_its_own_order(ledger, make_pool):
    pool = make_pool(count=2)
    wait_until_idle(pool, 2)
    pool.submit(1, order(ledger, 1, "sleep 1"))
    pool.submit(2, order(ledger, 2, "sleep 1"))
    os.kill(pool.process_ids()[0], signal.SIGKILL)

    reports = {}
    until = time.monotonic() + TIMEOUT_S
    while len(reports) < 2:
        reports.update({report.ticket: report for report in pool.poll()})
        assert time.monotonic() < until
        time.sleep(0.01)

    assert sorted(type(report).__name__ for report in reports.values()) == ["Died", "Finished"]


def test_workers_ignore_the_signals_that_are_for_the_daemon(ledger, make_pool):
    pool = make_pool(count=1)
    wait_until_idle(pool)
    (pid,) = pool.process_ids()
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    pool.submit(1, order(ledger, 1, "store"))

    assert isinstance(wait_for(pool, is_end_of(1)), Finished)


def test_a_pipeline_that_cannot_be_built_is_reported_and_tried_again_later(make_pool):
    pool = make_pool(FailingFactory(), count=1)

    report = wait_for(pool, lambda report: isinstance(report, StartFailed))

    assert isinstance(report.error, StoreUnavailable)
    assert pool.process_ids() == []  # paused
    wait_for(pool, lambda report: isinstance(report, StartFailed))


def test_stop_ends_every_process(ledger, make_pool):
    pool = make_pool(count=2)
    wait_until_idle(pool, 2)
    pids = pool.process_ids()
    pool.submit(1, order(ledger, 1, "hang"))
    started = time.monotonic()

    pool.stop()

    assert time.monotonic() - started < 5.0
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert pool.poll() == []


def test_killing_one_order_leaves_no_report(ledger, make_pool):
    pool = make_pool(count=1)
    wait_until_idle(pool)
    pool.submit(1, order(ledger, 1, "hang"))
    pool.kill(1)

    wait_until_idle(pool)
    assert pool.poll() == []


def test_workers_outlive_a_group_that_is_told_to_stop(ledger, make_pool):
    pool = make_pool(count=1)
    wait_until_idle(pool)
    (worker,) = (psutil.Process(pid) for pid in pool.process_ids())
    server = worker.parent()
    assert server.pid != os.getpid(), "it was not forked from the server"
    assert server.num_threads() == 1, "what is forked of a process with threads has locks that nobody holds"
    server.send_signal(signal.SIGTERM)
    pool.submit(7, order(ledger, 1, "store"))
    assert isinstance(wait_for(pool, is_end_of(7)), Finished)
    assert server.is_running()


def test_workers_whose_server_is_killed_finish_and_are_still_killed_when_they_hang(ledger, make_pool):
    pool = make_pool(count=2)
    wait_until_idle(pool, 2)
    before = [psutil.Process(pid) for pid in pool.process_ids()]
    server = before[0].parent()
    pool.submit(1, order(ledger, 1, "sleep 1"))
    pool.submit(2, order(ledger, 2, "hang", deadline_s=1.5))
    server.kill()
    assert wait_for(pool, is_end_of(1)).result.outcome == "stored"
    assert wait_for(pool, is_end_of(2)).cause == "deadline"
    wait_until_idle(pool, 2)
    after = [psutil.Process(pid) for pid in pool.process_ids()]
    assert len(set(before) & set(after)) == 1, "the one lives on, the other has a successor"
    assert len({process.ppid() for process in after} - {server.pid}) == 2, "from a server of its own"
    (dead,) = set(before) - set(after)
    until = time.monotonic() + TIMEOUT_S
    while dead.is_running() and dead.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_where_no_process_is_to_be_had_the_pool_says_so_and_tries_again_later(ledger, make_pool, monkeypatch):
    pool = make_pool(count=1)
    failures = [BlockingIOError(11, "Resource temporarily unavailable"), EOFError()]
    start = pool._start
    monkeypatch.setattr(pool, "_start", lambda number: start(number) if not failures else _raise(failures.pop()))
    monkeypatch.setattr("alertprod.service.worker._RESTART_FIRST_S", 0.05)
    assert "EOFError" in wait_for(pool, lambda report: isinstance(report, StartFailed)).traceback
    assert "unavailable" in wait_for(pool, lambda report: isinstance(report, StartFailed)).traceback
    wait_until_idle(pool)


def _raise(error):
    raise error
