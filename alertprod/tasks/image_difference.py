"""`ImageDifferenceTask`: subtract a template from an exposure, detect and measure what changed.

The difference is always science minus template. Inputs are never changed: what a step must alter it
copies first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import numpy as np
from lsst.pex.config import Config

from alertprod.errors import ExposureMismatch, InsufficientKernelSources, NoTemplateCoverage, TaskError
from alertprod.ids import IdFactory
from alertprod.images.ap_corr import ApCorrMap
from alertprod.images.exposure import Exposure
from alertprod.images.mask import count_set, plane_bits
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog
from alertprod.psf.model import PointSpreadFunction
from alertprod.tasks.apply_ap_corr import ApplyApCorrTask
from alertprod.tasks.argument_parser import ArgumentParser
from alertprod.tasks.astrometry import AstrometryTask
from alertprod.tasks.characterize import CharacterizeTask
from alertprod.tasks.cmd_line_task import CmdLineTask
from alertprod.tasks.data_ids import format_data_id
from alertprod.tasks.debug import run_debug
from alertprod.tasks.decorrelate import DecorrelateALKernelSpatialTask
from alertprod.tasks.detect_steps import detect, judge_kernel, measure, record_metrics
from alertprod.tasks.dipole_fit import DipoleFitTask
from alertprod.tasks.find_cosmic_rays import FindCosmicRaysTask
from alertprod.tasks.find_glint_trails import FindGlintTrailsTask
from alertprod.tasks.forced_measurement import ForcedMeasurementTask
from alertprod.tasks.get_template import GetCoaddAsTemplateTask
from alertprod.tasks.image_difference_config import ImageDifferenceConfig
from alertprod.tasks.input_checks import (
    check_difference,
    check_pair,
    check_science,
    check_template,
    exclude_implausible,
)
from alertprod.tasks.mask_streaks import MaskStreaksTask
from alertprod.tasks.protocols import Butler, DataId, DataRef, QuantumContext
from alertprod.tasks.reference_loader import ReferenceLoader
from alertprod.tasks.register import RegisterTask
from alertprod.tasks.scale_variance import ScaleVarianceTask
from alertprod.tasks.sky_objects import SkyObjectsTask
from alertprod.tasks.source_detection import SourceDetectionTask
from alertprod.tasks.source_selector import ObjectSizeStarSelectorTask
from alertprod.tasks.sources import complete_sources
from alertprod.tasks.subtract_steps import (
    Subtraction,
    adopt_difference,
    prepare_template,
    subtract_alard_lupton,
    subtract_zogy,
)
from alertprod.tasks.task import Struct, Task, timeMethod
from alertprod.tasks.task_runner import TemplateIdTaskRunner

__all__ = ["ImageDifferenceConfig", "ImageDifferenceTask"]

_SUBTASKS: Mapping[str, Callable[[Any], bool]] = {
    "characterize": lambda _: True,
    "getTemplate": lambda _: True,
    "subtract": lambda _: True,
    "decorrelate": lambda config: config.doDecorrelation and config.subtract.name == "al",
    "scaleVariance": lambda config: config.doScaleTemplateVariance or config.doScaleDiffimVariance,
    "sourceSelector": lambda config: config.doSelectSources,
    "register": lambda config: config.doUseRegister,
    "detection": lambda config: config.doDetection,
    "findCosmicRays": lambda config: config.doFindCosmicRays,
    "maskStreaks": lambda config: config.doMaskStreaks,
    "skySources": lambda config: config.doSkySources,
    "measurement": lambda config: config.doMeasurement,
    "applyApCorr": lambda config: config.doApCorr,
    "forcedMeasurement": lambda config: config.doForcedMeasurement,
    "findGlintTrails": lambda config: config.doFindGlintTrails,
}
"""The subtasks, and whether a configuration needs them."""


class FinalizedCalibration(Protocol):
    """What a visit's last calibration says of one detector; None where it says nothing."""

    @property
    def psf(self) -> PointSpreadFunction | None:
        """Point spread function on the exposure's pixels."""
        ...

    @property
    def ap_corr_map(self) -> ApCorrMap | None:
        """Aperture corrections."""
        ...


