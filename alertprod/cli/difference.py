"""``alertprod difference``: one pair of images, offline: no database, no Kafka, no configuration needed."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from alertprod import __version__
from alertprod.cli.config import JsonOption
from alertprod.cli.console import err, out, print_json, progress_bar
from alertprod.errors import ConfigError

if TYPE_CHECKING:
    from alertprod.images.exposure import Exposure
    from alertprod.service.differencing import Differenced
    from alertprod.tasks.image_difference import ImageDifferenceTask


def difference(
    science: Annotated[Path, typer.Argument(help="Science image (FITS).")],
    templates: Annotated[list[Path], typer.Argument(help="Template image, or tiles of one (FITS).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results; made when absent.")],
    profile: Annotated[str, typer.Option(help="Instrument profile of the science image: a name or a TOML file.")] = (
        "alertprod"
    ),
    template_profile: Annotated[str | None, typer.Option(help="Profile of the templates; the same by default.")] = None,
    pixel_aligned: Annotated[
        bool, typer.Option("--pixel-aligned", help="The one template is on the science image's pixels: do not warp.")
    ] = False,
    convolve: Annotated[
        Literal["template", "science", "auto"], typer.Option(help="Image to convolve; auto takes the sharper.")
    ] = "auto",
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Setting of the task; can be repeated."),
    ] = None,
    table: Annotated[Literal["ecsv", "parquet"], typer.Option(help="Format of the DiaSource table.")] = "ecsv",
    as_json: JsonOption = False,
) -> None:
    """Subtract a template from a science image; write difference, template, DiaSources, alerts and a picture.

    A setting is a field of the task's configuration, as the daemon's file has them: --set detection.thresholdValue=6.
    """
    from alertprod.factory import create_task
    from alertprod.images.fits_io import load_exposure
    from alertprod.images.profile import load_profile
    from alertprod.tasks.config_fields import read_settings

    started = time.perf_counter()
    mode = {"template": "convolveTemplate", "science": "convolveScience", "auto": "auto"}[convolve]
    overrides = {"subtract.al.mode": mode}
    task = create_task({**overrides, **read_settings(setting or [], source="--set")}, source="--set")
    with progress_bar() as progress:
        bar = progress.add_task("Reading", total=4)
        science_exposure = load_exposure(science, load_profile(profile))
        tiles = [load_exposure(path, load_profile(template_profile or profile)) for path in templates]
        progress.update(bar, advance=1, description="Warping")
        template = _put_on_grid(
            science_exposure,
            tiles,
            science_path=science,
            pixel_aligned=pixel_aligned,
            required=task.config.requiredTemplateFraction,
        )
        progress.update(bar, advance=1, description="Subtracting and measuring")
        differenced = _subtract(task, science_exposure, template)
        progress.update(bar, advance=1, description="Writing")
        facts = _write(task, differenced, output, title=science.name, table=table)
        progress.update(bar, advance=1, description="Done")
    facts |= {
        "figures": {name: round(value, 4) for name, value in differenced.figures.items()},
        "seconds": round(time.perf_counter() - started, 2),
    }
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        shown = (", ".join(f"{k} {v:g}" for k, v in value.items()) or "none") if isinstance(value, dict) else value
        out.print(f"{name.replace('_', ' ')}: {shown}", markup=False)


def _put_on_grid(
    science: "Exposure", tiles: "list[Exposure]", *, science_path: Path, pixel_aligned: bool, required: float
) -> "Exposure":
    """Return the template on the science image's pixels, in nJy."""
    from alertprod.errors import CorruptImage, NoTemplateCoverage
    from alertprod.resample.merge import merge_tiles
    from alertprod.resample.warp import warp_tile

    if pixel_aligned:
        if len(tiles) != 1 or tiles[0].shape != science.shape:
            shapes = ", ".join(str(tile.shape) for tile in tiles)
            raise ConfigError(
                "--pixel-aligned", "TEMPLATE", f"one of shape {science.shape} is needed; there are {shapes}"
            )
        # Whatever the template's header says of its place: it is where the science image is.
        return replace(tiles[0], wcs=science.wcs)
    if science.wcs is None:
        raise CorruptImage(
            str(science_path), "image", "no world coordinates; --pixel-aligned subtracts images of one grid"
        )
    warped = [warp_tile(tile, science.wcs, science.shape, n_threads=2) for tile in tiles if tile.wcs is not None]
    overlapping = [tile for tile in warped if tile is not None]
    if not overlapping:
        raise NoTemplateCoverage(0.0, required)
    return merge_tiles(overlapping)


