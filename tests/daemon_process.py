"""A daemon with the fake pipeline in a process of its own, against a broker that speaks Kafka.

``python daemon_process.py SETTINGS``: a JSON file of `Settings`; topics are PREFIX-visit-ready and so on.
"""

import dataclasses
import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
from daemon_bench import make_bench
from traps import lay_in_daemon

from alertprod.config import DaemonConfig, HttpConfig, KafkaConfig, LimitsConfig, LogConfig, TopicsConfig, WorkersConfig
from alertprod.logs import configure_logs
from alertprod.metrics import parse_metrics
from alertprod.service.clock import Clock
from alertprod.service.daemon import AlertDaemon
from alertprod.service.health import Health, HealthServer
from alertprod.service.steps import Identity
from alertprod.service.worker import WorkerPool
from alertprod.stream.consumer import EventConsumer
from alertprod.stream.producer import AlertProducer


@dataclass(frozen=True, kw_only=True)
class Settings:
    folder: str
    bootstrap_servers: str
    delivery: str
    prefix: str
    member: int = 0
    """Which of the daemons of the group: its transactional id ends with it."""
    static: bool = False
    """Whether its place in the group is its own (``group.instance.id``)."""
    database_url: str | None = None
    workers: int = 1
    session_s: float = 6.0
    limits: dict[str, float] = field(default_factory=dict)


class SteppingClock(Clock):
    """A clock that an administrator sets: the file ``clock`` says by how many seconds."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "clock"

    def unix_s(self) -> float:
        try:
            return time.time() + float(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return time.time()


def make_topics(prefix: str) -> TopicsConfig:
    return TopicsConfig(**{name: f"{prefix}-{name.replace('_', '-')}" for name in TopicsConfig.model_fields})


def run(settings: Settings) -> int:
    faulthandler.register(signal.SIGUSR1)  # where does it hang?
    folder, prefix = Path(settings.folder), settings.prefix
    bench = make_bench(folder, database_url=settings.database_url)
    lay_in_daemon(folder)
    own = f"{prefix}-{settings.member}"
    config = DaemonConfig(
        kafka=KafkaConfig(
            bootstrap_servers=settings.bootstrap_servers,
            delivery=settings.delivery,
            group_id=prefix,
            transactional_id=own,
            group_instance_id=own if settings.static else None,
        ),
        topics=make_topics(prefix),
        instruments=bench.config.instruments,
        workers=WorkersConfig(count=settings.workers, deadline_s=20.0, memory_limit_bytes=300 << 20),
        limits=LimitsConfig(**({"retry_first_s": 0.2, "retry_max_s": 1.0, "drain_s": 20.0} | settings.limits)),
        log=LogConfig(level="info"),
        http=HttpConfig(port=0),
    )
    configure_logs(config.log)
    # The embedded broker keeps a dead member's place for as long.
    options: dict[str, Any] = {"session.timeout.ms": round(settings.session_s * 1000)}
    if settings.static:
        options["group.instance.id"] = own

    def connect(**callbacks: Any) -> EventConsumer:
        topics = [config.topics.visit_ready, config.topics.next_visit]
        return EventConsumer(
            settings.bootstrap_servers, topics, group_id=prefix, hold_on_assign=True, options=options, **callbacks
        )

    clock = SteppingClock(folder)
    health = Health()
    transactional_id = own if settings.delivery == "exactly-once" else None
    bench.ledger._clock = clock.unix_s
    daemon = AlertDaemon(
        config,
        identity=Identity(owner=own, version="1.0", config_hash="c0ffee"),
        connect=connect,
        producer=AlertProducer(settings.bootstrap_servers, transactional_id=transactional_id),
        ledger=bench.ledger,
        workers=WorkerPool(bench.factory, config.workers, config.log),
        metrics=bench.metrics,
        health=health,
        clock=clock,
    )
    daemon.install_signal_handlers()
    with HealthServer(config.http, health, bench.metrics.render):
        return daemon.run()


class DaemonProcess:
    """Starts one, reads its log, ends it."""

    def __init__(self, settings: Settings) -> None:
        folder = Path(settings.folder)
        folder.mkdir(exist_ok=True)
        stamp = time.monotonic_ns()
        self.log = folder / f"log-{stamp}.jsonl"
        path = folder / f"settings-{stamp}.json"
        path.write_text(json.dumps(dataclasses.asdict(settings)))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, __file__, str(path)], stderr=log, env=_environment())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def wait_until(self, condition: Callable[[], object], *, timeout_s: float = 90.0) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            assert self.is_alive, f"exit status {self.process.returncode}\n{self.log.read_text()[-4000:]}"
            assert time.monotonic() < until, f"timed out\n{self.log.read_text()[-4000:]}"
            time.sleep(0.05)

    def wait_dead(self, *, timeout_s: float = 60.0) -> int:
        """Wait for its end and its workers', and return its status."""
        status = self.process.wait(timeout_s)
        for pid in self.worker_pids():
            until = time.monotonic() + 60.0  # one that is just starting looks for its parent when it has its modules
            while psutil.pid_exists(pid):
                assert time.monotonic() < until, "an orphan works on"
                time.sleep(0.02)
        return status

    def said(self, text: str) -> bool:
        return f'"event": "{text}"' in self.log.read_text()

    def lines(self, text: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if f'"event": "{text}"' in line]

    def worker_pids(self) -> list[int]:
        """Those that its log has named."""
        return [line["pid"] for line in self.lines("worker started")]

    def ask(self, path: str) -> tuple[int, str]:
        """Return status and body of a page."""
        self.wait_until(lambda: self.said("listening for health and metrics"))
        (line,) = self.lines("listening for health and metrics")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{line['port']}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def n_turns_beyond(self, seconds: float) -> float:
        """Return how many times the loop took longer from poll to poll; one of the histogram's edges."""
        samples = parse_metrics(self.ask("/metrics")[1])
        buckets = {float(labels["le"]): n for labels, n in samples["alertprod_poll_interval_seconds_bucket"]}
        return buckets[float("inf")] - buckets[seconds]

    def kill(self) -> None:
        self.process.kill()
        self.wait_dead()

    def terminate(self, *, timeout_s: float = 60.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


def _environment() -> dict[str, str]:
    tests = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}"}


if __name__ == "__main__":
    sys.exit(run(Settings(**json.loads(Path(sys.argv[1]).read_text()))))
