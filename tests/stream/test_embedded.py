import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from confluent_kafka.admin import AdminClient

from alertprod.stream import embedded
from alertprod.stream.embedded import EmbeddedBroker
from alertprod.stream.producer import AlertProducer
from alertprod.stream.records import OutgoingMessage
from alertprod.stream.tail import AlertTail


def partitions(broker: EmbeddedBroker) -> dict[str, int]:
    topics = AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics(timeout=5).topics
    return {name: len(facts.partitions) for name, facts in topics.items()}


@pytest.mark.parametrize("own_process", [False, True])
def test_topics_have_the_partitions_asked_for(own_process):
    with EmbeddedBroker({"events": 8, "alerts.v11": 1}, own_process=own_process) as broker:
        assert partitions(broker) == {"events": 8, "alerts.v11": 1}


def test_two_brokers_are_two():
    with EmbeddedBroker({"a": 1}) as first, EmbeddedBroker({"b": 1}) as second:
        assert (partitions(first), partitions(second)) == ({"a": 1}, {"b": 1})


def test_without_the_librarys_symbols_the_client_starts_it(monkeypatch):
    def hidden() -> None:
        raise AttributeError

    monkeypatch.setattr(embedded, "_load_library", hidden)
    with EmbeddedBroker({"a": 1}) as broker:
        with AlertProducer(broker.bootstrap_servers) as producer:
            producer.publish([OutgoingMessage(topic="a", key=None, value=b"x")])
        assert partitions(broker) == {"a": embedded.DEFAULT_PARTITIONS}


def test_a_topic_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="0 partitions"):
        EmbeddedBroker({"a": 0})


def test_its_process_ends_with_the_one_that_started_it():
    script = (
        "import time\nfrom alertprod.stream.embedded import EmbeddedBroker\n"
        "with EmbeddedBroker({'a': 1}, own_process=True) as broker:\n"
        "    print(broker.bootstrap_servers, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        address = parent.stdout.readline().strip()
        assert AdminClient({"bootstrap.servers": address}).list_topics(timeout=5).topics
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    host, _, port = address.partition(":")
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail("the broker outlived its parent")


def test_only_the_last_megabytes_of_a_partition_are_kept():
    # The limit the module's text and the demo rely on knowing.
    with EmbeddedBroker({"a": 1}) as broker:
        with AlertProducer(broker.bootstrap_servers, compression="none") as producer:
            for n in range(8):
                producer.publish([OutgoingMessage(topic="a", key=None, value=bytes([n]) * (1 << 20))])
        with AlertTail(broker.bootstrap_servers, ["a"]) as tail:
            kept = [message.value[0] for message in tail.messages()]
    assert kept[-1] == 7
    assert len(kept) <= embedded.KEPT_BYTES_PER_PARTITION >> 20
