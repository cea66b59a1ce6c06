"""What comes from Kafka and what goes to it, as plain values."""

from dataclasses import dataclass
from typing import NamedTuple

Headers = tuple[tuple[str, bytes], ...]


class Lane(NamedTuple):
    """One partition of one topic: exposures of a lane are done one after the other."""

    topic: str
    partition: int


class Offset(NamedTuple):
    """A position in a lane: the offset of the next event to be consumed."""

    topic: str
    partition: int
    offset: int

    @property
    def lane(self) -> Lane:
        """The partition it is in."""
        return Lane(self.topic, self.partition)


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One message as Kafka gave it; nothing in it has been looked at."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp_ms: int | None = None
    """Kafka's timestamp, milliseconds since 1970 UTC; whether the producer or the broker set it is the topic's choice."""

    @property
    def lane(self) -> Lane:
        """The partition it came from."""
        return Lane(self.topic, self.partition)

    @property
    def next_offset(self) -> Offset:
        """What to commit when this message is done with."""
        return Offset(self.topic, self.partition, self.offset + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingMessage:
    """One message to publish."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None
    """None lets the key decide: murmur2, as Java's clients."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that messages were taken."""

    acked_at: tuple[float, ...]
    """Of each message, Unix time in seconds: when its transaction's commit returned, or else its delivery report came."""
    offsets_committed: bool
    """Whether the offsets went with it; where not, commit them through the consumer now."""
