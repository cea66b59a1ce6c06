"""Detection on a difference, under the field's configuration names."""

from typing import ClassVar

from alertprod.detection.detect import DetectionConfig, detect
from alertprod.detection.footprints import FootprintSet
from alertprod.errors import TaskError
from alertprod.images.exposure import Exposure
from alertprod.tasks.config_fields import make_config_class
from alertprod.tasks.task import Struct, Task, timeMethod

SourceDetectionConfig = make_config_class(
    "SourceDetectionConfig",
    DetectionConfig,
    renamed={
        "threshold": "thresholdValue",
        "polarity": "thresholdPolarity",
        "excluded_planes": "excludeMaskPlanes",
    },
    omitted=("merge",),
)
SourceDetectionConfig.__module__ = __name__


class SourceDetectionTask(Task):
    """Find what stands out of the noise, of both signs."""

    ConfigClass = SourceDetectionConfig
    _DefaultName: ClassVar[str] = "sourceDetection"

    @timeMethod
    def run(self, exposure: Exposure, doSmooth: bool = True, doMerge: bool = True) -> Struct:
        """Detect, and set the DETECTED planes of `exposure`.

        Parameters
        ----------
        exposure
            Background-free, with its PSF.
        doSmooth
            Off for an image that is a matched-filter score already.
        doMerge
            Join footprints of both signs that touch.

        Returns
        -------
        Struct
            sources: `FootprintSet`; numPos, numNeg.
        """
        if exposure.psf is None:
            raise TaskError("the exposure has no psf to detect with")
        footprints: FootprintSet = detect(
            exposure.masked_image,
            exposure.psf,
            config=self.config.makeSettings(merge=doMerge),
            smooth=doSmooth,
            set_planes=True,
        )
        n_negative = int(footprints.is_negative.sum())
        self.metadata.update(
            sigma=footprints.sigma, nPositive=len(footprints) - n_negative, nNegative=n_negative, doSmooth=doSmooth
        )
        return Struct(sources=footprints, numPos=len(footprints) - n_negative, numNeg=n_negative)
