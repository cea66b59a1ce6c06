"""Transactions, on a real Kafka: those of the embedded broker are hollow."""

import threading
import time
import uuid
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer
from kafka_broker import ExistingBroker

from alertprod.errors import BrokerUnavailable
from alertprod.stream.consumer import EventConsumer
from alertprod.stream.errors import MessageRefused, PartitionRevoked, ProducerFenced
from alertprod.stream.producer import AlertProducer
from alertprod.stream.records import Lane, Offset, OutgoingMessage
from alertprod.stream.tail import AlertTail

pytestmark = pytest.mark.kafka


class Night:
    """Topics of events, alerts and summaries, and what a subscriber sees of them."""

    def __init__(self, broker: ExistingBroker) -> None:
        self.bootstrap_servers = broker.bootstrap_servers
        self.events = broker.unique_topic("events", partitions=2)
        self.alerts = broker.unique_topic("alerts", partitions=3)
        self.summaries = broker.unique_topic("summaries")
        self.group_id = f"group-{uuid.uuid4().hex[:8]}"
        self.transactional_id = f"daemon-{uuid.uuid4().hex[:8]}"

    def producer(self, **arguments) -> AlertProducer:
        return AlertProducer(self.bootstrap_servers, **({"transactional_id": self.transactional_id} | arguments))

    def consumer(self, **arguments) -> EventConsumer:
        options = {"session.timeout.ms": 6000}
        return EventConsumer(
            self.bootstrap_servers, [self.events], group_id=self.group_id, options=options, **arguments
        )

    def send_events(self, *values: bytes) -> None:
        with AlertProducer(self.bootstrap_servers) as producer:
            producer.publish(OutgoingMessage(topic=self.events, key=b"k", value=value, partition=0) for value in values)

    def exposure(self, name: str, n_alerts: int = 20) -> list[OutgoingMessage]:
        alerts = [
            OutgoingMessage(topic=self.alerts, key=str(n).encode(), value=f"{name} alert {n}".encode())
            for n in range(n_alerts)
        ]
        return [*alerts, OutgoingMessage(topic=self.summaries, key=name.encode(), value=f"{name} summary".encode())]

    def seen(self, isolation: str = "read_committed") -> list[bytes]:
        with AlertTail(self.bootstrap_servers, [self.alerts, self.summaries], isolation=isolation) as tail:
            return sorted(message.value for message in tail.messages(idle_s=10))


@pytest.fixture
def night(kafka_broker) -> Night:
    return Night(kafka_broker)


def values(messages: list[OutgoingMessage]) -> list[bytes]:
    return sorted(message.value for message in messages)


def receive_one(consumer: EventConsumer):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        event = consumer.poll(0.1)
        if event is not None:
            return event
    pytest.fail("no event within 20 s")


def test_alerts_summary_and_offset_of_an_exposure_become_visible_together(night):
    night.send_events(b"event")
    exposure = night.exposure("v1")
    with night.consumer() as consumer, night.producer() as producer:
        event = receive_one(consumer)
        seen_before: list[list[bytes]] = []
        committed_before: list[object] = []

        def messages() -> Iterator[OutgoingMessage]:
            yield from exposure[:-1]
            producer._producer.flush(10)  # the alerts are in the log, the transaction is open
            seen_before.append(night.seen())
            committed_before.append(consumer.committed([event.lane]))
            yield exposure[-1]

        before = time.time()
        receipt = producer.publish(messages(), [event.next_offset], consumer.group_metadata([event.next_offset]))
        assert night.seen() == values(exposure)
        assert consumer.committed([event.lane]) == {event.lane: 1}
        assert consumer.lag()[event.lane] == 0
    assert seen_before == [[]]
    assert committed_before == [{event.lane: None}]
    assert receipt.offsets_committed
    assert len(set(receipt.acked_at)) == 1
    assert len(receipt.acked_at) == len(exposure)
    assert before <= receipt.acked_at[0] <= time.time()


def test_an_exposure_without_alerts_moves_the_offset_too(night):
    night.send_events(b"event")
    with night.consumer() as consumer, night.producer() as producer:
        event = receive_one(consumer)
        producer.publish([], [event.next_offset], consumer.group_metadata([event.next_offset]))
        assert consumer.committed([event.lane]) == {event.lane: 1}


def test_an_aborted_exposure_is_never_seen_and_does_not_move_the_offset(night):
    night.send_events(b"event")

    def outbox() -> Iterator[OutgoingMessage]:
        yield from night.exposure("v1")
        producer._producer.flush(10)
        raise OSError("the outbox file is damaged")

    with night.consumer() as consumer, night.producer() as producer:
        event = receive_one(consumer)
        with pytest.raises(OSError, match="damaged"):
            producer.publish(outbox(), [event.next_offset], consumer.group_metadata())
        assert night.seen() == []
        assert len(night.seen("read_uncommitted")) == 21
        assert consumer.committed([event.lane]) == {event.lane: None}
        producer.publish(night.exposure("v1"), [event.next_offset], consumer.group_metadata())
        assert night.seen() == values(night.exposure("v1"))


