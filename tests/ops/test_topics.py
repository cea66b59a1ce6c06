"""The topics as ops/kafka/create_topics.sh makes them, on a real Kafka."""

import subprocess
from functools import partial

import pytest
from kafka_broker import KafkaBroker
from prometheus_servers import OPS

from alertprod.config import DaemonConfig, InstrumentConfig, TopicsConfig, WorkersConfig
from alertprod.service.start_checks import check_topics
from alertprod.stream.topics import describe_brokers

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def test_the_daemon_finds_nothing_wrong_with_them(kafka_broker):
    if not isinstance(kafka_broker, KafkaBroker):
        pytest.skip("a broker of somebody else: its topics are left alone, and the jars are not ours")
    command = ["sh", OPS / "kafka" / "create_topics.sh", kafka_broker._libs, kafka_broker.bootstrap_servers, "1", "8"]
    made = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=240)
    assert made.returncode == 0, made.stderr

    config = DaemonConfig(instruments={"Camera": InstrumentConfig()}, workers=WorkersConfig(count=4))
    describe = partial(describe_brokers, kafka_broker.bootstrap_servers)
    assert list(check_topics(config, describe)) == []
    facts = describe([name for name in TopicsConfig().model_dump().values() if name]).topics
    assert facts["visit-ready"].n_partitions == 8
    assert facts["alerts"].max_message_bytes == 10485760
