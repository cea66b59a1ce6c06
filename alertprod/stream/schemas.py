"""The writer's schema of an Avro event, by its id: from a registry, or from the project's own table.

With a registry configured the table is not asked: a registry numbers its schemas from 1 too, so an id
means one thing or the other, never both.
"""

import functools
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeVar

import fastavro

from alertprod._resources import schemas_directory
from alertprod.errors import InvalidEvent, RegistryUnavailable
from alertprod.stream.schema_registry import RegistryRefused, SchemaRegistry, StoredSchema

SCHEMA_IDS: Final[Mapping[int, str]] = {1: "visit_ready", 2: "next_visit", 3: "visit_summary", 4: "dead_letter"}
"""Ids 1 to 99 are ours. An id is for ever: a changed schema gets a new id, the old file stays."""

MAX_EVENT_BYTES: Final = 1 << 20
"""A visit_ready with a thousand template URIs is a tenth of this; what is longer is no event."""

_MAX_SCHEMA_LENGTH: Final = 1 << 20
_MAX_SCHEMA_NODES: Final = 2000
"""Of a registry's schema with its named types written out; ours have about 20. Bounds the work on each event."""

_CACHED_SCHEMAS: Final = 256
_UNKNOWN_FOR_S: Final = 30.0
"""An unknown id is not asked for again before this: bad events must not become load on the registry."""

_PRIMITIVES: Final = frozenset({"boolean", "int", "long", "float", "double", "bytes", "string"})

ParsedSchema = Any
"""What `fastavro.parse_schema` returns."""

_V = TypeVar("_V")


class WriterSchemas(Protocol):
    """Where decoding finds the schema that an event was written with."""

    def get(self, schema_id: int) -> ParsedSchema:
        """Return the parsed schema; `InvalidEvent` for an unknown id, `RegistryUnavailable` when it cannot be known."""
        ...


class FixedSchemas:
    """The table `SCHEMA_IDS`: needs no registry."""

    def get(self, schema_id: int) -> ParsedSchema:
        """Return the parsed schema; see `WriterSchemas`."""
        name = SCHEMA_IDS.get(schema_id)
        if name is None:
            raise InvalidEvent(
                "schema id", f"nobody knows {schema_id}; ours are {min(SCHEMA_IDS)} to {max(SCHEMA_IDS)}"
            )
        return load_event_schema(name)


@functools.cache
def load_event_schema(name: str) -> ParsedSchema:
    """Return the parsed schema of one of our events, for example ``visit_ready``."""
    path = schemas_directory() / f"alertprod.v1.{name}.avsc"
    return fastavro.parse_schema(json.loads(path.read_text(encoding="utf-8")))


def describe_event_schemas() -> list[dict[str, Any]]:
    """Return name, version, id, number of fields and CRC-64-AVRO fingerprint of each of our schemas."""
    rows = []
    for schema_id, name in SCHEMA_IDS.items():
        schema = load_event_schema(name)
        form = fastavro.schema.to_parsing_canonical_form(schema)
        rows.append(
            {
                "name": schema["name"],
                "version": "1",
                "schema_id": schema_id,
                "n_fields": len(schema["fields"]),
                "fingerprint": fastavro.schema.fingerprint(form, "CRC-64-AVRO"),
            }
        )
    return rows


