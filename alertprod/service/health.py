"""What supervisors, Prometheus and people ask: /livez, /readyz, /startupz, /metrics, /status; on loopback by default.

Started means that it was ready once. Alive means that the poll loop turns and no desk is stuck in a call; ready means
that work would get done. A daemon without work is all three, and says ``idle``; one that must be restarted says ``wedged``.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

from alertprod.config import HttpConfig
from alertprod.errors import ConfigError
from alertprod.logs import get_logger
from alertprod.service.recent import Recent

HEARTBEAT_LIMIT_S: Final = 30.0
"""The loop turns every second; a rebalance may hold it up for 20. After this it hangs."""


class Health:
    """What the daemon says of itself; thread-safe.

    Parameters
    ----------
    clock
        Monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._beat_at = clock()
        self._problems: dict[str, str] = {"start": "the daemon has not started"}
        self._desks: list[tuple[str, Callable[[], float], float]] = []
        self._has_started = False
        self._inflight = 0
        self._event_at: float | None = None

    def beat(self) -> None:
        """Say that the loop turned."""
        self._beat_at = self._clock()

    def set_problem(self, part: str, problem: str | None) -> None:
        """Say what keeps a part (workers, store, broker, …) from working; None: nothing does."""
        with self._lock:
            if problem is None:
                self._problems.pop(part, None)
            else:
                self._problems[part] = problem
            self._has_started = self._has_started or not self._problems

    def watch(self, name: str, busy_for_s: Callable[[], float], *, limit_s: float) -> None:
        """Ask something that may hang how long it has been at one thing; more than `limit_s` is wedged."""
        self._desks.append((name, busy_for_s, limit_s))

    def set_activity(self, *, inflight: int, event_at: float | None) -> None:
        """Say how many exposures are in flight, and when the last event came (this clock's seconds)."""
        self._inflight, self._event_at = inflight, event_at

    @property
    def has_started(self) -> bool:
        """Whether the daemon was ready once."""
        return self._has_started

    def live(self) -> tuple[bool, str]:
        """Return whether the loop turns and nothing hangs, and what of the two is not so."""
        age = self._clock() - self._beat_at
        if age >= HEARTBEAT_LIMIT_S:
            return False, f"the loop turned {age:.1f} s ago"
        for name, busy_for_s, limit_s in self._desks:
            if (busy_s := busy_for_s()) > limit_s:
                return False, f"the {name} has been at one thing for {busy_s:.0f} s"
        return True, f"the loop turned {age:.1f} s ago"

    def describe(self) -> dict[str, Any]:
        """Return what /livez says: ``state`` is starting, idle, working or wedged."""
        live, text = self.live()
        if not live:
            state = "wedged"
        elif not self._has_started:
            state = "starting"
        else:
            state = "working" if self._inflight else "idle"
        quiet_s = None if self._event_at is None else round(self._clock() - self._event_at, 1)
        return {"live": live, "state": state, "loop": text, "inflight": self._inflight, "last_event_s_ago": quiet_s}

    def problems(self) -> Mapping[str, str]:
        """Return what keeps the daemon from being ready."""
        with self._lock:
            return dict(self._problems)


class HealthServer:
    """Serves `Health` and metrics over HTTP, each request on a thread of its own.

    Parameters
    ----------
    config
        Where to listen.
    health
        What to say.
    render_metrics
        Returns Prometheus' text format and its content type, given what the scraper accepts.
    recent
        What /status says of exposures; None: nothing.

    Raises
    ------
    ConfigError
        Raised on entry if the port is taken or the host is not this one.
    """

    def __init__(
        self,
        config: HttpConfig,
        health: Health,
        render_metrics: Callable[[str], tuple[bytes, str]],
        recent: Recent | None = None,
    ) -> None:
        self._config, self._health, self._render = config, health, render_metrics
        self._recent = recent or Recent()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int | None:
        """The port that is listened on; None while none is."""
        return None if self._server is None else int(self._server.server_address[1])

    def __enter__(self) -> Self:
        if not self._config.enabled:
            return self
        parts = {"health": self._health, "render": staticmethod(self._render), "recent": self._recent}
        handler = type("Handler", (_Handler,), parts)
        address = (self._config.host, self._config.port)
        try:
            self._server = ThreadingHTTPServer(address, handler)
        except (OSError, OverflowError) as error:
            where = f"{self._config.host}:{self._config.port}"
            raise ConfigError("configuration", "http.port", f"cannot listen on {where}: {error}") from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()
        get_logger(__name__).info("listening for health and metrics", host=self._config.host, port=self.port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join(5.0)
            self._server.server_close()
            self._server = None


_PATHS: Final = b"/livez /readyz /startupz /metrics /status\n"


class _Handler(BaseHTTPRequestHandler):
    health: Health
    render: Callable[[str], tuple[bytes, str]]
    recent: Recent
    timeout = 10.0  # a client that sends nothing must not keep a thread
    server_version = "alertprod"

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/livez":
                facts = self.health.describe()
                self._answer(facts["live"], facts)
            case "/startupz":
                started = self.health.has_started
                self._answer(started, {"started": started, "problems": dict(self.health.problems())})
            case "/readyz":
                problems = self.health.problems()
                self._answer(not problems, {"ready": not problems, "problems": dict(problems)})
            case "/metrics":
                body, content_type = self.render(self.headers.get("Accept", ""))
                self._send(HTTPStatus.OK, content_type, body)
            case "/status":
                problems = dict(self.health.problems())
                self._answer(True, {**self.health.describe(), "problems": problems, **self.recent.describe()})
            case _:
                self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", _PATHS)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Leave requests out of the log: there is one every few seconds."""

    def _answer(self, is_good: bool, facts: Mapping[str, Any]) -> None:  # noqa: FBT001 - the answer itself
        status = HTTPStatus.OK if is_good else HTTPStatus.SERVICE_UNAVAILABLE
        self._send(status, "application/json", json.dumps(facts).encode() + b"\n")

    def _send(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
