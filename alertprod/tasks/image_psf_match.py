"""The Alard-Lupton choice of ``config.subtract``: match two exposures and subtract."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from lsst.pex.config import ChoiceField, Config, ConfigChoiceField, ConfigurableField, RangeField, makeRegistry

from alertprod._typing import FloatArray
from alertprod.errors import ExposureMismatch, TaskError
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.measurement.catalog import Catalog
from alertprod.measurement.flux import measure_psf_flux
from alertprod.psf.analytic import GaussianPsf
from alertprod.resample.warp import warp_exposure
from alertprod.subtraction.alard_lupton import (
    ConvolveMode,
    MatchedPair,
    MatchResult,
    find_match,
    match_images,
)
from alertprod.subtraction.cell_set import KernelCellSet
from alertprod.subtraction.config import AlardLuptonConfig, DeltaFunctionConfig, MatchConfig
from alertprod.subtraction.kernel_fit import solve_stars
from alertprod.subtraction.spatial import count_terms
from alertprod.tasks.config_fields import make_config_class
from alertprod.tasks.input_checks import GRID_TOLERANCE_PIXELS, check_pair, compute_grid_offset
from alertprod.tasks.source_detection import SourceDetectionTask
from alertprod.tasks.sources import make_source_catalog
from alertprod.tasks.task import Struct, Task, timeMethod

_MODES: dict[str, ConvolveMode] = {"convolveTemplate": "template", "convolveScience": "science", "auto": "auto"}

PsfMatchConfigAL = make_config_class("PsfMatchConfigAL", AlardLuptonConfig)
PsfMatchConfigAL.__module__ = __name__

PsfMatchConfigDF = make_config_class("PsfMatchConfigDF", DeltaFunctionConfig)
PsfMatchConfigDF.__module__ = __name__


class ImagePsfMatchConfig(Config):
    """How two images are matched."""

    mode = ChoiceField(
        dtype=str,
        allowed={
            "convolveTemplate": "Always the template",
            "convolveScience": "Always the science image",
            "auto": "The sharper of the two",
        },
        default=None,
        optional=True,
        doc="Image to convolve; by default what the caller says",
    )
    kernel = ConfigChoiceField(
        doc="Kind of kernel: AL of Gaussians times polynomials, DF of free pixels",
        typemap={"AL": PsfMatchConfigAL, "DF": PsfMatchConfigDF},
        default="AL",
    )
    selectDetection = ConfigurableField(
        target=SourceDetectionTask, doc="Find kernel sources where the caller has none to give"
    )
    selectMinPixels = RangeField(
        dtype=int, default=5, min=1, doc="Fewest pixels of a kernel source's footprint: less is no star"
    )
    selectMaxPixels = RangeField(
        dtype=int, default=500, min=1, doc="Most pixels of a kernel source's footprint: more is a galaxy or a blend"
    )

    def setDefaults(self) -> None:
        """Let only what is bright, positive and whole be a kernel source."""
        self.selectDetection.thresholdValue = 10.0
        self.selectDetection.thresholdPolarity = "positive"


class ImagePsfMatchTask(Task):
    """Find the kernel that matches two exposures' PSFs; subtract the one from the other."""

    ConfigClass = ImagePsfMatchConfig
    _DefaultName: ClassVar[str] = "imagePsfMatch"

    selectDetection: SourceDetectionTask

    def __init__(self, config: Config | None = None, **keyArgs: Any) -> None:
        super().__init__(config, **keyArgs)
        self.makeSubtask("selectDetection")

    @timeMethod
    def matchExposures(
        self,
        templateExposure: Exposure,
        scienceExposure: Exposure,
        candidateList: Catalog | None = None,
        convolveTemplate: bool = True,
        doWarping: bool = True,
    ) -> Struct:
        """Convolve one of two exposures so that it has the other one's PSF.

        Parameters
        ----------
        candidateList
            Stars to fit the kernel on, columns `SOURCE_COLUMNS`; `getSelectSources` finds some where absent.
        convolveTemplate
            Convolve the template, or else the science exposure; the configuration's `mode` goes before.
        doWarping
            Warp a template of another grid to the science exposure's; off, that is an error.

        Returns
        -------
        Struct
            matchedExposure (the one that was convolved, on the science exposure's photometric scale, with the PSF of
            the other) and matchedImage (its planes), warpedExposure (the template on the science exposure's grid, as
            it went into the match; the one given where nothing was to be warped), psfMatchingKernel, backgroundModel,
            kernelCellSet (every candidate with its cell, status, own kernel and the match's kernel), kernelSources
            (indices of those in the last fit), and match, the core's whole result.

        Raises
        ------
        ExposureMismatch
            Raised if the bands differ, or the shapes without warping.
        InsufficientKernelSources
            Raised if too few stars are usable.
        TaskError
            Raised if an exposure has no PSF, if grids differ and are not to be warped, or do not overlap.
        """
        warped = self._put_on_grid(templateExposure, scienceExposure, doWarping=doWarping)
        match = find_match(
            scienceExposure.masked_image,
            warped.masked_image,
            **self._arguments(warped, scienceExposure, candidateList, convolveTemplate),
        )
        return self._describe(match, warped, scienceExposure)

    @timeMethod
    def subtractExposures(
        self,
        templateExposure: Exposure,
        scienceExposure: Exposure,
        candidateList: Catalog | None = None,
        convolveTemplate: bool = True,
        doWarping: bool = True,
    ) -> Struct:
        """Match two exposures and subtract them: science less template less background.

        Parameters
        ----------
        templateExposure, scienceExposure, candidateList, convolveTemplate, doWarping
            As for `matchExposures`, and the errors too.

        Returns
        -------
        Struct
            As of `matchExposures`; and subtractedExposure, and templateExposure (the template as it was subtracted, on
            the science exposure's scale).
        """
        warped = self._put_on_grid(templateExposure, scienceExposure, doWarping=doWarping)
        match = match_images(
            scienceExposure.masked_image,
            warped.masked_image,
            **self._arguments(warped, scienceExposure, candidateList, convolveTemplate),
        )
        result = self._describe(match, warped, scienceExposure)
        matched = result.matchedExposure
        result.subtractedExposure = replace(matched, masked_image=match.difference, info=scienceExposure.info)
        result.templateExposure = matched if match.convolved == "template" else _rescale(warped, matched, match)
        return result

    def getSelectSources(
        self,
        exposure: Exposure,
        sigma: float | None = None,
        doSmooth: bool = True,
        idFactory: Callable[[], int] | None = None,
    ) -> Catalog:
        """Find sources to fit a kernel on.

        Parameters
        ----------
        exposure
            Not changed: its mask neither.
        sigma
            Width in pixels of the Gaussian to detect and measure with; the exposure's PSF where absent.
        doSmooth
            Off for an image that was convolved with its PSF before.
        idFactory
            Gives the ids; 0 where absent.

        Returns
        -------
        Catalog
            Columns `SOURCE_COLUMNS`, brightest first: sources without a NO_DATA, EDGE or SAT pixel in their
            footprints, which are neither tiny nor huge.

        Raises
        ------
        TaskError
            Raised if there is neither a `sigma` nor a PSF.
        """
        if sigma is not None:
            exposure = replace(exposure, psf=GaussianPsf.from_sigma(sigma))
        psf = exposure.psf
        if psf is None:
            raise TaskError("the exposure has no psf to find kernel sources with")
        # Detection sets mask planes.
        footprints = self.selectDetection.run(exposure.copy(), doSmooth=doSmooth, doMerge=False).sources
        bad = (exposure.mask.ravel()[footprints.pixels] & plane_bits("NO_DATA", "EDGE", "SAT")) != 0
        n_bad = np.bincount(np.repeat(np.arange(len(footprints)), footprints.area)[bad], minlength=len(footprints))
        keep = n_bad == 0
        keep &= (footprints.area >= self.config.selectMinPixels) & (footprints.area <= self.config.selectMaxPixels)
        x, y = footprints.x[keep].astype(float), footprints.y[keep].astype(float)
        columns: dict[str, FloatArray] = {}
        if doSmooth:
            fluxes = measure_psf_flux(exposure.masked_image, psf, x=x, y=y)
            columns = {"flux": fluxes.flux, "flux_err": fluxes.flux_err}
        else:
            # A pixel of an image that was convolved with its PSF is a flux already, up to a factor.
            at = footprints.y[keep], footprints.x[keep]
            columns = {
                "flux": exposure.image[at].astype(float),
                "flux_err": np.sqrt(exposure.variance[at].astype(float)),
            }
        columns["snr"] = footprints.significance[keep]
        if exposure.wcs is not None:
            columns["ra_deg"], columns["dec_deg"] = exposure.wcs.pixel_to_sky(x=x, y=y)
        order = np.lexsort((x, y, -np.nan_to_num(columns["flux"])))
        if idFactory is not None:
            columns["source_id"] = np.zeros(len(x), dtype=np.int64)
            columns["source_id"][order] = [idFactory() for _ in order]
        self.metadata["nSelectSources"] = len(x)
        return make_source_catalog(x=x, y=y, **columns).select(order)

    def makeControlCandidates(self, sources: Catalog, scienceExposure: Exposure, subtractRes: Struct) -> KernelCellSet:
        """Let sources that had no part in a match ask for kernels of their own, in its basis.

        Parameters
        ----------
        sources
            Columns `SOURCE_COLUMNS`: the control sample.
        scienceExposure
            As it was matched.
        subtractRes
            What `matchExposures` or `subtractExposures` returned.
        """
        science, template = scienceExposure.masked_image, subtractRes.warpedExposure.masked_image
        convolved, reference = (template, science) if subtractRes.match.convolved == "template" else (science, template)
        return solve_stars(
            convolved,
            reference,
            x=sources["x"],
            y=sources["y"],
            like=subtractRes.kernelCellSet,
            config=self.makeSettings(),
        )

    def makeSettings(self) -> MatchConfig:
        """Return the core's settings of the configured kind of kernel."""
        settings: MatchConfig = self.config.kernel.active.makeSettings()
        return settings

    def _put_on_grid(self, template: Exposure, science: Exposure, *, doWarping: bool) -> Exposure:
        warped = put_on_grid(template, science, doWarping=doWarping, nThreads=self.makeSettings().n_threads)
        if warped is not template:
            self.log.debug("template of shape %s warped", template.shape)
        return warped

    def _arguments(
        self, template: Exposure, science: Exposure, candidates: Catalog | None, convolve_template: bool
    ) -> dict[str, Any]:
        """Return what the core needs beside the planes."""
        if candidates is None:
            candidates = self.getSelectSources(science)
        asked = self.config.mode or ("convolveTemplate" if convolve_template else "convolveScience")
        return {
            "science_psf": science.psf,
            "template_psf": template.psf,
            "star_x": candidates["x"],
            "star_y": candidates["y"],
            "star_flux": candidates["flux"],
            "config": self.makeSettings(),
            "convolve": _MODES[asked],
        }

    def _describe(self, match: MatchedPair, template: Exposure, science: Exposure) -> Struct:
        """Return what both ways of matching return, and note its numbers."""
        fit, settings = match.fit, self.makeSettings()
        if isinstance(settings, AlardLuptonConfig):
            self.metadata.update(
                ALBasisNGauss=len(fit.sigmas),
                ALBasisDegGauss=list(fit.degrees),
                ALBasisSigGauss=list(fit.sigmas),
            )
        self.metadata.update(
            kernelBasisSet=settings.kernel_basis_set,  # type: ignore[attr-defined]  # both kinds have it
            ALKernelSize=fit.kernel.size,
            ALBasisMode=fit.mode,
            convolvedExposure=match.convolved.capitalize(),
            spatialConditionNum=fit.condition_number,
            spatialKernelSum=match.kernel_sum,
            spatialModelType=settings.spatial_model_type,
            spatialBackgroundCoefficients=fit.background_coefficients.tolist(),
            kernelRegularizationStrength=fit.regularization_strength,
            nKernelBasis=fit.n_basis,
            nKernelSources=len(fit.used),
            nKernelSourcesRejected=len(fit.rejected),
            kernelResidualRms=float(np.median(fit.residual_rms)) if len(fit.residual_rms) else float("nan"),
        )
        self._warn(match, settings)
        convolved = science if match.convolved == "science" else template
        matched = Exposure(
            masked_image=match.matched,
            wcs=science.wcs,
            psf=match.psf,
            photo_calib=science.photo_calib,
            info=convolved.info,
        )
        return Struct(
            matchedExposure=matched,
            matchedImage=match.matched,
            warpedExposure=template,
            psfMatchingKernel=fit.kernel,
            backgroundModel=match.background,
            kernelCellSet=fit.cell_set,
            kernelSources=fit.used,
            match=match,
        )

    def _warn(self, match: MatchedPair, settings: MatchConfig) -> None:
        """Say where a fit stands on few stars, or on bad ones."""
        fit = match.fit
        n_good, n_bad = len(fit.used), len(fit.rejected)
        if n_bad > 2 * n_good:
            self.log.warning("%d kernel sources were rejected and %d used: look at their selection", n_bad, n_good)
        n_terms = count_terms(settings.spatial_kernel_order)
        if n_good < n_terms:
            self.log.warning(
                "the spatial kernel is underconstrained: %d sources for %d terms; its order is lowered to %d",
                n_good,
                n_terms,
                fit.kernel.order,
            )
        elif n_good <= 2 * n_terms:
            self.log.warning("the spatial kernel is poorly constrained: %d sources for %d terms", n_good, n_terms)
        if fit.condition_number > settings.max_spatial_condition_number:
            self.log.warning(
                "the spatial fit's condition number is %.3g, beyond %.3g",
                fit.condition_number,
                settings.max_spatial_condition_number,
            )


