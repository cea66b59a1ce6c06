"""Log lines."""

import io
import json
import logging
import threading
import warnings

import pytest
import structlog

from alertprod.config import LogConfig
from alertprod.logs import bind_exposure, configure_logs, get_logger


@pytest.fixture
def lines():
    """The lines written since, as objects; logging is put back afterwards."""
    stream = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configure_logs(LogConfig(level="info"), stream=stream, process="test")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:], root.level = before[0], before[1]
    logging.captureWarnings(False)
    structlog.reset_defaults()


def test_a_line_is_one_json_object_with_level_time_and_process(lines):
    get_logger("alertprod.x").info("stored", n_alerts=3)

    (line,) = lines()
    assert line.items() >= {"event": "stored", "n_alerts": 3, "level": "info", "process": "test"}.items()
    assert line["logger"] == "alertprod.x"
    assert line["time"].endswith("Z")


def test_the_exposure_is_in_every_line_whoever_writes_it(lines):
    with bind_exposure(instrument="Camera", visit=7, detector=2):
        get_logger("alertprod.x").info("ours")
        logging.getLogger("somebody.else").warning("theirs %d", 5)
    get_logger("alertprod.x").info("after")

    ours, theirs, after = lines()
    for line in (ours, theirs):
        assert (line["instrument"], line["visit"], line["detector"]) == ("Camera", 7, 2)
    assert theirs["event"] == "theirs 5"
    assert "visit" not in after


def test_exposures_of_other_threads_are_not_mixed_in(lines):
    def other():
        get_logger("alertprod.x").info("other thread")

    with bind_exposure(instrument="Camera", visit=7, detector=2):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    assert "visit" not in lines()[0]


def test_a_traceback_is_in_the_line(lines):
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        get_logger("alertprod.x").exception("bug")

    (line,) = lines()
    assert "ZeroDivisionError" in line["exception"]


def test_lines_below_the_level_are_not_written(lines):
    get_logger("alertprod.x").debug("quiet")
    logging.getLogger("numba.core").info("quiet too")

    assert lines() == []


def test_warnings_become_lines(lines):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("careful", UserWarning, stacklevel=1)

    assert "careful" in lines()[0]["event"]


def test_configuring_twice_does_not_write_twice(lines):
    stream = io.StringIO()
    configure_logs(LogConfig(), stream=stream)
    get_logger("alertprod.x").info("once")

    assert len(stream.getvalue().splitlines()) == 1
    assert lines() == []


def test_the_console_format_is_for_humans(lines):
    stream = io.StringIO()
    configure_logs(LogConfig(format="console"), stream=stream)
    secret = "hunter2"  # a local variable: not to be printed
    try:
        int(secret[:3])
    except ValueError:
        get_logger("alertprod.x").exception("bug", visit=3)

    text = stream.getvalue()
    assert "bug" in text
    assert "visit=3" in text
    assert "ValueError" in text
    assert "'hunter2'" not in text
