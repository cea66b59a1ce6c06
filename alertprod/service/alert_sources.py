"""Alerts from wherever they are: containers, single messages, outbox files, folders of these, topics.

What cannot be read comes out too, with the reason: whoever asks decides whether that ends it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from alertprod.alerts.avro import decode_alert, read_alerts
from alertprod.errors import BadInputError, ConfigError, SchemaMismatch, StoreUnavailable
from alertprod.store.outbox import CorruptOutbox, read_outbox
from alertprod.stream.records import Headers, Received
from alertprod.stream.tail import AlertTail

KAFKA_SCHEME: Final = "kafka"

_CONTAINER_MAGIC: Final = b"Obj\x01"
_OUTBOX_SUFFIX: Final = ".outbox"
_SUFFIXES: Final = (".avro", ".outbox", ".bin", ".message")
"""Of files that are looked for in folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found in one place: an alert, or something that is none."""

    where: str
    """File, with the alert's number in it; or topic, partition and offset."""
    packet: dict[str, Any] | None
    """The decoded alert; None where it cannot be decoded."""
    problem: str = ""
    """Why there is no packet."""
    message: bytes | None = None
    """The bytes of the message; None in a container, whose alerts have no frame."""
    key: bytes | None = None
    headers: Headers | None = None
    """None where there can be none: in a container, in a single message."""
    timestamp_ms: int | None = None
    """Kafka's, milliseconds since 1970 UTC."""

    def take(self) -> dict[str, Any]:
        """Return the packet.

        Raises
        ------
        SchemaMismatch
            Raised if there is none.
        """
        if self.packet is None:
            raise SchemaMismatch(f"{self.where}: {self.problem}")
        return self.packet


def find_alerts(
    *sources: str | Path, options: Mapping[str, Any] | None = None, follow: bool = False, from_beginning: bool = True
) -> Iterator[Found]:
    """Yield what is found in each of several places, in order.

    Parameters
    ----------
    sources
        A file: an Avro container, one message, an outbox. A folder: all such files below it, by name. Or
        ``kafka://HOST:PORT/TOPIC``.
    options
        librdkafka settings for topics: security, as a rule.
    follow
        Wait for more at a topic's end.
    from_beginning
        Of topics: else only what comes from now on.

    Raises
    ------
    FileNotFoundError
        Raised if a file is not there.
    BrokerUnavailable
        Raised if a topic cannot be read.
    """
    for source in sources:
        if is_topic(source):
            servers, topic = _split(str(source))
            start: Literal["earliest", "latest"] = "earliest" if from_beginning else "latest"
            with AlertTail(servers, [topic], start=start, options=options) as tail:
                yield from map(examine, tail.messages(follow=follow))
        else:
            for path in list_files(Path(source)):
                yield from _read_file(path)


def is_topic(source: str | Path) -> bool:
    """Tell whether a source is a topic and no file."""
    return str(source).startswith(f"{KAFKA_SCHEME}://")


def list_files(path: Path) -> list[Path]:
    """Return the file itself, or the files of alerts below a folder, by name."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
    return [path]


def examine(received: Received) -> Found:
    """Return what a message from a topic holds."""
    return _examine(
        f"{received.topic}/{received.partition}@{received.offset}",
        received.value or b"",
        key=received.key,
        headers=received.headers,
        timestamp_ms=received.timestamp_ms,
    )


def _read_file(path: Path) -> Iterator[Found]:
    with path.open("rb") as file:
        start = file.read(len(_CONTAINER_MAGIC))
    if start.startswith(b"\x00"):
        yield _examine(str(path), path.read_bytes())
    elif path.suffix != _OUTBOX_SUFFIX and start != _CONTAINER_MAGIC:
        begins = f"begins with {start!r}" if start else "is empty"
        problem = f"neither an Avro container nor a message nor an outbox: it {begins}"
        yield Found(where=str(path), packet=None, problem=problem)
    elif path.suffix == _OUTBOX_SUFFIX:
        yield from _numbered(path, _read_outbox_file(path))
    else:
        yield from _numbered(path, (Found(where="", packet=packet) for packet in read_alerts(path)))


def _read_outbox_file(path: Path) -> Iterator[Found]:
    for message in read_outbox(str(path), None):
        yield _examine("", message.value, key=message.key, headers=message.headers)


def _numbered(path: Path, found: Iterable[Found]) -> Iterator[Found]:
    """Yield with places; what breaks a file off comes last, as something that cannot be read."""
    number = 0
    try:
        for number, each in enumerate(found, 1):
            yield replace(each, where=f"{path}#{number}")
    except (BadInputError, CorruptOutbox, StoreUnavailable) as error:
        yield Found(where=f"{path}#{number + 1}" if number else str(path), packet=None, problem=_plain(error))


def _plain(error: Exception) -> str:
    return error.problem if isinstance(error, CorruptOutbox) else str(error)


def _examine(
    where: str,
    message: bytes,
    *,
    key: bytes | None = None,
    headers: Headers | None = None,
    timestamp_ms: int | None = None,
) -> Found:
    packet, problem = None, ""
    try:
        packet = decode_alert(message)
    except SchemaMismatch as error:
        problem = str(error)
    return Found(
        where=where,
        packet=packet,
        problem=problem,
        message=message,
        key=key,
        headers=headers,
        timestamp_ms=timestamp_ms,
    )


def _split(source: str) -> tuple[str, str]:
    parts = urlsplit(source)
    topic = parts.path.strip("/")
    if not (parts.netloc and topic):
        raise ConfigError("command line", "source", f"{source!r} is not kafka://HOST:PORT/TOPIC")
    return parts.netloc, topic