class RegistrySchemas:
    """Schemas from a Confluent-compatible registry, kept once they are known. Thread-safe.

    Parameters
    ----------
    url
        Root of the registry's REST interface, http or https.
    timeout_s
        For one request; `get` blocks for as long, so decode away from the thread that polls Kafka or keep it
        well below ``max.poll.interval.ms``.
    authorization
        Value of the Authorization header, where the registry wants one.

    Raises
    ------
    ConfigError
        Raised if `url` is not http or https.
    """

    def __init__(self, url: str, *, timeout_s: float = 5.0, authorization: str | None = None) -> None:
        self._registry = SchemaRegistry(url, timeout_s=timeout_s, authorization=authorization)
        self._lock = threading.Lock()
        self._known: OrderedDict[int, ParsedSchema] = OrderedDict()
        self._unknown: OrderedDict[int, float] = OrderedDict()

    def get(self, schema_id: int) -> ParsedSchema:
        """Return the parsed schema; see `WriterSchemas`."""
        with self._lock:
            if schema_id in self._known:
                self._known.move_to_end(schema_id)
                return self._known[schema_id]
            asked_at = self._unknown.get(schema_id)
        if asked_at is not None and time.monotonic() - asked_at < _UNKNOWN_FOR_S:
            raise InvalidEvent("schema id", f"the registry does not know {schema_id}")
        answer = self._fetch(schema_id)
        if answer is None:
            with self._lock:
                _remember(self._unknown, schema_id, time.monotonic())
            raise InvalidEvent("schema id", f"the registry does not know {schema_id}")
        schema = parse_foreign_schema(answer, schema_id)
        with self._lock:
            _remember(self._known, schema_id, schema)
        return schema

    def knows(self, schema_id: int) -> bool:
        """Tell whether the registry has a schema; `RegistryUnavailable` when it does not answer."""
        return self._fetch(schema_id) is not None

    def _fetch(self, schema_id: int) -> StoredSchema | None:
        try:
            return self._registry.get_schema(schema_id)
        except RegistryRefused as refusal:
            # It wants a password, say: that is no fault of the event.
            raise RegistryUnavailable(str(refusal)) from refusal


def parse_foreign_schema(stored: StoredSchema, schema_id: int) -> ParsedSchema:
    """Parse a schema from a registry.

    Raises
    ------
    InvalidEvent
        Raised if the schema is not Avro, refers to other subjects, is very long, or allows a few bytes of an event to
        stand for unbounded data: recursion, values of no bytes in arrays, thousands of nested fields.
    """
    if stored.schema_type != "AVRO":
        raise InvalidEvent("schema id", f"schema {schema_id} is {stored.schema_type}, not Avro")
    if stored.has_references:
        raise InvalidEvent("schema id", f"schema {schema_id} refers to other subjects, which is not supported")
    if len(stored.schema) > _MAX_SCHEMA_LENGTH:
        raise InvalidEvent("schema id", f"schema {schema_id} is longer than {_MAX_SCHEMA_LENGTH} characters")
    try:
        declared = json.loads(stored.schema)
        schema = fastavro.parse_schema(declared)
        _SchemaGuard().check(fastavro.schema.expand_schema(declared), schema_id)
    except InvalidEvent:
        raise
    except Exception as error:  # fastavro raises whatever a malformed schema makes its code trip over
        raise InvalidEvent("schema id", f"schema {schema_id} cannot be used: {error!r}") from error
    return schema


class _SchemaGuard:
    """Refuses schemas that let few bytes stand for much; works on schemas with named types written out."""

    def __init__(self) -> None:
        self._nodes = 0

    def check(self, schema: Any, schema_id: int) -> None:
        """Walk the schema; every value outside a union must cost at least one byte."""
        self._nodes += 1
        if self._nodes > _MAX_SCHEMA_NODES:
            raise InvalidEvent("schema id", f"schema {schema_id} has more than {_MAX_SCHEMA_NODES} nested types")
        match schema:
            case list():
                for branch in schema:
                    if branch != "null":
                        self.check(branch, schema_id)
            case {"type": "record" | "error", "fields": [*fields]} if fields:
                for field in fields:
                    self.check(field["type"], schema_id)
            case {"type": "array", "items": items}:
                self.check(items, schema_id)
            case {"type": "map", "values": values}:
                self.check(values, schema_id)
            case {"type": "enum"}:
                pass
            case {"type": "fixed", "size": int(size)} if size > 0:
                pass
            case {"type": dict() | list() as inner}:
                self.check(inner, schema_id)
            case {"type": str(name)} | str(name) if name in _PRIMITIVES:
                pass
            case _:
                raise InvalidEvent("schema id", f"schema {schema_id} is recursive or has values of no bytes")


def _remember(table: OrderedDict[int, _V], schema_id: int, value: _V) -> None:
    table[schema_id] = value
    while len(table) > _CACHED_SCHEMAS:
        table.popitem(last=False)
