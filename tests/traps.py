"""Traps: a daemon or a worker of the tests dies, by SIGKILL, or waits, at a place that a test has chosen beforehand.

A trap is a file, so that it can be set from another process and springs once, whoever comes by first.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import psutil

P = ParamSpec("P")
R = TypeVar("R")

DAEMON_PLACES = ("receive", "claim", "publish", "commit", "committed", "settle")
"""In the daemon: before decoding; after the claim; before the transaction; with all of it sent and nothing committed;
after its commit; after the ledger was told."""

BETWEEN_ALERTS_AND_OFFSET = "offsets"
"""In the daemon, at-least-once: the alerts are acknowledged, the offset is not committed yet."""

WORKER_PLACES = ("compute", "outbox", "stored")
"""In a worker: before anything; with the outbox file there and no row; with the row stored and nobody told."""


_WAITS = "waits"


def set_trap(folder: Path, place: str, *, victim: str) -> None:
    """Let the next that comes by `place` die: ``daemon`` or ``worker``."""
    (folder / "traps").mkdir(exist_ok=True)
    (folder / "traps" / place).write_text(victim)


def hold_up(folder: Path, place: str) -> None:
    """Let the next that comes by `place` wait there until `let_go`."""
    set_trap(folder, place, victim=_WAITS)


def let_go(folder: Path, place: str) -> None:
    (folder / "traps" / f"{place}.go").touch()


def has_sprung(folder: Path, place: str) -> bool:
    return not (folder / "traps" / place).exists()


def pass_by(folder: Path, place: str, *, in_worker: bool = False) -> None:
    """Die if a trap is set here."""
    trap = folder / "traps" / place
    try:
        victim = trap.read_text()
        trap.unlink()
    except FileNotFoundError:
        return
    if victim == _WAITS:
        go = trap.with_name(f"{place}.go")
        while not go.exists():
            time.sleep(0.02)
        go.unlink()
        return
    if in_worker and victim == "daemon":
        kill_daemon()
    else:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600.0)  # the daemon is dead: whoever watches for that ends this process


def kill_daemon() -> None:
    """From a worker: its parent is the server that forked it, and that one's is the daemon."""
    os.kill(psutil.Process(os.getppid()).ppid(), signal.SIGKILL)


def lay_in_daemon(folder: Path) -> None:
    """Put the daemon's places where they belong, in this process."""
    from alertprod.service import steps
    from alertprod.stream.consumer import EventConsumer
    from alertprod.stream.producer import AlertProducer

    def before(call: Callable[P, R], place: str) -> Callable[P, R]:
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            pass_by(folder, place)
            return call(*args, **kwargs)

        return wrapped

    def after(call: Callable[P, R], place: str) -> Callable[P, R]:
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            result = call(*args, **kwargs)
            pass_by(folder, place)
            return result

        return wrapped

    steps.receive = before(steps.receive, "receive")
    steps.claim = after(steps.claim, "claim")
    steps.publish = after(before(steps.publish, "publish"), "committed")
    steps.settle = after(steps.settle, "settle")
    # Ignored: a method of the class itself is replaced, so that whoever made the object meets the trap.
    AlertProducer._commit = before(AlertProducer._commit, "commit")  # type: ignore[method-assign]
    EventConsumer.commit = before(EventConsumer.commit, BETWEEN_ALERTS_AND_OFFSET)  # type: ignore[method-assign]
