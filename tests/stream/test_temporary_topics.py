import time
import uuid

import pytest
from confluent_kafka.admin import AdminClient

from alertprod.errors import BrokerUnavailable, ConfigError
from alertprod.stream.temporary_topics import temporary_topics


def partitions(broker, name):
    """How many partitions a topic has; 0 for none."""
    topics = AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics(timeout=10).topics
    return len(topics[name].partitions) if name in topics else 0


def await_partitions(broker, name, n):
    """Metadata reach a broker's answers a moment after it has agreed."""
    until = time.monotonic() + 20.0
    while partitions(broker, name) != n:
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.kafka
def test_topics_live_as_long_as_their_context(kafka_broker):
    name = f"temporary-{uuid.uuid4().hex[:8]}"
    with temporary_topics(kafka_broker.bootstrap_servers, {name: 3}):
        await_partitions(kafka_broker, name, 3)
    await_partitions(kafka_broker, name, 0)


@pytest.mark.kafka
def test_a_topic_that_is_there_already_is_left_alone(kafka_broker):
    name = kafka_broker.unique_topic("taken")
    with (
        pytest.raises((BrokerUnavailable, ConfigError), match=name),
        temporary_topics(kafka_broker.bootstrap_servers, {name: 3}),
    ):
        pass
    assert partitions(kafka_broker, name) == 1


def test_settings_that_are_none_are_a_mistake_of_the_configuration():
    with pytest.raises(ConfigError), temporary_topics("127.0.0.1:1", {"a": 1}, options={"no.such.setting": "1"}):
        pass
