"""Topics on a broker and a folder for daemons with the fake pipeline; and the checker, which knows what must have come of it."""

import json
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition
from daemon_fakes import N_ALERTS
from daemon_process import DaemonProcess, Settings, make_topics
from kafka_broker import ExistingBroker

from alertprod.store.database import Database
from alertprod.store.ledger import ExposureKey, Ledger, LedgerRow, LedgerState
from alertprod.stream.messages import VisitReady, VisitSummary, decode_visit_summary, encode_visit_ready, hash_bodies
from alertprod.stream.producer import AlertProducer
from alertprod.stream.records import OutgoingMessage, Received
from alertprod.stream.tail import AlertTail

REPORT = Path(__file__).resolve().parent.parent / ".cache" / "faults.jsonl"
"""What every fault came to; ``make test-faults`` prints it as a table."""


def topic_partitions(prefix: str, lanes: int = 2) -> dict[str, int]:
    topics = make_topics(prefix)
    return {topics.visit_ready: lanes, topics.next_visit: 1} | dict.fromkeys(
        (topics.alerts, topics.visit_summary, topics.dead_letters, topics.replay), 1
    )


def make_site(
    folder: Path, broker: ExistingBroker, *, lanes: int = 2, delivery: str = "exactly-once", **facts
) -> "Site":
    """Make topics of its own on a broker."""
    prefix = f"faults-{uuid.uuid4().hex[:8]}"
    broker.create_topics(topic_partitions(prefix, lanes))
    return Site(folder / "site", broker.bootstrap_servers, delivery, prefix, lanes=lanes, **facts)


@dataclass
class Verdict:
    """What a read_committed consumer saw, against the truth."""

    lost: int = 0
    duplicated: int = 0
    different: int = 0
    repeated: int = 0
    """Alerts that came again, the same bytes under the same id: what at-least-once allows."""

    @property
    def is_good(self) -> bool:
        return self.lost == self.duplicated == self.different == 0


