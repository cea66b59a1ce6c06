import json
import signal
import subprocess
import sys
import threading

import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from astropy.time import Time

from alertprod.alerts.avro import encode_alert, read_alerts, write_alerts
from alertprod.cli.console import out
from alertprod.store.outbox import OutboxMessage, write_outbox
from alertprod.stream.embedded import EmbeddedBroker
from alertprod.stream.producer import AlertProducer
from alertprod.stream.records import OutgoingMessage


@pytest.fixture
def packets(alert_night):
    return alert_night.packets


@pytest.fixture(scope="module")
def container(alert_night, tmp_path_factory):
    path = tmp_path_factory.mktemp("alerts") / "alerts.avro"
    write_alerts(path, iter(alert_night.packets))
    return path


@pytest.fixture(scope="module")
def topic(alert_night):
    """A topic with every alert of the night, and something that is none in the middle."""
    messages = [
        OutgoingMessage(topic="alerts", key=message.key, value=message.value, headers=message.headers)
        for message in alert_night.messages
    ]
    messages.insert(4, OutgoingMessage(topic="alerts", key=b"x", value=b"\x00\x00\x00\x04\x4cof another version"))
    with EmbeddedBroker({"alerts": 1}) as broker:
        with AlertProducer(broker.bootstrap_servers) as producer:
            producer.publish(messages)
        yield broker.bootstrap_servers


@pytest.fixture
def config(topic, tmp_path):
    path = tmp_path / "alertprod.toml"
    path.write_text(f"[kafka]\nbootstrap_servers = '{topic}'\n")
    return path


def test_the_table_has_a_row_an_alert(alertprod, container, packets):
    ran = alertprod("alerts", "show", container)
    assert ran.status == 0
    for packet in packets[:-1]:
        visit = f"{packet['diaSource']['visit']}/1"
        (row,) = (line for line in ran.out.splitlines() if line.split()[:2] == [str(packet["diaSourceId"]), visit])
        assert f"{packet['diaSource']['ra']:.6f}" in row


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
    wanted = packets[-2]["diaSourceId"]
    assert alertprod("alerts", "show", container, "--id", wanted, "--json").json["diaSourceId"] == wanted
    ran = alertprod("alerts", "show", container, "--id", wanted)
    assert ran.status == 0
    assert [line.split()[:2] for line in ran.out.splitlines()][:2] == [["alert", str(wanted)], ["object", "1000004,"]]
    assert "▀" not in ran.out  # not on a terminal
    ran = alertprod("alerts", "show", container, "--id", wanted, "--whole")
    assert f"'diaSourceId': {wanted}" in ran.out
    ran = alertprod("alerts", "show", container, "--id", 999_999_999)
    assert ran.status == 1
    assert f"{container}: no alert of DiaSource 999999999" in ran.words


def test_one_alert_can_be_drawn_with_characters(alertprod, container, packets):
    ran = alertprod("alerts", "show", container, "--id", packets[-2]["diaSourceId"], "--draw")
    lines = ran.out.splitlines()
    # Thirty rows of pixels, two a line, and a light curve of five detections.
    assert sum("▀▀▀▀▀▀▀▀▀▀" in line for line in lines) == 15
    assert ran.out.count("●") == 5 + 1
    assert "MJD 61100.300" in lines[-1]


def test_alerts_are_chosen_by_time_object_and_significance(alertprod, container, packets):
    def shown(*options):
        return [line["diaSourceId"] for line in alertprod("alerts", "show", container, "--json", *options).json_lines]

    an_object = packets[1]["diaSource"]["diaObjectId"]
    assert len(shown("--object", an_object)) == 5
    moment = Time(packets[8]["diaSource"]["midpointMjdTai"] - 1e-6, format="mjd", scale="tai").utc.isot
    assert shown("--since", moment) == [packet["diaSourceId"] for packet in packets[8:]]
    assert shown("--until", packets[8]["diaSource"]["midpointMjdTai"]) == [p["diaSourceId"] for p in packets[:8]]
    assert shown("--min-snr", 40) == [p["diaSourceId"] for p in packets if p["diaSource"]["snr"] >= 40]
    ran = alertprod("alerts", "show", container, "--since", "yesterday")
    assert ran.status == 2
    assert "'yesterday' is neither an MJD nor a date" in ran.words


