"""A real Prometheus, a real Alertmanager and a webhook on loopback, with the files of ops/prometheus, for one test."""

import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

OPS = Path(__file__).resolve().parents[1] / "ops"
READY_S = 30.0


class ServerMissing(Exception):
    """A program is not installed; the text is the reason to skip."""


def find_program(*names: str) -> str:
    """Return the path of the first of these programs that is there."""
    for name in names:
        if (path := shutil.which(name)) is not None:
            return path
    raise ServerMissing(f"{' or '.join(names)} is not installed (Debian: prometheus, prometheus-alertmanager)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Webhook:
    """Takes what Alertmanager sends: `messages` are (path, body)."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, dict[str, Any]]] = []
        messages = self.messages

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                messages.append((self.path, body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def alerts(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        """Return path and alert of every firing alert of this name that came."""
        return [
            (path, alert)
            for path, body in list(self.messages)
            for alert in body["alerts"]
            if alert["labels"]["alertname"] == name and alert["status"] == "firing"
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Watch:
    """Prometheus scraping `target` each second, Alertmanager behind it, a webhook behind that.

    Notes
    -----
    Rules and routes are those of ops/prometheus; addresses are ours, and waits of minutes are seconds.
    """

    def __init__(self, folder: Path, *, target: str) -> None:
        prometheus = find_program("prometheus")
        alertmanager = find_program("prometheus-alertmanager", "alertmanager")
        folder.mkdir()
        self.folder, self.webhook = folder, Webhook()
        ours, theirs = free_port(), free_port()
        self.url = f"http://127.0.0.1:{ours}"
        rules = (OPS / "prometheus" / "rules.yml").read_text()
        (folder / "rules.yml").write_text(
            re.sub(r"\b(for|keep_firing_for): \d+[mh]$", r"\1: 2s", rules, flags=re.MULTILINE)
        )
        config = (OPS / "prometheus" / "prometheus.yml").read_text()
        config = config.replace("alertprod:9117", target).replace("alertmanager:9093", f"127.0.0.1:{theirs}")
        (folder / "prometheus.yml").write_text(config.replace("_interval: 15s", "_interval: 1s"))
        routes = (OPS / "prometheus" / "alertmanager.yml").read_text().replace(":9199/", f":{self.webhook.port}/")
        (folder / "alertmanager.yml").write_text(routes.replace("group_wait: 30s", "group_wait: 1s"))
        self._processes = [
            self._start(
                alertmanager, "--config.file=alertmanager.yml", "--storage.path=alerts", "--cluster.listen-address=",
                f"--web.listen-address=127.0.0.1:{theirs}",
            ),
            self._start(
                prometheus, "--config.file=prometheus.yml", "--storage.tsdb.path=data",
                f"--web.listen-address=127.0.0.1:{ours}", "--enable-feature=exemplar-storage",
            ),
        ]  # fmt: skip
        self.wait_until(lambda: self._is_ready(self.url) and self._is_ready(f"http://127.0.0.1:{theirs}"))

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{Path(command[0]).name}.log").open("wb") as log:
            return subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    @staticmethod
    def _is_ready(url: str) -> bool:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        self.webhook.close()

    def ask(self, path: str, **parameters: object) -> Any:
        """Return the data of Prometheus' answer."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from error

    def query(self, expr: str, *, at: float | None = None) -> list[dict[str, Any]]:
        """Return the series of an expression, now or at a time (seconds since 1970)."""
        moment = {} if at is None else {"time": at}
        return self.ask("query", query=expr, **moment)["result"]

    def value(self, expr: str) -> float:
        """Return the one value of an expression; NaN where there is none."""
        result = self.query(expr)
        return float(result[0]["value"][1]) if result else float("nan")

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}

    def wait_until(self, condition: Callable[[], object], *, timeout_s: float = READY_S) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            for process in self._processes if hasattr(self, "_processes") else ():
                assert process.poll() is None, [path.read_text()[-2000:] for path in self.folder.glob("*.log")]
            assert time.monotonic() < until, f"not within {timeout_s} s; {self.webhook.messages}"
            time.sleep(0.1)
