"""The moving parts of a load test: daemons of one consumer group, what they use, and who hears their summaries."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil

from alertprod.cli.ports import free_port
from alertprod.cli.status import ask
from alertprod.errors import AlertprodError
from alertprod.sim.load import INSTRUMENT, Exposure, LoadConfig, Usage
from alertprod.stream.messages import decode_visit_summary
from alertprod.stream.tail import AlertTail
from alertprod.view.status import DaemonStatus

_FAIR: Final = 1.25
"""Times the mean, the most partitions that a daemon of a settled group has: who assigns them leaves what lies well."""

_START_TIMEOUT_S: Final = 180.0
_START_TIMEOUT_PER_WORKER_S: Final = 10.0
"""A daemon and its workers' server import for some seconds of a core each, and share the cores with all others."""

_DRAIN_TIMEOUT_S: Final = 60.0
_ANSWER_TIMEOUT_S: Final = 60.0
_ASK_EVERY_S: Final = 1.0
_SAMPLE_EVERY_S: Final = 2.0
"""Seldom: what a daemon answers costs it, and us, a few hundredths of a second of a core."""

_REAL_STAGES: Final = ("claim", "history", "packets", "store", "publish", "settle")
"""What is not modelled."""


class LoadError(AlertprodError):
    """The load test could not be run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a fleet works.

    Parameters
    ----------
    folder
        Configurations, logs, outbox, and the database where it is SQLite.
    bootstrap_servers, delivery
        The broker, and what is promised to it.
    database_url
        Of all daemons.
    topics
        By the name of the setting.
    """

    folder: Path
    bootstrap_servers: str
    delivery: str
    database_url: str
    topics: Mapping[str, str]


class Daemon:
    """One of the fleet.

    Parameters
    ----------
    number
        Which.
    """

    def __init__(self, site: Site, config: LoadConfig, number: int) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.log_path = site.folder / f"daemon-{number}.log"
        settings = site.folder / f"daemon-{number}.toml"
        model = site.folder / "model.json"
        settings.write_text(_make_settings(site, config, number, self._port), encoding="utf-8")
        model.write_text(json.dumps(asdict(config.worker_model())), encoding="utf-8")
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own module in our own interpreter
                [sys.executable, "-m", "alertprod.cli.load_daemon", str(settings), str(model)],
                stdout=log,
                stderr=log,
                stdin=subprocess.PIPE,
            )

    def ask(self) -> DaemonStatus:
        """Return what it says of itself.

        Raises
        ------
        LoadError
            Raised if it has ended.
        """
        status = self._process.poll()
        if status is not None:
            lines = self.log_path.read_text(errors="replace").splitlines()
            raise LoadError(f"a daemon ended with status {status}: {lines[-1] if lines else ''}; see {self.log_path}")
        return ask(self.url)

    def cpu_s(self) -> tuple[float, float]:
        """Return the CPU seconds that the daemon and its workers have used."""
        return _cpu_s(self._process.pid), sum(_cpu_s(child.pid) for child in _children(self._process.pid))

    def memory_bytes(self) -> tuple[int, int]:
        """Return the resident memory of the daemon and of its largest worker."""
        workers = [_resident_bytes(child.pid) for child in _children(self._process.pid)]
        return _resident_bytes(self._process.pid), max(workers, default=0)

    def request_stop(self) -> None:
        """Ask it to drain."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """Wait for its end, and return its status; kill it where it does not listen."""
        try:
            return self._process.wait(_DRAIN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            if self._process.stdin is not None:
                self._process.stdin.close()


class LoadFleet:
    """Daemons of one consumer group; all end with the context."""

    def __init__(self, site: Site, config: LoadConfig) -> None:
        self._site, self._config = site, config
        self._daemons: list[Daemon] = []
        self.statuses: list[int] = []
        """Exit statuses, once all have ended."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._stop)
            for number in range(self._config.daemons):
                self._daemons.append(Daemon(self._site, self._config, number))
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def has_one_writer(self) -> bool:
        """Whether the database takes one transaction after the other."""
        return self._site.database_url.startswith("sqlite")

    def wait_ready(self, progress: Callable[[int, int], None]) -> None:
        """Wait until every worker is warm and every daemon has its share of the partitions.

        Parameters
        ----------
        progress
            Told how many workers are ready, of how many.

        Raises
        ------
        LoadError
            Raised if a daemon ends, or they are not ready in time.
        """
        wanted = self._config.daemons * self._config.workers
        until = time.monotonic() + _START_TIMEOUT_S + _START_TIMEOUT_PER_WORKER_S * wanted
        while True:
            answers = [daemon.ask() for daemon in self._daemons]
            ready = sum(int(answer.total("workers_ready")) for answer in answers)
            lanes = [int(answer.total("assigned_partitions")) for answer in answers]
            progress(ready, wanted)
            # While daemons join, the first ones have all partitions, and give them up in the middle of their work.
            share = self._config.partitions / self._config.daemons
            is_balanced = sum(lanes) == self._config.partitions and max(lanes) <= _FAIR * share + 1
            if ready == wanted and is_balanced:
                return
            if time.monotonic() > until:
                raise LoadError(f"{ready} of {wanted} workers ready, {lanes} partitions; see {self._site.folder}")
            time.sleep(_ASK_EVERY_S)

    def ask(self, *, until_answered: bool = False) -> list[DaemonStatus]:
        """Return what each says of itself; on a busy machine one may not answer in time, unless it is asked until it does.

        Raises
        ------
        LoadError
            Raised if a daemon has ended, or does not answer for a minute.
        """
        until = time.monotonic() + _ANSWER_TIMEOUT_S
        answers = [daemon.ask() for daemon in self._daemons]
        while until_answered and (silent := [each for each in answers if each.error is not None]):
            if time.monotonic() > until:
                raise LoadError(f"{silent[0].url}: {silent[0].error}")
            answers = [daemon.ask() for daemon in self._daemons]
        return answers

    def cpu_s(self) -> tuple[float, float]:
        """Return the CPU seconds of all daemons, and of all workers."""
        parts = [daemon.cpu_s() for daemon in self._daemons]
        return sum(part[0] for part in parts), sum(part[1] for part in parts)

    def memory_bytes(self) -> tuple[int, int]:
        """Return the resident memory of the largest daemon, and of the largest worker."""
        parts = [daemon.memory_bytes() for daemon in self._daemons]
        return max(part[0] for part in parts), max(part[1] for part in parts)

    def _stop(self) -> None:
        for daemon in self._daemons:
            daemon.request_stop()
        self.statuses = [daemon.stop() for daemon in self._daemons]
        self._daemons.clear()


