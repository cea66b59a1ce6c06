"""Databases that are locked, read-only, frozen, dead or gone for a while, under a daemon at work on a real Kafka.

The long versions, of half a minute each, are `make test-faults`' own.
"""

import json
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg
import pytest
from daemon_fakes import make_event
from daemon_process import DaemonProcess
from daemon_site import Site, make_site, report

if TYPE_CHECKING:
    from postgres_server import PostgresServer

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

LONG = pytest.mark.faults

Trouble = Callable[[], AbstractContextManager[None]]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the writer's lock of a SQLite database."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=30.0)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@contextmanager
def away(path: Path) -> Iterator[None]:
    """Put the database out of reach, as a file system does that is gone: there is nothing at its place."""
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    path.mkdir()
    try:
        yield
    finally:
        path.rmdir()
        elsewhere.rename(path)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("seconds", "times"), [(4.0, 1), pytest.param(30.0, 3, marks=LONG)])
@pytest.mark.parametrize("trouble", [locked, pytest.param(away, marks=LONG)])
def test_a_database_locked_or_away_is_waited_for(sqlite_site, trouble, seconds, times):
    site = sqlite_site
    with site.start() as daemon:
        done = go_through(site, daemon, lambda: trouble(site.folder / "ledger.sqlite"), seconds=seconds, times=times)
        assert daemon.terminate() == 0
    verdict = site.check(done.visits)
    report(f"SQLite {trouble.__name__} for {seconds:.0f} s", tries=times, verdict=verdict, **done.figures)
    assert verdict.is_good, verdict


@dataclass(frozen=True)
class Done:
    """What was sent in the course of some trouble, and what to report of it."""

    visits: list[int]
    figures: dict[str, Any]


def go_through(site: Site, daemon: DaemonProcess, trouble: Trouble, *, seconds: float, times: int) -> Done:
    """Let one exposure be at work when a database goes and send two more while it is away, several times over."""
    visits: list[int] = []
    recovery_s: list[float] = []
    for _ in range(times):
        before, at_work, *meanwhile = range(len(visits) + 1, len(visits) + 5)
        visits += [before, at_work, *meanwhile]
        site.send(make_event(before), make_event(at_work, does="sleep 2"), lanes=[0, 1])
        daemon.wait_until(lambda before=before: site.is_at_work_on(before))
        site.wait_published(daemon, [before])
        daemon.wait_until(lambda at_work=at_work: site.is_at_work_on(at_work))
        with trouble():
            site.send(*map(make_event, meanwhile), lanes=[0, 1])
            time.sleep(seconds)
            assert json.loads(daemon.ask("/livez")[1])["live"]
        began = time.monotonic()
        site.wait_all_done(daemon, visits)
        recovery_s.append(time.monotonic() - began)
    # The loop is to turn every second; five are allowed to a machine that has other things to do.
    assert daemon.n_turns_beyond(5.0) == 0
    return Done(visits, {"recovery_s": recovery_s, "turns_beyond_1_s": daemon.n_turns_beyond(1.0)})


@LONG
@pytest.mark.timeout(600)
def test_a_database_on_a_read_only_file_system_is_waited_for(sqlite_site):
    """It is so when the daemon starts: what is open for writing would stay so."""
    site, visits = sqlite_site, [1, 2, 3, 4]
    files = [site.folder / f"ledger.sqlite{end}" for end in ("", "-wal", "-shm")]
    with site.start() as daemon:
        site.send(make_event(1), make_event(2), lanes=[0, 1])
        site.wait_all_done(daemon, [1, 2])
        daemon.kill()
    site.send(make_event(3), make_event(4), lanes=[0, 1])
    files = [str(path) for path in files if path.exists()]
    if subprocess.run(["chattr", "+i", *files], capture_output=True, check=False).returncode:
        pytest.skip("this user, or this file system, cannot make a file unchangeable")
    try:
        with site.start() as daemon:
            daemon.wait_until(lambda: daemon.said("recovery failed") or daemon.said("trying again"))
            time.sleep(30.0)
            assert json.loads(daemon.ask("/livez")[1])["live"]
            subprocess.run(["chattr", "-i", *files], check=True)
            began = time.monotonic()
            site.wait_all_done(daemon, visits)
            recovery = time.monotonic() - began
            assert daemon.terminate() == 0
    finally:
        subprocess.run(
            ["chattr", "-i", *files], capture_output=True, check=False
        )  # the log goes with the last connection
    verdict = site.check(visits)
    report("SQLite read-only for 30 s", tries=1, verdict=verdict, recovery_s=[recovery])
    assert verdict.is_good, verdict


@contextmanager
def read_only(server: "PostgresServer") -> Iterator[None]:
    """Let a database take no changes, as a standby or one that is moved elsewhere."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        connection.execute("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            connection.execute("SELECT pg_reload_conf()")


@contextmanager
def frozen(server: "PostgresServer") -> Iterator[None]:
    """Let a database answer nobody, and close no connection either."""
    family = server.family()
    for process in family:
        with suppress(psutil.NoSuchProcess):  # a connection that was just closed
            process.suspend()
    try:
        yield
    finally:
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.resume()


@contextmanager
def killed(server: "PostgresServer") -> Iterator[None]:
    """Take a database away with all its connections; it comes back with what it had."""
    server.kill()
    try:
        yield
    finally:
        server.start()


@LONG
@pytest.mark.postgres
@pytest.mark.timeout(900)
@pytest.mark.parametrize("trouble", [read_only, frozen, killed])
def test_a_postgresql_that_is_away_for_half_a_minute_is_waited_for(tmp_path, kafka_broker, trouble):
    from postgres_server import PostgresServer, ServerMissing

    try:
        server = PostgresServer()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    try:
        site = make_site(tmp_path, kafka_broker, database_url=server.url)
        with site.start(workers=2) as daemon:
            done = go_through(site, daemon, lambda: trouble(server), seconds=30.0, times=3)
            assert daemon.terminate() == 0
        verdict = site.check(done.visits)
        report(f"PostgreSQL {trouble.__name__} for 30 s", tries=3, verdict=verdict, **done.figures)
        assert verdict.is_good, verdict
    finally:
        server.close()
