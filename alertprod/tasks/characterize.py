"""What a difference needs to know of an exposure and a file may not say: sky, stars, PSF."""

from contextlib import suppress
from dataclasses import replace
from typing import ClassVar

import numpy as np
from lsst.pex.config import Config, Field, RangeField

from alertprod.detection.background import estimate_background
from alertprod.detection.cosmic_rays import find_cosmic_rays, repair_cosmic_rays
from alertprod.detection.stars import StarList, find_stars
from alertprod.errors import InsufficientPsfStars
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.measurement.catalog import Catalog
from alertprod.psf.fit import MIN_STARS, fit_psf
from alertprod.tasks.sources import add_sky_positions, make_source_catalog
from alertprod.tasks.task import Struct, Task, timeMethod

_NOT_SKY = plane_bits("BAD", "SAT", "NO_DATA", "CR")
"""Pixels of these planes say nothing of sky or stars."""


class CharacterizeConfig(Config):
    """How sky, stars and PSF are found."""

    doSubtractBackground = Field(
        dtype=bool,
        default=None,
        optional=True,
        doc="Subtract a smooth sky; by default only where its level is clearly not zero, or clearly not the same everywhere",
    )
    backgroundBinSize = RangeField(
        dtype=int, default=128, min=16, doc="Side of the sky's bins, pixels: far larger than any star's halo"
    )
    doFindCosmicRays = Field(
        dtype=bool, default=True, doc="Mark what is sharper than the PSF allows, where nobody has marked it before"
    )
    maxSkyPulls = Field(
        dtype=float,
        default=0.5,
        doc="The level, and the scatter of the levels of bins, that count as clearly not zero, in units of a pixel's noise",
    )


class CharacterizeTask(Task):
    """Subtract the sky where it is there, find stars, fit a PSF where there is none, mark cosmic rays."""

    ConfigClass = CharacterizeConfig
    _DefaultName: ClassVar[str] = "characterize"

    @timeMethod
    def run(self, exposure: Exposure, *, inPlace: bool = False) -> Struct:
        """Return an exposure that can be subtracted.

        Parameters
        ----------
        inPlace
            Change the planes that are given, in place of copies of them.

        Returns
        -------
        Struct
            exposure: with sky subtracted, with a PSF, cosmic rays marked, its planes not shared with the given one's
            but with `inPlace`; selectSources: `Catalog` of `SOURCE_COLUMNS`.

        Raises
        ------
        InsufficientPsfStars
            Raised if a PSF is missing and there are too few stars to fit one.
        """
        exposure = self.subtractSky(exposure, inPlace=inPlace)
        stars = self.findStars(exposure)
        if exposure.psf is None:
            if not len(stars):
                raise InsufficientPsfStars(0, MIN_STARS)
            fitted = fit_psf(
                exposure.image,
                exposure.variance,
                ~exposure.masked_image.usable(_NOT_SKY),
                x=stars.x,
                y=stars.y,
                snr=stars.snr,
                fwhm_guess=stars.median_fwhm,
            )
            exposure = replace(
                exposure,
                psf=fitted.psf,
                info=replace(
                    exposure.info, provenance={**exposure.info.provenance, "psf": f"fitted from {fitted.n_used} stars"}
                ),
            )
            self.metadata.update(nPsfStars=fitted.n_used)
        psf = exposure.psf
        if self.config.doFindCosmicRays and psf is not None:
            exposure = exposure if inPlace else exposure.copy()
            hits = find_cosmic_rays(exposure.masked_image, psf, set_planes=True)
            self.metadata["nCosmicRayPixels"] = int(hits.sum())
        return Struct(exposure=exposure, selectSources=_as_catalog(stars, exposure))

    def prepareTemplate(self, template: Exposure) -> Exposure:
        """Return a template tile without its sky and with a PSF, where stars allow one; the given one if it has both.

        Notes
        -----
        A tile with too few stars keeps no PSF: the template that is merged from it and its neighbours gets one. Where
        nobody has said a PSF nobody has looked for cosmic rays either: they are found and repaired, while each is
        still a pixel and not what a warp makes of it.
        """
        template = self.subtractSky(template)
        if template.psf is not None:
            return template
        try:
            template = self.run(template).exposure
        except InsufficientPsfStars as error:
            self.log.warning("template tile without a PSF: %s", error)
            return template
        if (template.mask & plane_bits("CR")).any():
            template = template.copy()
            self.metadata["nRepairedPixels"] = repair_cosmic_rays(template.masked_image)
        return template

    def selectKernelSources(self, exposure: Exposure) -> Catalog:
        """Return the stars of an exposure to fit a matching kernel on."""
        return _as_catalog(self.findStars(exposure), exposure)

    def findStars(self, exposure: Exposure) -> StarList:
        """Find clean stars, with the PSF's width where it is known."""
        sigma = None
        if exposure.psf is not None:
            # Without a width of its own, like a template's over a hole, the stars' is looked for.
            with suppress(ValueError):
                sigma = exposure.psf.compute_sigma()
        stars = find_stars(exposure.masked_image, sigma=sigma)
        self.metadata["nStars"] = len(stars)
        return stars

    def subtractSky(self, exposure: Exposure, *, inPlace: bool = False) -> Exposure:
        """Return the exposure without its smooth sky; the given one where there is none to speak of, or with `inPlace`."""
        wanted = self.config.doSubtractBackground
        good = exposure.masked_image.usable(_NOT_SKY)
        if wanted is False or not good.any():
            return exposure
        background = estimate_background(exposure.image, good, bin_size=self.config.backgroundBinSize)
        level, variation = float(np.median(background.level)), background.measure_variation()
        self.metadata.update(skyLevel=level, skyVariation=variation)
        if wanted is None and max(abs(level), variation) <= self.config.maxSkyPulls * float(
            np.median(background.sigma)
        ):
            return exposure
        flat = exposure if inPlace else exposure.copy()
        flat.image[...] -= background.compute_image()
        return flat


def _as_catalog(stars: StarList, exposure: Exposure) -> Catalog:
    sources = make_source_catalog(
        x=stars.x,
        y=stars.y,
        flux=stars.flux,
        flux_err=stars.flux / stars.snr,
        snr=stars.snr,
        fwhm=stars.fwhm,
        contamination=stars.contamination,
    )
    return sources if exposure.wcs is None else add_sky_positions(sources, exposure.wcs)
