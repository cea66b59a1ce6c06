"""``alertprod templates``: the index of template tiles."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from alertprod.cli.config import JsonOption
from alertprod.cli.console import err, out, print_json, progress_bar

app = typer.Typer(help="Index and list template tiles.", no_args_is_help=True)


@app.command("index")
def index(
    directory: Annotated[Path, typer.Argument(help="Folder whose FITS files, at any depth, are tiles.")],
    profile: Annotated[str, typer.Option(help="Instrument profile of the tiles: a name or a TOML file.")] = "alertprod",
    band: Annotated[str | None, typer.Option(help="Band of all tiles, where their headers do not say.")] = None,
    match: Annotated[str, typer.Option(help="Take only files of such names, for example 'template*'.")] = "*",
    output: Annotated[Path | None, typer.Option("-o", help="The index; DIRECTORY/templates.json by default.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the index of footprints; exit status 1 where no file can be a template."""
    from alertprod.images.profile import load_profile
    from alertprod.store.template_index import INDEX_NAME, index_templates

    target = output or directory / INDEX_NAME
    with progress_bar() as progress:
        bar = progress.add_task("Reading tiles", total=None)
        report = index_templates(
            str(directory.resolve()),
            load_profile(profile),
            band=band,
            pattern=match,
            index_uri=str(target.resolve()),
            on_tile=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    tiles = report.index.tiles
    bands = sorted({tile.band or "?" for tile in tiles})
    if as_json:
        unusable = [str(error) for error in report.unusable]
        print_json({"index": str(target), "tiles": len(tiles), "bands": bands, "unusable": unusable})
    else:
        for error in report.unusable:
            err.print(f"left out: {error}", markup=False, style="yellow")
        out.print(f"{target}: {len(tiles)} tiles in {', '.join(bands) or 'no band'}", markup=False)
    if not tiles:
        raise typer.Exit(1)


@app.command("ls")
def ls(
    index_file: Annotated[Path, typer.Argument(help="What `templates index` wrote.")],
    as_json: JsonOption = False,
) -> None:
    """List the tiles of an index."""
    from alertprod.geometry.sphere import sky_positions
    from alertprod.store.template_index import TemplateIndex

    rows = []
    for tile in TemplateIndex.load(str(index_file)).tiles:
        ra, dec = sky_positions(tile.footprint.center)
        rows.append(
            {
                "uri": tile.uri,
                "band": tile.band,
                "ra_deg": round(float(ra), 5),
                "dec_deg": round(float(dec), 5),
                "radius_arcmin": round(tile.footprint.radius_arcsec / 60.0, 2),
                "depth_mag": tile.depth_mag,
                "psf_fwhm_arcsec": tile.psf_fwhm_arcsec,
            }
        )
    if as_json:
        print_json(rows)
        return
    table = Table("tile", "band", "ra [deg]", "dec [deg]", "radius [arcmin]", "depth [mag]", "FWHM [arcsec]")
    for row in rows:
        depth, fwhm = row["depth_mag"], row["psf_fwhm_arcsec"]
        table.add_row(
            Path(str(row["uri"])).name,
            str(row["band"] or "?"),
            str(row["ra_deg"]),
            str(row["dec_deg"]),
            str(row["radius_arcmin"]),
            "-" if depth is None else f"{depth:.2f}",
            "-" if fwhm is None else f"{fwhm:.2f}",
        )
    out.print(table)
