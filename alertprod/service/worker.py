"""Worker processes that compute, and the pool that starts, watches, kills and replaces them.

Forked from a server that has only imported (the loops' thread layers do not survive a fork; see
`alertprod.service.worker_server`), each behind a pipe of its own. Killed
means SIGKILL: nothing else stops compiled code. What a worker was doing when it died is the caller's business;
the pool only says so.
"""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Final, Literal

import psutil

from alertprod.config import LogConfig, WorkersConfig, limited_threads
from alertprod.errors import AlertprodError
from alertprod.logs import bind_exposure, configure_logs, get_logger
from alertprod.service.memory import keep_freed_memory, return_free_memory
from alertprod.service.work import PipelineFactory, WorkOrder, WorkResult
from alertprod.service.worker_server import CONTEXT
from alertprod.store.ledger import ClaimLost

DeathCause = Literal["crash", "deadline", "memory", "warm_up"]

_MEMORY_CHECK_S: Final = 0.5
"""Reading a process's memory costs 20 us; a worker fills a gigabyte in about this."""

_RESTART_FIRST_S: Final = 1.0
_RESTART_MAX_S: Final = 60.0
"""A worker that cannot start (database away, a bad install) is tried again ever more slowly."""

_EXIT_OUT_OF_MEMORY: Final = 86
"""Our own status for a MemoryError in a worker; no signal and no shell uses it."""

_EXIT_UNKNOWN: Final = 255
"""What multiprocessing says of every worker when the server that forked them is gone, the living among them."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A worker handed back an order."""

    ticket: int
    result: WorkResult
    seconds: float


@dataclass(frozen=True, slots=True)
class Died:
    """A worker died or was killed; `ticket` is the order it had, None where it had none."""

    ticket: int | None
    cause: DeathCause
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class StartFailed:
    """A worker could not build or warm its pipeline; it is tried again after a pause."""

    error: AlertprodError | None
    traceback: str


WorkerReport = Finished | Died | StartFailed


@dataclass(frozen=True, slots=True)
class _Ready:
    """A worker's first word: its pipeline is warm."""


@dataclass(slots=True)
class _Worker:
    number: int
    process: multiprocessing.process.BaseProcess
    connection: Connection
    itself: psutil.Process
    since: float
    factory: PipelineFactory
    state: Literal["starting", "idle", "busy"] = "starting"
    ticket: int | None = None
    deadline: float = field(default=float("inf"))


