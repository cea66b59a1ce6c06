"""What an exposure and its alerts cost, for the capacity plan.

::

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python tests/benchmarks/measure_capacity.py

Prints the costs as TOML; ``--out alertprod/sim/costs.toml`` writes those that ``alertprod simulate plan`` takes by default.
Pixels are measured in CPU seconds of one thread, waits of publisher and database as the shortest of several, which a
machine that does other things too lengthens least. A Kafka of the benchmark's own is started; without Java say
``--embedded``, and the broker's share is left as the file has it.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import psutil
import pyarrow
from kafka_broker import KafkaBroker
from measure_alerts import INFO, cut, make_association, make_image, make_sources

from alertprod.alerts.packet import make_messages
from alertprod.cli.simulate_load import run_load
from alertprod.config import DaemonConfig, InstrumentConfig, StoreConfig, WorkersConfig
from alertprod.factory import WorkerPipeline
from alertprod.service.memory import keep_freed_memory, return_free_memory
from alertprod.service.work import WorkOrder
from alertprod.sim.capacity import AlertCosts, Costs, DaemonCosts, ExposureCosts
from alertprod.sim.load import INSTRUMENT, LoadConfig, make_visit
from alertprod.sim.load_pipeline import LoadPipelineFactory, StageModel
from alertprod.sim.night import NightConfig, make_night
from alertprod.store.database import Database
from alertprod.store.ledger import EventPosition, ExposureKey, Ledger
from alertprod.store.template_index import index_templates
from alertprod.stream.embedded import EmbeddedBroker
from alertprod.stream.messages import VisitReady
from alertprod.stream.producer import AlertProducer
from alertprod.stream.records import OutgoingMessage

THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
ALERTS = 212
"""Of an exposure: Rubin's peak."""
HISTORY = 20
"""Sources, and forced sources, of an object's past."""
TRANSACTIONS = 4
"""Of the database for an exposure: claim, store, settle, and a renewal of its lease, which comes every ten seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--visits", type=int, default=6, help="of the small night that the scatter is taken from")
    parser.add_argument("--night", type=Path, help="what `alertprod simulate` made of this size, in place of a new one")
    parser.add_argument("--embedded", action="store_true", help="no Kafka: the broker's share stays as it is")
    parser.add_argument("--out", type=Path, help="write there")
    options = parser.parse_args()
    if {os.environ.get(name) for name in THREADS} != {"1"}:
        parser.error(f"set {' and '.join(THREADS)} to 1: a planned worker has one thread")
    with tempfile.TemporaryDirectory(prefix="alertprod-capacity-") as scratch:
        folder = Path(scratch)
        alert = measure_alert()
        daemon = measure_daemon(folder, alert.bytes, embedded=options.embedded)
        exposure = measure_exposure(folder, options.night, options.size, options.visits)
    text = describe(Costs(exposure=exposure, daemon=daemon, alert=alert), options)
    sys.stdout.write(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


def say(what: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {what}\n")


def describe(costs: Costs, options: argparse.Namespace) -> str:
    command = (
        f"OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python tests/benchmarks/measure_capacity.py --size {options.size}"
        + " --embedded" * options.embedded
    )
    lines = [
        "# What an exposure and its alerts cost; made by the command below, do not edit.",
        f"# {command}",
        f"# {time.strftime('%Y-%m-%d')}, {platform.machine()}, {_cpu_name()}, {psutil.cpu_count()} cores",
    ]
    for name, section in asdict(costs).items():
        lines += ["", f"[{name}]", *(f"{key} = {value:.4g}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def measure_alert() -> AlertCosts:
    """Encode alerts with a history, and compress each alone: the same PSF in all of them, which is ours, is no saving."""
    say("alerts")
    rng = np.random.default_rng(1)
    images = [make_image(rng) for _ in range(3)]
    sources = make_sources(rng, 100)
    messages = list(make_messages(make_association(rng, sources, HISTORY), cut(sources, images).triplets, INFO))
    n_bytes = sum(len(message.value) for message in messages)
    n_packed = sum(len(pyarrow.compress(message.value, codec="zstd", asbytes=True)) for message in messages)
    return AlertCosts(bytes=n_bytes / len(messages), wire_ratio=n_packed / n_bytes)


def measure_exposure(folder: Path, night: Path | None, size: int, visits: int) -> ExposureCosts:
    """Run a worker's pipeline on one large exposure, and on a small night for the scatter."""
    if night is None:
        say(f"rendering {size}²")
        night = folder / "night"
        make_night(night, NightConfig(n_visits=1, n_detectors=1, size=size), processes=1)
    say("an exposure, three times: the first compiles and reads the tiles")
    keep_freed_memory(n_threads=1)  # as a worker does
    worker = Worker(folder / "large", night)
    (event,) = read_events(night)
    worker.process(event)
    cpu = min(worker.process(event, again=True)[0] for _ in range(2))
    memory = psutil.Process().memory_info()
    peak = _peak_bytes() - int(memory.shared)
    small = folder / "small"
    say("a small night")
    made = make_night(small, NightConfig(n_visits=visits, n_detectors=1, size=1024, seed=5), processes=1)
    worker_small = Worker(folder / "small-site", made.directory)
    seconds = [worker_small.process(each)[0] for each in read_events(small)]
    return ExposureCosts(
        wall_s=cpu,
        cpu_s=cpu,
        spread=float(np.log(seconds[1:]).std(ddof=1)),
        memory_bytes=peak,
        image_bytes=Path(event.calexp_uri).stat().st_size,
        tile_bytes=float(worker.cache_bytes()),
        tile_file_bytes=float(sum(path.stat().st_size for path in (night / "templates").glob("*.fits"))),
    )


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("no VmHWM in /proc/self/status")


