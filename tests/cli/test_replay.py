import time

import pytest

from alertprod.store.database import Database, upgrade
from alertprod.store.ledger import ExposureKey, Ledger
from alertprod.store.outbox import OutboxMessage, write_outbox
from alertprod.stream.embedded import EmbeddedBroker
from alertprod.stream.tail import AlertTail


@pytest.fixture(scope="module")
def broker():
    with EmbeddedBroker({"alerts": 1, "alerts-replay": 1, "elsewhere": 1}) as broker:
        yield broker.bootstrap_servers


@pytest.fixture
def site(broker, alert_night, tmp_path):
    """Three exposures: two published, one only stored; each of the four alerts of a visit."""
    url = f"sqlite:///{tmp_path / 'alerts.db'}"
    upgrade(url)
    database = Database(url)
    ledger = Ledger(database)
    for visit in range(3):
        key = ExposureKey("simcam", visit, 1)
        claim = ledger.claim(key, owner="me", lease_s=60)
        messages = [OutboxMessage(*message) for message in alert_night.messages[4 * visit : 4 * visit + 4]]
        outbox = write_outbox(str(tmp_path / f"{visit}.outbox"), messages)
        with database.write() as connection:
            ledger.mark_stored(
                connection, claim, n_alerts=4, outbox_uri=outbox.uri, outbox_sha256=outbox.sha256,
                summary={"shutter_close_mjd_tai": 61100.0 + visit},
            )  # fmt: skip
        if visit < 2:
            ledger.mark_published(key)
    database.close()
    config = tmp_path / "alertprod.toml"
    config.write_text(f"[kafka]\nbootstrap_servers = '{broker}'\n[store]\ndatabase_url = '{url}'\n")
    return config


def read(broker, topic, *, since_ms=0):
    with AlertTail(broker, [topic]) as tail:
        return [message for message in tail.messages() if message.timestamp_ms >= since_ms]


def test_bytes_and_keys_are_the_same_and_header_and_time_are_new(alertprod, site, broker, alert_night):
    before_ms = time.time() * 1000 - 1
    ran = alertprod("replay", "-c", site, "--all")
    assert ran.status == 0, ran.err
    assert ran.out.splitlines() == ["simcam/0/1: 4 alerts", "simcam/1/1: 4 alerts"]
    assert "8 alerts of 2 exposures sent to alerts-replay" in ran.words
    sent = read(broker, "alerts-replay", since_ms=before_ms)
    published = alert_night.messages[:8]
    assert [(each.key, each.value) for each in sent] == [(message.key, message.value) for message in published]
    assert [each.headers for each in sent] == [
        (*message.headers, ("alertprod-replay", b"stored-alert")) for message in published
    ]
    assert all(each.timestamp_ms >= before_ms for each in sent)
    assert read(broker, "alerts") == []


@pytest.mark.parametrize(
    ("options", "exposures"),
    [
        (["--visit", 1], ["simcam/1/1"]),
        (["--visit", 0, "--visit", 1, "--detector", 1], ["simcam/0/1", "simcam/1/1"]),
        (["--instrument", "simcam", "--since", 61100.5], ["simcam/1/1"]),
        (["--until", 61100.5], ["simcam/0/1"]),
        (["--visit", 2], []),  # stored, not published yet: the daemon's to publish
        (["--instrument", "another"], []),
    ],
)
def test_exposures_are_chosen(alertprod, site, broker, options, exposures):
    before_ms = time.time() * 1000 - 1
    ran = alertprod("replay", "-c", site, *options, "--topic", "elsewhere", "--json")
    assert ran.status == (0 if exposures else 1)
    assert [line["exposure"] for line in ran.json_lines] == exposures
    assert len(read(broker, "elsewhere", since_ms=before_ms)) == 4 * len(exposures)


def test_something_must_be_chosen(alertprod, site):
    ran = alertprod("replay", "-c", site)
    assert ran.status == 2
    assert "say which" in ran.words


@pytest.mark.parametrize("topic", ["alerts", "visit-ready", "next-visit", "visit-summary", "visit-ready-dead-letters"])
def test_topics_in_use_are_refused(alertprod, site, broker, topic):
    ran = alertprod("replay", "-c", site, "--all", "--topic", topic)
    assert ran.status == 2
    assert f"'{topic}' is in use" in ran.words
    assert read(broker, "alerts") == []


def test_a_dry_run_sends_nothing(alertprod, site, broker):
    before_ms = time.time() * 1000 - 1
    ran = alertprod("replay", "-c", site, "--all", "--dry-run")
    assert ran.status == 0
    assert "8 alerts of 2 exposures would be sent" in ran.words
    assert read(broker, "alerts-replay", since_ms=before_ms) == []


def test_what_was_never_published_is_said(alertprod, site):
    ran = alertprod("replay", "-c", site, "--visit", 999)
    assert ran.status == 1
    assert "no exposure that was published is one of those" in ran.words


def test_what_is_not_kept_any_more_is_said_and_the_rest_is_sent(alertprod, site, broker, tmp_path):
    before_ms = time.time() * 1000 - 1
    (tmp_path / "0.outbox").unlink()
    ran = alertprod("replay", "-c", site, "--all")
    assert ran.status == 1
    assert "simcam/0/1: outbox" in ran.words
    assert "4 alerts of 1 exposure sent to alerts-replay; not kept any more: 1 exposure" in ran.words
    assert len(read(broker, "alerts-replay", since_ms=before_ms)) == 4
