"""The application: every command and the options all share."""

from typing import Annotated

import typer

from alertprod import __version__
from alertprod.cli import alerts, config, demo, difference, run, schemas, send, simulate, templates

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


app.command("run")(run.run)
app.command("demo")(demo.demo)
app.command("difference")(difference.difference)
app.command("send")(send.send)
app.command("simulate")(simulate.simulate)
app.add_typer(alerts.app, name="alerts")
app.add_typer(templates.app, name="templates")
app.add_typer(config.app, name="config")
app.add_typer(schemas.app, name="schemas")
