"""Filter a science image with its own PSF before it is matched: the difference is then a score, not an image.

The filter is a correlation with the PSF, that is a convolution with the PSF turned by 180 degrees: the two differ where
the PSF is not symmetric. A difference that was made without may be filtered afterwards; but for the noise of a second
fit that is the same.
"""

from dataclasses import dataclass, replace

import numpy as np

from alertprod._typing import FloatArray
from alertprod.errors import UnusableExposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.analytic import GaussianPsf
from alertprod.psf.model import PointSpreadFunction
from alertprod.psf.transformed import ConvolvedPsf
from alertprod.subtraction._filters import MENDED_EXTENT, convolve_each
from alertprod.subtraction.alard_lupton import convolve_masked_image
from alertprod.subtraction.config import AlardLuptonConfig, MatchConfig
from alertprod.subtraction.convolve import grow_mask
from alertprod.subtraction.spatial import SpatialKernel


@dataclass(frozen=True, slots=True)
class Preconvolved:
    """A filtered science image.

    Attributes
    ----------
    masked_image
        Convolved image and variance; the variance is that of each pixel, neighbours are strongly correlated.
    kernel
        What it was convolved with: shape ``(size, size)``, size odd, unit sum.
    psf
        Of a star in `masked_image`.
    """

    masked_image: MaskedImage
    kernel: FloatArray
    psf: PointSpreadFunction


@dataclass(frozen=True, slots=True)
class PreconvolvedDifference:
    """A difference as if its science image had been filtered before it was matched.

    Attributes
    ----------
    masked_image
        The filtered difference, before any decorrelation.
    matching_kernel
        From the template to the filtered science image.
    kernel
        What the science image was convolved with, as in `Preconvolved`.
    """

    masked_image: MaskedImage
    matching_kernel: SpatialKernel
    kernel: FloatArray


def preconvolve(
    masked_image: MaskedImage,
    psf: PointSpreadFunction,
    *,
    gaussian: bool = False,
    config: MatchConfig | None = None,
) -> Preconvolved:
    """Correlate an image with its PSF.

    Parameters
    ----------
    masked_image
        The science image; not modified. Pixels of `fill_mask_planes` and those that are not finite are replaced from
        their neighbours first.
    psf
        Its PSF; the one at its average position serves everywhere.
    gaussian
        Take a circular Gaussian of the PSF's sigma in place of the PSF.
    config
        Says what is filled, how far masks spread, and how many threads work.

    Returns
    -------
    Preconvolved
        Pixels without data are NaN with NO_DATA and infinite variance. Planes spread as far as the filter reaches,
        BAD and CR (whatever is filled and has neighbours) only to where it is above a tenth of its peak; the rim that
        was made with pixels beyond the border is EDGE.

    Raises
    ------
    UnusableExposure
        Raised if the PSF's sum is not positive, or it has pixels that are not finite.
    """
    config = config or AlardLuptonConfig()
    x, y = psf.average_position
    image = psf.compute_kernel_image(x=x, y=y)
    if not (np.isfinite(image).all() and image.sum() > 0):
        raise UnusableExposure("science", "psf", f"its image at x {x:.1f}, y {y:.1f} has the sum {image.sum():.3g}")
    if gaussian:
        drawn = GaussianPsf.from_sigma(psf.compute_sigma(), size=psf.size)
        image = drawn.compute_kernel_image(x=x, y=y)
    kernel = image[::-1, ::-1] / image.sum()
    constant = SpatialKernel.constant(kernel, masked_image.box)
    filtered = convolve_masked_image(masked_image, constant, config=config)
    mended = plane_bits(*(plane for plane in config.fill_mask_planes if plane != "NO_DATA"))
    filtered.mask &= np.int32(~mended)
    filtered.mask |= grow_mask(masked_image.mask & np.int32(mended), constant.compute_extent(MENDED_EXTENT))
    return Preconvolved(filtered, kernel, ConvolvedPsf(psf, constant, size=psf.size + kernel.shape[0] - 1))


def preconvolve_difference(
    difference: MaskedImage,
    matching_kernel: SpatialKernel,
    psf: PointSpreadFunction,
    *,
    gaussian: bool = False,
    config: MatchConfig | None = None,
) -> PreconvolvedDifference:
    """Correlate a difference of which the template was convolved with the science image's PSF.

    Parameters
    ----------
    difference
        As `match_images` left it, not yet decorrelated; not modified.
    matching_kernel
        The kernel that the template was convolved with.
    psf, gaussian, config
        As for `preconvolve`, and the errors too.

    Notes
    -----
    ``p * (science - kappa * template) = p * science - (p * kappa) * template``: the score that a match of the filtered
    science image aims at, with the kernel of the unfiltered match. Stars are sharper there, their noise is white, and
    the kernel is better for both.
    """
    filtered = preconvolve(difference, psf, gaussian=gaussian, config=config)
    terms = convolve_each(matching_kernel.terms, filtered.kernel[None])
    return PreconvolvedDifference(filtered.masked_image, replace(matching_kernel, terms=terms), filtered.kernel)
