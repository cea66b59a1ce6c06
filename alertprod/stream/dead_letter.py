"""Dead letters: the original event's bytes, with why, where and how often in headers.

The headers are the fields of ``schemas/alertprod.v1.dead_letter.avsc``: ``alertprod-error-`` and the field's name with
hyphens, all as text. They say of Kafka Connect's headers what applies here.
"""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Final

from alertprod.errors import AlertprodError, InvalidEvent
from alertprod.stream.records import Headers, OutgoingMessage, Received

HEADER_PREFIX: Final = "alertprod-error-"
REPLAY_HEADER: Final = "alertprod-replay"
"""On an event that was a dead letter and is sent again: without it the ledger takes the event for a duplicate."""

_REPLAY_OF_DEAD_LETTER: Final = b"dead-letter"

TRUNCATED_HEADER: Final = HEADER_PREFIX + "truncated-from"
"""On a dead letter that the topic would not take whole: how many bytes the event has. It cannot be replayed from here."""

SHORTENED_BYTES: Final = 512 << 10
"""Of an event whose dead letter was refused: below every broker's limit, and no event of ours is half as long."""

MAX_MESSAGE_BYTES: Final = 2048
MAX_STACKTRACE_BYTES: Final = 8192
"""Headers count towards the broker's limit on a message; the end of a traceback says most."""

UNEXPECTED: Final = "unexpected"
"""The reason of what is no error of this program's own: a bug."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """What a dead letter's headers say; the fields are those of its schema, which explains each."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None = None
    stage: str
    reason: str
    exception: str
    message: str
    stacktrace: str | None = None
    attempts: int
    worker_deaths: int = 0
    instrument: str | None = None
    visit: int | None = None
    detector: int | None = None
    version: str
    config_hash: str | None = None
    sent_at_ms: int

    def to_headers(self) -> Headers:
        """Return the headers; what is None has none."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return tuple(
            (_header(name), str(value).encode(errors="replace")) for name, value in values if value is not None
        )


def make_dead_letter(
    received: Received,
    error: BaseException,
    *,
    topic: str,
    stage: str,
    attempts: int,
    version: str,
    config_hash: str | None = None,
    worker_deaths: int = 0,
    exposure: tuple[str, int, int] | None = None,
    clock: Callable[[], float] = time.time,
) -> OutgoingMessage:
    """Return the dead letter of an event.

    Parameters
    ----------
    received
        The event as it came; its key, value and own headers are kept.
    error
        Why. Its traceback goes along.
    topic
        The topic of dead letters.
    stage
        Where: receive, claim, compute, store, publish.
    attempts
        How often the event was tried.
    version, config_hash
        Of the program that gave up.
    worker_deaths
        How many workers hung, crashed or outgrew their memory over it.
    exposure
        Instrument, visit and detector, where the event could be decoded.
    clock
        Unix time in seconds.
    """
    instrument, visit, detector = exposure or (None, None, None)
    letter = DeadLetter(
        topic=received.topic,
        partition=received.partition,
        offset=received.offset,
        timestamp_ms=received.timestamp_ms,
        stage=stage,
        reason=error.reason() if isinstance(error, AlertprodError) else UNEXPECTED,
        exception=f"{type(error).__module__}.{type(error).__qualname__}",
        message=_text_of(error)[:MAX_MESSAGE_BYTES].decode(errors="ignore"),
        stacktrace=_stacktrace(error),
        attempts=attempts,
        worker_deaths=worker_deaths,
        instrument=instrument,
        visit=visit,
        detector=detector,
        version=version,
        config_hash=config_hash,
        sent_at_ms=round(clock() * 1000),
    )
    headers = _own_headers(received) + letter.to_headers()
    return OutgoingMessage(topic=topic, key=received.key, value=received.value, headers=headers)


def shorten_dead_letter(letter: OutgoingMessage) -> OutgoingMessage:
    """Return a dead letter that any topic takes: the event's beginning, without its own headers and the traceback."""
    value, key = letter.value or b"", letter.key
    headers = tuple(
        pair for pair in letter.headers if pair[0].startswith(HEADER_PREFIX) and pair[0] != _header("stacktrace")
    )
    return OutgoingMessage(
        topic=letter.topic,
        key=None if key is None else key[:SHORTENED_BYTES],
        value=value[:SHORTENED_BYTES],
        headers=(*headers, (TRUNCATED_HEADER, str(len(value)).encode())),
    )


def parse_dead_letter(received: Received) -> DeadLetter:
    """Return what the headers of a dead letter say.

    Raises
    ------
    InvalidEvent
        Raised if a header is missing or is no number where it must be one.
    """
    given = {name: value.decode(errors="replace") for name, value in received.headers}
    values: dict[str, Any] = {}
    for field in fields(DeadLetter):
        text = given.get(_header(field.name))
        if text is None:
            continue
        try:
            values[field.name] = int(text) if "int" in str(field.type) else text
        except ValueError as error:
            raise InvalidEvent(_header(field.name), f"{text[:40]!r} is no whole number") from error
    try:
        return DeadLetter(**values)
    except TypeError as error:
        raise InvalidEvent("headers", f"not a dead letter: {error}") from error


def make_replay(received: Received) -> OutgoingMessage:
    """Return the event of a dead letter, marked, to be sent to the topic it came from once more.

    Raises
    ------
    InvalidEvent
        Raised if the headers are not a dead letter's, or it has only the beginning of the event.
    """
    letter = parse_dead_letter(received)
    whole = dict(received.headers).get(TRUNCATED_HEADER)
    if whole is not None:
        raise InvalidEvent("value", f"only the beginning of {whole.decode(errors='replace')} bytes is here")
    headers = (*_own_headers(received), (REPLAY_HEADER, _REPLAY_OF_DEAD_LETTER))
    return OutgoingMessage(topic=letter.topic, key=received.key, value=received.value, headers=headers)


def is_dead_letter_replay(received: Received) -> bool:
    """Tell whether an event was a dead letter that somebody sent again."""
    return (REPLAY_HEADER, _REPLAY_OF_DEAD_LETTER) in received.headers


def _own_headers(received: Received) -> Headers:
    ours = (HEADER_PREFIX, REPLAY_HEADER)
    return tuple(pair for pair in received.headers if not pair[0].startswith(ours))


def _header(field: str) -> str:
    return HEADER_PREFIX + field.replace("_", "-")


def _text_of(error: BaseException) -> bytes:
    return (str(error) or repr(error)).encode(errors="replace")


def _stacktrace(error: BaseException) -> str | None:
    if error.__traceback__ is None and error.__cause__ is None:
        return None
    text = "".join(traceback.format_exception(error)).encode(errors="replace")
    return text[-MAX_STACKTRACE_BYTES:].decode(errors="ignore")
