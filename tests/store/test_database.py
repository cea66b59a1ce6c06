import shutil
import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from alertprod.errors import ConfigError, DiskFull, StoreUnavailable
from alertprod.store.database import Database, head_revision, upgrade
from alertprod.store.tables import METADATA, SKY_CELL


def test_the_migrations_make_the_tables_the_program_uses(database):
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, METADATA) == []


def test_a_new_database_is_refused_until_it_is_upgraded(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'new.db'}")
    with pytest.raises(ConfigError, match="alertprod db upgrade"):
        database.check_schema()
    database.upgrade()
    database.check_schema()
    assert database.current_revision() == head_revision()
    database.close()


def test_an_upgrade_of_an_upgraded_database_changes_nothing(database):
    with database.write() as connection:
        connection.execute(sa.insert(SKY_CELL).values(cell=1, version=5))
    database.upgrade()
    with database.read() as connection:
        assert connection.execute(sa.select(SKY_CELL.c.version)).scalars().all() == [5]


def test_a_schema_from_the_future_is_refused(database):
    with database.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    try:
        with pytest.raises(ConfigError, match="newer than this program"):
            database.check_schema()
    finally:
        with database.write() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = :head"), {"head": head_revision()})


def test_programs_that_start_together_upgrade_once(tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(upgrade, [url, url]))
    database = Database(url)
    database.check_schema()
    database.close()


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://localhost/x", "sqlite://", "sqlite:///:memory:"])
def test_a_url_that_cannot_be_used_is_a_config_error(url):
    with pytest.raises(ConfigError):
        Database(url)


def test_sqlite_keeps_what_was_committed(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'a.db'}")
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    database.close()


def test_a_locked_database_is_unavailable_and_then_available_again(sqlite_url):
    database = Database(sqlite_url, busy_timeout_s=0.1)
    blocker = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"), database.write():
        pytest.fail("the lock was not respected")
    with database.read() as connection:  # readers do not wait for writers
        assert connection.execute(sa.select(SKY_CELL)).all() == []
    blocker.execute("ROLLBACK")
    blocker.close()
    with database.write() as connection:
        connection.execute(sa.insert(SKY_CELL).values(cell=1, version=1))
    database.close()


@pytest.mark.postgres
def test_a_lock_that_is_held_too_long_is_unavailable_in_postgres(postgres_url):
    holder, waiter = Database(postgres_url), Database(postgres_url, busy_timeout_s=0.2)
    with holder.write() as connection:
        connection.execute(sa.text("LOCK TABLE sky_cell IN EXCLUSIVE MODE"))
        with pytest.raises(StoreUnavailable, match="lock timeout"), waiter.write() as waiting:
            waiting.execute(sa.insert(SKY_CELL).values(cell=1, version=1))
    holder.close()
    waiter.close()


def test_a_file_that_was_read_only_for_a_while_is_written_to_again(migrated_sqlite, tmp_path):
    """SQLite opens such a file for reading, and a connection stays as it was opened."""
    path = tmp_path / "alerts.db"
    shutil.copy(migrated_sqlite, path)
    database = Database(f"sqlite:///{path}")
    if subprocess.run(["chattr", "+i", path], capture_output=True, check=False).returncode:
        pytest.skip("this user, or this file system, cannot make a file unchangeable")
    try:
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="readonly"), database.write() as connection:
                connection.exec_driver_sql("CREATE TABLE refused (x)")
    finally:
        subprocess.run(["chattr", "-i", path], check=True)
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE taken (x)")
    database.close()


@pytest.mark.postgres
def test_a_postgres_that_takes_no_changes_is_unavailable(postgres_url):
    """As a standby does until it is promoted."""
    database = Database(postgres_url)
    with pytest.raises(StoreUnavailable, match="read-only"), database.write() as connection:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY; CREATE TABLE refused ()")
    database.close()


@pytest.mark.postgres
def test_a_connection_the_server_cut_is_unavailable_once(postgres_url):
    database, admin = Database(postgres_url), Database(postgres_url)

    def lose_the_connection():
        with database.write() as connection:
            pid = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
            with admin.write() as other:
                other.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            connection.execute(sa.select(SKY_CELL))

    with pytest.raises(StoreUnavailable):
        lose_the_connection()
    with database.read() as connection:
        connection.execute(sa.select(SKY_CELL))
    database.close()
    admin.close()


def test_a_full_disk_is_disk_full_and_leaves_nothing_behind(sqlite_url):
    database = Database(sqlite_url)
    with database.write() as connection:
        n_pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {n_pages + 2}")
    rows = [{"cell": i, "version": 0} for i in range(20_000)]
    with pytest.raises(DiskFull, match="full"), database.write() as connection:
        connection.execute(sa.insert(SKY_CELL), rows)
    with database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(SKY_CELL)).scalar_one() == 0
    database.close()


def test_a_database_whose_folder_is_gone_is_unavailable(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'nowhere' / 'a.db'}")
    with pytest.raises(StoreUnavailable):
        database.check_schema()


def test_a_file_that_is_no_database_is_unavailable(tmp_path):
    path = tmp_path / "a.db"
    path.write_bytes(b"SIMPLE  =                    T" * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        Database(f"sqlite:///{path}").check_schema()


def test_a_server_that_is_not_there_is_unavailable():
    database = Database("postgresql://nobody@127.0.0.1:1/none", busy_timeout_s=2.0)
    with pytest.raises(StoreUnavailable):
        database.check_schema()


def test_messages_do_not_show_the_password():
    database = Database("postgresql://nobody:secret@127.0.0.1:1/none", busy_timeout_s=2.0)
    with pytest.raises(StoreUnavailable) as caught:
        database.check_schema()
    assert "secret" not in f"{caught.value} {database}"


def test_an_integrity_error_stays_a_bug(database):
    with pytest.raises(sa.exc.IntegrityError), database.write() as connection:
        connection.execute(sa.insert(SKY_CELL), [{"cell": 1, "version": 0}, {"cell": 1, "version": 0}])


def test_wrong_sql_stays_a_bug(database):
    with pytest.raises(sa.exc.DBAPIError), database.read() as connection:
        connection.execute(sa.text("SELECT * FROM no_such_table"))


def test_an_exception_rolls_the_transaction_back(database):
    def write_and_fail():
        with database.write() as connection:
            connection.execute(sa.insert(SKY_CELL).values(cell=1, version=1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    with database.read() as connection:
        assert connection.execute(sa.select(SKY_CELL)).all() == []
