"""``alertprod dead-letters``: events that were given up, why, and another chance for them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from alertprod.cli.config import ConfigOption, JsonOption
from alertprod.cli.console import err, out, print_json
from alertprod.cli.settings import load_config
from alertprod.errors import InvalidEvent

if TYPE_CHECKING:
    from alertprod.config import DaemonConfig
    from alertprod.store.ledger import ExposureKey, LedgerState
    from alertprod.stream.dead_letter import DeadLetter
    from alertprod.stream.records import Received

app = typer.Typer(help="Events that were given up: look at them, send them again.", no_args_is_help=True)

ReasonOption = Annotated[str | None, typer.Option(help="Only those given up for this, as `ls` says it.")]
LettersArgument = Annotated[
    list[str], typer.Argument(help="Which, as `ls` says: PARTITION:OFFSET.", metavar="LETTER...")
]

_SHOWN_VALUE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class _Letter:
    """A dead letter as it lies on its topic."""

    received: "Received"
    told: "DeadLetter | None"
    """What its headers say; None where they are not a dead letter's."""

    @property
    def place(self) -> str:
        return f"{self.received.partition}:{self.received.offset}"

    @property
    def exposure(self) -> "ExposureKey | None":
        from alertprod.store.ledger import ExposureKey

        told = self.told
        if told is None or told.instrument is None or told.visit is None or told.detector is None:
            return None
        return ExposureKey(told.instrument, told.visit, told.detector)