@dataclass(slots=True)
class Meter:
    """Watches a fleet while it works: occupied lanes by samples, the rest by what daemons count."""

    fleet: LoadFleet
    config: LoadConfig
    started: float = field(default_factory=time.monotonic)
    cpu_before: tuple[float, float] = (0.0, 0.0)
    machine_before: tuple[float, float] = (0.0, 0.0)
    lanes_s: float = 0.0
    sampled: float = 0.0
    costs: dict[str, float] = field(default_factory=dict)
    """CPU seconds and bytes of memory, for whoever plans."""

    def begin(self) -> None:
        """Begin, now."""
        self.started = self.sampled = time.monotonic()
        self.cpu_before, self.machine_before = self.fleet.cpu_s(), _machine_s()

    def sample(self) -> None:
        """Look how many lanes have an exposure in flight, every other second."""
        now = time.monotonic()
        if now - self.sampled < _SAMPLE_EVERY_S:
            return
        answers = self.fleet.ask()
        if all(each.error is None for each in answers):  # otherwise the next answer stands for this time too
            self.lanes_s += sum(each.total("inflight") for each in answers) * (now - self.sampled)
            self.sampled = now

    def finish(self) -> dict[str, Usage]:
        """Return what was used."""
        elapsed = time.monotonic() - self.started
        answers = self.fleet.ask(until_answered=True)
        busy, total = _machine_s()
        cpu = [after - before for after, before in zip(self.fleet.cpu_s(), self.cpu_before, strict=True)]
        daemon_bytes, worker_bytes = self.fleet.memory_bytes()
        config = self.config
        self.costs = {
            "seconds": elapsed,
            "daemon_cpu_s_per_exposure": cpu[0] / config.n_exposures,
            "worker_cpu_s_per_exposure": cpu[1] / config.n_exposures,
            "daemon_memory_bytes": float(daemon_bytes),
            "worker_memory_bytes": float(worker_bytes),
            **{f"{stage}_s_per_exposure": _stage_s(answers, stage) / config.n_exposures for stage in _REAL_STAGES},
        }
        used = {
            "workers": Usage(busy_s=_stage_s(answers, "compute"), capacity_s=elapsed * config.daemons * config.workers),
            "lanes": Usage(busy_s=self.lanes_s, capacity_s=(self.sampled - self.started) * config.partitions),
            "publisher of the busiest daemon": Usage(
                busy_s=max(_stage_s([each], "publish") for each in answers), capacity_s=elapsed
            ),
            "cores of this machine": Usage(
                busy_s=busy - self.machine_before[0], capacity_s=total - self.machine_before[1]
            ),
        }
        if self.fleet.has_one_writer:
            used["the database's one writer"] = Usage(busy_s=_stage_s(answers, "store"), capacity_s=elapsed)
        return used


