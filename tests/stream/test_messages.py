import contextlib
import hashlib
import io
import json
import random
import time

import fastavro
import pytest
from event_fuzz import damage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alertprod.errors import InvalidEvent
from alertprod.stream.messages import (
    Event,
    NextVisit,
    VisitReady,
    VisitSummary,
    decode_event,
    decode_next_visit,
    decode_visit_ready,
    decode_visit_summary,
    encode_event,
    event_key,
    hash_bodies,
)
from alertprod.stream.schemas import MAX_EVENT_BYTES, SCHEMA_IDS, load_event_schema

READY = {
    "instrument": "LSSTCam",
    "visit": 2025112200001,
    "detector": 94,
    "band": "r",
    "shutter_open_mjd_tai": 61000.0,
    "shutter_close_mjd_tai": 61000.00034722,
    "exposure_time_s": 30.0,
    "ra_deg": 10.25,
    "dec_deg": -30.5,
    "calexp_uri": "s3://night/calexp-2025112200001-94.fits",
    "sent_at_mjd_tai": 61000.0004,
}
FULL = READY | {
    "physical_filter": "r_03",
    "rotation_deg": 179.5,
    "template_uris": ["/templates/a.fits", "/templates/ü.fits"],
    "background_uri": "file:///b.fits",
    "ephemeris_uri": "file:///e.parquet",
    "observation_reason": "",
    "target_name": "ü",
    "n_detectors": 189,
    "replay": True,
}
NEXT = {
    "instrument": "LSSTCam",
    "visit": 2025112200002,
    "band": "r",
    "ra_deg": 10.25,
    "dec_deg": -30.5,
    "rotation_deg": 0.0,
    "detectors": [0, 94, 188],
    "shutter_opens_at_mjd_tai": 61000.001,
}
SUMMARY = {
    "instrument": "LSSTCam",
    "visit": 2025112200001,
    "detector": 94,
    "band": "r",
    "outcome": "published",
    "n_alerts": 2,
    "sha256": hash_bodies([b"a", b"b"]),
    "counts": {"dia_sources": 2},
    "stage_seconds": {"publish": 0.25},
    "latency_s": 12.5,
    "figures": {"kernel_sum": 1.0},
    "versions": {"alertprod": "1.0"},
    "sent_at_mjd_tai": 61000.001,
}


def as_json(record: dict) -> bytes:
    return json.dumps(record).encode()


@pytest.mark.parametrize("wire_format", ["json", "avro"])
@pytest.mark.parametrize(
    ("event_type", "record"), [(VisitReady, READY), (VisitReady, FULL), (NextVisit, NEXT), (VisitSummary, SUMMARY)]
)
def test_an_event_survives_encoding(event_type, record, wire_format):
    event = decode_event(event_type, as_json(record))
    again = decode_event(event_type, encode_event(event, format=wire_format))
    assert again == event
    assert again.model_dump(mode="json", exclude_unset=True).items() >= record.items()


mjds = st.floats(50_000, 90_000)


@st.composite
def visits_ready(draw) -> VisitReady:
    opened = draw(mjds)
    return VisitReady(
        instrument=draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}", fullmatch=True)),
        visit=draw(st.integers(0, 2**63 - 1)),
        detector=draw(st.integers(0, 2**31 - 1)),
        band=draw(st.sampled_from("ugrizy")),
        shutter_open_mjd_tai=opened,
        shutter_close_mjd_tai=opened + draw(st.floats(0, 0.1)),
        exposure_time_s=draw(st.floats(0.001, 86_400)),
        ra_deg=draw(st.floats(0, 360)),
        dec_deg=draw(st.floats(-90, 90)),
        rotation_deg=draw(st.none() | st.floats(allow_nan=False, allow_infinity=False)),
        calexp_uri=draw(st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=50)),
        template_uris=draw(st.none() | st.lists(st.just("/t.fits"), max_size=3).map(tuple)),
        n_detectors=draw(st.none() | st.integers(1, 2**31 - 1)),
        sent_at_mjd_tai=draw(mjds),
        replay=draw(st.booleans()),
    )


@given(visits_ready(), st.sampled_from(["json", "avro"]))
@settings(max_examples=150, deadline=None)
def test_every_valid_event_survives_encoding_exactly(event, wire_format):
    assert decode_visit_ready(encode_event(event, format=wire_format)) == event


