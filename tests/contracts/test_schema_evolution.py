"""Schemas are promises: what was ever written stays readable, and who reads today reads tomorrow.

`PUBLISHED`, `GOLDEN` and the files of ``data/`` are what was promised. A new version adds to them; nothing here is ever
changed.
"""

import copy
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import fastavro
import pytest
from fastavro.schema import fingerprint, to_parsing_canonical_form

from alertprod.alerts.avro import decode_alert
from alertprod.alerts.evolution import find_breaks
from alertprod.alerts.registry import SCHEMA_VERSIONS, load_alert_schema, plain_schema
from alertprod.stream.messages import decode_next_visit, decode_visit_ready, decode_visit_summary
from alertprod.stream.schemas import SCHEMA_IDS, load_event_schema

DATA = Path(__file__).parents[1] / "data"
FRAME = 5

PUBLISHED = {
    1: "946a8d1eacd9cb2b",
    2: "9cd62828867388e0",
    3: "39e8939a79520c2b",
    4: "a232e925ec46631f",
    1101: "a960816bc1c3d70c",
}
"""CRC-64-AVRO of the canonical form of every schema that messages were ever written with, by its id."""

GOLDEN = {
    "lsst.v11_1.alert.bin": (1101, "21dce254d5f655b2daaa05657579626c4f7b690aaf0396367f69cea9d496d7aa"),
    "lsst.v11_1.alert.solar_system.bin": (1101, "6165a90bb09daac10d2fd406a81704f149fdbda26fe01c1e413abe8d219b519e"),
    "alertprod.v1.visit_ready.bin": (1, "ae3b552463acca143f0aa6372ef8c4b866c22fc817cbd040bf10da48ab09940d"),
    "alertprod.v1.next_visit.bin": (2, "fc11b858e054132ea8505406305ed142252a8d7799fe8d33df19e477a407c66e"),
    "alertprod.v1.visit_summary.bin": (3, "8c8845c446b8cf521dfa782a3a74a139ce781967596b3299136a4f9fb6390418"),
}
"""A stored message: the id in its frame, and the SHA-256 of what it says."""

DECODERS = {1: decode_visit_ready, 2: decode_next_visit, 3: decode_visit_summary}
NOT_ON_A_TOPIC = {4}
"""A dead letter's value is the event itself, and its record is for files."""


def load_all() -> dict[int, Any]:
    alerts = {schema_id: plain_schema(load_alert_schema(schema_id)) for schema_id in SCHEMA_VERSIONS}
    return alerts | {schema_id: plain_schema(load_event_schema(name)) for schema_id, name in SCHEMA_IDS.items()}


def find_broken_promises(schemas: dict[int, Any]) -> list[str]:
    """Return what a set of schemas breaks of what was published: edits, removals, steps that readers cannot follow."""
    found = []
    for schema_id, promised in PUBLISHED.items():
        if schema_id not in schemas:
            found.append(f"{schema_id}: is gone")
        elif fingerprint(to_parsing_canonical_form(schemas[schema_id]), "CRC-64-AVRO") != promised:
            found.append(f"{schema_id}: was changed; a change is a new version with an id of its own")
    for older, newer in sorted((a, b) for a in schemas for b in schemas if a < b):
        if family(schemas[older]) == family(schemas[newer]):
            found += [f"{newer} as read by {older}: {one}" for one in find_breaks(schemas[newer], schemas[older])]
        if same_record(schemas[older], schemas[newer]):
            found += [f"{older} as read by {newer}: {one}" for one in find_breaks(schemas[older], schemas[newer])]
    return found


def family(schema: Any) -> tuple[str, str]:
    """Return record and major version: within them who reads today reads tomorrow."""
    name = full_name(schema)
    major = re.search(r"\.v(\d+)", name)
    return name.rpartition(".")[2], major[1] if major else ""


def same_record(one: Any, other: Any) -> bool:
    return family(one)[0] == family(other)[0]


def full_name(schema: Any) -> str:
    return schema["name"] if "." in schema["name"] else f"{schema.get('namespace', '')}.{schema['name']}"


def digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=lambda each: each.hex() if isinstance(each, bytes) else str(each))
    return hashlib.sha256(text.encode()).hexdigest()


def is_within(part: Any, whole: Any) -> bool:
    """Tell whether a record says all that another says, and perhaps more."""
    match part:
        case dict():
            return all(name in whole and is_within(value, whole[name]) for name, value in part.items())
        case list():
            return len(part) == len(whole) and all(map(is_within, part, whole))
    return part == whole


