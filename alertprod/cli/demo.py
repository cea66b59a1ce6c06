"""The demonstration: a small simulated night through Kafka and the daemon, and its alerts held against the truth."""

import itertools
import shutil
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table as RichTable

from alertprod.alerts.avro import write_alerts
from alertprod.cli.console import err, out, print_json, progress_bar
from alertprod.cli.demo_night import EVENTS, TOPICS, DaemonProcess, Listener
from alertprod.errors import ConfigError
from alertprod.service.clock import Clock
from alertprod.sim.night import SECONDS_PER_DAY, Night, NightConfig, make_night
from alertprod.sim.score import SNR_EDGES, Detections, score_detections
from alertprod.store.template_index import index_templates
from alertprod.stream.embedded import EmbeddedBroker
from alertprod.stream.messages import VisitReady, encode_visit_ready
from alertprod.stream.producer import AlertProducer
from alertprod.stream.records import OutgoingMessage
from alertprod.view.light_curves import save_light_curves
from alertprod.view.tables import make_exposures_table
from alertprod.view.triplets import save_triplets

_VISIT_TIMEOUT_S = 60.0
"""For the summaries of one visit; an exposure takes two seconds."""

_MATCH_RADIUS_ARCSEC = 0.6
"""Three pixels: beyond it a detection is not of the injected source."""

_MARKER = "night.json"


@dataclass(slots=True)
class DemoResult:
    """What the night came to."""

    n_exposures: int
    outcomes: dict[str, int]
    n_alerts: int
    n_false: int
    bins: list[tuple[str, int, int]]
    latency_p50_s: float
    latency_p98_s: float
    seconds: float
    files: dict[str, str]
    problems: list[str]


def run_demo(directory: Path, config: NightConfig, *, as_json: bool) -> int:
    """Run the demonstration; return the exit status."""
    started = time.perf_counter()
    _make_room(directory)
    night_directory = directory / "night"
    with EmbeddedBroker(TOPICS) as broker, progress_bar() as progress, Listener(broker.bootstrap_servers) as listener:
        simulating = progress.add_task("Simulating the night", total=None)
        starting = progress.add_task("Starting the daemon (its first start here compiles)", total=1)
        daemon = DaemonProcess(
            directory,
            bootstrap_servers=broker.bootstrap_servers,
            night_directory=night_directory,
            instrument=config.instrument,
        )

        def start_daemon() -> None:
            # Its workers compile their loops while the exposures are rendered.
            index_templates(str((night_directory / "templates").resolve()))
            daemon.start()

        try:
            _say("simulating the night")
            night = make_night(
                night_directory,
                config,
                progress=lambda done, total, _: progress.update(simulating, completed=done, total=total),
                on_templates=start_daemon,
            )
            _say("waiting for the daemon; its first start here compiles, for a minute or more")
            daemon.wait_ready()
            progress.advance(starting)
            problems = _observe(night, daemon, listener, broker.bootstrap_servers, progress)
        finally:
            status = daemon.stop()
        if status != 0:
            problems.append(f"the daemon ended with status {status}; see {daemon.log_path}")
    result = _conclude(directory, night, listener, problems, started)
    if as_json:
        print_json(asdict(result))
    else:
        _print(result, listener)
    for problem in result.problems:
        err.print(f"demo: {problem}", markup=False, style="red")
    return 1 if result.problems else 0


def _say(what: str) -> None:
    """Report a step where nobody sees a progress bar: standard error is a file or a pipe."""
    if not err.is_terminal:
        err.print(f"demo: {what}", markup=False)


def _make_room(directory: Path) -> None:
    """Make the folder, or clear what an earlier demonstration left in it; anything else in it is an error."""
    if directory.exists() and any(directory.iterdir()):
        if not (directory / _MARKER).exists():
            raise ConfigError("--directory", str(directory), "is not empty, and no earlier demonstration made it")
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _MARKER).write_text("Made by `alertprod demo`, which clears this folder when it is run again.\n")


