"""An observatory for scenarios: ``alertprod run`` as a process of its own on a real broker, and all that came of it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
from confluent_kafka import Consumer, TopicPartition
from kafka_broker import ExistingBroker
from prometheus_client.parser import text_string_to_metric_families

from alertprod.alerts.avro import decode_alert
from alertprod.config import TopicsConfig, load_config
from alertprod.sim.night import Night
from alertprod.store.database import Database
from alertprod.store.ledger import ExposureKey, Ledger, LedgerRow
from alertprod.stream.messages import VisitReady, VisitSummary, decode_visit_summary, encode_visit_ready
from alertprod.stream.producer import AlertProducer
from alertprod.stream.records import OutgoingMessage, Received
from alertprod.stream.tail import AlertTail

READY_S = 300.0
"""Two cores may be busy with other things than compiling a worker's loops."""

N_ALERT_PARTITIONS = 3

Exposure = tuple[int, int]
"""Visit and detector."""


class Observatory:
    """Topics of its own on a broker, a folder with configuration and store, and what a consumer sees.

    Parameters
    ----------
    folder
        Made here.
    instruments
        TOML tables of the instruments.
    lanes
        Partitions of the events' topic.
    workers
        Processes.
    limits
        Lines of the table ``[limits]``.
    """

    def __init__(
        self,
        folder: Path,
        broker: ExistingBroker,
        *,
        instruments: str,
        template_index: Path,
        lanes: int,
        workers: int = 1,
        limits: str = "",
    ) -> None:
        folder.mkdir(parents=True)
        self.folder, self.broker, self.lanes = folder, broker, lanes
        prefix = f"{folder.name}-{uuid.uuid4().hex[:8]}"
        self.topics = TopicsConfig(**{name: f"{prefix}-{name}" for name in TopicsConfig.model_fields})
        names = self.topics
        broker.create_topics(
            {names.visit_ready: lanes, names.alerts: N_ALERT_PARTITIONS}
            | dict.fromkeys((names.next_visit, names.visit_summary, names.dead_letters, names.replay), 1),
            # Archives are old: the daemon refuses a topic that forgets events before they are.
            config={"retention.ms": "-1"},
        )
        self.config_path = folder / "alertprod.toml"
        topics = "\n".join(f'{name} = "{topic}"' for name, topic in names.model_dump().items())
        self.config_path.write_text(
            f"""[kafka]
bootstrap_servers = "{broker.bootstrap_servers}"
group_id = "{prefix}"
group_instance_id = "{prefix}-0"    # a restarted daemon has its partitions at once
transactional_id = "{prefix}-0"
[topics]
{topics}
[store]
template_index = "{template_index}"
[workers]
count = {workers}
threads_per_worker = 1
[limits]
{limits}
[http]
port = 0
{instruments}
"""
        )
        self.config = load_config(self.config_path)

    def start(self) -> "RunningDaemon":
        """Start ``alertprod run``."""
        return RunningDaemon(self.config_path)

    def run(self, *command: object, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run another command of ``alertprod`` with this configuration."""
        arguments = [sys.executable, "-m", "alertprod", *map(str, command), "--config", str(self.config_path)]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=timeout_s, check=False)

    def send(self, *events: VisitReady | tuple[bytes, bytes], lanes: Sequence[int] | None = None) -> None:
        """Send events, or keys with the bytes of what may be none; without `lanes` the keys decide."""
        pairs = [(event.key, encode_visit_ready(event)) if isinstance(event, VisitReady) else event for event in events]
        with AlertProducer(self.broker.bootstrap_servers) as producer:
            producer.publish(
                OutgoingMessage(topic=self.topics.visit_ready, key=key, value=value, partition=lane)
                for (key, value), lane in zip(pairs, lanes or [None] * len(pairs), strict=True)
            )

    def read(self, topic: str) -> list[Received]:
        """Return all that a `read_committed` consumer finds on a topic."""
        with AlertTail(self.broker.bootstrap_servers, [topic]) as tail:
            return list(tail.messages(idle_s=10.0))

    def summaries(self) -> list[VisitSummary]:
        """Return the visit summaries, in order."""
        return [decode_visit_summary(message.value) for message in self.read(self.topics.visit_summary)]

    def alerts(self) -> dict[Exposure, list[Received]]:
        """Return the alerts by exposure, as their headers say; of each exposure in the order of their ids.

        Notes
        -----
        Counters of DiaSource ids follow the order in which an exposure's alerts were published, which a consumer of
        several partitions does not see.
        """
        found = defaultdict(list)
        for message in sorted(
            self.read(self.topics.alerts), key=lambda message: int(header_of(message, "diaSourceId"))
        ):
            found[int(header_of(message, "visit")), int(header_of(message, "detector"))].append(message)
        return dict(found)

    def row(self, visit: int, detector: int) -> LedgerRow | None:
        """Return what the ledger says of an exposure."""
        (instrument,) = self.config.instruments
        database = Database(self.config.store.database_url)
        try:
            return Ledger(database).get(ExposureKey(instrument, visit, detector))
        finally:
            database.close()

    def state(self, exposure: Exposure) -> str | None:
        """Return an exposure's state in the ledger; None where it has no row, or there is no ledger yet."""
        if not Path(self.config.store.database_url.removeprefix("sqlite:///")).exists():
            return None
        row = self.row(*exposure)
        return None if row is None else str(row.state)

    def positions(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return committed offset and end of each partition of the events' topic."""
        consumer = Consumer(
            {"bootstrap.servers": self.broker.bootstrap_servers, "group.id": self.config.kafka.group_id}
        )
        try:
            lanes = [TopicPartition(self.topics.visit_ready, n) for n in range(self.lanes)]
            committed = {lane.partition: max(lane.offset, 0) for lane in consumer.committed(lanes, timeout=10)}
            ends = {lane.partition: consumer.get_watermark_offsets(lane, timeout=10)[1] for lane in lanes}
        finally:
            consumer.close()
        return committed, ends


class RunningDaemon:
    """A daemon's process: ask it, wait for it, end it."""

    def __init__(self, config_path: Path) -> None:
        self.log_path = config_path.with_name(f"daemon-{time.monotonic_ns()}.jsonl")
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "alertprod", "run", "--config", str(config_path)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self._url: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            workers = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            self.process.wait(10)
            for worker in workers:
                if worker.is_running():
                    worker.kill()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its log; each line is JSON."""
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]

    def said(self, event: str) -> list[dict[str, Any]]:
        """Return the lines that say this."""
        return [line for line in self.lines if line["event"] == event]

    def ask(self, path: str) -> tuple[int, str]:
        """Return status and body of a page."""
        if self._url is None:
            self.wait_until(lambda: '"port": ' in self.log_path.read_text(), timeout_s=READY_S)
            (line,) = self.said("listening for health and metrics")
            self._url = f"http://{line['host']}:{line['port']}"
        try:
            with urllib.request.urlopen(self._url + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def wait_ready(self) -> None:
        """Wait until it has its partitions and a warm worker."""
        self.wait_until(lambda: self.ask("/readyz")[0] == 200, timeout_s=READY_S)

    def wait_until(self, condition: Callable[[], object], *, timeout_s: float = 180.0) -> None:
        """Wait, as long as the daemon lives."""
        until = time.monotonic() + timeout_s
        while not condition():
            tail = self.log_path.read_text()[-3000:]
            assert self.process.poll() is None, f"the daemon ended with status {self.process.returncode}\n{tail}"
            assert time.monotonic() < until, f"not within {timeout_s} s\n{tail}"
            time.sleep(0.05)

    def measure(self) -> "Measured":
        """Return all metrics of now."""
        return Measured.parse(self.ask("/metrics")[1])

    def kill(self) -> None:
        """End it as a power cut does, and see that its workers end with it."""
        workers = psutil.Process(self.process.pid).children(recursive=True)
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        _, alive = psutil.wait_procs(workers, timeout=20)
        for orphan in alive:
            orphan.kill()
        assert not alive, "an orphan works on"

    def terminate(self, *, timeout_s: float = 60.0) -> int:
        """Ask it to stop; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@dataclass(frozen=True)
class Measured:
    """Metrics by name and labels."""

    values: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read Prometheus' text format."""
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return cls({(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples})

    @property
    def names(self) -> set[str]:
        """Every sample's name."""
        return {name for name, _ in self.values}

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of all series of a name that have these labels."""
        wanted = labels.items()
        return sum(value for (sample, found), value in self.values.items() if sample == name and wanted <= set(found))


def make_observatory(folder: Path, broker: ExistingBroker, night: Night, **settings: Any) -> Observatory:
    """An observatory with the camera of a simulated night."""
    return Observatory(
        folder,
        broker,
        instruments=f"[instruments.{night.config.instrument}]\n"
        f'profile = "{night.directory}/profile.toml"\nfield_radius_deg = 0.05\n',
        template_index=night.templates_directory / "templates.json",
        **settings,
    )


def make_event(night: Night, visit: int, detector: int, /, **changes: object) -> VisitReady:
    """The event of an exposure, or with changes a false one."""
    return VisitReady(**{**night.event(visit, detector), **changes})


def header_of(message: Received, name: str) -> str:
    """Return the one header of a name."""
    (value,) = (value for header, value in message.headers if header == name)
    return value.decode()


def packets_of(messages: list[Received]) -> list[dict[str, Any]]:
    """Decode alerts."""
    return [decode_alert(message.value or b"") for message in messages]
