"""``alertprod send``: visit-ready events, from files of events or from the headers of images."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alertprod.cli.config import ConfigOption
from alertprod.cli.console import err, print_json, progress_bar
from alertprod.cli.settings import load_config
from alertprod.errors import AlertprodError, BadInputError, ImageNotYetAvailable, InvalidEvent, TransientError

if TYPE_CHECKING:
    from alertprod.config import DaemonConfig
    from alertprod.stream.messages import VisitReady
    from alertprod.stream.producer import AlertProducer

_WATCH_PAUSE_S = 5.0
"""With the broker or the folder away: what is written meanwhile waits."""

_IMAGE_SUFFIXES = (".fits", ".fit", ".fz", ".gz")


def send(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Images (FITS), or events (.json, .jsonl: one a line).")
    ] = None,
    config: ConfigOption = None,
    watch: Annotated[
        Path | None,
        typer.Option(help="Folder to watch: send an event for each image that appears in it, until stopped."),
    ] = None,
    instrument: Annotated[
        str | None, typer.Option(help="Instrument of the images, as \\[instruments.NAME] of the configuration.")
    ] = None,
    template: Annotated[
        list[Path] | None, typer.Option(help="Template tile to name in the events; can be repeated.")
    ] = None,
    interval_s: Annotated[
        float, typer.Option(min=0.0, help="Seconds between events; with --watch between looks (at least 0.1).")
    ] = 0.0,
    pattern: Annotated[
        list[str] | None,
        typer.Option(help="With --watch: names of images, as the shell matches them; can be repeated."),
    ] = None,
    settle_s: Annotated[
        float, typer.Option(min=0.0, help="With --watch: a file that has not changed for so long is complete.")
    ] = 2.0,
    journal: Annotated[
        Path | None, typer.Option(help="With --watch: what was sent, for the next start; in the folder by default.")
    ] = None,
    replay: Annotated[
        bool,
        typer.Option(
            "--replay",
            help="Mark them as replays: an exposure that was published has its stored alerts sent again, on the replay "
            "topic; one that is new, was skipped, expired or became a dead letter is processed whatever its age, and "
            "published as any other.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the events as JSON lines; send nothing.")] = False,
) -> None:
    """Send visit-ready events to the daemon's topic; exit status 1 where one could not be made (the others are sent).

    With --watch it runs until SIGTERM or Ctrl-C (exit status 0), and waits for a broker that is away.
    """
    loaded = load_config(config)
    uris = tuple(str(path.resolve()) for path in template) if template else None
    if bool(files) == (watch is not None):
        raise typer.BadParameter("name files, or a folder with --watch")
    if watch is not None:
        if dry_run:
            raise typer.BadParameter("--watch sends; it has no --dry-run")
        try:
            _find_instrument(
                loaded, instrument
            )  # or else every file would be called useless, and never looked at again
        except InvalidEvent as error:
            raise typer.BadParameter(error.problem, param_hint="--instrument") from error
        _watch(watch, loaded, instrument, uris, replay, max(interval_s, 0.1), settle_s, journal, tuple(pattern or ()))
        return
    n_bad = 0
    events: list[VisitReady] = []
    for path in files or ():
        for found in _read_events(path, loaded, instrument, uris, replay=replay):
            if isinstance(found, AlertprodError):
                n_bad += 1
                err.print(f"{path}: {found}", markup=False, style="red")
            else:
                events.append(found)
    if dry_run:
        for event in events:
            print_json(event.model_dump(exclude_none=True))
        raise typer.Exit(1 if n_bad else 0)
    with _connect(loaded) as producer, progress_bar() as progress:
        bar = progress.add_task(f"Sending to {loaded.topics.visit_ready}", total=len(events))
        for n, event in enumerate(events):
            if n and interval_s:
                time.sleep(interval_s)
            _publish(producer, loaded, event)
            progress.advance(bar)
    err.print(f"{len(events)} events sent to {loaded.topics.visit_ready}", markup=False)
    if n_bad:
        raise typer.Exit(1)


def _connect(config: "DaemonConfig") -> "AlertProducer":
    from alertprod.stream.producer import AlertProducer

    return AlertProducer(config.kafka.bootstrap_servers, options=config.kafka.client_options())


def _publish(producer: "AlertProducer", config: "DaemonConfig", event: "VisitReady") -> None:
    from alertprod.stream.messages import encode_visit_ready
    from alertprod.stream.records import OutgoingMessage

    producer.publish([OutgoingMessage(topic=config.topics.visit_ready, key=event.key, value=encode_visit_ready(event))])


def _watch(
    folder: Path,
    config: "DaemonConfig",
    instrument: str | None,
    templates: tuple[str, ...] | None,
    replay: bool,
    every_s: float,
    settle_s: float,
    journal: Path | None,
    patterns: tuple[str, ...],
) -> None:
    """Send an event for each image that appears, until a signal; a file of which none can be made is said once."""
    from alertprod.service.watch import IMAGE_PATTERNS, FolderWatch

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    watch = FolderWatch(folder.resolve(), patterns=patterns or IMAGE_PATTERNS, settle_s=settle_s, journal=journal)
    err.print(f"watching {folder}, sending to {config.topics.visit_ready}", markup=False)
    n_sent = 0
    with _connect(config) as producer:
        while not stopped.wait(every_s):
            try:
                for path in watch.scan():
                    if stopped.is_set():
                        break
                    for found in _read_events(path, config, instrument, templates, replay=replay):
                        if isinstance(found, AlertprodError):
                            err.print(f"{path}: {found}", markup=False, style="red")
                        else:
                            _publish(producer, config, found)  # before the journal: a crash between sends it twice
                            n_sent += 1
                            err.print(f"{path}: sent as {found.key.decode()}", markup=False)
                    watch.finish(path)
            except TransientError as error:
                err.print(f"trying again: {error}", markup=False, style="red")
                stopped.wait(_WATCH_PAUSE_S)
    err.print(f"{n_sent} events sent to {config.topics.visit_ready}", markup=False)


def _read_events(
    path: Path, config: "DaemonConfig", instrument: str | None, templates: tuple[str, ...] | None, *, replay: bool
) -> "Iterator[VisitReady | AlertprodError]":
    """Yield the events of a file of events, or the one of an image; in place of an event what is wrong with it."""
    from alertprod.stream.messages import decode_visit_ready

    if path.name.endswith(_IMAGE_SUFFIXES):
        try:
            yield _make_event(path, config, instrument, templates, replay=replay)
        except (BadInputError, ImageNotYetAvailable) as error:
            yield error
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        yield InvalidEvent("(file)", str(error))
        return
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            event = decode_visit_ready(line.encode())
        except InvalidEvent as error:
            where = f"line {number}: " if path.suffix == ".jsonl" else ""
            yield InvalidEvent(error.field, f"{where}{error.problem}")
            continue
        yield event.model_copy(update={"replay": True}) if replay else event


def _find_instrument(config: "DaemonConfig", instrument: str | None) -> str:
    """Return the name of the images' instrument: the one that was asked for, or the only one there is."""
    known = ", ".join(config.instruments) or "none"
    if instrument is None and len(config.instruments) == 1:
        return next(iter(config.instruments))
    if instrument is None:
        raise InvalidEvent(
            "instrument", f"{len(config.instruments)} are configured; --instrument takes one of: {known}"
        )
    if instrument not in config.instruments:
        raise InvalidEvent("instrument", f"{instrument!r} is not configured; --instrument takes one of: {known}")
    return instrument


