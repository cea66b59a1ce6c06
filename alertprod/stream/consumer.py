"""Events in: a partition is a lane, of which one event at a time is handed out.

`poll` must be called about once a second, whatever else happens: it serves rebalances and proves to the group
that this process lives. Handing out an event pauses its lane; `resume` opens it again. Nothing is committed
by itself.

`poll`, `serve`, `rewind` and `close` belong to one thread, and the callbacks run on it, inside `poll` and `close`.
Everything else may be called from any thread: the client itself lets no other thread in while one polls (a second
caller waits for seconds, and for ever during a callback), so others are given what the polling thread has looked up,
have it commit for them, or ask through a second client.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from alertprod.errors import BrokerUnavailable, ConfigError
from alertprod.stream.client_log import client_log, log_client_error
from alertprod.stream.errors import BrokerFatal, PartitionRevoked, is_revoked, kafka_error, translate
from alertprod.stream.records import Headers, Lane, Offset, Received

MAX_POLL_S: Final = 1.0
"""A longer poll would make signals and shut-down wait."""

_NO_OFFSET: Final = 0
"""Logical offsets (none committed, and so on) are negative."""

_COMMIT_TIMEOUT_S: Final = 30.0
"""Above the client's own patience with a broker that is being replaced."""

LanesCallback = Callable[[frozenset[Lane]], None]


def consumer_configuration(bootstrap_servers: str, group_id: str) -> dict[str, Any]:
    """Return librdkafka's settings for a consumer of events; each says why."""
    return {
        "bootstrap.servers": bootstrap_servers,
        "client.id": "alertprod",
        "group.id": group_id,
        # An offset is committed when its event is done with, never before.
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # `latest` would lose what was sent before the first start; what is too old is counted as expired.
        "auto.offset.reset": "earliest",
        # Also makes `committed` wait for the end of a transaction that holds offsets: it is proof of publication.
        "isolation.level": "read_committed",
        # The poll thread polls every second: five minutes of silence is a hung process.
        "max.poll.interval.ms": 300_000,
        "session.timeout.ms": 45_000,
        "heartbeat.interval.ms": 3_000,
        # Only what moves is stopped. Groups cannot change this while they live.
        "partition.assignment.strategy": "cooperative-sticky",
        # A lane hands out one event and is paused, which throws prefetched events away.
        "queued.min.messages": 1,
        "queued.max.messages.kbytes": 1_024,
        # With so short a queue it is often full; the default looks again after a second, which each event would wait.
        "fetch.queue.backoff.ms": 20,
        "fetch.wait.max.ms": 100,
        "check.crcs": True,
        # A misspelt topic must not come into being and stay empty for ever.
        "allow.auto.create.topics": False,
        "topic.metadata.refresh.interval.ms": 30_000,
        # A broker that is back is found within two seconds, not ten.
        "reconnect.backoff.max.ms": 2_000,
    }


@dataclass(slots=True, eq=False)
class _Commit:
    """Offsets that a thread waits for the polling thread to commit."""

    positions: list[TopicPartition]
    is_done: threading.Event = field(default_factory=threading.Event)
    error: BrokerUnavailable | BrokerFatal | PartitionRevoked | None = None


