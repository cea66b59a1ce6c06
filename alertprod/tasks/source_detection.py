"""Detection on a difference, under the field's configuration names."""

from dataclasses import replace
from typing import Any, ClassVar

from lsst.pex.config import Field, RangeField

from alertprod.detection.background import Background, estimate_background
from alertprod.detection.detect import DetectionConfig, detect_signs, mark_detected
from alertprod.errors import TaskError
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.psf.model import PointSpreadFunction
from alertprod.tasks.config_fields import make_config_class
from alertprod.tasks.task import Struct, Task, timeMethod

_DetectionSettings: Any = make_config_class(
    "_DetectionSettings",
    DetectionConfig,
    renamed={
        "threshold": "thresholdValue",
        "polarity": "thresholdPolarity",
        "excluded_planes": "excludeMaskPlanes",
        "cull_peaks": "doTempLocalBackground",
        "local_background_bin": "tempLocalBackgroundBinSize",
    },
    omitted=("merge",),
)
_DetectionSettings.__module__ = __name__


class SourceDetectionConfig(_DetectionSettings):
    """How sources are found."""

    reEstimateBackground = Field(
        dtype=bool,
        default=False,
        doc="Once sources are known, estimate the background again without them and take it off the image",
    )
    backgroundBinSize = RangeField(
        dtype=int, default=128, min=8, doc="Bins of that background, pixels: far larger than any source"
    )


class SourceDetectionTask(Task):
    """Find what stands out of the noise, of both signs."""

    ConfigClass = SourceDetectionConfig
    _DefaultName: ClassVar[str] = "sourceDetection"

    @timeMethod
    def run(
        self,
        exposure: Exposure,
        doSmooth: bool = True,
        doMerge: bool = True,
        growFootprint: int = 0,
        factor: float = 1.0,
    ) -> Struct:
        """Detect, and set the DETECTED planes of `exposure`; those of an earlier detection are cleared first.

        Parameters
        ----------
        exposure
            Background-free, with its PSF. With reEstimateBackground its image is changed too.
        doSmooth
            Off for an image that is a matched-filter score already.
        doMerge
            Join footprints of both signs that touch.
        growFootprint
            Pixels by which footprints of each sign grow, as diamonds, before they are joined.
        factor
            What thresholdValue is multiplied by for this image.

        Returns
        -------
        Struct
            sources: `FootprintSet`, joined as asked for; positive, negative: those of each sign, never joined;
            numPos, numNeg: how many of these; factor; background: what reEstimateBackground took off (None).

        Raises
        ------
        TaskError
            Raised if the exposure has no PSF.
        """
        psf = self._getPsf(exposure)
        settings: DetectionConfig = self.config.makeSettings(merge=doMerge)
        settings = replace(settings, threshold=settings.threshold * factor)
        found = detect_signs(
            exposure.masked_image, psf, config=settings, smooth=doSmooth, set_planes=True, grow=growFootprint
        )
        background = self._reEstimateBackground(exposure) if self.config.reEstimateBackground else None
        n_negative = int(found.sources.is_negative.sum())
        self.metadata.update(
            sigma=found.sources.sigma,
            nGrow=settings.compute_growth(found.sources.sigma),
            nPositive=len(found.sources) - n_negative,
            nNegative=n_negative,
            nUnmerged=len(found.positive) + len(found.negative),
            doSmooth=doSmooth,
        )
        return Struct(
            sources=found.sources,
            positive=found.positive,
            negative=found.negative,
            numPos=len(found.positive),
            numNeg=len(found.negative),
            factor=factor,
            background=background,
        )

    def mark(self, exposure: Exposure, doSmooth: bool = True) -> None:
        """Set the DETECTED planes of `exposure` as `run` does, where the sources themselves are not needed.

        Parameters
        ----------
        exposure, doSmooth
            As for `run`.

        Raises
        ------
        TaskError
            Raised if the exposure has no PSF.
        """
        if self.config.reEstimateBackground:
            self.run(exposure, doSmooth=doSmooth, doMerge=False)
            return
        mark_detected(
            exposure.masked_image, self._getPsf(exposure), config=self.config.makeSettings(merge=False), smooth=doSmooth
        )

    @staticmethod
    def _getPsf(exposure: Exposure) -> PointSpreadFunction:
        if exposure.psf is None:
            raise TaskError("the exposure has no psf to detect with")
        return exposure.psf

    def _reEstimateBackground(self, exposure: Exposure) -> Background | None:
        """Take a background off in place; None, and nothing done, where no pixel is free of sources."""
        planes = (*self.config.excludeMaskPlanes, "DETECTED", "DETECTED_NEGATIVE")
        sky = exposure.masked_image.usable(plane_bits(*planes))
        if not sky.any():
            self.log.warning("no pixel without a source: the background stays")
            return None
        background = estimate_background(exposure.image, sky, bin_size=self.config.backgroundBinSize)
        background.subtract_from(exposure.masked_image.image)
        return background
