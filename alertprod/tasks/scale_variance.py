"""Rescale a variance plane so that it says what the pixels show."""

from typing import ClassVar

import numpy as np
from lsst.pex.config import Config, Field, ListField

from alertprod.detection.background import estimate_background
from alertprod.errors import BadSubtraction
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.tasks.task import Task, timeMethod

_IQR_TO_SIGMA = 0.741301109252801
"""Interquartile range of a normal distribution to its standard deviation."""


class ScaleVarianceConfig(Config):
    """Which pixels count, and how far the plane may be off."""

    binSize = Field(dtype=int, default=32, doc="Bins of the background that is taken off first, pixels")
    maskPlanes = ListField(
        dtype=str,
        default=["DETECTED", "DETECTED_NEGATIVE", "BAD", "SAT", "NO_DATA", "INTRP", "EDGE", "CR"],
        doc="Pixels of these planes do not count",
    )
    limit = Field(dtype=float, default=10.0, doc="A factor beyond this, or below its inverse, is an error")


class ScaleVarianceTask(Task):
    """Multiply the variance by the square of the width of image / sqrt(variance)."""

    ConfigClass = ScaleVarianceConfig
    _DefaultName: ClassVar[str] = "scaleVariance"

    @timeMethod
    def run(self, maskedImage: MaskedImage) -> float:
        """Rescale in place and return the factor; 1.0 where fewer than two pixels count.

        Raises
        ------
        BadSubtraction
            Raised if the factor is not within the configured limit: the plane means nothing.
        """
        factor = self.computeScaleFactor(maskedImage)
        limit = self.config.limit
        if not 1.0 / limit <= factor <= limit:
            raise BadSubtraction("the factor by which the variance plane is off", factor, limit)
        maskedImage.variance *= np.float32(factor)
        return factor

    def computeScaleFactor(self, maskedImage: MaskedImage) -> float:
        """Return (0.74 IQR)^2 of the pulls of the background-free pixels that count."""
        good = maskedImage.usable(plane_bits(*self.config.maskPlanes))
        if good.sum() < 2:
            return 1.0
        background = estimate_background(maskedImage.image, good, bin_size=self.config.binSize).compute_image()
        pulls = (maskedImage.image[good] - background[good]) / np.sqrt(maskedImage.variance[good])
        low, high = np.percentile(pulls, [25.0, 75.0])
        return float((_IQR_TO_SIGMA * (high - low)) ** 2)


def compute_pull_width(exposure: Exposure, *, planes: tuple[str, ...]) -> float:
    """Return 0.74 IQR of image / sqrt(variance) over the pixels without `planes`; NaN where there are none."""
    masked_image = exposure.masked_image
    good = masked_image.usable(plane_bits(*planes))
    if good.sum() < 2:
        return float("nan")
    low, high = np.percentile(masked_image.image[good] / np.sqrt(masked_image.variance[good]), [25.0, 75.0])
    return float(_IQR_TO_SIGMA * (high - low))
