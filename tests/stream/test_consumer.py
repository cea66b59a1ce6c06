"""The consumer against a client that plays messages back; the groups of real brokers are in the contracts."""

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from alertprod.errors import BrokerUnavailable, ConfigError
from alertprod.stream.consumer import EventConsumer
from alertprod.stream.errors import BrokerFatal, PartitionRevoked
from alertprod.stream.records import Lane, Offset

LANES = [Lane("events", 0), Lane("events", 1)]


class Message:
    def __init__(self, lane: Lane, offset: int, error: KafkaError | None = None) -> None:
        self._lane, self._offset, self._error = lane, offset, error

    def error(self) -> KafkaError | None:
        return self._error

    def topic(self) -> str:
        return self._lane.topic

    def partition(self) -> int:
        return self._lane.partition

    def offset(self) -> int:
        return self._offset

    def key(self) -> None:
        return None

    def value(self) -> bytes:
        return b"x"

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 0, -1


class PlayedClient:
    """Hands out what `feed` holds whether lanes are paused or not: librdkafka at its worst."""

    def __init__(self) -> None:
        self.feed: list[Message | KafkaException] = []
        self.calls: list[tuple[str, list[tuple[int, int]]]] = []
        self.committed_answer: list[TopicPartition] = []

    def poll(self, timeout: float) -> Message | None:
        assert timeout <= 1.0
        following = self.feed.pop(0) if self.feed else None
        if isinstance(following, KafkaException):
            raise following
        return following

    def _note(self, call: str, partitions: list[TopicPartition]) -> None:
        self.calls.append((call, [(each.partition, each.offset) for each in partitions]))

    def consumer_group_metadata(self) -> object:
        return "metadata"

    def pause(self, partitions: list[TopicPartition]) -> None:
        self._note("pause", partitions)

    def resume(self, partitions: list[TopicPartition]) -> None:
        self._note("resume", partitions)

    def seek(self, partition: TopicPartition) -> None:
        self._note("seek", [partition])

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self._note("assign", partitions)

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        self._note("unassign", partitions)

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        assert timeout > 0
        assert partitions
        return self.committed_answer


@pytest.fixture
def make():
    made = []

    def _make(**arguments) -> tuple[EventConsumer, PlayedClient]:
        consumer = EventConsumer("127.0.0.1:1", ["events"], group_id="g", **arguments)
        made.extend([consumer._consumer, consumer._observer])
        client = consumer._consumer = consumer._observer = PlayedClient()
        consumer._on_assign(client, [TopicPartition(*lane) for lane in LANES])
        return consumer, client

    yield _make
    for real in made:
        real.close()


def offsets(consumer: EventConsumer, n_polls: int) -> list[tuple[int, int]]:
    events = [consumer.poll(5.0) for _ in range(n_polls)]
    return [(event.partition, event.offset) for event in events if event is not None]


def test_an_event_that_slips_through_a_pause_waits_for_its_turn(make):
    consumer, client = make(hold_on_assign=True)
    client.feed = [Message(LANES[0], 5), Message(LANES[1], 8), Message(LANES[0], 6)]
    assert offsets(consumer, 4) == []
    consumer.resume(LANES[0])
    assert offsets(consumer, 3) == [(0, 5)]
    consumer.resume(LANES[0])
    assert offsets(consumer, 3) == [(0, 6)]
    consumer.resume(*LANES)
    assert offsets(consumer, 3) == [(1, 8)]


def test_a_rewound_lane_forgets_what_slipped_through(make):
    consumer, client = make()
    client.feed = [Message(LANES[0], 5), Message(LANES[0], 6)]
    event = consumer.poll()
    consumer.poll()
    consumer.rewind(event)
    assert client.calls[-1] == ("seek", [(0, 5)])
    client.feed = [Message(LANES[0], 5)]
    consumer.resume(LANES[0])
    assert offsets(consumer, 2) == [(0, 5)]


def test_events_of_a_lane_that_is_gone_are_dropped(make):
    consumer, client = make(hold_on_assign=True)
    client.feed = [Message(LANES[0], 5)]
    assert offsets(consumer, 1) == []
    consumer._on_lost(client, [TopicPartition(*LANES[0])])
    client.feed = [Message(LANES[0], 6)]
    consumer.resume(*LANES)
    assert offsets(consumer, 3) == []


def test_a_lane_is_ours_while_it_is_revoked_and_not_when_it_is_lost(make):
    seen = []
    consumer, client = make(
        on_revoke=lambda lanes: seen.append((lanes, consumer.assigned)),
        on_lost=lambda lanes: seen.append((lanes, consumer.assigned)),
    )
    consumer._on_revoke(client, [TopicPartition(*LANES[0])])
    consumer._on_lost(client, [TopicPartition(*LANES[1])])
    assert seen == [(frozenset(LANES[:1]), frozenset(LANES)), (frozenset(LANES[1:]), frozenset())]
    assert [call for call, _ in client.calls[-2:]] == ["unassign", "unassign"]


def test_a_callback_that_fails_does_not_keep_the_lane(make):
    def fail(_: frozenset[Lane]) -> None:
        raise RuntimeError("bug")

    consumer, client = make(on_revoke=fail)
    with pytest.raises(RuntimeError, match="bug"):
        consumer._on_revoke(client, [TopicPartition(*LANES[0])])
    assert consumer.assigned == {LANES[1]}
    assert client.calls[-1][0] == "unassign"


@pytest.mark.parametrize(
    ("code", "fate"),
    [
        (KafkaError.UNKNOWN_TOPIC_OR_PART, BrokerUnavailable),
        (KafkaError._TRANSPORT, BrokerUnavailable),
        (KafkaError._MAX_POLL_EXCEEDED, BrokerFatal),
        (KafkaError.FENCED_INSTANCE_ID, BrokerFatal),
        (KafkaError._FATAL, BrokerFatal),
    ],
)
def test_errors_of_the_client_become_ours(make, code, fate):
    consumer, client = make()
    client.feed = [Message(LANES[0], -1, KafkaError(code)), KafkaException(KafkaError(code)), Message(LANES[0], 5)]
    for _ in range(2):
        with pytest.raises(fate):
            consumer.poll()
    if fate is BrokerUnavailable:
        assert offsets(consumer, 1) == [(0, 5)]


def test_a_fatal_error_from_the_background_ends_the_consumer(make):
    consumer, _ = make()
    consumer._on_error(KafkaError(KafkaError.FENCED_INSTANCE_ID, "fenced", fatal=True))
    with pytest.raises(BrokerFatal, match="fenced"):
        consumer.poll()


def test_a_lane_that_was_never_committed_has_no_offset(make):
    consumer, client = make()
    client.committed_answer = [TopicPartition("events", 1, 7), TopicPartition("events", 0, -1001)]
    assert consumer.committed(LANES) == {LANES[0]: None, LANES[1]: 7}


def test_nothing_is_done_for_lanes_that_are_not_ours(make):
    consumer, client = make()
    n_calls = len(client.calls)
    elsewhere = Lane("events", 9)
    consumer.pause(elsewhere)
    consumer.resume(elsewhere)
    assert len(client.calls) == n_calls
    with pytest.raises(PartitionRevoked, match=r"events\[9\]"):
        consumer.commit([Offset(*elsewhere, 1)])
    consumer.commit([])


def test_a_setting_librdkafka_does_not_know_is_a_configuration_error():
    with pytest.raises(ConfigError, match=r"no\.such\.setting"):
        EventConsumer("127.0.0.1:1", ["events"], group_id="g", options={"no.such.setting": 1})
