"""What the association knows and leaves behind: DiaObjects, DiaSources, DiaForcedSources, by sky cell.

A read notes the version of every cell it touched; the store checks each of them within its own transaction. So two
exposures of one piece of sky may be associated at the same time: the one that stores second hears `CellsMoved`,
reads again and associates again, and no object is made twice.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from alertprod._typing import IntArray
from alertprod.association.columns import DIA_FORCED_SOURCE_COLUMNS, DIA_OBJECT_COLUMNS, KNOWN_OBJECT_COLUMNS
from alertprod.geometry.sphere import SphericalPolygon
from alertprod.measurement.catalog import STORED_DIA_SOURCE_COLUMNS, Catalog, Column
from alertprod.store.database import Database
from alertprod.store.ledger import Claimed, Ledger
from alertprod.store.outbox import OutboxFile, remove_outbox
from alertprod.store.sky import compute_cells, compute_cells_of_region
from alertprod.store.tables import DIA_FORCED_SOURCE, DIA_OBJECT, DIA_SOURCE, SKY_CELL

REGION_PADDING_ARCSEC = 5.0
"""Five association radii: an object just off the detector can own a source just on it."""

_MAX_PARAMETERS = 5000
"""Below the 32766 of SQLite and the 65535 of PostgreSQL."""

CellVersions = Mapping[int, int]
"""Version of each cell that a read touched; a cell nobody ever wrote is at 0."""


class CellsMoved(Exception):
    """The history in these cells changed since it was read: read again, associate again, store again."""

    def __init__(self, cells: Sequence[int]) -> None:
        super().__init__(tuple(cells))
        self.cells = tuple(cells)

    def __str__(self) -> str:
        return f"the history of {len(self.cells)} sky cells changed since it was read"


class Apdb:
    """The tables of DiaObjects, DiaSources and DiaForcedSources.

    Parameters
    ----------
    database
        Where they are.
    ledger
        Where a stored exposure is noted, in the same transaction.

    Notes
    -----
    Every method may raise `StoreUnavailable` or `DiskFull`.
    """

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._database = database
        self._ledger = ledger

    def read_objects(
        self, region: SphericalPolygon, *, padding_arcsec: float = REGION_PADDING_ARCSEC
    ) -> tuple[Catalog, CellVersions]:
        """Read the objects about a region without their light curves: what association needs of them all.

        Parameters
        ----------
        region
            The footprint of the exposure (`alertprod.store.sky.compute_footprint`).

        Returns
        -------
        tuple
            `KNOWN_OBJECT_COLUMNS` of all objects of every cell within `padding_arcsec` of the region, in the order of
            their ids: more than lie on it. And the versions of these cells: hand them to `store_exposure`.

        Notes
        -----
        Follow up with `read_light_curves` of the objects that matter. It is a later snapshot, and may see more
        than this one; then a cell has moved, and the store says so.
        """
        with self._database.read() as connection:
            return _read_objects(connection, compute_cells_of_region(region, padding_arcsec=padding_arcsec))

    def read_light_curves(self, dia_object_ids: IntArray, *, since_mjd_tai: float) -> tuple[Catalog, Catalog]:
        """Read the sources and forced sources of objects since an epoch, by object, time and id.

        Notes
        -----
        However late they are: an exposure that is processed late is not the last word on its objects.
        """
        with self._database.read() as connection:
            return (
                _read_of_objects(connection, DIA_SOURCE, STORED_DIA_SOURCE_COLUMNS, dia_object_ids, since_mjd_tai),
                _read_of_objects(
                    connection, DIA_FORCED_SOURCE, DIA_FORCED_SOURCE_COLUMNS, dia_object_ids, since_mjd_tai
                ),
            )

    def store_exposure(
        self,
        claim: Claimed,
        *,
        sources: Catalog,
        objects: Catalog,
        forced: Catalog,
        cell_versions: CellVersions,
        outbox: OutboxFile,
        summary: Mapping[str, Any],
    ) -> None:
        """Store everything of an exposure in one transaction, or nothing.

        1. ledger: ``claimed`` becomes ``stored``, where the claim is still ours;
        2. cells: every version that the read noted is still what it was;
        3. versions + 1 of the cells that are written;
        4. sources and forced sources inserted, objects inserted or replaced by their new version.

        Parameters
        ----------
        sources
            New DiaSources, `dia_object_id` filled in.
        objects
            New versions of the objects that changed, and new objects.
        forced
            New DiaForcedSources.
        cell_versions
            As `read_objects` gave them.
        outbox
            The file of the packets; written before.
        summary
            The visit summary, of what JSON can say.

        Raises
        ------
        ClaimLost
            Raised if somebody else holds the exposure by now. Nothing was written.
        CellsMoved
            Raised if the history changed since it was read. Nothing was written.
        sqlalchemy.exc.IntegrityError
            Raised if an id is there already: a bug.

        Notes
        -----
        The cells written are those of the objects, where they were and where they are now. Cells that were only read,
        along the border, keep their version: neighbours do not disturb each other for nothing.
        """
        cells = compute_cells(objects["ra_deg"], objects["dec_deg"])
        source_rows = _to_sql(STORED_DIA_SOURCE_COLUMNS, sources)
        forced_rows = _to_sql(DIA_FORCED_SOURCE_COLUMNS, forced)
        object_rows = [
            (*row, cell) for row, cell in zip(_to_sql(DIA_OBJECT_COLUMNS, objects), cells.tolist(), strict=True)
        ]
        touched = np.concatenate([objects["dia_object_id"], forced["dia_object_id"], sources["dia_object_id"]])
        with self._database.write() as connection:
            self._ledger.mark_stored(
                connection,
                claim,
                n_alerts=outbox.n_messages,
                outbox_uri=outbox.uri,
                outbox_sha256=outbox.sha256,
                summary=summary,
            )
            written = set(cells.tolist()) | _read_cells_of_objects(connection, touched)
            self._advance_cells(connection, cell_versions, written)
            self._insert(connection, DIA_SOURCE, STORED_DIA_SOURCE_COLUMNS, source_rows)
            self._insert(connection, DIA_FORCED_SOURCE, DIA_FORCED_SOURCE_COLUMNS, forced_rows)
            self._replace_objects(connection, object_rows)

    def discard_outbox(self, outbox: OutboxFile) -> None:
        """Remove the file of work that was thrown away, unless the ledger knows it after all.

        Raises
        ------
        StoreUnavailable
            Raised if it cannot be removed; it goes by age then.
        """
        if not self._ledger.states_of_outboxes([outbox.uri]):
            remove_outbox(outbox.uri)

    def count_rows(self) -> dict[str, int]:
        """Return the number of rows of each table, by its name."""
        tables = (DIA_SOURCE, DIA_OBJECT, DIA_FORCED_SOURCE, SKY_CELL)
        with self._database.read() as connection:
            return {
                table.name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
                for table in tables
            }

    def _advance_cells(self, connection: sa.Connection, noted: CellVersions, written: set[int]) -> None:
        """Check the noted versions, add 1 to those written; rows are locked in one order, so nobody waits in a ring."""
        cells = sorted(noted.keys() | written)
        if not cells:
            return
        connection.execute(
            self._database.insert(SKY_CELL).on_conflict_do_nothing(), [{"cell": cell, "version": 0} for cell in cells]
        )
        found = dict(
            itertools.chain.from_iterable(
                connection.execute(
                    sa.select(SKY_CELL.c.cell, SKY_CELL.c.version)
                    .where(SKY_CELL.c.cell.in_(chunk))
                    .order_by(SKY_CELL.c.cell)
                    .with_for_update()  # PostgreSQL's lock; SQLite has locked all of the database already
                )
                for chunk in _chunks(cells)
            )
        )
        moved = [cell for cell, version in noted.items() if found[cell] != version]
        if moved:
            raise CellsMoved(moved)
        for chunk in _chunks(sorted(written)):
            connection.execute(
                sa.update(SKY_CELL).where(SKY_CELL.c.cell.in_(chunk)).values(version=SKY_CELL.c.version + 1)
            )

    def _insert(
        self, connection: sa.Connection, table: sa.Table, columns: Sequence[Column], rows: list[tuple[Any, ...]]
    ) -> None:
        if not rows:
            return
        names = [column.name for column in columns]
        self._execute_many(connection, sa.insert(table), names, rows)

    def _replace_objects(self, connection: sa.Connection, rows: list[tuple[Any, ...]]) -> None:
        if not rows:
            return
        names = [*(column.name for column in DIA_OBJECT_COLUMNS), "cell"]
        insert = self._database.insert(DIA_OBJECT)
        replaced = {name: insert.excluded[name] for name in names if name != "dia_object_id"}
        statement = insert.on_conflict_do_update(index_elements=["dia_object_id"], set_=replaced)
        self._execute_many(connection, statement, names, rows)

    def _execute_many(
        self, connection: sa.Connection, statement: sa.Insert, names: list[str], rows: list[tuple[Any, ...]]
    ) -> None:
        # Compiled once and run by the driver: SQLAlchemy's dictionaries of parameters take longer than the database.
        compiled = statement.compile(dialect=connection.dialect, column_keys=names)
        if compiled.positional:
            assert compiled.positiontup == names
            connection.exec_driver_sql(str(compiled), rows)
        else:
            connection.exec_driver_sql(str(compiled), [dict(zip(names, row, strict=True)) for row in rows])


def _read_objects(connection: sa.Connection, cells: IntArray) -> tuple[Catalog, CellVersions]:
    versions = dict.fromkeys(cells.tolist(), 0)
    rows: list[Sequence[Any]] = []
    columns = [DIA_OBJECT.c[column.name] for column in KNOWN_OBJECT_COLUMNS]
    for chunk in _chunks(cells.tolist()):
        found = connection.execute(sa.select(SKY_CELL.c.cell, SKY_CELL.c.version).where(SKY_CELL.c.cell.in_(chunk)))
        versions.update((cell, version) for cell, version in found)
    for chunk in _chunks(cells.tolist()):
        rows.extend(connection.execute(sa.select(*columns).where(DIA_OBJECT.c.cell.in_(chunk))).fetchall())
    objects = _to_catalog(KNOWN_OBJECT_COLUMNS, rows)
    return objects.select(np.argsort(objects["dia_object_id"], kind="stable")), versions


def _read_of_objects(
    connection: sa.Connection, table: sa.Table, columns: Sequence[Column], ids: IntArray, since_mjd_tai: float
) -> Catalog:
    rows: list[Sequence[Any]] = []
    selected = sa.select(*(table.c[column.name] for column in columns))
    for chunk in _chunks(np.unique(ids).tolist()):
        wanted = selected.where(table.c.dia_object_id.in_(chunk), table.c.midpoint_mjd_tai >= since_mjd_tai)
        rows.extend(connection.execute(wanted).fetchall())
    catalog = _to_catalog(columns, rows)
    order = np.lexsort((catalog[columns[0].name], catalog["midpoint_mjd_tai"], catalog["dia_object_id"]))
    return catalog.select(order)


def _read_cells_of_objects(connection: sa.Connection, ids: IntArray) -> set[int]:
    cells: set[int] = set()
    for chunk in _chunks(np.unique(ids[ids != 0]).tolist()):
        found = connection.execute(sa.select(DIA_OBJECT.c.cell).where(DIA_OBJECT.c.dia_object_id.in_(chunk)))
        cells.update(found.scalars())
    return cells


def _chunks(values: Sequence[int]) -> Iterable[Sequence[int]]:
    return (values[start : start + _MAX_PARAMETERS] for start in range(0, len(values), _MAX_PARAMETERS))


def _to_catalog(columns: Sequence[Column], rows: list[Sequence[Any]]) -> Catalog:
    catalog = Catalog(columns, len(rows))
    if rows:
        for column, values in zip(columns, zip(*rows, strict=True), strict=True):
            catalog[column.name] = np.array(values, dtype=column.dtype)  # None is NaN to a float dtype
    return catalog


def _to_sql(columns: Sequence[Column], catalog: Catalog) -> list[tuple[Any, ...]]:
    """Return the rows as tuples of Python scalars, NaN as None."""
    return list(zip(*(_to_scalars(catalog[column.name]) for column in columns), strict=True))


def _to_scalars(values: NDArray[Any]) -> list[Any]:
    scalars: list[Any] = values.tolist()
    if values.dtype.kind == "f":
        for i in np.flatnonzero(np.isnan(values)).tolist():
            scalars[i] = None
    return scalars