def _subtract(task: "ImageDifferenceTask", science: "Exposure", template: "Exposure") -> "Differenced":
    from alertprod.service.differencing import difference_exposures

    if science.info.visit is None or science.info.detector is None:
        # Ids need numbers, and one pair alone can have any.
        info = replace(science.info, visit=science.info.visit or 0, detector=science.info.detector or 0)
        science = replace(science, info=info)
    # The ids are of this run alone: release 0, exposure 0.
    return difference_exposures(task, science, template, id_factory=task.makeIdFactory(0, 44))


def _write(
    task: "ImageDifferenceTask", differenced: "Differenced", output: Path, *, title: str, table: str
) -> dict[str, Any]:
    from alertprod.images.fits_io import save_exposure
    from alertprod.store.catalog_files import save_catalog
    from alertprod.view.pair import save_pair

    output.mkdir(parents=True, exist_ok=True)
    files = {
        "difference": output / "difference.fits",
        "matched_template": output / "matched_template.fits",
        "dia_sources": output / f"dia_sources.{table}",
        "picture": output / "difference.png",
    }
    save_exposure(differenced.difference, files["difference"])
    save_exposure(differenced.template, files["matched_template"])
    save_catalog(differenced.sources, files["dia_sources"])
    save_pair(
        files["picture"],
        science=differenced.science,
        template=differenced.template,
        difference=differenced.difference,
        sources=differenced.sources,
        title=title,
    )
    facts: dict[str, Any] = {
        "n_dia_sources": differenced.sources.n_rows,
        "n_negative": int(differenced.sources["is_negative"].sum()),
        "n_dipoles": int(differenced.sources["is_dipole"].sum()),
        **{name: str(path) for name, path in files.items()},
    }
    if differenced.difference.wcs is None:
        err.print("no alerts: the images have no world coordinates, and an alert must say where", markup=False)
        return facts
    facts["alerts"] = str(output / "alerts.avro")
    facts["n_alerts"], facts["without_alert"] = _write_alerts(task, differenced, output / "alerts.avro")
    return facts


def _write_alerts(task: "ImageDifferenceTask", differenced: "Differenced", path: Path) -> tuple[int, dict[str, int]]:
    """Write one alert a DiaSource, each of an object of its own: there is no history offline.

    Returns
    -------
    tuple
        How many, and how many DiaSources have none, by why: their flags, mostly.
    """
    from alertprod.alerts.avro import write_alerts
    from alertprod.alerts.cutouts import CutoutConfig
    from alertprod.alerts.packet import PacketInfo
    from alertprod.association.config import AssociationConfig
    from alertprod.association.forced import ExposureFacts
    from alertprod.association.history import History
    from alertprod.service.clock import Clock
    from alertprod.service.packaging import package_alerts, prepare_sources

    difference = differenced.difference
    info = difference.info
    now = Clock().mjd_tai()
    assert difference.wcs is not None  # the caller has looked
    association = AssociationConfig()
    facts = ExposureFacts(
        visit=info.visit or 0,
        detector=info.detector or 0,
        band=info.band or "",
        midpoint_mjd_tai=info.midpoint_mjd_tai or now,
        time_processed_mjd_tai=now,
        wcs=difference.wcs,
        shape=difference.shape,
    )
    packaged = package_alerts(
        prepare_sources(differenced, facts, association=association, cutouts=CutoutConfig()),
        History.empty(),
        differenced,
        facts=facts,
        info=PacketInfo(
            observation_reason=info.observation_reason,
            target_name=info.target_name,
            program_version=__version__,
            is_nominal=differenced.science.photo_calib.is_nominal,
        ),
        forced_id_factory=task.makeIdFactory(0, 44),
        association=association,
    )
    dropped = {
        reason.removeprefix("dropped_"): count
        for reason, count in packaged.counts.items()
        if reason.startswith("dropped_") and count
    }
    return write_alerts(path, packaged.packets()), dropped
