"""What the brokers say of topics and of themselves: looked at once, when a daemon starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]

from alertprod.errors import BrokerUnavailable, ConfigError
from alertprod.stream.client_log import client_log, log_client_error
from alertprod.stream.errors import translate

_SECONDS_PER_MS: Final = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicFacts:
    """A topic as the brokers have it; a setting they do not tell is None."""

    name: str
    n_partitions: int
    """0 where there is no such topic."""
    replicas: int = 0
    max_message_bytes: int | None = None
    min_insync_replicas: int | None = None
    cleanup_policy: str | None = None
    retention_s: float | None = None
    """Negative: for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFacts:
    """The brokers' side of our settings."""

    topics: Mapping[str, TopicFacts]
    transaction_max_timeout_s: float | None = None


def describe_brokers(
    bootstrap_servers: str, topics: Sequence[str], *, options: Mapping[str, Any] | None = None, timeout_s: float = 10.0
) -> BrokerFacts:
    """Ask the brokers for these topics and for their limits.

    Raises
    ------
    BrokerUnavailable
        Raised if nobody answers in time.
    ConfigError
        Raised if librdkafka does not take the settings.

    Notes
    -----
    A broker that does not describe settings, or does not let us see them, leaves them None: the in-process one does not.
    """
    settings = {"bootstrap.servers": bootstrap_servers, **(options or {}), "error_cb": log_client_error}
    try:
        admin = AdminClient({**settings, "client.id": "alertprod-start"}, logger=client_log)
    except (KafkaException, ValueError, TypeError) as error:
        raise ConfigError("configuration", "kafka", str(error)) from error
    try:
        known = admin.list_topics(timeout=timeout_s)
    except KafkaException as error:
        raise translate(error, "metadata") from error
    found = {name: known.topics[name] for name in topics if name in known.topics and known.topics[name].error is None}
    described = _describe(admin, found, next(iter(known.brokers), None), timeout_s)
    facts = {}
    for name in topics:
        if name not in found:
            facts[name] = TopicFacts(name=name, n_partitions=0)
            continue
        partitions = found[name].partitions
        values = described.get(name, {})
        retention = _number(values, "retention.ms")
        facts[name] = TopicFacts(
            name=name,
            n_partitions=len(partitions),
            replicas=min((len(each.replicas) for each in partitions.values()), default=0),
            max_message_bytes=_number(values, "max.message.bytes"),
            min_insync_replicas=_number(values, "min.insync.replicas"),
            cleanup_policy=values.get("cleanup.policy"),
            retention_s=None if retention is None else retention * _SECONDS_PER_MS,
        )
    longest = _number(described.get("", {}), "transaction.max.timeout.ms")
    return BrokerFacts(topics=facts, transaction_max_timeout_s=None if longest is None else longest * _SECONDS_PER_MS)


def _describe(
    admin: AdminClient, topics: Mapping[str, Any], broker: int | None, timeout_s: float
) -> dict[str, dict[str, str]]:
    """Return the settings of topics by name, and of one broker under the empty name; without those nobody tells."""
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in topics]
    if broker is not None:
        resources.append(ConfigResource(ConfigResource.Type.BROKER, str(broker)))
    answers: dict[str, dict[str, str]] = {}
    if not resources:
        return answers
    try:
        futures = admin.describe_configs(resources, request_timeout=timeout_s)
    except KafkaException as error:
        raise BrokerUnavailable(f"settings of topics: {error}") from error
    for resource, future in futures.items():
        try:
            entries = future.result(timeout_s)
        except (KafkaException, TimeoutError) as error:
            client_log.info("settings of %s are not told: %s", resource.name, error)
            continue
        name = "" if resource.restype == ConfigResource.Type.BROKER else resource.name
        answers[name] = {key: entry.value for key, entry in entries.items() if entry.value is not None}
    return answers


def _number(values: Mapping[str, str], name: str) -> int | None:
    text = values.get(name)
    return None if text is None else int(text)
