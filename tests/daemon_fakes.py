"""A pipeline that does what its event says, and a broker in memory: the daemon's tests need no pixels and no Kafka.

Worker processes import this module by its name, which is why it lies here and not in a conftest.
"""

import os
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from traps import kill_daemon, pass_by

from alertprod.errors import (
    BadSubtraction,
    CorruptImage,
    ImageNotYetAvailable,
    NoTemplateCoverage,
    StoreUnavailable,
)
from alertprod.service.clock import Clock
from alertprod.service.work import CacheUse, WorkOrder, WorkResult, summary_facts
from alertprod.store.database import Database
from alertprod.store.ledger import Ledger
from alertprod.store.outbox import OutboxMessage, outbox_uri, write_outbox
from alertprod.stream.errors import PartitionRevoked
from alertprod.stream.messages import VisitReady, encode_visit_ready
from alertprod.stream.records import Lane, Offset, OutgoingMessage, Receipt, Received

N_ALERTS = 3


def make_event(
    visit: int, *, does: str = "store", instrument: str = "Camera", detector: int = 0, **fields
) -> VisitReady:
    """An event whose `target_name` tells the fake pipeline what to do."""
    now = Clock().mjd_tai()
    facts = {
        "instrument": instrument,
        "visit": visit,
        "detector": detector,
        "band": "r",
        "shutter_open_mjd_tai": now - 20.0 / 86400,
        "shutter_close_mjd_tai": now - 5.0 / 86400,
        "exposure_time_s": 15.0,
        "ra_deg": 10.0,
        "dec_deg": -5.0,
        "calexp_uri": f"file:///nowhere/{visit}.fits",
        "target_name": does,
        "sent_at_mjd_tai": now,
    }
    return VisitReady(**(facts | fields))


class FakePipeline:
    """Stores `N_ALERTS` messages, or fails as `target_name` says: ``store``, ``hang``, ``crash``, ``crash once`` …"""

    def __init__(self, database_url: str, outbox: str, diary: str) -> None:
        self._database = Database(database_url)
        self._ledger = Ledger(self._database)
        self._outbox, self._diary = outbox, Path(diary)

    def warm_up(self) -> None:
        pass

    def process(self, order: WorkOrder) -> WorkResult:
        event = order.event
        seen = self._note(event)
        pass_by(self._diary.parent, "compute", in_worker=True)
        if seen > 0 and event.target_name.endswith(" once"):
            return self._store(order)
        match event.target_name.removesuffix(" once").split():
            case ["store"]:
                pass
            case ["sleep", seconds]:
                time.sleep(float(seconds))
            case ["hang"]:
                time.sleep(3600)
            case ["crash"]:
                os._exit(11)
            case ["segfault"]:
                os.kill(os.getpid(), signal.SIGSEGV)
            case ["eat"]:
                hoard = [b"x" * (1 << 20) for _ in range(400)]  # at once, however busy the machine is
                time.sleep(3600 * len(hoard))
            case ["away", times] if seen < int(times):
                raise StoreUnavailable("away")
            case ["no", "image"]:
                raise ImageNotYetAvailable(event.calexp_uri)
            case ["corrupt"]:
                raise CorruptImage(event.calexp_uri, "IMAGE", "truncated")
            case ["bad"]:
                return WorkResult(outcome="failed", error=BadSubtraction("residual ratio", 7.0, 2.0))
            case ["nothing"]:
                raise NoTemplateCoverage(0.0, 0.1)
            case ["bug"]:
                return {}["no such key"]
            case ["unpicklable"]:
                return WorkResult(outcome="failed", traceback="lambda", counts={"x": lambda: 0})
            case ["lose", "claim"]:
                return WorkResult(outcome="claim_lost")
        return self._store(order)

    def _note(self, event: VisitReady) -> int:
        """Write down that this process was given the event; return how often that was done before."""
        path = self._diary / f"{event.visit}.{event.detector}"
        with path.open("a") as file:
            file.write(f"{os.getpid()} {time.time()}\n")
        return len(path.read_text().splitlines()) - 1

    def _store(self, order: WorkOrder) -> WorkResult:
        event = order.event
        padding = b""
        if event.target_name is not None and event.target_name.startswith("large "):
            padding = os.urandom(int(event.target_name.split()[1]))
        messages = [
            OutboxMessage(
                b"%d" % n, f"alert {n} of {event.key.decode()} by {os.getpid()}".encode() + padding, (("n", b"%d" % n),)
            )
            for n in range(N_ALERTS)
        ]
        outbox = write_outbox(outbox_uri(self._outbox, order.claim), messages)
        pass_by(self._diary.parent, "outbox", in_worker=True)
        facts = {"counts": {"dia_sources": N_ALERTS}, "stage_seconds": {"load": 0.01}, "figures": {"kernel_sum": 1.0}}
        with self._database.write() as connection:
            self._ledger.mark_stored(
                connection,
                order.claim,
                n_alerts=N_ALERTS,
                outbox_uri=outbox.uri,
                outbox_sha256=outbox.sha256,
                summary=summary_facts(event, **facts),
            )
        pass_by(self._diary.parent, "stored", in_worker=True)
        if event.target_name == "store, die once":
            os._exit(12)
        if event.target_name == "store, kill the daemon once":
            kill_daemon()
            time.sleep(3600)
        return WorkResult(outcome="stored", outbox=outbox, cache=CacheUse(hits=1, misses=2, size_bytes=3), **facts)


