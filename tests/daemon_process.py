"""A daemon with the fake pipeline in a process of its own, against a broker that speaks Kafka.

``python daemon_process.py FOLDER BOOTSTRAP DELIVERY PREFIX``: topics are PREFIX-visit-ready and so on.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from daemon_bench import make_bench

from alertprod.config import DaemonConfig, HttpConfig, KafkaConfig, LimitsConfig, LogConfig, TopicsConfig, WorkersConfig
from alertprod.logs import configure_logs
from alertprod.service.daemon import AlertDaemon
from alertprod.service.health import Health, HealthServer
from alertprod.service.steps import Identity
from alertprod.service.worker import WorkerPool
from alertprod.stream.consumer import EventConsumer
from alertprod.stream.producer import AlertProducer


def make_topics(prefix: str) -> TopicsConfig:
    return TopicsConfig(**{name: f"{prefix}-{name.replace('_', '-')}" for name in TopicsConfig.model_fields})


def run(folder: str, bootstrap_servers: str, delivery: str, prefix: str) -> int:
    bench = make_bench(Path(folder))
    config = DaemonConfig(
        kafka=KafkaConfig(
            bootstrap_servers=bootstrap_servers, delivery=delivery, group_id=prefix, transactional_id=f"{prefix}-0"
        ),
        topics=make_topics(prefix),
        instruments=bench.config.instruments,
        workers=WorkersConfig(deadline_s=20.0),
        limits=LimitsConfig(retry_first_s=0.2, retry_max_s=1.0, drain_s=20.0),
        log=LogConfig(level="info"),
        http=HttpConfig(port=0),
    )
    configure_logs(config.log)
    options = {"session.timeout.ms": 6000}  # the embedded broker keeps a dead member's place for as long

    def connect(**callbacks) -> EventConsumer:
        topics = [config.topics.visit_ready, config.topics.next_visit]
        return EventConsumer(
            bootstrap_servers, topics, group_id=prefix, hold_on_assign=True, options=options, **callbacks
        )

    health = Health()
    transactional_id = config.kafka.transactional_id if delivery == "exactly-once" else None
    daemon = AlertDaemon(
        config,
        identity=Identity(owner=config.kafka.transactional_id, version="1.0", config_hash="c0ffee"),
        connect=connect,
        producer=AlertProducer(bootstrap_servers, transactional_id=transactional_id),
        ledger=bench.ledger,
        workers=WorkerPool(bench.factory, config.workers, config.log),
        metrics=bench.metrics,
        health=health,
    )
    daemon.install_signal_handlers()
    with HealthServer(config.http, health, bench.metrics.render):
        return daemon.run()


class DaemonProcess:
    """Starts one, reads its log, ends it."""

    def __init__(self, folder: Path, bootstrap_servers: str, delivery: str, prefix: str) -> None:
        folder.mkdir(exist_ok=True)
        self.log = folder / f"log-{time.monotonic_ns()}.jsonl"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(folder), bootstrap_servers, delivery, prefix],
                stderr=log,
                env=_environment(),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)

    def wait_until(self, condition: Callable[[], bool], *, timeout_s: float = 90.0) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"exit status {self.process.returncode}\n{self.log.read_text()[-4000:]}"
            assert time.monotonic() < until, f"timed out\n{self.log.read_text()[-4000:]}"
            time.sleep(0.05)

    def said(self, text: str) -> bool:
        return f'"event": "{text}"' in self.log.read_text()

    def terminate(self, *, timeout_s: float = 60.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


def _environment() -> dict[str, str]:
    import os

    tests = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}"}


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
