"""`ImageDifferenceTask`: subtract a template from an exposure, detect and measure what changed.

The difference is always science minus template. Inputs are never changed: what a step must alter it
copies first.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import numpy as np
from lsst.pex.config import Config, ConfigurableField, Field, FieldValidationError, RangeField, RegistryField

from alertprod.detection.background import estimate_background
from alertprod.errors import NoTemplateCoverage, TaskError
from alertprod.ids import IdFactory
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.images.photo_calib import PhotoCalib
from alertprod.measurement.catalog import Catalog
from alertprod.subtraction.decorrelate import decorrelate
from alertprod.tasks.characterize import CharacterizeTask
from alertprod.tasks.dipole_fit import DipoleFitTask
from alertprod.tasks.image_psf_match import subtractAlgorithmRegistry
from alertprod.tasks.scale_variance import ScaleVarianceTask, compute_pull_width
from alertprod.tasks.source_detection import SourceDetectionTask
from alertprod.tasks.task import Struct, Task, timeMethod

NOT_SKY_PLANES = ("DETECTED", "DETECTED_NEGATIVE", "BAD", "SAT", "CR", "NO_DATA", "EDGE", "INTRP", "SAT_TEMPLATE")
"""Pixels of these planes do not count for the noise of the difference."""

_BIN_FWHM = 6.0
"""Bins of the difference's background are at least this many FWHM wide: the light of a star that was not detected must
not pass for background."""

_KEPT_TEMPLATE_PLANES = ("NO_DATA", "BAD", "HIGH_VARIANCE")
"""What of a template's mask concerns the difference; SAT and INJECTED go on under names of their own, and a tile's
EDGE means nothing where its neighbour goes on."""


class ImageDifferenceConfig(Config):
    """What is done, and by which subtasks; names and defaults are the reference task's."""

    doAddCalexpBackground = Field(
        dtype=bool, default=False, doc="Add the background image back to the science image first"
    )
    doScaleTemplateVariance = Field(
        dtype=bool, default=False, doc="Rescale the template's variance before the match, to what its pixels show"
    )
    doScaleDiffimVariance = Field(
        dtype=bool, default=True, doc="Rescale the difference's variance before detection, to what its pixels show"
    )
    doDecorrelation = Field(dtype=bool, default=True, doc="Whiten the noise of the difference")
    doSpatiallyVarying = Field(dtype=bool, default=False, doc="Whiten with kernel and noise of each place")
    doSubtractDiffimBackground = Field(
        dtype=bool, default=True, doc="Take the smooth background off the difference that the match left in it"
    )
    diffimBackgroundBinSize = RangeField(
        dtype=int,
        default=40,
        min=8,
        doc="Bins of that background, pixels; widened to six PSF FWHM where those are more",
    )
    doDetection = Field(dtype=bool, default=True, doc="Detect on the difference")
    doMerge = Field(dtype=bool, default=True, doc="Join positive and negative detections that touch")
    doMeasurement = Field(dtype=bool, default=True, doc="Measure what was detected")
    doDipoleFitting = Field(dtype=bool, default=True, doc="Fit dipoles on science, template and difference")
    doForcedMeasurement = Field(
        dtype=bool, default=True, doc="Measure fluxes on science and template at the places of the detections"
    )
    convolveTemplate = Field(
        dtype=bool,
        default=True,
        doc="Convolve the template (True) or the science image (False), where subtract.al.mode does not say",
    )
    doCalibrateToTemplate = Field(
        dtype=bool,
        default=None,
        optional=True,
        doc="Take the photometric scale from the template's, by the kernel's sum; by default where the science"
        " image's zero point is nominal: then fluxes of one field agree from exposure to exposure",
    )
    requiredTemplateFraction = RangeField(
        dtype=float,
        default=0.1,
        min=0.0,
        max=1.0,
        inclusiveMax=True,
        doc="Least share of the exposure with template data; 0 tries always",
    )
    characterize = ConfigurableField(target=CharacterizeTask, doc="Find stars, and a PSF where there is none")
    subtract = RegistryField(registry=subtractAlgorithmRegistry, default="al", doc="Way to subtract")
    scaleVariance = ConfigurableField(target=ScaleVarianceTask, doc="Rescale a variance plane")
    detection = ConfigurableField(target=SourceDetectionTask, doc="Detect")
    measurement = ConfigurableField(target=DipoleFitTask, doc="Measure")

    def validate(self) -> None:
        """Refuse what contradicts itself."""
        Config.validate(self)
        if self.doMeasurement and not self.doDetection:
            raise FieldValidationError(type(self).doMeasurement, self, "doMeasurement needs doDetection")
        if self.doMerge and not self.doDetection:
            raise FieldValidationError(type(self).doMerge, self, "doMerge needs doDetection")
        if self.doScaleDiffimVariance and self.doScaleTemplateVariance:
            raise FieldValidationError(
                type(self).doScaleTemplateVariance,
                self,
                "only one of doScaleDiffimVariance and doScaleTemplateVariance makes sense",
            )


