"""A Butler repository made by hand, on SQLite: one instrument, a visit or more, a sky map of two patches."""

from dataclasses import dataclass, replace
from pathlib import Path

from astropy.time import Time
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


def polygon(wcs: SkyWcs, shape: tuple[int, int]) -> ConvexPolygon:
    return ConvexPolygon([UnitVector3d(*vertex) for vertex in compute_footprint(wcs, shape).vertices])


def cut(exposure: Exposure, columns: slice) -> Exposure:
    """Columns of an exposure that has world coordinates, as a tile of its own."""
    planes = (plane[:, columns].copy() for plane in (exposure.image, exposure.mask, exposure.variance))
    wcs = exposure.wcs.shifted(dx=-columns.start, dy=0.0)
    return replace(exposure, masked_image=MaskedImage(*planes), wcs=wcs, info=ExposureInfo(band="r"))


def add_visit(butler: Butler, visit: int) -> None:
    """Insert a visit and its detector's place on the sky."""
    region = polygon(WCS, (224, 224))
    begin = Time(61000.0 + visit, format="mjd", scale="tai")
    span = Timespan(begin, begin + 30.0 / 86400.0)
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


def make_repository(root: Path, visits: tuple[int, ...] = (1,), *, with_templates: bool = True) -> Made:
    """Make it; calexps and patches of deepCoadd are put."""
    Butler.makeRepo(root)
    prepare_repository(root)
    butler = Butler.from_config(root, writeable=True)
    registry = butler.registry
    registry.insertDimensionData("instrument", {"name": INSTRUMENT, "detector_max": 16, "visit_max": 1 << 30})
    registry.insertDimensionData("detector", {"instrument": INSTRUMENT, "id": DETECTOR, "full_name": "S04"})
    registry.insertDimensionData("physical_filter", {"instrument": INSTRUMENT, "name": "TestCam-r", "band": "r"})
    registry.insertDimensionData("day_obs", {"instrument": INSTRUMENT, "id": 20251121})
    registry.insertDimensionData("skymap", {"name": SKYMAP, "hash": b"s" * 20, "tract_max": 1, "patch_nx_max": 3})
    registry.insertDimensionData("tract", {"skymap": SKYMAP, "id": TRACT, "region": polygon(WCS, (400, 800))})
    pairs = {visit: make_pair(visit=visit) for visit in visits}
    whole = replace(next(iter(pairs.values())).template, wcs=WCS)
    middle = whole.shape[1] // 2
    tiles = [
        cut(whole, slice(0, middle + PATCH_OVERLAP // 2)),
        cut(whole, slice(middle - PATCH_OVERLAP // 2, whole.shape[1])),
        replace(cut(whole, slice(0, 64)), wcs=WCS.shifted(dx=5000.0, dy=0.0)),  # elsewhere on the sky
    ]
    for patch, tile in enumerate(tiles):
        registry.insertDimensionData(
            "patch",
            {
                "skymap": SKYMAP,
                "tract": TRACT,
                "id": patch,
                "cell_x": patch,
                "cell_y": 0,
                "region": polygon(tile.wcs, tile.shape),
            },
        )
    universe = butler.dimensions
    registry.registerDatasetType(
        DatasetType("calexp", ("instrument", "visit", "detector"), EXPOSURE, universe=universe)
    )
    registry.registerDatasetType(
        DatasetType("deepCoadd", ("skymap", "tract", "patch", "band"), EXPOSURE, universe=universe)
    )
    for run in INPUTS:
        butler.collections.register(run, CollectionType.RUN)
    for visit, pair in pairs.items():
        add_visit(butler, visit)
        science = replace(pair.science, wcs=WCS)
        butler.put(science, "calexp", instrument=INSTRUMENT, visit=visit, detector=DETECTOR, run=INPUTS[0])
    if with_templates:
        for patch, tile in enumerate(tiles):
            butler.put(tile, "deepCoadd", skymap=SKYMAP, tract=TRACT, patch=patch, band="r", run=INPUTS[1])
    butler.close()
    return Made(root, pairs)