@app.command("ls")
def ls(
    config: ConfigOption = None,
    reason: ReasonOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the dead letters, oldest first, with what the ledger says of their exposures now."""
    loaded = load_config(config)
    letters = [
        each for each in _read(loaded) if reason is None or (each.told is not None and each.told.reason == reason)
    ]
    states = _states(loaded, letters)
    if as_json:
        for letter in letters:
            print_json(_facts(letter, states))
        return
    out.print(_make_list(letters, states))
    err.print(f"{len(letters)} dead letters on {loaded.topics.dead_letters}", markup=False)


def _make_list(letters: Iterable[_Letter], states: "Mapping[ExposureKey, LedgerState]") -> Table:
    """Return the table of dead letters, two lines each and more where a message is long: readable on 80 columns."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in ("letter", "exposure, sent (UTC)", "now"):
        table.add_column(name, no_wrap=True)
    table.add_column("reason, message", overflow="fold")
    for letter in letters:
        told, key = letter.told, letter.exposure
        if told is None:
            table.add_row(letter.place, "", "", "(not a dead letter)")
            continue
        sent = datetime.fromtimestamp(told.sent_at_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
        state = "" if key is None else str(states.get(key, "unknown"))
        why = Text.assemble((told.reason, "bold"), f" at {told.stage}\n", told.message[:200])
        table.add_row(letter.place, Text(f"{key or 'no exposure'}\n{sent}"), state, why)
    return table


@app.command("show")
def show(letters: LettersArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show dead letters whole: what their headers say, the traceback, the event."""
    loaded = load_config(config)
    found = _pick(_read(loaded), letters)
    states = _states(loaded, found)
    for letter in found:
        if as_json:
            print_json(_facts(letter, states))
            continue
        out.print(f"{loaded.topics.dead_letters} {letter.place}", style="bold", markup=False)
        for name, value in _facts(letter, states).items():
            if name not in ("stacktrace", "value", "letter") and value is not None:
                out.print(f"  {name}: {value}", markup=False)
        out.print(f"  value: {_describe_value(letter.received.value)}", markup=False)
        if letter.told is not None and letter.told.stacktrace:
            out.print(letter.told.stacktrace, markup=False)


@app.command("replay")
def replay(
    letters: Annotated[
        list[str] | None, typer.Argument(help="Which, as `ls` says: PARTITION:OFFSET.", metavar="LETTER...")
    ] = None,
    config: ConfigOption = None,
    every: Annotated[
        bool, typer.Option("--all", help="The newest letter of every exposure that is still given up.")
    ] = False,
    reason: ReasonOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent; send nothing.")] = False,
) -> None:
    """Send the events of dead letters to the topic they came from, marked so that the ledger lets them in again.

    Refused, and said, where the exposure is being worked on, stored or published by now. Exit status 1 where one was
    refused.
    """
    from alertprod.stream.dead_letter import make_replay
    from alertprod.stream.producer import AlertProducer

    if bool(letters) == (every or reason is not None):
        raise typer.BadParameter("name letters, or say --all or --reason")
    loaded = load_config(config)
    found = list(_read(loaded))
    if letters:
        chosen = _pick(found, letters)
    else:
        newest = {letter.exposure: letter for letter in found if letter.exposure is not None}  # the last one wins
        chosen = [each for each in newest.values() if each.told and (reason is None or each.told.reason == reason)]
    states = _states(loaded, chosen)
    n_sent, n_refused = 0, 0
    with AlertProducer(loaded.kafka.bootstrap_servers, options=loaded.kafka.client_options()) as producer:
        for letter in chosen:
            why = _why_not(letter, states)
            if why is not None:
                if letters:  # asked for by name; --all means those that can be
                    n_refused += 1
                    err.print(f"{letter.place}: refused: {why}", markup=False, style="red")
                continue
            try:
                event = make_replay(letter.received)
            except InvalidEvent as error:
                n_refused += 1
                err.print(f"{letter.place}: refused: {error}", markup=False, style="red")
                continue
            if not dry_run:
                producer.publish([event])
            n_sent += 1
            out.print(f"{letter.place}: {letter.exposure or 'unreadable'} to {event.topic}", markup=False)
    err.print(f"{n_sent} events {'would be ' if dry_run else ''}sent again, {n_refused} refused", markup=False)
    if n_refused:
        raise typer.Exit(1)


def _read(config: "DaemonConfig") -> Iterator[_Letter]:
    from alertprod.stream.dead_letter import parse_dead_letter
    from alertprod.stream.tail import AlertTail

    kafka = config.kafka
    with AlertTail(kafka.bootstrap_servers, [config.topics.dead_letters], options=kafka.client_options()) as tail:
        found = sorted(
            tail.messages(), key=lambda message: (message.timestamp_ms or 0, message.partition, message.offset)
        )
    for received in found:
        try:
            yield _Letter(received, parse_dead_letter(received))
        except InvalidEvent:
            yield _Letter(received, None)


def _pick(found: Iterable[_Letter], places: list[str]) -> list[_Letter]:
    by_place = {letter.place: letter for letter in found}
    missing = [place for place in places if place not in by_place]
    if missing:
        raise typer.BadParameter(
            f"there is no dead letter {', '.join(missing)}; `alertprod dead-letters ls` lists them"
        )
    return [by_place[place] for place in places]


def _states(config: "DaemonConfig", letters: Iterable[_Letter]) -> "dict[ExposureKey, LedgerState]":
    """Return what the ledger says of the letters' exposures; those it does not know are left out."""
    from alertprod.store.database import Database
    from alertprod.store.ledger import Ledger

    keys = {letter.exposure for letter in letters} - {None}
    if not keys:
        return {}
    database = Database(config.store.open_url())
    try:
        ledger = Ledger(database)
        rows = (ledger.get(key) for key in keys if key is not None)
        return {row.key: row.state for row in rows if row is not None}
    finally:
        database.close()


def _why_not(letter: _Letter, states: "dict[ExposureKey, LedgerState]") -> str | None:
    """Return why a replay would be refused by the ledger; None where it would not."""
    key = letter.exposure
    state = None if key is None else states.get(key)
    return f"{key} is {state} by now" if state in ("claimed", "stored", "published") else None


def _facts(letter: _Letter, states: "dict[ExposureKey, LedgerState]") -> dict[str, Any]:
    told, key = letter.told, letter.exposure
    facts = {} if told is None else asdict(told)
    return {
        "letter": letter.place,
        **facts,
        "key": None if letter.received.key is None else letter.received.key.decode(errors="replace"),
        "ledger_state": None if key is None else states.get(key),
        "value": _describe_value(letter.received.value),
    }


def _describe_value(value: bytes | None) -> str:
    """Return an event as text: JSON as it is, Avro decoded where it can be, the beginning of anything else."""
    from alertprod.stream.messages import decode_visit_ready

    if not value:
        return "(empty)"
    try:
        return json.dumps(decode_visit_ready(value).model_dump(mode="json", exclude_none=True))
    except InvalidEvent:
        more = f" ... ({len(value)} bytes)" if len(value) > _SHOWN_VALUE_BYTES else ""
        return repr(value[:_SHOWN_VALUE_BYTES]) + more