def test_a_message_the_broker_never_takes_is_refused_and_nothing_of_its_exposure_is_seen(night, kafka_broker):
    small = f"small-{uuid.uuid4().hex[:8]}"
    kafka_broker.create_topics({small: 1}, config={"max.message.bytes": "1000"})
    too_large = OutgoingMessage(topic=small, key=b"k", value=bytes(range(256)) * 40)
    far_too_large = OutgoingMessage(topic=night.alerts, key=b"k", value=bytes(11 << 20))
    with night.producer(compression="none") as producer:
        for refused in (too_large, far_too_large):
            with pytest.raises(MessageRefused) as caught:
                producer.publish([*night.exposure("v1"), refused])
            assert (caught.value.topic, caught.value.n_bytes) == (refused.topic, len(refused.value))
        producer.publish(night.exposure("v2"))
    assert night.seen() == values(night.exposure("v2"))


def test_an_unknown_topic_is_an_error_and_not_a_new_topic(night):
    with night.producer(options={"topic.metadata.propagation.max.ms": 500}, transaction_timeout_s=10) as producer:
        with pytest.raises(BrokerUnavailable, match="misspelt"):
            producer.publish([OutgoingMessage(topic="misspelt", key=None, value=b"x")])
        producer.publish(night.exposure("v1"))
    assert night.seen() == values(night.exposure("v1"))


def test_a_second_producer_with_the_same_id_fences_the_first(night):
    with night.producer() as zombie, night.producer() as successor:
        zombie.publish(night.exposure("v1"))
        successor.start()
        with pytest.raises(ProducerFenced):
            zombie.publish(night.exposure("v1"))
        successor.publish(night.exposure("v2"))
    assert night.seen() == values(night.exposure("v1") + night.exposure("v2"))


def test_a_producer_fenced_in_mid_transaction_publishes_nothing(night):
    night.send_events(b"event")
    with night.consumer() as consumer, night.producer() as zombie, night.producer() as successor:
        event = receive_one(consumer)

        def messages() -> Iterator[OutgoingMessage]:
            yield from night.exposure("zombie")
            zombie._producer.flush(10)
            successor.start()

        with pytest.raises(ProducerFenced):
            zombie.publish(messages(), [event.next_offset], consumer.group_metadata())
        assert consumer.committed([event.lane]) == {event.lane: None}
    assert night.seen() == []


def test_the_committed_offset_is_not_told_while_a_transaction_that_moves_it_is_open(night):
    night.send_events(b"event")
    with night.consumer() as consumer, night.producer(transaction_timeout_s=30) as successor:
        event = receive_one(consumer)
        crashed = Producer({"bootstrap.servers": night.bootstrap_servers, "transactional.id": night.transactional_id})
        crashed.init_transactions(10)
        crashed.begin_transaction()
        from confluent_kafka import TopicPartition

        crashed.send_offsets_to_transaction([TopicPartition(*event.next_offset)], consumer.group_metadata(), 10)
        with pytest.raises(BrokerUnavailable):
            consumer.committed([event.lane], timeout_s=1.5)
        successor.start()  # ends what the crashed one left open
        assert consumer.committed([event.lane]) == {event.lane: None}


def test_a_transaction_open_for_too_long_is_ended_by_the_broker(night):
    def messages() -> Iterator[OutgoingMessage]:
        yield from night.exposure("slow")
        producer._producer.flush(10)
        time.sleep(4)

    with night.producer(transaction_timeout_s=1.5) as producer, pytest.raises((ProducerFenced, BrokerUnavailable)):
        producer.publish(messages())
    assert night.seen() == []


def test_offsets_of_a_member_that_left_the_group_are_refused_by_the_broker(night):
    night.send_events(b"event")
    with night.producer() as producer:
        with night.consumer() as consumer:
            event = receive_one(consumer)
            stale = consumer.group_metadata([event.next_offset])
        with pytest.raises(BrokerUnavailable):
            producer.publish(night.exposure("v1"), [event.next_offset], stale)
        with night.consumer() as consumer:
            assert receive_one(consumer) == event
            assert consumer.committed([event.lane]) == {event.lane: None}
            with pytest.raises(PartitionRevoked):
                consumer.group_metadata([Offset("elsewhere", 0, 1)])
            producer.publish(night.exposure("v1"), [event.next_offset], consumer.group_metadata([event.next_offset]))
    assert night.seen() == values(night.exposure("v1"))


def test_exposures_of_many_lanes_go_through_one_publishing_thread(night):
    night.send_events(*(f"event {n}".encode() for n in range(5)))
    done: list[str] = []
    with night.consumer() as consumer, night.producer() as producer:
        for n in range(5):
            event = receive_one(consumer)

            def publish(event=event, n=n) -> None:
                offsets = [event.next_offset]
                producer.publish(night.exposure(f"v{n}"), offsets, consumer.group_metadata(offsets))
                done.append(f"v{n}")

            thread = threading.Thread(target=publish)
            thread.start()
            while thread.is_alive():
                consumer.poll(0.05)
            consumer.resume(event.lane)
        assert consumer.committed([Lane(night.events, 0)]) == {Lane(night.events, 0): 5}
    assert len(done) == 5
    assert night.seen() == values([message for n in range(5) for message in night.exposure(f"v{n}")])
