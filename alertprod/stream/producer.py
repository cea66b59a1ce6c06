"""Alerts out: one exposure, its summary and its event's offset in one Kafka transaction.

Everything here belongs to one publishing thread, but for the constructor and `interrupt`. Without a
transactional id the producer is idempotent and at-least-once, and the offsets are the caller's to commit.
"""

import functools
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from alertprod.errors import BrokerUnavailable, ConfigError
from alertprod.stream.client_log import client_log, log_client_error
from alertprod.stream.errors import (
    REFUSED_CODES,
    BrokerFatal,
    CommitUncertain,
    MessageRefused,
    is_fatal,
    kafka_error,
    translate,
)
from alertprod.stream.records import Offset, OutgoingMessage, Receipt

MAX_MESSAGE_BYTES: Final = 10 << 20
"""Three cutouts of 102 pixels with a long history are a tenth of this; brokers and topics must allow as much."""

Compression = Literal["zstd", "lz4", "snappy", "gzip", "none"]

_ANY_PARTITION: Final = -1
"""librdkafka's word for leaving it to the partitioner."""
_CALL_S: Final = 2.0
"""Of one blocking call of librdkafka, which is repeated until the deadline."""
_PAUSE_S: Final = 0.2
_ABORT_S: Final = 10.0
"""An abort that takes longer is gone on with before the next transaction."""
_ABORTS_BEFORE_ANEW: Final = 2
"""A broker's restart takes less than these."""
_SHARE_TO_FILL: Final = 0.8
"""Of the transaction's time; after it we abort, since a producer whose transaction the broker ended is fenced."""
_SERVE_EVERY: Final = 256
"""Messages produced between two looks at the delivery reports."""
_CALM_S: Final = 300.0
"""After a large transaction its long time-out is kept for so long: large exposures come in rows."""

_log = logging.getLogger(__name__)


def producer_configuration(
    bootstrap_servers: str,
    *,
    transactional_id: str | None = None,
    transaction_timeout_s: float = 60.0,
    delivery_timeout_s: float = 45.0,
    compression: Compression = "zstd",
) -> dict[str, Any]:
    """Return librdkafka's settings for a producer of alerts; each says why."""
    settings: dict[str, Any] = {
        "bootstrap.servers": bootstrap_servers,
        "client.id": "alertprod",
        # No duplicates and no gaps from retries; implies acks=all, at most 5 requests in flight.
        "enable.idempotence": True,
        "acks": "all",
        # Outlives a leader's election (10 to 20 s), stays within the transaction.
        "delivery.timeout.ms": round(min(delivery_timeout_s, transaction_timeout_s) * 1000),
        # A flush sends at once what waits: lingering only lets batches grow while messages still come.
        "linger.ms": 20,
        "batch.size": 1 << 20,
        "batch.num.messages": 10_000,
        "compression.type": compression,
        "message.max.bytes": MAX_MESSAGE_BYTES,
        # The rest waits in the outbox file: what is produced faster than sent is held back, not dropped.
        "queue.buffering.max.kbytes": 262_144,
        # Java's partitioning: all clients put an object's alerts on the same partition.
        "partitioner": "murmur2_random",
        # To start over from the bootstrap list when all brokers are away forgets the brokers one by one, and a call that
        # waits for the group's coordinator then waits for ever (librdkafka issue 5511). Known addresses do.
        "metadata.recovery.strategy": "none",
        # A broker that is back is found within two seconds, not ten.
        "reconnect.backoff.max.ms": 2_000,
        "allow.auto.create.topics": False,
    }
    if transactional_id is not None:
        settings["transactional.id"] = transactional_id
        settings["transaction.timeout.ms"] = round(transaction_timeout_s * 1000)
    return settings


def fit_transaction_timeout(n_bytes: int, *, least_s: float, most_s: float, min_bytes_per_s: float) -> float:
    """Return the time-out for a transaction of so many bytes: `least_s`, doubled until they fit, at most `most_s`.

    Notes
    -----
    In steps, since a producer has one time-out for its life and each change costs a new one.
    """
    needed_s = n_bytes / min_bytes_per_s / _SHARE_TO_FILL
    steps = max(0, math.ceil(math.log2(needed_s / least_s))) if needed_s > least_s else 0
    return min(most_s, least_s * 2.0**steps)