def test_pictures_are_drawn(alertprod, container, packets, tmp_path):
    triplets, curves, page = tmp_path / "triplets.png", tmp_path / "curves.png", tmp_path / "page.png"
    ran = alertprod("alerts", "show", container, "--triplets", triplets, "--light-curves", curves, "--most", 3)
    assert (ran.status, ran.out) == (0, "")
    for picture in (triplets, curves):
        assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert f"{picture}: 3 " in ran.words
    ran = alertprod("alerts", "show", container, "--id", packets[-1]["diaSourceId"], "--png", page)
    assert ran.status == 0
    assert page.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    ran = alertprod("alerts", "show", container, "--png", page)
    assert ran.status == 2
    assert "objects: --png draws one alert; --id or --object names it" in ran.words


def test_of_one_objects_alerts_the_page_shows_the_latest(alertprod, container, packets, tmp_path):
    an_object = packets[1]["diaSource"]["diaObjectId"]
    latest = [packet for packet in packets if packet["diaSource"]["diaObjectId"] == an_object][-1]
    ran = alertprod("alerts", "show", container, "--object", an_object, "--png", tmp_path / "page.png")
    assert ran.status == 0
    assert f"alert {latest['diaSourceId']}" in ran.words


@pytest.mark.parametrize(("content", "said"), [(b"[kafka]\n", "begins with b'[kaf'"), (b"", "is empty")])
def test_a_file_that_is_nothing_of_ours_is_told_what_it_is_not(alertprod, tmp_path, content, said):
    (tmp_path / "notes.txt").write_bytes(content)
    ran = alertprod("alerts", "show", tmp_path / "notes.txt")
    assert ran.status == 1
    assert f"neither an Avro container nor a message nor an outbox: it {said}" in ran.words


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


def test_tail_prints_a_line_an_alert_and_goes_on_after_what_is_none(alertprod, config, packets):
    ran = alertprod("alerts", "tail", "-c", config, "--from-beginning", "--no-follow")
    assert ran.status == 0
    lines = ran.out.splitlines()
    assert len(lines) == len(packets)
    for line, packet in zip(lines, packets, strict=True):
        assert f"alert {packet['diaSourceId']} object" in line
    assert "alerts/0@4: schema id 1100 is not known here" in ran.words
    assert f"{len(packets)} alerts, 1 unreadable" in ran.words


def test_tail_prints_json_stops_and_chooses(alertprod, config, packets):
    ran = alertprod("alerts", "tail", "-c", config, "--from-beginning", "--json", "--limit", 3, "--min-snr", 20)
    wanted = [packet["diaSourceId"] for packet in packets if packet["diaSource"]["snr"] >= 20][:3]
    assert [line["diaSourceId"] for line in ran.json_lines] == wanted


def test_tail_writes_a_container_beside(alertprod, config, packets, tmp_path):
    path = tmp_path / "seen.avro"
    alertprod("alerts", "tail", "-c", config, "--from-beginning", "--no-follow", "-o", path)
    assert list(read_alerts(path)) == packets


def test_tail_is_a_live_table_on_a_terminal(alertprod, config, packets, monkeypatch):
    monkeypatch.setattr(out, "_force_terminal", True)
    monkeypatch.setattr(out, "_color_system", None)
    monkeypatch.setattr(out, "height", 40)
    ran = alertprod("alerts", "tail", "-c", config, "--from-beginning", "--no-follow")
    assert f"{len(packets)} alerts" in ran.out
    assert "1 unreadable, the last: alerts/0@4" in ran.out
    last = ran.out[ran.out.rindex("UTC") :]
    for packet in packets[:-1]:
        assert str(packet["diaSource"]["diaObjectId"]) in last
    assert "2011 UN63" in last


def test_tail_of_a_topic_that_is_not_there_says_so(alertprod, config):
    ran = alertprod("alerts", "tail", "-c", config, "--topic", "nowhere", "--no-follow")
    assert ran.status == 1
    assert "broker_unavailable" in ran.words
    assert "nowhere" in ran.words


