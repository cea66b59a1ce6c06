"""A daemon with a fake pipeline in real worker processes, against a broker in memory."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from daemon_fakes import FakePipelineFactory, MemoryBroker, MemoryConsumer, MemoryProducer

from alertprod.config import DaemonConfig, InstrumentConfig, LimitsConfig, LogConfig, WorkersConfig
from alertprod.metrics import Metrics
from alertprod.service.daemon import AlertDaemon
from alertprod.service.health import Health
from alertprod.service.steps import Identity
from alertprod.service.worker import WorkerPool
from alertprod.store.database import Database
from alertprod.store.ledger import Ledger

TIMEOUT_S = 60.0
"""Two workers that import SQLAlchemy on a busy machine; a pass takes a few seconds."""


@dataclass
class Bench:
    """Everything about one daemon under test; `run` starts it in a thread."""

    folder: Path
    broker: MemoryBroker
    ledger: Ledger
    factory: FakePipelineFactory
    config: DaemonConfig
    metrics: Metrics = field(default_factory=lambda: Metrics({"Camera": ("r",)}))
    daemon: AlertDaemon | None = None
    consumer: MemoryConsumer | None = None
    workers: WorkerPool | None = None
    health: Health = field(default_factory=Health)
    status: int | None = None
    thread: threading.Thread | None = None
    prefetched: list = field(default_factory=list)
    reload: Callable | None = None

    def start(self, *, owner: str = "daemon-0", producer=None) -> None:
        def connect(**callbacks):
            self.consumer = MemoryConsumer(self.broker, **callbacks)
            return self.consumer

        self.workers = WorkerPool(self.factory, self.config.workers, self.config.log)
        self.daemon = AlertDaemon(
            self.config,
            identity=Identity(owner=owner, version="1.0", config_hash="c0ffee"),
            connect=connect,
            producer=producer or MemoryProducer(self.broker),
            ledger=self.ledger,
            workers=self.workers,
            metrics=self.metrics,
            health=self.health,
            prefetch=self.prefetched.append,
            reload=self.reload,
        )
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.status = self.daemon.run()

    def wait_until(self, condition: Callable[[], bool], *, timeout_s: float = TIMEOUT_S) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            assert self.thread.is_alive(), f"the daemon ended with status {self.status}"
            assert time.monotonic() < until, "timed out"
            time.sleep(0.02)

    def stop(self) -> int:
        self.daemon.stop()
        self.thread.join(TIMEOUT_S)
        assert not self.thread.is_alive()
        return self.status

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"alertprod_{name}", labels) or 0.0


def make_bench(
    folder: Path, *, workers: int = 1, partitions: int = 2, database_url: str | None = None, **limits: float
) -> Bench:
    url = database_url or f"sqlite:///{folder}/ledger.sqlite"
    database = Database(url)
    database.upgrade()
    for name in ("outbox", "diary"):
        (folder / name).mkdir(exist_ok=True)
    config = DaemonConfig(
        instruments={"Camera": InstrumentConfig()},
        workers=WorkersConfig(count=workers, deadline_s=3.0, memory_limit_bytes=300 << 20),
        limits=LimitsConfig(**({"retry_first_s": 0.05, "retry_max_s": 0.2, "revoke_s": 5.0, "drain_s": 20.0} | limits)),
        log=LogConfig(level="error"),
    )
    return Bench(
        folder=folder,
        broker=MemoryBroker(visit_ready=partitions, next_visit=1),
        ledger=Ledger(database),
        factory=FakePipelineFactory(url, str(folder / "outbox"), str(folder / "diary")),
        config=config,
    )
