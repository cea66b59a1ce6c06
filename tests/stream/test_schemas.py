import io
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fastavro
import pytest

from alertprod.errors import ConfigError, InvalidEvent, RegistryUnavailable
from alertprod.stream.messages import NextVisit, decode_next_visit, encode_event
from alertprod.stream.schema_registry import StoredSchema
from alertprod.stream.schemas import SCHEMA_IDS, FixedSchemas, RegistrySchemas, load_event_schema, parse_foreign_schema

EVENT = NextVisit(instrument="Cam", visit=42, band="r", ra_deg=10.0, dec_deg=-10.0, shutter_opens_at_mjd_tai=61000.0)
FOREIGN = {
    "type": "record",
    "name": "observatory.tcs.Next",
    "fields": [
        {"name": "visit", "type": "int"},
        {
            "name": "telescope",
            "type": {"type": "record", "name": "Tube", "fields": [{"name": "focus", "type": "float"}]},
        },
        {"name": "instrument", "type": "string"},
        {"name": "band", "type": {"type": "enum", "name": "Band", "symbols": ["g", "r"]}},
        {"name": "ra_deg", "type": "float"},
        {"name": "dec_deg", "type": ["null", "double"]},
        {"name": "shutter_opens_at_mjd_tai", "type": "double"},
    ],
}


