"""What the producer makes of each kind of error, against a client that plays them back; no broker."""
# ruff: noqa: ARG002 - the scripted client has the real one's signatures

from collections.abc import Callable

import pytest
from confluent_kafka import KafkaError, KafkaException

from alertprod.errors import BrokerUnavailable, ConfigError
from alertprod.stream.errors import BrokerFatal, CommitUncertain, MessageRefused, ProducerFenced
from alertprod.stream.producer import AlertProducer
from alertprod.stream.records import Offset, OutgoingMessage

RETRIABLE = KafkaError(KafkaError._TIMED_OUT, "try the same again", retriable=True)
ABORTABLE = KafkaError(KafkaError.UNKNOWN_MEMBER_ID, "abort and begin again", txn_requires_abort=True)
FENCED = KafkaError(KafkaError._FENCED, "fenced", fatal=True)
FATAL = KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED, "fatal", fatal=True)
PLAIN = KafkaError(KafkaError._STATE, "neither retriable nor abortable")
LOST = KafkaError(KafkaError._MSG_TIMED_OUT, "not delivered")
TOO_LARGE = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE, "too large")


class Message:
    """What a delivery report is about."""

    def topic(self) -> str:
        return "alerts"

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return b"value"


class ScriptedClient:
    """Plays back errors by the name of the call, one for each time it is made, then succeeds."""

    def __init__(self) -> None:
        self.script: dict[str, list[object]] = {}
        self.calls: list[str] = []
        self.reports: list[Callable[[], None]] = []

    def _play(self, call: str) -> None:
        self.calls.append(call)
        planned = self.script.get(call, [])
        if planned:
            outcome = planned.pop(0)
            if isinstance(outcome, KafkaError):
                raise KafkaException(outcome)
            if isinstance(outcome, BaseException):
                raise outcome

    def produce(self, topic, value, key, *, partition, headers, on_delivery) -> None:
        self._play("produce")
        planned = self.script.get("report", [])
        error = planned.pop(0) if planned else None
        self.reports.append(lambda: on_delivery(error, Message()))

    def poll(self, timeout) -> None:
        reports, self.reports = self.reports, []
        for report in reports:
            report()

    def flush(self, timeout) -> int:
        self.poll(timeout)
        return 0

    def purge(self) -> None:
        pass

    def init_transactions(self, timeout) -> None:
        self._play("init")

    def begin_transaction(self) -> None:
        self._play("begin")

    def send_offsets_to_transaction(self, offsets, metadata, timeout) -> None:
        self._play("offsets")

    def commit_transaction(self, timeout) -> None:
        self._play("commit")

    def abort_transaction(self, timeout) -> None:
        self._play("abort")


def make_producer(**script: list[object]) -> tuple[AlertProducer, ScriptedClient]:
    producer = AlertProducer("127.0.0.1:1", transactional_id="t", transaction_timeout_s=2.0, commit_timeout_s=0.3)
    client = producer._producer = ScriptedClient()
    client.script = script
    return producer, client


def publish(producer: AlertProducer):
    message = OutgoingMessage(topic="alerts", key=b"k", value=b"value")
    return producer.publish([message, message], [Offset("events", 0, 7)], object())


def test_the_steps_come_in_order():
    producer, client = make_producer()
    receipt = publish(producer)
    assert client.calls == ["init", "begin", "produce", "produce", "offsets", "commit"]
    assert receipt.offsets_committed
    publish(producer)
    assert client.calls.count("init") == 1


@pytest.mark.parametrize("call", ["init", "offsets", "commit"])
def test_a_retriable_error_repeats_the_same_call(call):
    producer, client = make_producer(**{call: [RETRIABLE]})
    publish(producer)
    assert client.calls.count(call) == 2
    assert "abort" not in client.calls


@pytest.mark.parametrize("call", ["produce", "offsets", "commit"])
def test_an_abortable_error_aborts_and_the_next_publish_begins_again(call):
    producer, client = make_producer(**{call: [ABORTABLE]})
    with pytest.raises(BrokerUnavailable):
        publish(producer)
    assert client.calls[-1] == "abort"
    publish(producer)
    assert client.calls[-1] == "commit"


@pytest.mark.parametrize("call", ["init", "begin", "produce", "offsets", "commit"])
@pytest.mark.parametrize(("error", "fate"), [(FENCED, ProducerFenced), (FATAL, BrokerFatal)])
def test_a_fatal_error_ends_the_producer_without_another_call(call, error, fate):
    producer, client = make_producer(**{call: [error]})
    with pytest.raises(fate):
        publish(producer)
    assert client.calls[-1] == call


@pytest.mark.parametrize("call", ["init", "offsets", "commit"])
def test_an_error_of_no_kind_is_fatal(call):
    producer, _ = make_producer(**{call: [PLAIN]})
    with pytest.raises(BrokerFatal):
        publish(producer)


