"""``alertprod schemas``: what goes over the wire."""

from dataclasses import asdict

import typer
from rich.table import Table

from alertprod.cli.config import JsonOption
from alertprod.cli.console import out, print_json

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
