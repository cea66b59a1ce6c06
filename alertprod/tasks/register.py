"""Registration: world coordinates of one image fitted to the sources of another, so that a warp by them aligns both."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from lsst.pex.config import ChoiceField, Field, RangeField

from alertprod._typing import FloatArray
from alertprod.errors import TaskError
from alertprod.geometry.box import Box
from alertprod.geometry.sphere import separation_arcsec
from alertprod.geometry.wcs import SkyWcs
from alertprod.geometry.wcs_fit import WcsFit, WcsFitConfig, fit_wcs
from alertprod.images.exposure import Exposure
from alertprod.measurement.catalog import Catalog
from alertprod.resample.warp import warp_exposure
from alertprod.tasks.config_fields import make_config_class
from alertprod.tasks.match_sources import SourceMatches, match_sources
from alertprod.tasks.sources import add_sky_positions
from alertprod.tasks.task import Struct, Task, timeMethod

_FitFields: Any = make_config_class("RegisterFitConfig", WcsFitConfig)

_IQR_TO_SIGMA = 0.741
"""Standard deviation of a normal sample in units of its interquartile range."""


class RegisterConfig(_FitFields):
    """How sources are matched and world coordinates fitted."""

    matchRadius = RangeField(
        dtype=float,
        default=1.0,
        min=0.0,
        inclusiveMin=False,
        doc="Largest distance of a pair before the fit, arcsec: misregistrations are smaller, neighbours farther",
    )
    minMatchRadiusPixels = RangeField(
        dtype=float,
        default=2.0,
        min=0.0,
        doc="But at least this many pixels: an arcsec is less than one on cameras that undersample",
    )
    warpingKernel = ChoiceField(
        dtype=str,
        allowed={"bilinear": "Two pixels wide", "lanczos3": "Six pixels wide", "lanczos5": "Ten pixels wide"},
        default="lanczos3",
        optional=False,
        doc="Kernel of the warp",
    )
    nThreads = Field(dtype=int, default=2, doc="Threads of the warp")


class RegisterTask(Task):
    """Fit world coordinates of an image to sources whose sky positions hold, and warp by them."""

    ConfigClass = RegisterConfig
    _DefaultName: ClassVar[str] = "register"

    @timeMethod
    def run(self, inputSources: Catalog, inputWcs: SkyWcs, inputBBox: Box, templateSources: Catalog) -> Struct:
        """Fit new world coordinates for the image that the input sources are of.

        Parameters
        ----------
        inputSources
            Sources of the image to register, `SOURCE_COLUMNS`; their `x` and `y` count.
        inputWcs
            That image's world coordinates as they are.
        inputBBox
            Its pixels.
        templateSources
            Sources whose `ra_deg` and `dec_deg` are right; those that are flagged in either table are not used.

        Returns
        -------
        Struct
            wcs: the fit; matches: `SourceMatches` it was fitted to, first of `templateSources`, second of
            `inputSources` with the sky positions they have by the fit; scatter_arcsec about the fit along one axis;
            scatter_pixels;
            sipOrder, the degree that was fitted; nMatches before rejection.

        Raises
        ------
        TaskError
            Raised if too few sources match.

        Notes
        -----
        Matched twice: the second time with the first fit and a radius of what was left, so that pairs of wrong
        neighbours within the first radius do not stay.
        """
        if not np.isfinite(templateSources["ra_deg"]).any():
            raise TaskError(f"none of {templateSources.n_rows} template sources has a sky position to register to")
        scale = inputWcs.compute_pixel_scale_arcsec(
            x=0.5 * (inputBBox.x_min + inputBBox.x_max - 1), y=0.5 * (inputBBox.y_min + inputBBox.y_max - 1)
        )
        radius = max(self.config.matchRadius, self.config.minMatchRadiusPixels * scale)
        references = _without_flagged(templateSources)
        matches = match_sources(
            references, _without_flagged(add_sky_positions(inputSources, inputWcs)), radius_arcsec=radius
        )
        fit = self._fit(matches, inputBBox, inputSources.n_rows, templateSources.n_rows, radius)
        radius = min(radius, max(_NEAR_SIGMAS * fit.scatter_arcsec, _NEAR_PIXELS * scale))
        matches = match_sources(
            references, _without_flagged(add_sky_positions(inputSources, fit.wcs)), radius_arcsec=radius
        )
        fit = self._fit(matches, inputBBox, inputSources.n_rows, templateSources.n_rows, radius)
        n_matches = len(matches)
        matches = _place(matches.select(fit.used), fit.wcs)
        self.metadata.update(
            nMatches=n_matches,
            nMatchesUsed=len(matches),
            sipOrder=fit.order,
            scatterArcsec=fit.scatter_arcsec,
            scatterPixels=fit.scatter_arcsec / scale,
        )
        self.log.info(
            "registered on %d of %d matches, order %d, scatter %.4f arcsec",
            len(matches),
            n_matches,
            fit.order,
            fit.scatter_arcsec,
        )
        return Struct(
            wcs=fit.wcs,
            matches=matches,
            scatter_arcsec=fit.scatter_arcsec,
            scatter_pixels=fit.scatter_arcsec / scale,
            sipOrder=fit.order,
            nMatches=n_matches,
        )

    def _fit(self, matches: SourceMatches, box: Box, n_inputs: int, n_references: int, radius: float) -> WcsFit:
        try:
            return fit_wcs(
                x=matches.second["x"],
                y=matches.second["y"],
                ra_deg=matches.first["ra_deg"],
                dec_deg=matches.first["dec_deg"],
                box=box,
                config=self.config.makeSettings(),
            )
        except ValueError as error:
            raise TaskError(
                f"cannot register: {len(matches)} matches within {radius:.2f} arcsec of {n_inputs} sources"
                f" with {n_references}: {error}"
            ) from error

    @timeMethod
    def warpExposure(self, inputExp: Exposure, newWcs: SkyWcs, templateWcs: SkyWcs, templateBBox: Box) -> Exposure:
        """Return an exposure, taken to have the world coordinates `newWcs`, on the pixels of another.

        Parameters
        ----------
        inputExp
            The exposure to warp; it is not changed.
        newWcs
            Its world coordinates as `run` fitted them.
        templateWcs, templateBBox
            World coordinates and pixels of the target grid.
        """
        target = templateWcs.shifted(dx=-templateBBox.x_min, dy=-templateBBox.y_min)
        return warp_exposure(
            replace(inputExp, wcs=newWcs),
            target,
            templateBBox.shape,
            kernel=self.config.warpingKernel,
            n_threads=self.config.nThreads,
        )

    def measureColorOffsets(self, matches: SourceMatches, *, grMin: float, grMax: float) -> dict[str, float]:
        """Record by colour how far matched sources are off, as atmospheric refraction makes them.

        Parameters
        ----------
        matches
            As `run` returns them. The colour is that of either table that knows it.
        grMin, grMax
            Bluer than the one is blue, redder than the other red.

        Returns
        -------
        dict
            Register{Blue,Green,Red}{Long,Lat}Offset{Median,Std}, arcsec, input source minus the position that holds,
            east (times cos(dec)) and north; NaN for a colour that no source has. In `metadata` too.
        """
        color = np.where(
            np.isfinite(matches.first["g_minus_r"]), matches.first["g_minus_r"], matches.second["g_minus_r"]
        )
        groups = {"Blue": color < grMin, "Green": (color >= grMin) & (color <= grMax), "Red": color > grMax}
        east, north = matches.compute_offsets_arcsec()
        offsets: dict[str, float] = {}
        for name, rows in groups.items():
            for axis, values in (("Long", east[rows]), ("Lat", north[rows])):
                offsets[f"Register{name}{axis}OffsetMedian"], offsets[f"Register{name}{axis}OffsetStd"] = _summarise(
                    values
                )
            self.log.info(
                "%s stars (%d): east %.4f, north %.4f arcsec",
                name.lower(),
                int(rows.sum()),
                offsets[f"Register{name}LongOffsetMedian"],
                offsets[f"Register{name}LatOffsetMedian"],
            )
        self.metadata.update(offsets)
        return offsets


_NEAR_SIGMAS = 5.0
"""Of the first fit's scatter: pairs of the second matching are no farther apart, unless they are within `_NEAR_PIXELS`."""

_NEAR_PIXELS = 0.5
"""Below, the scatter of a few exact pairs would exclude the others."""


def _without_flagged(sources: Catalog) -> Catalog:
    """Return a copy in which flagged rows have no position, so that they match nothing and rows keep their numbers."""
    placed = sources.select(np.arange(sources.n_rows))
    placed["ra_deg"][placed["flag"]] = np.nan
    return placed


def _place(matches: SourceMatches, wcs: SkyWcs) -> SourceMatches:
    """Return matches whose second sources are where `wcs` puts them."""
    second = add_sky_positions(matches.second, wcs)
    first = matches.first
    separation = separation_arcsec(first["ra_deg"], first["dec_deg"], second["ra_deg"], second["dec_deg"])
    return replace(matches, second=second, separation_arcsec=separation)


def _summarise(values: FloatArray) -> tuple[float, float]:
    """Return median and robust standard deviation; NaN where there are no values."""
    if not len(values):
        return float("nan"), float("nan")
    low, median, high = np.percentile(values, [25.0, 50.0, 75.0])
    return float(median), float(_IQR_TO_SIGMA * (high - low))