@dataclass
class Site:
    """Topics on a broker, and a daemon's folder."""

    folder: Path
    bootstrap_servers: str
    delivery: str
    prefix: str
    lanes: int = 2
    database_url: str | None = None
    direct: str = ""
    """Where the test itself reaches the broker, where that is not the daemon's way."""
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.topics = make_topics(self.prefix)
        self.direct = self.direct or self.bootstrap_servers
        self.folder.mkdir(exist_ok=True)

    def start(self, **settings: Any) -> DaemonProcess:
        return DaemonProcess(
            Settings(
                folder=str(self.folder),
                bootstrap_servers=self.bootstrap_servers,
                delivery=self.delivery,
                prefix=self.prefix,
                database_url=self.database_url,
                **(self.settings | settings),
            )
        )

    def send(self, *events: VisitReady | tuple[bytes | None, bytes | None], lanes: Iterable[int] | None = None) -> None:
        pairs = [(e.key, encode_visit_ready(e)) if isinstance(e, VisitReady) else e for e in events]
        with AlertProducer(self.direct) as producer:
            producer.publish(
                OutgoingMessage(topic=self.topics.visit_ready, key=key, value=value, partition=lane)
                for (key, value), lane in zip(pairs, lanes or [None] * len(pairs), strict=True)
            )

    def read(self, topic: str, isolation: str = "read_committed") -> list[Received]:
        with AlertTail(self.direct, [topic], isolation=isolation) as tail:
            return list(tail.messages(idle_s=10.0))

    def summaries(self) -> list[VisitSummary]:
        return [decode_visit_summary(message.value) for message in self.read(self.topics.visit_summary)]

    def outcomes(self) -> dict[int, str]:
        return {summary.visit: summary.outcome for summary in self.summaries()}

    def row(self, visit: int) -> LedgerRow | None:
        database = Database(self.database_url or f"sqlite:///{self.folder}/ledger.sqlite")
        try:
            return Ledger(database).get(ExposureKey("Camera", visit, 0))
        finally:
            database.close()

    def wait_all_done(self, daemon: DaemonProcess, visits: Collection[int], *, timeout_s: float = 120.0) -> None:
        """Wait until every offset is committed and these visits are published."""
        daemon.wait_until(lambda: self.uncommitted() == 0, timeout_s=timeout_s)
        self.wait_published(daemon, visits)

    def wait_published(self, daemon: DaemonProcess, visits: Collection[int]) -> None:
        """Wait until the ledger says so of these visits."""
        daemon.wait_until(
            lambda: all((row := self.row(visit)) and row.state == LedgerState.PUBLISHED for visit in visits)
        )

    def is_at_work_on(self, visit: int) -> bool:
        return (self.folder / "diary" / f"{visit}.0").exists()

    def workers_of(self, visit: int) -> list[int]:
        """Return the ids of the processes that were given an exposure, in their order."""
        return [int(line.split()[0]) for line in (self.folder / "diary" / f"{visit}.0").read_text().splitlines()]

    def uncommitted(self) -> int:
        """Return how many offsets of the events' topic are not committed; 1 where the broker does not know now."""
        consumer = Consumer({"bootstrap.servers": self.direct, "group.id": self.prefix})
        try:
            places = [TopicPartition(self.topics.visit_ready, n) for n in range(self.lanes)]
            committed = {place.partition: max(place.offset, 0) for place in consumer.committed(places, timeout=10)}
            return sum(
                consumer.get_watermark_offsets(place, timeout=10)[1] - committed[place.partition] for place in places
            )
        except KafkaException:  # it has just come back
            return 1
        finally:
            consumer.close()

    def check(self, visits: Collection[int]) -> Verdict:
        """Compare what a read_committed consumer sees with what was sent: each visit published once, with its bytes.

        At-least-once: or more than once with the same bytes.
        """
        verdict = Verdict()
        bodies: dict[int, list[bytes]] = defaultdict(list)
        for message in self.read(self.topics.alerts):
            bodies[visit_of(message)].append(message.value)
        summaries = Counter(summary.visit for summary in self.summaries())
        told = {summary.visit: summary for summary in self.summaries()}
        if self.delivery == "at-least-once":
            for visit, values in bodies.items():
                bodies[visit] = list(dict.fromkeys(values))
                verdict.repeated += len(values) - len(bodies[visit])
            summaries = Counter(told.keys())
        verdict.lost += len(set(visits) - set(told)) + len(self.read(self.topics.dead_letters))
        verdict.duplicated += sum(n - 1 for n in summaries.values())
        for visit in visits:
            names = [alert_name(body) for body in bodies[visit]]
            expected = {f"alert {n} of Camera/{visit}/0" for n in range(N_ALERTS)}
            verdict.lost += len(expected - set(names))
            verdict.duplicated += len(names) - len(set(names))
            row = self.row(visit)
            digests = {hash_bodies(bodies[visit]), told[visit].sha256 if visit in told else "", row.outbox_sha256}
            verdict.different += len(digests) != 1 or row.state not in (LedgerState.PUBLISHED, LedgerState.STORED)
        verdict.duplicated += len(set(bodies) - set(visits))
        return verdict

    def sweep(self) -> list[Path]:
        """Return outbox files that no row names, half-written ones among them."""
        names = {self.row(int(path.parent.name)).outbox_uri for path in self.folder.glob("outbox/*/*/*.outbox")}
        found = [path for path in self.folder.glob("outbox/**/*") if path.is_file()]
        return [path for path in found if str(path) not in names]


def visit_of(message: Received) -> int:
    return int(message.value.split(b" ")[3].split(b"/")[1])


def alert_name(body: bytes) -> str:
    return b" ".join(body.split(b" ")[:4]).decode()


def report(fault: str, *, tries: int, verdict: Verdict, recovery_s: Collection[float] = (), **more: Any) -> None:
    """Note what a fault came to."""
    line = {
        "fault": fault, "tries": tries, "lost": verdict.lost, "duplicated": verdict.duplicated,
        "different": verdict.different, "repeated": verdict.repeated, "recovery_s": [round(each, 2) for each in sorted(recovery_s)], **more,
        "at": time.strftime("%Y-%m-%d %H:%M:%S"),
    }  # fmt: skip
    REPORT.parent.mkdir(exist_ok=True)
    with REPORT.open("a") as file:
        file.write(json.dumps(line) + "\n")


def print_report() -> None:
    """Print the table of `report`: of each fault the line of most tries, and of those the latest."""
    lines: dict[str, dict[str, Any]] = {}
    for line in map(json.loads, REPORT.read_text().splitlines()):
        if line["tries"] >= lines.get(line["fault"], line)["tries"]:
            lines[line["fault"]] = line
    sys.stdout.write(f"{'fault':64} {'tries':>6} {'lost':>5} {'dup.':>5} {'diff.':>5}  recovery: median, longest [s]\n")
    for line in lines.values():
        times = line["recovery_s"]
        recovery = f"{times[len(times) // 2]:.1f}, {times[-1]:.1f}" if times else ""
        counts = f"{line['tries']:6} {line['lost']:5} {line['duplicated']:5} {line['different']:5}"
        sys.stdout.write(f"{line['fault']:64} {counts}  {recovery}\n")


if __name__ == "__main__":
    print_report()
