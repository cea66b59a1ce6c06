"""Fixtures of the whole suite."""

import logging
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from kafka_broker import BrokerMissing, ExistingBroker, find_broker
from postgres_server import PostgresServer, ServerMissing

if TYPE_CHECKING:
    from alert_night import AlertNight

    from alertprod.sim.night import Night


@pytest.fixture(autouse=True)
def logging_level() -> Iterator[None]:
    """What a program in the test's own process set is undone: the next test would not see its warnings."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[ExistingBroker]:
    """A real Kafka: ALERTPROD_TEST_KAFKA's, or one of our own for the time of the run."""
    try:
        broker = find_broker()
    except BrokerMissing as missing:
        pytest.skip(f"no Kafka: {missing}")
    yield broker
    broker.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a real PostgreSQL: ALERTPROD_TEST_POSTGRES's, or of one of our own for the time of the run."""
    named = os.environ.get("ALERTPROD_TEST_POSTGRES")
    if named:
        yield named
        return
    try:
        server = PostgresServer()
    except ServerMissing as missing:
        pytest.skip(f"no PostgreSQL: {missing}")
    yield server.url
    server.close()


@pytest.fixture(scope="session")
def alert_night() -> "AlertNight":
    """The alerts of five small visits, made without a subtraction; nobody changes them."""
    from alert_night import make_alert_night

    return make_alert_night()


@pytest.fixture(scope="session")
def small_night(tmp_path_factory) -> "Night":
    """Three visits of two detectors of 512², just taken, with indexed template tiles; nobody writes into it."""
    from alertprod.service.clock import mjd_tai_from_unix  # compiled loops: only where a sky is drawn
    from alertprod.sim.night import NightConfig, make_night
    from alertprod.sim.scene import SceneConfig
    from alertprod.store.template_index import index_templates

    start = mjd_tai_from_unix(time.time() - 180.0)
    scene = SceneConfig(transients_per_arcmin2=8.0, variables_per_arcmin2=2.0)  # small detectors with much to find
    config = NightConfig(seed=11, n_visits=3, n_detectors=2, size=512, start_mjd_tai=start, scene=scene)
    night = make_night(tmp_path_factory.mktemp("small-night"), config)
    index_templates(str(night.templates_directory))
    return night
