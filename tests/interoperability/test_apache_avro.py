"""Apache's Avro for Java, which Fink's and ALeRCE's and many others' readers are built on."""

import datetime
import hashlib
import itertools
import json
import struct

import pytest
from interoperability_java import from_java

from alertprod.alerts.avro import write_alerts
from alertprod.alerts.evolution import find_breaks
from alertprod.alerts.export import ExportItem, export_each
from alertprod.alerts.registry import load_alert_schema, plain_schema

pytestmark = pytest.mark.slow


def expected(value):
    """A packet as Java says it: bytes by their hash, times by their microseconds."""
    match value:
        case dict():
            return {name: expected(each) for name, each in value.items()}
        case list():
            return [expected(each) for each in value]
        case bytes():
            return len(value), hashlib.sha256(value).hexdigest()
        case datetime.datetime():
            return (value - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)
    return value


@pytest.fixture
def schema_file(tmp_path):
    path = tmp_path / "alert.avsc"
    path.write_text(json.dumps(plain_schema(load_alert_schema())))
    return path


def test_messages_agree_on_every_field(read_with_java, alert_night, schema_file, tmp_path):
    path = tmp_path / "messages"
    path.write_bytes(b"".join(struct.pack(">i", len(m.value)) + m.value for m in alert_night.messages))
    read = [from_java(line) for line in read_with_java("messages", schema_file, path)]
    assert read == [expected(packet) for packet in alert_night.packets]
    # The night has what can differ: a history, a Solar System body with its orbit, a missing cutout.
    assert any(packet["prvDiaSources"] for packet in read)
    assert any(packet["mpc_orbits"] and packet["mpc_orbits"]["updated_at"] == 1_790_000_000_123_456 for packet in read)
    assert any(packet["cutoutTemplate"] is None for packet in read)


def test_a_container_agrees_on_every_field(read_with_java, alert_night, tmp_path):
    path = tmp_path / "alerts.avro"
    write_alerts(path, iter(alert_night.packets))
    read = [from_java(line) for line in read_with_java("container", path)]
    assert read == [expected(packet) for packet in alert_night.packets]


def test_a_container_of_one_alert_as_ztf_has_them_opens_too(read_with_java, alert_night, tmp_path):
    packet = alert_night.packets[-1]
    export_each([ExportItem(packet)], tmp_path)
    (line,) = read_with_java("container", tmp_path / f"{packet['diaSourceId']}.avro")
    assert from_java(line) == expected(packet)


def record(*fields, name="a.v1.r"):
    return {"type": "record", "name": name, "fields": list(fields)}


def field(name, kind, **more):
    return {"name": name, "type": kind, **more}


NULLABLE = ["null", "int"]
SHAPES = {
    "int": record(field("a", "int")),
    "long": record(field("a", "long")),
    "float": record(field("a", "float")),
    "double": record(field("a", "double")),
    "string": record(field("a", "string")),
    "bytes": record(field("a", "bytes")),
    "boolean": record(field("a", "boolean")),
    "nullable": record(field("a", NULLABLE, default=None)),
    "nullable long": record(field("a", ["null", "long"], default=None)),
    "many": record(field("a", ["null", "int", "string"])),
    "renamed": record(field("b", "int")),
    "renamed with alias": record(field("b", "int", aliases=["a"])),
    "with more": record(field("a", "int"), field("more", "string")),
    "with more, defaulted": record(field("a", "int"), field("more", "string", default="")),
    "other record": record(field("a", "int"), name="a.v1.other"),
    "array of int": record(field("a", {"type": "array", "items": "int"})),
    "array of long": record(field("a", {"type": "array", "items": "long"})),
    "array of nullable": record(field("a", {"type": "array", "items": NULLABLE})),
    "map": record(field("a", {"type": "map", "values": "int"})),
    "enum": record(field("a", {"type": "enum", "name": "e", "symbols": ["X", "Y"]})),
    "wider enum": record(field("a", {"type": "enum", "name": "e", "symbols": ["X", "Y", "Z"]})),
    "wider enum, defaulted": record(
        field("a", {"type": "enum", "name": "e", "symbols": ["X", "Y", "Z"], "default": "X"})
    ),
    "enum, defaulted": record(field("a", {"type": "enum", "name": "e", "symbols": ["X"], "default": "X"})),
    "fixed": record(field("a", {"type": "fixed", "name": "f", "size": 4})),
    "longer fixed": record(field("a", {"type": "fixed", "name": "f", "size": 5})),
    "nested": record(field("a", record(field("x", "int"), name="inner"))),
    "nested, wider": record(field("a", record(field("x", "long"), name="inner"))),
    "nullable nested": record(field("a", ["null", record(field("x", "int"), name="inner")], default=None)),
    "recursive": record(field("a", "int"), field("next", ["null", "a.v1.r"], default=None)),
    "used twice": record(
        field("a", record(field("x", "int"), name="inner")), field("c", ["null", "inner"], default=None)
    ),
}


def test_apache_agrees_on_what_breaks_readers(read_with_java, tmp_path):
    pairs = list(itertools.product(SHAPES, repeat=2))
    path = tmp_path / "pairs"
    path.write_text("".join(json.dumps([json.dumps(SHAPES[w]), json.dumps(SHAPES[r])]) + "\n" for w, r in pairs))
    answers = dict(zip(pairs, read_with_java("compatible", path), strict=True))
    assert "INVALID" not in answers.values()
    ours = {(w, r): "INCOMPATIBLE" if find_breaks(SHAPES[w], SHAPES[r]) else "COMPATIBLE" for w, r in pairs}
    assert {pair: (ours[pair], answer) for pair, answer in answers.items() if ours[pair] != answer} == {}
