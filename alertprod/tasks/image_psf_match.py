"""The Alard-Lupton choice of ``config.subtract``: match two exposures and subtract."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from lsst.pex.config import ChoiceField, Config, ConfigChoiceField, makeRegistry

from alertprod.errors import TaskError
from alertprod.images.exposure import Exposure
from alertprod.measurement.catalog import Catalog
from alertprod.subtraction.alard_lupton import ConvolveMode, MatchResult, match_images
from alertprod.subtraction.config import AlardLuptonConfig
from alertprod.tasks.config_fields import make_config_class
from alertprod.tasks.task import Struct, Task, timeMethod

_MODES: dict[str, ConvolveMode] = {"convolveTemplate": "template", "convolveScience": "science", "auto": "auto"}

PsfMatchConfigAL = make_config_class("PsfMatchConfigAL", AlardLuptonConfig)
PsfMatchConfigAL.__module__ = __name__


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
    kernel = ConfigChoiceField(doc="Kind of kernel", typemap={"AL": PsfMatchConfigAL}, default="AL")


class ImagePsfMatchTask(Task):
    """Find the kernel that matches two exposures' PSFs; subtract the one from the other."""

    ConfigClass = ImagePsfMatchConfig
    _DefaultName: ClassVar[str] = "imagePsfMatch"

    @timeMethod
    def subtractExposures(
        self,
        templateExposure: Exposure,
        scienceExposure: Exposure,
        candidateList: Catalog,
        convolveTemplate: bool = True,
    ) -> Struct:
        """Match and subtract two exposures of one pixel grid.

        Parameters
        ----------
        candidateList
            Stars to fit the kernel on, columns `SOURCE_COLUMNS`.
        convolveTemplate
            Convolve the template, or else the science exposure; the configuration's `mode` goes before.

        Returns
        -------
        Struct
            subtractedExposure, matchedExposure (the one that was convolved), templateExposure (the template as it was
            subtracted, on the science exposure's scale), warpedExposure (the template as given), psfMatchingKernel,
            backgroundModel, kernelSources, and match, the core's whole result.

        Raises
        ------
        InsufficientKernelSources
            Raised if too few stars are usable.
        TaskError
            Raised if an exposure has no PSF.
        """
        if scienceExposure.psf is None or templateExposure.psf is None:
            which = "science" if scienceExposure.psf is None else "template"
            raise TaskError(f"the {which} exposure has no psf")
        asked = self.config.mode or ("convolveTemplate" if convolveTemplate else "convolveScience")
        match = match_images(
            scienceExposure.masked_image,
            templateExposure.masked_image,
            science_psf=scienceExposure.psf,
            template_psf=templateExposure.psf,
            star_x=candidateList["x"],
            star_y=candidateList["y"],
            star_flux=candidateList["flux"],
            config=self.config.kernel["AL"].makeSettings(),
            convolve=_MODES[asked],
        )
        convolved = scienceExposure if match.convolved == "science" else templateExposure
        difference = Exposure(
            masked_image=match.difference,
            wcs=scienceExposure.wcs,
            psf=match.psf,
            photo_calib=scienceExposure.photo_calib,
            info=scienceExposure.info,
        )
        matched = Exposure(
            masked_image=match.matched,
            wcs=scienceExposure.wcs,
            psf=match.psf,
            photo_calib=scienceExposure.photo_calib,
            info=convolved.info,
        )
        self.metadata.update(
            ALKernelSize=match.kernel.size,
            ALBasisMode=match.mode,
            convolvedExposure=match.convolved.capitalize(),
            spatialConditionNum=match.condition_number,
            spatialKernelSum=match.kernel_sum,
            nKernelSources=len(match.used),
            nKernelSourcesRejected=len(match.rejected),
            kernelResidualRms=float(np.median(match.residual_rms)) if len(match.residual_rms) else float("nan"),
        )
        return Struct(
            subtractedExposure=difference,
            matchedExposure=matched,
            templateExposure=matched if match.convolved == "template" else _rescale(templateExposure, matched, match),
            warpedExposure=templateExposure,
            psfMatchingKernel=match.kernel,
            backgroundModel=match.background,
            kernelSources=match.used,
            match=match,
        )


def _rescale(template: Exposure, matched: Exposure, match: MatchResult) -> Exposure:
    """Return an unconvolved template on the scale of the science exposure that was matched to it."""
    planes = template.masked_image.copy()
    planes.image /= np.float32(match.kernel_sum)
    planes.variance /= np.float32(match.kernel_sum**2)
    return replace(template, masked_image=planes, photo_calib=matched.photo_calib)


subtractAlgorithmRegistry: Any = makeRegistry(doc="Ways to subtract two exposures")
subtractAlgorithmRegistry.register("al", ImagePsfMatchTask)
