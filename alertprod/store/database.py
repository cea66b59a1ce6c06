"""One SQL database: its connections, its transactions, its schema's version, its errors.

Transactions are opened here and nowhere else: `Database.read` sees one snapshot, `Database.write`
takes the writer's lock at once (``BEGIN IMMEDIATE`` in SQLite), because a SQLite transaction that
reads first and writes later can fail halfway with "database is locked" however long it waits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql, sqlite

from alertprod.errors import ConfigError, DiskFull, StoreUnavailable

_MIGRATIONS = Path(__file__).parent / "migrations"

DEFAULT_BUSY_TIMEOUT_S = 20.0
"""How long a statement waits for another's lock: many times the longest store (one second), well below
a worker's deadline, so that a database that stays locked is a `StoreUnavailable` and not a killed worker."""

_SQLITE_GENERIC_ERROR = 1
"""SQLITE_ERROR: bad SQL or a table that is not there. Every other code is the file or its locks."""

_SQLITE_READONLY, _SQLITE_FULL = 8, 13

_POSTGRES_DISK_FULL = ("53100", "53200")
"""disk_full, out_of_memory."""

_POSTGRES_TRANSIENT = ("08", "25006", "28", "40", "53", "55", "57", "58")
"""Beginnings of SQLSTATEs: connection, read-only (a standby, until it is promoted), password not taken (while it is being
changed), rollback (deadlock, serialization), resources, lock not available, operator intervention (shutdown, cancelled by
a timeout), system error."""