def _make_event(
    path: Path, config: "DaemonConfig", instrument: str | None, templates: tuple[str, ...] | None, *, replay: bool
) -> "VisitReady":
    """Make the event of an image from its header, read through the instrument's profile."""
    from alertprod.errors import InvalidEvent
    from alertprod.images.fits_io import read_facts
    from alertprod.images.profile import describe_place, load_profile
    from alertprod.service.clock import Clock
    from alertprod.stream.messages import decode_visit_ready

    name = _find_instrument(config, instrument)
    profile = load_profile(config.instruments[name].profile)
    header = read_facts(path, profile)
    info = header.info
    for field in ("visit", "detector", "band"):
        if getattr(info, field) is None:
            place = describe_place(getattr(profile, field))
            problem = f"Field required; the profile {config.instruments[name].profile} looks for it {place}"
            raise InvalidEvent(field, problem)
    close = info.shutter_close_mjd_tai
    if close is None and info.shutter_open_mjd_tai is not None and info.exposure_time_s is not None:
        close = info.shutter_open_mjd_tai + info.exposure_time_s / 86400.0
    ra, dec = info.ra_deg, info.dec_deg
    if (ra is None or dec is None) and header.wcs is not None:
        ra, dec = header.wcs.compute_center(header.shape)
    fields = {
        "instrument": name,
        "visit": info.visit,
        "detector": info.detector,
        "band": info.band,
        "physical_filter": info.physical_filter,
        "shutter_open_mjd_tai": info.shutter_open_mjd_tai,
        "shutter_close_mjd_tai": close,
        "exposure_time_s": info.exposure_time_s,
        "ra_deg": ra,
        "dec_deg": dec,
        "rotation_deg": info.rotation_deg,
        "calexp_uri": str(path.resolve()),
        "template_uris": templates,
        "observation_reason": info.observation_reason,
        "target_name": info.target_name,
        "sent_at_mjd_tai": Clock().mjd_tai(),
        "replay": replay,
    }
    # What the header does not say is missing in the event, and the event's own rules name the field.
    return decode_visit_ready(json.dumps({key: value for key, value in fields.items() if value is not None}).encode())
