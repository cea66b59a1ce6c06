import contextlib
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from alertprod.association.columns import DIA_OBJECT_COLUMNS
from alertprod.measurement.catalog import STORED_DIA_SOURCE_COLUMNS
from alertprod.store.checkup import check_database, count_rows
from alertprod.store.database import Database, head_revision
from alertprod.store.ledger import Claimed, ExposureKey
from alertprod.store.outbox import OutboxMessage, write_outbox
from alertprod.store.sky import compute_cells
from alertprod.store.tables import DIA_FORCED_SOURCE, DIA_OBJECT, DIA_SOURCE, EXPOSURE_LEDGER


def row(columns, **values):
    """A row with nothing in it but what must be, and what is given."""
    plain = {"f": None, "i": 0, "?": False, "O": None}
    return {column.name: plain[column.dtype[0]] for column in columns} | values


def make_object(identity, *, ra=150.0, dec=2.0, cell=None):
    cell = int(compute_cells(np.array(ra), np.array(dec))) if cell is None else cell
    return row(DIA_OBJECT_COLUMNS, dia_object_id=identity, ra_deg=ra, dec_deg=dec, cell=cell)


def make_source(identity, dia_object_id, **values):
    return row(STORED_DIA_SOURCE_COLUMNS, dia_source_id=identity, dia_object_id=dia_object_id, **values)


@pytest.fixture
def filled(database):
    with database.write() as connection:
        connection.execute(
            sa.insert(DIA_OBJECT), [make_object(k, ra=359.9999 - k / 10, dec=-k / 2.0) for k in (1, 2, 3)]
        )
        connection.execute(sa.insert(DIA_SOURCE), [make_source(10 + k, k) for k in (1, 2, 3)])
        connection.execute(sa.insert(DIA_SOURCE), [make_source(20, 0, ss_object_id=7)])
    return database


def problems(database, **options):
    return [str(each) for each in check_database(database, **options)]


def test_a_sound_database_has_no_problems(filled):
    assert problems(filled) == []
    assert count_rows(filled)["dia_source"] == 4


def test_a_database_without_a_schema_or_with_another_says_so(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'new.db'}")
    assert problems(database) == [f"revision: there is no schema, this program's is {head_revision()}"]
    database.upgrade()
    assert problems(database) == []
    with database.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
    assert problems(database) == [f"revision: the schema is at revision 0001, this program's is {head_revision()}"]
    database.close()


def test_tables_that_somebody_changed_are_named(sqlite_url):
    database = Database(sqlite_url)
    with database.write() as connection:
        connection.execute(sa.text("DROP INDEX dia_source_of_exposure"))
        connection.execute(sa.text("ALTER TABLE sky_cell ADD COLUMN more INTEGER"))
    found = problems(database)
    assert any("remove_column" in each and "sky_cell" in each and "more" in each for each in found)
    assert any("add_index dia_source_of_exposure" in each for each in found)
    database.close()


def test_rows_that_do_not_agree_are_counted(filled):
    with filled.write() as connection:
        connection.execute(sa.insert(DIA_SOURCE), [make_source(30, 99), make_source(31, 99), make_source(32, 0)])
        connection.execute(sa.insert(DIA_OBJECT), [make_object(4)])
        connection.execute(
            sa.insert(DIA_FORCED_SOURCE),
            [{"dia_forced_source_id": 1, "dia_object_id": 98, "visit": 1, "detector": 1}],
        )
    assert problems(filled) == [
        "dia_source: 2 rows are of no object that there is",
        "dia_source: 1 rows are of neither an object nor a Solar System body",
        "dia_forced_source: 1 rows are of no object that there is",
        "dia_object: 1 rows have no source",
    ]
    assert problems(filled, rows=False) == []


def test_objects_in_the_wrong_cell_are_found(filled):
    with filled.write() as connection:
        connection.execute(sa.update(DIA_OBJECT).where(DIA_OBJECT.c.dia_object_id == 2).values(cell=5))
    assert problems(filled) == ["dia_object: 1 rows are in the wrong cell of the sky: they are never found again"]


def test_what_is_to_be_published_must_be_there_whole(filled, ledger, tmp_path):
    for detector, remove in ((1, False), (2, True), (3, False)):
        key = ExposureKey("SimCam", 7, detector)
        claimed = ledger.claim(key, owner="me", lease_s=60)
        assert isinstance(claimed, Claimed)
        path = tmp_path / f"{detector}.outbox"
        outbox = write_outbox(str(path), [OutboxMessage(b"k", b"v")])
        with filled.write() as connection:
            ledger.mark_stored(
                connection, claimed, n_alerts=1, outbox_uri=outbox.uri, outbox_sha256=outbox.sha256, summary={}
            )
        if remove:
            path.unlink()
    with filled.write() as connection:
        connection.execute(sa.update(EXPOSURE_LEDGER).where(EXPOSURE_LEDGER.c.detector == 3).values(n_alerts=5))
    first, second = problems(filled)
    assert first.startswith("exposure SimCam/7/2: is stored and cannot be published: outbox ")
    assert first.endswith("no such file")
    assert second == "exposure SimCam/7/3: its outbox file has 1 alerts, the ledger says 5"


def test_a_damaged_file_is_found(sqlite_url):
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    database = Database(sqlite_url)
    with database.write() as connection:
        connection.execute(sa.insert(DIA_OBJECT), [make_object(k + 1) for k in range(300)])
    database.close()
    with contextlib.closing(sqlite3.connect(path)) as plain:
        plain.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = plain.execute("SELECT rootpage FROM sqlite_master WHERE name = 'dia_object_in_cell'").fetchone()
        (size,) = plain.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    damaged = Database(sqlite_url)
    found = problems(damaged)
    assert found
    assert all(each.startswith("file: ") for each in found)
    damaged.close()
