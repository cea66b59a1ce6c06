"""What a daemon finds wrong before it starts."""

import dataclasses

import pytest

from alertprod.config import DaemonConfig, InstrumentConfig, StoreConfig, WorkersConfig
from alertprod.errors import BrokerUnavailable, RegistryUnavailable
from alertprod.service.start_checks import (
    Finding,
    StartRefused,
    check_database,
    check_disks,
    check_schemas,
    check_templates,
    check_topics,
    collect,
)
from alertprod.store.database import Database
from alertprod.stream.producer import MAX_MESSAGE_BYTES
from alertprod.stream.topics import BrokerFacts, TopicFacts


@pytest.fixture
def config(tmp_path):
    store = StoreConfig(
        database_url=f"sqlite:///{tmp_path}/history.sqlite", outbox_uri=str(tmp_path / "outbox"),
        template_cache_directory=str(tmp_path / "cache"), template_index=str(tmp_path / "templates.json"),
        min_free_bytes=1,
    )  # fmt: skip
    return DaemonConfig(instruments={"Camera": InstrumentConfig()}, store=store, workers=WorkersConfig(count=2))


def good_topic(name):
    return TopicFacts(
        name=name, n_partitions=4, replicas=3, max_message_bytes=MAX_MESSAGE_BYTES, min_insync_replicas=2,
        cleanup_policy="delete", retention_s=-1.0,
    )  # fmt: skip


def describe(config, *, longest_s=900.0, **changed):
    """Brokers where all is right but for the topics in `changed`."""
    names = config.topics.model_dump()
    topics = {name: dataclasses.replace(good_topic(name), **changed.get(field, {})) for field, name in names.items()}
    return lambda _names: BrokerFacts(topics=topics, transaction_max_timeout_s=longest_s)


def test_where_all_is_right_nothing_is_found(config):
    assert collect(check_topics(config, describe(config)), check_disks(config)) == []


@pytest.mark.parametrize(
    ("changed", "weight", "said"),
    [
        ({"alerts": {"n_partitions": 0}}, "fatal", "there is no topic alerts (topics.alerts)"),
        ({"alerts": {"max_message_bytes": 1_000_000}}, "fatal", "max.message.bytes = 1000000"),
        ({"visit_ready": {"max_message_bytes": 1000}}, "remark", "max.message.bytes = 1000"),
        ({"visit_summary": {"cleanup_policy": "compact"}}, "fatal", "cleanup.policy"),
        ({"dead_letters": {"min_insync_replicas": 4}}, "fatal", "nothing can be written"),
        ({"replay": {"min_insync_replicas": 1}}, "remark", "can lose messages"),
        ({"visit_ready": {"retention_s": 60.0}}, "remark", "what waits longer is lost"),
        ({"visit_ready": {"n_partitions": 3}}, "remark", "2 workers can use 4"),
        ({"longest_s": 60.0}, "fatal", "transaction.max.timeout.ms is 60 s"),
    ],
)
def test_a_topic_that_is_not_as_it_must_be_is_named_with_the_setting(config, changed, weight, said):
    (finding,) = check_topics(config, describe(config, **changed))
    assert finding.weight == weight
    assert said in str(finding)


def test_a_broker_that_is_away_is_no_reason_not_to_start(config):
    def away(_names):
        raise BrokerUnavailable("no answer")

    (finding,) = check_topics(config, away)
    assert finding.weight == "remark"


def test_an_empty_database_gets_its_tables_and_one_that_is_no_database_is_said(config, tmp_path):
    assert list(check_database(Database(config.store.database_url))) == []
    (tmp_path / "text.sqlite").write_text("not a database, for long enough that SQLite reads its first page" * 100)
    (finding,) = check_database(Database(f"sqlite:///{tmp_path}/nowhere/alerts.sqlite"))
    assert (finding.weight, f"no folder {tmp_path}/nowhere" in finding.problem) == ("fatal", True)
    (finding,) = check_database(Database(f"sqlite:///{tmp_path}/text.sqlite"))
    assert finding.part == "database"


def test_an_index_that_is_missing_or_whose_tiles_are_gone_is_said_and_no_index_is_a_choice(
    config, tmp_path, small_night
):
    (finding,) = check_templates(config)
    assert finding.weight == "fatal"
    assert "`alertprod templates index`" in finding.problem
    named_by_events = config.model_copy(update={"store": config.store.model_copy(update={"template_index": ""})})
    assert list(check_templates(named_by_events)) == []

    index = small_night.templates_directory / "templates.json"
    good = config.model_copy(update={"store": config.store.model_copy(update={"template_index": str(index)})})
    assert list(check_templates(good)) == []
    own = InstrumentConfig(template_index=str(tmp_path / "own.json"))
    both = good.model_copy(update={"instruments": {**good.instruments, "Own": own}})
    (finding,) = check_templates(both)
    assert f"{tmp_path}/own.json" in finding.problem

    (tmp_path / "templates.json").write_bytes(index.read_bytes())  # its tiles are named relative to it
    (finding,) = check_templates(config)
    assert finding.weight == "away"
    assert "no such file" in finding.problem


def test_disks_that_are_full_or_no_folders_are_said_with_the_setting(config, tmp_path):
    (tmp_path / "outbox").write_text("a file where a folder is needed")
    store = config.store.model_copy(update={"min_free_bytes": 1 << 60})
    found = {
        finding.problem.split(":")[0]: finding for finding in check_disks(config.model_copy(update={"store": store}))
    }
    assert "no folder" in found["store.outbox_uri"].problem
    assert "bytes are free" in found["store.template_cache_directory"].problem
    assert found["store.database_url"].weight == "fatal"


def test_a_registry_must_know_the_alerts_schema():
    def away(_schema_id):
        raise RegistryUnavailable("no answer")

    assert list(check_schemas(lambda schema_id: schema_id == 1101, 1101)) == []
    (unknown,) = check_schemas(lambda _: False, 1101)
    assert "alertprod schemas register" in unknown.problem
    (silent,) = check_schemas(away, 1101)
    assert silent.weight == "away"


def test_the_refusal_says_everything_at_once_and_whether_waiting_may_help():
    away, wrong = Finding("database", "no answer", "away"), Finding("topics", "there is no topic alerts")
    refused = StartRefused("alertprod.toml", (away, wrong))
    assert str(refused) == (
        "alertprod.toml: cannot start, 2 things are wrong:\n"
        "  - database: no answer\n"
        "  - topics: there is no topic alerts"
    )
    assert not refused.is_away
    assert StartRefused("alertprod.toml", (away,)).is_away
