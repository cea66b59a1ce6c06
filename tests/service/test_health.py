"""Health and its HTTP server."""

import json
import urllib.error
import urllib.request

import pytest

from alertprod.config import HttpConfig
from alertprod.errors import ConfigError
from alertprod.metrics import Metrics
from alertprod.service.health import HEARTBEAT_LIMIT_S, Health, HealthServer


class FakeTime:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return FakeTime()


@pytest.fixture
def health(clock):
    return Health(clock=clock)


@pytest.fixture
def ask(health):
    """Asks for a path; returns status, content type and text."""
    with HealthServer(HttpConfig(port=0), health, Metrics().render) as server:

        def get(path):
            try:
                answer = urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5)
            except urllib.error.HTTPError as error:
                answer = error
            with answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()

        yield get


def test_alive_while_the_loop_turns(health, clock, ask):
    health.beat()
    clock.now += HEARTBEAT_LIMIT_S - 1
    assert ask("/livez")[0] == 200

    clock.now += 2
    status, _, text = ask("/livez")
    assert status == 503
    assert json.loads(text)["live"] is False


def test_ready_when_nothing_is_in_the_way(health, ask):
    assert ask("/readyz")[0] == 503  # not started

    health.set_problem("start", None)
    assert ask("/readyz")[0] == 200

    health.set_problem("store", "no answer")
    status, _, text = ask("/readyz")
    assert status == 503
    assert json.loads(text)["problems"] == {"store": "no answer"}


def test_not_ready_is_still_alive(health, ask):
    health.set_problem("store", "no answer")

    assert ask("/livez")[0] == 200


def test_metrics_are_served_in_prometheus_format(ask):
    status, content_type, text = ask("/metrics")

    assert status == 200
    assert content_type.startswith("text/plain")
    assert "# TYPE alertprod_inflight gauge" in text


def test_status_says_what_is_wrong_and_what_is_under_way(health, ask):
    health.set_problem("store", "database is locked")

    status, content_type, text = ask("/status")
    assert (status, content_type) == (200, "application/json")
    facts = json.loads(text)
    assert facts["problems"]["store"] == "database is locked"
    assert (facts["inflight_exposures"], facts["last_exposures"]) == ([], [])


def test_other_paths_are_not_found(ask):
    assert ask("/")[0] == 404


def test_a_port_that_is_taken_is_a_config_error(health):
    with (
        HealthServer(HttpConfig(port=0), health, bytes) as server,
        pytest.raises(ConfigError, match=r"http\.port"),
        HealthServer(HttpConfig(port=server.port), health, bytes),
    ):
        pass


def test_it_can_be_off(health):
    with HealthServer(HttpConfig(enabled=False), health, bytes) as server:
        assert server.port is None