class Registry:
    """A registry in this process: answers what `answers` holds, counts what it is asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[str] = []
        self.headers: dict[str, str] = {}
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.asked.append(self.path)
                registry.headers = dict(self.headers)
                status, body = registry.answers.get(self.path, (404, b'{"error_code": 40403}'))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def put(self, schema_id: int, schema: object, **more: object) -> None:
        body = json.dumps({"schema": json.dumps(schema), **more}).encode()
        self.answers[f"/schemas/ids/{schema_id}"] = (200, body)


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry()
    thread = threading.Thread(target=registry.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield registry
    registry.server.shutdown()
    registry.server.server_close()
    thread.join()


def framed(schema_id: int, schema: object, record: dict) -> bytes:
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, fastavro.parse_schema(schema), record)
    return b"\x00" + schema_id.to_bytes(4, "big") + buffer.getvalue()


FOREIGN_EVENT = framed(
    1007,
    FOREIGN,
    {"visit": 42, "telescope": {"focus": 1.0}, "instrument": "Cam", "band": "r", "ra_deg": 10.0, "dec_deg": -10.0}
    | {"shutter_opens_at_mjd_tai": 61000.0},
)  # fmt: skip


def test_our_ids_are_known_without_a_registry():
    for schema_id, name in SCHEMA_IDS.items():
        assert 1 <= schema_id <= 99
        assert FixedSchemas().get(schema_id) == load_event_schema(name)
    with pytest.raises(InvalidEvent, match="99"):
        FixedSchemas().get(99)


def test_an_event_of_a_foreign_schema_is_read_by_its_writers_schema(registry):
    registry.put(1007, FOREIGN)
    schemas = RegistrySchemas(registry.url + "/", authorization="Basic eA==")
    for _ in range(3):
        assert decode_next_visit(FOREIGN_EVENT, schemas=schemas) == EVENT
    assert registry.asked == ["/schemas/ids/1007"]
    assert registry.headers["Authorization"] == "Basic eA=="


def test_an_id_the_registry_does_not_know_is_invalid_and_asked_for_once(registry):
    schemas = RegistrySchemas(registry.url)
    for _ in range(2):
        with pytest.raises(InvalidEvent, match="1007"):
            decode_next_visit(FOREIGN_EVENT, schemas=schemas)
    assert len(registry.asked) == 1


def test_with_a_registry_our_own_table_is_not_asked(registry):
    with pytest.raises(InvalidEvent, match="registry"):
        decode_next_visit(encode_event(EVENT, format="avro"), schemas=RegistrySchemas(registry.url))


@pytest.mark.parametrize(
    "answer", [(500, b""), (401, b""), (200, b"<html>"), (200, b"{}"), (200, b"[1]"), (200, b"[" * 100_000), (302, b"")]
)
def test_a_registry_that_answers_nonsense_is_unavailable_and_asked_again(registry, answer):
    registry.answers["/schemas/ids/1007"] = answer
    schemas = RegistrySchemas(registry.url)
    with pytest.raises(RegistryUnavailable):
        decode_next_visit(FOREIGN_EVENT, schemas=schemas)
    registry.put(1007, FOREIGN)
    assert decode_next_visit(FOREIGN_EVENT, schemas=schemas) == EVENT


def test_a_registry_that_is_not_there_or_silent_is_unavailable():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(RegistryUnavailable):
            RegistrySchemas(f"http://127.0.0.1:{port}", timeout_s=0.2).get(1)
    with pytest.raises(RegistryUnavailable):
        RegistrySchemas(f"http://127.0.0.1:{port}", timeout_s=0.2).get(1)


def test_the_registrys_url_is_checked_at_the_start():
    with pytest.raises(ConfigError):
        RegistrySchemas("file:///etc/passwd")


def nested(levels: int) -> object:
    schema: object = "int"
    for level in range(levels):
        wider = [{"name": "a", "type": schema}] + [
            {"name": f"b{n}", "type": f"R{level - 1}" if level else "int"} for n in range(9)
        ]
        schema = {"type": "record", "name": f"R{level}", "fields": wider}
    return schema


HOSTILE = {
    "recursion": {"type": "record", "name": "A", "fields": [{"name": "next", "type": ["null", "A"]}]},
    "recursion without bytes": {"type": "record", "name": "A", "fields": [{"name": "next", "type": "A"}]},
    "an array of nulls": {"type": "array", "items": "null"},
    "an array of records without fields": {"type": "array", "items": {"type": "record", "name": "A", "fields": []}},
    "an array of fixed of no bytes": {"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}},
    "exponentially many fields": nested(8),
    "an unknown type": {"type": "record", "name": "A", "fields": [{"name": "a", "type": "B"}]},
    "not a schema": 7,
    "no fields": {"type": "record", "name": "A"},
}


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE)
def test_a_schema_that_lets_few_bytes_stand_for_much_is_refused(schema):
    with pytest.raises(InvalidEvent, match="schema 7"):
        parse_foreign_schema(StoredSchema(json.dumps(schema)), 7)


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"schemaType": "PROTOBUF"}, "PROTOBUF"),
        ({"references": [{"name": "a", "subject": "b", "version": 1}]}, "other subjects"),
    ],
)
def test_a_schema_of_another_kind_is_refused(registry, more, problem):
    registry.put(1007, FOREIGN, **more)
    with pytest.raises(InvalidEvent, match=problem):
        RegistrySchemas(registry.url).get(1007)


def test_a_very_long_schema_is_refused(registry):
    registry.put(1007, {**FOREIGN, "doc": "x" * (1 << 20)})
    with pytest.raises(InvalidEvent, match="longer"):
        RegistrySchemas(registry.url).get(1007)


@pytest.mark.parametrize("name", SCHEMA_IDS.values())
def test_our_own_schemas_would_be_accepted_from_a_registry(name):
    schema = load_event_schema(name)
    text = json.dumps({key: value for key, value in schema.items() if not key.startswith("__")})
    parsed = parse_foreign_schema(StoredSchema(text), 7)
    assert fastavro.schema.fingerprint(fastavro.schema.to_parsing_canonical_form(parsed), "SHA-256") == (
        fastavro.schema.fingerprint(fastavro.schema.to_parsing_canonical_form(schema), "SHA-256")
    )


def test_logical_types_are_no_way_around_the_checks(registry):
    plain = {"type": "record", "name": "A", "fields": [{"name": "visit", "type": "int"}]}
    dated = {
        "type": "record",
        "name": "A",
        "fields": [{"name": "visit", "type": {"type": "int", "logicalType": "date"}}],
    }
    registry.put(8, dated)
    schemas = RegistrySchemas(registry.url)
    for days in (0, 2**30):  # a date, and one beyond Python's calendar
        with pytest.raises(InvalidEvent):
            decode_next_visit(framed(8, plain, {"visit": days}), schemas=schemas)
