"""What the daemon relies on from a broker, on the embedded one and on a real Kafka; at-least-once."""

import itertools
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
from kafka_broker import ExistingBroker

from alertprod.errors import BrokerUnavailable, InvalidEvent
from alertprod.stream.consumer import EventConsumer
from alertprod.stream.dead_letter import is_dead_letter_replay, make_dead_letter, make_replay, parse_dead_letter
from alertprod.stream.embedded import EmbeddedBroker
from alertprod.stream.errors import PartitionRevoked
from alertprod.stream.producer import AlertProducer
from alertprod.stream.records import Lane, Offset, OutgoingMessage, Received
from alertprod.stream.tail import AlertTail

# Leaving the embedded broker's group takes effect after the old session is over.
QUICK = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}


class Site:
    """A broker, a fresh topic of three partitions on it, and a group."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self.bootstrap_servers, self.topic = bootstrap_servers, topic
        self.group_id = f"group-{uuid.uuid4().hex[:8]}"

    def consumer(self, **arguments) -> EventConsumer:
        arguments = {"group_id": self.group_id, "options": QUICK} | arguments
        return EventConsumer(self.bootstrap_servers, [self.topic], **arguments)

    def send(self, *values: bytes, partition: int = 0) -> None:
        with AlertProducer(self.bootstrap_servers) as producer:
            producer.publish(
                OutgoingMessage(topic=self.topic, key=b"k", value=value, partition=partition) for value in values
            )


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    if request.param == "embedded":
        with EmbeddedBroker({"events": 3}) as embedded:
            yield Site(embedded.bootstrap_servers, "events")
    else:
        broker: ExistingBroker = request.getfixturevalue("kafka_broker")
        yield Site(broker.bootstrap_servers, broker.unique_topic("events", partitions=3))


def poll_until(consumer: EventConsumer, done: Callable[[], bool], seconds: float = 20.0) -> list[Received]:
    received = []
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not done within {seconds} s; received {received}"
        event = consumer.poll(0.1)
        if event is not None:
            received.append(event)
    return received


def receive(consumer: EventConsumer, n: int = 1, seconds: float = 20.0) -> list[Received]:
    received: list[Received] = []
    deadline = time.monotonic() + seconds
    while len(received) < n:
        assert time.monotonic() < deadline, f"{len(received)} of {n} events within {seconds} s"
        event = consumer.poll(0.1)
        if event is not None:
            received.append(event)
    return received


def receive_nothing(consumer: EventConsumer, seconds: float = 1.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert consumer.poll(0.1) is None


def test_what_is_published_is_received_whole(site):
    with AlertProducer(site.bootstrap_servers) as producer:
        before = time.time()
        receipt = producer.publish(
            [
                OutgoingMessage(
                    topic=site.topic,
                    key=b"a/1/2",
                    value=b"\x00bytes",
                    headers=(("h", b"1"), ("h", b"\xff")),
                    partition=0,
                ),
                OutgoingMessage(topic=site.topic, key=None, value=None, partition=2),
            ]
        )
    assert not receipt.offsets_committed
    assert all(before <= at <= time.time() for at in receipt.acked_at)
    with site.consumer() as consumer:
        first, second = sorted(receive(consumer, 2), key=lambda event: event.key is None)
    assert (first.key, first.value, first.headers) == (b"a/1/2", b"\x00bytes", (("h", b"1"), ("h", b"\xff")))
    assert (second.key, second.value, second.headers, second.partition) == (None, None, (), 2)
    assert abs(first.timestamp_ms / 1000 - before) < 10


def test_a_lane_hands_out_one_event_until_it_is_resumed(site):
    site.send(b"0a", b"0b", b"0c", partition=0)
    site.send(b"1a", b"1b", partition=1)
    with site.consumer() as consumer:
        first = receive(consumer, 2)
        assert {event.value for event in first} == {b"0a", b"1a"}
        assert consumer.paused == {event.lane for event in first}
        receive_nothing(consumer)
        consumer.resume(Lane(site.topic, 0))
        assert [event.value for event in receive(consumer)] == [b"0b"]
        receive_nothing(consumer, 0.5)
        consumer.resume(Lane(site.topic, 0), Lane(site.topic, 1))
        assert {event.value for event in receive(consumer, 2)} == {b"0c", b"1b"}


def test_a_resumed_lane_gives_its_next_event_at_once(site):
    site.send(*(f"event {n}".encode() for n in range(12)))
    waits = []
    with site.consumer() as consumer:
        receive(consumer)
        for _ in range(11):
            consumer.resume(Lane(site.topic, 0))
            started = time.monotonic()
            receive(consumer)
            waits.append(time.monotonic() - started)
    assert statistics.median(waits) < 0.4  # librdkafka's own settings make it a second


def test_rewinding_hands_out_the_same_event_again(site):
    site.send(b"a", b"b", b"c")
    with site.consumer() as consumer:
        (event,) = receive(consumer)
        for _ in range(2):
            consumer.rewind(event)
            receive_nothing(consumer, 0.3)
            consumer.resume(event.lane)
            assert receive(consumer) == [event]
        consumer.resume(event.lane)
        assert receive(consumer)[0].value == b"b"


def test_new_lanes_can_be_held_until_they_are_resumed(site):
    site.send(b"a")
    assigned: set[Lane] = set()
    with site.consumer(hold_on_assign=True, on_assign=assigned.update) as consumer:
        assert poll_until(consumer, lambda: bool(assigned)) == []
        assert assigned == consumer.assigned == consumer.paused == {Lane(site.topic, n) for n in range(3)}
        receive_nothing(consumer)
        assert consumer.committed(assigned) == dict.fromkeys(assigned)
        consumer.resume(*assigned)
        assert receive(consumer)[0].value == b"a"


def test_a_restart_goes_on_at_the_committed_offset(site):
    site.send(b"a", b"b", b"c")
    with site.consumer() as consumer:
        (a,) = receive(consumer)
        consumer.commit([a.next_offset])
        consumer.resume(a.lane)
        assert receive(consumer)[0].value == b"b"  # received, never committed
        assert consumer.committed([a.lane]) == {a.lane: 1}
        assert consumer.lag()[a.lane] == 2
    with site.consumer() as consumer:
        (b,) = receive(consumer)
        assert (b.value, b.offset) == (b"b", 1)


def test_two_members_share_the_lanes_and_take_over(site):
    revoked: list[frozenset[Lane]] = []
    with site.consumer(on_revoke=revoked.append) as first:
        poll_until(first, lambda: len(first.assigned) == 3)
        second = site.consumer()
        deadline = time.monotonic() + 40
        while not (second.assigned and len(first.assigned | second.assigned) == 3):
            assert time.monotonic() < deadline
            first.poll(0.1)
            second.poll(0.1)
        assert not first.assigned & second.assigned
        assert frozenset().union(*revoked) == second.assigned
        gone = next(iter(second.assigned))
        with pytest.raises(PartitionRevoked):
            first.commit([Offset(*gone, 1)])
        with pytest.raises(PartitionRevoked):
            first.group_metadata([Offset(*gone, 1)])
        second.close()
        poll_until(first, lambda: len(first.assigned) == 3, 40)


def test_a_paused_lane_stays_paused_when_others_move(site):
    site.send(b"0a", b"0b", partition=0)
    site.send(b"1a", b"1b", partition=1)
    site.send(b"2a", b"2b", partition=2)
    with site.consumer() as first:
        receive(first, 3)
        second = site.consumer()
        events = []
        deadline = time.monotonic() + 40
        while len(first.assigned) != 2 or not events:
            assert time.monotonic() < deadline
            assert first.poll(0.1) is None
            event = second.poll(0.1)
            if event is not None:
                events.append(event)
        receive_nothing(first)
        assert events[0].value.endswith(b"a")  # not committed, so handed out again by its new owner
        assert first.paused == first.assigned
        second.close()


def test_the_revoke_callback_may_still_commit(site):
    site.send(b"a")
    consumer = site.consumer(
        on_revoke=lambda lanes: consumer.commit(Offset(*lane, 1) for lane in lanes if lane.partition == 0)
    )
    receive(consumer)
    consumer.close()
    with site.consumer() as successor:
        poll_until(successor, lambda: bool(successor.assigned))
        assert successor.committed([Lane(site.topic, 0)]) == {Lane(site.topic, 0): 1}
        receive_nothing(successor)


def test_other_threads_are_answered_while_one_polls(site):
    # The client lets nobody in while it polls: asked directly, each of these takes up to minutes.
    site.send(b"a")
    answers = {}

    def ask(consumer: EventConsumer, event: Received) -> None:
        answers["metadata"] = consumer.group_metadata([event.next_offset])
        consumer.commit([event.next_offset])
        answers["committed"] = consumer.committed([event.lane])
        answers["lag"] = consumer.lag()[event.lane]

    with site.consumer() as consumer:
        (event,) = receive(consumer)
        asking = threading.Thread(target=ask, args=(consumer, event), daemon=True)
        asking.start()
        deadline = time.monotonic() + 15
        while asking.is_alive():
            assert time.monotonic() < deadline, f"answered so far: {answers}"
            consumer.poll(0.02)
    assert answers["metadata"] is not None
    assert (answers["committed"], answers["lag"]) == ({event.lane: 1}, 0)


def test_the_revoke_callback_may_wait_for_another_threads_commit(site):
    site.send(b"a")
    committed = threading.Event()

    def publish(lane: Lane) -> None:
        consumer.group_metadata([Offset(*lane, 1)])
        consumer.commit([Offset(*lane, 1)])
        committed.set()

    def on_revoke(lanes: frozenset[Lane]) -> None:
        lane = next(lane for lane in lanes if lane.partition == 0)
        threading.Thread(target=publish, args=(lane,), daemon=True).start()
        deadline = time.monotonic() + 15
        while not committed.is_set() and time.monotonic() < deadline:
            consumer.serve()
            time.sleep(0.02)

    consumer = site.consumer(on_revoke=on_revoke)
    receive(consumer)
    consumer.close()
    assert committed.is_set()
    with site.consumer() as successor:
        poll_until(successor, lambda: bool(successor.assigned))
        assert successor.committed([Lane(site.topic, 0)]) == {Lane(site.topic, 0): 1}


def test_a_dead_letter_makes_the_round_trip(site):
    site.send(b"\x00not an event")
    with site.consumer() as consumer:
        (event,) = receive(consumer)
        error = InvalidEvent("visit", "missing")
        letter = make_dead_letter(event, error, topic=site.topic, stage="receive", attempts=1, version="1.0")
        with AlertProducer(site.bootstrap_servers) as producer:
            producer.publish([letter])
        consumer.commit([event.next_offset])
        assert not is_dead_letter_replay(event)
    with AlertTail(site.bootstrap_servers, [site.topic]) as tail:
        dead = [message for message in tail.messages() if message.headers]
    assert [(message.key, message.value) for message in dead] == [(event.key, event.value)]
    told = parse_dead_letter(dead[0])
    assert (told.topic, told.partition, told.offset) == (event.topic, event.partition, event.offset)
    assert (told.reason, told.message, told.stage, told.attempts) == (
        "invalid_event",
        "event field visit: missing",
        "receive",
        1,
    )
    again = make_replay(dead[0])
    assert (again.topic, again.key, again.value) == (event.topic, event.key, event.value)


def test_the_tail_stops_at_the_end_and_follows_when_asked(site):
    site.send(b"a", b"b")
    with AlertTail(site.bootstrap_servers, [site.topic]) as tail:
        assert [message.value for message in tail.messages()] == [b"a", b"b"]
    with AlertTail(site.bootstrap_servers, [site.topic], start="latest") as tail:
        site.send(b"c")
        assert [message.value for message in itertools.islice(tail.messages(follow=True, idle_s=10), 1)] == [b"c"]
        assert list(tail.messages(follow=True, idle_s=0.3)) == []


def test_the_tail_of_a_topic_that_does_not_exist_says_so(site):
    with pytest.raises(BrokerUnavailable, match="nowhere"):
        AlertTail(site.bootstrap_servers, ["nowhere"])
