"""Configuration of `ImageDifferenceTask`: the reference task's fields, defaults and rules under their own names.

Fields that are ours are said to be; by default they do what makes a better difference.
"""

from typing import Any

from lsst.pex.config import (
    Config,
    ConfigField,
    ConfigurableField,
    Field,
    FieldValidationError,
    RangeField,
    RegistryField,
)

from alertprod.tasks.apply_ap_corr import ApplyApCorrTask
from alertprod.tasks.astrometry import AstrometryTask, LoadReferenceObjectsConfig
from alertprod.tasks.characterize import CharacterizeTask
from alertprod.tasks.decorrelate import DecorrelateALKernelSpatialTask
from alertprod.tasks.dipole_fit import DipoleFitTask
from alertprod.tasks.find_cosmic_rays import FindCosmicRaysTask
from alertprod.tasks.find_glint_trails import FindGlintTrailsTask
from alertprod.tasks.forced_measurement import ForcedMeasurementTask
from alertprod.tasks.get_template import GetCoaddAsTemplateTask
from alertprod.tasks.image_psf_match import subtractAlgorithmRegistry
from alertprod.tasks.mask_streaks import MaskStreaksTask
from alertprod.tasks.register import RegisterTask
from alertprod.tasks.scale_variance import ScaleVarianceTask
from alertprod.tasks.sky_objects import SkyObjectsTask
from alertprod.tasks.source_detection import SourceDetectionTask
from alertprod.tasks.source_selector import ObjectSizeStarSelectorTask
from alertprod.tasks.zogy_psf_match import ZogyImagePsfMatchTask  # noqa: F401  registers the choice "zogy"


def _switch(doc: str, *, default: bool) -> Any:
    return Field(dtype=bool, default=default, doc=doc)