class WorkerPool:
    """A fixed number of worker processes; every method is for one thread, and none blocks.

    Parameters
    ----------
    factory
        Picklable; builds the pipeline in each worker.
    config
        Number, threads, memory limit, time to warm up.
    log
        How workers write their lines.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        factory: PipelineFactory,
        config: WorkersConfig,
        log: LogConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._factory, self._config, self._log_config, self._clock = factory, config, log, clock
        self._workers: dict[int, _Worker] = {}
        self._restart_at: dict[int, float] = dict.fromkeys(range(config.count), 0.0)
        self._failures = 0
        self._has_been_warm = False
        self._next_memory_check = 0.0
        self._log = get_logger(__name__)

    @property
    def n_idle(self) -> int:
        """Warm workers without an order, but for those about to be replaced."""
        return sum(self._is_free(worker) for worker in self._workers.values())

    @property
    def n_busy(self) -> int:
        """Workers with an order."""
        return sum(worker.state == "busy" for worker in self._workers.values())

    @property
    def n_ready(self) -> int:
        """Workers that are warm, busy or not."""
        return sum(worker.state != "starting" for worker in self._workers.values())

    def process_ids(self) -> list[int]:
        """Process ids of the living workers."""
        return [worker.itself.pid for worker in self._workers.values()]

    def submit(self, ticket: int, order: WorkOrder) -> None:
        """Give an order to an idle worker.

        Raises
        ------
        RuntimeError
            Raised if none is idle.
        """
        worker = next((worker for worker in self._workers.values() if self._is_free(worker)), None)
        if worker is None:
            raise RuntimeError("no worker is idle")
        now = self._clock()
        worker.state, worker.ticket, worker.since = "busy", ticket, now
        worker.deadline = now + order.deadline_s
        try:
            worker.connection.send(order)
        except OSError:
            self._log.debug("worker died before its order", worker=worker.number)  # `poll` finds it dead and says so

    def poll(self) -> list[WorkerReport]:
        """Start what is missing, collect what came back, kill what overran; call it often."""
        now = self._clock()
        reports: list[WorkerReport] = []
        for number, due in list(self._restart_at.items()):
            # The first compiles for all: the others find its loops on disk, where together they would each compile them.
            if now >= due and (self._has_been_warm or not self._workers):
                try:
                    self._workers[number] = self._start(number)
                except (OSError, EOFError, psutil.Error):  # no process to be had, or it or its server died at once
                    self._restart_at[number] = now + self._next_pause_s()
                    reports.append(StartFailed(None, traceback.format_exc()))
                else:
                    del self._restart_at[number]
        check_memory = now >= self._next_memory_check
        if check_memory:
            self._next_memory_check = now + _MEMORY_CHECK_S
        for worker in list(self._workers.values()):
            if worker.factory != self._factory and worker.state != "busy":
                self._retire(worker)
                continue
            report = self._collect(worker)
            if report is None:
                cause = self._overrun(worker, check_memory=check_memory)
                report = None if cause is None else self._bury(worker, cause)
            if report is not None:
                reports.append(report)
        self._has_been_warm = self._has_been_warm or self.n_ready > 0
        return reports

    def reconfigure(self, factory: PipelineFactory, config: WorkersConfig) -> None:
        """Work by another configuration: what is under way is finished, then its worker is replaced.

        Notes
        -----
        The number of workers stays as it was.
        """
        self._factory, self._config = factory, config

    def kill(self, ticket: int) -> None:
        """Kill the worker that has an order, without a report; it is replaced."""
        for worker in list(self._workers.values()):
            if worker.ticket == ticket:
                worker.ticket = None
                self._bury(worker, "crash")

    def stop(self) -> None:
        """Let idle workers go, kill the others; the pool is empty afterwards, and does not fill again."""
        self._restart_at.clear()
        for worker in self._workers.values():
            worker.connection.close()  # an idle worker takes this for its end
            if worker.state != "idle":
                _kill(worker)
        until = time.monotonic() + 2.0
        for worker in self._workers.values():
            worker.process.join(max(0.0, until - time.monotonic()))
            if _is_alive(worker):
                _kill(worker)
                worker.process.join(2.0)
            worker.process.close()
        self._workers.clear()

    def _start(self, number: int) -> _Worker:
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(
            target=_run_worker,
            args=(theirs, self._factory, self._log_config, f"worker-{number}", self._config.threads_per_worker),
            name=f"alertprod-worker-{number}",
            daemon=True,
        )
        with limited_threads(self._config.threads_per_worker):
            process.start()
        theirs.close()
        assert process.pid is not None
        self._log.info("worker started", worker=number, pid=process.pid)
        return _Worker(number, process, ours, psutil.Process(process.pid), self._clock(), self._factory)

    def _is_free(self, worker: _Worker) -> bool:
        return worker.state == "idle" and worker.factory == self._factory

    def _retire(self, worker: _Worker) -> None:
        """End a worker of an earlier configuration; its successor starts at once."""
        self._log.info("worker replaced: the configuration changed", worker=worker.number)
        _kill(worker)
        worker.process.join(1.0)
        worker.connection.close()
        del self._workers[worker.number]
        self._restart_at[worker.number] = self._clock()

    def _collect(self, worker: _Worker) -> WorkerReport | None:
        """Take what a worker sent; or find it dead."""
        try:
            message = worker.connection.recv() if worker.connection.poll() else None
        except (EOFError, OSError):
            worker.process.join(1.0)
            message = None
            if worker.process.exitcode in (None, _EXIT_UNKNOWN):  # closed its pipe, and may live on: of no more use
                return self._bury(worker, "warm_up" if worker.state == "starting" else "crash")
        match message:
            case _Ready():
                worker.state, self._failures = "idle", 0
                self._log.info("worker is warm", worker=worker.number, seconds=round(self._clock() - worker.since, 3))
                return None
            case WorkResult():
                assert worker.ticket is not None
                report = Finished(worker.ticket, message, self._clock() - worker.since)
                worker.state, worker.ticket, worker.deadline = "idle", None, float("inf")
                return report
            case StartFailed():
                self._bury(worker, "warm_up")
                return message
        if worker.process.exitcode in (None, _EXIT_UNKNOWN):  # its pipe is open: it lives
            return None
        if worker.state == "starting":
            return self._bury(worker, "warm_up")
        return self._bury(worker, "memory" if worker.process.exitcode == _EXIT_OUT_OF_MEMORY else "crash")

    def _overrun(self, worker: _Worker, *, check_memory: bool) -> DeathCause | None:
        now = self._clock()
        if worker.state == "starting" and now - worker.since > self._config.warm_up_timeout_s:
            return "warm_up"
        if worker.state == "busy" and now > worker.deadline:
            return "deadline"
        if check_memory and _private_bytes(worker.itself) > self._config.memory_limit_bytes:
            return "memory"
        return None

    def _bury(self, worker: _Worker, cause: DeathCause) -> Died:
        """Kill a worker if it lives, and plan its successor: at once, or after a pause where it never got warm."""
        _kill(worker)
        worker.process.join(1.0)
        exit_code = worker.process.exitcode
        worker.connection.close()
        del self._workers[worker.number]
        pause = self._next_pause_s() if cause == "warm_up" else 0.0
        self._restart_at[worker.number] = self._clock() + pause
        self._log.warning("worker died", worker=worker.number, cause=cause, exit_code=exit_code, restart_in_s=pause)
        return Died(worker.ticket, cause, exit_code)

    def _next_pause_s(self) -> float:
        pause_s = min(_RESTART_MAX_S, _RESTART_FIRST_S * 2.0**self._failures)
        self._failures += 1
        return pause_s


def _kill(worker: _Worker) -> None:
    """Kill a worker by its own process id: multiprocessing does not where it takes it for dead with its server."""
    with suppress(psutil.NoSuchProcess):
        worker.itself.kill()


def _is_alive(worker: _Worker) -> bool:
    try:
        return bool(worker.itself.is_running() and worker.itself.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _private_bytes(process: psutil.Process) -> int:
    """Resident memory that is this process's alone as far as the kernel says: mapped template tiles are shared."""
    try:
        memory = process.memory_info()
    except psutil.Error:  # it has just died; `_collect` will find it
        return 0
    return int(memory.rss) - int(getattr(memory, "shared", 0))


