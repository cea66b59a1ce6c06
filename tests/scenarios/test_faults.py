"""Daemons, workers, brokers and databases that fail at the worst moments, on a real Kafka; the checker knows the truth.

The pipeline is a fake one, whose bytes tell which process made them: so many faults fit into a minute, and bytes made
anew are seen. `make test-faults` runs the long versions.
"""

import json
import os
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from datetime import datetime

import psutil
import psycopg
import pytest
from daemon_fakes import make_event
from daemon_site import Site, make_site, report
from kafka_broker import KafkaBroker
from toxic_proxy import ToxicProxy
from traps import (
    BETWEEN_ALERTS_AND_OFFSET,
    DAEMON_PLACES,
    WORKER_PLACES,
    has_sprung,
    hold_up,
    let_go,
    set_trap,
)

from alertprod.service.daemon import EXIT_FATAL
from alertprod.store.ledger import LedgerState
from alertprod.stream.dead_letter import parse_dead_letter

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

LONG = pytest.mark.faults

DATABASES = ["sqlite", pytest.param("postgres", marks=LONG)]


@pytest.fixture(params=DATABASES)
def site(request, tmp_path, kafka_broker) -> Iterator[Site]:
    if request.param == "sqlite":
        yield make_site(tmp_path, kafka_broker)
        return
    server, name = request.getfixturevalue("postgres_server"), f"faults_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield make_site(tmp_path, kafka_broker, database_url=server.rpartition("/")[0] + f"/{name}")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def kill_at(site: Site, places: list[tuple[str, str]], first_visit: int) -> tuple[list[int], list[float]]:
    """Let a victim die at each place, while it has two lanes to do; return visits and times until they were done."""
    visits, times = [], []
    daemon = site.start()
    try:
        for n, (place, victim) in enumerate(places):
            new = [first_visit + 2 * n, first_visit + 2 * n + 1]
            set_trap(site.folder, place, victim=victim)
            site.send(*(make_event(visit) for visit in new), lanes=[0, 1])
            visits += new
            if victim == "daemon":
                assert daemon.wait_dead() == -signal.SIGKILL
                began = time.monotonic()
                daemon = site.start()
            else:
                daemon.wait_until(lambda place=place: has_sprung(site.folder, place))
                began = time.monotonic()
            site.wait_all_done(daemon, new)
            times.append(time.monotonic() - began)
        assert daemon.terminate() == 0
    finally:
        daemon.__exit__()
    return visits, times


EVERY_PLACE = (
    [(place, "daemon") for place in DAEMON_PLACES]
    + [(place, "daemon") for place in WORKER_PLACES]
    + [(place, "worker") for place in WORKER_PLACES]
)


ONE_OF_EACH_STEP = [
    ("receive", "daemon"), ("claim", "daemon"), ("compute", "worker"), ("stored", "daemon"), ("commit", "daemon"),
    ("committed", "daemon"),
]  # fmt: skip


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("rounds", [0, pytest.param(5, marks=LONG)])
def test_killed_at_each_of_the_six_steps_everything_is_published_once(site, rounds):
    places = EVERY_PLACE * rounds or ONE_OF_EACH_STEP
    visits, times = kill_at(site, places, first_visit=1)

    verdict = site.check(visits)

    kind = "PostgreSQL" if site.database_url else "SQLite"
    report(f"kill -9 at each step, {kind}, {rounds} rounds", tries=len(places), verdict=verdict, recovery_s=times)
    assert verdict.is_good, verdict
    # A worker that died between file and row, the victim or beside it, leaves the one, to be removed a day later.
    assert len(site.sweep()) <= len(places)
    assert not list(site.folder.glob("traps/*"))


