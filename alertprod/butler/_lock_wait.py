"""How long a repository on SQLite may be locked by others.

The middleware waits for five minutes, which is all the time that a worker of the daemon has, and cannot be told less.
"""

import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy.event
import sqlalchemy.pool

LOCK_WAIT_S = 10.0
"""Honest transactions of a registry take well below a second each."""

_limited: set[Path] = set()


def limit_lock_wait(root: Path) -> None:
    """Let this process wait for `LOCK_WAIT_S` at most where a database below a folder is locked."""
    if not _limited:
        sqlalchemy.event.listen(sqlalchemy.pool.Pool, "checkout", _limit)
    _limited.add(root)


def _limit(connection: Any, record: Any, proxy: Any) -> None:
    """Set the wait of a connection at each use: the middleware sets its own when it connects."""
    del record, proxy
    if not isinstance(connection, sqlite3.Connection):
        return
    path = next((row[2] for row in connection.execute("PRAGMA database_list") if row[1] == "main"), "")
    if path and any(root in Path(path).parents for root in _limited):
        connection.execute(f"PRAGMA busy_timeout = {round(LOCK_WAIT_S * 1000)}")
