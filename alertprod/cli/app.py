"""The application: every command and the options all share."""

from typing import Annotated

import typer

from alertprod import __version__
from alertprod.cli.alerts import app as alerts
from alertprod.cli.config import app as config
from alertprod.cli.db import app as db
from alertprod.cli.dead_letters import app as dead_letters
from alertprod.cli.demo_command import demo
from alertprod.cli.difference import difference
from alertprod.cli.replay import replay
from alertprod.cli.report import report
from alertprod.cli.repository import app as repository
from alertprod.cli.run import run
from alertprod.cli.schemas import app as schemas
from alertprod.cli.send import send
from alertprod.cli.simulate import app as simulate
from alertprod.cli.status import status
from alertprod.cli.templates import app as templates

app = typer.Typer(
    name="alertprod",
    help="Streaming alert production: visit-ready events in, Rubin-compatible alerts out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"alertprod {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.command("run")(run)
app.command("status")(status)
app.command("report")(report)
app.command("demo")(demo)
app.command("difference")(difference)
app.command("send")(send)
app.command("replay")(replay)
app.add_typer(alerts, name="alerts")
app.add_typer(dead_letters, name="dead-letters")
app.add_typer(templates, name="templates")
app.add_typer(repository, name="repository")
app.add_typer(simulate, name="simulate")
app.add_typer(config, name="config")
app.add_typer(schemas, name="schemas")
app.add_typer(db, name="db")