@LONG
@pytest.mark.timeout(1500)
def test_at_least_once_a_killed_daemon_loses_nothing_and_repeats_the_same_bytes(tmp_path, kafka_broker):
    site = make_site(tmp_path, kafka_broker, delivery="at-least-once")
    daemon_places = [place for place in DAEMON_PLACES if place != "commit"]  # which is a transaction's
    places = [(place, "daemon") for place in (*daemon_places, BETWEEN_ALERTS_AND_OFFSET, *WORKER_PLACES)]
    visits, times = kill_at(site, [*places, (BETWEEN_ALERTS_AND_OFFSET, "daemon")], first_visit=1)

    verdict = site.check(visits)

    report("kill -9 at each step, at-least-once", tries=len(places) + 1, verdict=verdict, recovery_s=times)
    assert verdict.is_good, verdict
    assert verdict.repeated > 0, "killed between the alerts and their offset, it must send them again"


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=LONG)])
def test_killed_at_random_moments_everything_is_published_once(site, kills):
    chance = random.Random(20 + kills)
    visits, times = [], []
    daemon = site.start(workers=2)
    try:
        for n in range(kills):
            new = list(range(1 + 4 * n, 5 + 4 * n))
            visits += new
            site.send(
                *(make_event(visit, does=f"sleep {chance.choice((0, 0.1, 0.4))}") for visit in new), lanes=[0, 1] * 2
            )
            if daemon.said("producer is ready"):
                time.sleep(chance.uniform(0.0, 1.2))
            else:
                daemon.wait_until(lambda daemon=daemon: daemon.said("worker is warm"))
                time.sleep(chance.uniform(0.0, 1.5))
            workers = [pid for pid in daemon.worker_pids() if psutil.pid_exists(pid)]
            if chance.random() < 0.4 and workers:
                os.kill(chance.choice(workers), signal.SIGKILL)
                continue
            daemon.kill()
            began = time.monotonic()
            daemon = site.start(workers=2)
            if n % 5 == 0:
                daemon.wait_until(lambda: site.uncommitted() == 0)
                times.append(time.monotonic() - began)
        site.wait_all_done(daemon, visits)
        assert daemon.terminate() == 0
    finally:
        daemon.__exit__()

    verdict = site.check(visits)

    kind = "PostgreSQL" if site.database_url else "SQLite"
    report(f"kill -9 at random moments, {kind}", tries=kills, verdict=verdict, recovery_s=times)
    assert verdict.is_good, verdict


@pytest.mark.timeout(900)
@pytest.mark.parametrize("times", [1, pytest.param(8, marks=LONG)])
def test_a_broker_stopped_and_started_in_the_middle_loses_nothing(sqlite_site, kafka_broker, times):
    if not isinstance(kafka_broker, KafkaBroker):
        pytest.skip("the broker of ALERTPROD_TEST_KAFKA is not ours to stop")
    site, recovery, restarts = sqlite_site, [], 0
    visits = list(range(1, 1 + 8 * times))
    daemon = site.start()
    try:
        daemon.wait_until(lambda: daemon.said("worker is warm"))
        for n in range(times):
            new = visits[8 * n : 8 * n + 8]
            site.send(*(make_event(visit, does=f"sleep {0.2 * (visit % 3)}") for visit in new), lanes=[0, 1] * 4)
            daemon.wait_until(lambda new=new: site.row(new[1]) is not None)
            kafka_broker.kill() if n % 2 else kafka_broker.stop()
            time.sleep(2.0)
            assert json.loads(daemon.ask("/livez")[1])["live"]
            kafka_broker.start()
            began = time.monotonic()
            while site.uncommitted() or any(site.row(visit).state != LedgerState.PUBLISHED for visit in new):
                if not daemon.is_alive:  # a client may be finished after that, and a supervisor is there for it
                    assert daemon.process.returncode == EXIT_FATAL
                    daemon, restarts = site.start(), restarts + 1
                assert time.monotonic() - began < 240.0, daemon.log.read_text()[-4000:]
                time.sleep(0.1)
            recovery.append(time.monotonic() - began)
        assert daemon.terminate() == 0
    finally:
        daemon.__exit__()
    verdict = site.check(visits)
    fault = "broker stopped (SIGTERM, SIGKILL) and started mid-visit"
    report(fault, tries=times, verdict=verdict, recovery_s=recovery, restarts=restarts)
    assert verdict.is_good, verdict


@LONG
@pytest.mark.timeout(900)
@pytest.mark.parametrize("goes_on", ["while it is away", "when it is back"])
def test_a_broker_that_goes_with_a_transaction_open_loses_and_repeats_nothing(sqlite_site, kafka_broker, goes_on):
    """All of the transaction is sent and acknowledged, nothing is committed; the broker is stopped, and killed."""
    if not isinstance(kafka_broker, KafkaBroker):
        pytest.skip("the broker of ALERTPROD_TEST_KAFKA is not ours to stop")
    site, visits, recovery = sqlite_site, [], []
    with site.start() as daemon:
        daemon.wait_until(lambda: daemon.said("worker is warm"))
        for n, end in enumerate((kafka_broker.stop, kafka_broker.kill) * 3):
            new = [2 * n + 1, 2 * n + 2]
            visits += new
            hold_up(site.folder, "commit")
            site.send(*map(make_event, new), lanes=[0, 1])
            daemon.wait_until(lambda: has_sprung(site.folder, "commit"))
            end()
            if goes_on == "while it is away":
                let_go(site.folder, "commit")
                time.sleep(2.0)
            kafka_broker.start()
            began = time.monotonic()
            if goes_on == "when it is back":
                let_go(site.folder, "commit")
            site.wait_all_done(daemon, new)
            recovery.append(time.monotonic() - began)
        assert daemon.terminate() == 0
    verdict = site.check(visits)
    report(f"broker gone with a transaction open, commit {goes_on}", tries=6, verdict=verdict, recovery_s=recovery)
    assert verdict.is_good, verdict


