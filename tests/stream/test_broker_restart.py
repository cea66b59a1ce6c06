"""A broker that crashes in the middle of a transaction and comes back; needs one of our own."""

import threading
from collections.abc import Iterator

import pytest
from kafka_broker import BrokerMissing, KafkaBroker

from alertprod.errors import BrokerUnavailable
from alertprod.stream.producer import AlertProducer
from alertprod.stream.records import OutgoingMessage
from alertprod.stream.tail import AlertTail

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def test_an_exposure_under_way_when_the_broker_crashes_is_published_once():
    try:
        broker = KafkaBroker()
    except BrokerMissing as missing:
        pytest.skip(f"no Kafka: {missing}")
    with broker:
        broker.create_topics({"alerts": 3})
        exposures = {
            name: [f"{name} {n}".encode() for n in range(50)] for name in ("before", "during", "at the commit")
        }

        def messages(name: str) -> list[OutgoingMessage]:
            return [OutgoingMessage(topic="alerts", key=value, value=value) for value in exposures[name]]

        restarts: list[threading.Thread] = []

        def crash() -> None:
            broker.kill()
            restarts.append(threading.Thread(target=broker.start))
            restarts[-1].start()

        def interrupted(name: str) -> Iterator[OutgoingMessage]:
            yield from messages(name)[:25]
            producer._producer.flush(10)
            crash()
            yield from messages(name)[25:]

        def publish_until_it_is_taken(name: str, first: Iterator[OutgoingMessage]) -> None:
            attempt: Iterator[OutgoingMessage] = first
            for _ in range(5):
                try:
                    producer.publish(attempt)
                except BrokerUnavailable:
                    attempt = iter(messages(name))
                else:
                    return
            pytest.fail(f"{name} was not published")

        with AlertProducer(broker.bootstrap_servers, transactional_id="daemon") as producer:
            producer.publish(messages("before"))
            publish_until_it_is_taken("during", interrupted("during"))
            restarts.pop().join()

            commit = producer._commit
            producer._commit = lambda: (crash(), commit())  # type: ignore[method-assign]
            producer.publish(messages("at the commit"))
            restarts.pop().join()
        with AlertTail(broker.bootstrap_servers, ["alerts"]) as tail:
            seen = sorted(message.value for message in tail.messages(idle_s=20))
    assert seen == sorted(value for values in exposures.values() for value in values)
