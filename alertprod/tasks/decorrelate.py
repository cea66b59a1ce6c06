"""Decorrelate what an Alard-Lupton match subtracted: a difference gets white noise, a score becomes optimal."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from lsst.pex.config import RangeField

from alertprod._bands import row_bands
from alertprod._typing import FloatArray
from alertprod.errors import TaskError
from alertprod.images.exposure import Exposure
from alertprod.psf.model import PointSpreadFunction
from alertprod.subtraction.decorrelate import Decorrelated, DecorrelationConfig, decorrelate, decorrelate_score
from alertprod.subtraction.spatial import SpatialKernel
from alertprod.tasks.config_fields import make_config_class
from alertprod.tasks.task import Struct, Task, timeMethod

_SettingsConfig: Any = make_config_class("DecorrelationSettingsConfig", DecorrelationConfig)


class DecorrelateALKernelSpatialConfig(_SettingsConfig):
    """How noise is measured, and how the variance is carried along."""

    nThreads = RangeField(dtype=int, default=2, min=1, doc="Threads of the convolutions")


class DecorrelateALKernelSpatialTask(Task):
    """Convolve a subtracted exposure with the kernel that its noise and its matching kernel ask for.

    Notes
    -----
    DMTN-021 and DMTN-179; the mathematics is in `alertprod.subtraction.decorrelate`. Nothing that is handed in is
    changed. The corrected exposure's PSF is that of a star in its pixels, in both modes.
    """

    ConfigClass = DecorrelateALKernelSpatialConfig
    _DefaultName: ClassVar[str] = "decorrelate"

    @timeMethod
    def run(
        self,
        scienceExposure: Exposure,
        templateExposure: Exposure,
        subtractedExposure: Exposure,
        psfMatchingKernel: SpatialKernel,
        spatiallyVarying: bool = False,
        preConvKernel: FloatArray | None = None,
        templateMatched: bool = True,
        preConvMode: bool = False,
    ) -> Struct:
        """Correct a difference or a score.

        Parameters
        ----------
        scienceExposure, templateExposure
            Before the match and before any filter: their variance planes are what the noise was.
        subtractedExposure
            The difference; with `preConvMode` the pre-convolved science exposure less the matched template.
        psfMatchingKernel
            The kernel of the match.
        spatiallyVarying
            Follow kernel and noise over the image.
        preConvKernel
            With `preConvMode`, the kernel that the science exposure was convolved with, shape ``(size, size)``; by
            default its PSF at the average position, turned by 180 degrees.
        templateMatched
            The template was convolved with `psfMatchingKernel`; otherwise the science exposure was.
        preConvMode
            The science exposure was filtered before the match: make an optimal score.

        Returns
        -------
        Struct
            correctedExposure, and correctionKernel, the kernel that `subtractedExposure` was convolved with (None where
            that has no finite pixel: it is then returned as it was).

        Raises
        ------
        TaskError
            Raised if the modes contradict one another, or a PSF is missing.
        UnusableExposure
            Raised if a variance plane has no usable pixel.
        """
        if preConvMode and not templateMatched:
            raise TaskError("preConvMode needs templateMatched: of a filtered science exposure the template is matched")
        if preConvKernel is not None and not preConvMode:
            raise TaskError("preConvKernel means nothing without preConvMode")
        image = subtractedExposure.image
        # Of all but broken ones the first rows tell.
        if not any(np.isfinite(image[rows]).any() for rows in row_bands(len(image))):
            self.log.warning("the exposure to decorrelate has no finite pixel; returned as it was")
            return Struct(correctedExposure=subtractedExposure.copy(), correctionKernel=None)
        if preConvMode:
            result = self._correct_score(
                scienceExposure,
                templateExposure,
                subtractedExposure,
                psfMatchingKernel,
                spatiallyVarying,
                preConvKernel,
            )
        else:
            psf = subtractedExposure.psf or (scienceExposure if templateMatched else templateExposure).psf
            result = decorrelate(
                subtractedExposure.masked_image,
                kernel=psfMatchingKernel,
                science_variance=scienceExposure.variance,
                template_variance=templateExposure.variance,
                convolved="template" if templateMatched else "science",
                psf=_require(psf, "subtracted"),
                template_noise_kernel=templateExposure.noise_kernel,
                spatially_varying=spatiallyVarying,
                config=self.config.makeSettings(),
                n_threads=self.config.nThreads,
            )
        self._report(result, templateMatched=templateMatched)
        corrected = replace(
            subtractedExposure,
            masked_image=result.difference,
            psf=result.psf,
            noise=result.noise,
            noise_kernel=None,
            info=replace(subtractedExposure.info),
        )
        return Struct(correctedExposure=corrected, correctionKernel=result.kernel)

    def _correct_score(
        self,
        science: Exposure,
        template: Exposure,
        score: Exposure,
        kernel: SpatialKernel,
        spatially_varying: bool,
        preconvolution: FloatArray | None,
    ) -> Decorrelated:
        psf = _require(science.psf, "science")
        if preconvolution is None:
            x, y = psf.average_position
            preconvolution = psf.compute_kernel_image(x=x, y=y)[::-1, ::-1]
        return decorrelate_score(
            score.masked_image,
            kernel=kernel,
            preconvolution_kernel=preconvolution,
            science_variance=science.variance,
            template_variance=template.variance,
            psf=psf,
            template_noise_kernel=template.noise_kernel,
            spatially_varying=spatially_varying,
            config=self.config.makeSettings(),
            n_threads=self.config.nThreads,
        )

    def _report(self, result: Decorrelated, *, templateMatched: bool) -> None:
        ratio = result.convolved_variance / result.unconvolved_variance
        if ratio > self.config.maxVarianceRatio:
            self.log.warning("the convolved image has %.3g times the other's noise variance", ratio)
        variances = (result.unconvolved_variance, result.convolved_variance)
        science, template = variances if templateMatched else variances[::-1]
        self.metadata.update(
            scienceMeanVariance=science, templateMeanVariance=template, correctionKernelSize=result.kernel.size
        )


def _require(psf: PointSpreadFunction | None, which: str) -> PointSpreadFunction:
    if psf is None:
        raise TaskError(f"the {which} exposure has no psf")
    return psf
