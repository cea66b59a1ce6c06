"""A repository of tiny exposures, and a task that runs on it: what the command line of tasks is tested with.

A module of its own, because spawned processes import the task by name.
"""

# ruff: noqa: N802, N815  the names of the task interface

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from lsst.pex.config import Config, ConfigurableField, Field, ListField

from alertprod.errors import NoWorkFound, TaskError
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.fits_io import save_exposure
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement.catalog import Catalog
from alertprod.psf.analytic import GaussianPsf
from alertprod.store.repository_description import add_exposures, add_templates
from alertprod.tasks.cmd_line_task import CmdLineTask
from alertprod.tasks.sources import SOURCE_COLUMNS, make_source_catalog
from alertprod.tasks.task import Struct, Task
from alertprod.tasks.task_runner import TemplateIdTaskRunner

VISITS = (3, 5, 8)
SHAPE = (24, 32)
WCS = SkyWcs.from_tangent(ra_deg=150.0, dec_deg=2.0, x=15.5, y=11.5, scale_arcsec=0.5)


def make_exposure(*, level=1.0, shape=SHAPE, wcs=WCS, band="r", **info):
    """A flat exposure of variance 4."""
    planes = MaskedImage(np.full(shape, level, np.float32), np.zeros(shape, np.int32), np.full(shape, 4.0, np.float32))
    return Exposure(
        masked_image=planes, wcs=wcs, psf=GaussianPsf(fwhm=3.0), info=ExposureInfo(instrument="Tiny", band=band, **info)
    )


def make_repository(directory: Path) -> Path:
    """Three visits of detector 1, whose pixels are the visit's number, and two template tiles that overlap."""
    root, images, tiles = directory / "repository", directory / "images", directory / "tiles"
    for folder in (images, tiles):
        folder.mkdir(parents=True)
    for visit in VISITS:
        save_exposure(make_exposure(level=float(visit), visit=visit, detector=1), images / f"exposure{visit}.fits")
    for name, dx in (("left", 20.0), ("right", -12.0)):
        tile = make_exposure(level=10.0, shape=(64, 44), wcs=WCS.shifted(dx=dx, dy=20.0))
        save_exposure(tile, tiles / f"{name}.fits")
    add_exposures(root, str(images))
    add_templates(root, str(tiles))
    return root


class PartConfig(Config):
    factor = Field(dtype=float, default=2.0, doc="A factor")


class PartTask(Task):
    ConfigClass = PartConfig
    _DefaultName = "part"

    def run(self, level):
        self.metadata["level"] = level
        return level * self.config.factor


class LevelConfig(Config):
    part = ConfigurableField(target=PartTask, doc="A part")
    offset = Field(dtype=float, default=0.0, doc="Is added")
    name = Field(dtype=str, default="level", doc="A name")
    refused = ListField(dtype=int, default=[], doc="Visits that are refused on purpose")
    broken = ListField(dtype=int, default=[], doc="Visits that meet a bug")
    empty = ListField(dtype=int, default=[], doc="Visits with nothing to do")
    deadly = ListField(dtype=int, default=[], doc="Visits that kill their process")
    endless = ListField(dtype=int, default=[], doc="Visits that take for ever")

    def validate(self):
        super().validate()
        if self.offset < 0 and self.name == "level":
            raise ValueError("a negative offset needs another name")


class LevelTask(CmdLineTask):
    """Measure the level of an exposure."""

    ConfigClass = LevelConfig
    _DefaultName = "level"
    RunnerClass = TemplateIdTaskRunner

    def __init__(self, butler=None, **kwargs):
        super().__init__(**kwargs)
        self.butler = butler
        self.makeSubtask("part")

    @classmethod
    def _makeArgumentParser(cls):
        parser = super()._makeArgumentParser()
        parser.add_id_argument("--templateId", "calexp", help="other exposures", makeDataRefList=False)
        return parser

    def getSchemaCatalogs(self):
        return {"level_src": Catalog(SOURCE_COLUMNS, 0)}

    def run(self, exposure):
        return Struct(level=self.part.run(float(np.median(exposure.image))) + self.config.offset)

    def runDataRef(self, dataRef, templateIdList=None):
        visit = dataRef.dataId["visit"]
        if visit in self.config.refused:
            raise TaskError("asked to refuse")
        if visit in self.config.broken:
            raise ZeroDivisionError("a bug")
        if visit in self.config.empty:
            raise NoWorkFound("nothing here")
        if visit in self.config.deadly:
            os._exit(7)
        if visit in self.config.endless:
            time.sleep(600.0)
        result = self.run(dataRef.get("calexp"))
        dataRef.put(
            make_source_catalog(x=np.array([1.0]), y=np.array([2.0]), flux=np.array([result.level])), "level_src"
        )
        self.log.info("level is %g", result.level)
        return Struct(level=result.level, templateIdList=templateIdList, hasButler=self.butler is not None)


class LonelyTask(LevelTask):
    """Cannot run beside itself."""

    canMultiprocess = False


class OverridingTask(LevelTask):
    """Has overrides of its own."""

    @classmethod
    def applyOverrides(cls, config):
        config.offset = 100.0


def shifted(exposure: Exposure, *, dx: float, dy: float) -> Exposure:
    """The same pixels elsewhere on the sky."""
    assert exposure.wcs is not None
    return replace(exposure, wcs=exposure.wcs.shifted(dx=dx, dy=dy))