def _observe(
    night: Night, daemon: DaemonProcess, listener: Listener, bootstrap_servers: str, progress: Progress
) -> list[str]:
    """Send visit after visit, each when the one before has come back; return what went wrong."""
    config = night.config
    problems: list[str] = []
    bar = progress.add_task("Observing", total=config.n_visits * config.n_detectors)
    clock = Clock()
    with AlertProducer(bootstrap_servers) as producer:
        for visit in range(config.n_visits):
            exposures = {(night.visit_id(visit), detector) for detector in range(config.n_detectors)}
            # The shutter closes now: latencies are those of tonight.
            opened = clock.mjd_tai() - config.exposure_time_s / SECONDS_PER_DAY
            for event in night.restamp(visit, shutter_open_mjd_tai=opened):
                ready = VisitReady(**event)
                message = OutgoingMessage(topic=EVENTS, key=ready.key, value=encode_visit_ready(ready))
                producer.publish([message])
            deadline = time.monotonic() + _VISIT_TIMEOUT_S
            while not listener.wait_for(exposures, timeout_s=0.5):
                daemon.require_alive()
                if time.monotonic() > deadline:
                    problems.append(f"visit {night.visit_id(visit)} did not come back within {_VISIT_TIMEOUT_S:.0f} s")
                    return problems
            progress.update(bar, completed=len(listener.summaries))
            _say(f"visit {visit + 1} of {config.n_visits} came back")
    # A moment for an alert too many: every alert's summary came in its exposure's batch.
    listener.wait_for({(-1, -1)}, timeout_s=0.5)
    for key, summary in sorted(listener.summaries.items()):
        if summary.outcome != "published":
            problems.append(f"exposure {key[0]}/{key[1]} ended as {summary.outcome}: {summary.reason}")
        if summary.n_alerts != listener.n_alerts[key]:
            problems.append(
                f"exposure {key[0]}/{key[1]}: its summary says {summary.n_alerts} alerts, the consumer has"
                f" {listener.n_alerts[key]}"
            )
    return problems


def _conclude(directory: Path, night: Night, listener: Listener, problems: list[str], started: float) -> DemoResult:
    """Hold the alerts against the truth, and write what a person wants to look at."""
    packets = listener.packets
    sources = [packet["diaSource"] for packet in packets]
    score = score_detections(
        Detections(*(np.array([source[name] for source in sources]) for name in ("visit", "detector", "ra", "dec"))),
        Table.read(night.directory / "truth.ecsv"),
        radius_arcsec=_MATCH_RADIUS_ARCSEC,
    )
    files = {
        "alerts": directory / "alerts.avro",
        "night and truth": night.directory,
        "daemon log": directory / "daemon.log",
    }
    write_alerts(directory / "alerts.avro", packets)
    if packets:
        files["light curves"] = directory / "light_curves.png"
        files["cutout triplets"] = directory / "triplets.png"
        save_light_curves(packets, files["light curves"])
        save_triplets(_best_of_each_object(packets), files["cutout triplets"])
    latencies = listener.latencies_s or [float("nan")]
    outcomes: Counter[str] = Counter(summary.outcome for summary in listener.summaries.values())
    return DemoResult(
        n_exposures=len(listener.summaries),
        outcomes=dict(outcomes),
        n_alerts=len(packets),
        n_false=score.n_false,
        bins=[
            (_label(low, high), int(injected), int(found))
            for (low, high), injected, found in zip(
                itertools.pairwise(SNR_EDGES), score.n_injected, score.n_found, strict=True
            )
        ],
        latency_p50_s=float(np.percentile(latencies, 50)),
        latency_p98_s=float(np.percentile(latencies, 98)),
        seconds=time.perf_counter() - started,
        files={name: str(path) for name, path in files.items()},
        problems=problems,
    )


def _best_of_each_object(packets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each object's most significant alert."""
    best: dict[int, dict[str, Any]] = {}
    for packet in sorted(packets, key=lambda packet: packet["diaSource"]["snr"]):
        best[packet["diaSource"]["diaObjectId"]] = packet
    return list(best.values())


def _label(low: float, high: float) -> str:
    return f"{low:g} to {high:g}" if np.isfinite(high) else f"over {low:g}"


def _print(result: DemoResult, listener: Listener) -> None:
    summaries = [listener.summaries[key].model_dump() for key in sorted(listener.summaries)]
    out.print(make_exposures_table(summaries))
    found = RichTable("true S/N", "injected", "found", title="Injected changes", box=SIMPLE_HEAD)
    for label, injected, hits in result.bins:
        found.add_row(label, str(injected), str(hits))
    out.print(found)
    facts = RichTable(show_header=False, box=None)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in result.outcomes.items())
    facts.add_row("exposures", f"{result.n_exposures} ({outcomes})")
    facts.add_row("alerts", str(result.n_alerts))
    facts.add_row("at no injected change", str(result.n_false))
    facts.add_row(
        "shutter to alert in hand", f"{result.latency_p50_s:.1f} s median, {result.latency_p98_s:.1f} s for 98 %"
    )
    facts.add_row("the whole night", f"{result.seconds:.0f} s")
    for name, path in result.files.items():
        facts.add_row(name, path)
    out.print(facts)