def read_events(night: Path) -> list[VisitReady]:
    return [VisitReady.model_validate_json(line) for line in (night / "events.jsonl").read_text().splitlines()]


class Worker:
    """A worker's pipeline in this process, and the ledger that it claims from."""

    def __init__(self, folder: Path, night: Path) -> None:
        folder.mkdir()
        index_templates(str((night / "templates").resolve()))
        self.config = DaemonConfig(
            store=StoreConfig(
                database_url=f"sqlite:///{folder}/worker.sqlite",
                outbox_uri=str(folder / "outbox"),
                template_index=str(night / "templates" / "templates.json"),
                template_cache_directory=str(folder / "cache"),
            ),
            instruments={"simcam": InstrumentConfig(profile=str(night / "profile.toml"))},
            workers=WorkersConfig(threads_per_worker=1),
        )
        self.database = Database(self.config.store.open_url())
        self.database.upgrade()
        self.ledger = Ledger(self.database)
        self.pipeline = WorkerPipeline(self.config)()
        self.pipeline.warm_up()
        return_free_memory()

    def process(self, event: VisitReady, *, again: bool = False) -> tuple[float, Any]:
        """Return the CPU seconds of an exposure, and its result; again: another visit of the same pixels."""
        key = ExposureKey(event.instrument, event.visit, event.detector)
        position = EventPosition("visit-ready", 0, event.visit)
        if again:
            return self._compute(event)
        claim = self.ledger.claim(key, owner="here", lease_s=3600.0, event=position)
        order = WorkOrder(event=event, position=position, claim=claim, received_unix_s=0.0, deadline_s=3600.0)
        started = time.process_time()
        result = self.pipeline.process(order)
        return time.process_time() - started, result

    def _compute(self, event: VisitReady) -> tuple[float, Any]:
        """Compute without storing: the ids are there already."""
        from alertprod.service.pipeline import compute
        from alertprod.service.stopwatch import Stopwatch

        started = time.process_time()
        watch = Stopwatch()
        computed = compute(self.pipeline, event, watch)
        history, _ = self.pipeline.read_history(computed)
        alerts = self.pipeline.associate(event, computed, history, watch)
        return time.process_time() - started, alerts

    def cache_bytes(self) -> int:
        folder = Path(self.config.store.template_cache_directory)
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure_daemon(folder: Path, alert_bytes: float, *, embedded: bool) -> DaemonCosts:
    """Let a real daemon work off exposures with no alerts and with many: what grows is the alerts'."""
    n_bytes = round(alert_bytes)
    before = Costs.load().daemon if embedded else None
    site = EmbeddedBroker({"alerts": 4}, own_process=True) if embedded else KafkaBroker()
    with site as broker:
        costs, broker_cpu = {}, {}
        for alerts in (0, ALERTS):
            say(f"a daemon, {alerts} alerts an exposure")
            pid = None if embedded else broker.pid
            started = 0.0 if pid is None else _cpu_s(pid)
            config = LoadConfig(
                detectors=12, visits=2, cadence_s=5.0, event_delay_s=0.0, daemons=1, workers=1, partitions=4,
                model=StageModel(stage_seconds={}, n_alerts=alerts, alert_bytes=n_bytes),
            )  # fmt: skip
            report, more = run_load(
                config, bootstrap_servers=None if embedded else broker.bootstrap_servers, patience_s=1200.0
            )
            if report.n_published != report.n_exposures:
                raise RuntimeError(f"{report.n_published} of {report.n_exposures} exposures were published")
            costs[alerts] = more["costs"]
            broker_cpu[alerts] = 0.0 if pid is None else (_cpu_s(pid) - started) / report.n_exposures
        say("publisher")
        publish = measure_publisher(broker, n_bytes, embedded=embedded)
    say("database")
    store, database_bytes = measure_store(folder, n_bytes)
    few, many = costs[0], costs[ALERTS]
    return DaemonCosts(
        cpu_s_per_exposure=few["daemon_cpu_s_per_exposure"],
        cpu_s_per_alert=_slope(few["daemon_cpu_s_per_exposure"], many["daemon_cpu_s_per_exposure"]),
        publish_s_per_exposure=publish[0],
        publish_s_per_alert=_slope(publish[0], publish[ALERTS]),
        memory_bytes=max(few["daemon_memory_bytes"], many["daemon_memory_bytes"]),
        transactions_per_exposure=TRANSACTIONS,
        store_s_per_exposure=store[0],
        store_s_per_alert=_slope(store[0], store[ALERTS]),
        database_bytes_per_alert=database_bytes,
        broker_cpu_s_per_byte=before.broker_cpu_s_per_byte
        if before is not None
        else max(0.0, _slope(broker_cpu[0], broker_cpu[ALERTS])) / n_bytes,
    )