def _run_worker(
    connection: Connection, factory: PipelineFactory, log_config: LogConfig, name: str, n_threads: int
) -> None:
    """Be a worker: build the pipeline, warm it, answer orders until the pipe closes."""
    # The server's environment is that of its start; what is imported from here on reads this.
    with limited_threads(n_threads):
        _work(connection, factory, log_config, name, n_threads)


def _work(connection: Connection, factory: PipelineFactory, log_config: LogConfig, name: str, n_threads: int) -> None:
    # A terminal's Ctrl-C, its end and a supervisor's SIGTERM reach the whole group; the daemon decides when workers end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    configure_logs(log_config, process=name)
    keep_freed_memory(n_threads=n_threads)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    log = get_logger(__name__)
    try:
        pipeline = factory()
        pipeline.warm_up()
        return_free_memory()  # all that compiling took
    except Exception as error:  # noqa: BLE001 - the daemon logs it and decides
        expected = error if isinstance(error, AlertprodError) else None
        connection.send(StartFailed(expected, traceback.format_exc()))
        return
    connection.send(_Ready())
    while True:
        try:
            order: WorkOrder = connection.recv()
        except EOFError:
            return
        event = order.event
        with bind_exposure(instrument=event.instrument, visit=event.visit, detector=event.detector):
            started = time.monotonic()
            try:
                result = pipeline.process(order)
            except MemoryError:
                log.exception("out of memory")
                os._exit(_EXIT_OUT_OF_MEMORY)
            except ClaimLost:
                result = WorkResult(outcome="claim_lost")
            except AlertprodError as error:
                result = WorkResult(outcome="failed", error=error)
            except Exception:  # noqa: BLE001 - a bug: the daemon logs the traceback with the event
                result = WorkResult(outcome="failed", traceback=traceback.format_exc())
            log.debug("order done", outcome=result.outcome, seconds=round(time.monotonic() - started, 3))
            _send_result(connection, result)


def _send_result(connection: Connection, result: WorkResult) -> None:
    try:
        connection.send(result)
    except (TypeError, AttributeError, ValueError) as error:  # what pickle raises for what it cannot pickle
        text = f"the result cannot be pickled: {error!r}\n{result.traceback or result.error!r}"
        connection.send(WorkResult(outcome="failed", traceback=text))


def _end_with_parent() -> None:
    """End this process when the daemon's has: an orphan would go on computing for nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
