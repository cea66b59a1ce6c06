"""Fixtures of the whole suite."""

from collections.abc import Iterator

import pytest
from kafka_broker import BrokerMissing, ExistingBroker, find_broker


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[ExistingBroker]:
    """A real Kafka: ALERTPROD_TEST_KAFKA's, or one of our own for the time of the run."""
    try:
        broker = find_broker()
    except BrokerMissing as missing:
        pytest.skip(f"no Kafka: {missing}")
    yield broker
    broker.close()
