"""What an exposure costs a warm worker, stage by stage, beside what a peer costs: a process of its own.

``python -m benchmarks.speed.worker JSON`` with the fields of `Case`; writes its figures to standard output as JSON.
"""

import json
import os
import pickle
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
from benchmarks.peers import NotApplicable, Peer, match_hotpants, match_photutils
from benchmarks.speed.inputs import Inputs, make_inputs
from benchmarks.speed.probes import Cost, PeakMemory, measured_stages

from alertprod.config import load_config
from alertprod.factory import WorkerPipeline
from alertprod.images.exposure import Exposure
from alertprod.service.memory import keep_freed_memory, return_free_memory
from alertprod.service.pipeline import ExposurePipeline
from alertprod.service.work import WorkOrder
from alertprod.store.database import Database
from alertprod.store.ledger import Claimed, EventPosition, ExposureKey, Ledger
from alertprod.stream.messages import VisitReady

CONFIG = """# Written by the benchmark.
[store]
database_url = "sqlite:///alertprod.sqlite"
template_index = {index}
[alerts]
max_per_exposure = 100000
[workers]
threads_per_worker = {threads}
[instruments.{instrument}]
profile = {profile}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is measured.

    Attributes
    ----------
    inputs
        Folder of rendered fields; see `make_inputs`.
    directory
        An empty folder for database, outbox and cache.
    size
        Side of the exposure, pixels.
    n_transients
        In the field; how many DiaSources they make is told.
    threads
        Of the worker.
    repeat
        Measured runs, after one that warms up.
    peers
        Time photutils and HOTPANTS in between.
    """

    inputs: str
    directory: str
    size: int
    n_transients: int
    seed: int
    threads: int
    repeat: int
    peers: bool = True


def main() -> None:
    """Measure the case of the command line."""
    found = measure(Case(**json.loads(sys.argv[1])))
    sys.stdout.write(f"\n{json.dumps(found)}\n")


def measure(case: Case) -> dict[str, Any]:
    """Return costs by stage, of every run; the numbers of sources; the peak of private memory."""
    directory = Path(case.directory)
    inputs = make_inputs(Path(case.inputs), size=case.size, n_transients=case.n_transients, seed=case.seed)
    config_path = directory / "alertprod.toml"
    instrument = inputs.night.config.instrument
    config_path.write_text(
        CONFIG.format(
            index=json.dumps(str(inputs.index_path.resolve())),
            profile=json.dumps(str(inputs.profile_path.resolve())),
            instrument=instrument,
            threads=case.threads,
        )
    )
    config = load_config(config_path)
    database = Database(config.store.open_url())
    database.upgrade()
    ledger = Ledger(database)
    # As a worker does.
    keep_freed_memory(n_threads=case.threads)
    pipeline = WorkerPipeline(config)()
    pipeline.warm_up()
    return_free_memory()
    process = psutil.Process(os.getpid())
    # Peers have a process of their own: ours keeps the memory that it frees, which is no merit of theirs.
    peers = ProcessPoolExecutor(1, mp_context=get_context("spawn")) if case.peers else None
    saturation = inputs.night.config.detector.saturation_counts
    result = None
    runs: list[dict[str, dict[str, float]]] = []
    peak = 0
    for visit in range(case.repeat + 1):
        order = claim(inputs, ledger, visit)
        with PeakMemory(lambda: [process]) as memory, measured_stages() as costs:
            started = Cost.start()
            result = pipeline.process(order)
            costs["exposure"] = started.so_far()
        if peers is not None:
            costs |= time_peers(peers, pipeline, order.event, directory / "pair.pickle", saturation=saturation)
        if visit == 0:
            # Decodes tiles into the cache, and all meet an exposure of this size for the first time.
            continue
        peak = max(peak, memory.bytes)
        runs.append({stage: asdict(cost) for stage, cost in costs.items()})
        Path(order.event.calexp_uri).unlink()
    assert result is not None
    if peers is not None:
        peers.shutdown()
    database.close()
    return {
        "n_dia_sources": result.counts["dia_sources"],
        "n_alerts": 0 if result.outbox is None else result.outbox.n_messages,
        "peak_private_bytes": peak,
        "runs": runs,
    }


def claim(inputs: Inputs, ledger: Ledger, visit: int) -> WorkOrder:
    """Return an order for a visit, claimed as the daemon does."""
    now = time.time()
    event = inputs.provide(visit, now_unix_s=now)
    position = EventPosition("visit-ready", 0, visit)
    claimed = ledger.claim(
        ExposureKey(event.instrument, event.visit, event.detector), owner="benchmark", lease_s=3600.0, event=position
    )
    assert isinstance(claimed, Claimed)
    return WorkOrder(event=event, position=position, claim=claimed, received_unix_s=now, deadline_s=3600.0)


def time_peers(
    process: ProcessPoolExecutor, pipeline: ExposurePipeline, event: VisitReady, path: Path, *, saturation: float
) -> dict[str, Cost]:
    """Return what matching the same pair costs the peers that are there; they are given pixels that are warped.

    The pair goes through a file at `path`: a pipe would take as much memory again, in threads that a worker has not.
    """
    instrument = pipeline._instruments[event.instrument]
    science = pipeline._load(event, instrument)
    template = instrument.templates.build_template(science.wcs, science.shape, event.band).exposure
    ready = instrument.task.characterizeInputs(science, template)
    with path.open("wb") as file:
        pickle.dump((ready.exposure, ready.templateExposure), file, protocol=pickle.HIGHEST_PROTOCOL)
    peers: dict[str, Peer] = {
        "photutils": match_photutils,
        "hotpants": partial(match_hotpants, saturation=saturation),
    }
    costs = {}
    for name, match in peers.items():
        try:
            costs[name] = process.submit(time_peer, match, path).result()
        except NotApplicable:
            continue
    path.unlink()
    return costs


def time_peer(match: Peer, path: Path) -> Cost:
    """Return what one peer's match of the pair in a file costs."""
    with path.open("rb") as file:
        pair: tuple[Exposure, Exposure] = pickle.load(file)
    matched = match(*pair)
    return Cost(matched.wall_s, matched.cpu_s)


if __name__ == "__main__":
    main()
