"""From an event to its committed alerts, and from the start of a daemon to its being ready: ``alertprod run`` itself.

The daemon, its workers and the broker are processes of their own, and the broker's CPU is not counted. The broker is the
embedded one, whose transactions are hollow: committing costs what the daemon pays for it, not what Kafka does.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from benchmarks.speed.inputs import Inputs
from benchmarks.speed.probes import PeakMemory

from alertprod.cli.demo_night import EVENTS, SUMMARIES, TOPICS, DaemonProcess
from alertprod.stream.embedded import EmbeddedBroker
from alertprod.stream.messages import decode_visit_summary, encode_visit_ready
from alertprod.stream.producer import AlertProducer
from alertprod.stream.records import OutgoingMessage
from alertprod.stream.tail import AlertTail

_TIMEOUT_S = 600.0


def measure_chain(inputs: Inputs, *, threads: int, repeat: int) -> dict[str, Any]:
    """Return wall and CPU seconds from the sending of an event to its summary, committed with the alerts, for each run.

    Notes
    -----
    One exposure goes before, which fills the template cache.
    """
    runs: list[dict[str, float]] = []
    with (
        tempfile.TemporaryDirectory(prefix="alertprod-bench-") as folder,
        EmbeddedBroker(TOPICS, own_process=True) as broker,
        running_daemon(Path(folder), inputs, broker.bootstrap_servers, threads=threads) as (process, _),
        AlertProducer(broker.bootstrap_servers) as producer,
        AlertTail(broker.bootstrap_servers, [SUMMARIES]) as tail,
    ):
        peak = 0
        for visit in range(repeat + 1):
            event = inputs.provide(visit, now_unix_s=time.time())
            message = OutgoingMessage(topic=EVENTS, key=event.key, value=encode_visit_ready(event))
            cpu, started = count_cpu(process), time.perf_counter()
            with PeakMemory(lambda: process.children(recursive=True)) as memory:
                producer.publish([message])
                summary = wait_for_summary(tail)
            wall = time.perf_counter() - started
            if summary.outcome != "published":
                msg = f"the exposure was {summary.outcome}: {summary.reason}"
                raise RuntimeError(msg)
            if visit > 0:
                peak = max(peak, memory.bytes)
                runs.append({"wall_s": wall, "cpu_s": count_cpu(process) - cpu, "n_alerts": summary.n_alerts})
                Path(event.calexp_uri).unlink()
    return {"runs": runs, "peak_private_bytes": peak}


def measure_start(inputs: Inputs, *, threads: int, repeat: int) -> dict[str, Any]:
    """Return wall and CPU seconds from start to ready, with a compiled cache that is empty and with one that is not."""
    runs: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    with EmbeddedBroker(TOPICS, own_process=True) as broker:
        for number in range(repeat + 1):
            kind = "warm" if number else "cold"
            with (
                tempfile.TemporaryDirectory(prefix="alertprod-bench-") as folder,
                tempfile.TemporaryDirectory(prefix="alertprod-cache-") as empty,
            ):
                # The program's own cache is warm: it has just run here.
                changes = {} if number else {"NUMBA_CACHE_DIR": empty}
                started = time.perf_counter()
                with (
                    changed_environment(changes),
                    running_daemon(Path(folder), inputs, broker.bootstrap_servers, threads=threads) as (process, ready),
                ):
                    runs[kind].append({"wall_s": ready - started, "cpu_s": count_cpu(process)})
    return runs


@contextmanager
def running_daemon(
    folder: Path, inputs: Inputs, bootstrap_servers: str, *, threads: int
) -> Iterator[tuple[psutil.Process, float]]:
    """Run ``alertprod run`` with one worker; give its process, and when it was ready."""
    settings = {
        "ALERTPROD_WORKERS__COUNT": "1",
        "ALERTPROD_WORKERS__THREADS_PER_WORKER": str(threads),
        "ALERTPROD_ALERTS__MAX_PER_EXPOSURE": "100000",
    }
    daemon = DaemonProcess(
        folder,
        bootstrap_servers=bootstrap_servers,
        night_directory=inputs.night.directory,
        instrument=inputs.night.config.instrument,
    )
    with changed_environment(settings):
        daemon.start()
    try:
        daemon.wait_ready()
        ready = time.perf_counter()
        (process,) = (child for child in psutil.Process().children() if is_ours(child, folder))
        yield process, ready
    finally:
        daemon.stop()


def is_ours(process: psutil.Process, folder: Path) -> bool:
    """Say whether a process was started with this folder's configuration."""
    try:
        return any(str(folder) in argument for argument in process.cmdline())
    except psutil.Error:  # ended in the meantime
        return False


def wait_for_summary(tail: AlertTail) -> Any:
    """Return the next visit summary."""
    until = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < until:
        for message in tail.messages(follow=True, idle_s=1.0):
            return decode_visit_summary(message.value)
    msg = f"no visit summary within {_TIMEOUT_S:.0f} s"
    raise RuntimeError(msg)


def count_cpu(process: psutil.Process) -> float:
    """Return the CPU seconds of a process and of all below it so far."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.Error:  # ended in the meantime
            continue
        total += times.user + times.system
    return total


@contextmanager
def changed_environment(changes: dict[str, str]) -> Iterator[None]:
    """Set variables of the environment for the processes that are started within."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