@LONG
@pytest.mark.timeout(600)
def test_a_killed_server_of_workers_costs_no_event_a_death(sqlite_site):
    """What forks the workers is killed while they are at work: they finish, and their successors come from another."""
    site, visits, tries = sqlite_site, [], 5
    with site.start(workers=2) as daemon:
        for n in range(tries):
            new = list(range(4 * n + 1, 4 * n + 5))
            visits += new
            daemon.wait_until(lambda: len(daemon.lines("worker is warm")) >= 2)
            site.send(*(make_event(visit, does="sleep 1") for visit in new), lanes=[0, 1] * 2)
            daemon.wait_until(lambda new=new: site.is_at_work_on(new[0]))
            living = [pid for pid in daemon.worker_pids() if psutil.pid_exists(pid)]
            (server,) = {psutil.Process(pid).ppid() for pid in living} & {
                child.pid for child in psutil.Process(daemon.process.pid).children()
            } or {None}
            if server is not None:
                os.kill(server, signal.SIGKILL)
            os.kill(living[n % 2], signal.SIGKILL)  # so that the next comes from a new server
            site.wait_all_done(daemon, visits)
        assert daemon.terminate() == 0
    verdict = site.check(visits)
    report("the server that forks workers killed, and a worker", tries=tries, verdict=verdict)
    assert verdict.is_good, verdict
    assert sum(site.row(visit).worker_deaths for visit in visits) <= tries, "only of those that were killed"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("moves", [1, pytest.param(12, marks=LONG)])
def test_two_daemons_rebalancing_while_they_work_lose_and_repeat_nothing(tmp_path, kafka_broker, moves):
    """A second daemon comes and goes, now stopped and now killed, while events flow; neither blocks the other for good."""
    site = make_site(tmp_path, kafka_broker, lanes=6)
    visits, chance = [], random.Random(moves)

    def send_some() -> None:
        new = list(range(len(visits) + 1, len(visits) + 13))
        visits.extend(new)
        site.send(
            *(make_event(n, does=f"sleep {chance.choice((0.05, 0.3, 0.8))}") for n in new), lanes=list(range(6)) * 2
        )

    with site.start(member=0, workers=2) as first:
        first.wait_until(lambda: first.said("worker is warm"))
        for n in range(moves):
            send_some()
            with site.start(member=1, workers=2) as second:
                second.wait_until(lambda second=second: second.said("assigned") and second.said("worker is warm"))
                send_some()
                second.wait_until(lambda second=second: second.said("claimed"))
                send_some()
                time.sleep(chance.uniform(0.0, 1.0))
                if n % 2:
                    second.kill()
                else:
                    assert second.terminate() == 0
        site.wait_all_done(first, visits)
        assert first.said("no longer assigned")
        assert first.terminate() == 0
    verdict = site.check(visits)
    report("a second daemon joins, leaves and is killed while both work", tries=2 * moves, verdict=verdict)
    assert verdict.is_good, verdict


def test_of_two_daemons_with_one_identity_one_goes_on_and_the_other_exits_to_be_restarted(sqlite_site):
    site = sqlite_site
    site.send(make_event(1), make_event(2), lanes=[0, 1])
    with site.start(static=True) as first:
        site.wait_all_done(first, [1, 2])
        with site.start(static=True) as second:
            visit, until = 3, time.monotonic() + 60.0
            while first.is_alive and second.is_alive:
                site.send(make_event(visit), make_event(visit + 1), lanes=[0, 1])
                visit += 2
                assert time.monotonic() < until
                time.sleep(0.5)
            left, gone = (second, first) if second.is_alive else (first, second)
            assert gone.process.returncode == 70
            site.wait_all_done(left, range(1, visit))
            assert left.terminate() == 0
    verdict = site.check(range(1, visit))
    report("two daemons claim one identity", tries=1, verdict=verdict)
    assert verdict.is_good, verdict


