import pytest

from alertprod.alerts.avro import encode_alert, read_alerts, write_alerts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def container(alertprod, small_night, tmp_path_factory):
    """The alerts of one exposure of the night."""
    folder = tmp_path_factory.mktemp("alerts")
    tiles = sorted(small_night.templates_directory.glob("*.fits"))
    ran = alertprod("difference", small_night.exposure_path(2, 1), *tiles, "-o", folder)
    assert ran.status == 0, ran.err
    return folder / "alerts.avro"


@pytest.fixture(scope="module")
def packets(container):
    return list(read_alerts(container))


def test_the_table_has_a_row_an_alert(alertprod, container, packets):
    ran = alertprod("alerts", "show", container)
    assert ran.status == 0
    for packet in packets:
        (row,) = (line for line in ran.out.splitlines() if f"{packet['diaSource']['ra']:.6f}" in line)
        assert row.split()[0] == str(packet["diaSourceId"])


def test_long_tables_say_what_they_leave_out(alertprod, container, packets):
    ran = alertprod("alerts", "show", container, "--most", 1)
    assert ran.status == 0
    assert f"{len(packets) - 1} more; --most shows them" in ran.err


def test_json_is_a_whole_packet_a_line_but_for_the_pictures(alertprod, container, packets):
    lines = alertprod("alerts", "show", container, "--json").json_lines
    assert [line["diaSourceId"] for line in lines] == [packet["diaSourceId"] for packet in packets]
    for line, packet in zip(lines, packets, strict=True):
        assert line["diaSource"] == packet["diaSource"]
        assert line["cutoutDifference"] == f"{len(packet['cutoutDifference'])} bytes"


def test_one_alert_can_be_picked(alertprod, container, packets):
    wanted = packets[-1]["diaSourceId"]
    assert alertprod("alerts", "show", container, "--id", wanted, "--json").json["diaSourceId"] == wanted
    ran = alertprod("alerts", "show", container, "--id", wanted)
    assert ran.status == 0
    assert f"'diaSourceId': {wanted}" in ran.out
    assert "'prvDiaSources': None" in ran.out
    ran = alertprod("alerts", "show", container, "--id", 999_999_999)
    assert ran.status == 1
    assert f"{container}: no alert of DiaSource 999999999" in ran.words


def test_pictures_are_drawn(alertprod, container, tmp_path):
    triplets, curves = tmp_path / "triplets.png", tmp_path / "curves.png"
    ran = alertprod("alerts", "show", container, "--triplets", triplets, "--light-curves", curves, "--most", 3)
    assert (ran.status, ran.out) == (0, "")
    for picture in (triplets, curves):
        assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert f"{picture}: 3 " in ran.words


def test_one_messages_bytes_are_shown_too(alertprod, packets, tmp_path):
    (tmp_path / "message").write_bytes(encode_alert(packets[0]))
    assert alertprod("alerts", "show", tmp_path / "message", "--json").json["diaSourceId"] == packets[0]["diaSourceId"]


def test_files_without_alerts_are_named(alertprod, tmp_path):
    write_alerts(tmp_path / "none.avro", [])
    (tmp_path / "text.avro").write_text("no alerts here")
    (tmp_path / "message").write_bytes(b"\x00\x00\x00\x04\x4dnot an alert")
    for name, said in (
        ("none.avro", "none.avro: no alert"),
        ("absent.avro", "absent.avro: No such file or directory"),
        ("text.avro", "schema_mismatch: "),
        ("message", "schema_mismatch: "),
    ):
        ran = alertprod("alerts", "show", tmp_path / name)
        assert (ran.status, ran.out) == (1, "")
        assert said in ran.words
        assert name in ran.words
        assert "Traceback" not in ran.err
