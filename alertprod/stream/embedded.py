"""librdkafka's in-process broker: a Kafka for a laptop's demo and for tests, with no service to install.

It is not Kafka: transactions are hollow (offsets sent with them are not stored, aborted messages are seen), about
5 MiB are kept of each partition and older messages vanish unread, nothing survives its end. Use at-least-once with
it, and no more than a demo's night.
"""

import ctypes
import select
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, Self

import confluent_kafka
from confluent_kafka import KafkaException, Producer

from alertprod.errors import BrokerUnavailable

KEPT_BYTES_PER_PARTITION: Final = 5 << 20
"""librdkafka's own constant; more than this unread on one partition is lost."""

DEFAULT_PARTITIONS: Final = 4
"""Of a topic that comes into being by being used, and of all topics where the library's symbols cannot be reached."""

_START_S: Final = 30.0
_RD_KAFKA_PRODUCER: Final = 0
_ERROR_BYTES: Final = 512


class EmbeddedBroker:
    """A broker that lives as long as this context.

    Parameters
    ----------
    topics
        Topics to create, each with its number of partitions.
    own_process
        Run it in a process of its own, which ends with this one, whatever ends this one. Otherwise its threads are in
        this process.

    Raises
    ------
    ValueError
        Raised if a topic is to have no partition.
    BrokerUnavailable
        Raised on entry if it does not start.
    """

    def __init__(self, topics: Mapping[str, int] | None = None, *, own_process: bool = False) -> None:
        self._topics = dict(topics or {})
        for topic, partitions in self._topics.items():
            if partitions < 1:
                msg = f"topic {topic} with {partitions} partitions"
                raise ValueError(msg)
        self._own_process = own_process
        self._cleanup = ExitStack()
        self.bootstrap_servers = ""
        """``host:port``; known within the context."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self._own_process:
                self.bootstrap_servers = _start_process(self._topics, stack)
            else:
                self.bootstrap_servers = _start_here(self._topics, stack)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cleanup.close()


def _start_here(topics: Mapping[str, int], stack: ExitStack) -> str:
    try:
        return _NativeCluster(topics, stack).bootstrap_servers
    except (AttributeError, OSError):  # a build of the client that hides librdkafka's symbols
        return _start_through_client(topics, stack)


class _NativeCluster:
    """The mock cluster by librdkafka's own interface (``rdkafka_mock.h``), which the Python client does not wrap."""

    def __init__(self, topics: Mapping[str, int], stack: ExitStack) -> None:
        self._library = library = _load_library()
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        settings = library.rd_kafka_conf_new()
        # Else it says on stderr that it has no bootstrap.servers; it is the broker.
        library.rd_kafka_conf_set(settings, b"log_level", b"3", error, _ERROR_BYTES)
        client = library.rd_kafka_new(_RD_KAFKA_PRODUCER, settings, error, _ERROR_BYTES)
        if not client:
            raise BrokerUnavailable(f"embedded broker: {error.value.decode(errors='replace')}")
        stack.callback(library.rd_kafka_destroy, client)
        cluster = library.rd_kafka_mock_cluster_new(client, 1)
        if not cluster:
            raise BrokerUnavailable("embedded broker: no port on loopback")
        stack.callback(library.rd_kafka_mock_cluster_destroy, cluster)
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0)
        for topic, partitions in topics.items():
            code = library.rd_kafka_mock_topic_create(cluster, topic.encode(), partitions, 1)
            if code:
                raise BrokerUnavailable(f"embedded broker: topic {topic} with {partitions} partitions: error {code}")
        self.cluster = cluster
        self.bootstrap_servers: str = library.rd_kafka_mock_cluster_bootstraps(cluster).decode()


def _load_library() -> Any:
    library = ctypes.CDLL(confluent_kafka.cimpl.__file__)  # finds librdkafka's symbols too, which it is linked to
    pointer, integer, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "rd_kafka_conf_new": (pointer, []),
        "rd_kafka_conf_set": (integer, [pointer, text, text, text, ctypes.c_size_t]),
        "rd_kafka_new": (pointer, [integer, pointer, text, ctypes.c_size_t]),
        "rd_kafka_destroy": (None, [pointer]),
        "rd_kafka_mock_cluster_new": (pointer, [pointer, integer]),
        "rd_kafka_mock_cluster_destroy": (None, [pointer]),
        "rd_kafka_mock_cluster_bootstraps": (text, [pointer]),
        "rd_kafka_mock_topic_create": (integer, [pointer, text, integer, integer]),
        "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [pointer, ctypes.c_int32]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _start_through_client(topics: Mapping[str, int], stack: ExitStack) -> str:
    client = Producer({"bootstrap.servers": "embedded", "test.mock.num.brokers": 1, "log_level": 3})
    stack.callback(client.purge)
    try:
        brokers = client.list_topics(timeout=_START_S).brokers
        for topic in topics:
            client.list_topics(topic, timeout=_START_S)  # a producer's question brings a topic into being
    except KafkaException as error:
        raise BrokerUnavailable(f"embedded broker: {error}") from error
    return ",".join(f"{broker.host}:{broker.port}" for broker in brokers.values())


def _start_process(topics: Mapping[str, int], stack: ExitStack) -> str:
    arguments = [f"{topic}:{partitions}" for topic, partitions in topics.items()]
    process = stack.enter_context(
        subprocess.Popen(  # noqa: S603 - our own module in our own interpreter
            [sys.executable, "-m", __name__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    )
    assert process.stdin is not None
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _START_S)
    address = process.stdout.readline().decode().strip() if ready else ""
    if not address:
        process.kill()
        raise BrokerUnavailable(f"embedded broker: its process did not start, exit status {process.wait()}")
    return address


def main(arguments: list[str]) -> None:
    """Run a broker with topics ``name:partitions``: write its address to stdout, end when stdin ends."""
    pairs = (argument.rpartition(":") for argument in arguments)
    with EmbeddedBroker({topic: int(partitions) for topic, _, partitions in pairs}) as broker:
        sys.stdout.write(broker.bootstrap_servers + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
