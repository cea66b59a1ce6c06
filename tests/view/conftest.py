import pytest


@pytest.fixture
def packets(alert_night):
    """Of four variables only."""
    return [packet for packet in alert_night.packets if packet["diaObject"] is not None]


@pytest.fixture
def pair(alert_night):
    return alert_night.last
