"""Reads topics without a group: what a subscriber who sees committed messages only would see."""

import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition

from alertprod.errors import BrokerUnavailable, ConfigError
from alertprod.stream.client_log import client_log, log_client_error
from alertprod.stream.consumer import to_received
from alertprod.stream.errors import translate
from alertprod.stream.records import Lane, Received


class AlertTail:
    """A `read_committed` reader of whole topics; commits nothing, joins no group. For one thread.

    Parameters
    ----------
    bootstrap_servers
        ``host:port`` of one or more brokers, separated by commas.
    topics
        Topics to read, all partitions of each.
    start
        ``earliest`` or ``latest``.
    isolation
        ``read_uncommitted`` shows what aborted transactions wrote too.
    timeout_s
        To wait for the topics' metadata.
    options
        librdkafka settings that replace or add to ours: security, as a rule.

    Raises
    ------
    BrokerUnavailable
        Raised if the broker does not answer or a topic does not exist.
    ConfigError
        Raised if librdkafka does not take the settings.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topics: Sequence[str],
        *,
        start: Literal["earliest", "latest"] = "earliest",
        isolation: Literal["read_committed", "read_uncommitted"] = "read_committed",
        timeout_s: float = 10.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        settings = {
            "bootstrap.servers": bootstrap_servers,
            "client.id": "alertprod-tail",
            "group.id": "alertprod-tail",  # librdkafka wants one; nothing is ever committed to it
            "enable.auto.commit": False,
            "isolation.level": isolation,
            "enable.partition.eof": True,
            "allow.auto.create.topics": False,
            "error_cb": log_client_error,
            "reconnect.backoff.max.ms": 2_000,
            **(options or {}),
        }
        try:
            self._consumer = Consumer(settings, logger=client_log)
        except (KafkaException, ValueError, TypeError) as error:
            raise ConfigError("configuration", "kafka reader", str(error)) from error
        try:
            self._lanes = [lane for topic in topics for lane in self._find_lanes(topic, timeout_s)]
            first = OFFSET_BEGINNING if start == "earliest" else self._find_ends(timeout_s)
            self._consumer.assign(
                [TopicPartition(*lane, first if isinstance(first, int) else first[lane]) for lane in self._lanes]
            )
        except BaseException:
            self._consumer.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def messages(self, *, follow: bool = False, idle_s: float | None = None) -> Iterator[Received]:
        """Yield messages; each partition's in order, partitions as they come.

        Parameters
        ----------
        follow
            Wait for more after the end. Otherwise stop when every partition's end was reached; messages of a
            transaction that is still open lie behind that end.
        idle_s
            Stop when nothing has come for so long.

        Raises
        ------
        BrokerUnavailable
            Raised if the broker reports an error; the reader can be asked again.
        """
        unread = set() if follow else set(self._lanes)
        last = time.monotonic()
        while follow or unread:
            try:
                message = self._consumer.poll(0.2)
            except KafkaException as error:
                raise translate(error, "read") from error
            if message is None:
                if idle_s is not None and time.monotonic() - last > idle_s:
                    return
                continue
            problem = message.error()
            if problem is None:
                last = time.monotonic()
                yield to_received(message)
            elif problem.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - librdkafka's local codes have no other name
                unread.discard(Lane(str(message.topic()), int(message.partition() or 0)))
            else:
                raise translate(problem, f"read of {message.topic()}")

    def close(self) -> None:
        """Close the reader."""
        self._consumer.close()

    def _find_lanes(self, topic: str, timeout_s: float) -> list[Lane]:
        try:
            facts = self._consumer.list_topics(topic, timeout=timeout_s).topics[topic]
        except KafkaException as error:
            raise translate(error, f"metadata of {topic}") from error
        if facts.error is not None:
            raise BrokerUnavailable(f"metadata of {topic}: {facts.error.str()}")
        return [Lane(topic, partition) for partition in sorted(facts.partitions)]

    def _find_ends(self, timeout_s: float) -> dict[Lane, int]:
        # Asked for now: OFFSET_END is looked up at the first fetch, and would skip what is written until then.
        ends = {}
        for lane in self._lanes:
            try:
                marks = self._consumer.get_watermark_offsets(TopicPartition(*lane), timeout=timeout_s)
            except KafkaException as error:
                raise translate(error, f"end of {lane.topic}") from error
            ends[lane] = OFFSET_END if marks is None else marks[1]
        return ends