class _Abortable(Exception):
    """The transaction must be aborted; carries what to raise after that."""

    def __init__(self, outcome: BrokerUnavailable | MessageRefused, *, timed_out: bool = False) -> None:
        super().__init__(outcome)
        self.outcome, self.timed_out = outcome, timed_out


class _Batch:
    """The delivery reports of one `publish`."""

    def __init__(self, clock: Callable[[], float], counts: Counter[str]) -> None:
        self._clock, self._counts = clock, counts
        self.acked_at: list[float] = []
        self.n_reported = 0
        self.failure: BrokerUnavailable | BrokerFatal | MessageRefused | None = None

    @property
    def n_waiting(self) -> int:
        return len(self.acked_at) - self.n_reported

    def expect(self) -> int:
        self.acked_at.append(float("nan"))
        return len(self.acked_at) - 1

    def report(self, index: int, error: KafkaError | None, message: Message) -> None:
        self.n_reported += 1
        if error is None:
            self.acked_at[index] = self._clock()
            self._counts["delivered"] += 1
            return
        self._counts["undelivered"] += 1
        if self.failure is None:
            topic, value = str(message.topic()), message.value()
            self.failure = (
                MessageRefused(topic, _key(message), len(value or b""), error.str())
                if error.code() in REFUSED_CODES
                else translate(error, f"delivery to {topic}")
            )


