"""The moving parts of the demonstration: a daemon as a process of its own, and a consumer that hears everything."""

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from alertprod.alerts.avro import decode_alert
from alertprod.cli.ports import free_port
from alertprod.errors import AlertprodError
from alertprod.service.clock import mjd_tai_from_unix
from alertprod.stream.messages import VisitSummary, decode_visit_summary
from alertprod.stream.records import Received
from alertprod.stream.tail import AlertTail

ALERTS, SUMMARIES, EVENTS, DEAD_LETTERS = "alerts", "visit-summary", "visit-ready", "dead-letters"
TOPICS = {EVENTS: 4, "next-visit": 1, ALERTS: 4, SUMMARIES: 1, DEAD_LETTERS: 1, "alerts-replay": 1}
"""Topics of the demonstration and their partitions: twice as many lanes as workers."""

_START_TIMEOUT_S = 900.0
"""The first start on a machine compiles every loop: a minute of CPU, many where other programs want the cores too."""

_DRAIN_TIMEOUT_S = 60.0

Exposure = tuple[int, int]
"""Visit and detector."""


class DemoError(AlertprodError):
    """The demonstration did not end as it should."""


class DaemonProcess:
    """``alertprod run`` with a configuration of the demonstration's own.

    Parameters
    ----------
    directory
        Where its configuration, database, outbox, cache and log go.
    bootstrap_servers
        The broker.
    night_directory
        What `make_night` filled, or will have filled when the first event is sent.
    instrument
        Name of the camera.
    """

    def __init__(self, directory: Path, *, bootstrap_servers: str, night_directory: Path, instrument: str) -> None:
        self.config_path = directory / "alertprod.toml"
        self.log_path = directory / "daemon.log"
        self._port = free_port()
        self.config_path.write_text(
            f"""# Written by `alertprod demo`; the broker it names is gone when the demonstration ends.
[kafka]
bootstrap_servers = "{bootstrap_servers}"
delivery = "at-least-once"    # the in-process broker's transactions are hollow

[topics]
visit_ready = "{EVENTS}"
alerts = "{ALERTS}"
visit_summary = "{SUMMARIES}"
dead_letters = "{DEAD_LETTERS}"

[store]
database_url = "sqlite:///alertprod.sqlite"
template_index = {json.dumps(str(night_directory.resolve() / "templates/templates.json"))}

[instruments.{instrument}]
profile = {json.dumps(str(night_directory.resolve() / "profile.toml"))}

[workers]
count = 2
threads_per_worker = 1

[http]
port = {self._port}
""",
            encoding="utf-8",
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it compiles its loops while the night is simulated."""
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  our own program with our own arguments
                [sys.executable, "-m", "alertprod", "run", "--config", str(self.config_path)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def wait_ready(self) -> None:
        """Wait until it says that it is ready.

        Raises
        ------
        DemoError
            Raised if it ends, or is not ready in time.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            self.require_alive()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise DemoError(f"the daemon was not ready after {_START_TIMEOUT_S:.0f} s; see {self.log_path}")

    def require_alive(self) -> None:
        """Raise `DemoError` if it has ended."""
        if self._process is None or self._process.poll() is not None:
            status = None if self._process is None else self._process.returncode
            raise DemoError(f"the daemon ended with status {status}; see {self.log_path}")

    def stop(self) -> int:
        """Ask it to stop and return its exit status; kill it where it does not listen."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_DRAIN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


class Listener:
    """Hears alerts and summaries from before the first event, as any consumer of the topics would.

    Attributes
    ----------
    packets
        Decoded alerts in the order they came.
    latencies_s
        From shutter close to each alert's arrival here.
    summaries
        By exposure.
    n_alerts
        Alerts that came, by exposure.
    """

    def __init__(self, bootstrap_servers: str) -> None:
        self._tail = AlertTail(bootstrap_servers, [ALERTS, SUMMARIES])
        self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)
        self._stop = threading.Event()
        self._news = threading.Condition()
        self.error: Exception | None = None
        self.packets: list[dict[str, Any]] = []
        self.latencies_s: list[float] = []
        self.summaries: dict[Exposure, VisitSummary] = {}
        self.n_alerts: dict[Exposure, int] = defaultdict(int)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._tail.close()

    def wait_for(self, exposures: set[Exposure], *, timeout_s: float) -> bool:
        """Wait until each exposure has its summary and the alerts it promises; False when the time is up."""

        def complete() -> bool:
            return self.error is not None or all(
                key in self.summaries and self.n_alerts[key] >= self.summaries[key].n_alerts for key in exposures
            )

        with self._news:
            done = self._news.wait_for(complete, timeout_s)
        if self.error is not None:
            raise DemoError(f"the consumer failed: {self.error}") from self.error
        return done

    def _listen(self) -> None:
        try:
            while not self._stop.is_set():
                for message in self._tail.messages(follow=True, idle_s=0.3):
                    self._hear(message)
        except Exception as error:  # noqa: BLE001  handed to the thread that waits, which raises it
            with self._news:
                self.error = error
                self._news.notify_all()

    def _hear(self, message: Received) -> None:
        arrived = mjd_tai_from_unix(time.time())
        with self._news:
            if message.topic == SUMMARIES:
                summary = decode_visit_summary(message.value)
                self.summaries[summary.visit, summary.detector] = summary
            else:
                packet = decode_alert(message.value or b"")
                source = packet["diaSource"]
                closed = source["midpointMjdTai"] + 0.5 * source["exposureTime"] / 86400.0
                self.packets.append(packet)
                self.latencies_s.append((arrived - closed) * 86400.0)
                self.n_alerts[source["visit"], source["detector"]] += 1
            self._news.notify_all()
