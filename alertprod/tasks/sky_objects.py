"""Sky sources, under the field's configuration names."""

from typing import ClassVar

from alertprod._typing import IntArray
from alertprod.detection.footprints import FootprintSet
from alertprod.detection.sky_footprints import SkyFootprintConfig, place_sky_footprints
from alertprod.tasks.config_fields import make_config_class
from alertprod.tasks.task import Task, timeMethod

SkyObjectsConfig = make_config_class("SkyObjectsConfig", SkyFootprintConfig, renamed={"avoided_planes": "avoidMask"})
SkyObjectsConfig.__module__ = __name__


class SkyObjectsTask(Task):
    """Place footprints where nothing was detected."""

    ConfigClass = SkyObjectsConfig
    _DefaultName: ClassVar[str] = "skyObjects"

    @timeMethod
    def run(self, mask: IntArray, seed: int) -> FootprintSet:
        """Return sky footprints.

        Parameters
        ----------
        mask
            Mask plane of the image that was detected on, shape ``(ny, nx)``, DETECTED planes set.
        seed
            Usually the exposure's id: the same one gives the same places.

        Returns
        -------
        FootprintSet
            With `is_sky` set; join it to the detections with `FootprintSet.concatenate`.
        """
        footprints = place_sky_footprints(mask, seed=seed, config=self.config.makeSettings())
        self.metadata["nSkySources"] = len(footprints)
        if len(footprints) < self.config.nSources:
            self.log.info("room for %d sky sources, %d wanted", len(footprints), self.config.nSources)
        return footprints
