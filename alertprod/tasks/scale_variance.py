"""Rescale a variance plane so that it says what the pixels show."""

from typing import ClassVar

import numpy as np
from lsst.pex.config import Config, Field, FieldValidationError, ListField, RangeField

from alertprod._bands import BAND, map_bands
from alertprod._typing import FloatArray
from alertprod.detection.background import estimate_background
from alertprod.detection.matched_filter import compute_significance, make_filter_kernel
from alertprod.errors import BadSubtraction
from alertprod.images.exposure import Exposure
from alertprod.images.mask import MASK_PLANES, plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.images.pulls import compute_pulls, compute_width
from alertprod.psf.model import PointSpreadFunction
from alertprod.tasks.task import Task, timeMethod

_ENOUGH_PIXELS = 1 << 22
"""Of a large image, for the width of the significance: of these a thirtieth are independent."""


class ScaleVarianceConfig(Config):
    """Which pixels count, and how far the plane may be off."""

    binSize = RangeField(dtype=int, default=32, min=1, doc="Bins of the background that is taken off first, pixels")
    maskPlanes = ListField(
        dtype=str,
        default=["DETECTED", "DETECTED_NEGATIVE", "BAD", "SAT", "NO_DATA", "INTRP", "EDGE", "CR"],
        doc="Pixels of these planes do not count",
    )
    limit = RangeField(
        dtype=float, default=10.0, min=1.0, doc="A factor beyond this, or below its inverse, is an error"
    )
    maxNoiseCorrelation = Field(
        dtype=float,
        default=1.1,
        doc="Where the noise of a point source's flux is this much above what independent pixels would have, as on"
        " images that were resampled before, the variance is raised to it: a flux error must be right, and 5 sigma"
        " be 5 sigma",
    )

    def validate(self) -> None:
        """Refuse planes that do not exist."""
        Config.validate(self)
        unknown = sorted(set(self.maskPlanes) - set(MASK_PLANES))
        if unknown:
            raise FieldValidationError(type(self).maskPlanes, self, f"there is no {', '.join(unknown)}")


class ScaleVarianceTask(Task):
    """Multiply the variance by the square of the width of image / sqrt(variance).

    Notes
    -----
    Pixels whose noise is correlated show less of it one by one than a PSF sees. The width is therefore measured a
    second time on the matched-filter significance, which is N(0, 1) where pixels are independent.
    """

    ConfigClass = ScaleVarianceConfig
    _DefaultName: ClassVar[str] = "scaleVariance"

    @timeMethod
    def run(self, maskedImage: MaskedImage, psf: PointSpreadFunction | None = None) -> float:
        """Rescale in place and return the factor; 1.0 where fewer than two pixels count.

        Parameters
        ----------
        psf
            Of the image, to look for correlated noise with; without one it is not looked for.

        Raises
        ------
        BadSubtraction
            Raised if the factor is not within the configured limit: the plane means nothing.
        """
        factor = self.computeScaleFactor(maskedImage)
        limit = self.config.limit
        if not 1.0 / limit <= factor <= limit:
            raise BadSubtraction("the factor by which the variance plane is off", factor, limit)
        _multiply(maskedImage.variance, factor)
        if psf is None:
            return factor
        correlation = self.computeNoiseCorrelation(maskedImage, psf)
        self.metadata["noiseCorrelation"] = correlation
        if correlation <= self.config.maxNoiseCorrelation:
            return factor
        if correlation**2 > limit:
            raise BadSubtraction("the noise of point sources over that of independent pixels", correlation, limit**0.5)
        _multiply(maskedImage.variance, correlation**2)
        return float(factor * correlation**2)

    def computeNoiseCorrelation(self, maskedImage: MaskedImage, psf: PointSpreadFunction) -> float:
        """Return the width of the matched-filter significance off the sources; 1.0 where too few pixels count.

        Notes
        -----
        A part of a large image tells it to half a percent; only where that is half-way to maxNoiseCorrelation, or beyond,
        is all of the image looked at.
        """
        kernel = make_filter_kernel(psf)
        step = max(1, maskedImage.image.size // _ENOUGH_PIXELS)
        if step > 1:
            width, n_good = self._measureCorrelation(maskedImage, kernel, step)
            if 4 * n_good > _ENOUGH_PIXELS and width < 0.5 * (1.0 + self.config.maxNoiseCorrelation):
                return width
        width, n_good = self._measureCorrelation(maskedImage, kernel, 1)
        return width if n_good > 1 else 1.0

    def _measureCorrelation(self, maskedImage: MaskedImage, kernel: FloatArray, step: int) -> tuple[float, int]:
        """Return the width of the significance in one of `step` bands of rows, and how many pixels count."""
        bits = plane_bits(*self.config.maskPlanes)
        pulls, n_good = [], 0
        height = BAND if step > 1 else maskedImage.shape[0]
        for first in range(0, maskedImage.shape[0], step * height):
            band = slice(first, first + height)
            rows = MaskedImage(maskedImage.image[band], maskedImage.mask[band], maskedImage.variance[band])
            good = rows.usable(bits)
            n_good += int(np.count_nonzero(good))
            significance = compute_significance(rows, kernel, bad_bits=bits)
            significance[~good] = np.nan
            pulls.append(significance)
        return compute_width(np.concatenate(pulls)), n_good

    def computeScaleFactor(self, maskedImage: MaskedImage) -> float:
        """Return (0.74 IQR)^2 of the pulls of the background-free pixels that count."""
        good = maskedImage.usable(plane_bits(*self.config.maskPlanes))
        if np.count_nonzero(good) < 2:
            return 1.0
        without = np.empty_like(maskedImage.image)
        map_bands(lambda first, last: np.copyto(without[first:last], maskedImage.image[first:last]), len(without))
        estimate_background(without, good, bin_size=self.config.binSize).subtract_from(without)
        return compute_width(compute_pulls(without, maskedImage.variance, good, out=without)) ** 2


def _multiply(plane: FloatArray, factor: float) -> None:
    """Multiply a plane by a number, in place."""

    def multiply(first: int, last: int) -> None:
        plane[first:last] *= np.float32(factor)

    map_bands(multiply, len(plane))


def compute_pull_width(exposure: Exposure, *, planes: tuple[str, ...]) -> float:
    """Return 0.74 IQR of image / sqrt(variance) over the pixels without `planes`; NaN where there are none."""
    masked_image = exposure.masked_image
    good = masked_image.usable(plane_bits(*planes))
    if np.count_nonzero(good) < 2:
        return float("nan")
    return compute_width(compute_pulls(masked_image.image, masked_image.variance, good))