class Database:
    """Connections to one SQL database; make one in each process, it does not survive pickling.

    Parameters
    ----------
    url
        ``sqlite:///path/to/file.db``, or ``postgresql://user@host/name`` with the extra `postgres`.
    busy_timeout_s
        How long one statement waits for a lock before the store is `StoreUnavailable`.

    Raises
    ------
    ConfigError
        Raised if `url` is no URL of a database that is supported.
    """

    def __init__(self, url: str, *, busy_timeout_s: float = DEFAULT_BUSY_TIMEOUT_S) -> None:
        self._url = _parse_url(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            self._engine = sa.create_engine(self._url, connect_args={"timeout": busy_timeout_s})
            sa.event.listen(self._engine, "connect", _prepare_sqlite_connection)
            sa.event.listen(self._engine, "begin", _begin_sqlite_transaction)
        else:
            milliseconds = round(busy_timeout_s * 1000)
            options = f"-c lock_timeout={milliseconds} -c timezone=UTC"
            self._engine = sa.create_engine(
                self._url,
                pool_pre_ping=True,  # a server that was restarted must not cost an exposure
                connect_args={"options": options, "connect_timeout": max(2, round(busy_timeout_s))},
            )

    def __str__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    @property
    def folder(self) -> Path | None:
        """Where SQLite's file is, which SQLite makes itself, or is to be; None for a server."""
        return Path(self._url.database or "").absolute().parent if self.is_sqlite else None

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a transaction that reads one snapshot of the database.

        Raises
        ------
        StoreUnavailable, DiskFull
            Raised in place of SQLAlchemy's errors, as in `write`.
        """
        isolation: dict[str, Any] = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        with (
            self._translated_errors(),
            self._engine.connect().execution_options(**isolation) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Open a transaction that writes: committed at the end of the block, rolled back by any exception.

        Raises
        ------
        StoreUnavailable
            Raised if the database is away, or locked for longer than the busy timeout.
        DiskFull
            Raised if there is no room for what is written.

        Notes
        -----
        An integrity error is a bug, not the weather: it passes through as SQLAlchemy's.
        """
        with (
            self._translated_errors(),
            self._engine.connect().execution_options(alertprod_writes=True) as connection,
            connection.begin(),
        ):
            yield connection

    def insert(self, table: sa.Table) -> "sqlite.Insert | postgresql.Insert":
        """Return this dialect's INSERT, which knows ``on_conflict_do_nothing`` and ``..._update``."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def upgrade(self) -> None:
        """Bring the schema to the newest revision; harmless where it is there already, or being brought there."""
        with self.write() as connection:
            if not self.is_sqlite:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
            config = _alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def current_revision(self) -> str | None:
        """Return the revision the schema is at; None where there is no schema, or no file yet, and none is made."""
        file = Path((self._url.database if self.is_sqlite else None) or ":memory:")
        # A folder that is away may come back with the file in it: that is for SQLite to say.
        if file.name != ":memory:" and file.parent.is_dir() and not file.exists():
            return None
        with self.read() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    def check_schema(self) -> None:
        """Make sure at start-up that the schema is the one this program was written for.

        Raises
        ------
        ConfigError
            Raised if it is at another revision, or absent.
        StoreUnavailable
            Raised if nobody answers.
        """
        current, head = self.current_revision(), head_revision()
        if current == head:
            return
        found = "there is no schema" if current is None else f"the schema is at revision {current}"
        known = {script.revision for script in ScriptDirectory.from_config(_alembic_config()).walk_revisions()}
        if current is None or current in known:
            raise ConfigError(str(self), "store.url", f"{found}, {head} is needed: run `alertprod db upgrade`")
        raise ConfigError(str(self), "store.url", f"{found}, which is newer than this program's {head}: upgrade it")

    def close(self) -> None:
        """Close the pooled connections."""
        self._engine.dispose()

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.TimeoutError as error:  # the pool's, not the database's
            raise StoreUnavailable(f"{self}: {error}") from error
        except sa.exc.IntegrityError:
            raise
        except sa.exc.DBAPIError as error:
            if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == _SQLITE_READONLY:
                self._engine.dispose()  # opened while the file was read-only, a connection stays so for good
            translated = self._translate(error)
            if translated is None:
                raise
            raise translated from error

    def _translate(self, error: sa.exc.DBAPIError) -> StoreUnavailable | DiskFull | None:
        problem = f"{self}: {error.orig}"
        if self.is_sqlite:
            code = getattr(error.orig, "sqlite_errorcode", None)
            if code is None:
                return None
            primary = code & 0xFF  # extended codes carry the primary one in their low byte
            if primary == _SQLITE_FULL:
                return DiskFull(problem)
            return None if primary == _SQLITE_GENERIC_ERROR else StoreUnavailable(problem)
        state = getattr(error.orig, "sqlstate", None)
        if state in _POSTGRES_DISK_FULL:
            return DiskFull(problem)
        if error.connection_invalidated or (isinstance(error, sa.exc.OperationalError) and state is None):
            return StoreUnavailable(problem)
        return StoreUnavailable(problem) if state is not None and state.startswith(_POSTGRES_TRANSIENT) else None


def upgrade(url: str) -> None:
    """Bring the schema of the database at `url` to the newest revision, making it where there is none."""
    database = Database(url)
    try:
        database.upgrade()
    finally:
        database.close()


def head_revision() -> str:
    """Return the revision of the schema that this program needs."""
    head = ScriptDirectory.from_config(_alembic_config()).get_current_head()
    assert head is not None, "the package has migrations"
    return head


_UPGRADE_LOCK = 0x616C7270
"""Key of PostgreSQL's advisory lock about an upgrade: "alrp", so that two daemons that start do not both migrate."""


def _parse_url(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
        backend = parsed.get_backend_name()
    except sa.exc.ArgumentError as error:
        raise ConfigError("store.url", "url", f"{url!r} is no database URL: {error}") from error
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ConfigError("store.url", "url", "SQLite needs a file: several processes share the database")
        return parsed
    if backend in ("postgresql", "postgres"):
        try:
            import psycopg  # noqa: F401 - the extra may be missing, and that is the user's to hear
        except ImportError as error:
            raise ConfigError("store.url", "url", "PostgreSQL needs the extra: pip install alertprod[postgres]") from (
                error
            )
        return parsed.set(drivername="postgresql+psycopg")
    raise ConfigError("store.url", "url", f"{backend!r} is not supported; sqlite and postgresql are")


def _prepare_sqlite_connection(connection: Any, _record: Any) -> None:
    # The driver must not open transactions by itself: `_begin_sqlite_transaction` does.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA journal_mode = WAL")  # readers and one writer at a time do not wait for each other
        cursor.execute("PRAGMA synchronous = FULL")  # a commit is on the disk when it returns: the ledger is a promise
    finally:
        cursor.close()


def _begin_sqlite_transaction(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("alertprod_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config
