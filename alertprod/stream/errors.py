"""What can go wrong between the daemon and Kafka, told apart by what must be done about it.

::

    AlertprodError
    ├─ TransientError / BrokerUnavailable   ask again
    ├─ BrokerFatal                          this client is finished: exit and be restarted
    │  ├─ ProducerFenced                    another process has our transactional id, or we were too slow
    │  └─ CommitUncertain                   the restarted process asks the committed offset what happened
    ├─ PartitionRevoked                     drop the work, the partition's new owner does it
    └─ ProcessingError / MessageRefused     this message will never be taken

librdkafka's errors are translated here and nowhere else.
"""

from typing import Final

from confluent_kafka import KafkaError, KafkaException

from alertprod.errors import AlertprodError, BrokerUnavailable, ProcessingError


class BrokerFatal(AlertprodError, ConnectionError):
    """A client that cannot go on: exit and be restarted."""


class ProducerFenced(BrokerFatal):
    """Another producer has started with our transactional id, or the broker ended a transaction open for too long."""


class CommitUncertain(BrokerFatal):
    """The broker has not said whether the transaction is committed; the committed offset will tell after a restart."""


class PartitionRevoked(AlertprodError):
    """The partition is not ours any more: its new owner will do the work, drop it."""

    def __init__(self, topic: str, partition: int) -> None:
        super().__init__(topic, partition)
        self.topic, self.partition = topic, partition

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}] is not assigned to this consumer"


class MessageRefused(ProcessingError):
    """The broker will never take this message: too large, as a rule."""

    def __init__(self, topic: str, key: bytes | None, n_bytes: int, problem: str) -> None:
        super().__init__(topic, key, n_bytes, problem)
        self.topic, self.key, self.n_bytes, self.problem = topic, key, n_bytes, problem

    def __str__(self) -> str:
        return f"{self.topic}: message of {self.n_bytes} bytes with key {self.key!r}: {self.problem}"


FENCED_CODES: Final = frozenset(
    {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}  # noqa: SLF001 - librdkafka's local codes have no other name
)
REFUSED_CODES: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_RECORD,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_TIMESTAMP,
    }
)
"""Of one message; anything else may work later."""

_REVOKED_CODES: Final = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError._ASSIGNMENT_LOST,  # noqa: SLF001 - a local code of librdkafka, which has no other name
    }
)
_FATAL_CODES: Final = frozenset(
    {
        KafkaError._FATAL,  # noqa: SLF001 - likewise
        KafkaError._MAX_POLL_EXCEEDED,  # noqa: SLF001 - the group has gone on without us, and librdkafka may hang after it
        KafkaError.FENCED_INSTANCE_ID,
    }
)


def kafka_error(error: KafkaError | KafkaException) -> KafkaError:
    """Return the `KafkaError` in an exception of the client."""
    inner = error.args[0] if isinstance(error, KafkaException) else error
    if not isinstance(inner, KafkaError):
        msg = f"not an error of the Kafka client: {error!r}"
        raise TypeError(msg)
    return inner


def is_fatal(error: KafkaError) -> bool:
    """Tell whether the client that gave this error is finished."""
    return error.fatal() or error.code() in _FATAL_CODES


def is_revoked(error: KafkaError) -> bool:
    """Tell whether the error means that our membership of the group is over."""
    return error.code() in _REVOKED_CODES


def translate(error: KafkaError | KafkaException, doing: str) -> BrokerFatal | BrokerUnavailable:
    """Return the error to raise for `error`, which came up while `doing`."""
    inner = kafka_error(error)
    text = f"{doing}: {inner.str()} ({inner.name()})"
    if inner.code() in FENCED_CODES and (inner.fatal() or not inner.txn_requires_abort()):
        return ProducerFenced(text)
    if is_fatal(inner):
        return BrokerFatal(text)
    return BrokerUnavailable(text)
