"""Alerts to bytes and back: Confluent framing on the wire, object container files on disk.

On the wire a message carries only the schema's id, so a reader must have the schema; a container
file carries the schema itself and is what to hand to somebody else.
"""

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import fastavro

from alertprod.alerts.encoding import encode_long
from alertprod.alerts.evolution import find_breaks
from alertprod.alerts.registry import (
    ALERT_SCHEMA_ID,
    ALERT_SCHEMA_VERSION,
    SCHEMA_VERSIONS,
    load_alert_schema,
    plain_schema,
)
from alertprod.errors import SchemaMismatch

_FRAME = struct.Struct(">bi")
"""A zero byte, then the schema's id: Confluent's framing."""

_BLOCK_BYTES = 1 << 20
"""Of a container's block before it is deflated: ten alerts, so that a reader needs little memory."""

_MARKER_BYTES = 16

_UNREADABLE = (ValueError, TypeError, EOFError, IndexError, KeyError, OverflowError, struct.error, MemoryError)
"""What fastavro raises on bytes that are no such record: it has no error of its own for that."""


def encode_alert(packet: Mapping[str, Any]) -> bytes:
    """Encode a packet as one message.

    Parameters
    ----------
    packet
        All fields of the alert record under their names on the wire; Python scalars.

    Raises
    ------
    ValueError, TypeError
        Raised if a field is missing, unknown or of another type than the schema's.
    """
    buffer = io.BytesIO()
    buffer.write(_FRAME.pack(0, ALERT_SCHEMA_ID))
    fastavro.schemaless_writer(buffer, load_alert_schema(), packet, strict=True)
    return buffer.getvalue()


def frame_alert(parts: Iterable[bytes]) -> bytes:
    """Return the message of an alert whose fields are encoded already."""
    return b"".join((_FRAME.pack(0, ALERT_SCHEMA_ID), *parts))


def is_newest(message: bytes) -> bool:
    """Tell whether a message is framed as one of the newest schema."""
    return message.startswith(_FRAME.pack(0, ALERT_SCHEMA_ID))


def decode_alert(message: bytes) -> dict[str, Any]:
    """Decode a message of any version that was ever written.

    Returns
    -------
    dict
        The fields of the newest version; those that the message's own version had not yet are null.

    Raises
    ------
    SchemaMismatch
        Raised if the framing is another, the schema's id is none of ours, or the bytes are not one whole alert.
    """
    if len(message) < _FRAME.size:
        raise SchemaMismatch(f"{len(message)} bytes are too few for the framing of a message")
    magic, schema_id = _FRAME.unpack_from(message)
    if magic != 0:
        raise SchemaMismatch(f"the first byte is {message[0]:#04x}, framed Avro begins with 0x00")
    if schema_id not in SCHEMA_VERSIONS:
        known = ", ".join(map(str, SCHEMA_VERSIONS))
        raise SchemaMismatch(f"schema id {schema_id} is not known here; alerts are {known}")
    newest = None if schema_id == ALERT_SCHEMA_ID else load_alert_schema()
    buffer = io.BytesIO(message)
    buffer.seek(_FRAME.size)
    try:
        packet = fastavro.schemaless_reader(buffer, load_alert_schema(schema_id), newest)
    except _UNREADABLE as error:
        raise SchemaMismatch(f"not an alert of schema {schema_id}: {error!r}") from error
    left = len(message) - buffer.tell()
    if left:
        raise SchemaMismatch(f"{left} bytes are left over after the alert")
    return _as_record(packet)


def write_alerts(target: Path | BinaryIO, packets: Iterable[Mapping[str, Any]]) -> int:
    """Write packets as an Avro object container file and return their number; see `write_messages`."""
    return write_messages(target, map(encode_alert, packets))


def write_messages(target: Path | BinaryIO, messages: Iterable[bytes]) -> int:
    """Write messages of the newest schema as an Avro object container file and return their number.

    Raises
    ------
    SchemaMismatch
        Raised if a message is of another schema.

    Notes
    -----
    Nothing is decoded: a container holds the same bytes without their frames. Deflated, since every reader of Avro has
    that codec; at its quickest, since noise shrinks no better at its slowest. A path is written under another name first
    and renamed when whole.
    """
    if isinstance(target, Path):
        with whole_file(target) as partial, partial.open("wb") as file:
            return write_messages(file, messages)
    writer = ContainerWriter(target)
    for message in messages:
        writer.write(message)
    return writer.close()


class ContainerWriter:
    """Writes an Avro object container file message by message; see `write_messages`.

    Parameters
    ----------
    file
        Open for writing bytes; it stays open.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._marker = file, os.urandom(_MARKER_BYTES)
        self._waiting: list[bytes] = []
        self._n_waiting_bytes = self._n_written = 0
        fastavro.writer(file, load_alert_schema(), (), codec="deflate", sync_marker=self._marker)

    def write(self, message: bytes) -> None:
        """Add one message.

        Raises
        ------
        SchemaMismatch
            Raised if it is of another schema.
        """
        if not is_newest(message):
            raise SchemaMismatch(
                f"a message that begins with {message[: _FRAME.size].hex()} is none of {ALERT_SCHEMA_ID}"
            )
        self._waiting.append(message[_FRAME.size :])
        self._n_waiting_bytes += len(message)
        if self._n_waiting_bytes >= _BLOCK_BYTES:
            self._write_block()

    def close(self) -> int:
        """Write what waits, and return how many messages there are in all."""
        if self._waiting:
            self._write_block()
        return self._n_written

    def _write_block(self) -> None:
        packer = zlib.compressobj(level=1, wbits=-zlib.MAX_WBITS)  # Avro's deflate has neither head nor checksum
        data = packer.compress(b"".join(self._waiting)) + packer.flush()
        n = len(self._waiting)
        self._file.write(b"".join((encode_long(n), encode_long(len(data)), data, self._marker)))
        self._waiting, self._n_waiting_bytes, self._n_written = [], 0, self._n_written + n


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give another name to write to, which is renamed when nothing went wrong and removed when something did."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_alerts(source: Path | BinaryIO) -> Iterator[dict[str, Any]]:
    """Yield the packets of an object container file, with the fields of the newest version.

    Raises
    ------
    SchemaMismatch
        Raised if the file is no Avro container, breaks off, or holds something that does not read as our alerts: another
        survey's, or Rubin's of another major version.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            yield from read_alerts(file)
        return
    try:
        reader = fastavro.reader(source, reader_schema=load_alert_schema())
        breaks = find_breaks(reader.writer_schema, plain_schema(load_alert_schema()))
        if breaks:
            raise SchemaMismatch(f"holds no alerts of {ALERT_SCHEMA_VERSION}: {'; '.join(breaks[:3])}")
        for packet in reader:
            yield _as_record(packet)
    except _UNREADABLE as error:
        if isinstance(error, SchemaMismatch):
            raise
        raise SchemaMismatch(f"not a readable Avro container: {error!r}") from error


def _as_record(decoded: Any) -> dict[str, Any]:
    if not isinstance(decoded, dict):
        raise SchemaMismatch(f"a record was expected, not {type(decoded).__name__}")
    return decoded