class ImageDifferenceTask(Task):
    """Subtract a template from an exposure; detect and measure what is left."""

    ConfigClass = ImageDifferenceConfig
    _DefaultName: ClassVar[str] = "imageDifference"

    characterize: CharacterizeTask
    subtract: Task
    scaleVariance: ScaleVarianceTask
    detection: SourceDetectionTask
    measurement: DipoleFitTask

    def __init__(self, config: Config | None = None, **keyArgs: object) -> None:
        super().__init__(config, **keyArgs)  # type: ignore[arg-type]  # handed on as they came, checked there
        for name in ("characterize", "subtract", "scaleVariance", "detection", "measurement"):
            self.makeSubtask(name)

    @timeMethod
    def run(
        self,
        exposure: Exposure | None = None,
        selectSources: Catalog | None = None,
        templateExposure: Exposure | None = None,
        templateSources: Catalog | None = None,
        idFactory: Callable[[], int] | None = None,
        calexpBackgroundExposure: Exposure | None = None,
        subtractedExposure: Exposure | None = None,
    ) -> Struct:
        """Subtract, detect, measure.

        Parameters
        ----------
        exposure
            The calibrated science exposure, sky subtracted.
        selectSources
            Stars to fit the kernel on; found on `exposure` where absent.
        templateExposure
            The template, warped to the pixels of `exposure`.
        templateSources
            Stars of the template; not needed by Alard-Lupton.
        idFactory
            Gives DiaSource ids; counts from 1 where absent.
        calexpBackgroundExposure
            The background to add back, with doAddCalexpBackground.
        subtractedExposure
            A difference made before: with it nothing is subtracted, only detected and measured.

        Returns
        -------
        Struct
            subtractedExposure, scoreExposure (None), warpedExposure, matchedExposure (the one that was convolved) and
            subtractRes (each None where nothing was subtracted), diaSources (`Catalog` or None), selectSources; and
            scienceExposure and templateExposure, the two that the difference is made of, with the calibration that
            the fluxes have.

        Raises
        ------
        NoTemplateCoverage
            Raised if the template covers too little of the exposure.
        InsufficientKernelSources, BadSubtraction
            Raised if the match fails.
        TaskError
            Raised if an input is missing, or has no PSF.
        """
        del templateSources
        self.emptyRunMetadata()
        if exposure is None:
            raise TaskError("run needs an exposure")
        if self.config.doAddCalexpBackground:
            exposure = _add_background(exposure, calexpBackgroundExposure)
        if exposure.psf is None:
            raise TaskError("Exposure has no psf")
        subtractRes = matched = warped = None
        template = templateExposure
        if subtractedExposure is None:
            if templateExposure is None:
                raise TaskError("run needs a templateExposure to subtract, or a subtractedExposure")
            self.checkTemplateIsSufficient(templateExposure)
            warped = _prepare_template(templateExposure)
            if self.config.doScaleTemplateVariance:
                self.metadata["scaleTemplateVarianceFactor"] = self.scaleVariance.run(warped.masked_image)
            if selectSources is None:
                selectSources = self.characterize.selectKernelSources(exposure)
            subtractRes = self.subtract.subtractExposures(  # type: ignore[attr-defined]  # each choice has it
                warped, exposure, candidateList=selectSources, convolveTemplate=self.config.convolveTemplate
            )
            matched = subtractRes.matchedExposure
            subtractedExposure = subtractRes.subtractedExposure
            if self.config.doDecorrelation:
                subtractedExposure = self._decorrelate(exposure, warped, subtractRes)
            photo_calib = self._calibrate(exposure, warped, subtractRes)
            exposure = replace(exposure, photo_calib=photo_calib)
            matched = replace(matched, photo_calib=photo_calib)
            template = replace(subtractRes.templateExposure, photo_calib=photo_calib)
            subtractedExposure = replace(subtractedExposure, photo_calib=photo_calib)
        else:
            subtractedExposure = subtractedExposure.copy()
        diaSources = self._detect(subtractedExposure, exposure, template, idFactory)
        self.metadata["pullWidth"] = compute_pull_width(subtractedExposure, planes=NOT_SKY_PLANES)
        return Struct(
            subtractedExposure=subtractedExposure,
            scoreExposure=None,
            warpedExposure=warped,
            matchedExposure=matched,
            subtractRes=subtractRes,
            diaSources=diaSources,
            selectSources=selectSources,
            scienceExposure=exposure,
            templateExposure=template,
        )

    def _calibrate(self, science: Exposure, template: Exposure, subtractRes: Struct) -> PhotoCalib:
        """Return the difference's calibration: the science image's, or what the kernel's sum makes of the template's."""
        wanted = self.config.doCalibrateToTemplate
        if wanted is False or (wanted is None and not science.photo_calib.is_nominal):
            return science.photo_calib
        match = subtractRes.match
        # The kernel takes one image's counts to the other's.
        ratio = match.kernel_sum if match.convolved == "template" else 1.0 / match.kernel_sum
        return PhotoCalib(template.photo_calib.njy_per_count / ratio, is_nominal=template.photo_calib.is_nominal)

    def checkTemplateIsSufficient(self, template: Exposure) -> float:
        """Return the share of pixels with template data.

        Raises
        ------
        NoTemplateCoverage
            Raised if it is less than requiredTemplateFraction.
        """
        no_data = (template.mask & plane_bits("NO_DATA")) != 0
        n_good = no_data.size - int(np.count_nonzero(no_data))
        fraction = n_good / no_data.size
        self.metadata["templateCoverage"] = fraction
        self.log.debug("template has %d good pixels (%.1f%%)", n_good, 100 * fraction)
        if fraction < self.config.requiredTemplateFraction:
            raise NoTemplateCoverage(fraction, self.config.requiredTemplateFraction)
        return fraction

    @staticmethod
    def makeIdFactory(expId: int, expBits: int) -> IdFactory:
        """Return a factory of ids ``(expId << (63 - expBits)) | counter``, counting from 1.

        Raises
        ------
        ValueError
            Raised if `expId` does not fit in `expBits` bits.
        """
        return IdFactory(expId, expBits)

    def emptyRunMetadata(self) -> None:
        """Forget the numbers of the run before, but for the timers that run now."""
        keep = {key: value for key, value in self.metadata.items() if key.startswith("runStart")}
        self.emptyMetadata()
        self.metadata.update(keep)

    @timeMethod
    def _decorrelate(self, science: Exposure, warped: Exposure, subtractRes: Struct) -> Exposure:
        result = decorrelate(
            subtractRes.subtractedExposure.masked_image,
            kernel=subtractRes.psfMatchingKernel,
            science_variance=science.variance,
            template_variance=warped.variance,
            convolved=subtractRes.match.convolved,
            psf=subtractRes.subtractedExposure.psf,
            spatially_varying=self.config.doSpatiallyVarying,
            n_threads=self.subtract.config.kernel["AL"].nThreads,
        )
        return replace(subtractRes.subtractedExposure, masked_image=result.difference, psf=result.psf)

    @timeMethod
    def _subtract_background(self, difference: Exposure) -> None:
        """Take the smooth background off a difference, in place; what is detected on it does not count."""
        self.detection.run(difference, doMerge=False)
        sky = difference.masked_image.usable(plane_bits(*NOT_SKY_PLANES))
        if not sky.any() or difference.psf is None:
            return
        bin_size = max(self.config.diffimBackgroundBinSize, round(_BIN_FWHM * difference.psf.compute_fwhm()))
        background = estimate_background(difference.image, sky, bin_size=bin_size)
        difference.masked_image.image -= background.compute_image()
        self.metadata["diffimBackgroundRms"] = float(background.level.std())

    def _detect(
        self,
        difference: Exposure,
        science: Exposure,
        template: Exposure | None,
        idFactory: Callable[[], int] | None,
    ) -> Catalog | None:
        """Detect and measure on `difference`, whose planes it may change."""
        if not self.config.doDetection:
            return None
        if self.config.doSubtractDiffimBackground:
            self._subtract_background(difference)
        if self.config.doScaleDiffimVariance:
            self.metadata["scaleDiffimVarianceFactor"] = self.scaleVariance.run(difference.masked_image, difference.psf)
        footprints = self.detection.run(difference, doMerge=self.config.doMerge).sources
        if not self.config.doMeasurement:
            return None
        return self.measurement.run(
            footprints,
            difference,
            science,
            template,
            idFactory=idFactory or IdFactory(0, 1),
            doDipoleFitting=self.config.doDipoleFitting,
            doForcedMeasurement=self.config.doForcedMeasurement,
        )


def _add_background(exposure: Exposure, background: Exposure | None) -> Exposure:
    if background is None:
        raise TaskError("doAddCalexpBackground needs a calexpBackgroundExposure")
    exposure = exposure.copy()
    exposure.masked_image.image += background.image
    return exposure


def _prepare_template(template: Exposure) -> Exposure:
    """Return a copy whose mask says only what concerns a difference, under the planes of a template."""
    prepared = template.copy()
    mask = prepared.mask
    moved = [((mask & plane_bits(plane)) != 0, plane_bits(f"{plane}_TEMPLATE")) for plane in ("SAT", "INJECTED")]
    mask &= np.int32(plane_bits(*_KEPT_TEMPLATE_PLANES))
    for is_set, bit in moved:
        mask[is_set] |= bit
    return prepared
