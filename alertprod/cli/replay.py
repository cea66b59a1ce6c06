"""``alertprod replay``: published alerts once more, on a topic of their own."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from alertprod.cli.alert_options import parse_time
from alertprod.cli.config import ConfigOption, JsonOption
from alertprod.cli.console import count, err, print_beside, print_json, progress_bar
from alertprod.cli.settings import load_config

if TYPE_CHECKING:
    from alertprod.store.ledger import LedgerRow
    from alertprod.stream.records import OutgoingMessage


def replay(
    config: ConfigOption = None,
    instrument: Annotated[str | None, typer.Option(help="Of this instrument.")] = None,
    visit: Annotated[list[int] | None, typer.Option(help="Of this visit; several times for several.")] = None,
    detector: Annotated[list[int] | None, typer.Option(help="Of this detector.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Shutters that closed from here on: MJD (TAI), or a date in UTC.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Shutters that closed before this.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Everything that is still kept.")] = False,
    topic: Annotated[str | None, typer.Option(help="Where to; without it, the configuration's replay topic.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent; send nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish stored alerts again: the same keys and bytes, a header that says so, Kafka's time of now.

    Only what was published before, in the order of the exposures. The topics that are in use are refused.

    Exit status 0 where all was sent, 1 where something that was asked for is not kept any more.
    """
    from alertprod.errors import PartialWriteError, StoreUnavailable
    from alertprod.store.database import Database
    from alertprod.store.ledger import Ledger
    from alertprod.stream.producer import AlertProducer
    from alertprod.stream.replay import check_replay_topic

    chosen = (instrument, since, until)
    if not (every or visit or detector or any(each is not None for each in chosen)):
        raise typer.BadParameter("say which: --visit, --detector, --instrument, --since, --until, or --all")
    loaded = load_config(config)
    topic = topic or loaded.topics.replay
    check_replay_topic(topic, in_use={name for key, name in loaded.topics if name is not None and key != "replay"})
    first, last = (None if moment is None else parse_time(moment) for moment in (since, until))

    database = Database(loaded.store.open_url())
    try:
        database.check_schema()
        rows = [
            row
            for row in Ledger(database).rows_published(instrument=instrument, visits=visit, detectors=detector)
            if _closed_within(row, first, last)
        ]
    finally:
        database.close()
    n_alerts = n_failed = 0
    with (
        nullcontext()
        if dry_run
        else AlertProducer(loaded.kafka.bootstrap_servers, options=loaded.kafka.client_options()) as producer,
        progress_bar() as progress,
    ):
        task = progress.add_task("exposures", total=len(rows))
        for row in rows:
            progress.advance(task)
            try:
                messages = _messages(row, topic)
                n = sum(1 for _ in messages) if producer is None else len(producer.publish(messages).acked_at)
            except (PartialWriteError, StoreUnavailable) as error:
                n_failed += 1
                err.print(f"{row.key}: {error}", markup=False, style="red")
                continue
            n_alerts += n
            if as_json:
                print_json({"exposure": str(row.key), "topic": topic, "n_alerts": n})
            else:
                print_beside(progress, f"{row.key}: {count(n, 'alert')}")
    if not rows:
        err.print("no exposure that was published is one of those", markup=False)
        raise typer.Exit(1)
    would_be = "would be " if dry_run else ""
    failed = f"; not kept any more: {count(n_failed, 'exposure')}" if n_failed else ""
    sent = f"{count(n_alerts, 'alert')} of {count(len(rows) - n_failed, 'exposure')}"
    err.print(f"{sent} {would_be}sent to {topic}{failed}", markup=False)
    if n_failed:
        raise typer.Exit(1)


def _messages(row: "LedgerRow", topic: str) -> "Iterator[OutgoingMessage]":
    from alertprod.store.outbox import CorruptOutbox, read_outbox
    from alertprod.stream.records import OutgoingMessage
    from alertprod.stream.replay import mark_replay

    if row.outbox_uri is None or row.outbox_sha256 is None:
        raise CorruptOutbox(str(row.key), "the ledger names no outbox file")
    for message in read_outbox(row.outbox_uri, row.outbox_sha256):
        yield mark_replay(OutgoingMessage(topic=topic, key=message.key, value=message.value, headers=message.headers))


def _closed_within(row: "LedgerRow", first: float | None, last: float | None) -> bool:
    if first is None and last is None:
        return True
    closed = (row.summary or {}).get("shutter_close_mjd_tai")
    if closed is None:
        return False
    return (first is None or closed >= first) and (last is None or closed < last)