def _slope(few: float, many: float) -> float:
    return max(0.0, (many - few) / ALERTS)


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def measure_publisher(broker: Any, n_bytes: int, *, embedded: bool) -> dict[int, float]:
    """Return the shortest time of a publication, by its alerts."""
    noise = np.random.default_rng(1).bytes(2 * n_bytes)
    if not embedded:
        broker.create_topics({"measured-alerts": 4, "measured-summaries": 1})
    topics = ("alerts", "alerts") if embedded else ("measured-alerts", "measured-summaries")
    summary = OutgoingMessage(topic=topics[1], key=b"0", value=noise[:2000])
    shortest = {}
    transactional_id = None if embedded else "measure"
    with AlertProducer(broker.bootstrap_servers, transactional_id=transactional_id) as producer:
        producer.start()
        for alerts in (0, ALERTS):
            messages = [
                OutgoingMessage(topic=topics[0], key=b"%d" % n, value=noise[n : n + n_bytes]) for n in range(alerts)
            ]
            seconds = []
            for _ in range(8):
                started = time.perf_counter()
                producer.publish([*messages, summary])
                seconds.append(time.perf_counter() - started)
            shortest[alerts] = min(seconds)
    return shortest


def measure_store(folder: Path, n_bytes: int) -> tuple[dict[int, float], float]:
    """Return the shortest time that one writer is held, by the exposure's alerts; and bytes of SQLite's file an alert."""
    shortest, sizes = {}, {}
    for alerts in (0, ALERTS):
        path = folder / f"store-{alerts}.sqlite"
        database = Database(f"sqlite:///{path}")
        database.upgrade()
        ledger = Ledger(database)
        model = StageModel(
            stage_seconds={}, n_alerts=alerts, alert_bytes=min(n_bytes, 1000)
        )  # the outbox is no writer's
        pipeline = LoadPipelineFactory(f"sqlite:///{path}", str(folder / "outbox"), model)()
        seconds = []
        visits = 10
        for visit in range(1, visits + 1):
            (event,), _ = make_visit(LoadConfig(detectors=1), visit, now_unix_s=time.time())
            position = EventPosition("visit-ready", 0, visit)
            claim = ledger.claim(ExposureKey(INSTRUMENT, visit, 0), owner="here", lease_s=600.0, event=position)
            order = WorkOrder(event=event, position=position, claim=claim, received_unix_s=0.0, deadline_s=600.0)
            seconds.append(pipeline.process(order).stage_seconds["store"])
        shortest[alerts] = min(seconds)
        with database.write() as connection:
            connection.exec_driver_sql("SELECT 1")
        database.close()
        sizes[alerts] = sum(each.stat().st_size for each in folder.glob(f"{path.name}*"))
    return shortest, (sizes[ALERTS] - sizes[0]) / (visits * ALERTS)


if __name__ == "__main__":
    main()
