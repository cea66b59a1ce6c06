from pathlib import Path

import pytest
import sqlalchemy as sa

from alertprod.store.database import Database, head_revision
from alertprod.store.tables import SKY_CELL


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'alerts.db'}"


def test_a_database_is_upgraded_and_then_sound(alertprod, url):
    ran = alertprod("db", "check", "--url", url)
    assert ran.status == 1
    assert "there is no schema" in ran.out
    assert not Path(url.removeprefix("sqlite:///")).exists()  # looking makes nothing
    ran = alertprod("db", "upgrade", "--url", url)
    assert ran.status == 0
    assert f"no schema -> {head_revision()}" in ran.out
    ran = alertprod("db", "check", "--url", url)
    assert ran.status == 0
    assert f"revision {head_revision()}, is sound" in ran.words
    assert "dia_source: 0 rows" in ran.out


def test_problems_are_named_for_people_and_programs(alertprod, url):
    alertprod("db", "upgrade", "--url", url)
    database = Database(url)
    with database.write() as connection:
        connection.execute(sa.insert(SKY_CELL).values(cell=1, version=1))
        connection.execute(sa.text("DROP INDEX dia_source_of_exposure"))
    database.close()
    ran = alertprod("db", "check", "--url", url)
    assert ran.status == 1
    assert "tables: add_index dia_source_of_exposure" in ran.out
    assert "has 1 problem" in ran.words
    said = alertprod("db", "check", "--url", url, "--json").json
    assert said["problems"][0]["what"] == "tables"
    assert said["revision"] == head_revision()


def test_passwords_are_not_said(alertprod):
    ran = alertprod("db", "check", "--url", "postgresql://me:secret@127.0.0.1:9/none")
    assert ran.status == 1
    assert "secret" not in ran.out + ran.err
    assert "store_unavailable" in ran.words


def test_a_folder_that_is_not_there_is_the_configurations_fault(alertprod, tmp_path):
    ran = alertprod("db", "upgrade", "--url", f"sqlite:///{tmp_path}/nowhere/alerts.sqlite")
    assert ran.status == 2
    assert f"no folder {tmp_path}/nowhere" in ran.err