@pytest.mark.parametrize("before", [b"", b"\n\t ", b"\xef\xbb\xbf", b" \xef\xbb\xbf\r\n"])
def test_white_space_and_a_byte_order_mark_may_come_first(before):
    assert decode_visit_ready(before + as_json(READY) + b"\n").key == b"LSSTCam/2025112200001/94"


def test_unknown_fields_are_ignored():
    assert decode_visit_ready(as_json(READY | {"colour": ["blue"]})) == decode_visit_ready(as_json(READY))


@pytest.mark.parametrize("field", sorted(READY))
def test_a_missing_required_field_is_named(field):
    with pytest.raises(InvalidEvent) as caught:
        decode_visit_ready(as_json({name: value for name, value in READY.items() if name != field}))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("visit", True), ("visit", "2025112200001"), ("visit", 1.5), ("visit", -1), ("visit", 2**63), ("visit", None),
        ("detector", -1), ("detector", 2**31), ("detector", [94]),
        ("instrument", ""), ("instrument", "a/b"), ("instrument", "a b"), ("instrument", "ü"), ("instrument", "a\n"),
        ("band", ""), ("band", "r/"), ("band", "r\n"), ("band", 4),
        ("ra_deg", -0.1), ("ra_deg", 360.1), ("ra_deg", 10**400), ("ra_deg", "10"), ("ra_deg", {}),
        ("dec_deg", 90.1), ("exposure_time_s", 0), ("exposure_time_s", -1.0),
        ("shutter_close_mjd_tai", 60999.0), ("shutter_open_mjd_tai", 2461000.5), ("sent_at_mjd_tai", 1.7e9),
        ("calexp_uri", ""), ("calexp_uri", "a\x00b"), ("calexp_uri", "x" * 5000),
        ("template_uris", "a"), ("template_uris", [1]), ("template_uris", {"a": 1}),
        ("n_detectors", 0), ("replay", 1), ("replay", "true"), ("rotation_deg", "0"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named(field, value):
    with pytest.raises(InvalidEvent) as caught:
        decode_visit_ready(as_json(READY | {field: value}))
    assert caught.value.field.split(".")[0] in {field, "value"}  # an integer of 400 digits is not JSON to every reader


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999"])
def test_numbers_that_are_not_finite_are_invalid(number):
    with pytest.raises(InvalidEvent):
        decode_visit_ready(as_json(READY | {"rotation_deg": 12321}).replace(b"12321", number))


def test_avro_with_a_nan_is_invalid():
    value = encode_event(VisitReady(**READY, rotation_deg=1.0), format="avro")
    nan = b"\x00\x00\x00\x00\x00\x00\xf8\x7f"
    with pytest.raises(InvalidEvent, match="rotation_deg"):
        decode_visit_ready(value.replace(b"\x00\x00\x00\x00\x00\x00\xf0\x3f", nan))


@pytest.mark.parametrize(
    "value",
    [
        None, b"", b" ", b"null", b"[]", b'"text"', b"1", b"{", b"\xff\xfe{\x00}\x00", b'{"a": "\xff"}', b'{"a": "\\ud800"}',
        b"[" * 500_000, b'{"a":' * 150_000, b'{"visit":' + b"9" * 900_000 + b"}", b" " * (MAX_EVENT_BYTES + 1),
        b"\x00", b"\x00\x00\x00\x00", b"\x00\x00\x00\x00\x00", b"\x00\x00\x00\x00\x01", b"\x00\xff\xff\xff\xff",
        b"\x00\x00\x00\x00\x63", b"\x00\x00\x00\x00\x01" + b"\xff" * 1000, b"\x00\x00\x00\x00\x01" + b"\xfe" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_event_is_invalid_at_once(value):
    started = time.monotonic()
    with pytest.raises(InvalidEvent):
        decode_visit_ready(value)
    assert time.monotonic() - started < 1.0


def test_bytes_left_over_after_avro_are_invalid():
    with pytest.raises(InvalidEvent, match="left over"):
        decode_visit_ready(encode_event(VisitReady(**READY), format="avro") + b"\x00")


def test_an_event_of_another_kind_is_invalid():
    with pytest.raises(InvalidEvent):
        decode_visit_ready(encode_event(decode_next_visit(as_json(NEXT)), format="avro"))


@given(st.binary(max_size=300) | st.binary(max_size=100).map(b"\x00\x00\x00\x00\x01".__add__))
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_are_an_event_or_invalid(value):
    for decode in (decode_visit_ready, decode_next_visit, decode_visit_summary):
        with contextlib.suppress(InvalidEvent):
            assert isinstance(decode(value), Event)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(FULL)), json_values, max_size=6))
