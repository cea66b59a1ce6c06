"""The template of an exposure: tiles of a coadd, or other exposures, warped onto its pixels and merged."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from lsst.pex.config import ChoiceField, Config, ConfigField, Field, RangeField

from alertprod.detection.high_variance import HighVarianceConfig, mark_high_variance
from alertprod.errors import NoTemplateCoverage, TaskError, TemplateUnreadable, UnusableExposure
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.resample.merge import merge_tiles
from alertprod.resample.warp import WarpedTile, warp_tile
from alertprod.tasks.config_fields import make_config_class
from alertprod.tasks.data_ids import format_data_id
from alertprod.tasks.protocols import DataId, DataRef, DatasetHandle, QuantumContext
from alertprod.tasks.task import Struct, Task, timeMethod

HighVarianceFields = make_config_class("HighVarianceFields", HighVarianceConfig)
HighVarianceFields.__module__ = __name__

CALEXP = "calexp"
"""The dataset of other exposures that serve as a template."""


class GetCoaddAsTemplateConfig(Config):
    """Which tiles, and how they are put together."""

    coaddName = ChoiceField(
        dtype=str,
        allowed={
            "deep": "Mean of everything there is",
            "goodSeeing": "Of the sharpest exposures",
            "dcr": "One coadd for each part of the band, for differential chromatic refraction",
        },
        default=None,
        optional=True,
        doc="Kind of coadd; by default what the task says that this one is part of, which names its datasets after it",
    )
    dcrNumSubfilters = RangeField(
        dtype=int, default=3, min=2, doc='Parts of the band, where coaddName is "dcr": each tile needs all of them'
    )
    templateBorderSize = RangeField(
        dtype=int,
        default=0,
        min=0,
        doc="Pixels by which the template is larger than the exposure on each side. None are needed: the tiles are"
        " warped straight onto the exposure's pixels, and with none the template is on its grid",
    )
    warpingKernelName = ChoiceField(
        dtype=str,
        allowed={
            "bilinear": "Reaches one pixel: smooths",
            "lanczos3": "Reaches three pixels",
            "lanczos5": "Reaches five pixels: sharper, and rings farther",
        },
        default="lanczos3",
        optional=False,
        doc="Interpolation",
    )
    nThreads = RangeField(dtype=int, default=2, min=1, doc="Threads that share the warping of a tile")
    doMaskHighVariance = Field(dtype=bool, default=True, doc="Set HIGH_VARIANCE where the template is much noisier")
    highVariance = ConfigField(dtype=HighVarianceFields, doc="What much noisier is")


class GetCoaddAsTemplateTask(Task):
    """Build the template of an exposure."""

    ConfigClass = GetCoaddAsTemplateConfig
    _DefaultName: ClassVar[str] = "getTemplate"

    def __init__(self, config: Config | None = None, **keyArgs: Any) -> None:
        super().__init__(config, **keyArgs)
        parent = keyArgs.get("parentTask")
        inherited: str = "deep" if parent is None else getattr(parent.config, "coaddName", "deep")
        self.coaddName: str = self.config.coaddName or inherited

    def runDataRef(
        self, exposure: Exposure, sensorRef: DataRef, templateIdList: Sequence[DataId] | None = None
    ) -> Struct:
        """Build the template from what a repository has.

        Parameters
        ----------
        exposure
            With world coordinates and band.
        sensorRef
            Its data reference.
        templateIdList
            Data ids of exposures to use as the template, instead of coadd tiles; keys that they leave open are those
            of `sensorRef`.

        Returns
        -------
        Struct
            As `run`.

        Raises
        ------
        NoTemplateCoverage
            Raised if nothing lies on the exposure.
        TaskError
            Raised if `templateIdList` names no exposure but the one itself.
        TemplateUnreadable, UnusableExposure
            Raised as by `run`.
        """
        wcs, band = _require_place(exposure)
        tiles: Sequence[DatasetHandle]
        if templateIdList:
            tiles = self._find_exposures(sensorRef, templateIdList)
        else:
            tiles = sensorRef.butler.find(wcs, exposure.shape, band, self.coaddName)
        return self.run(tiles, wcs=wcs, shape=exposure.shape, band=band)

    def runQuantum(
        self,
        exposure: Exposure,
        butlerQC: QuantumContext,
        skyMapRef: Any,
        coaddExposureRefs: Any,
    ) -> Struct:
        """Build the template from the tiles of a quantum; returns and raises as `run`.

        Parameters
        ----------
        skyMapRef
            Not needed: each tile's world coordinates say where it is.
        coaddExposureRefs
            Deferred tiles; those that do not reach the exposure are passed over.
        """
        del skyMapRef
        wcs, band = _require_place(exposure)
        return self.run(butlerQC.get(coaddExposureRefs), wcs=wcs, shape=exposure.shape, band=band)

    @timeMethod
    def run(
        self,
        tiles: Iterable[DatasetHandle],
        *,
        wcs: SkyWcs,
        shape: tuple[int, int],
        band: str,
        requiredTemplateFraction: float = 0.1,
    ) -> Struct:
        """Warp and merge tiles.

        Parameters
        ----------
        tiles
            Read one after the other, so that the memory of one is enough.
        wcs, shape, band
            Of the exposure: world coordinates, rows and columns, band.
        requiredTemplateFraction
            For the error's message alone: judging a coverage above 0 is `ImageDifferenceTask`'s.

        Returns
        -------
        Struct
            exposure: the template, on the exposure's pixels and templateBorderSize more on each side; NaN, NO_DATA and
            infinite variance where no tile has data; sources: None; area: how many of its pixels have data.

        Raises
        ------
        NoTemplateCoverage
            Raised if no tile has data on the exposure.
        TemplateUnreadable
            Raised if a tile has no world coordinates, another band, or cannot be put on the exposure's grid.
        TaskError
            Raised if a tile of a dcr coadd does not have all its subfilters.
        """
        border = self.config.templateBorderSize
        grid = wcs.shifted(dx=border, dy=border) if border else wcs
        grid_shape = (shape[0] + 2 * border, shape[1] + 2 * border)
        if self.coaddName == "dcr":
            merged = self._merge_subfilters(list(tiles), grid, grid_shape, band)
        else:
            merged = self._merge(tiles, grid, grid_shape, band)
        area = 0 if merged is None else int(np.count_nonzero((merged.mask & plane_bits("NO_DATA")) == 0))
        if merged is None or area == 0:
            raise NoTemplateCoverage(0.0, requiredTemplateFraction)
        if self.config.doMaskHighVariance:
            marked = mark_high_variance(merged.masked_image, config=self.config.highVariance.makeSettings())
            self.metadata["highVarianceFraction"] = marked
        self.metadata["templateArea"] = area
        return Struct(exposure=merged, sources=None, area=area)

    def _find_exposures(self, sensorRef: DataRef, templateIdList: Sequence[DataId]) -> list[DatasetHandle]:
        naming = {key: value for key, value in sensorRef.dataId.items() if key in ("instrument", "detector")}
        refs = sensorRef.butler.subset(CALEXP, [{**naming, **templateId} for templateId in templateIdList])
        others = [ref for ref in refs if dict(ref.dataId) != dict(sensorRef.dataId)]
        if not others:
            said = "; ".join(format_data_id(templateId) for templateId in templateIdList)
            raise TaskError(f"no other exposure of the template ids {said}")
        return [_Deferred(ref) for ref in others]

    def _merge(self, tiles: Iterable[DatasetHandle], wcs: SkyWcs, shape: tuple[int, int], band: str) -> Exposure | None:
        """Return the merged tiles; None where none reaches the grid."""
        names: list[str] = []

        def warped() -> Iterator[WarpedTile]:
            for tile in tiles:
                part = self._warp(tile, wcs, shape, band)
                if part is not None:
                    names.append(format_data_id(tile.dataId))
                    yield part

        parts = warped()
        first = next(parts, None)
        if first is None:
            return None
        merged = merge_tiles(itertools.chain([first], parts))
        self.log.debug("template of %d tiles: %s", len(names), "; ".join(names))
        self.metadata["nTiles"] = self.metadata.get("nTiles", 0) + len(names)
        return merged

    def _warp(self, tile: DatasetHandle, wcs: SkyWcs, shape: tuple[int, int], band: str) -> WarpedTile | None:
        exposure: Exposure = tile.get()
        name = format_data_id(tile.dataId)
        if exposure.wcs is None:
            raise TemplateUnreadable(name, "no world coordinates")
        if exposure.info.band not in (None, band):
            raise TemplateUnreadable(name, f"its band is {exposure.info.band}, the exposure's is {band}")
        exposure = replace(exposure, info=replace(exposure.info, band=band))
        try:
            return warp_tile(exposure, wcs, shape, kernel=self.config.warpingKernelName, n_threads=self.config.nThreads)
        except ValueError as error:
            raise TemplateUnreadable(name, f"cannot be put on the exposure's grid: {error}") from error

    def _merge_subfilters(
        self, tiles: list[DatasetHandle], wcs: SkyWcs, shape: tuple[int, int], band: str
    ) -> Exposure | None:
        """Return the mean of the subfilters' templates; a pixel that one of them lacks has no data.

        Notes
        -----
        The subfilters' noise is taken as independent: ``V = sum V_i / N²``.
        """
        by_subfilter: dict[int, list[DatasetHandle]] = {n: [] for n in range(self.config.dcrNumSubfilters)}
        for tile in tiles:
            subfilter = tile.dataId.get("subfilter")
            if subfilter not in by_subfilter:
                raise TaskError(
                    f"tile {format_data_id(tile.dataId)} is of subfilter {subfilter};"
                    f" dcrNumSubfilters is {self.config.dcrNumSubfilters}"
                )
            by_subfilter[int(subfilter)].append(tile)
        numbers = {n: len(found) for n, found in by_subfilter.items()}
        if len(set(numbers.values())) > 1:
            raise TaskError(f"subfilters are missing: tiles by subfilter are {numbers}")
        merged = [self._merge(found, wcs, shape, band) for found in by_subfilter.values()]
        parts = [part for part in merged if part is not None]
        if len(parts) < len(merged):
            return None
        # With one variance for all of them the weights of a merge are equal, for pixels and PSF alike.
        variance = np.mean([part.variance for part in parts], axis=0, dtype=np.float64).astype(np.float32)
        for part in parts:
            part.masked_image.variance[...] = variance
        mean = merge_tiles(parts)
        mean.masked_image.variance /= np.float32(len(parts))
        return mean


class _Deferred:
    """An exposure that is read when its turn comes."""

    def __init__(self, ref: DataRef) -> None:
        self._ref = ref

    @property
    def dataId(self) -> DataId:
        return self._ref.dataId

    def get(self) -> Exposure:
        exposure: Exposure = self._ref.get(CALEXP)
        return exposure


def _require_place(exposure: Exposure) -> tuple[SkyWcs, str]:
    if exposure.wcs is None:
        raise UnusableExposure("science", "wcs", "there are no world coordinates, so no place to seek a template")
    if exposure.info.band is None:
        raise UnusableExposure("science", "band", "nobody says it, and templates are of a band")
    return exposure.wcs, exposure.info.band
