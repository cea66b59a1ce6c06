"""``alertprod report``: what a night came to, as one HTML file."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alertprod.cli.config import ConfigOption, JsonOption
from alertprod.cli.console import err, print_json, progress_bar
from alertprod.cli.settings import load_config
from alertprod.errors import BrokerUnavailable, PartialWriteError

if TYPE_CHECKING:
    from alertprod.config import DaemonConfig
    from alertprod.view.report_facts import Failure, NightFacts

_NIGHT = timedelta(days=1)

_BEST = 10


def report(
    config: ConfigOption = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file.")] = Path("report.html"),
    night: Annotated[
        str | None,
        typer.Option(help="Date on which it began, YYYY-MM-DD: from noon UTC to noon. Default: the last 24 hours."),
    ] = None,
    noon_utc_hour: Annotated[
        float, typer.Option(min=0, max=24, help="Hour UTC at which it is noon at the telescope.")
    ] = 12.0,
    best: Annotated[int, typer.Option(min=0, help="How many of the best alerts are shown.")] = _BEST,
    dead_letters: Annotated[
        bool, typer.Option("--letters/--no-letters", help="Ask the broker for the dead letters, which know why.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Write the report of a night: counts, latency, quality, the best alerts with pictures, what failed and why.

    From the database and the outbox; the broker is asked for dead letters only. One file, which needs nothing else.
    """
    from alertprod.alerts.avro import decode_alert
    from alertprod.store.database import Database
    from alertprod.store.night_log import NightLog
    from alertprod.view.report import make_report
    from alertprod.view.report_facts import NightFacts, collect_exposures, collect_versions

    loaded = load_config(config)
    since, until, title = _find_night(night, noon_utc_hour)
    remarks: list[str] = []
    database = Database(loaded.store.open_url())
    with progress_bar() as progress:
        step = progress.add_task("Reading the ledger", total=4)
        try:
            log = NightLog(database)
            rows = log.read_exposures(since_unix_s=since, until_unix_s=until)
            progress.update(step, advance=1, description="Choosing the best alerts")
            sources = log.find_best(rows, most=best)
            packets: dict[int, dict[str, Any]] = {}
            try:
                for message in log.read_alerts(rows, sources):
                    packet = decode_alert(message.value)
                    packets[packet["diaSourceId"]] = packet
            except PartialWriteError as error:  # files go by age: an old night has its numbers, not its pictures
                remarks.append(f"Not all alerts can be shown: {error}")
        finally:
            database.close()
        progress.update(step, advance=1, description="Asking for dead letters")
        failures = None
        if dead_letters:
            try:
                failures = _read_failures(loaded, since, until)
            except BrokerUnavailable as error:
                remarks.append(f"The dead letters could not be read: {error}")
        facts = NightFacts(
            title=title,
            since_unix_s=since,
            until_unix_s=until,
            exposures=collect_exposures(rows),
            failures=failures,
            versions=collect_versions(rows),
        )
        progress.update(step, advance=1, description="Drawing")
        chosen = [packets[source.dia_source_id] for source in sources if source.dia_source_id in packets]
        text = make_report(facts, best=chosen, made_at_unix_s=time.time(), remarks=remarks)
        output.write_text(text, encoding="utf-8")
        progress.advance(step)
    if as_json:
        print_json(
            {
                "file": str(output),
                "remarks": remarks,
                "best": [packet["diaSourceId"] for packet in chosen],
                **_numbers(facts),
            }
        )
    else:
        err.print(
            f"{output}: {len(rows)} exposures, {facts.n_alerts} alerts, {len(facts.failed())} failed", markup=False
        )


def _numbers(facts: "NightFacts") -> dict[str, Any]:
    half, most = facts.latency_quantiles_s(0.5, 0.98)
    return {
        "exposures": len(facts.exposures),
        "outcomes": facts.outcomes(),
        "alerts": facts.n_alerts,
        "alerts_in_time": facts.share_of_alerts_in_time(),
        "exposures_in_time": facts.share_of_exposures_in_time(),
        "latency_p50_s": half,
        "latency_p98_s": most,
    }


def _find_night(night: str | None, noon_utc_hour: float) -> tuple[float, float, str]:
    """Return beginning, end (seconds UTC since 1970) and title."""
    if night is None:
        now = datetime.now(tz=UTC)
        return (now - _NIGHT).timestamp(), now.timestamp(), "The last 24 hours"
    try:
        day = datetime.strptime(night, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        raise typer.BadParameter(f"{night!r} is not YYYY-MM-DD") from error
    begins = day + timedelta(hours=noon_utc_hour)
    return begins.timestamp(), (begins + _NIGHT).timestamp(), f"The night of {night}"


def _read_failures(config: "DaemonConfig", since: float, until: float) -> "list[Failure]":
    from alertprod.errors import InvalidEvent
    from alertprod.stream.dead_letter import parse_dead_letter
    from alertprod.stream.tail import AlertTail
    from alertprod.view.report_facts import Failure

    found = []
    kafka = config.kafka
    with AlertTail(
        kafka.bootstrap_servers, [config.topics.dead_letters], timeout_s=5.0, options=kafka.client_options()
    ) as tail:
        for received in tail.messages(idle_s=10.0):
            try:
                told = parse_dead_letter(received)
            except InvalidEvent:
                continue
            if since <= told.sent_at_ms / 1000 < until:
                event = f"{told.topic}[{told.partition}]:{told.offset}"
                name = event if told.visit is None else f"{told.instrument}/{told.visit}/{told.detector}"
                found.append(Failure(exposure=name, reason=told.reason, stage=told.stage, message=told.message))
    return found
