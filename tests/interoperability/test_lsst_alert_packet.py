"""Rubin's own package reads our alerts through the schema that it carries."""

import pytest
from fastavro.schema import to_parsing_canonical_form

from alertprod.alerts.avro import write_alerts
from alertprod.alerts.registry import ALERT_SCHEMA_ID, compute_canonical_form, record_types

packet_library = pytest.importorskip(
    "lsst.alert.packet", reason="lsst-alert-packet is not installed", exc_type=ImportError
)

FRAME = 5


@pytest.fixture(scope="module")
def theirs():
    return packet_library.Schema.from_file(packet_library.get_path_to_latest_schema())


def test_its_newest_schema_is_ours(theirs):
    assert packet_library.get_latest_schema_version() == (11, 1)
    assert theirs.get_schema_id() == ALERT_SCHEMA_ID
    assert to_parsing_canonical_form(theirs.definition) == compute_canonical_form()


def test_every_message_decodes_to_what_we_decode(theirs, alert_night):
    for message, packet in zip(alert_night.messages, alert_night.packets, strict=True):
        assert message.value[:FRAME] == b"\x00" + ALERT_SCHEMA_ID.to_bytes(4, "big")
        assert theirs.deserialize(message.value[FRAME:]) == packet


def test_it_finds_every_packet_valid(theirs, alert_night):
    for packet in alert_night.packets:
        assert theirs.validate(packet)


def test_it_reads_a_container_with_its_own_schema_or_ours(theirs, alert_night, tmp_path):
    path = tmp_path / "alerts.avro"
    write_alerts(path, iter(alert_night.packets))
    with path.open("rb") as file:
        written_with, packets = packet_library.retrieve_alerts(file)
        assert list(packets) == alert_night.packets
    assert written_with.definition["name"] == "lsst.v11_1.alert"
    with path.open("rb") as file:
        _, packets = packet_library.retrieve_alerts(file, reader_schema=theirs)
        assert list(packets) == alert_night.packets


def test_an_older_reader_of_its_own_takes_our_container(alert_night, tmp_path):
    older = packet_library.Schema.from_file(packet_library.get_schema_path(11, 0) + "/lsst.v11_0.alert.avsc")
    path = tmp_path / "alerts.avro"
    write_alerts(path, iter(alert_night.packets))
    with path.open("rb") as file:
        _, packets = packet_library.retrieve_alerts(file, reader_schema=older)
        read = list(packets)
    known = set(record_types("diaSource")) - {
        "exposureTime", "trailAlgorithm", "trail_flag", "reliabilityVersion",
    }  # fmt: skip
    for packet, whole in zip(read, alert_night.packets, strict=True):
        assert packet["diaSource"] == {name: whole["diaSource"][name] for name in known}
