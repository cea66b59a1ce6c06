"""Looks a database over: whether its schema is the program's, its file sound, and its rows agree with one another."""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from alertprod.errors import PartialWriteError, StoreUnavailable
from alertprod.store.database import Database, head_revision
from alertprod.store.ledger import LedgerState
from alertprod.store.outbox import read_outbox
from alertprod.store.sky import compute_cells
from alertprod.store.tables import (
    DIA_FORCED_SOURCE,
    DIA_OBJECT,
    DIA_SOURCE,
    EXPOSURE_LEDGER,
    METADATA,
)

_ROWS_AT_ONCE: Final = 50_000


class Problem(NamedTuple):
    """Something that is wrong with a database."""

    what: str
    """The table, or what else it is about."""
    problem: str

    def __str__(self) -> str:
        return f"{self.what}: {self.problem}"


def check_database(database: Database, *, rows: bool = True) -> Iterator[Problem]:
    """Yield what is wrong, in this order: revision, file, tables, exposures that are to be published, rows.

    Parameters
    ----------
    rows
        Go through the tables' rows too: a second for a hundred thousand.

    Raises
    ------
    StoreUnavailable
        Raised if nobody answers.

    Notes
    -----
    Nothing is changed, and the daemon may run. A database at another revision is not looked at further, nor is a broken
    file or one with other tables.
    """
    current, head = database.current_revision(), head_revision()
    if current != head:
        found = "there is no schema" if current is None else f"the schema is at revision {current}"
        yield Problem("revision", f"{found}, this program's is {head}")
        return
    for look in (_check_file, _compare_tables):
        found_here = list(look(database))
        yield from found_here
        if found_here:
            return
    yield from _check_outboxes(database)
    if rows:
        yield from _check_rows(database)
        yield from _check_cells(database)


def count_rows(database: Database) -> dict[str, int]:
    """Return the number of rows of each table."""
    with database.read() as connection:
        return {
            table.name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in METADATA.sorted_tables
        }


def _compare_tables(database: Database) -> Iterator[Problem]:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        for difference in compare_metadata(context, METADATA):
            # A step, or, of a column that is changed, a list of them.
            for step in difference if isinstance(difference, list) else [difference]:
                yield Problem("tables", " ".join(_name(part) for part in step if part is not None and part != {}))


def _name(part: object) -> str:
    return str(getattr(part, "name", part))


def _check_file(database: Database) -> Iterator[Problem]:
    if not database.is_sqlite:
        return
    try:
        with database.read() as connection:
            for (line,) in connection.execute(sa.text("PRAGMA integrity_check(20)")):
                if line != "ok":
                    yield Problem("file", str(line))
            mode = connection.execute(sa.text("PRAGMA journal_mode")).scalar_one()
    except StoreUnavailable as error:  # too broken even for that
        yield Problem("file", str(error))
        return
    if mode != "wal":
        yield Problem("file", f"its journal mode is {mode}: a reader would block the writer")


def _check_outboxes(database: Database) -> Iterator[Problem]:
    """Check what is stored and not published yet: without its file it can never be."""
    ledger = EXPOSURE_LEDGER.c
    query = sa.select(
        ledger.instrument, ledger.visit, ledger.detector, ledger.outbox_uri, ledger.outbox_sha256, ledger.n_alerts
    ).where(ledger.state == LedgerState.STORED.value)
    with database.read() as connection:
        stored = connection.execute(query.order_by(ledger.instrument, ledger.visit, ledger.detector)).all()
    for row in stored:
        what = f"exposure {row.instrument}/{row.visit}/{row.detector}"
        if row.outbox_uri is None or row.outbox_sha256 is None:
            yield Problem(what, "is stored and names no outbox file")
            continue
        try:
            n = sum(1 for _ in read_outbox(row.outbox_uri, row.outbox_sha256))
        except (PartialWriteError, StoreUnavailable) as error:
            yield Problem(what, f"is stored and cannot be published: {error}")
            continue
        if n != row.n_alerts:
            yield Problem(what, f"its outbox file has {n} alerts, the ledger says {row.n_alerts}")


def _check_rows(database: Database) -> Iterator[Problem]:
    source, forced, parent = DIA_SOURCE.c, DIA_FORCED_SOURCE.c, DIA_OBJECT.c
    has_object = sa.exists().where(parent.dia_object_id == source.dia_object_id)
    forced_has_object = sa.exists().where(parent.dia_object_id == forced.dia_object_id)
    has_source = sa.exists().where(source.dia_object_id == parent.dia_object_id)
    questions = (
        (DIA_SOURCE, "are of no object that there is", (source.dia_object_id != 0) & ~has_object),
        (
            DIA_SOURCE,
            "are of neither an object nor a Solar System body",
            (source.dia_object_id == 0) & (source.ss_object_id == 0),
        ),
        (DIA_FORCED_SOURCE, "are of no object that there is", ~forced_has_object),
        (DIA_OBJECT, "have no source", ~has_source),
        (DIA_OBJECT, "have no position", parent.ra_deg.is_(None) | parent.dec_deg.is_(None)),
    )
    with database.read() as connection:
        for table, what, condition in questions:
            n = connection.execute(sa.select(sa.func.count()).select_from(table).where(condition)).scalar_one()
            if n:
                yield Problem(table.name, f"{n} rows {what}")


def _check_cells(database: Database) -> Iterator[Problem]:
    """Check that objects are in the cells they are in: one in another is never found again."""
    parent = DIA_OBJECT.c
    last, n_wrong = -1, 0
    with database.read() as connection:
        while True:
            rows = connection.execute(
                sa.select(parent.dia_object_id, parent.ra_deg, parent.dec_deg, parent.cell)
                .where(parent.dia_object_id > last, parent.ra_deg.is_not(None), parent.dec_deg.is_not(None))
                .order_by(parent.dia_object_id)
                .limit(_ROWS_AT_ONCE)
            ).all()
            if not rows:
                break
            ids, ra, dec, cells = (np.array(column) for column in zip(*rows, strict=True))
            n_wrong += int(np.count_nonzero(compute_cells(ra, dec) != cells))
            last = int(ids[-1])
    if n_wrong:
        yield Problem(DIA_OBJECT.name, f"{n_wrong} rows are in the wrong cell of the sky: they are never found again")
