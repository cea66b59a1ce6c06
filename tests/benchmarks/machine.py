"""The machine and the version that figures were measured on, without its name."""

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import psutil

from alertprod import __version__

_PACKAGES = ("numpy", "scipy", "numba", "astropy", "confluent-kafka", "fastavro")


def describe_machine() -> dict[str, object]:
    """Return processor, cores, memory, versions, the commit and how busy the machine was."""
    return {
        "alertprod": __version__,
        "commit": find_commit(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "processor": _find_processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        **{name: version(name) for name in _PACKAGES},
    }


def _find_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def find_commit(revision: str | None = None) -> str:
    """Return what a revision, by default the working tree with what is changed in it, is called; "unknown" without Git."""
    arguments = ["git", "describe", "--always", revision or "--dirty"]
    try:
        found = subprocess.run(
            arguments, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()