@LONG
def test_static_membership_gives_a_restarted_daemon_its_lanes_without_a_session_running_out(sqlite_site):
    site = sqlite_site
    settings = {"static": True, "session_s": 40.0}
    with site.start(**settings) as daemon:
        daemon.wait_until(lambda: daemon.said("worker is warm") and daemon.said("assigned"))
        daemon.kill()
    site.send(make_event(1))
    with site.start(**settings) as daemon:
        site.wait_all_done(daemon, [1])
        started, assigned = (datetime.fromisoformat(daemon.lines(at)[0]["time"]) for at in ("starting", "assigned"))
        assert (assigned - started).total_seconds() < 30.0
        assert daemon.terminate() == 0


def test_a_full_disk_is_waited_for(sqlite_site):
    """The outbox's disk is full: its folder is a file system of a megabyte, or, without the right to mount one, a quota's."""
    site = sqlite_site
    outbox = site.folder / "outbox"
    outbox.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(outbox)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        (outbox / "ballast").write_bytes(bytes((1 << 20) - 4096 * 8))
        with site.start() as daemon:
            site.send(make_event(1, does="large 30000"), make_event(2), lanes=[0, 1])
            daemon.wait_until(lambda: any(line["reason"] == "disk_full" for line in daemon.lines("trying again")))
            began = time.monotonic()
            (outbox / "ballast").unlink()
            site.wait_all_done(daemon, [1, 2])
            recovery = time.monotonic() - began
            assert daemon.terminate() == 0
        verdict = site.check([1, 2])
        report("disk of the outbox full", tries=1, verdict=verdict, recovery_s=[recovery])
        assert verdict.is_good, verdict
        assert site.sweep() == []
    finally:
        subprocess.run(["umount", str(outbox)], check=True)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("does", ["crash", *(pytest.param(how, marks=LONG) for how in ("segfault", "eat", "hang"))])
def test_an_event_that_kills_its_worker_is_a_dead_letter_after_three_and_others_are_unaffected(sqlite_site, does):
    site = sqlite_site
    with site.start() as daemon:
        site.send(make_event(1, does=does), make_event(2), make_event(3), lanes=[0, 1, 0])
        daemon.wait_until(lambda: set(site.outcomes()) == {1, 2, 3}, timeout_s=120.0)
        assert daemon.terminate() == 0
    assert site.outcomes() == {1: "dead_lettered", 2: "published", 3: "published"}
    (letter,) = map(parse_dead_letter, site.read(site.topics.dead_letters))
    assert (letter.reason, letter.worker_deaths) == ("worker_died", 3)
    report(f"a worker that {does}s three times: a dead letter", tries=3, verdict=site_verdict(site, [2, 3]))


def site_verdict(site: Site, visits):
    """The verdict on those that were to be published, with the one dead letter that was to be."""
    verdict = site.check(visits)
    verdict.lost -= 1
    verdict.duplicated = max(0, verdict.duplicated)
    assert verdict.is_good, verdict
    return verdict


@LONG
def test_restarts_of_the_daemon_condemn_nothing(sqlite_site):
    """More than three, each with the event in a worker's hands."""
    site = sqlite_site
    site.send(make_event(1, does="sleep 2"))
    for n in range(5):
        with site.start() as daemon:
            daemon.wait_until(lambda n=n: site.is_at_work_on(1) and len(site.workers_of(1)) > n)
            daemon.kill()
    with site.start() as daemon:
        site.wait_all_done(daemon, [1])
        assert daemon.terminate() == 0
    assert (site.row(1).claims, site.row(1).worker_deaths) == (6, 0)
    verdict = site.check([1])
    report("the daemon restarted with one event in flight", tries=5, verdict=verdict)
    assert verdict.is_good, verdict


@LONG
def test_clocks_that_step_an_hour_back_and_forth_lose_nothing(sqlite_site):
    site, visits = sqlite_site, list(range(1, 13))
    with site.start() as daemon:
        for n, step_s in enumerate((0.0, 3600.0, -3600.0)):
            (site.folder / "clock").write_text(str(step_s))
            new = visits[4 * n : 4 * n + 4]
            site.send(*(make_event(visit, does="sleep 0.2") for visit in new), lanes=[0, 1] * 2)
            site.wait_all_done(daemon, new)
        daemon.kill()
        site.send(make_event(13, does="sleep 0.2"))
        (site.folder / "clock").write_text("-7200")
    with site.start() as daemon:
        site.wait_all_done(daemon, [*visits, 13])
        assert daemon.terminate() == 0
    verdict = site.check([*visits, 13])
    report("the clock steps by an hour", tries=3, verdict=verdict)
    assert verdict.is_good, verdict


