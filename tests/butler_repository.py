"""A Butler repository made by hand, on SQLite: one instrument, a visit or more, a sky map of two patches."""

from dataclasses import dataclass, replace
from pathlib import Path

from astropy.time import Time, TimeDelta
from lsst.daf.butler import Butler, CollectionType, DatasetType, Timespan
from lsst.sphgeom import ConvexPolygon, UnitVector3d
from made_skies import Pair, make_pair

from alertprod.butler import EXPOSURE
from alertprod.butler.definitions import prepare_repository
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.masked_image import MaskedImage
from alertprod.store.sky import compute_footprint

INSTRUMENT, SKYMAP, DETECTOR, TRACT = "TestCam", "test_sky", 4, 0
SHAPE = (224, 224)
INPUTS = ("TestCam/calexp", "templates")
"""Collections that are read."""

WCS = SkyWcs.from_tangent(ra_deg=150.0, dec_deg=2.0, x=111.5, y=111.5, scale_arcsec=0.5)
PATCH_OVERLAP = 24
"""Columns that both patches have."""


@dataclass(frozen=True)
class Made:
    """A repository, and the skies in it by visit."""

    root: Path
    pairs: dict[int, Pair]
    tiles: list[Exposure]


def polygon(wcs: SkyWcs, shape: tuple[int, int]) -> ConvexPolygon:
    return ConvexPolygon([UnitVector3d(*vertex) for vertex in compute_footprint(wcs, shape).vertices])


def cut(exposure: Exposure, columns: slice) -> Exposure:
    """Columns of an exposure that has world coordinates, as a tile of its own."""
    planes = (plane[:, columns].copy() for plane in (exposure.image, exposure.mask, exposure.variance))
    wcs = exposure.wcs.shifted(dx=-columns.start, dy=0.0)
    return replace(exposure, masked_image=MaskedImage(*planes), wcs=wcs, info=ExposureInfo(band="r"))


def add_visit(butler: Butler, visit: int) -> None:
    """Insert a visit and its detector's place on the sky."""
    region = polygon(WCS, SHAPE)
    begin = Time(61000.0 + visit, format="mjd", scale="tai")
    span = Timespan(begin, begin + TimeDelta(30.0, format="sec"))
    butler.registry.insertDimensionData(
        "visit",
        {
            "instrument": INSTRUMENT,
            "id": visit,
            "name": f"v{visit}",
            "physical_filter": "TestCam-r",
            "day_obs": 20251121,
            "exposure_time": 30.0,
            "timespan": span,
            "region": region,
        },
    )
    butler.registry.insertDimensionData(
        "visit_detector_region",
        {"instrument": INSTRUMENT, "visit": visit, "detector": DETECTOR, "region": region},
    )


def put_tiles(root: Path, tiles: list[Exposure], *, run: str) -> None:
    """Put a template tile for each patch."""
    with Butler.from_config(root, writeable=True, run=run) as butler:
        for patch, tile in enumerate(tiles):
            butler.put(tile, "deepCoadd", skymap=SKYMAP, tract=TRACT, patch=patch, band="r")


def make_repository(root: Path, visits: tuple[int, ...] = (1,)) -> Made:
    """Make it; calexps and patches of deepCoadd are put."""
    Butler.makeRepo(root)
    prepare_repository(root)
    pairs = {visit: make_pair(visit=visit) for visit in visits}
    whole = replace(next(iter(pairs.values())).template, wcs=WCS)
    middle = SHAPE[1] // 2
    tiles = [
        cut(whole, slice(0, middle + PATCH_OVERLAP // 2)),
        cut(whole, slice(middle - PATCH_OVERLAP // 2, SHAPE[1])),
        replace(cut(whole, slice(0, 64)), wcs=WCS.shifted(dx=5000.0, dy=0.0)),  # elsewhere on the sky
    ]
    with Butler.from_config(root, writeable=True) as butler:
        insert_dimensions(butler, tiles)
        universe = butler.dimensions
        for name, dimensions in {
            "calexp": ("instrument", "visit", "detector"),
            "deepCoadd": ("skymap", "tract", "patch", "band"),
        }.items():
            butler.registry.registerDatasetType(DatasetType(name, dimensions, EXPOSURE, universe=universe))
        butler.collections.register(INPUTS[0], CollectionType.RUN)
        for visit, pair in pairs.items():
            add_visit(butler, visit)
            science = replace(pair.science, wcs=WCS)
            butler.put(science, "calexp", instrument=INSTRUMENT, visit=visit, detector=DETECTOR, run=INPUTS[0])
    put_tiles(root, tiles, run=INPUTS[1])
    return Made(root, pairs, tiles)


def insert_dimensions(butler: Butler, tiles: list[Exposure]) -> None:
    """Insert the instrument and the sky map."""
    insert = butler.registry.insertDimensionData
    insert("instrument", {"name": INSTRUMENT, "detector_max": 16, "visit_max": 1 << 30})
    insert("detector", {"instrument": INSTRUMENT, "id": DETECTOR, "full_name": "S04"})
    insert("physical_filter", {"instrument": INSTRUMENT, "name": "TestCam-r", "band": "r"})
    insert("day_obs", {"instrument": INSTRUMENT, "id": 20251121})
    insert("skymap", {"name": SKYMAP, "hash": b"s" * 20, "tract_max": 1, "patch_nx_max": 3})
    insert("tract", {"skymap": SKYMAP, "id": TRACT, "region": polygon(WCS, (400, 800))})
    for patch, tile in enumerate(tiles):
        region = polygon(tile.wcs, tile.shape)
        insert("patch", {"skymap": SKYMAP, "tract": TRACT, "id": patch, "cell_x": patch, "cell_y": 0, "region": region})
