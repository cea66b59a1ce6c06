"""Match the sources of an exposure with a reference catalogue."""

from typing import ClassVar

import numpy as np
from lsst.pex.config import Config, DictField, Field, RangeField

from alertprod.errors import TaskError
from alertprod.images.exposure import Exposure
from alertprod.measurement.catalog import Catalog
from alertprod.tasks.match_sources import SourceMatches, match_sources
from alertprod.tasks.plugins import open_reference_catalog
from alertprod.tasks.reference_loader import ReferenceLoader
from alertprod.tasks.sources import add_sky_positions
from alertprod.tasks.task import Struct, Task, timeMethod


class AstrometryConfig(Config):
    """How sources are matched with reference objects."""

    matchRadius = RangeField(
        dtype=float,
        default=1.0,
        min=0.0,
        inclusiveMin=False,
        doc="Largest distance of a pair, arcsec: world coordinates are better, and neighbours farther",
    )
    margin = RangeField(
        dtype=float, default=10.0, min=0.0, doc="Reference objects are loaded this far beyond the corners, arcsec"
    )


class LoadReferenceObjectsConfig(Config):
    """Which reference catalogue there is, and how to read it."""

    uri = Field(dtype=str, default=None, optional=True, doc="A table file, a path or any fsspec URI; none by default")
    columns = DictField(
        keytype=str,
        itemtype=str,
        default={},
        doc='Names in the file of what is called otherwise there: {"ra_deg": "RAJ2000", "mag_g": "gmag"}',
    )
    epochMjdTai = Field(
        dtype=float,
        default=None,
        optional=True,
        doc="Epoch of its positions, MJD, for proper motions, where the file has no column epoch_mjd_tai",
    )

    def makeLoader(self) -> ReferenceLoader | None:
        """Open the catalogue; None where the configuration names none.

        Raises
        ------
        ConfigError
            Raised if it cannot be read.
        """
        if self.uri is None:
            return None
        return open_reference_catalog(self.uri, columns=dict(self.columns), epoch_mjd_tai=self.epochMjdTai)


class AstrometryTask(Task):
    """Load the reference objects under an exposure and match its sources with them.

    Parameters
    ----------
    refObjLoader
        Knows the catalogue.
    """

    ConfigClass = AstrometryConfig
    _DefaultName: ClassVar[str] = "astrometry"

    def __init__(
        self, config: Config | None = None, *, refObjLoader: ReferenceLoader | None = None, **keyArgs: object
    ) -> None:
        super().__init__(config, **keyArgs)  # type: ignore[arg-type]  # handed on as they came, checked there
        self.refObjLoader = refObjLoader

    @timeMethod
    def loadAndMatch(self, exposure: Exposure, sourceCat: Catalog) -> Struct:
        """Match sources with reference objects.

        Parameters
        ----------
        exposure
            Gives world coordinates, extent and epoch.
        sourceCat
            `SOURCE_COLUMNS` of that exposure; not changed.

        Returns
        -------
        Struct
            matches: `SourceMatches`, first of the reference objects, second of the sources; refCat: every
            reference object that was loaded; offsetEast, offsetNorth: median of source minus reference, arcsec.

        Raises
        ------
        TaskError
            Raised if there is no loader, the exposure has no world coordinates, or nothing matches.
        """
        refCat = self.loadReference(exposure)
        assert exposure.wcs is not None  # or nothing would have been loaded
        sources = add_sky_positions(sourceCat, exposure.wcs)
        matches = match_sources(refCat, sources, radius_arcsec=self.config.matchRadius)
        self.metadata.update(nReference=refCat.n_rows, nMatches=len(matches))
        if not len(matches):
            raise TaskError(
                f"none of {sourceCat.n_rows} sources is within {self.config.matchRadius:.2f} arcsec of one of"
                f" {refCat.n_rows} reference objects"
            )
        east, north = _offsets_arcsec(matches)
        self.metadata.update(offsetEastArcsec=east, offsetNorthArcsec=north)
        self.log.info("%d of %d sources are reference objects", len(matches), sourceCat.n_rows)
        return Struct(matches=matches, refCat=refCat, offsetEast=east, offsetNorth=north)

    def loadReference(self, exposure: Exposure) -> Catalog:
        """Return the reference objects on an exposure, at its epoch.

        Raises
        ------
        TaskError
            Raised if there is no loader, or the exposure has no world coordinates.
        """
        if self.refObjLoader is None:
            raise TaskError("there is no reference catalogue: the task was made without a refObjLoader")
        if exposure.wcs is None:
            raise TaskError("the exposure has no world coordinates to load reference objects by")
        ra, dec = exposure.wcs.compute_center(exposure.shape)
        return self.refObjLoader.load_circle(
            ra_deg=ra,
            dec_deg=dec,
            radius_arcsec=exposure.wcs.compute_radius_arcsec(exposure.shape) + self.config.margin,
            epoch_mjd_tai=exposure.info.midpoint_mjd_tai,
        )


def _offsets_arcsec(matches: SourceMatches) -> tuple[float, float]:
    """Return the medians of second minus first, east and north."""
    east, north = matches.compute_offsets_arcsec()
    return float(np.median(east)), float(np.median(north))