@pytest.mark.timeout(900)
@pytest.mark.parametrize("rounds", [1, pytest.param(6, marks=LONG)])
def test_a_toxic_network_between_daemon_and_broker_loses_and_repeats_nothing(tmp_path, rounds):
    """Delays, then connections reset every second, then silence; the test itself reads past the proxy."""
    with ToxicProxy() as proxy, KafkaBroker.behind(proxy.port) as broker:
        proxy.target = broker.behind_port
        site = make_site(tmp_path, broker, direct=broker.bootstrap_servers)
        site.bootstrap_servers = f"127.0.0.1:{proxy.port}"
        visits = list(range(1, 1 + 12 * rounds))
        recovery = []
        with site.start() as daemon:
            daemon.wait_until(lambda: daemon.said("worker is warm"))
            for n in range(rounds):
                new = visits[12 * n : 12 * n + 12]
                for part, toxin in enumerate(({"delay_s": 0.3}, {"reset_every_s": 1.0}, {"silent": True})):
                    site.send(*(make_event(visit) for visit in new[4 * part : 4 * part + 4]), lanes=[0, 1] * 2)
                    proxy.poison(**toxin)
                    time.sleep(5.0 if rounds > 1 else 2.5)
                    assert json.loads(daemon.ask("/livez")[1])["live"]
                proxy.poison()
                began = time.monotonic()
                site.wait_all_done(daemon, new)
                recovery.append(time.monotonic() - began)
            assert daemon.terminate() == 0
        verdict = site.check(visits)
    report("delays, resets, silence between daemon and broker", tries=3 * rounds, verdict=verdict, recovery_s=recovery)
    assert verdict.is_good, verdict


@pytest.mark.timeout(900)
@pytest.mark.parametrize("n_events", [100, pytest.param(1000, marks=LONG)])
def test_fuzzed_events_are_dead_letters_each_and_the_good_ones_between_are_published(sqlite_site, n_events):
    from event_fuzz import damaged_events

    site = sqlite_site
    bad = [(b"fuzz", value) for value in damaged_events(n_events, seed=n_events)]
    good = [make_event(visit) for visit in range(1, 11)]
    sent = list(bad)
    for n, event in enumerate(good):
        sent.insert(n * len(bad) // len(good), event)
    with site.start() as daemon:
        daemon.wait_until(lambda: daemon.said("worker is warm"))
        memory = psutil.Process(daemon.process.pid).memory_info().rss
        began = time.monotonic()
        site.send(*sent, lanes=[n % 2 for n in range(len(sent))])
        site.wait_all_done(daemon, range(1, 11), timeout_s=300.0)
        seconds = time.monotonic() - began
        grown = psutil.Process(daemon.process.pid).memory_info().rss - memory
        assert daemon.terminate() == 0
    letters = site.read(site.topics.dead_letters)
    assert sorted(letter.value for letter in letters) == sorted(value for _, value in bad)
    assert {parse_dead_letter(letter).reason for letter in letters} == {"invalid_event"}
    verdict = site.check(range(1, 11))
    verdict.lost -= len(bad)
    report("fuzzed events through the broker", tries=n_events, verdict=verdict, seconds=round(seconds, 1), grown=grown)
    assert verdict.is_good, verdict
    assert grown < 64 << 20


@LONG
def test_a_worker_hung_at_the_end_does_not_keep_the_daemon_from_draining(sqlite_site):
    site = sqlite_site
    with site.start(limits={"drain_s": 3.0}) as daemon:
        site.send(make_event(1, does="hang once"))
        daemon.wait_until(lambda: site.is_at_work_on(1))
        began = time.monotonic()
        assert daemon.terminate() == 0
        assert time.monotonic() - began < 20.0
    with site.start() as daemon:
        site.wait_all_done(daemon, [1])
        assert daemon.terminate() == 0
    assert site.check([1]).is_good


@LONG
def test_many_events_wait_on_the_broker_and_not_in_the_daemon(sqlite_site):
    """A backlog of some thousand events costs the daemon no memory, and no event of it is skipped."""
    site, n_events = sqlite_site, 3000
    site.send(*((b"x", b"not an event %d" % n * 50) for n in range(n_events)), lanes=[0] * n_events)
    with site.start() as daemon:
        daemon.wait_until(lambda: 1 < site.uncommitted() < n_events - 20)
        site.send(make_event(1), lanes=[1])
        daemon.wait_until(lambda: (row := site.row(1)) and row.state == LedgerState.PUBLISHED, timeout_s=30.0)
        assert site.uncommitted() > n_events // 2, "the backlog is gone: it held up no other lane"
        assert psutil.Process(daemon.process.pid).memory_info().rss < 400 << 20
        assert daemon.terminate() == 0
    letters = [parse_dead_letter(letter).offset for letter in site.read(site.topics.dead_letters)]
    assert letters == list(range(len(letters)))
    assert len(letters) > 20
