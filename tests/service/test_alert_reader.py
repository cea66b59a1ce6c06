import numpy as np
import pytest
from astropy import units
from astropy.table import Table

import alertprod
from alertprod import read_alerts
from alertprod.alerts.alert import AlertFilter
from alertprod.alerts.avro import write_alerts
from alertprod.errors import ConfigError, SchemaMismatch
from alertprod.service.alert_sources import find_alerts
from alertprod.store.outbox import OutboxMessage, write_outbox
from alertprod.stream.embedded import EmbeddedBroker
from alertprod.stream.producer import AlertProducer
from alertprod.stream.records import OutgoingMessage


@pytest.fixture
def container(alert_night, tmp_path):
    write_alerts(tmp_path / "alerts.avro", iter(alert_night.packets))
    return tmp_path / "alerts.avro"


def ids(alerts):
    return [alert["diaSourceId"] for alert in alerts]


def test_the_reader_is_a_name_of_the_package():
    assert alertprod.read_alerts is read_alerts
    assert "read_alerts" in alertprod.__all__
    with pytest.raises(AttributeError, match="no attribute 'read_alert'"):
        alertprod.read_alert  # noqa: B018


def test_a_container_gives_every_alert_and_can_be_read_again(container, alert_night):
    reader = read_alerts(container)
    assert ids(reader) == ids(reader) == ids(alert_night.packets)
    alert = next(iter(reader))
    assert dict(alert) == alert_night.packets[0]
    assert repr(alert) == f"<Alert 1000001: g 61100.30000, S/N {alert.source['snr']:.1f}>"


def test_every_kind_of_file_is_read_and_folders_hold_them_all(alert_night, tmp_path):
    b, c = alert_night.messages[2:3], alert_night.messages[3:6]
    write_alerts(tmp_path / "1.avro", alert_night.packets[:2])
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "2.bin").write_bytes(b[0].value)
    write_outbox(str(tmp_path / "deeper" / "3.outbox"), (OutboxMessage(*message) for message in c))
    (tmp_path / "deeper" / "notes.txt").write_text("no alerts")
    wanted = ids(alert_night.packets[:6])
    assert ids(read_alerts(tmp_path)) == wanted
    assert ids(read_alerts([tmp_path / "1.avro", str(tmp_path / "deeper")])) == wanted
    found = list(find_alerts(tmp_path))
    assert [each.where.removeprefix(f"{tmp_path}/") for each in found] == [
        "1.avro#1", "1.avro#2", "deeper/2.bin", "deeper/3.outbox#1", "deeper/3.outbox#2", "deeper/3.outbox#3",
    ]  # fmt: skip
    assert [each.message for each in found] == [None, None, *(m.value for m in (*b, *c))]
    assert [each.key for each in found[3:]] == [m.key for m in c]
    assert [each.headers for each in found[3:]] == [m.headers for m in c]


def test_a_topic_is_read_to_its_end(alert_night):
    with EmbeddedBroker({"alerts": 1}) as broker:
        with AlertProducer(broker.bootstrap_servers) as producer:
            producer.publish(
                OutgoingMessage(topic="alerts", key=message.key, value=message.value, headers=message.headers)
                for message in alert_night.messages[:4]
            )
        source = f"kafka://{broker.bootstrap_servers}/alerts"
        assert ids(read_alerts(source)) == ids(alert_night.packets[:4])
        found = next(find_alerts(source))
        assert found.where == "alerts/0@0"
        assert (found.key, found.headers) == (alert_night.messages[0].key, alert_night.messages[0].headers)
        assert found.timestamp_ms > 1_600_000_000_000
    with pytest.raises(ConfigError, match="is not kafka://HOST:PORT/TOPIC"):
        list(read_alerts("kafka://somewhere"))


def test_alerts_are_chosen_by_time_object_and_significance(container, alert_night):
    packets = alert_night.packets
    times = sorted({packet["diaSource"]["midpointMjdTai"] for packet in packets})
    within = ids(read_alerts(container, since_mjd_tai=times[1], until_mjd_tai=times[3]))
    assert within == ids(p for p in packets if p["diaSource"]["midpointMjdTai"] in times[1:3])
    an_object = packets[0]["diaSource"]["diaObjectId"]
    assert len(ids(read_alerts(container, object_ids=[an_object]))) == 5
    body = packets[-1]["diaSource"]["ssObjectId"]
    assert ids(read_alerts(container, object_ids=[body])) == [packets[-1]["diaSourceId"]]
    strong = ids(read_alerts(container, min_snr=20.0))
    assert strong == ids(p for p in packets if p["diaSource"]["snr"] >= 20)
    assert 0 < len(strong) < len(packets)


