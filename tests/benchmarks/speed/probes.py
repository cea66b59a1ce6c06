"""Wall and CPU seconds of places in the program, and the memory of a process: nothing of the program is repeated here."""

import functools
import importlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import psutil

STAGES: Mapping[str, str] = {
    "read": "alertprod.store.images:ImageStore.load",
    "template": "alertprod.store.templates:TemplateStore.build_template",
    "characterize": "alertprod.tasks.image_difference:ImageDifferenceTask.characterizeInputs",
    "fit kernel": "alertprod.subtraction.alard_lupton:fit_kernel",
    "convolve": "alertprod.subtraction.alard_lupton:convolve_masked_image",
    "subtract": "alertprod.subtraction.alard_lupton:subtract_matched",
    "decorrelate": "alertprod.tasks.decorrelate:DecorrelateALKernelSpatialTask.run",
    "detect": "alertprod.tasks.image_difference:detect",
    "measure": "alertprod.tasks.image_difference:measure",
    "judge": "alertprod.tasks.image_difference:record_metrics",
    "cutouts": "alertprod.service.packaging:make_cutouts",
    "history": "alertprod.service.pipeline:ExposurePipeline.read_history",
    "associate": "alertprod.service.packaging:associate",
    "packets": "alertprod.service.packaging:Packaged.messages",
    "store": "alertprod.service.pipeline:ExposurePipeline.store_alerts",
}
"""A worker's stages, in their order, and the function or method of each, where it is called from."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "subtraction": ("template", "fit kernel", "convolve", "subtract", "decorrelate"),
    "sources": ("detect", "measure"),
}
"""What targets are set for: warp, match, subtract and decorrelate; detect, measure and force."""

_SAMPLE_S = 0.02


@dataclass(frozen=True, slots=True)
class Cost:
    """What something took."""

    wall_s: float
    cpu_s: float

    @classmethod
    def start(cls) -> Self:
        """Return the clocks' readings of now."""
        return cls(time.perf_counter(), time.process_time())

    def so_far(self) -> "Cost":
        """Return what passed since the readings."""
        return Cost(time.perf_counter() - self.wall_s, time.process_time() - self.cpu_s)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


@contextmanager
def measured_stages() -> Iterator[dict[str, Cost]]:
    """Give a dictionary that fills with the cost of each stage that is gone through within the block."""
    costs: dict[str, Cost] = {}
    undo: list[Callable[[], None]] = []
    try:
        for stage, place in STAGES.items():
            module, _, path = place.partition(":")
            owner_path, _, name = path.rpartition(".")
            owner = functools.reduce(getattr, filter(None, owner_path.split(".")), importlib.import_module(module))
            original = getattr(owner, name)
            setattr(owner, name, _measured(original, stage, costs))
            undo.append(functools.partial(setattr, owner, name, original))
        yield costs
    finally:
        for restore in undo:
            restore()


def _measured(function: Callable, stage: str, costs: dict[str, Cost]) -> Callable:
    @functools.wraps(function)
    def wrapper(*arguments: object, **named: object) -> object:
        started = Cost.start()
        try:
            result = function(*arguments, **named)
            # What is made as it is asked for costs where it is asked for.
            return list(result) if isinstance(result, Iterator) else result
        finally:
            costs[stage] = costs.get(stage, Cost(0.0, 0.0)) + started.so_far()

    return wrapper


class PeakMemory:
    """Watches the private memory of processes from a thread, within a context.

    Attributes
    ----------
    bytes
        The most that one of them had: resident, less what is shared with files, as the worker pool counts it.
    """

    def __init__(self, processes: Callable[[], list[psutil.Process]]) -> None:
        self._processes = processes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            for process in self._processes():
                try:
                    memory = process.memory_info()
                except psutil.Error:  # it has just ended
                    continue
                self.bytes = max(self.bytes, memory.rss - getattr(memory, "shared", 0))
