import contextlib
import io
import struct
from pathlib import Path

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alertprod.alerts.avro import decode_alert, encode_alert, read_alerts, write_alerts
from alertprod.alerts.packet import PacketInfo, make_packets
from alertprod.errors import SchemaMismatch

FLOATS = st.one_of(st.none(), st.floats(width=32, allow_nan=False))


@pytest.fixture
def packets(make_association, no_cutouts):
    association = make_association(n_visits=2)
    return list(make_packets(association, no_cutouts(association), PacketInfo()))


@pytest.fixture
def packet(packets):
    return packets[0]


def test_message_begins_with_zero_and_the_schemas_id(packet):
    assert encode_alert(packet)[:5] == b"\x00" + (1101).to_bytes(4, "big")


def test_any_values_survive_the_round_trip(packet):
    @settings(max_examples=50, deadline=None)
    @given(st.integers(-(2**63), 2**63 - 1), FLOATS, st.one_of(st.none(), st.text()), st.one_of(st.none(), st.binary()))
    def check(identity, flux, reason, cutout):
        source = {**packet["diaSource"], "diaSourceId": identity, "psfFlux": flux}
        changed = {**packet, "diaSource": source, "observation_reason": reason, "cutoutScience": cutout}
        assert decode_alert(encode_alert(changed)) == changed

    check()


def test_a_missing_or_an_unknown_field_is_refused(packet):
    with pytest.raises(ValueError, match="diaObject"):
        encode_alert({key: value for key, value in packet.items() if key != "diaObject"})
    with pytest.raises(ValueError, match="surplus"):
        encode_alert({**packet, "surplus": 1})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda message: message[:0], "too few"),
        (lambda message: b"\x01" + message[1:], "0x01"),
        (lambda message: b"\x00\x00\x00\x04\x4c" + message[5:], "1100"),
        (lambda message: message[:-1], "not an alert"),
        (lambda message: message[: len(message) // 2], "not an alert"),
        (lambda message: message + b"\x00", "1 bytes are left over"),
    ],
)
def test_other_messages_are_refused_with_the_reason(packet, change, problem):
    with pytest.raises(SchemaMismatch, match=problem):
        decode_alert(change(encode_alert(packet)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_give_an_alert_or_a_schema_mismatch(body):
    try:
        decoded = decode_alert(struct.pack(">bi", 0, 1101) + body)
    except SchemaMismatch:
        return
    assert "diaSource" in decoded


def test_flipped_bits_give_an_alert_or_a_schema_mismatch(packet):
    message = encode_alert(packet)

    @settings(max_examples=200, deadline=None)
    @given(st.integers(5, len(message) - 1), st.integers(1, 255))
    def check(position, bits):
        changed = bytearray(message)
        changed[position] ^= bits
        with contextlib.suppress(SchemaMismatch):
            decode_alert(bytes(changed))

    check()


def test_container_file_holds_its_schema_and_gives_the_packets_back(packets, tmp_path):
    path = tmp_path / "7_3.avro"
    assert write_alerts(path, iter(packets)) == 2
    assert list(read_alerts(path)) == packets
    assert [file.name for file in tmp_path.iterdir()] == ["7_3.avro"]
    with path.open("rb") as file:
        schema = fastavro.reader(file).writer_schema
    assert schema["name"] == "lsst.v11_1.alert"


def test_container_goes_to_an_open_file_too(packets):
    file = io.BytesIO()
    assert write_alerts(file, packets) == 2
    file.seek(0)
    assert list(read_alerts(file)) == packets


@pytest.mark.parametrize("content", [b"", b"no Avro at all", b"Obj\x01broken"])
def test_what_is_no_container_is_refused(content, tmp_path):
    path = tmp_path / "bad.avro"
    path.write_bytes(content)
    with pytest.raises(SchemaMismatch):
        list(read_alerts(path))


def test_container_that_breaks_off_is_refused(packets, tmp_path):
    path = tmp_path / "short.avro"
    write_alerts(path, packets)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SchemaMismatch):
        list(read_alerts(path))


def test_an_alert_encoded_long_ago_still_decodes():
    stored = Path(__file__).parents[1] / "data" / "lsst.v11_1.alert.bin"
    packet = decode_alert(stored.read_bytes())
    assert packet["diaSourceId"] == 5000001
    assert packet["diaSource"]["midpointMjdTai"] == 61112.700000000004
    assert packet["diaSource"]["psfFlux"] == 2859.001708984375
    assert packet["diaObject"]["nDiaSources"] == 1 + len(packet["prvDiaSources"]) == 5
    assert [row["visit"] for row in packet["prvDiaForcedSources"]] == [1, 2, 3, 4]
    assert packet["cutoutDifference"].startswith(b"SIMPLE  =")
