import pytest

from alertprod.errors import InsufficientKernelSources, InvalidEvent
from alertprod.stream.dead_letter import (
    HEADER_PREFIX,
    is_dead_letter_replay,
    make_dead_letter,
    make_replay,
    parse_dead_letter,
)
from alertprod.stream.records import OutgoingMessage, Received
from alertprod.stream.schemas import load_event_schema

EVENT = Received(
    topic="visit-ready",
    partition=3,
    offset=77,
    key=b"Cam/42/7",
    value=b"\x00\xff",
    headers=(("trace", b"\xff"),),
    timestamp_ms=5,
)


def made(error: BaseException, event: Received = EVENT, **more) -> OutgoingMessage:
    arguments = {"topic": "dead-letters", "stage": "compute", "attempts": 2, "version": "1.0", "clock": lambda: 12.5}
    return make_dead_letter(event, error, **(arguments | more))


def arrived(message: OutgoingMessage) -> Received:
    return Received(
        topic=message.topic, partition=0, offset=0, key=message.key, value=message.value, headers=message.headers
    )


def raised(error: Exception) -> Exception:
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def test_a_dead_letter_keeps_the_event_and_says_why_where_and_how_often():
    message = made(
        raised(InsufficientKernelSources(3, 10)), exposure=("Cam", 42, 7), config_hash="abc", worker_deaths=1
    )
    assert (message.topic, message.key, message.value) == ("dead-letters", EVENT.key, EVENT.value)
    assert message.headers[0] == ("trace", b"\xff")
    letter = parse_dead_letter(arrived(message))
    assert (letter.topic, letter.partition, letter.offset, letter.timestamp_ms) == ("visit-ready", 3, 77, 5)
    assert (letter.stage, letter.attempts, letter.worker_deaths) == ("compute", 2, 1)
    assert letter.reason == "insufficient_kernel_sources"
    assert letter.exception == "alertprod.errors.InsufficientKernelSources"
    assert letter.message == "3 usable kernel sources, 10 required"
    assert letter.stacktrace.rstrip().endswith("3 usable kernel sources, 10 required")
    assert (letter.instrument, letter.visit, letter.detector) == ("Cam", 42, 7)
    assert (letter.version, letter.config_hash, letter.sent_at_ms) == ("1.0", "abc", 12500)


def test_an_error_nobody_expected_is_called_so():
    letter = parse_dead_letter(arrived(made(raised(ZeroDivisionError()))))
    assert (letter.reason, letter.message) == ("unexpected", "ZeroDivisionError()")
    assert letter.visit is None


def test_headers_are_the_fields_of_the_schema():
    schema = load_event_schema("dead_letter")
    message = made(raised(InvalidEvent("a", "b")), exposure=("Cam", 42, 7), config_hash="abc")
    names = [name for name, _ in message.headers if name.startswith(HEADER_PREFIX)]
    assert names == [HEADER_PREFIX + field["name"].replace("_", "-") for field in schema["fields"]]
    minimal = made(InvalidEvent("a", "b"), Received(topic="t", partition=0, offset=0, key=None, value=None))
    required = {field["name"] for field in schema["fields"] if "default" not in field}
    assert required <= {name.removeprefix(HEADER_PREFIX).replace("-", "_") for name, _ in minimal.headers}


def test_long_and_odd_texts_stay_bounded():
    letter = made(raised(ValueError("\ud800" + "ü" * 100_000)))
    assert sum(len(name) + len(value) for name, value in letter.headers) < 12_000
    assert parse_dead_letter(arrived(letter)).message.startswith("?ü")


def test_a_replay_is_the_event_again_with_a_mark():
    replay = make_replay(arrived(made(InvalidEvent("a", "b"))))
    assert (replay.topic, replay.key, replay.value) == (EVENT.topic, EVENT.key, EVENT.value)
    assert is_dead_letter_replay(arrived(replay))
    assert not is_dead_letter_replay(EVENT)
    twice = make_replay(arrived(made(InvalidEvent("a", "b"), arrived(replay))))
    assert twice == replay


@pytest.mark.parametrize("headers", [(), ((HEADER_PREFIX + "partition", b"x"),), (("trace", b"1"),)])
def test_what_is_no_dead_letter_is_invalid(headers):
    with pytest.raises(InvalidEvent):
        parse_dead_letter(Received(topic="t", partition=0, offset=0, key=None, value=None, headers=headers))
