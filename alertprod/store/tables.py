"""The SQL tables: the columns of the three catalogs as they are listed, the sky cells, the ledger.

A float that nobody measured is NaN in a `Catalog` and NULL in SQL; ids that do not apply are 0 in both.
A change here needs a new revision in ``migrations/versions``; a test compares the two.
"""

from collections.abc import Iterable

import numpy as np
import sqlalchemy as sa

from alertprod.association.columns import DIA_FORCED_SOURCE_COLUMNS, DIA_OBJECT_COLUMNS, KNOWN_OBJECT_COLUMNS
from alertprod.measurement.catalog import STORED_DIA_SOURCE_COLUMNS, Column

METADATA = sa.MetaData()

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""63-bit ids; SQLite keeps a table in the order of its key only where that is called INTEGER."""


_ADDED_FLAGS = frozenset({"trail_flag"})
"""Flags younger than the table: the rows that were there needed a value, and SQLite does not take a default back."""


def _sql_columns(columns: Iterable[Column], *, primary_key: str) -> list[sa.Column[object]]:
    return [_sql_column(column, is_key=column.name == primary_key) for column in columns]


def _sql_column(column: Column, *, is_key: bool) -> "sa.Column[object]":
    if is_key:
        return sa.Column(column.name, _ID, primary_key=True, autoincrement=False)
    dtype = np.dtype(column.dtype)
    if dtype.kind == "f":
        return sa.Column(column.name, sa.REAL() if dtype.itemsize == 4 else sa.Double())
    if dtype.kind == "b":
        default = sa.false() if column.name in _ADDED_FLAGS else None
        return sa.Column(column.name, sa.Boolean(), nullable=False, server_default=default)
    if dtype.kind == "i":
        return sa.Column(column.name, sa.BigInteger() if dtype.itemsize == 8 else sa.Integer(), nullable=False)
    return sa.Column(column.name, sa.Text())


DIA_SOURCE = sa.Table(
    "dia_source",
    METADATA,
    *_sql_columns(STORED_DIA_SOURCE_COLUMNS, primary_key="dia_source_id"),
    sa.Index("dia_source_of_object", "dia_object_id", "midpoint_mjd_tai"),
    sa.Index("dia_source_of_exposure", "visit", "detector"),
)

DIA_OBJECT = sa.Table(
    "dia_object",
    METADATA,
    *_sql_columns(DIA_OBJECT_COLUMNS, primary_key="dia_object_id"),
    sa.Column("cell", sa.BigInteger(), nullable=False),
    sa.Index("dia_object_in_cell", "cell", *(column.name for column in KNOWN_OBJECT_COLUMNS)),
)
"""One row an object: its latest version, since `validity_start_mjd_tai`. Earlier versions are in the alerts.

The index holds all that is read of the objects of a region: neighbours on the sky are strewn over the table, and to
fetch a thousand rows from a thousand places of a disk takes a second."""

DIA_FORCED_SOURCE = sa.Table(
    "dia_forced_source",
    METADATA,
    *_sql_columns(DIA_FORCED_SOURCE_COLUMNS, primary_key="dia_forced_source_id"),
    sa.Index("dia_forced_source_of_object", "dia_object_id", "midpoint_mjd_tai"),
)

SKY_CELL = sa.Table(
    "sky_cell",
    METADATA,
    sa.Column("cell", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("version", sa.BigInteger(), nullable=False),
)
"""How often the history in a HEALPix cell was written; a cell without a row is at version 0."""

EXPOSURE_LEDGER = sa.Table(
    "exposure_ledger",
    METADATA,
    sa.Column("instrument", sa.Text(), primary_key=True),
    sa.Column("visit", sa.BigInteger(), primary_key=True, autoincrement=False),
    sa.Column("detector", sa.Integer(), primary_key=True, autoincrement=False),
    sa.Column("state", sa.Text(), nullable=False),
    sa.Column("claims", sa.Integer(), nullable=False),
    sa.Column("worker_deaths", sa.Integer(), nullable=False, server_default="0"),
    sa.Column("owner", sa.Text(), nullable=False),
    sa.Column("lease_until_unix_s", sa.Double(), nullable=False),
    sa.Column("topic", sa.Text()),
    sa.Column("partition", sa.Integer()),
    sa.Column("event_offset", sa.BigInteger()),
    sa.Column("program_version", sa.Text()),
    sa.Column("config_hash", sa.Text()),
    sa.Column("reason", sa.Text()),
    sa.Column("summary", sa.Text()),
    sa.Column("n_alerts", sa.Integer()),
    sa.Column("outbox_uri", sa.Text()),
    sa.Column("outbox_sha256", sa.Text()),
    sa.Column("first_claimed_unix_s", sa.Double(), nullable=False),
    sa.Column("changed_unix_s", sa.Double(), nullable=False),
    sa.Index("exposure_ledger_of_partition", "state", "topic", "partition", "event_offset"),
    sa.Index("exposure_ledger_of_outbox", "outbox_uri"),
)