@settings(max_examples=300, deadline=None)
def test_any_json_in_any_field_is_an_event_or_invalid(changes):
    for value in (
        as_json(FULL | changes),
        json.dumps(FULL | changes, ensure_ascii=False).encode("utf-8", "surrogatepass"),
    ):
        with contextlib.suppress(InvalidEvent):
            assert isinstance(decode_visit_ready(value), VisitReady)


@pytest.mark.parametrize("n_events", [10_000, pytest.param(100_000, marks=pytest.mark.faults)])
def test_damaged_events_are_events_or_invalid_and_quick(n_events):
    rng = random.Random(20251122)
    seeds = [
        encode_event(event, format=wire_format)
        for event in (VisitReady(**READY), decode_visit_ready(as_json(FULL)), decode_next_visit(as_json(NEXT)))
        for wire_format in ("json", "avro")
    ]
    n_invalid, slowest = 0, 0.0
    for _ in range(n_events):
        value = damage(rng, bytearray(rng.choice(seeds)))
        started = time.perf_counter()
        try:
            decode_visit_ready(value)
        except InvalidEvent:
            n_invalid += 1
        slowest = max(slowest, time.perf_counter() - started)
    assert n_invalid > n_events / 2
    assert slowest < 1.0


def test_every_schema_agrees_with_its_model():
    models = {model.schema_name: model for model in (VisitReady, NextVisit, VisitSummary)}
    for name in SCHEMA_IDS.values():
        schema = load_event_schema(name)
        assert schema["name"] == f"alertprod.v1.{name}"
        if name in models:
            assert [field["name"] for field in schema["fields"]] == list(models[name].model_fields)
            optional = {field["name"] for field in schema["fields"] if "default" in field}
            assert optional == {key for key, field in models[name].model_fields.items() if not field.is_required()}


def test_a_stored_avro_event_decodes_for_ever():
    # Written by hand from the Avro specification: lengths and integers in zigzag, doubles little-endian.
    body = bytearray(b"\x00\x00\x00\x00\x02")
    body += b"\x06Cam" + b"\x54" + b"\x02r"  # instrument, visit 42, band
    body += b"\x00\x00\x00\x00\x00\x00\x24\x40" + b"\x00\x00\x00\x00\x00\x00\x24\xc0"  # 10.0, -10.0
    body += b"\x00" + b"\x02\x04\x02\x04\x00"  # no rotation; one block of two detectors: 1, 2
    body += b"\x00\x00\x00\x00\x00\x00\xf0\x40"  # 65536.0
    assert decode_next_visit(bytes(body)) == NextVisit(
        instrument="Cam",
        visit=42,
        band="r",
        ra_deg=10.0,
        dec_deg=-10.0,
        detectors=(1, 2),
        shutter_opens_at_mjd_tai=65536.0,
    )


def test_keys():
    assert event_key("Cam", 42, 7) == b"Cam/42/7"
    assert decode_visit_ready(as_json(READY)).key == decode_visit_summary(as_json(SUMMARY)).key
    assert decode_next_visit(as_json(NEXT)).key == b"LSSTCam/2025112200002"


def test_bodies_hash_as_one_text():
    assert hash_bodies([b"ab", b"", b"c"]) == hashlib.sha256(b"abc").hexdigest()


def test_figures_that_are_not_known_are_left_out():
    summary = VisitSummary(**SUMMARY | {"figures": {"a": float("nan"), "b": None, "c": float("inf"), "d": 2}})
    assert summary.figures == {"d": 2.0}


def test_a_summary_is_readable_with_the_schema_alone():
    value = encode_event(VisitSummary(**SUMMARY), format="avro")
    record = fastavro.schemaless_reader(io.BytesIO(value[5:]), load_event_schema("visit_summary"), None)
    assert record == SUMMARY | {"reason": None}
