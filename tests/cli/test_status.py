"""``alertprod status``, against a daemon's HTTP server."""

import pytest

from alertprod.config import HttpConfig
from alertprod.metrics import Metrics
from alertprod.service.health import Health, HealthServer


@pytest.fixture
def health():
    return Health()


@pytest.fixture
def url(health):
    with HealthServer(HttpConfig(port=0), health, Metrics({"simcam": ("r",)}).render) as server:
        yield f"http://127.0.0.1:{server.port}"


def test_a_ready_daemon(alertprod, url, health):
    health.set_problem("start", None)

    ran = alertprod("status", "--once", "--url", url)
    assert ran.status == 0
    assert "idle" in ran.out
    assert "what is wrong" in ran.out


def test_one_that_is_not_ready(alertprod, url):
    ran = alertprod("status", "--url", url, "--json")
    assert ran.status == 1
    assert ran.json["wrong"] == ["start: the daemon has not started"]


def test_nobody_there(alertprod):
    ran = alertprod("status", "--once", "--url", "http://127.0.0.1:1")
    assert ran.status == 1
    assert "no daemon answers" in ran.out


def test_several_daemons(alertprod, url, health):
    health.set_problem("start", None)

    ran = alertprod("status", "--json", "--url", url, "--url", "http://127.0.0.1:1")
    assert [each["error"] is None for each in ran.json_lines] == [True, False]
    assert ran.status == 1


def test_the_address_is_the_configurations(alertprod, url, health, write_config):
    health.set_problem("start", None)
    port = url.rpartition(":")[2]

    path = write_config(f"[http]\nhost = '0.0.0.0'\nport = {port}")
    ran = alertprod("status", "--config", path, "--json")
    assert (ran.status, ran.json["url"]) == (0, url)