def test_interrupting_a_tail_ends_it_well_with_what_was_seen(config, packets, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # then a pipe is buffered, as it is for everybody
    path = tmp_path / "seen.avro"
    command = [sys.executable, "-m", "alertprod", "alerts", "tail", "-c", str(config), "--from-beginning", "--json"]
    # Who starts tests in the background has them ignore it, and a child inherits that; but it inherits no handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen([*command, "-o", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    hung = threading.Timer(120.0, process.kill)
    hung.start()
    lines = [process.stdout.readline() for _ in packets]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    hung.cancel()
    assert process.returncode == 0, said
    assert f"{len(packets)} alerts, 1 unreadable" in said
    assert json.loads(lines[-1])["diaSourceId"] == packets[-1]["diaSourceId"]
    assert list(read_alerts(path)) == packets


def test_good_alerts_are_valid(alertprod, container):
    ran = alertprod("alerts", "validate", container)
    assert ran.status == 0
    assert "21 alerts: 0 errors, 4 warnings" in ran.words
    assert all(line.endswith("warning: cutoutTemplate: is null") for line in ran.out.splitlines())
    assert alertprod("alerts", "validate", container, "--quiet").out == ""


def test_every_finding_is_named_with_its_place(alertprod, packets, tmp_path):
    bad = {**packets[5], "diaSourceId": -1, "target_name": ""}
    write_alerts(tmp_path / "1.avro", [packets[4], bad])
    (tmp_path / "2.message").write_bytes(encode_alert(packets[4])[:-3])
    ran = alertprod("alerts", "validate", tmp_path)
    assert ran.status == 1
    lines = ran.out.splitlines()
    assert f"{tmp_path / '1.avro'}#2: error: diaSourceId: -1 is no id" in lines
    assert f"{tmp_path / '1.avro'}#2: error: target_name: is empty: what is not known must be null" in lines
    assert any(line.startswith(f"{tmp_path / '2.message'}: error: message: not an alert") for line in lines)
    assert "3 alerts: 4 errors, 0 warnings" in ran.words
    rows = alertprod("alerts", "validate", tmp_path, "--json").json_lines
    assert [row["field"] for row in rows] == ["diaSourceId", "diaSourceId", "target_name", "message"]


def test_headers_are_checked_where_there_are_some(alertprod, alert_night, tmp_path):
    message = alert_night.messages[4]
    headers = tuple((name, b"9" if name == "visit" else value) for name, value in message.headers)
    write_outbox(str(tmp_path / "1.outbox"), [OutboxMessage(message.key, message.value, headers)])
    ran = alertprod("alerts", "validate", tmp_path)
    assert ran.status == 1
    assert "header visit: b'9', the packet says 1" in ran.out


def test_a_topic_is_checked_and_duplicates_are_said(alertprod, config, container):
    ran = alertprod("alerts", "validate", "-c", config)
    assert ran.status == 1  # of the one that is no alert
    assert "22 alerts: 1 error, 4 warnings" in ran.words
    ran = alertprod("alerts", "validate", container, container)
    assert ran.status == 0
    assert ran.out.count("was there before: a replay, or a duplicate") == 21


def test_nothing_to_check_is_a_failure(alertprod, tmp_path):
    ran = alertprod("alerts", "validate", tmp_path)
    assert ran.status == 1
    assert "no alert to check" in ran.words


@pytest.mark.parametrize("name", ["alerts.avro", "alerts.parquet", "alerts.ecsv"])
def test_alerts_are_exported(alertprod, container, packets, tmp_path, name):
    path = tmp_path / name
    ran = alertprod("alerts", "export", container, "-o", path, "--min-snr", 20)
    assert ran.status == 0
    wanted = [packet for packet in packets if packet["diaSource"]["snr"] >= 20]
    assert f"{path}: {len(wanted)} of {len(packets)} alerts" in ran.words
    match path.suffix:
        case ".avro":
            assert list(read_alerts(path)) == wanted
        case ".parquet":
            assert pq.read_table(path).to_pylist() == wanted
        case ".ecsv":
            assert list(Table.read(path)["diaSourceId"]) == [packet["diaSourceId"] for packet in wanted]


def test_alerts_of_a_topic_are_exported_one_a_file(alertprod, topic, packets, tmp_path):
    write_alerts(tmp_path / "some.avro", packets[:2])
    ran = alertprod("alerts", "export", tmp_path / "some.avro", "-o", tmp_path / "each", "--each", "--json")
    assert ran.json == {"output": str(tmp_path / "each"), "n_alerts": 2, "n_read": 2}
    assert len(list((tmp_path / "each").iterdir())) == 2
    ran = alertprod("alerts", "export", f"kafka://{topic}/alerts", "-o", tmp_path / "all.avro")
    assert ran.status == 1  # what is no alert is not left out in silence
    assert "alerts/0@4: schema id 1100 is not known here" in ran.words
    assert not (tmp_path / "all.avro").exists()


def test_formats_that_are_none_are_refused(alertprod, container, tmp_path):
    ran = alertprod("alerts", "export", container, "-o", tmp_path / "alerts.csv")
    assert ran.status == 2
    assert "does not end in one of .avro, .parquet, .ecsv" in ran.words
    assert alertprod("alerts", "export", container, "-o", tmp_path / "x", "--format", "csv").status == 2
    assert alertprod("alerts", "export", container, "-o", tmp_path / "x", "--each", "--format", "ecsv").status == 2
