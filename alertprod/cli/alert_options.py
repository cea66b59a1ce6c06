"""What the commands on alerts share: where alerts are, and which of them are wanted."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alertprod.cli.settings import load_config

if TYPE_CHECKING:
    from alertprod.alerts.alert import AlertFilter
    from alertprod.config import DaemonConfig
    from alertprod.service.alert_sources import Found

SourcesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SOURCE]...",
        help="Avro containers, files of one message, outbox files, folders of these, or kafka://HOST:PORT/TOPIC;"
        " without any, the configuration's alert topic.",
        show_default=False,
    ),
]
SinceOption = Annotated[
    str | None, typer.Option("--since", help="Midpoints from here on: MJD (TAI), or a date in UTC.")
]
UntilOption = Annotated[str | None, typer.Option("--until", help="Midpoints before this.")]
ObjectOption = Annotated[
    list[int] | None,
    typer.Option("--object", help="Of this DiaObject or Solar System body only; several times for several."),
]
SnrOption = Annotated[
    float | None, typer.Option("--min-snr", help="Detections at least so significant, of either sign.")
]


def parse_time(text: str) -> float:
    """Return a moment as MJD TAI: of a number that, of a date and time in UTC."""
    from astropy.time import Time  # late: half a second

    try:
        return float(text)
    except ValueError:
        pass
    try:
        return float(Time(text, scale="utc").tai.mjd)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is neither an MJD nor a date such as 2026-11-22T03:30:00") from error


def make_filter(
    since: str | None, until: str | None, objects: list[int] | None, min_snr: float | None
) -> "AlertFilter":
    """Return which alerts the options ask for."""
    from alertprod.alerts.alert import AlertFilter

    return AlertFilter(
        since_mjd_tai=None if since is None else parse_time(since),
        until_mjd_tai=None if until is None else parse_time(until),
        object_ids=frozenset(objects or ()),
        min_snr=min_snr,
    )


def find(sources: list[str] | None, config: Path | None) -> "Iterator[Found]":
    """Yield what is found in the sources, or on the configuration's topic."""
    from alertprod.service.alert_sources import find_alerts, is_topic

    if sources and not any(map(is_topic, sources)):
        yield from find_alerts(*sources)  # no configuration is needed for files
        return
    loaded = load_config(config)
    yield from find_alerts(*(sources or [topic_uri(loaded)]), options=loaded.kafka.client_options())


def topic_uri(config: "DaemonConfig") -> str:
    """Return the configuration's alert topic as a source."""
    return f"kafka://{config.kafka.bootstrap_servers}/{config.topics.alerts}"
