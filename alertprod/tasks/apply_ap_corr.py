"""Aperture corrections on a catalogue, under the field's configuration names."""

from typing import ClassVar

from lsst.pex.config import Config, DictField, Field, ListField

from alertprod.images.ap_corr import ApCorrMap
from alertprod.measurement.ap_corr import apply_ap_corr
from alertprod.measurement.catalog import Catalog
from alertprod.tasks.task import Task, timeMethod


class ApplyApCorrConfig(Config):
    """Which fluxes are corrected."""

    ignoreList = ListField(dtype=str, default=[], doc="Fluxes that stay as they are, by column")
    proxies = DictField(
        keytype=str,
        itemtype=str,
        default={},
        doc="Fluxes that the map does not name, and those whose correction they take instead",
    )
    doFlagApCorrFailures = Field(
        dtype=bool, default=True, doc="Call a flux failed where its correction is: uncorrected fluxes mix scales"
    )


class ApplyApCorrTask(Task):
    """Multiply fluxes and errors by the aperture correction at each source."""

    ConfigClass = ApplyApCorrConfig
    _DefaultName: ClassVar[str] = "applyApCorr"

    @timeMethod
    def run(self, catalog: Catalog, apCorrMap: ApCorrMap) -> None:
        """Correct the fluxes of `catalog` that `apCorrMap` names, in place; once, for factors multiply.

        Parameters
        ----------
        catalog
            Sources with ``x``, ``y`` and fluxes.
        apCorrMap
            The correction of each flux, by its column.
        """
        failures = apply_ap_corr(
            catalog,
            apCorrMap,
            ignored=tuple(self.config.ignoreList),
            proxies=dict(self.config.proxies),
            flag_failures=self.config.doFlagApCorrFailures,
        )
        self.metadata["nApCorrFailures"] = sum(failures.values())
        for name, n_failed in failures.items():
            if n_failed:
                self.log.warning(
                    "the aperture correction of %s failed for %d of %d sources", name, n_failed, catalog.n_rows
                )
