"""Cosmic rays, under the field's configuration names."""

from typing import Any, ClassVar

import numpy as np
from lsst.pex.config import Field, RangeField

from alertprod.detection.cosmic_rays import CosmicRayConfig, find_cosmic_rays
from alertprod.errors import TaskError, TooManyCosmicRays
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.subtraction.convolve import fill_bad_pixels
from alertprod.tasks.config_fields import make_config_class
from alertprod.tasks.task import Struct, Task, timeMethod

_CosmicRaySettings: Any = make_config_class(
    "_CosmicRaySettings",
    CosmicRayConfig,
    renamed={"noise_factor": "cond3_fac", "psf_factor": "cond3_fac2", "n_iterations": "niteration"},
    omitted=("min_total",),
)
_CosmicRaySettings.__module__ = __name__


class FindCosmicRaysConfig(_CosmicRaySettings):
    """What is too sharp for a star, and what becomes of it."""

    minElectrons = RangeField(
        dtype=float,
        default=150.0,
        min=0.0,
        doc="Least charge of a hit, electrons; not asked for where the exposure's gain is not known",
    )
    keepCRs = Field(
        dtype=bool,
        default=True,
        doc="Leave the pixels' values as they are (and mark them CR); otherwise their neighbours' are put there (INTRP)",
    )
    nCrPixelMax = RangeField(
        dtype=int,
        default=1_000_000,
        min=0,
        doc="More pixels than this are an error: on 4096 x 4096 pixels a long dark exposure has a few 100000",
    )


class FindCosmicRaysTask(Task):
    """Mark what is sharper than the PSF allows."""

    ConfigClass = FindCosmicRaysConfig
    _DefaultName: ClassVar[str] = "findCosmicRays"

    @timeMethod
    def run(self, exposure: Exposure) -> Struct:
        """Find cosmic rays and set the CR plane of `exposure`.

        Parameters
        ----------
        exposure
            Background-free, with its PSF. CR bits that are there stay. Only without keepCRs are values changed.

        Returns
        -------
        Struct
            mask: True on what was found, shape of the image; nPixels.

        Raises
        ------
        TaskError
            Raised if the exposure has no PSF.
        TooManyCosmicRays
            Raised if more than nCrPixelMax pixels were found; the exposure is then as it was.
        """
        if exposure.psf is None:
            raise TaskError("the exposure has no psf to tell cosmic rays from stars with")
        gain = exposure.info.gain
        settings = self.config.makeSettings(min_total=self.config.minElectrons / gain if gain else 0.0)
        hits = find_cosmic_rays(exposure.masked_image, exposure.psf, config=settings)
        n_pixels = int(np.count_nonzero(hits))
        self.metadata["cosmic_ray_count"] = n_pixels
        if n_pixels > self.config.nCrPixelMax:
            raise TooManyCosmicRays(n_pixels, self.config.nCrPixelMax)
        mask = exposure.mask
        mask[hits] |= plane_bits("CR")
        if not self.config.keepCRs and n_pixels:
            _fill(exposure, hits)
        return Struct(mask=hits, nPixels=n_pixels)


def _fill(exposure: Exposure, hits: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    """Put their good neighbours' values on the hits, in place."""
    planes = exposure.masked_image
    bad = hits | ~planes.usable(plane_bits("NO_DATA", "BAD", "SAT"))
    for plane in (planes.image, planes.variance):
        plane[hits] = fill_bad_pixels(plane, bad)[hits]
    planes.mask[hits] |= plane_bits("INTRP")
