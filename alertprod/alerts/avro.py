"""Alerts to bytes and back: Confluent framing on the wire, object container files on disk.

On the wire a message carries only the schema's id, so a reader must have the schema; a container
file carries the schema itself and is what to hand to somebody else.
"""

import io
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import fastavro

from alertprod.alerts.registry import ALERT_SCHEMA_ID, SCHEMA_VERSIONS, load_alert_schema
from alertprod.errors import SchemaMismatch

_FRAME = struct.Struct(">bi")
"""A zero byte, then the schema's id: Confluent's framing."""

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
    """Write packets as an Avro object container file and return their number.

    Notes
    -----
    Deflated: cutouts shrink by a third, and every reader of Avro has that codec. A path is written under another name
    first and renamed when whole.
    """
    if not isinstance(target, Path):
        return _write_container(target, packets)
    partial = target.with_name(target.name + ".partial")
    with partial.open("wb") as file:
        n = _write_container(file, packets)
    partial.replace(target)
    return n


def read_alerts(source: Path | BinaryIO) -> Iterator[dict[str, Any]]:
    """Yield the packets of an object container file, of whatever schema it carries.

    Raises
    ------
    SchemaMismatch
        Raised if the file is no Avro container, or breaks off.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            yield from read_alerts(file)
        return
    try:
        for packet in fastavro.reader(source):
            yield _as_record(packet)
    except _UNREADABLE as error:
        raise SchemaMismatch(f"not a readable Avro container: {error!r}") from error


def _write_container(file: BinaryIO, packets: Iterable[Mapping[str, Any]]) -> int:
    n = 0

    def counted() -> Iterator[Mapping[str, Any]]:
        nonlocal n
        for packet in packets:
            n += 1
            yield packet

    fastavro.writer(file, load_alert_schema(), counted(), codec="deflate", strict=True)
    return n


def _as_record(decoded: Any) -> dict[str, Any]:
    if not isinstance(decoded, dict):
        raise SchemaMismatch(f"a record was expected, not {type(decoded).__name__}")
    return decoded
