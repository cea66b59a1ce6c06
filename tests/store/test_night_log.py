"""A night in the database."""

import pytest
import sqlalchemy as sa

from alertprod.store.database import Database
from alertprod.store.ledger import ExposureKey, Ledger
from alertprod.store.night_log import NightLog
from alertprod.store.outbox import OutboxMessage, write_outbox
from alertprod.store.tables import DIA_SOURCE


@pytest.fixture
def database(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/night.sqlite")
    database.upgrade()
    yield database
    database.close()


def store(database, tmp_path, visit, sources, *, at=1000.0, publish=True):
    """Store an exposure with sources given as (counter, object, snr, more columns)."""
    now = [at]
    ledger = Ledger(database, clock=lambda: now[0])
    claim = ledger.claim(ExposureKey("Camera", visit, 0), owner="a", lease_s=10.0)
    ids = [visit * 100 + counter for counter, *_ in sources]
    messages = [OutboxMessage(b"k", b"alert %d" % n, (("diaSourceId", b"%d" % n),)) for n in ids]
    outbox = write_outbox(str(tmp_path / f"{visit}.outbox"), messages)
    with database.write() as connection:
        for source_id, (_, object_id, snr, more) in zip(ids, sources, strict=True):
            values = {}
            for column in DIA_SOURCE.c:
                if column.nullable:
                    continue
                values[column.name] = False if isinstance(column.type, sa.Boolean) else 0
            values |= {"dia_source_id": source_id, "visit": visit, "dia_object_id": object_id, "snr": snr} | more
            connection.execute(sa.insert(DIA_SOURCE).values(**values))
        ledger.mark_stored(
            connection,
            claim,
            n_alerts=len(ids),
            outbox_uri=outbox.uri,
            outbox_sha256=outbox.sha256,
            summary={"band": "r"},
        )
    if publish:
        ledger.mark_published(claim.key)


def read(database, since=0.0, until=1e10):
    return NightLog(database).read_exposures(since_unix_s=since, until_unix_s=until)


def test_a_night_is_from_its_beginning_to_just_before_its_end(database, tmp_path):
    for visit, at in ((1, 999.0), (2, 1000.0), (3, 1999.0), (4, 2000.0)):
        store(database, tmp_path, visit, [], at=at)

    assert [row.key.visit for row in read(database, 1000.0, 2000.0)] == [2, 3]


def test_the_best_are_significant_and_each_object_is_there_once(database, tmp_path):
    store(database, tmp_path, 1, [(1, 7, 50.0, {}), (2, 8, 20.0, {}), (3, 9, 99.0, {"is_dipole": True})])
    store(
        database, tmp_path, 2, [(1, 7, 70.0, {}), (2, 0, 10.0, {"ss_object_id": 5}), (3, 0, 9.0, {"ss_object_id": 6})]
    )
    store(database, tmp_path, 3, [(1, 11, 500.0, {})], publish=False)

    best = NightLog(database).find_best(read(database), most=3)
    assert [(each.dia_source_id, each.snr) for each in best] == [(201, 70.0), (102, 20.0), (202, 10.0)]


def test_reliability_comes_before_significance(database, tmp_path):
    store(
        database, tmp_path, 1, [(1, 7, 50.0, {"reliability": 0.2}), (2, 8, 6.0, {"reliability": 0.9}), (3, 9, 80.0, {})]
    )

    best = NightLog(database).find_best(read(database), most=2)
    assert [each.dia_source_id for each in best] == [102, 101]


def test_their_alerts_are_read_from_the_outbox(database, tmp_path):
    store(database, tmp_path, 1, [(1, 7, 50.0, {}), (2, 8, 20.0, {})])
    store(database, tmp_path, 2, [(1, 9, 40.0, {})])

    log = NightLog(database)
    rows = read(database)
    messages = list(log.read_alerts(rows, log.find_best(rows, most=2)))
    assert [message.value for message in messages] == [b"alert 101", b"alert 201"]
