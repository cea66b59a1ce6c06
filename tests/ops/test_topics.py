"""The topics as ops/kafka/create_topics.sh makes them, on a real Kafka; and what it asks Kafka for."""

import os
import re
import subprocess
from functools import partial

import pytest
from kafka_broker import KafkaBroker
from prometheus_servers import OPS

from alertprod.config import DaemonConfig, InstrumentConfig, TopicsConfig, WorkersConfig
from alertprod.service.start_checks import check_topics
from alertprod.stream.topics import describe_brokers

SCRIPT = OPS / "kafka" / "create_topics.sh"


@pytest.fixture
def ask(tmp_path):
    """Run the script with a java that only says what it is told; return the topics and their lines."""
    java = tmp_path / "java"
    java.write_text('#!/bin/sh\necho "$@"\n')
    java.chmod(0o755)

    def ask(*words):
        path = f"{tmp_path}:{os.environ['PATH']}"
        told = subprocess.run(
            ["sh", str(SCRIPT), "libs", "broker:9092", *words],
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": path},
        )
        return {re.search(r"--topic (\S+)", line).group(1): line for line in told.stdout.splitlines()}

    return ask


def test_a_suffix_ends_every_name_and_the_runbook_sets_those_that_are_written(ask):
    defaults = {name for name in TopicsConfig().model_dump().values() if name}
    assert set(ask()) == defaults
    made = set(ask("1", "16", "-rebuild"))
    assert made == {f"{name}-rebuild" for name in defaults}
    set_by_the_runbook = set(re.findall(r"ALERTPROD_TOPICS__\w+=(\S+)", (OPS / "runbook.md").read_text()))
    assert set_by_the_runbook == made - {"next-visit-rebuild"}  # only read, and only to fetch templates ahead


def test_copies_and_lanes_are_what_was_asked_for(ask):
    line = ask("3", "64")["visit-ready"]
    assert "--partitions 64 --replication-factor 3" in line
    assert "min.insync.replicas=2" in line
    assert "min.insync.replicas=1" in ask()["visit-ready"]


@pytest.mark.kafka
@pytest.mark.slow
def test_the_daemon_finds_nothing_wrong_with_them(kafka_broker):
    if not isinstance(kafka_broker, KafkaBroker):
        pytest.skip("a broker of somebody else: its topics are left alone, and the jars are not ours")
    command = ["sh", SCRIPT, kafka_broker._libs, kafka_broker.bootstrap_servers, "1", "8"]
    made = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=240)
    assert made.returncode == 0, made.stderr

    config = DaemonConfig(instruments={"Camera": InstrumentConfig()}, workers=WorkersConfig(count=4))
    describe = partial(describe_brokers, kafka_broker.bootstrap_servers)
    assert list(check_topics(config, describe)) == []
    facts = describe([name for name in TopicsConfig().model_dump().values() if name]).topics
    assert facts["visit-ready"].n_partitions == 8
    assert facts["alerts"].max_message_bytes == 10485760
