"""``alertprod db``: the database's schema."""

from typing import Annotated

import typer

from alertprod.cli.config import ConfigOption
from alertprod.cli.console import out
from alertprod.config import load_config

app = typer.Typer(help="The database's schema.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `upgrade` a subcommand: an application with one command would swallow its name."""


@app.command("upgrade")
def upgrade(
    config: ConfigOption = None,
    url: Annotated[str | None, typer.Option(help="SQLAlchemy URL, instead of the configuration's.")] = None,
) -> None:
    """Bring the database to this version's schema; harmless where it is there already."""
    from alertprod.store.database import Database

    database = Database(url or load_config(config).store.open_url())
    before = database.current_revision()
    database.upgrade()
    out.print(f"{database}: {before or 'no schema'} -> {database.current_revision()}", markup=False)
