"""Daemons killed at the worst moment and at any moment: nothing is lost, nothing comes twice, ids stay."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from kafka_broker import ExistingBroker, KafkaBroker
from observatory import make_event, make_observatory, packets_of

from alertprod.stream.messages import hash_bodies

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@contextmanager
def frozen(broker: KafkaBroker) -> Iterator[None]:
    """Let the broker answer nobody for a while, as one does whose disk hangs."""
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(broker.pid, signal.SIGCONT)


def test_killed_after_the_store_and_then_at_any_moment_every_alert_comes_once_with_its_id(
    tmp_path, kafka_broker: ExistingBroker, small_night, evening
):
    if not isinstance(kafka_broker, KafkaBroker):
        pytest.skip("the broker of ALERTPROD_TEST_KAFKA is not ours to freeze")
    night = small_night
    limits = "retry_first_s = 0.2\nretry_max_s = 0.2"
    site = make_observatory(tmp_path / "site", kafka_broker, night, lanes=2, limits=limits)
    first, second = ((night.visit_id(0), detector) for detector in (0, 1))
    everything = [(night.visit_id(visit), detector) for visit in range(3) for detector in (0, 1)]

    with site.start() as daemon:
        daemon.wait_ready()
        late = tmp_path / "late.fits"
        site.send(make_event(night, 0, 0, calexp_uri=str(late)), lanes=[0])
        daemon.wait_until(lambda: daemon.said("trying again"))
        with frozen(kafka_broker):  # what is computed and stored from here on cannot be published
            late.symlink_to(night.exposure_path(0, 0))
            daemon.wait_until(lambda: site.state(first) == "stored")
            daemon.kill()
    stored = site.row(*first)
    assert stored.state == "stored"

    site.send(make_event(night, 0, 1), make_event(night, 1, 0), make_event(night, 1, 1), lanes=[0, 1, 0])
    with site.start() as daemon:
        daemon.wait_until(lambda: site.state(second) is not None, timeout_s=120.0)
        time.sleep(random.Random(7).uniform(0.0, 1.0))  # any moment from the claim of one to the end of all
        daemon.kill()

    site.send(make_event(night, 2, 0), make_event(night, 2, 1), lanes=[1, 0])
    with site.start() as daemon:
        daemon.wait_until(lambda: all(site.state(exposure) == "published" for exposure in everything), timeout_s=120.0)
        assert daemon.terminate() == 0

    assert Counter((summary.visit, summary.detector) for summary in site.summaries()) == Counter(everything)
    alerts = site.alerts()
    assert set(alerts) == set(everything)
    for summary in site.summaries():
        messages = alerts[summary.visit, summary.detector]
        assert (summary.outcome, summary.n_alerts) == ("published", len(messages))
        assert summary.sha256 == hash_bodies(message.value for message in messages)
    assert site.row(*first).outbox_sha256 == stored.outbox_sha256 == hash_bodies(m.value for m in alerts[first])
    assert site.row(*first).claims == stored.claims  # nobody began it anew
    committed, ends = site.positions()
    assert committed == ends == {0: 4, 1: 2}

    # The same exposures in another history, by other processes: the same DiaSources, but for those that are unfit to
    # begin an object and depend on one being there.
    dropped = Counter[tuple[int, int]]()
    for summary in (*site.summaries(), *evening.summaries):
        dropped[summary.visit, summary.detector] += summary.counts.get("dropped_unfit_for_new_object", 0)
    for exposure in everything:
        here, there = measured(alerts[exposure]), measured(evening.alerts[exposure])
        assert len(here.keys() ^ there.keys()) <= dropped[exposure]
        assert here.keys() & there.keys()
        for dia_source_id in here.keys() & there.keys():
            assert here[dia_source_id] == there[dia_source_id]


def measured(messages):
    """What depends on the pixels alone, by DiaSource."""
    names = ("x", "y", "ra", "dec", "psfFlux", "psfFluxErr", "snr", "isDipole", "midpointMjdTai")
    found = {
        packet["diaSourceId"]: tuple(packet["diaSource"][name] for name in names) for packet in packets_of(messages)
    }
    assert len(found) == len(messages)
    return found