class ImageDifferenceTask(CmdLineTask):
    """Subtract a template from an exposure; detect and measure what is left.

    Parameters
    ----------
    config
        Names and defaults are the reference task's.
    butler
        The repository it runs on; not needed, each data reference knows its own.
    refObjLoader
        A reference catalogue for kernelSourcesFromRef and doMatchSources; by default what refObjLoader.uri names.
    """

    ConfigClass = ImageDifferenceConfig
    RunnerClass = TemplateIdTaskRunner
    _DefaultName: ClassVar[str] = "imageDifference"

    characterize: CharacterizeTask
    getTemplate: GetCoaddAsTemplateTask
    subtract: Task
    decorrelate: DecorrelateALKernelSpatialTask
    scaleVariance: ScaleVarianceTask
    astrometer: AstrometryTask
    sourceSelector: ObjectSizeStarSelectorTask
    register: RegisterTask
    detection: SourceDetectionTask
    findCosmicRays: FindCosmicRaysTask
    maskStreaks: MaskStreaksTask
    skySources: SkyObjectsTask
    measurement: DipoleFitTask
    applyApCorr: ApplyApCorrTask
    forcedMeasurement: ForcedMeasurementTask
    findGlintTrails: FindGlintTrailsTask

    def __init__(
        self,
        config: Config | None = None,
        *,
        butler: Butler | None = None,
        refObjLoader: ReferenceLoader | None = None,
        **keyArgs: object,
    ) -> None:
        super().__init__(config, **keyArgs)  # type: ignore[arg-type]  # handed on as they came, checked there
        del butler
        for name, isNeeded in _SUBTASKS.items():
            if isNeeded(self.config):
                self.makeSubtask(name)
        self._refObjLoader = refObjLoader
        needsCatalogue = self.config.doMatchSources or (
            self.config.doSelectSources and self.config.kernelSourcesFromRef
        )
        if refObjLoader is None and needsCatalogue:
            refObjLoader = self.config.refObjLoader.makeLoader()
        self.makeSubtask("astrometer", refObjLoader=refObjLoader)

    def _reduceKeyArgs(self) -> dict[str, Any]:
        return {**super()._reduceKeyArgs(), "refObjLoader": self._refObjLoader}

    @classmethod
    def _makeArgumentParser(cls) -> ArgumentParser:
        parser = super()._makeArgumentParser()
        parser.add_id_argument(
            "--templateId",
            "calexp",
            help="exposures that serve as the template, instead of coadd tiles",
            makeDataRefList=False,
        )
        return parser

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
        *,
        ownsInputs: bool = False,
    ) -> Struct:
        """Subtract, detect, measure.

        Parameters
        ----------
        exposure
            The calibrated science exposure, sky subtracted, with its PSF.
        selectSources
            Stars of `exposure` to fit the kernel on, `x` and `y` and what else there is of `SOURCE_COLUMNS`; looked for
            where absent.
        templateExposure
            The template; on the pixels of `exposure`, or with world coordinates to warp it by.
        templateSources
            Stars of the template, for doSelectSources and doUseRegister; looked for where absent.
        idFactory
            Gives DiaSource ids; counts from 1 where absent.
        calexpBackgroundExposure
            The background to add back, with doAddCalexpBackground.
        subtractedExposure
            A difference made before, without doSubtract: it is detected and measured on. Forced photometry and dipoles
            use `templateExposure` too where it is given, on the scale that its calibration says.
        ownsInputs
            Nobody else has a use for `templateExposure`: its planes may be changed, in place of copies of them.

        Returns
        -------
        Struct
            subtractedExposure, scoreExposure (with useScoreImageDetection), warpedExposure, matchedExposure (the one
            that was convolved) and subtractRes (each None where nothing was subtracted), diaSources (`Catalog` or None),
            selectSources; and scienceExposure and templateExposure, the two that the difference is made of, with the
            calibration that the fluxes have, and kernelCandidates (with doAddMetrics).

        Raises
        ------
        UnusableExposure, ExposureMismatch
            Raised if an input has no usable pixel or PSF, or the two do not belong together.
        NoTemplateCoverage
            Raised if the template covers too little of the exposure.
        InsufficientKernelSources, BadSubtraction
            Raised if the match fails.
        TaskError
            Raised if an input is missing, has no PSF, or contradicts the configuration.

        Notes
        -----
        With useScoreImageDetection a difference is made as well: sources are detected on the score and measured on
        the difference, where a flux is a flux.
        """
        self.emptyRunMetadata()
        if exposure is None:
            raise TaskError("run needs an exposure")
        if self.config.doAddCalexpBackground:
            exposure = _add_background(exposure, calexpBackgroundExposure)
        check_science(exposure)
        selectSources, templateSources = (
            None if sources is None else complete_sources(sources) for sources in (selectSources, templateSources)
        )
        exposure = self.excludeImplausible("science", exposure)
        if self.config.doSubtract:
            if subtractedExposure is not None:
                raise TaskError("a subtractedExposure is given, and doSubtract is on: one of them is too much")
            made = self._subtract(exposure, templateExposure, selectSources, templateSources, ownsInputs=ownsInputs)
        else:
            made = adopt_difference(self, exposure, templateExposure, subtractedExposure, selectSources)
        check_difference(made.difference)
        if made.score is not None:
            check_difference(made.score, which="score")
        diaSources = self._detect(made, idFactory or IdFactory(0, 1)) if self.config.doDetection else None
        kernelCandidates = judge_kernel(self, made, diaSources) if self.config.doAddMetrics else None
        record_metrics(self, made)
        shown = Struct(
            subtractedExposure=made.difference,
            templateExposure=made.template,
            controlSources=made.control_sources,
        )
        self.runDebug(made.science, shown, made.select_sources, made.kernel_sources, diaSources)
        return Struct(
            subtractedExposure=made.difference,
            scoreExposure=made.score,
            warpedExposure=made.warped,
            matchedExposure=made.matched,
            subtractRes=made.result,
            diaSources=diaSources,
            selectSources=made.select_sources,
            scienceExposure=made.science,
            templateExposure=made.template,
            kernelCandidates=kernelCandidates,
        )

    def _subtract(
        self,
        exposure: Exposure,
        templateExposure: Exposure | None,
        selectSources: Catalog | None,
        templateSources: Catalog | None,
        *,
        ownsInputs: bool = False,
    ) -> Subtraction:
        if templateExposure is None:
            raise TaskError("run needs a templateExposure to subtract, or a subtractedExposure and doSubtract off")
        check_pair(exposure, templateExposure, same_grid=False)
        coverage = self.checkTemplateIsSufficient(templateExposure)
        check_template(templateExposure)
        templateExposure = self.excludeImplausible("template", templateExposure)
        if self.config.doScaleTemplateVariance:
            # Before the planes go that say which of its pixels are sky.
            templateExposure = templateExposure if ownsInputs else templateExposure.copy()
            self.metadata["scaleTemplateVarianceFactor"] = self.scaleVariance.run(templateExposure.masked_image)
        template = prepare_template(templateExposure, in_place=ownsInputs)
        self.metadata["psfMatchingAlgorithm"] = self.config.subtract.name
        if self.config.subtract.name == "zogy":
            return subtract_zogy(self, exposure, template, selectSources)
        try:
            return subtract_alard_lupton(self, exposure, template, selectSources, templateSources)
        except InsufficientKernelSources as error:
            expected = self.config.minTemplateFractionForExpectedSuccess
            if coverage >= expected or self.config.requiredTemplateFraction == 0:
                raise
            raise NoTemplateCoverage(coverage, expected) from error

    def excludeImplausible(self, which: str, exposure: Exposure, *, during: str = "n") -> Exposure:
        """Return an exposure in which pixels that no detector can have measured count as no data; see `exclude_implausible`."""
        exposure, n_pixels = exclude_implausible(which, exposure)
        if n_pixels:
            self.log.warning(
                "%d pixels of the %s exposure are beyond any detector, and count as no data", n_pixels, which
            )
        self.metadata[f"{during}ImplausiblePixels{which.capitalize()}"] = n_pixels
        return exposure

    def _detect(self, made: Subtraction, idFactory: Callable[[], int]) -> Catalog | None:
        info = made.science.info
        with self.timer("detect"):
            footprints = detect(self, made, seed=(info.visit or 0) << 16 | (info.detector or 0))
        if not self.config.doMeasurement:
            return None
        with self.timer("measure"):
            return measure(self, made, footprints, idFactory)

    def prepareCalibratedExposure(
        self,
        exposure: Exposure,
        finalizedPsfApCorrCatalog: Mapping[int, FinalizedCalibration] | None = None,
    ) -> Exposure:
        """Return an exposure with its visit's final PSF and aperture corrections.

        Parameters
        ----------
        exposure
            Not changed.
        finalizedPsfApCorrCatalog
            By detector. Without it, without a row for the detector, or with a row that lacks one of the two, the
            exposure stays as it is; the last two are warned of.
        """
        if finalizedPsfApCorrCatalog is None:
            return exposure
        detector = exposure.info.detector
        row = None if detector is None else finalizedPsfApCorrCatalog.get(detector)
        missing = (
            "row" if row is None else "psf" if row.psf is None else "ap_corr_map" if row.ap_corr_map is None else None
        )
        if row is None or missing is not None:
            self.log.warning(
                "the final calibrations have no %s for detector %s; the exposure's are used", missing, detector
            )
            return exposure
        return replace(exposure, psf=row.psf, ap_corr_map=row.ap_corr_map)

    def characterizeInputs(
        self, exposure: Exposure, templateExposure: Exposure | None, *, ownsInputs: bool = False
    ) -> Struct:
        """Do for two exposures what a pipeline upstream may not have done: subtract skies, find PSFs, stars, cosmic rays.

        Parameters
        ----------
        ownsInputs
            Nobody else has a use for the two: their planes may be changed, in place of copies of them.

        Returns
        -------
        Struct
            exposure, templateExposure, selectSources: as `run` wants them. What is there already stays.

        Raises
        ------
        InsufficientPsfStars
            Raised if a PSF is missing and there are too few stars to fit one.
        UnusableExposure
            Raised if an exposure has a PSF or pixels that nothing can be done with.
        """
        # Before a sky is fitted to them: `run` looks again, at whatever it is given.
        exposure = self.excludeImplausible("science", exposure, during="characterize")
        if exposure.psf is not None:
            check_science(exposure)
        if templateExposure is not None:
            templateExposure = self.excludeImplausible("template", templateExposure, during="characterize")
            if templateExposure.psf is not None:
                check_template(templateExposure)
        with self.timer("characterizeScience"):
            found = self.characterize.run(exposure, inPlace=ownsInputs)
        with self.timer("characterizeTemplate"):
            if templateExposure is not None:
                templateExposure = self.characterize.subtractSky(templateExposure, inPlace=ownsInputs)
                if templateExposure.psf is None:
                    templateExposure = self.characterize.run(templateExposure, inPlace=ownsInputs).exposure
        return Struct(exposure=found.exposure, templateExposure=templateExposure, selectSources=found.selectSources)

    def checkTemplateIsSufficient(self, template: Exposure) -> float:
        """Return the share of pixels with template data.

        Raises
        ------
        NoTemplateCoverage
            Raised if it is less than requiredTemplateFraction.
        """
        n_good = template.mask.size - count_set(template.mask, plane_bits("NO_DATA"))
        fraction = n_good / template.mask.size
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

    def fitAstrometry(self, templateSources: Catalog, templateExposure: Exposure, selectSources: Catalog) -> Struct:
        """Fit the template's world coordinates to sources of the exposure, as `RegisterTask.run`; for overriding."""
        if templateExposure.wcs is None:
            raise TaskError("the template has no world coordinates to register by")
        return self.register.run(templateSources, templateExposure.wcs, templateExposure.box, selectSources)

    @timeMethod
    def runDataRef(self, sensorRef: DataRef, templateIdList: Sequence[DataId] | None = None) -> Struct:
        """Difference one exposure of a repository.

        Parameters
        ----------
        sensorRef
            Gives calexp, and calexpBackground, finalVisitSummary, src and a stored difference where they are asked for
            and there; takes what the doWrite… fields say, as {coaddName}Diff_differenceExp, _scoreExp, _warpedExp,
            _matchedExp, _diaSrc, and _kernelSrc with doAddMetrics.
        templateIdList
            Exposures that serve as the template, instead of coadd tiles.

        Returns
        -------
        Struct
            As `run`.

        Raises
        ------
        NoTemplateCoverage
            Raised if there is no template for the exposure.
        """
        config = self.config
        self._forgetExposure()
        self.log.info("processing %s", format_data_id(sensorRef.dataId))
        idFactory = self.makeIdFactory(
            expId=int(sensorRef.get("ccdExposureId")), expBits=int(sensorRef.get("ccdExposureId_bits"))
        )
        background = sensorRef.get("calexpBackground") if config.doAddCalexpBackground else None
        calibrations = sensorRef.get("finalVisitSummary") if config.doApplyFinalizedPsf else None
        exposure = self.prepareCalibratedExposure(sensorRef.get("calexp"), calibrations)
        template = self.getTemplate.runDataRef(exposure, sensorRef, templateIdList=templateIdList).exposure
        ready = self.characterizeInputs(exposure, template)
        subtracted = None
        if not config.doSubtract:
            subtracted = sensorRef.get(self._getDatasetName("differenceExp"))
        results = self.run(
            exposure=ready.exposure,
            selectSources=sensorRef.get("src") if sensorRef.datasetExists("src") else ready.selectSources,
            templateExposure=ready.templateExposure,
            idFactory=idFactory,
            calexpBackgroundExposure=background,
            subtractedExposure=subtracted,
        )
        for dataset, product in self._listProducts(results).items():
            sensorRef.put(product, self._getDatasetName(dataset))
        return results

    def _listProducts(self, results: Struct) -> dict[str, Any]:
        """Return what the configuration puts out, by the end of its dataset's name."""
        config = self.config
        products = {
            "differenceExp": results.subtractedExposure if config.doWriteSubtractedExp and config.doSubtract else None,
            "scoreExp": results.scoreExposure if config.doWriteScoreExp else None,
            "warpedExp": results.warpedExposure if config.doWriteWarpedExp else None,
            "matchedExp": results.matchedExposure if config.doWriteMatchedExp else None,
            "diaSrc": results.diaSources if config.doWriteSources else None,
            "kernelSrc": results.kernelCandidates if config.doAddMetrics else None,
        }
        return {dataset: product for dataset, product in products.items() if product is not None}

    @timeMethod
    def runQuantum(self, butlerQC: QuantumContext, inputRefs: Any, outputRefs: Any) -> None:
        """Difference the exposure of a quantum.

        Parameters
        ----------
        butlerQC
            Gets and puts by reference; ``quantum.dataId.pack("visit_detector")`` is the number that ids begin with.
        inputRefs, outputRefs
            References by the names of `ImageDifferenceConnections`.

        Raises
        ------
        NoTemplateCoverage
            Raised if the template covers too little of the exposure.
        """
        self._forgetExposure()
        inputs = {
            name: butlerQC.get(getattr(inputRefs, name))
            for name in ("exposure", "finalizedPsfApCorrCatalog")
            if hasattr(inputRefs, name)
        }
        exposure = self.prepareCalibratedExposure(inputs["exposure"], inputs.get("finalizedPsfApCorrCatalog"))
        expId, expBits = butlerQC.quantum.dataId.pack("visit_detector", returnMaxBits=True)
        template = self._getQuantumTemplate(exposure, butlerQC, inputRefs)
        self.checkTemplateIsSufficient(template)
        ready = self.characterizeInputs(exposure, template)
        results = self.run(
            exposure=ready.exposure,
            selectSources=ready.selectSources,
            templateExposure=ready.templateExposure,
            idFactory=self.makeIdFactory(expId=expId, expBits=expBits),
        )
        if results.diaSources is None:
            del results.diaSources
        butlerQC.put(results, outputRefs)

    def _getQuantumTemplate(self, exposure: Exposure, butlerQC: QuantumContext, inputRefs: Any) -> Exposure:
        tiles = inputRefs.dcrCoadds if self.config.coaddName == "dcr" else inputRefs.coaddExposures
        found = self.getTemplate.runQuantum(exposure, butlerQC, getattr(inputRefs, "skyMap", None), tiles)
        template: Exposure = found.exposure
        return template

    def runDebug(
        self,
        exposure: Exposure,
        subtractRes: Struct | None,
        selectSources: Catalog | None,
        kernelSources: Catalog | None,
        diaSources: Catalog | None,
    ) -> None:
        """Draw pictures of a run where there is a display; see `DebugOptions`.

        Parameters
        ----------
        exposure
            The science exposure.
        subtractRes
            With subtractedExposure, templateExposure and, where there is one, controlSources.
        selectSources, kernelSources
            All stars, and those that the kernel was offered.
        diaSources
            What was measured.
        """
        del selectSources  # of the reference's signature: what the kernel was not offered is the control sample
        if subtractRes is None:
            return
        run_debug(
            self.display,
            self.debug,
            difference=subtractRes.subtractedExposure,
            science=exposure,
            template=subtractRes.templateExposure,
            diaSources=diaSources,
            kernelSources=kernelSources,
            controlSources=getattr(subtractRes, "controlSources", None),
        )

    def emptyRunMetadata(self) -> None:
        """Forget the numbers of the run before, but for timers that run now and what getTemplate and characterize found."""
        kept = {
            key: value
            for key, value in self.metadata.items()
            if key.startswith(("runStart", "runDataRefStart", "runQuantumStart", "characterize", "templateCoverage"))
        }
        found = [(task, task.metadata) for task in (self.getTemplate, self.characterize)]
        self.emptyMetadata()
        self.metadata.update(kept)
        for task, metadata in found:
            task.metadata = metadata

    def getSchemaCatalogs(self) -> dict[str, Catalog]:
        """Return an empty table of DiaSources under its dataset's name."""
        return {self._getDatasetName("diaSrc"): self.outputSchema}

    @property
    def outputSchema(self) -> Catalog:
        """An empty table of DiaSources."""
        return Catalog(DIA_SOURCE_COLUMNS, 0)

    def _forgetExposure(self) -> None:
        """Forget all numbers of the exposure before, but for timers that run now."""
        kept = {
            key: value for key, value in self.metadata.items() if key.startswith(("runDataRefStart", "runQuantumStart"))
        }
        self.emptyMetadata()
        self.metadata.update(kept)

    def _getDatasetName(self, end: str) -> str:
        return f"{self.config.coaddName}Diff_{end}"

    def _getConfigName(self) -> str:
        return self._getDatasetName("config")

    def _getMetadataName(self) -> str:
        return self._getDatasetName("metadata")


def _add_background(exposure: Exposure, background: Exposure | None) -> Exposure:
    if background is None:
        raise TaskError("doAddCalexpBackground needs a calexpBackgroundExposure")
    if background.shape != exposure.shape:
        raise ExposureMismatch("shape of the calexpBackgroundExposure", exposure.shape, background.shape)
    exposure = exposure.copy()
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite has no data then
        exposure.masked_image.image += background.image
    return exposure
