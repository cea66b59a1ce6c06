"""``alertprod schemas``: what goes over the wire."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from alertprod.cli.config import ConfigOption, JsonOption
from alertprod.cli.console import err, out, print_json
from alertprod.cli.settings import load_config

app = typer.Typer(help="Avro schemas of alerts and events.", no_args_is_help=True)


@app.command("ls")
def ls(as_json: JsonOption = False) -> None:
    """List the schemas with their ids on the wire and the fingerprints of their canonical forms."""
    from alertprod.alerts.registry import list_schemas
    from alertprod.stream.schemas import describe_event_schemas

    rows = [*(asdict(facts) for facts in list_schemas()), *describe_event_schemas()]
    if as_json:
        print_json(rows)
        return
    table = Table("schema", "version", "id", "fields", "CRC-64-AVRO")
    for row in rows:
        table.add_row(row["name"], row["version"], str(row["schema_id"]), str(row["n_fields"]), row["fingerprint"])
    out.print(table)


@app.command("register")
def register(
    url: Annotated[
        str | None, typer.Argument(help="Root of the registry's REST interface. Default: the configuration's.")
    ] = None,
    config: ConfigOption = None,
    events: Annotated[
        bool, typer.Option("--events", help="Register the schemas of events and summaries too (ids 1 to 3).")
    ] = False,
    subject: Annotated[
        list[str] | None, typer.Option(help="Subjects for the alert schema, instead of alert-packet and TOPIC-value.")
    ] = None,
    authorization: Annotated[
        str | None,
        typer.Option(
            envvar="ALERTPROD_REGISTRY_AUTHORIZATION",
            help="Value of the Authorization header. Default, for the configuration's registry: the configuration's.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Register even what breaks readers of earlier versions.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Register the alert schema under its fixed id in a Confluent-compatible registry; harmless where it is there.

    The id is part of every message, so a registry that gives another one is of no use: it must know the mode IMPORT.
    Before anything is written, the id must be free, and readers of earlier versions must be able to read the new one.
    """
    from dataclasses import replace

    from alertprod.service import schema_registration
    from alertprod.stream.schema_registry import SchemaRegistry

    settings = load_config(config)
    topics, kafka = settings.topics, settings.kafka
    if url is None:
        if kafka.registry_url is None:
            raise typer.BadParameter("there is none in the configuration (kafka.registry_url)", param_hint="URL")
        url = kafka.registry_url
        authorization = kafka.registry_authorization() if authorization is None else authorization
    registry = SchemaRegistry(url, authorization=authorization)
    registry.list_subjects()
    wanted = schema_registration.list_alert_registrations(topics.alerts)
    if subject:
        wanted = [replace(wanted[0], subject=each) for each in subject]
    if events:
        wanted += schema_registration.list_event_registrations(topics)
    rows = []
    for registration in wanted:
        outcome = schema_registration.register(registry, registration, force=force)
        row = {"subject": registration.subject, "schema_id": registration.schema_id, "outcome": outcome}
        rows.append(row)
        err.print(f"{registration.subject}: id {registration.schema_id} {outcome}", markup=False)
    if as_json:
        print_json(rows)