class AlertProducer:
    """Publishes batches of messages, each batch all or nothing where it is transactional.

    Parameters
    ----------
    bootstrap_servers
        ``host:port`` of one or more brokers, separated by commas.
    transactional_id
        The same after every restart of this daemon and different for any other: a second producer with the id
        fences the first. None is at-least-once.
    transaction_timeout_s
        The broker aborts a transaction that is open for longer. Open transactions hold up every `read_committed`
        reader of their topics.
    transaction_max_timeout_s, transaction_min_bytes_per_s
        A transaction whose bytes take longer than that at this rate gets more time, up to a limit (the brokers have
        one too, ``transaction.max.timeout.ms``).
    delivery_timeout_s
        After this a message counts as not delivered.
    commit_timeout_s
        How long the outcome of a commit is asked for before `CommitUncertain`; longer than a broker's restart.
    compression
        Of batches, by librdkafka's threads.
    options
        librdkafka settings that replace or add to `producer_configuration`: security, as a rule.
    clock
        Unix time in seconds, for the receipts.

    Raises
    ------
    ConfigError
        Raised if librdkafka does not take the settings.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        transactional_id: str | None = None,
        transaction_timeout_s: float = 60.0,
        transaction_max_timeout_s: float = 900.0,
        transaction_min_bytes_per_s: float = 4e6,
        delivery_timeout_s: float = 45.0,
        commit_timeout_s: float = 120.0,
        compression: Compression = "zstd",
        options: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.transactional = transactional_id is not None
        """Whether `publish` is all or nothing and carries offsets."""
        self.counts: Counter[str] = Counter()
        """Since the start: messages ``delivered`` and ``undelivered``, transactions ``committed`` and ``aborted``."""
        self._transaction_timeout_s = self._least_timeout_s = transaction_timeout_s
        self._fit = functools.partial(
            fit_transaction_timeout,
            least_s=transaction_timeout_s,
            most_s=max(transaction_timeout_s, transaction_max_timeout_s),
            min_bytes_per_s=transaction_min_bytes_per_s,
        )
        self._large_until = -math.inf
        self._delivery_timeout_s = delivery_timeout_s
        self._commit_timeout_s = commit_timeout_s
        self._clock = clock
        self._started = False
        self._must_abort = False
        self._failed_aborts = 0
        self._interrupted = threading.Event()
        self._call_since: float | None = None
        self._make_settings = functools.partial(
            producer_configuration, bootstrap_servers, transactional_id=transactional_id, compression=compression
        )
        self._options = {**(options or {}), "error_cb": log_client_error}
        self._producer = self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self) -> Producer:
        # What waits in the queue of a large transaction has longer to go, too.
        stretch = self._transaction_timeout_s / self._least_timeout_s
        settings = self._make_settings(
            transaction_timeout_s=self._transaction_timeout_s, delivery_timeout_s=self._delivery_timeout_s * stretch
        )
        try:
            return Producer({**settings, **self._options}, logger=client_log)
        except (KafkaException, ValueError, TypeError) as error:
            raise ConfigError("configuration", "kafka producer", str(error)) from error

    def start(self, *, timeout_s: float = 30.0) -> None:
        """Register the transactional id: ends what an earlier producer left open, and fences it.

        Do this before asking for committed offsets. May be called again after `BrokerUnavailable`; `publish` calls it
        where it was not called.

        Raises
        ------
        BrokerUnavailable
            Raised if there is no answer in time.
        BrokerFatal
            Raised if the broker refuses for good.
        """
        if self._started:
            return
        if self.transactional:
            try:
                self._persist("start of the producer", self._producer.init_transactions, _after(timeout_s))
            except _Abortable as error:
                self._replace_client()
                raise error.outcome from error
        self._started = True

    def publish(
        self,
        messages: Iterable[OutgoingMessage],
        offsets: Sequence[Offset] = (),
        group_metadata: Any = None,
        *,
        n_bytes: int = 0,
    ) -> Receipt:
        """Publish messages and offsets.

        1. begin a transaction, having ended an earlier one that could not be ended in its time (if need be with a new
           client: see `_end_open_transaction`), with a time-out that its bytes fit into;
        2. produce every message, waiting where librdkafka's queue is full;
        3. wait for every delivery report;
        4. add the offsets to the transaction;
        5. commit it, asking until the broker has answered.

        An error in 2 to 4 aborts it. Without a transactional id only 2 and 3 are done.

        Parameters
        ----------
        messages
            In the order wanted; read once, while the transaction is open.
        offsets
            Of lanes assigned now: the offset after the event that is done with this.
        group_metadata
            `EventConsumer.group_metadata`, asked for just before.
        n_bytes
            Of the messages together, about; 0 for few.

        Returns
        -------
        Receipt
            When each message was acknowledged, and whether the offsets are committed.

        Raises
        ------
        BrokerUnavailable
            Raised if it could not be published; the transaction is aborted, or will be before the next. Publish again.
        MessageRefused
            Raised if one of the messages will never be taken; the transaction is aborted.
        ProducerFenced, CommitUncertain, BrokerFatal
            Raised if this producer is finished; exit.
        """
        self.start()
        if not self.transactional:
            return Receipt(tuple(self._deliver_at_least_once(messages)), offsets_committed=False)
        if offsets and group_metadata is None:
            msg = "offsets need the consumer's group metadata"
            raise ValueError(msg)
        if self._must_abort:
            self._end_open_transaction()
        self._make_time_for(n_bytes)
        try:
            self._producer.begin_transaction()
        except KafkaException as error:
            raise translate(error, "begin of a transaction") from error
        try:
            n_messages = self._fill_transaction(messages, offsets, group_metadata)
        except _Abortable as error:
            self._abort_quietly(_ABORT_S)
            raise error.outcome from error
        except BrokerFatal:
            raise
        except BaseException:  # the messages' source failed, or the process is being stopped
            self._abort_quietly(_ABORT_S)
            raise
        self._commit()
        self.counts["committed"] += 1
        now = self._clock()
        return Receipt((now,) * n_messages, offsets_committed=bool(offsets))

    def interrupt(self) -> None:
        """Make the `publish` under way, or else the next, give up with `BrokerUnavailable`; from any thread.

        For shutting down or giving up a partition while the broker is away. A transaction that is being committed is
        not interrupted.
        """
        self._interrupted.set()

    @property
    def overdue_s(self) -> float:
        """For how long a call of librdkafka has not returned beyond its own time-out; 0 where none is overdue.

        Notes
        -----
        A client of which a call never returns is finished, and so is its thread: only another process helps.
        """
        since = self._call_since
        return 0.0 if since is None else max(0.0, time.monotonic() - since - _CALL_S)

    def serve(self) -> None:
        """Serve librdkafka's callbacks and log lines; call it now and then while there is nothing to publish."""
        try:
            self._producer.poll(0.0)
        except KafkaException as error:
            raise translate(error, "producer") from error

    def close(self, *, timeout_s: float = 15.0) -> None:
        """Send what is queued (at-least-once), abort what is open (transactional), within `timeout_s`; raises nothing."""
        try:
            if self._must_abort:
                self._abort_quietly(timeout_s)
            elif not self.transactional:
                self._producer.flush(timeout_s)
            self._producer.purge()
        except (BrokerFatal, KafkaException) as error:
            _log.warning("closing a producer that is finished: %s", error)

    def _make_time_for(self, n_bytes: int) -> None:
        """Have the transaction time-out that so many bytes need: a new client under the same transactional id."""
        timeout_s, now = self._fit(n_bytes), time.monotonic()
        if timeout_s > self._least_timeout_s:
            self._large_until = now + _CALM_S
        is_calm = timeout_s < self._transaction_timeout_s and now > self._large_until
        if timeout_s <= self._transaction_timeout_s and not is_calm:
            return
        _log.info("transactions have %.0f s from now on", timeout_s)
        self._transaction_timeout_s = timeout_s
        self._replace_client()  # nothing is open under the old one
        self.start()

    def _end_open_transaction(self) -> None:
        """Abort what is open; where that failed again and again, have a new client's start do it.

        Notes
        -----
        A client whose coordinator was restarted may never reach it again (librdkafka keeps the request in its own queue,
        connected to nobody), while a new one does at once. The open transaction is not committed, for certain: a commit
        without an answer is `CommitUncertain`. The new client has the same transactional id, so that the broker ends
        what the old one left open and refuses what that may still send.
        """
        if self._failed_aborts < _ABORTS_BEFORE_ANEW:
            self._abort(_ABORT_S)
            return
        _log.warning("the open transaction cannot be ended by this client: a new one takes its place")
        self._replace_client()
        self.start()

    def _replace_client(self) -> None:
        """Go on with a new client, not started yet, under the same transactional id."""
        left = [self._producer]
        self._producer = self._connect()
        self._started, self._must_abort, self._failed_aborts = False, False, 0
        # The end of a client that is stuck may take long, or for ever: nobody waits for it.
        threading.Thread(target=left.clear, name="old-producer", daemon=True).start()

    def _fill_transaction(
        self, messages: Iterable[OutgoingMessage], offsets: Sequence[Offset], group_metadata: Any
    ) -> int:
        deadline = _after(_SHARE_TO_FILL * self._transaction_timeout_s)
        batch = self._new_batch()
        self._produce(messages, batch, deadline)
        self._await_reports(batch, deadline)
        if offsets:
            positions = [TopicPartition(*offset) for offset in offsets]
            send = functools.partial(self._producer.send_offsets_to_transaction, positions, group_metadata)
            self._persist("offsets of the transaction", send, deadline, interruptible=True)
        return len(batch.acked_at)

    def _deliver_at_least_once(self, messages: Iterable[OutgoingMessage]) -> list[float]:
        try:
            batch = self._new_batch()
            self._produce(messages, batch, math.inf)  # each message has its own time, so each is reported
            self._await_reports(batch, _after(self._delivery_timeout_s + 5 * _CALL_S))
        except _Abortable as error:
            raise error.outcome from error
        return batch.acked_at

    def _new_batch(self) -> _Batch:
        return _Batch(self._clock, self.counts)

    def _produce(self, messages: Iterable[OutgoingMessage], batch: _Batch, deadline: float) -> None:
        for message in messages:
            self._produce_one(message, batch, deadline)
            if len(batch.acked_at) % _SERVE_EVERY == 0:
                self._serve_reports(batch, deadline)

    def _produce_one(self, message: OutgoingMessage, batch: _Batch, deadline: float) -> None:
        partition = _ANY_PARTITION if message.partition is None else message.partition
        report = functools.partial(batch.report, batch.expect())
        while True:
            try:
                self._producer.produce(
                    message.topic,
                    message.value,
                    message.key,
                    partition=partition,
                    headers=list(message.headers),
                    on_delivery=report,
                )
            except BufferError:
                self._serve_reports(batch, deadline, wait_s=_PAUSE_S)
            except KafkaException as error:
                inner = kafka_error(error)
                if inner.code() in REFUSED_CODES:
                    refused = MessageRefused(message.topic, message.key, len(message.value or b""), inner.str())
                    raise _Abortable(refused) from error
                raise _fatal_or_abortable(inner, f"produce to {message.topic}") from error
            else:
                return

    def _await_reports(self, batch: _Batch, deadline: float) -> None:
        self._serve_reports(batch, deadline)
        while batch.n_waiting:
            self._serve_reports(batch, deadline, wait_s=_PAUSE_S, flush=True)

    def _serve_reports(self, batch: _Batch, deadline: float, *, wait_s: float = 0.0, flush: bool = False) -> None:
        try:
            if flush:
                self._producer.flush(wait_s)
            else:
                self._producer.poll(wait_s)
        except KafkaException as error:
            raise _fatal_or_abortable(kafka_error(error), "delivery") from error
        match batch.failure:
            case None:
                pass
            case BrokerFatal():
                raise batch.failure
            case failure:
                raise _Abortable(failure)
        self._heed_interrupt()
        if time.monotonic() > deadline:
            problem = f"{batch.n_waiting} of {len(batch.acked_at)} messages were not acknowledged in time"
            raise _Abortable(BrokerUnavailable(problem), timed_out=True)

    def _heed_interrupt(self) -> None:
        if self._interrupted.is_set():
            self._interrupted.clear()
            raise _Abortable(BrokerUnavailable("interrupted"))

    def _persist(
        self, doing: str, call: Callable[[float], object], deadline: float, *, interruptible: bool = False
    ) -> None:
        """Make the same call again, as librdkafka prescribes, for as long as it says that this may help."""
        while True:
            if interruptible:
                self._heed_interrupt()
            self._call_since = time.monotonic()
            try:
                call(min(_CALL_S, max(deadline - time.monotonic(), _PAUSE_S)))
            except KafkaException as error:
                self._call_since = None
                inner = kafka_error(error)
                if is_fatal(inner) or inner.txn_requires_abort():
                    raise _fatal_or_abortable(inner, doing) from error
                if not inner.retriable():
                    raise BrokerFatal(f"{doing}: {inner.str()} ({inner.name()})") from error
                if time.monotonic() > deadline:
                    outcome = BrokerUnavailable(f"{doing}: {inner.str()} ({inner.name()})")
                    raise _Abortable(outcome, timed_out=True) from error
                time.sleep(min(_PAUSE_S, max(deadline - time.monotonic(), 0.0)))
            else:
                self._call_since = None
                return

    def _commit(self) -> None:
        try:
            self._persist(
                "commit of the transaction", self._producer.commit_transaction, _after(self._commit_timeout_s)
            )
        except _Abortable as error:
            if error.timed_out:
                raise CommitUncertain(str(error.outcome)) from error
            self._abort_quietly(_ABORT_S)
            raise error.outcome from error

    def _abort(self, timeout_s: float) -> None:
        if not self._must_abort:
            self.counts["aborted"] += 1
        self._must_abort = True
        try:
            self._persist("abort of the transaction", self._producer.abort_transaction, _after(timeout_s))
        except _Abortable as error:
            self._failed_aborts += 1
            raise error.outcome from error
        self._must_abort, self._failed_aborts = False, 0

    def _abort_quietly(self, timeout_s: float) -> None:
        """Abort; where the broker is away too, leave it to the next `publish`. `BrokerFatal` comes through."""
        try:
            self._abort(timeout_s)
        except BrokerUnavailable as error:
            _log.warning("the transaction is still open: %s", error)


def _fatal_or_abortable(error: KafkaError, doing: str) -> BrokerFatal | _Abortable:
    outcome = translate(error, doing)
    return outcome if isinstance(outcome, BrokerFatal) else _Abortable(outcome)


def _after(seconds: float) -> float:
    return time.monotonic() + seconds


def _key(message: Message) -> bytes | None:
    key = message.key()
    return key.encode() if isinstance(key, str) else key
