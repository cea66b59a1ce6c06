"""Alerts through a real Kafka: readers see what was committed, once, with the bytes that were sent."""

import uuid

import pytest

from alertprod import read_alerts
from alertprod.service.alert_sources import find_alerts
from alertprod.stream.producer import AlertProducer
from alertprod.stream.records import OutgoingMessage
from alertprod.stream.replay import mark_replay

pytestmark = pytest.mark.kafka


def outgoing(alert_night, topic, rows):
    return [
        OutgoingMessage(topic=topic, key=m.key, value=m.value, headers=m.headers) for m in alert_night.messages[rows]
    ]


def test_a_reader_sees_committed_alerts_only(kafka_broker, alert_night):
    topic = kafka_broker.unique_topic("alerts")

    def fail_after(messages):
        yield from messages
        raise RuntimeError("a worker's file was gone")

    with AlertProducer(kafka_broker.bootstrap_servers, transactional_id=uuid.uuid4().hex) as producer:
        producer.start()
        producer.publish(outgoing(alert_night, topic, slice(0, 4)))
        with pytest.raises(RuntimeError, match="was gone"):
            producer.publish(fail_after(outgoing(alert_night, topic, slice(4, 8))))
        producer.publish(outgoing(alert_night, topic, slice(8, 12)))
    source = f"kafka://{kafka_broker.bootstrap_servers}/{topic}"
    seen = [alert.id for alert in read_alerts(source)]
    wanted = [packet["diaSourceId"] for packet in (*alert_night.packets[:4], *alert_night.packets[8:12])]
    assert seen == wanted


@pytest.mark.parametrize("compression", ["zstd", "lz4", "snappy", "none"])
def test_bytes_keys_and_headers_come_through(kafka_broker, alert_night, compression):
    topic = kafka_broker.unique_topic("alerts")
    with AlertProducer(kafka_broker.bootstrap_servers, compression=compression) as producer:
        producer.publish(outgoing(alert_night, topic, slice(None)))
    found = list(find_alerts(f"kafka://{kafka_broker.bootstrap_servers}/{topic}"))
    assert [(each.key, each.message, each.headers) for each in found] == [
        (message.key, message.value, message.headers) for message in alert_night.messages
    ]


def test_a_replay_differs_in_header_and_time_alone(kafka_broker, alert_night):
    live, again = kafka_broker.unique_topic("alerts"), kafka_broker.unique_topic("replay")
    with AlertProducer(kafka_broker.bootstrap_servers) as producer:
        producer.publish(outgoing(alert_night, live, slice(0, 4)))
        producer.publish(map(mark_replay, outgoing(alert_night, again, slice(0, 4))))
    first, second = (list(find_alerts(f"kafka://{kafka_broker.bootstrap_servers}/{topic}")) for topic in (live, again))
    assert [(each.key, each.message) for each in first] == [(each.key, each.message) for each in second]
    for one, other in zip(first, second, strict=True):
        assert other.headers == (*one.headers, ("alertprod-replay", b"stored-alert"))
        assert other.timestamp_ms >= one.timestamp_ms
