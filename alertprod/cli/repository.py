"""``alertprod repository``: folders that tasks run on by data id."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alertprod.cli.config import JsonOption
from alertprod.cli.console import err, out, print_json, progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alertprod.errors import BadInputError

app = typer.Typer(
    help="Make and list repositories: folders of exposures and templates that `python -m alertprod.tasks` runs on.",
    no_args_is_help=True,
)

RepositoryArgument = Annotated[Path, typer.Argument(help="Folder of the repository; made when absent.")]
ProfileOption = Annotated[str, typer.Option(help="Instrument profile of the files: a name or a TOML file.")]
MatchOption = Annotated[str, typer.Option(help="Take only files of such names, for example 'img*'.")]


@app.command("add-exposures")
def add_exposures(
    repository: RepositoryArgument,
    directory: Annotated[Path, typer.Argument(help="Folder whose FITS files, at any depth, are exposures.")],
    profile: ProfileOption = "alertprod",
    match: MatchOption = "*",
    release: Annotated[int | None, typer.Option(help="Release of the DiaSource ids; 0 when new.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List a folder's exposures by visit and detector; exit status 1 where there are none."""
    from alertprod.store import repository_description as description

    with progress_bar() as progress:
        bar = progress.add_task("Reading headers", total=None)
        report = description.add_exposures(
            repository,
            str(directory.resolve()),
            profile,
            pattern=match,
            release=release,
            on_file=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    _say("exposures", repository, len(report.added), report.unusable, as_json=as_json)


@app.command("add-templates")
def add_templates(
    repository: RepositoryArgument,
    directory: Annotated[Path, typer.Argument(help="Folder whose FITS files, at any depth, are tiles.")],
    profile: ProfileOption = "alertprod",
    coadd_name: Annotated[str, typer.Option(help="Kind of coadd: deep, goodSeeing or dcr.")] = "deep",
    subfilter: Annotated[int | None, typer.Option(help="Part of the band that dcr tiles are of, from 0.")] = None,
    match: MatchOption = "*",
    band: Annotated[str | None, typer.Option(help="Band of all tiles, where their headers do not say.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Index a folder's template tiles; exit status 1 where there are none."""
    from alertprod.store import repository_description as description

    with progress_bar() as progress:
        bar = progress.add_task("Reading tiles", total=None)
        report = description.add_templates(
            repository,
            str(directory.resolve()),
            profile,
            coadd_name=coadd_name,
            subfilter=subfilter,
            pattern=match,
            band=band,
            on_tile=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    _say(f"{coadd_name} templates", repository, len(report.index.tiles), report.unusable, as_json=as_json)


@app.command("add-file")
def add_file(
    repository: Annotated[Path, typer.Argument(help="Folder of the repository.")],
    dataset: Annotated[str, typer.Argument(help="calexpBackground, src or finalVisitSummary.")],
    file: Annotated[Path, typer.Argument(help="The file: FITS, of stars a table in ECSV.")],
    visit: Annotated[int, typer.Option(help="Visit that it is of.")],
    detector: Annotated[int | None, typer.Option(help="Detector; none for a whole visit.")] = None,
) -> None:
    """Keep what another program knows of an exposure.

    The sky it took off (an image), stars to fit on (a table with x and y, pixels from 0), or a visit's last PSFs and
    aperture corrections. Tasks use src wherever it is there, the others with -c doAddCalexpBackground=True and
    -c doApplyFinalizedPsf=True.
    """
    from alertprod.store.repository_files import add_file as keep
    from alertprod.tasks.data_ids import format_data_id

    data_id = keep(repository, dataset, file, visit=visit, detector=detector)
    out.print(f"{repository}: {dataset} of {format_data_id(data_id)}", markup=False)


@app.command("ls")
def ls(
    repository: Annotated[Path, typer.Argument(help="Folder of the repository.")], as_json: JsonOption = False
) -> None:
    """List the exposures of a repository and count its templates."""
    from rich.table import Table

    from alertprod.store.repository import FolderRepository

    found = FolderRepository(repository)
    if as_json:
        print_json({"exposures": [entry.model_dump() for entry in found.exposures], "templates": found.templates})
        return
    table = Table("visit", "detector", "band", "exposure")
    for entry in found.exposures:
        table.add_row(str(entry.visit), str(entry.detector), entry.band or "?", entry.uri)
    out.print(table)
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.templates.items())
    out.print(f"{len(found.exposures)} exposures; template tiles: {kinds or 'none'}", markup=False)


def _say(what: str, repository: Path, count: int, unusable: "Sequence[BadInputError]", *, as_json: bool) -> None:
    if as_json:
        print_json({"repository": str(repository), what: count, "unusable": [str(error) for error in unusable]})
    else:
        for error in unusable:
            err.print(f"left out: {error}", markup=False, style="yellow")
        out.print(f"{repository}: {count} {what}", markup=False)
    if not count:
        raise typer.Exit(1)
