"""The ZOGY choice of ``config.subtract``: a proper difference of two exposures, and its score."""

from dataclasses import replace
from typing import Any, ClassVar

from lsst.pex.config import Config, ConfigField, Field, RangeField

from alertprod.errors import TaskError
from alertprod.images.exposure import Exposure
from alertprod.subtraction.zogy import ZogyResult, subtract_zogy
from alertprod.subtraction.zogy_config import ZogyConfig as ZogySettings
from alertprod.tasks.config_fields import make_config_class
from alertprod.tasks.image_psf_match import put_on_grid, subtractAlgorithmRegistry
from alertprod.tasks.task import Struct, Task, timeMethod

_SettingsConfig: Any = make_config_class("ZogySettingsConfig", ZogySettings)


class ZogyConfig(_SettingsConfig):
    """How the two exposures are brought to one photometric scale, and how they are subtracted."""

    scaleByCalibration = Field(
        dtype=bool,
        default=True,
        doc="Take the ratio of the flux scales from the exposures' zero points; off, from the two numbers below",
    )
    scienceFluxScaling = RangeField(
        dtype=float,
        default=1.0,
        min=0.0,
        inclusiveMin=False,
        doc="Pixel value that a unit of flux has in the science exposure",
    )
    templateFluxScaling = RangeField(
        dtype=float,
        default=1.0,
        min=0.0,
        inclusiveMin=False,
        doc="Pixel value that a unit of flux has in the template",
    )


class ZogyImagePsfMatchConfig(Config):
    """Settings of the proper subtraction."""

    zogyConfig = ConfigField(dtype=ZogyConfig, doc="How the two exposures are subtracted")


class ZogyImagePsfMatchTask(Task):
    """Subtract two exposures whose PSFs are known: Zackay, Ofek & Gal-Yam (2016).

    Notes
    -----
    No kernel is fitted, so no stars are needed; but PSFs, zero points and registration must be as good as the
    difference is to be. The algorithm is in `alertprod.subtraction.zogy`.
    """

    ConfigClass = ZogyImagePsfMatchConfig
    _DefaultName: ClassVar[str] = "zogyImagePsfMatch"

    @timeMethod
    def run(
        self,
        scienceExposure: Exposure,
        templateExposure: Exposure,
        doWarping: bool = True,
        registrationSigma: tuple[float, float] | None = None,
    ) -> Struct:
        """Subtract the template from the science exposure.

        Parameters
        ----------
        scienceExposure, templateExposure
            Sky subtracted; not changed. Planes of the template's mask that do not concern the difference are to be
            cleared before.
        doWarping
            Warp a template of another grid to the science exposure's; off, that is an error.
        registrationSigma
            Scatter of the two exposures' relative positions along x and y in pixels, for the noise of the score; the
            configuration's registrationSigmaX and registrationSigmaY by default.

        Returns
        -------
        Struct
            diffExp, the difference, with white noise; scoreExp, whose ``image / sqrt(variance)`` is the significance of
            a point source; matchedScienceExp and matchedExposure, the filtered science exposure and template of which
            diffExp is the difference, with its PSF; warpedExposure, the template on the science exposure's grid (the
            one given where nothing was to be warped) with its own calibration; templateExposure, the same on the
            science exposure's photometric scale. But for warpedExposure all have the science exposure's calibration
            and world coordinates.

        Raises
        ------
        ExposureMismatch
            Raised if the bands differ, or the shapes without warping.
        TaskError
            Raised if an exposure has no PSF, if a zero point that is to be used is nominal, if grids differ and are not
            to be warped, or do not overlap.
        UnusableExposure
            Raised if a PSF cannot be drawn, or a variance plane has no usable pixel.
        BadSubtraction
            Raised if the PSFs' centroids are too far apart.
        """
        settings: ZogySettings = self.config.zogyConfig.makeSettings()
        warped = put_on_grid(templateExposure, scienceExposure, doWarping=doWarping, nThreads=settings.n_threads)
        assert scienceExposure.psf is not None
        assert warped.psf is not None
        ratio = self._flux_ratio(scienceExposure, warped)
        result = subtract_zogy(
            scienceExposure.masked_image,
            warped.masked_image,
            science_psf=scienceExposure.psf,
            template_psf=warped.psf,
            flux_ratio=ratio,
            registration_sigma=registrationSigma,
            config=settings,
        )
        self._report(result, ratio)
        info = replace(scienceExposure.info)
        difference = replace(scienceExposure, masked_image=result.difference, psf=result.psf, info=info)
        on_scale = replace(warped, wcs=scienceExposure.wcs, photo_calib=scienceExposure.photo_calib)
        return Struct(
            diffExp=difference,
            scoreExp=replace(difference, masked_image=result.score, psf=result.score_psf, info=replace(info)),
            matchedScienceExp=replace(difference, masked_image=result.matched_science, info=replace(info)),
            matchedExposure=replace(on_scale, masked_image=result.matched_template, psf=result.psf, noise_kernel=None),
            warpedExposure=warped,
            templateExposure=replace(on_scale, masked_image=warped.masked_image.scaled(ratio)),
        )

    def _flux_ratio(self, science: Exposure, template: Exposure) -> float:
        """Return what takes the template's pixel values to the science exposure's scale."""
        config = self.config.zogyConfig
        if not config.scaleByCalibration:
            return float(config.scienceFluxScaling / config.templateFluxScaling)
        for which, exposure in (("science exposure", science), ("template", template)):
            if exposure.photo_calib.is_nominal:
                raise TaskError(
                    f"the {which}'s zero point is nominal, and nothing is fitted that would make up for it: set"
                    " scaleByCalibration to False and give the flux scalings"
                )
        return template.photo_calib.njy_per_count / science.photo_calib.njy_per_count

    def _report(self, result: ZogyResult, ratio: float) -> None:
        variance = result.science_variance + result.template_variance
        self.metadata.update(
            zogyScienceVariance=result.science_variance,
            zogyTemplateVariance=result.template_variance,
            zogyFluxRatio=ratio,
            # F_D of the paper, for a science exposure of unit flux scale.
            zogyFluxZeroPoint=variance**-0.5,
            zogyGridShape=[len(result.science_kernel.y), len(result.science_kernel.x)],
            zogyKernelSize=max(result.science_kernel.size, result.template_kernel.size),
        )
        self.log.debug("kernels of %d pixels, flux ratio %.4g", self.metadata["zogyKernelSize"], ratio)


subtractAlgorithmRegistry.register("zogy", ZogyImagePsfMatchTask)
