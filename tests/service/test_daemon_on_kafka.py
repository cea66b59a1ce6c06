"""The daemon's process against brokers that speak Kafka: the embedded one (at-least-once) and a real one (exactly-once)."""

import os
import signal
import time
import uuid
from collections import Counter

import psutil
import pytest
from daemon_fakes import N_ALERTS, make_event
from daemon_site import Site, alert_name, topic_partitions

from alertprod.store.ledger import LedgerState
from alertprod.stream.embedded import EmbeddedBroker


@pytest.fixture
def embedded(tmp_path):
    prefix = "night"
    with EmbeddedBroker(topic_partitions(prefix), own_process=True) as broker:
        yield Site(tmp_path / "site", broker.bootstrap_servers, "at-least-once", prefix)


@pytest.fixture
def kafka(tmp_path, kafka_broker):
    prefix = f"night-{uuid.uuid4().hex[:8]}"
    kafka_broker.create_topics(topic_partitions(prefix))
    return Site(tmp_path / "site", kafka_broker.bootstrap_servers, "exactly-once", prefix)


def count_alerts(messages):
    """How often each alert is there, by visit and number; bodies say which process made them."""
    return Counter(alert_name(message.value) for message in messages)


def expected_alerts(*visits):
    return {f"alert {n} of Camera/{visit}/0": 1 for visit in visits for n in range(N_ALERTS)}


def test_at_least_once_on_the_embedded_broker_publishes_says_so_and_drains_on_sigterm(embedded):
    embedded.send(make_event(1), make_event(2, does="corrupt"), make_event(3))
    with embedded.start() as daemon:
        daemon.wait_until(lambda: len(embedded.outcomes()) == 3)
        embedded.send(make_event(4, does="sleep 2"))
        daemon.wait_until(lambda: embedded.is_at_work_on(4))
        embedded.send(make_event(5, does="hang"), make_event(6, does="hang"))  # one of them waits behind 4, one for it

        started = time.monotonic()
        assert daemon.terminate() == 0

        assert time.monotonic() - started < 20.0
        assert daemon.said(
            "at-least-once: after a crash alerts may be published twice; exactly-once needs transactions"
        )
        assert daemon.said("draining")

    assert embedded.outcomes() == {1: "published", 2: "dead_lettered", 3: "published", 4: "published"}
    assert count_alerts(embedded.read(embedded.topics.alerts)) == expected_alerts(1, 3, 4)
    assert embedded.row(4).state == LedgerState.PUBLISHED
    assert not (embedded.folder / "diary" / "5.0").exists()


@pytest.mark.kafka
@pytest.mark.slow
def test_a_daemon_killed_between_store_and_publish_publishes_the_same_bytes_once_after_its_restart(kafka):
    kafka.send(make_event(1), make_event(2, does="store, kill the daemon once"))
    with kafka.start() as daemon:
        assert daemon.process.wait(90) == -signal.SIGKILL
    row = kafka.row(2)
    assert row.state == LedgerState.STORED
    made_by = (kafka.folder / "diary" / "2.0").read_text().split()[0]
    until = time.monotonic() + 10.0
    while psutil.pid_exists(int(made_by)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not psutil.pid_exists(int(made_by)), "an orphan works on"

    with kafka.start() as daemon:
        daemon.wait_until(lambda: set(kafka.outcomes()) == {1, 2})
        kafka.send(make_event(3))
        daemon.wait_until(lambda: 3 in kafka.outcomes())
        assert daemon.said("found stored and not published: publishing the same bytes")
        assert daemon.terminate() == 0

    alerts = kafka.read(kafka.topics.alerts)
    assert count_alerts(alerts) == expected_alerts(1, 2, 3)
    assert {m.value.rpartition(b" ")[2] for m in alerts if b"/2/" in m.value} == {made_by.encode()}
    assert [kafka.row(visit).state for visit in (1, 2, 3)] == [LedgerState.PUBLISHED] * 3
    assert kafka.row(2).outbox_sha256 == row.outbox_sha256


@pytest.mark.kafka
@pytest.mark.slow
def test_a_daemon_killed_at_work_is_followed_by_one_that_does_it_again_without_waiting_for_the_lease(kafka):
    kafka.send(make_event(1, does="hang once"))
    with kafka.start() as daemon:
        daemon.wait_until(lambda: kafka.is_at_work_on(1))
        os.kill(daemon.process.pid, signal.SIGKILL)
        daemon.process.wait(10)
    assert kafka.row(1).state == LedgerState.CLAIMED

    with kafka.start() as daemon:
        daemon.wait_until(lambda: kafka.outcomes() == {1: "published"})
        assert daemon.terminate() == 0

    assert count_alerts(kafka.read(kafka.topics.alerts)) == expected_alerts(1)
    assert (kafka.row(1).claims, kafka.row(1).worker_deaths) == (2, 0)


@pytest.mark.kafka
@pytest.mark.slow
def test_a_second_daemon_with_the_same_transactional_id_fences_the_first(kafka):
    kafka.send(make_event(1))
    with kafka.start() as first:
        first.wait_until(lambda: 1 in kafka.outcomes())
        with kafka.start() as second:
            second.wait_until(lambda: second.said("producer is ready"))
            visits = iter(range(2, 200))
            until = time.monotonic() + 60.0
            while first.process.poll() is None:  # it hears of it when it publishes
                kafka.send(make_event(next(visits)), make_event(next(visits)))
                assert time.monotonic() < until
                time.sleep(1.0)
            assert first.process.returncode == 70
            last = next(visits)
            second.wait_until(lambda: set(kafka.outcomes()) >= set(range(1, last)))
            assert second.terminate() == 0

    assert count_alerts(kafka.read(kafka.topics.alerts)) == expected_alerts(*range(1, last))
