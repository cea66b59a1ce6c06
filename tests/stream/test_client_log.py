import logging

from confluent_kafka import KafkaError

from alertprod.stream import client_log as module
from alertprod.stream.client_log import RepeatFilter, client_log, log_client_error


def lines(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_repeated_line_is_said_once_and_counted(caplog, monkeypatch):
    logger = logging.getLogger("repeats")
    repeats = RepeatFilter()
    logger.addFilter(repeats)
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    for n in range(5):
        logger.warning("%s [%s] %s", "FAIL", "client-1", f"attempt {n}")
    logger.warning("%s [%s] %s", "FAIL", "client-2", "another client")
    now[0] += module.QUIET_S
    logger.warning("%s [%s] %s", "FAIL", "client-1", "attempt 5")
    logger.removeFilter(repeats)
    assert lines(caplog) == [
        "FAIL [client-1] attempt 0",
        "FAIL [client-2] another client",
        "FAIL [client-1] attempt 5 (and 4 more like it)",
    ]


def test_an_error_of_a_client_is_a_warning(caplog, monkeypatch):
    for repeats in client_log.filters:  # another test's clients may have said the same a moment ago
        monkeypatch.setattr(repeats, "_said", {})
    with caplog.at_level(logging.WARNING, client_log.name):
        log_client_error(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
    assert lines(caplog) == ["_ALL_BROKERS_DOWN: 1/1 brokers are down"]