class EventConsumer:
    """A member of the consumer group that shares out the events.

    Parameters
    ----------
    bootstrap_servers
        ``host:port`` of one or more brokers, separated by commas.
    topics
        Topics to subscribe to.
    group_id
        The consumer group.
    on_assign
        Called with newly assigned lanes.
    on_revoke
        Called with lanes about to be taken away, while they are still ours: finish or drop their work, commit, return.
    on_lost
        Called with lanes that are ours no longer: drop their work. Nothing of it can be committed.
    one_at_a_time
        Pause a lane when an event of it is handed out.
    hold_on_assign
        Newly assigned lanes stay paused until `resume`: time to settle what an earlier owner left.
    options
        librdkafka settings that replace or add to `consumer_configuration`: security, ``group.instance.id``.

    Raises
    ------
    ConfigError
        Raised if librdkafka does not take the settings.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topics: Sequence[str],
        *,
        group_id: str,
        on_assign: LanesCallback | None = None,
        on_revoke: LanesCallback | None = None,
        on_lost: LanesCallback | None = None,
        one_at_a_time: bool = True,
        hold_on_assign: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._topics = list(topics)
        self._callbacks = (on_assign, on_revoke, on_lost)
        self._one_at_a_time = one_at_a_time
        self._hold_on_assign = hold_on_assign
        self._lock = threading.Lock()
        self._assigned: set[Lane] = set()
        self._paused: set[Lane] = set()
        self._waiting: list[Received] = []  # the poll thread's alone; more than one is rare
        self._fatal: BrokerFatal | None = None
        self._poll_thread: int | None = None
        self._group_metadata: Any = None
        self._commits: queue.SimpleQueue[_Commit] = queue.SimpleQueue()
        self._uncommitted: list[_Commit] = []  # the poll thread's alone: asked for and not answered
        settings = {
            **consumer_configuration(bootstrap_servers, group_id),
            **(options or {}),
            "error_cb": self._on_error,
        }
        # Never subscribes: it asks for offsets while the other one polls.
        observing = {name: value for name, value in settings.items() if name != "group.instance.id"}
        try:
            self._observer = Consumer({**observing, "client.id": "alertprod-observer"}, logger=client_log)
            self._consumer = Consumer({**settings, "on_commit": self._on_commit}, logger=client_log)
            self._consumer.subscribe(
                self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
        except (KafkaException, ValueError, TypeError) as error:
            raise ConfigError("configuration", "kafka consumer", str(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def poll(self, timeout_s: float = MAX_POLL_S) -> Received | None:
        """Wait for the next event, and serve the group.

        Parameters
        ----------
        timeout_s
            At most a second, whatever is asked for.

        Returns
        -------
        Received or None
            None where no lane that is open has an event.

        Raises
        ------
        BrokerUnavailable
            Raised if the broker reports an error that may pass: go on polling.
        BrokerFatal
            Raised if this consumer is finished.
        """
        self._poll_thread = threading.get_ident()
        self._begin_commits()
        try:
            message = self._consumer.poll(0.0 if self._next_waiting() else min(max(timeout_s, 0.0), MAX_POLL_S))
            # The generation in it changes with every rebalance, of which a member need not notice anything.
            self._group_metadata = self._consumer.consumer_group_metadata()
        except KafkaException as error:
            raise translate(error, "poll") from error
        if self._fatal is not None:
            raise self._fatal
        if message is not None:
            problem = message.error()
            if problem is not None:
                raise translate(problem, f"poll of {message.topic() or ', '.join(self._topics)}")
            self._accept(to_received(message))
        event = self._next_waiting()
        if event is not None:
            self._waiting.remove(event)
            if self._one_at_a_time:
                self.pause(event.lane)
        return event

    def pause(self, *lanes: Lane) -> None:
        """Hand out nothing of these lanes until `resume`; lanes that are not ours are left alone."""
        with self._lock:
            ours = [lane for lane in lanes if lane in self._assigned]
            self._paused.update(ours)
            self._toggle(self._consumer.pause, ours)

    def resume(self, *lanes: Lane) -> None:
        """Open these lanes again; lanes that are not ours are left alone."""
        with self._lock:
            ours = [lane for lane in lanes if lane in self._assigned]
            self._paused.difference_update(ours)
            self._toggle(self._consumer.resume, ours)

    def rewind(self, received: Received) -> None:
        """Go back, so that this event is handed out once more; the lane stays paused or open as it is.

        Raises
        ------
        PartitionRevoked
            Raised if its lane is not ours any more.
        """
        with self._lock:
            if received.lane not in self._assigned:
                raise PartitionRevoked(*received.lane)
        try:
            self._consumer.seek(TopicPartition(received.topic, received.partition, received.offset))
        except KafkaException as error:
            raise translate(error, f"going back in {received.topic}[{received.partition}]") from error
        self._drop_waiting(frozenset({received.lane}))

    @property
    def assigned(self) -> frozenset[Lane]:
        """The lanes that are ours now; within `on_revoke` those about to go are still among them."""
        with self._lock:
            return frozenset(self._assigned)

    @property
    def paused(self) -> frozenset[Lane]:
        """The lanes of ours that hand out nothing."""
        with self._lock:
            return frozenset(self._paused)

    def group_metadata(self, offsets: Iterable[Offset] = ()) -> Any:
        """Return the group membership for a transaction that carries `offsets`; ask anew for each transaction.

        Raises
        ------
        PartitionRevoked
            Raised if one of the offsets is in a lane that is not ours. The broker checks again, by the generation
            in the metadata.
        """
        with self._lock:
            for offset in offsets:
                if offset.lane not in self._assigned:
                    raise PartitionRevoked(*offset.lane)
        if threading.get_ident() == self._poll_thread or self._group_metadata is None:
            return self._consumer.consumer_group_metadata()
        return self._group_metadata

    def serve(self) -> None:
        """Do what other threads wait for; for a callback that waits for them, since nobody polls meanwhile."""
        while not self._commits.empty():
            commit = self._commits.get()
            try:
                self._commit_now(commit.positions)
            except (BrokerUnavailable, BrokerFatal, PartitionRevoked) as error:
                commit.error = error
            commit.is_done.set()

    def commit(self, offsets: Iterable[Offset]) -> None:
        """Commit and wait for the answer: for at-least-once, after all that the event caused is published.

        Raises
        ------
        PartitionRevoked
            Raised if a lane is not ours any more.
        BrokerUnavailable
            Raised if the broker did not take it; commit again.
        """
        positions = []
        with self._lock:
            for offset in offsets:
                if offset.lane not in self._assigned:
                    raise PartitionRevoked(*offset.lane)
                positions.append(TopicPartition(*offset))
        if not positions:
            return
        if self._poll_thread in {None, threading.get_ident()}:
            self._commit_now(positions)
            return
        commit = _Commit(positions)
        self._commits.put(commit)
        if not commit.is_done.wait(_COMMIT_TIMEOUT_S):
            raise BrokerUnavailable(f"commit of offsets: no answer within {_COMMIT_TIMEOUT_S:.0f} s")
        if commit.error is not None:
            raise commit.error

    def _commit_now(self, positions: list[TopicPartition]) -> None:
        try:
            answers = self._consumer.commit(offsets=positions, asynchronous=False) or []
        except KafkaException as error:
            raise _commit_error(kafka_error(error), positions[0]) from error
        for answer in answers:
            if answer.error is not None:
                raise _commit_error(answer.error, answer)

    def _begin_commits(self) -> None:
        """Send what other threads want committed; `_on_commit` hears the answers, in their order."""
        while not self._commits.empty():
            commit = self._commits.get()
            try:
                self._consumer.commit(offsets=commit.positions, asynchronous=True)
            except KafkaException as error:
                commit.error = _commit_error(kafka_error(error), commit.positions[0])
                commit.is_done.set()
            else:
                self._uncommitted.append(commit)

    def _on_commit(self, error: KafkaError | None, answers: list[TopicPartition]) -> None:
        wanted = {(answer.topic, answer.partition, answer.offset) for answer in answers}
        for commit in self._uncommitted:
            if {(place.topic, place.partition, place.offset) for place in commit.positions} == wanted:
                break
        else:  # a commit that the polling thread itself waited for
            return
        self._uncommitted.remove(commit)
        failed = next(((answer.error, answer) for answer in answers if answer.error is not None), None)
        if failed is not None:
            commit.error = _commit_error(*failed)
        elif error is not None:
            commit.error = _commit_error(error, commit.positions[0])
        commit.is_done.set()

    def committed(self, lanes: Iterable[Lane], *, timeout_s: float = 10.0) -> dict[Lane, int | None]:
        """Return the group's committed offset of each lane, None where nothing was ever committed.

        Raises
        ------
        BrokerUnavailable
            Raised if there is no answer in time. So it is as long as a transaction with an offset of these lanes is
            open: whether its work was published is not decided yet. Start the producer first, which ends its own.
        """
        query = [TopicPartition(lane.topic, lane.partition) for lane in lanes]
        if not query:
            return {}
        try:
            answers = self._observer.committed(query, timeout=timeout_s)
        except KafkaException as error:
            raise translate(error, "committed offsets") from error
        result: dict[Lane, int | None] = {}
        for answer in answers:
            if answer.error is not None:
                raise translate(answer.error, f"committed offset of {answer.topic}[{answer.partition}]")
            result[Lane(answer.topic, answer.partition)] = answer.offset if answer.offset >= _NO_OFFSET else None
        return result

    def lag(self, *, timeout_s: float = 5.0) -> dict[Lane, int]:
        """Return how many events of each of our lanes are not committed; asks the broker once for each lane.

        Notes
        -----
        An upper bound: offsets count the markers of transactions too, where the events were sent in such.
        """
        result = {}
        for lane, offset in self.committed(self.assigned, timeout_s=timeout_s).items():
            try:
                marks = self._observer.get_watermark_offsets(TopicPartition(*lane), timeout=timeout_s)
            except KafkaException as error:
                raise translate(error, f"end of {lane.topic}[{lane.partition}]") from error
            if marks is None:
                raise BrokerUnavailable(f"end of {lane.topic}[{lane.partition}]: no answer within {timeout_s} s")
            low, high = marks
            result[lane] = high - max(low, offset or 0)
        return result

    def close(self) -> None:
        """Leave the group; `on_revoke` is called for what is still ours."""
        try:
            self._consumer.close()
            self._observer.close()
        except KafkaException as error:
            raise translate(error, "leaving the group") from error
        with self._lock:
            self._assigned.clear()
            self._paused.clear()

    def _accept(self, received: Received) -> None:
        with self._lock:
            if received.lane not in self._assigned:  # handed over by librdkafka just before a rebalance
                return
            self._waiting.append(received)
            if received.lane in self._paused:
                # A pause right after an assignment, while the lane's first offset is asked for, is lost now and then.
                # Seeking back could fail, and the next commit would then pass over the event: it waits here.
                self._toggle(self._consumer.pause, [received.lane])

    def _next_waiting(self) -> Received | None:
        with self._lock:
            return next((event for event in self._waiting if event.lane not in self._paused), None)

    def _toggle(self, switch: Callable[[list[TopicPartition]], None], lanes: list[Lane]) -> None:
        if not lanes:
            return
        try:
            switch([TopicPartition(*lane) for lane in lanes])
        except KafkaException as error:
            raise translate(error, "pause or resume") from error

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        lanes = _lanes(partitions)
        consumer.incremental_assign(partitions)
        with self._lock:
            self._assigned |= lanes
            if self._hold_on_assign:
                self._paused |= lanes
                self._toggle(consumer.pause, sorted(lanes))
        self._call(0, lanes)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        lanes = _lanes(partitions)
        try:
            self._call(1, lanes)
        finally:
            self._forget(lanes)
            consumer.incremental_unassign(partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        lanes = _lanes(partitions)
        self._forget(lanes)
        try:
            self._call(2, lanes)
        finally:
            consumer.incremental_unassign(partitions)

    def _forget(self, lanes: frozenset[Lane]) -> None:
        with self._lock:
            self._assigned -= lanes
            self._paused -= lanes
        self._drop_waiting(lanes)

    def _drop_waiting(self, lanes: frozenset[Lane]) -> None:
        self._waiting = [event for event in self._waiting if event.lane not in lanes]

    def _call(self, which: int, lanes: frozenset[Lane]) -> None:
        callback = self._callbacks[which]
        if callback is not None and lanes:
            callback(lanes)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal = BrokerFatal(f"consumer: {error.str()} ({error.name()})")
        else:
            log_client_error(error)


def _commit_error(error: KafkaError, place: TopicPartition) -> BrokerUnavailable | BrokerFatal | PartitionRevoked:
    if is_revoked(error):
        return PartitionRevoked(place.topic, place.partition)
    return translate(error, f"commit of {place.topic}[{place.partition}]")


def to_received(message: Message) -> Received:
    """Return the plain value of a client's message that carries no error."""
    kind, timestamp = message.timestamp()
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    if topic is None or partition is None or offset is None:
        msg = "a message without a place"
        raise BrokerFatal(msg)
    return Received(
        topic=topic,
        partition=partition,
        offset=offset,
        key=_as_bytes(message.key()),
        value=_as_bytes(message.value()),
        headers=_headers(message),
        timestamp_ms=timestamp if kind else None,
    )


def _headers(message: Message) -> Headers:
    headers = message.headers() or []
    pairs = headers.items() if isinstance(headers, dict) else headers
    return tuple((name, _as_bytes(value) or b"") for name, value in pairs)


def _as_bytes(value: Any) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def _lanes(partitions: Iterable[TopicPartition]) -> frozenset[Lane]:
    return frozenset(Lane(each.topic, each.partition) for each in partitions)
