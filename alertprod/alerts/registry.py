"""The alert's Avro schema and its id: fixed by the version, so no registry is needed to read or write.

The id is ``100 * major + minor`` of the version in the records' names, as Rubin numbers its schemas.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastavro.schema import fingerprint, load_schema_ordered, to_parsing_canonical_form

from alertprod._resources import schemas_directory

ALERT_SCHEMA_VERSION = "11.1"
"""Rubin's newest; version and name of a record change together."""

ALERT_SCHEMA_ID = 1101
"""What `ALERT_SCHEMA_VERSION` is called in the framing of a message."""

SCHEMA_VERSIONS: Mapping[int, str] = {ALERT_SCHEMA_ID: ALERT_SCHEMA_VERSION}
"""Every version ever written, by its id: an entry is for ever, so that old alerts stay readable. A new version is a new
entry and a new set of files; the files of an old one are not touched."""

_RECORDS = ("diaSource", "diaForcedSource", "diaObject", "ssSource", "mpc_orbits", "alert")
"""In the order in which they refer to one another."""


@dataclass(frozen=True, slots=True)
class SchemaFacts:
    """What a schema registry would say of a schema."""

    name: str
    version: str
    schema_id: int
    n_fields: int
    fingerprint: str
    """CRC-64-AVRO of the parsing canonical form, hexadecimal."""


@functools.cache
def load_alert_schema(schema_id: int = ALERT_SCHEMA_ID) -> Mapping[str, Any]:
    """Return the parsed schema of the alert record, the other records resolved inside it.

    Raises
    ------
    KeyError
        Raised if `schema_id` is none of `SCHEMA_VERSIONS`.
    """
    folder, namespace = schemas_directory(), _namespace(SCHEMA_VERSIONS[schema_id])
    return load_schema_ordered([str(folder / f"{namespace}.{record}.avsc") for record in _RECORDS])


@functools.cache
def compute_canonical_form(schema_id: int = ALERT_SCHEMA_ID) -> str:
    """Return the parsing canonical form of an alert schema: what says whether two are the same."""
    return to_parsing_canonical_form(load_alert_schema(schema_id))


def plain_schema(parsed: Any) -> Any:
    """Return a parsed schema as JSON has it: with documentation and defaults, without fastavro's own notes."""
    if isinstance(parsed, list):
        return [plain_schema(part) for part in parsed]
    if isinstance(parsed, dict):
        return {key: plain_schema(value) for key, value in parsed.items() if not key.startswith("__")}
    return parsed


def list_schemas() -> list[SchemaFacts]:
    """Return the facts of every version of the alert's schema."""
    return [
        SchemaFacts(
            name=f"{_namespace(version)}.alert",
            version=version,
            schema_id=schema_id,
            n_fields=len(load_alert_schema(schema_id)["fields"]),
            fingerprint=fingerprint(compute_canonical_form(schema_id), "CRC-64-AVRO"),
        )
        for schema_id, version in SCHEMA_VERSIONS.items()
    ]


def _namespace(version: str) -> str:
    return f"lsst.v{version.replace('.', '_')}"


@functools.cache
def load_record_schema(record: str) -> Mapping[str, Any]:
    """Return the parsed schema of one of the alert's records."""
    for schema in _walk_records(load_alert_schema()):
        if schema["name"] == f"{_namespace(ALERT_SCHEMA_VERSION)}.{record}":
            return schema
    msg = f"the alert has no record {record}"
    raise KeyError(msg)


class FieldType(NamedTuple):
    """What a field of a record holds."""

    avro_type: str
    """A primitive type's name, or record or array."""
    nullable: bool


@functools.cache
def record_types(record: str) -> Mapping[str, FieldType]:
    """Return the fields of a record of the alert in their order, and what each holds."""
    return {field["name"]: _field_type(field["type"]) for field in load_record_schema(record)["fields"]}


@functools.cache
def record_fields(record: str) -> Mapping[str, bool]:
    """Return the fields of a record of the alert in their order, and whether each may be null."""
    return {name: kind.nullable for name, kind in record_types(record).items()}


def _field_type(declared: Any) -> FieldType:
    nullable = isinstance(declared, list)
    if nullable:
        (declared,) = (branch for branch in declared if branch != "null")
    while isinstance(declared, dict):
        declared = declared["type"]
    return FieldType("record" if "." in declared else declared, nullable)


def _walk_records(schema: Any) -> Any:
    """Yield every record defined inside a schema, itself first."""
    if isinstance(schema, list):
        for part in schema:
            yield from _walk_records(part)
    elif isinstance(schema, dict):
        if schema["type"] == "record":
            yield schema
            for field in schema["fields"]:
                yield from _walk_records(field["type"])
        elif schema["type"] == "array":
            yield from _walk_records(schema["items"])