def test_no_promise_is_broken():
    assert find_broken_promises(load_all()) == []


def test_every_schema_is_published_and_has_a_golden_message():
    assert set(load_all()) == set(PUBLISHED)
    assert {schema_id for schema_id, _ in GOLDEN.values()} == set(PUBLISHED) - NOT_ON_A_TOPIC


@pytest.mark.parametrize("file", GOLDEN)
def test_golden_messages_say_what_they_said(file):
    message, (schema_id, promised) = (DATA / file).read_bytes(), GOLDEN[file]
    assert message[:FRAME] == b"\x00" + schema_id.to_bytes(4, "big")
    said = fastavro.schemaless_reader(io.BytesIO(message[FRAME:]), fastavro.parse_schema(load_all()[schema_id]), None)
    assert digest(said) == promised
    if schema_id in SCHEMA_VERSIONS:
        assert is_within(said, decode_alert(message))
    else:
        read = DECODERS[schema_id](message).model_dump(mode="json")
        assert is_within(json.loads(json.dumps(said)), read)


def alert_field(schema, record, name):
    for field in schema["fields"]:
        kind = field["type"]
        inner = next((part for part in kind if isinstance(part, dict)), None) if isinstance(kind, list) else kind
        while isinstance(inner, dict) and inner["type"] == "array":
            inner = inner["items"]
        if isinstance(inner, dict) and inner.get("name", "").endswith(f".{record}"):
            return next(each for each in inner["fields"] if each["name"] == name)
    raise KeyError(record)


def alert_record(schema, record):
    return next(
        f["type"] for f in schema["fields"] if isinstance(f["type"], dict) and f["type"]["name"].endswith(record)
    )


def remove(schema):
    fields = alert_record(schema, "diaSource")["fields"]
    fields[:] = [each for each in fields if each["name"] != "psfFlux"]


def rename(schema):
    alert_field(schema, "diaSource", "psfFlux")["name"] = "flux"


def require(schema):
    field = alert_field(schema, "diaSource", "psfFlux")
    field["type"] = "float"
    del field["default"]


def allow_null(schema):
    alert_field(schema, "diaSource", "visit")["type"] = ["null", "long"]


def widen(schema):
    alert_field(schema, "diaSource", "detector")["type"] = "long"


def retype(schema):
    alert_field(schema, "diaSource", "band")["type"] = ["null", "int"]


def swap(schema):
    fields = alert_record(schema, "diaSource")["fields"]
    fields[1], fields[2] = fields[2], fields[1]


def add_optional(schema):
    alert_record(schema, "diaSource")["fields"].append({"name": "more", "type": ["null", "float"], "default": None})


def add_required(schema):
    alert_record(schema, "diaSource")["fields"].append({"name": "more", "type": "float"})


EDITS = [remove, rename, require, allow_null, widen, retype, swap, add_optional, add_required]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_any_edit_of_a_published_schema_is_found(edit):
    schemas = load_all()
    schemas[1101] = copy.deepcopy(schemas[1101])
    edit(schemas[1101])
    assert any("1101: was changed" in one for one in find_broken_promises(schemas))


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (remove, None),  # readers of 11.1 have a default for it
        (rename, None),  # and take what is new for absent: wrong, but read
        (require, "1101 as read by 1102: diaSource.psfFlux: null"),
        (allow_null, "1102 as read by 1101: diaSource.visit: null"),
        (widen, "1102 as read by 1101: diaSource.detector: long where int is read"),
        (retype, "1102 as read by 1101: diaSource.band: int"),
        (swap, None),
        (add_optional, None),
        (add_required, "1101 as read by 1102: diaSource.more: is not written, and has no default"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_next_version_may_do_what_readers_can_follow(edit, problem):
    schemas = load_all()
    schemas[1102] = json.loads(json.dumps(schemas[1101]).replace("lsst.v11_1", "lsst.v11_2"))
    edit(schemas[1102])
    found = find_broken_promises(schemas)
    if problem is None:
        assert found == []
    else:
        assert any(one.startswith(problem) for one in found), found


def test_a_version_that_was_published_cannot_go():
    schemas = load_all()
    del schemas[1101]
    assert find_broken_promises(schemas) == ["1101: is gone"]


def test_documentation_and_the_names_of_the_files_are_no_promise():
    schemas = load_all()
    schemas[1101] = copy.deepcopy(schemas[1101])
    alert_field(schemas[1101], "diaSource", "psfFlux")["doc"] = "Said better."
    assert find_broken_promises(schemas) == []
