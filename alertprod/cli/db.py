"""``alertprod db``: the database's schema, and whether what is in it is sound."""

from typing import Annotated

import typer

from alertprod.cli.config import ConfigOption, JsonOption
from alertprod.cli.console import count, err, out, print_json
from alertprod.cli.settings import load_config
from alertprod.errors import ConfigError

app = typer.Typer(help="The database: its schema, its health.", no_args_is_help=True)

UrlOption = Annotated[str | None, typer.Option(help="SQLAlchemy URL, instead of the configuration's.")]


@app.command("upgrade")
def upgrade(config: ConfigOption = None, url: UrlOption = None) -> None:
    """Bring the database to this version's schema; harmless where it is there already."""
    from alertprod.store.database import Database

    database = Database(url or load_config(config).store.open_url())
    if database.folder is not None and not database.folder.is_dir():
        raise ConfigError(str(database), "store.database_url", f"there is no folder {database.folder}")
    before = database.current_revision()
    database.upgrade()
    out.print(f"{database}: {before or 'no schema'} -> {database.current_revision()}", markup=False)


@app.command("check")
def check(
    config: ConfigOption = None,
    url: UrlOption = None,
    rows: Annotated[
        bool, typer.Option("--rows/--no-rows", help="Go through all rows too; a second for a hundred thousand.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Check schema, file, what is still to be published, and whether rows agree; change nothing.

    Exit status 0 where all is well, 1 where something is wrong. The daemon may run.
    """
    from alertprod.store.checkup import check_database, count_rows
    from alertprod.store.database import Database

    database = Database(url or load_config(config).store.open_url())
    try:
        problems = list(check_database(database, rows=rows))
        revision = database.current_revision()
        # Tables that are not as they should be may not be there.
        counts = {} if any(each.what in ("revision", "tables") for each in problems) else count_rows(database)
        name = str(database)
    finally:
        database.close()
    if as_json:
        print_json(
            {"database": name, "revision": revision, "rows": counts, "problems": [each._asdict() for each in problems]}
        )
    else:
        for problem in problems:
            out.print(str(problem), markup=False, style="red")
        for table, n in counts.items():
            out.print(f"{table}: {n:,} rows", markup=False)
    verdict = "is sound" if not problems else f"has {count(len(problems), 'problem')}"
    err.print(f"{name}: revision {revision or 'none'}, {verdict}", markup=False)
    if problems:
        raise typer.Exit(1)
