"""Work spread over processes: each does one thing after another, and the death of one costs what it had in hand.

Spawned, never forked: the compiled loops' thread layers do not survive a fork.
"""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final, Generic, TypeVar

from alertprod.config import limited_threads

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_CONTEXT: Final = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class ProcessDeath:
    """What there is of an item whose process died or hung."""

    cause: str


@dataclass(slots=True)
class _Worker(Generic[_Item]):
    process: BaseProcess
    connection: Connection
    index: int
    item: _Item
    deadline: float = float("inf")


@dataclass(frozen=True, slots=True)
class _Ready:
    """A process's first word."""


@dataclass(frozen=True, slots=True)
class _Raised:
    error: BaseException


def map_in_processes(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    *,
    n_processes: int,
    timeout_s: float,
    threads: int = 1,
) -> Iterator[tuple[int, _Result | ProcessDeath]]:
    """Call a function on each item; yield (index, result) as they come.

    Parameters
    ----------
    function, items
        Picklable, and so are the results.
    n_processes
        That run at a time.
    timeout_s
        Of one item: its process is killed then.
    threads
        Of each process's compiled loops.

    Raises
    ------
    Exception
        Raised if `function` does: what it raised. The other processes are killed then, as they are when the caller
        stops asking.
    """
    waiting = list(enumerate(items))[::-1]
    workers: list[_Worker[_Item]] = []
    try:
        while waiting or workers:
            while waiting and len(workers) < n_processes:
                workers.append(_start(function, threads, *waiting.pop()))
            due = min(worker.deadline for worker in workers) - time.monotonic()
            ready = wait([worker.connection for worker in workers], timeout=max(0.0, min(due, _LONGEST_WAIT_S)))
            now = time.monotonic()
            for worker in list(workers):
                if worker.connection in ready:
                    answer = _receive(worker)
                elif now > worker.deadline:
                    answer = ProcessDeath(f"not done after {timeout_s:g} s")
                else:
                    continue
                if isinstance(answer, _Raised):
                    raise answer.error
                if isinstance(answer, _Ready):
                    _give(worker, timeout_s)
                    continue
                index = worker.index
                if isinstance(answer, ProcessDeath) or not waiting:
                    workers.remove(worker)
                    _end(worker)
                else:
                    worker.index, worker.item = waiting.pop()
                    _give(worker, timeout_s)
                yield index, answer
    finally:
        for worker in workers:
            _end(worker)


_LONGEST_WAIT_S = 3600.0
"""Some systems do not take a month for a timeout."""


def _start(function: Callable[[_Item], Any], threads: int, index: int, item: _Item) -> _Worker[_Item]:
    """Start a process that gets its first item when it is ready: what it must import is not the item's time."""
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_work, args=(theirs, function), daemon=True)
    with limited_threads(threads):
        process.start()
    theirs.close()
    return _Worker(process, ours, index, item)


def _give(worker: _Worker[Any], timeout_s: float) -> None:
    worker.deadline = time.monotonic() + timeout_s
    try:
        worker.connection.send(worker.item)
    except OSError:
        worker.deadline = float("inf")  # it is dead: its closed pipe says so next


def _receive(worker: _Worker[Any]) -> Any:
    try:
        return worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join(1.0)
        code = worker.process.exitcode
        return ProcessDeath(
            f"its process died, killed by signal {-code}"
            if code and code < 0
            else f"its process ended with status {code}"
        )


def _end(worker: _Worker[Any]) -> None:
    worker.connection.close()
    worker.process.kill()
    worker.process.join(1.0)


def _work(connection: Connection, function: Callable[[Any], Any]) -> None:
    # A terminal's Ctrl-C reaches the whole group; the parent ends its processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection.send(_Ready())
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            answer = function(item)
        except Exception as error:  # noqa: BLE001  the parent raises it
            answer = _Raised(error)
        connection.send(answer)