class Listener:
    """Hears the summaries, as any consumer of their topic: only what was committed.

    Attributes
    ----------
    acked_unix_s
        When an exposure's summary came, for those that were published.
    n_alerts
        Alerts of those, as their summaries say.
    failed
        What became of the others.
    """

    def __init__(self, site: Site) -> None:
        self._tail = AlertTail(site.bootstrap_servers, [site.topics["visit_summary"]])
        self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._error: Exception | None = None
        self.acked_unix_s: dict[Exposure, float] = {}
        self.n_alerts: dict[Exposure, int] = {}
        self.failed: dict[Exposure, str] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._tail.close()

    def wait_for(self, n_exposures: int, *, timeout_s: float) -> int:
        """Wait until so many exposures have ended, or the time is up; return how many have.

        Raises
        ------
        LoadError
            Raised if the topic cannot be read.
        """
        with self._news:
            self._news.wait_for(lambda: self._error is not None or self._n_ended() >= n_exposures, timeout_s)
            if self._error is not None:
                raise LoadError(f"the summaries cannot be read: {self._error}") from self._error
            return self._n_ended()

    def _n_ended(self) -> int:
        return len(self.acked_unix_s) + len(self.failed)

    def _listen(self) -> None:
        try:
            while not self._stop.is_set():
                for message in self._tail.messages(follow=True, idle_s=0.3):
                    summary = decode_visit_summary(message.value)
                    key = summary.visit, summary.detector
                    with self._news:
                        if summary.outcome == "published":
                            self.acked_unix_s.setdefault(key, time.time())
                            self.n_alerts[key] = summary.n_alerts
                        else:
                            self.failed[key] = summary.reason or summary.outcome
                        self._news.notify_all()
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits, which raises it
            with self._news:
                self._error = error
                self._news.notify_all()


def _make_settings(site: Site, config: LoadConfig, number: int, port: int) -> str:
    """Return a daemon's configuration as TOML."""
    sections: dict[str, dict[str, Any]] = {
        "kafka": {
            "bootstrap_servers": site.bootstrap_servers,
            "delivery": site.delivery,
            "group_id": site.topics["visit_ready"],
            "transactional_id": f"{site.topics['visit_ready']}-{number}",
            "group_instance_id": f"{site.topics['visit_ready']}-{number}",
        },
        "topics": dict(site.topics),
        "store": {"database_url": site.database_url, "outbox_uri": str(site.folder / "outbox"), "template_index": ""},
        f"instruments.{INSTRUMENT}": {"bands": ["r"]},
        "workers": {"count": config.workers, "threads_per_worker": 1},
        "http": {"port": port},
        "log": {"level": "warning"},
    }
    lines = ["# Written by `alertprod simulate load`."]
    for name, values in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _stage_s(answers: list[DaemonStatus], stage: str) -> float:
    return sum(answer.total("stage_seconds_sum", stage=stage) for answer in answers)


def _machine_s() -> tuple[float, float]:
    """Return the seconds that this machine's cores have worked, and all their seconds."""
    times = psutil.cpu_times()
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)  # in user and nice already
    return total - times.idle - getattr(times, "iowait", 0.0), total


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.Error:
        return []


def _cpu_s(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:  # it has ended, and the daemon will say so
        return 0.0
    return float(times.user + times.system)


def _resident_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
