"""Measurement of DiaSources, under the field's configuration names."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from alertprod.detection.footprints import FootprintSet
from alertprod.images.exposure import Exposure
from alertprod.measurement.catalog import Catalog
from alertprod.measurement.measure import MeasurementConfig, measure_dia_sources
from alertprod.tasks.config_fields import make_config_class
from alertprod.tasks.task import Task, timeMethod

DipoleFitConfig = make_config_class("DipoleFitConfig", MeasurementConfig, omitted=("fit_dipoles", "force"))
DipoleFitConfig.__module__ = __name__


class DipoleFitTask(Task):
    """Measure what was detected: centroids, fluxes, shapes, dipoles, pixel flags."""

    ConfigClass = DipoleFitConfig
    _DefaultName: ClassVar[str] = "dipoleFit"

    @timeMethod
    def run(
        self,
        sources: FootprintSet,
        exposure: Exposure,
        posExp: Exposure | None,
        negExp: Exposure | None,
        *,
        idFactory: Callable[[], int],
        doDipoleFitting: bool = True,
        doForcedMeasurement: bool = True,
    ) -> Catalog:
        """Measure sources on a difference.

        Parameters
        ----------
        sources
            Footprints on `exposure`.
        exposure
            The difference.
        posExp, negExp
            The science exposure and the matched template it is the difference of.
        idFactory
            Gives the ids, in the footprints' order.
        """
        result = measure_dia_sources(
            sources,
            exposure,
            posExp,
            negExp,
            id_factory=idFactory,
            config=self.config.makeSettings(fit_dipoles=doDipoleFitting, force=doForcedMeasurement),
        )
        self.metadata.update(
            nRejectedBadMaskPlanes=result.n_rejected_bad_peaks,
            nRemovedBadFlaggedSources=result.n_removed_bad_flags,
            nDipoles=int(result.catalog["is_dipole"].sum()),
            nTrails=int(np.isfinite(result.catalog["trail_flux"]).sum()),
        )
        return result.catalog
