"""Topics that live as long as a simulation: the daemon's own are made by whoever runs the brokers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from alertprod.errors import BrokerUnavailable, ConfigError
from alertprod.stream.client_log import client_log, log_client_error
from alertprod.stream.errors import translate

_TIMEOUT_S: Final = 30.0
_BROKERS_DEFAULT: Final = -1
"""Of the replication factor."""


@contextmanager
def temporary_topics(
    bootstrap_servers: str,
    partitions: Mapping[str, int],
    *,
    max_message_bytes: int = 10 << 20,
    options: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Create topics with these numbers of partitions, and delete them in the end.

    Raises
    ------
    BrokerUnavailable
        Raised if the brokers do not answer or do not let us.
    ConfigError
        Raised if librdkafka does not take the settings.
    """
    settings = {"bootstrap.servers": bootstrap_servers, **(options or {}), "error_cb": log_client_error}
    try:
        admin = AdminClient({**settings, "client.id": "alertprod-temporary"}, logger=client_log)
    except (KafkaException, ValueError, TypeError) as error:
        raise ConfigError("configuration", "kafka", str(error)) from error
    config = {"max.message.bytes": str(max_message_bytes)}
    new = [NewTopic(name, n, _BROKERS_DEFAULT, config=config) for name, n in partitions.items()]
    _await(admin.create_topics(new, operation_timeout=_TIMEOUT_S, request_timeout=_TIMEOUT_S), "create topics")
    try:
        yield
    finally:
        _await(admin.delete_topics(list(partitions), request_timeout=_TIMEOUT_S), "delete topics")


def _await(futures: Mapping[str, Any], doing: str) -> None:
    for name, future in futures.items():
        try:
            future.result(_TIMEOUT_S)
        except KafkaException as error:
            raise translate(error, f"{doing}: {name}") from error
        except TimeoutError as error:
            msg = f"{doing}: {name}: the brokers did not answer within {_TIMEOUT_S:g} s"
            raise BrokerUnavailable(msg) from error
