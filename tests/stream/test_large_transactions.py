"""Transactions of exposures with ten thousand alerts: their time-out is that of their bytes."""

import os
import time
import uuid

import pytest
from daemon_site import Verdict, report

from alertprod.stream.producer import AlertProducer, fit_transaction_timeout
from alertprod.stream.records import OutgoingMessage
from alertprod.stream.tail import AlertTail

LIMITS = {"least_s": 60.0, "most_s": 900.0, "min_bytes_per_s": 4e6}


@pytest.mark.parametrize(
    ("n_bytes", "timeout_s"),
    [(0, 60.0), (10**6, 60.0), (192 * 10**6, 60.0), (193 * 10**6, 120.0), (10**9, 480.0), (10**11, 900.0)],
)
def test_a_transaction_has_the_time_its_bytes_take_doubled_from_the_least_up_to_the_most(n_bytes, timeout_s):
    assert fit_transaction_timeout(n_bytes, **LIMITS) == timeout_s
    assert timeout_s in (60.0, 900.0) or 0.8 * timeout_s >= n_bytes / 4e6


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize("n_alerts", [300, pytest.param(10_000, marks=pytest.mark.faults)])
def test_a_large_exposure_gets_a_longer_transaction_and_small_ones_go_on_after_it(kafka_broker, n_alerts):
    """At a pretended rate at which the bytes take eight times the least time-out."""
    topic = kafka_broker.unique_topic("alerts", partitions=3)
    body = os.urandom(100_000)

    def messages(n):
        return (OutgoingMessage(topic=topic, key=b"%d" % k, value=b"%d " % k + body) for k in range(n))

    n_bytes = n_alerts * len(body)
    least_s = 10.0 if n_alerts < 1000 else 30.0
    options = {"transaction_timeout_s": least_s, "transaction_min_bytes_per_s": n_bytes / (6 * least_s)}
    with AlertProducer(kafka_broker.bootstrap_servers, transactional_id=uuid.uuid4().hex, **options) as producer:
        producer.publish(messages(1))
        began = time.monotonic()
        producer.publish(messages(n_alerts), n_bytes=n_bytes)
        seconds = time.monotonic() - began
        assert producer._transaction_timeout_s == 8 * least_s
        producer.publish(messages(1), n_bytes=1)
        assert producer.counts == {"delivered": n_alerts + 2, "committed": 3}
        producer._large_until = 0.0  # five minutes later
        producer.publish(messages(1), n_bytes=1)
        assert producer._transaction_timeout_s == least_s
    with AlertTail(kafka_broker.bootstrap_servers, [topic]) as tail:
        n_seen = sum(1 for _ in tail.messages(idle_s=20.0))
    report("one transaction of a large exposure", tries=1, verdict=Verdict(lost=n_alerts + 3 - n_seen),
           megabytes=n_bytes / 1e6, seconds=round(seconds, 2))  # fmt: skip
    assert n_seen == n_alerts + 3