def test_a_commit_that_is_never_answered_is_uncertain_and_not_aborted():
    producer, client = make_producer(commit=[RETRIABLE] * 100)
    with pytest.raises(CommitUncertain):
        publish(producer)
    assert client.calls.count("commit") > 1
    assert "abort" not in client.calls


def test_one_message_that_is_not_delivered_aborts_the_others():
    producer, client = make_producer(report=[None, LOST])
    with pytest.raises(BrokerUnavailable, match="alerts"):
        publish(producer)
    assert client.calls[-1] == "abort"
    assert "commit" not in client.calls


def test_a_message_too_large_for_the_broker_is_refused():
    producer, client = make_producer(report=[TOO_LARGE])
    with pytest.raises(MessageRefused) as caught:
        publish(producer)
    assert (caught.value.topic, caught.value.key, caught.value.n_bytes) == ("alerts", b"k", 5)
    assert client.calls[-1] == "abort"


def test_a_full_queue_makes_the_producer_wait_and_drops_nothing():
    producer, client = make_producer(produce=[None, BufferError(), BufferError()])
    assert len(publish(producer).acked_at) == 2
    assert client.calls.count("produce") == 4


def test_an_abort_without_an_answer_is_done_before_the_next_transaction(monkeypatch):
    monkeypatch.setattr("alertprod.stream.producer._ABORT_S", 0.3)
    producer, client = make_producer(report=[LOST], abort=[RETRIABLE] * 6)
    with pytest.raises(BrokerUnavailable, match="not delivered"):
        publish(producer)
    assert client.calls[-1] == "abort"
    client.calls.clear()
    client.script.clear()
    publish(producer)
    assert client.calls[:2] == ["abort", "begin"]


def test_a_client_that_cannot_end_its_transaction_is_replaced_and_its_successor_publishes(monkeypatch):
    """As after a restart of the coordinator that librdkafka does not find again."""
    monkeypatch.setattr("alertprod.stream.producer._ABORT_S", 0.0)
    producer, stuck = make_producer(report=[LOST], abort=[RETRIABLE] * 100)
    successor = ScriptedClient()
    monkeypatch.setattr(producer, "_connect", lambda: successor)
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            publish(producer)
    assert successor.calls == []
    publish(producer)
    assert successor.calls == ["init", "begin", "produce", "produce", "offsets", "commit"]
    assert stuck.calls.count("begin") == 1
    assert producer.counts["aborted"] == producer.counts["committed"] == 1


def test_a_client_that_cannot_start_is_replaced_before_the_next_attempt(monkeypatch):
    producer, _ = make_producer(init=[RETRIABLE] * 100)
    successor = ScriptedClient()
    monkeypatch.setattr(producer, "_connect", lambda: successor)
    with pytest.raises(BrokerUnavailable):
        producer.start(timeout_s=0.0)
    producer.start(timeout_s=0.0)
    assert successor.calls == ["init"]


def test_a_fatal_abort_ends_the_producer():
    producer, _ = make_producer(report=[LOST], abort=[FENCED])
    with pytest.raises(ProducerFenced):
        publish(producer)


def test_offsets_without_a_membership_are_a_mistake_of_the_caller():
    producer, client = make_producer()
    with pytest.raises(ValueError, match="group metadata"):
        producer.publish([], [Offset("events", 0, 1)])
    assert "begin" not in client.calls


def test_at_least_once_reports_a_message_that_is_not_delivered():
    producer = AlertProducer("127.0.0.1:1")
    client = producer._producer = ScriptedClient()
    client.script = {"report": [None, LOST]}
    with pytest.raises(BrokerUnavailable):
        publish(producer)
    receipt = publish(producer)
    assert not receipt.offsets_committed
    assert set(client.calls) == {"produce"}


def test_a_setting_librdkafka_does_not_know_is_a_configuration_error():
    with pytest.raises(ConfigError, match=r"no\.such\.setting"):
        AlertProducer("127.0.0.1:1", options={"no.such.setting": 1})


def test_a_broker_that_is_not_there_is_unavailable():
    with AlertProducer("127.0.0.1:1", transactional_id="t") as producer, pytest.raises(BrokerUnavailable):
        producer.start(timeout_s=0.5)
    with AlertProducer("127.0.0.1:1", delivery_timeout_s=1.0) as producer, pytest.raises(BrokerUnavailable):
        publish(producer)


def test_closing_a_producer_that_is_finished_does_not_raise():
    producer, client = make_producer(report=[LOST], abort=[FENCED, FENCED])
    with pytest.raises(ProducerFenced):
        publish(producer)
    producer.close()
    assert client.calls.count("abort") == 2


def test_an_interrupted_publish_is_aborted_and_the_next_goes_on():
    producer, client = make_producer()
    producer.interrupt()
    with pytest.raises(BrokerUnavailable, match="interrupted"):
        publish(producer)
    assert client.calls[-1] == "abort"
    publish(producer)
    assert client.calls[-1] == "commit"