@dataclass(frozen=True)
class FakePipelineFactory:
    """Picklable."""

    database_url: str
    outbox: str
    diary: str

    def __call__(self) -> FakePipeline:
        return FakePipeline(self.database_url, self.outbox, self.diary)


class MemoryBroker:
    """Topics, committed offsets and transactions in memory; thread-safe."""

    def __init__(self, **partitions: int) -> None:
        self.lock = threading.RLock()
        self.partitions = {name.replace("_", "-"): n for name, n in partitions.items()}
        self.log: dict[Lane, list[Received]] = defaultdict(list)
        self.committed: dict[Lane, int] = {}
        self.published: list[OutgoingMessage] = []
        self.fail_publish: list[Exception] = []
        self.transactions: list[tuple[list[OutgoingMessage], list[Offset]]] = []

    def send(self, topic: str, value: bytes | None, *, key: bytes | None = None, partition: int = 0, headers=()) -> int:
        with self.lock:
            lane = Lane(topic, partition)
            offset = len(self.log[lane])
            self.log[lane].append(
                Received(topic=topic, partition=partition, offset=offset, key=key, value=value, headers=tuple(headers))
            )
            return offset

    def send_event(self, event: VisitReady, *, partition: int = 0, headers=()) -> int:
        return self.send("visit-ready", encode_visit_ready(event), key=event.key, partition=partition, headers=headers)

    def of(self, topic: str) -> list[OutgoingMessage]:
        with self.lock:
            return [message for message in self.published if message.topic == topic]


class MemoryConsumer:
    """What the daemon needs of `EventConsumer`; everything is assigned to it in the first poll."""

    def __init__(self, broker: MemoryBroker, *, on_assign, on_revoke, on_lost) -> None:
        self._broker = broker
        self._on_assign, self._on_revoke, self._on_lost = on_assign, on_revoke, on_lost
        self._paused: set[Lane] = set()
        self._position: dict[Lane, int] = {}
        self.assigned: frozenset[Lane] = frozenset()
        self.revoke_next: frozenset[Lane] = frozenset()
        self.lose_next: frozenset[Lane] = frozenset()
        self.closed = False
        self._joined = False

    def poll(self, timeout_s: float) -> Received | None:
        if not self._joined:
            self._joined = True
            self.assign(frozenset(Lane(t, p) for t, n in self._broker.partitions.items() for p in range(n)))
        if self.revoke_next:
            lanes, self.revoke_next = self.revoke_next, frozenset()
            self._on_revoke(lanes)
            self.assigned -= lanes
        if self.lose_next:  # and have them again at once
            lanes, self.lose_next = self.lose_next, frozenset()
            self.assigned -= lanes
            self._on_lost(lanes)
            self.assign(lanes)
        for lane in sorted(self.assigned - self._paused):
            with self._broker.lock:
                log, position = self._broker.log[lane], self._position[lane]
                if position < len(log):
                    self._position[lane] += 1
                    self._paused.add(lane)
                    return log[position]
        time.sleep(min(timeout_s, 0.02))
        return None

    def assign(self, lanes: frozenset[Lane]) -> None:
        self.assigned |= lanes
        self._paused |= lanes
        for lane in lanes:
            self._position[lane] = self._broker.committed.get(lane, 0)
        self._on_assign(lanes)

    def serve(self) -> None:
        pass

    def pause(self, *lanes: Lane) -> None:
        self._paused |= set(lanes)

    def resume(self, *lanes: Lane) -> None:
        self._paused -= set(lanes)

    def group_metadata(self, offsets: Iterable[Offset] = ()) -> object:
        for offset in offsets:
            if offset.lane not in self.assigned:
                raise PartitionRevoked(*offset.lane)
        return "metadata"

    def commit(self, offsets: Iterable[Offset]) -> None:
        with self._broker.lock:
            for offset in offsets:
                self._broker.committed[offset.lane] = offset.offset

    def committed(self, lanes: Iterable[Lane]) -> dict[Lane, int | None]:
        with self._broker.lock:
            return {lane: self._broker.committed.get(lane) for lane in lanes}

    def lag(self) -> dict[Lane, int]:
        with self._broker.lock:
            return {lane: len(self._broker.log[lane]) - self._broker.committed.get(lane, 0) for lane in self.assigned}

    def close(self) -> None:
        self._on_revoke(self.assigned)
        self.assigned = frozenset()
        self.closed = True


class MemoryProducer:
    """Transactions against a `MemoryBroker`: all or nothing, with the offsets."""

    transactional = True
    overdue_s = 0.0

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self.counts: Counter[str] = Counter()

    def start(self) -> None:
        pass

    def publish(
        self,
        messages: Iterable[OutgoingMessage],
        offsets: Sequence[Offset] = (),
        group_metadata: object = None,
        *,
        n_bytes: int = 0,
    ) -> Receipt:
        assert n_bytes >= 0
        assert group_metadata == "metadata"
        batch = list(messages)
        with self._broker.lock:
            if self._broker.fail_publish:
                raise self._broker.fail_publish.pop(0)
            self._broker.published += batch
            self._broker.transactions.append((batch, list(offsets)))
            for offset in offsets:
                self._broker.committed[offset.lane] = offset.offset
        now = time.time()
        return Receipt((now,) * len(batch), offsets_committed=True)

    def serve(self) -> None:
        pass

    def close(self, *, timeout_s: float) -> None:
        self.closed = timeout_s > 0

    def interrupt(self) -> None:
        pass