class ImageDifferenceConfig(Config):
    """What is done, and by which subtasks."""

    doAddCalexpBackground = _switch(
        "Add the background image, calexpBackground, back to the science image first", default=False
    )
    doUseRegister = _switch("Fit the template's astrometry anew and warp it again (al only)", default=False)
    doDebugRegister = _switch("Record astrometric residuals by the stars' colour, with doUseRegister", default=False)
    doSelectSources = _switch("Choose the kernel's stars explicitly, some for control (al only)", default=False)
    doSelectDcrCatalog = _switch("Add stars of extreme colour to the control sample", default=False)
    doSelectVariableCatalog = _switch("Add known variables to the control sample", default=False)
    doSubtract = _switch(
        "Subtract; off, the difference that is stored is detected and measured on, or what `run` is given", default=True
    )
    doPreConvolve = Field(
        dtype=bool, default=False, doc="Has no effect", deprecated="superseded by useScoreImageDetection"
    )
    useScoreImageDetection = _switch(
        "Detect on a score image: of the pre-convolved exposure (al), or S corrected (zogy)", default=False
    )
    doWriteScoreExp = _switch("Put out the score image", default=False)
    doScaleTemplateVariance = _switch(
        "Rescale the template's variance before the match, to what its pixels show", default=False
    )
    doScaleDiffimVariance = _switch(
        "Rescale the difference's variance before detection, to what its pixels show", default=True
    )
    doEstimateFractionalError = _switch(
        "Find out from constant stars how well the subtracted light is known, for detection and the errors of fluxes (ours; al only)",
        default=False,
    )
    useGaussianForPreConvolution = _switch(
        "Pre-convolve with a Gaussian of the PSF's width rather than with the PSF", default=False
    )
    doDetection = _switch("Detect on the difference", default=True)
    doDecorrelation = _switch("Whiten the noise of the difference (al only)", default=True)
    doMerge = _switch("Join positive and negative detections that touch", default=True)
    doMatchSources = _switch(
        "Match DiaSources with the sources of the science image and of the reference catalogue", default=False
    )
    doMeasurement = _switch("Measure what was detected", default=True)
    doDipoleFitting = _switch("Fit dipoles on science, template and difference", default=True)
    doForcedMeasurement = _switch(
        "Measure fluxes on science and template at the places of the detections", default=True
    )
    doWriteSubtractedExp = _switch("Put out the difference", default=True)
    doWriteWarpedExp = _switch("Put out the template on the exposure's pixels", default=False)
    doWriteMatchedExp = _switch(
        "Put out the template on the exposure's pixels and with its PSF (al only)", default=False
    )
    doWriteSources = _switch("Put out the DiaSources", default=True)
    doAddMetrics = _switch("Judge every kernel candidate and record the statistics (al only)", default=False)
    doApplyFinalizedPsf = _switch(
        "Use the visit's final PSF and aperture corrections, finalVisitSummary", default=False
    )
    doSpatiallyVarying = _switch("Whiten with kernel and noise of each place (al only)", default=False)
    doApCorr = _switch("Apply the exposure's aperture corrections, where it has any", default=True)
    doSkySources = _switch("Measure places without a source as well", default=False)
    coaddName = Field(dtype=str, default="deep", doc="Kind of coadd the template is made of: deep, goodSeeing or dcr")
    convolveTemplate = _switch(
        "Convolve the template (True) or the science image (False), where subtract.al.mode does not say", default=True
    )
    controlStepSize = RangeField(
        dtype=int, default=5, min=2, doc="Every how manieth kernel source is kept for the control sample"
    )
    controlRandomSeed = Field(dtype=int, default=10, doc="Seed of the order in which those are taken")
    kernelSourcesFromRef = _switch(
        "Match select sources with the reference catalogue, rather than with the template's sources", default=False
    )
    templateSipOrder = Field(dtype=int, default=2, doc="Has no effect", deprecated="it is register.sipOrder now")
    growFootprint = RangeField(
        dtype=int, default=2, min=0, doc="Pixels each sign's footprints grow before they are merged"
    )
    diaSourceMatchRadius = RangeField(dtype=float, default=0.5, min=0.0, doc="Radius of doMatchSources, arcsec")
    requiredTemplateFraction = RangeField(
        dtype=float,
        default=0.1,
        min=0.0,
        max=1.0,
        inclusiveMax=True,
        doc="Least share of the exposure with template data; 0 tries always",
    )

    doSubtractDiffimBackground = _switch(
        "Take the smooth background off the difference that the match left in it (ours)", default=True
    )
    diffimBackgroundBinSize = RangeField(
        dtype=int,
        default=40,
        min=8,
        doc="Bins of that background, pixels; widened to six PSF FWHM where those are more (ours)",
    )
    doCalibrateToTemplate = Field(
        dtype=bool,
        default=None,
        optional=True,
        doc="Take the photometric scale from the template's, by the kernel's sum; by default where the science"
        " image's zero point is nominal: then fluxes of one field agree from exposure to exposure (ours)",
    )
    badSubtractionRatioThreshold = RangeField(
        dtype=float,
        default=0.5,
        optional=True,
        min=0.0,
        doc="Most of the kernel stars' light, of the median star, that may be left in the difference: a good match"
        " leaves a tenth of it at most, one that went wrong more than there was; None for any (ours)",
    )
    minTemplateFractionForExpectedSuccess = RangeField(
        dtype=float,
        default=0.2,
        min=0.0,
        max=1.0,
        inclusiveMax=True,
        doc="With less of the exposure covered a match that fails for want of stars is no failure (ours)",
    )
    doFindCosmicRays = _switch("Mark on the difference what is sharper than its PSF allows (ours)", default=False)
    doMaskStreaks = _switch("Find satellite trails on the difference and mark them (ours)", default=True)
    doFindGlintTrails = _switch("Flag DiaSources that lie in a line as glints of one satellite (ours)", default=True)

    characterize = ConfigurableField(
        target=CharacterizeTask, doc="Find sky and stars, and a PSF where there is none (ours)"
    )
    getTemplate = ConfigurableField(target=GetCoaddAsTemplateTask, doc="Get the template of an exposure")
    subtract = RegistryField(registry=subtractAlgorithmRegistry, default="al", doc="Way to subtract")
    decorrelate = ConfigurableField(target=DecorrelateALKernelSpatialTask, doc="Whiten the noise (al)")
    scaleVariance = ConfigurableField(target=ScaleVarianceTask, doc="Rescale a variance plane")
    astrometer = ConfigurableField(target=AstrometryTask, doc="Match sources with the reference catalogue")
    refObjLoader = ConfigField(
        dtype=LoadReferenceObjectsConfig, doc="Reference catalogue of kernelSourcesFromRef and doMatchSources"
    )
    sourceSelector = ConfigurableField(target=ObjectSizeStarSelectorTask, doc="Choose stars among sources")
    register = ConfigurableField(target=RegisterTask, doc="Fit the template's astrometry")
    detection = ConfigurableField(target=SourceDetectionTask, doc="Detect")
    findCosmicRays = ConfigurableField(target=FindCosmicRaysTask, doc="Find cosmic rays (ours)")
    maskStreaks = ConfigurableField(target=MaskStreaksTask, doc="Find satellite trails (ours)")
    skySources = ConfigurableField(target=SkyObjectsTask, doc="Choose places without a source")
    measurement = ConfigurableField(target=DipoleFitTask, doc="Measure")
    applyApCorr = ConfigurableField(target=ApplyApCorrTask, doc="Apply aperture corrections")
    forcedMeasurement = ConfigurableField(target=ForcedMeasurementTask, doc="Measure at given places")
    findGlintTrails = ConfigurableField(target=FindGlintTrailsTask, doc="Find lines of glints (ours)")

    def validate(self) -> None:
        """Refuse what contradicts itself.

        Raises
        ------
        FieldValidationError
            Raised with the field and the rule; a `ValueError`.
        """
        Config.validate(self)
        for field, broken, why in self._rules():
            if broken:
                raise FieldValidationError(type(self)._fields[field], self, why)

    def _direction(self) -> str:
        mode: str | None = self.subtract["al"].mode
        return mode or ("convolveTemplate" if self.convolveTemplate else "convolveScience")

    def _rules(self) -> list[tuple[str, bool, str]]:
        """Return (field, whether it is wrong, why) in the reference's order."""
        is_zogy = self.subtract.name == "zogy"
        is_al = self.subtract.name == "al"
        score = self.useScoreImageDetection
        return [
            ("doSubtract", not (self.doSubtract or self.doDetection), "either doSubtract or doDetection is needed"),
            ("doMeasurement", self.doMeasurement and not self.doDetection, "doMeasurement needs doDetection"),
            ("doMerge", self.doMerge and not self.doDetection, "doMerge needs doDetection"),
            ("doSkySources", self.doSkySources and not self.doDetection, "doSkySources needs doDetection"),
            ("doUseRegister", self.doUseRegister and not self.doSelectSources, "doUseRegister needs doSelectSources"),
            (
                "doScaleTemplateVariance",
                self.doScaleDiffimVariance and self.doScaleTemplateVariance,
                "only one of doScaleDiffimVariance and doScaleTemplateVariance makes sense",
            ),
            ("doWriteMatchedExp", is_zogy and self.doWriteMatchedExp, "zogy makes no matched exposure"),
            ("doAddMetrics", is_zogy and self.doAddMetrics, "zogy has no kernel candidates to judge"),
            ("doDecorrelation", is_zogy and self.doDecorrelation, "zogy's difference is white already"),
            ("doSelectSources", is_zogy and self.doSelectSources, "zogy needs no kernel sources"),
            (
                "useGaussianForPreConvolution",
                is_zogy and self.useGaussianForPreConvolution,
                "zogy does not pre-convolve",
            ),
            (
                "useScoreImageDetection",
                is_al and score and self._direction() != "convolveTemplate",
                "a score image needs the template to be convolved: convolveTemplate, and no other subtract.al.mode",
            ),
            (
                "doWriteSubtractedExp",
                is_al and score and self.doWriteSubtractedExp,
                "with useScoreImageDetection the score image is put out (doWriteScoreExp), not the difference",
            ),
            (
                "doWriteScoreExp",
                is_al and self.doWriteScoreExp and not score,
                "doWriteScoreExp needs useScoreImageDetection",
            ),
            ("doAddMetrics", is_al and self.doAddMetrics and not self.doSubtract, "doAddMetrics needs doSubtract"),
            (
                "useGaussianForPreConvolution",
                is_al and self.useGaussianForPreConvolution and not score,
                "useGaussianForPreConvolution needs useScoreImageDetection",
            ),
        ]
