"""Databases of earlier revisions, with rows in them, brought to the newest one."""

import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command

from alertprod.geometry.wcs import SkyWcs
from alertprod.store.apdb import Apdb
from alertprod.store.database import _alembic_config, head_revision
from alertprod.store.ledger import Ledger
from alertprod.store.sky import compute_cells, compute_footprint


@pytest.fixture
def old_database(database):
    """A database of the first revision; the newest one again afterwards, as the other tests expect it."""
    with database.write() as connection:
        for name in sa.inspect(connection).get_table_names():
            connection.execute(sa.text(f'DROP TABLE "{name}"'))
        config = _alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    yield database
    database.upgrade()


def insert(database, name, rows):
    """Insert rows; columns that must have a value and are not given one get a zero."""
    with database.write() as connection:
        table = sa.Table(name, sa.MetaData(), autoload_with=connection)
        for row in rows:
            needed = {
                column.name: "" if isinstance(column.type, sa.Text) else column.type.python_type(0)
                for column in table.columns
                if not column.nullable
            }
            connection.execute(sa.insert(table).values({**needed, **row}))


def source(number, object_id, mjd, **columns):
    return {"dia_source_id": number, "dia_object_id": object_id, "midpoint_mjd_tai": mjd, **columns}


def test_a_database_of_the_first_revision_keeps_its_rows_and_goes_on_following_its_objects(old_database):
    wcs = SkyWcs.from_tangent(ra_deg=150.0, dec_deg=2.0, x=199.5, y=199.5, scale_arcsec=0.5)
    cell = int(compute_cells(np.array([150.0]), np.array([2.0]))[0])
    place = {"ra_deg": 150.0, "dec_deg": 2.0, "cell": cell}
    insert(old_database, "dia_object", [{"dia_object_id": k, **place} for k in (1, 2, 3)])
    insert(
        old_database,
        "dia_source",
        [
            source(11, 1, 61000.0),
            source(12, 1, 61002.0, reliability=0.9, trail_length_arcsec=0.5),
            source(13, 1, 61004.0, is_dipole=True),
            source(14, 1, 61003.0),
            source(21, 2, 61000.0),
            source(22, 2, 61001.0, reliability=0.4),
        ],
    )
    old_database.upgrade()
    assert old_database.current_revision() == head_revision()
    apdb = Apdb(old_database, Ledger(old_database))
    objects, _ = apdb.read_objects(compute_footprint(wcs, (400, 400)))
    assert objects["dia_object_id"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(objects["repeated_mjd_tai"], [61002.0, np.nan, np.nan])
    sources, _ = apdb.read_light_curves(objects["dia_object_id"], since_mjd_tai=0.0)
    assert sources["dia_source_id"].tolist() == [11, 12, 14, 13, 21, 22]
    assert not sources["trail_flag"].any()
    assert set(sources["reliability_version"].tolist()) == {None}


def test_an_empty_database_of_the_first_revision_is_brought_to_the_newest(old_database):
    old_database.upgrade()
    old_database.check_schema()
