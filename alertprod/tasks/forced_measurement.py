"""Forced photometry of DiaSources, under the field's configuration names."""

from typing import ClassVar

from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.measurement.catalog import Catalog
from alertprod.measurement.forced import ForcedMeasurementConfig as ForcedMeasurementSettings
from alertprod.measurement.forced import choose_template_psf, fill_forced_fluxes
from alertprod.psf.model import PointSpreadFunction
from alertprod.tasks.config_fields import make_config_class
from alertprod.tasks.task import Task, timeMethod

ForcedMeasurementConfig = make_config_class("ForcedMeasurementConfig", ForcedMeasurementSettings)
ForcedMeasurementConfig.__module__ = __name__


class ForcedMeasurementTask(Task):
    """Measure point-source fluxes of the science and template image at the places of DiaSources."""

    ConfigClass = ForcedMeasurementConfig
    _DefaultName: ClassVar[str] = "forcedMeasurement"

    @timeMethod
    def run(
        self,
        catalog: Catalog,
        science: Exposure | None,
        template: Exposure | None,
        templatePsf: PointSpreadFunction | None = None,
    ) -> None:
        """Fill the forced columns of `catalog`, in place.

        Parameters
        ----------
        catalog
            DiaSources; measured at ``x``, ``y``.
        science, template
            The images that the difference is made of; None leaves the fluxes NaN and flags them.
        templatePsf
            PSF of `template` where that has none of its own; the science PSF failing both.
        """
        fill_forced_fluxes(
            catalog,
            science,
            template,
            choose_template_psf(science, template, templatePsf),
            x=catalog["x"].astype(float),
            y=catalog["y"].astype(float),
            bad_planes=plane_bits(*self.config.excludedPlanes),
        )