def test_detections_of_either_sign_and_none_are_judged_by_their_significance():
    def packet(snr):
        return {"diaSource": {"midpointMjdTai": 61000.0, "snr": snr, "diaObjectId": 1, "ssObjectId": None}}

    wanted = AlertFilter(min_snr=5.0)
    assert [wanted.takes(packet(snr)) for snr in (6.0, -6.0, 4.0, None)] == [True, True, False, False]
    assert AlertFilter().takes(packet(None))


def test_an_alert_has_its_history_as_tables_with_units(container, alert_night):
    (alert,) = (a for a in read_alerts(container) if a.id == 5000001)
    sources = alert.sources
    assert isinstance(sources, Table)
    assert list(sources["diaSourceId"]) == [1000001, 2000001, 3000001, 4000001, 5000001]
    assert sources["psfFlux"].unit == units.nJy
    assert sources["ra_dec_Cov"].unit == units.deg**2
    assert sources["psfFlux"].dtype == np.float32
    assert "difference" in sources["psfFlux"].description
    assert np.isnan(sources["trailFlux"]).all()
    assert sources["ssObjectId"].mask.all()
    assert sources["isDipole"].dtype == bool
    forced = alert.forced_sources
    assert list(forced["visit"]) == [1, 2, 3, 4]
    assert (np.diff(forced["midpointMjdTai"]) > 0).all()
    assert alert.object_id == 1000001


def test_an_alert_has_its_pictures(container):
    first, *_, last = read_alerts(container)
    assert first.cutout("template") is None
    science = last.cutout("science")
    assert science.unit == units.nJy
    x, y = science.wcs.world_to_pixel_values(last.source["ra"], last.source["dec"])
    assert max(abs(x - 14.5), abs(y - 14.5)) < 0.51
    with pytest.raises(KeyError):
        first.cutout("reference")


def test_a_solar_system_alert_has_no_history(container):
    *_, alert = read_alerts(container)
    assert alert.object_id == int.from_bytes(b"K11U63N", "big")
    assert (len(alert.sources), len(alert.forced_sources)) == (1, 0)
    assert alert["mpc_orbits"]["a"] == 2.5


def test_a_table_has_a_row_an_alert(container, alert_night):
    table = read_alerts(container).table()
    packets = alert_night.packets
    assert list(table["diaSourceId"]) == ids(packets)
    assert list(table["n_prvDiaSources"]) == [len(p["prvDiaSources"] or ()) for p in packets]
    assert list(table["nDiaSources"][:-1]) == [p["diaObject"]["nDiaSources"] for p in packets[:-1]]
    assert table["nDiaSources"].mask[-1]
    assert table["designation"][-1] == "2011 UN63"
    assert set(table["target_name"]) == {"field 7"}
    by_parts = list(read_alerts(container).tables(n_rows=8))
    assert [len(part) for part in by_parts] == [8, 8, 5]


def test_no_alert_gives_an_empty_table_with_all_its_columns(tmp_path):
    write_alerts(tmp_path / "none.avro", [])
    table = read_alerts(tmp_path / "none.avro").table()
    assert len(table) == 0
    assert table["psfFlux"].unit == units.nJy


def test_what_is_no_alert_stops_a_reader_and_is_found_by_place(alert_night, tmp_path):
    (tmp_path / "1.bin").write_bytes(alert_night.messages[0].value)
    (tmp_path / "2.bin").write_bytes(alert_night.messages[1].value[:-1])
    write_alerts(tmp_path / "3.avro", alert_night.packets[:1])
    (tmp_path / "3.avro").write_bytes((tmp_path / "3.avro").read_bytes()[:-20])
    reader = iter(read_alerts(tmp_path))
    assert next(reader).id == 1000001
    with pytest.raises(SchemaMismatch, match=r"2\.bin: not an alert of schema 1101"):
        next(reader)
    found = list(find_alerts(tmp_path))
    assert [each.packet is not None for each in found] == [True, False, False]
    assert "not a readable Avro container" in found[2].problem
    with pytest.raises(FileNotFoundError):
        list(read_alerts(tmp_path / "absent.avro"))