def put_on_grid(template: Exposure, science: Exposure, *, doWarping: bool, nThreads: int) -> Exposure:
    """Return a template on the science exposure's pixels: itself where it is on them, otherwise warped.

    Parameters
    ----------
    doWarping
        Warp a template of another grid; off, that is an error.

    Raises
    ------
    ExposureMismatch
        Raised if the bands differ, or the shapes without warping or without world coordinates.
    TaskError
        Raised if an exposure has no PSF, if grids differ and are not to be warped, or do not overlap.
    """
    if science.psf is None or template.psf is None:
        which = "science" if science.psf is None else "template"
        raise TaskError(f"the {which} exposure has no psf")
    check_pair(science, template, same_grid=False)
    same_shape = science.shape == template.shape
    offset = compute_grid_offset(science, template)
    if same_shape and offset <= GRID_TOLERANCE_PIXELS:
        return template
    if not doWarping:
        if not same_shape:
            raise ExposureMismatch("shape", science.shape, template.shape)
        raise TaskError(
            f"the template is up to {offset:.3g} pixels off the science exposure's grid, and not to be warped"
        )
    if science.wcs is None or template.wcs is None:
        # Without world coordinates nothing says where the one lies on the other.
        raise ExposureMismatch("shape", science.shape, template.shape)
    try:
        warped = warp_exposure(template, science.wcs, science.shape, n_threads=nThreads)
    except ValueError as error:
        raise TaskError(f"the template cannot be warped to the science exposure's grid: {error}") from error
    if not ((warped.mask & plane_bits("NO_DATA")) == 0).any():
        raise TaskError("the template does not overlap the science exposure")
    return warped


def _rescale(template: Exposure, matched: Exposure, match: MatchResult) -> Exposure:
    """Return an unconvolved template on the scale of the science exposure that was matched to it."""
    planes = template.masked_image.copy()
    planes.image /= np.float32(match.kernel_sum)
    planes.variance /= np.float32(match.kernel_sum**2)
    return replace(template, masked_image=planes, photo_calib=matched.photo_calib)


subtractAlgorithmRegistry: Any = makeRegistry(doc="Ways to subtract two exposures")
subtractAlgorithmRegistry.register("al", ImagePsfMatchTask)
