import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units
from astropy.table import Table

from alertprod.alerts.avro import read_alerts, write_alerts
from alertprod.alerts.export import ExportItem, arrow_schema, export_alerts, export_each, guess_format
from alertprod.errors import ConfigError, SchemaMismatch


@pytest.fixture
def items(alert_night):
    """Half of them as messages, half as they come from a container."""
    return [
        ExportItem(packet, message.value if number % 2 else None)
        for number, (packet, message) in enumerate(zip(alert_night.packets, alert_night.messages, strict=True))
    ]


def test_a_container_holds_every_alert_whole(items, alert_night, tmp_path):
    path = tmp_path / "alerts.avro"
    assert export_alerts(iter(items), path, "avro") == len(items)
    assert list(read_alerts(path)) == alert_night.packets
    assert [file.name for file in tmp_path.iterdir()] == ["alerts.avro"]


def test_containers_of_one_alert_carry_their_schema_and_are_called_by_its_id(items, alert_night, tmp_path):
    assert export_each(items, tmp_path / "deeper" / "each") == len(items)
    files = sorted((tmp_path / "deeper" / "each").iterdir())
    assert [file.name for file in files] == sorted(f"{p['diaSourceId']}.avro" for p in alert_night.packets)
    for file, packet in zip(files, sorted(alert_night.packets, key=lambda p: str(p["diaSourceId"])), strict=True):
        with file.open("rb") as opened:
            reader = fastavro.reader(opened)
            assert list(reader) == [packet]
            assert reader.writer_schema["name"] == "lsst.v11_1.alert"


def test_parquet_holds_every_alert_whole(items, alert_night, tmp_path):
    path = tmp_path / "alerts.parquet"
    assert export_alerts(iter(items), path, "parquet") == len(items)
    table = pq.read_table(path)
    assert table.to_pylist() == alert_night.packets
    # And is queried without the pictures.
    flux = pq.ParquetFile(path).read(columns=["diaSource.psfFlux"])["diaSource"].combine_chunks().field("psfFlux")
    assert flux.type == pa.float32()
    assert flux.to_pylist() == [packet["diaSource"]["psfFlux"] for packet in alert_night.packets]


def test_parquet_says_what_may_be_null_and_what_fields_mean():
    source = arrow_schema().field("diaSource").type
    assert not source.field("ra").nullable
    assert source.field("psfFlux").nullable
    assert b"nJy" in source.field("psfFlux").metadata[b"doc"]
    assert arrow_schema().field("mpc_orbits").type.field("updated_at").type == pa.timestamp("us", tz="UTC")


def test_parquet_of_more_than_one_group(items, tmp_path, monkeypatch):
    monkeypatch.setattr("alertprod.alerts.export._ROWS_PER_GROUP", 5)
    export_alerts(iter(items), tmp_path / "alerts.parquet", "parquet")
    assert pq.ParquetFile(tmp_path / "alerts.parquet").num_row_groups == -(-len(items) // 5)


def test_ecsv_is_a_table_with_units_that_astropy_reads(items, alert_night, tmp_path):
    path = tmp_path / "alerts.ecsv"
    assert export_alerts(iter(items), path, "ecsv") == len(items)
    table = Table.read(path)
    assert list(table["diaSourceId"]) == [packet["diaSourceId"] for packet in alert_night.packets]
    assert table["psfFlux"].unit == units.nJy
    assert table["psfFlux"].dtype == np.float32
    np.testing.assert_array_equal(
        table["psfFlux"], [np.float32(packet["diaSource"]["psfFlux"]) for packet in alert_night.packets]
    )
    assert table["designation"][-1] == "2011 UN63"
    assert bool(table["designation"].mask[0])


@pytest.mark.parametrize("file_format", ["avro", "parquet", "ecsv"])
def test_no_alerts_make_an_empty_file_of_the_same_shape(file_format, tmp_path):
    path = tmp_path / f"none.{file_format}"
    assert export_alerts(iter(()), path, file_format) == 0
    assert path.stat().st_size > 0


@pytest.mark.parametrize("file_format", ["avro", "parquet", "ecsv"])
def test_what_fails_halfway_leaves_what_was_there(file_format, items, tmp_path):
    path = tmp_path / f"alerts.{file_format}"
    path.write_bytes(b"of yesterday")

    def failing():
        yield items[0]
        raise SchemaMismatch("here")

    with pytest.raises(SchemaMismatch):
        export_alerts(failing(), path, file_format)
    assert path.read_bytes() == b"of yesterday"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_format_is_in_the_name(tmp_path):
    assert [guess_format(tmp_path / f"a.{name}") for name in ("avro", "parquet", "ECSV")] == ["avro", "parquet", "ecsv"]
    with pytest.raises(ConfigError, match=r"a\.csv does not end in one of \.avro, \.parquet, \.ecsv"):
        guess_format(tmp_path / "a.csv")


def test_another_surveys_container_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "ztf.avro"
    schema = {"type": "record", "name": "ztf.alert", "fields": [{"name": "candid", "type": "long"}]}
    with path.open("wb") as file:
        fastavro.writer(file, schema, [{"candid": 1}])
    with pytest.raises(SchemaMismatch, match=r"holds no alerts of 11\.1: diaSourceId: is not written"):
        list(read_alerts(path))


def test_rubins_version_before_reads_with_nulls_for_what_is_new(alert_night, tmp_path):
    older = pytest.importorskip("lsst.alert.packet", exc_type=ImportError)
    schema = older.Schema.from_file(older.get_schema_path(11, 0) + "/lsst.v11_0.alert.avsc")
    path = tmp_path / "older.avro"
    with path.open("wb") as file:
        schema.store_alerts(file, alert_night.packets)
    (first, *_) = read_alerts(path)
    assert first["diaSource"]["exposureTime"] is None
    assert first["diaSource"]["psfFlux"] == alert_night.packets[0]["diaSource"]["psfFlux"]
    assert write_alerts(tmp_path / "again.avro", [first]) == 1
