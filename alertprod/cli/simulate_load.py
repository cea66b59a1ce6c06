"""``alertprod simulate load`` and ``plan``: a camera's load on real daemons whose pixels are a clock, and on paper."""

import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alertprod.cli.config import JsonOption
from alertprod.cli.console import err, out, print_json, progress_bar

if TYPE_CHECKING:
    from alertprod.cli.load_fleet import Listener, Meter, Site
    from alertprod.sim.load import LoadConfig, LoadReport


def load(
    detectors: Annotated[int, typer.Option(min=1, max=1024, help="Detectors of the camera: events of a visit.")] = 189,
    visits: Annotated[int, typer.Option(min=1, max=10_000, help="Visits to send.")] = 3,
    cadence_s: Annotated[float, typer.Option(min=0.1, help="Seconds from shutter to shutter.")] = 39.0,
    event_delay_s: Annotated[
        float, typer.Option(min=0.0, help="From a shutter's closing to its events: readout, transfer, calibration.")
    ] = 10.0,
    speed_up: Annotated[
        float,
        typer.Option(min=0.01, help="Let the camera's time run so much quicker; database and broker stay as they are."),
    ] = 1.0,
    daemons: Annotated[int, typer.Option(min=1, max=64, help="Daemons of the consumer group.")] = 2,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Workers of each daemon.")] = 8,
    partitions: Annotated[int | None, typer.Option(min=1, help="Of the events' topic. Default: four a worker.")] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(help="NAME=SECONDS of a stage, repeated. Default: the measured time of an exposure."),
    ] = None,
    spread: Annotated[float, typer.Option(min=0.0, max=2.0, help="Scatter of the stages' times, a fraction.")] = 0.15,
    burn: Annotated[
        bool, typer.Option("--burn", help="Keep a core busy for the stages' time, where otherwise workers sleep.")
    ] = False,
    alerts: Annotated[int, typer.Option(min=0, max=5000, help="Alerts of an exposure.")] = 20,
    alert_bytes: Annotated[int, typer.Option(min=1, max=10_000_000, help="Bytes of an alert.")] = 105_000,
    bootstrap_servers: Annotated[
        str | None,
        typer.Option(help="A Kafka to use, exactly-once, on topics of the test's own. Default: the embedded broker."),
    ] = None,
    database_url: Annotated[
        str | None, typer.Option(help="A database of the test's own. Default: SQLite in the folder.")
    ] = None,
    directory: Annotated[
        Path | None, typer.Option("--directory", "-d", help="Keep configurations, logs and outbox here.")
    ] = None,
    patience_s: Annotated[
        float, typer.Option(min=1.0, help="Seconds to wait for what is still under way after the last visit.")
    ] = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Send a camera's events to real daemons whose pipeline takes the time it is told, and say what that comes to.

    Consumer, lanes, ledger, database, outbox, transactions and workers are those of `alertprod run`; pixels are not
    looked at. Reported are latencies from the shutter's closing to the acknowledgement, the share within 60 s, the
    backlog, and which part of the fleet has the least rest. The machine must bear what is real: alerts of 189 detectors
    at a full 105 kB each are 100 MB a second.

    Exit status: 0 at least 98 % of the alerts came within 60 s; 1 they did not, or something was lost; 2 wrong usage.
    """
    from alertprod.sim.capacity import Costs
    from alertprod.sim.load import LoadConfig
    from alertprod.sim.load_pipeline import StageModel

    if partitions is not None and partitions < daemons:
        raise typer.BadParameter(f"{partitions} partitions leave some of {daemons} daemons without any")
    stages = {"subtract": Costs.load().exposure.wall_s} if stage is None else dict(_read_stage(each) for each in stage)
    config = LoadConfig(
        detectors=detectors,
        visits=visits,
        cadence_s=cadence_s,
        event_delay_s=event_delay_s,
        speed_up=speed_up,
        daemons=daemons,
        workers=workers,
        partitions=4 * daemons * workers if partitions is None else partitions,
        model=StageModel(stage_seconds=stages, spread=spread, burns=burn, n_alerts=alerts, alert_bytes=alert_bytes),
    )
    report, more = run_load(
        config,
        directory=directory,
        bootstrap_servers=bootstrap_servers,
        database_url=database_url,
        patience_s=patience_s,
    )
    if as_json:
        print_json({**report.as_json(), **more})
    else:
        _print(config, report, more)
    raise typer.Exit(0 if report.is_good else 1)


def _read_stage(text: str) -> tuple[str, float]:
    from alertprod.metrics import STAGES

    name, _, seconds = text.partition("=")
    if name not in STAGES:
        raise typer.BadParameter(f"{text!r}: stages are {', '.join(STAGES)}", param_hint="--stage")
    try:
        value = float(seconds)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: is no NAME=SECONDS", param_hint="--stage") from error
    if not 0.0 <= value < 3600.0:
        raise typer.BadParameter(f"{text!r}: seconds are 0 to 3600", param_hint="--stage")
    return name, value


def run_load(
    config: "LoadConfig",
    *,
    directory: Path | None = None,
    bootstrap_servers: str | None = None,
    database_url: str | None = None,
    patience_s: float = 300.0,
) -> tuple["LoadReport", Mapping[str, Any]]:
    """Run a load test.

    Returns
    -------
    tuple
        The report; and what the fleet cost: CPU seconds and bytes of memory, failures by reason, exit statuses.

    Raises
    ------
    LoadError
        Raised if the fleet does not start, or a daemon ends.
    """
    from alertprod.cli.load_fleet import Listener, LoadFleet, Meter
    from alertprod.sim.load import summarise

    with ExitStack() as stack, progress_bar() as progress:
        folder = Path(tempfile.mkdtemp(prefix="alertprod-load-")) if directory is None else directory
        folder.mkdir(parents=True, exist_ok=True)
        site = _make_site(config, folder.resolve(), bootstrap_servers, database_url, stack)
        listener = stack.enter_context(Listener(site))
        starting = progress.add_task("Starting workers", total=None)
        observing = progress.add_task("Observing", total=config.n_exposures)
        with LoadFleet(site, config) as fleet:
            fleet.wait_ready(lambda done, total: progress.update(starting, completed=done, total=total))
            meter = Meter(fleet, config)
            closed = _observe(
                config, site, listener, meter, patience_s, lambda n: progress.update(observing, completed=n)
            )
            usage = meter.finish()
    if directory is None:  # not where something went wrong: the logs say what
        shutil.rmtree(folder, ignore_errors=True)
    failures: dict[str, int] = {}
    for reason in listener.failed.values():
        failures[reason] = failures.get(reason, 0) + 1
    report = summarise(
        config, closed_unix_s=closed, acked_unix_s=listener.acked_unix_s, n_alerts=listener.n_alerts, usage=usage
    )
    return report, {"costs": meter.costs, "failures": failures, "exit_statuses": fleet.statuses}


def _make_site(
    config: "LoadConfig", folder: Path, bootstrap_servers: str | None, database_url: str | None, stack: ExitStack
) -> "Site":
    """Make topics and tables; the embedded broker, where it is one, ends with the stack."""
    from alertprod.cli.load_fleet import Site
    from alertprod.config import TopicsConfig
    from alertprod.store.database import upgrade
    from alertprod.stream.embedded import EmbeddedBroker
    from alertprod.stream.temporary_topics import temporary_topics

    prefix = f"load-{uuid.uuid4().hex[:8]}"
    topics = {name: f"{prefix}-{name.replace('_', '-')}" for name in TopicsConfig.model_fields}
    counts = dict.fromkeys(topics.values(), 1)
    counts[topics["visit_ready"]] = config.partitions
    counts[topics["alerts"]] = config.daemons * config.workers
    if bootstrap_servers is None:
        broker = stack.enter_context(EmbeddedBroker(counts, own_process=True))
        servers, delivery = broker.bootstrap_servers, "at-least-once"
    else:
        stack.enter_context(temporary_topics(bootstrap_servers, counts))
        servers, delivery = bootstrap_servers, "exactly-once"
    url = database_url or f"sqlite:///{folder / 'load.sqlite'}"
    upgrade(url)
    return Site(folder=folder, bootstrap_servers=servers, delivery=delivery, database_url=url, topics=topics)


def _observe(
    config: "LoadConfig", site: "Site", listener: "Listener", meter: "Meter", patience_s: float, progress: Any
) -> dict[int, float]:
    """Send visit after visit and wait for the last; return when their shutters closed."""
    from alertprod.sim.load import make_visit
    from alertprod.stream.messages import encode_visit_ready
    from alertprod.stream.producer import AlertProducer
    from alertprod.stream.records import OutgoingMessage

    closed: dict[int, float] = {}
    meter.begin()
    first = time.monotonic()

    def wait(until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            done = listener.wait_for(config.n_exposures, timeout_s=min(left, 0.5))
            progress(done)
            meter.sample()
            if done >= config.n_exposures:
                return

    with AlertProducer(site.bootstrap_servers) as producer:
        for visit in range(1, config.visits + 1):
            wait(first + (visit - 1) * config.cadence_s / config.speed_up)
            events, closed[visit] = make_visit(config, visit, now_unix_s=time.time())
            producer.publish(
                OutgoingMessage(topic=site.topics["visit_ready"], key=event.key, value=encode_visit_ready(event))
                for event in events
            )
    wait(time.monotonic() + patience_s)
    return closed


def _print(config: "LoadConfig", report: "LoadReport", more: Mapping[str, Any]) -> None:
    rank = report.percentiles_s
    failed = ", ".join(f"{n} {reason}" for reason, n in more["failures"].items())
    lines = [
        f"{report.n_published} of {report.n_exposures} exposures published, {report.n_alerts} alerts"
        + (f"; failed: {failed}" if failed else ""),
        f"shutter to acknowledgement, s: median {rank[50]:.1f}, 98 % {rank[98]:.1f}, slowest {rank[100]:.1f}",
        f"within 60 s: {report.share_in_time:.1%} of the alerts",
        f"backlog: {report.largest_backlog} at most; left over at the next shutter: "
        + (", ".join(map(str, report.left_over)) or "one visit only"),
        "in use on average: " + ", ".join(f"{name} {share:.0%}" for name, share in report.usage.items()),
        f"saturates first: {report.saturates_first}, at {report.headroom:.1f} times this load"
        + ("" if config.speed_up == 1.0 else f" (times of database and broker count {config.speed_up:g} times)"),
    ]
    for line in lines:
        out.print(line, markup=False)
    if not report.is_good:
        err.print("the objective is missed: 98 % within 60 s, nothing lost", markup=False, style="red")
