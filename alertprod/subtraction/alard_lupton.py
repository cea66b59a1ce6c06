"""Match the PSF of one image to another's and subtract: Alard & Lupton (1998), Alard (2000).

The difference is science minus template on the science image's photometric scale, whichever image is convolved.
"""

from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np

from alertprod._bands import map_threads, row_bands
from alertprod._typing import FloatArray, IntArray
from alertprod.errors import BadSubtraction
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.model import PointSpreadFunction
from alertprod.subtraction import _loops
from alertprod.subtraction.config import AlardLuptonConfig, MatchConfig
from alertprod.subtraction.convolve import convolve_image, convolve_variance, fill_bad_pixels, grow_mask
from alertprod.subtraction.kernel_fit import KernelFit, fit_kernel
from alertprod.subtraction.spatial import SpatialBackground, SpatialKernel

Convolved = Literal["template", "science"]
"""The image that was convolved."""

ConvolveMode = Literal["template", "science", "auto"]
"""The image to convolve; "auto" takes the template unless it is the broader one in both axes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedPair:
    """Two images, one of which was convolved to look like the other.

    Attributes
    ----------
    matched
        The convolved image; a convolved science image is brought back to its own photometric scale.
    fit
        The kernel as fitted, and how it was found.
    background
        The differential background, ``difference = science - template - background`` with the matched image in place
        of the convolved one.
    convolved
        "template" or "science".
    kernel_sum
        At the middle of the image: the flux ratio of the image not convolved to the convolved one.
    psf
        Of a star in the matched image, and in the difference before any decorrelation.
    seconds
        Wall time of the parts.
    """

    matched: MaskedImage
    fit: KernelFit
    background: SpatialBackground
    convolved: Convolved
    kernel_sum: float
    psf: PointSpreadFunction
    seconds: dict[str, float]

    @property
    def kernel(self) -> SpatialKernel:
        """The kernel, as fitted."""
        return self.fit.kernel

    @property
    def used(self) -> IntArray:
        """Indices of the stars in the last fit."""
        return self.fit.used

    @property
    def rejected(self) -> IntArray:
        """Indices of the stars that were thrown out."""
        return self.fit.rejected

    @property
    def residual_rms(self) -> FloatArray:
        """Of each used star, in units of its noise."""
        return self.fit.residual_rms

    @property
    def condition_number(self) -> float:
        """Of the spatial fit."""
        return self.fit.condition_number

    @property
    def mode(self) -> str:
        """How the widths of the basis were chosen."""
        return self.fit.mode


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchResult(MatchedPair):
    """A matched pair and its difference.

    Attributes
    ----------
    difference
        science - template, on the science image's scale.
    """

    difference: MaskedImage


def match_images(
    science: MaskedImage,
    template: MaskedImage,
    *,
    science_psf: PointSpreadFunction,
    template_psf: PointSpreadFunction,
    star_x: FloatArray,
    star_y: FloatArray,
    star_flux: FloatArray | None = None,
    config: MatchConfig | None = None,
    convolve: ConvolveMode = "template",
) -> MatchResult:
    """Find the kernel that matches two images of one pixel grid, and subtract.

    Parameters
    ----------
    science, template
        Same shape and pixel grid. Planes that shall not reach the difference are to be cleared before.
    science_psf, template_psf
        Their widths choose direction and basis; the kernel itself is found from the pixels.
    star_x, star_y
        Positions of stars, shape ``(n,)``, pixels of the two images.
    star_flux
        Ranks them, brightest first; from the pixels where absent.
    config
        `AlardLuptonConfig`, the default, or `DeltaFunctionConfig`.

    Returns
    -------
    MatchResult
        Pixels without data in either image are NaN with NO_DATA and infinite variance; bits of the convolved image
        spread as far as the kernel reaches; the rim that was convolved with made-up pixels is EDGE. DETECTED planes
        are cleared: they belong to the images, not to the difference.

    Raises
    ------
    InsufficientKernelSources
        Raised if fewer than `min_kernel_sources` stars are usable, before or after clipping.
    BadSubtraction
        Raised if the kernel sum is not positive.
    ValueError
        Raised if the shapes differ.

    Notes
    -----
    The variance is that of each pixel; neighbours are correlated until `decorrelate` has run.
    """
    config = config or AlardLuptonConfig()
    pair = find_match(
        science,
        template,
        science_psf=science_psf,
        template_psf=template_psf,
        star_x=star_x,
        star_y=star_y,
        star_flux=star_flux,
        config=config,
        convolve=convolve,
    )
    started = perf_counter()
    difference = subtract_matched(science, template, pair, n_threads=config.n_threads)
    return MatchResult(
        matched=pair.matched,
        fit=pair.fit,
        background=pair.background,
        convolved=pair.convolved,
        kernel_sum=pair.kernel_sum,
        psf=pair.psf,
        seconds=pair.seconds | {"subtract": perf_counter() - started},
        difference=difference,
    )


def find_match(
    science: MaskedImage,
    template: MaskedImage,
    *,
    science_psf: PointSpreadFunction,
    template_psf: PointSpreadFunction,
    star_x: FloatArray,
    star_y: FloatArray,
    star_flux: FloatArray | None = None,
    config: MatchConfig | None = None,
    convolve: ConvolveMode = "template",
) -> MatchedPair:
    """Find the kernel and convolve, as `match_images` does, without subtracting."""
    if science.shape != template.shape:
        msg = f"science image of shape {science.shape}, template of shape {template.shape}"
        raise ValueError(msg)
    config = config or AlardLuptonConfig()
    started = perf_counter()
    direction = choose_direction(convolve, science_psf=science_psf, template_psf=template_psf)
    if direction == "template":
        source, target, source_psf, target_psf = template, science, template_psf, science_psf
    else:
        source, target, source_psf, target_psf = science, template, science_psf, template_psf
    fit = fit_kernel(
        source,
        target,
        convolved_psf=source_psf,
        reference_psf=target_psf,
        star_x=star_x,
        star_y=star_y,
        star_flux=star_flux,
        config=config,
    )
    fitted = perf_counter()
    kernel_sum = fit.kernel.kernel_sum()
    if not kernel_sum > 0:
        raise BadSubtraction("kernel sum", kernel_sum, 0.0)
    matched = convolve_masked_image(source, fit.kernel, config=config)
    background = fit.background
    if direction == "science":
        background = background.scaled(-1.0 / kernel_sum)
        _rescale(matched, 1.0 / kernel_sum)
    return MatchedPair(
        matched=matched,
        fit=fit,
        background=background,
        convolved=direction,
        kernel_sum=kernel_sum,
        psf=target_psf,
        seconds={"fit": fitted - started, "convolve": perf_counter() - fitted},
    )


def subtract_matched(
    science: MaskedImage, template: MaskedImage, pair: MatchedPair, *, n_threads: int = 1
) -> MaskedImage:
    """Return science - template - background of a matched pair; see `match_images`."""
    if pair.convolved == "template":
        return _subtract(science, pair.matched, pair.background, n_threads)
    rescaled = template.copy()
    _rescale(rescaled, 1.0 / pair.kernel_sum)
    return _subtract(pair.matched, rescaled, pair.background, n_threads)


def choose_direction(
    mode: ConvolveMode, *, science_psf: PointSpreadFunction, template_psf: PointSpreadFunction
) -> Convolved:
    """Say which image to convolve: in "auto" the template, where it is no wider than the science image in some axis."""
    if mode != "auto":
        return mode
    try:
        x, y = science_psf.average_position
        science_xx, science_yy, _ = science_psf.compute_moments(x=x, y=y)
        x, y = template_psf.average_position
        template_xx, template_yy, _ = template_psf.compute_moments(x=x, y=y)
    except ValueError:
        # A PSF that has no moments says nothing about widths: the default direction.
        return "template"
    return "template" if template_xx <= science_xx or template_yy <= science_yy else "science"


def convolve_masked_image(source: MaskedImage, kernel: SpatialKernel, *, config: MatchConfig) -> MaskedImage:
    """Convolve image and variance, spread the mask; see `match_images` for pixels without data and for the rim."""
    no_data = source.usable(plane_bits("NO_DATA"))
    np.logical_not(no_data, out=no_data)
    bad, mask = np.empty(source.shape, dtype=np.bool_), np.empty(source.shape, dtype=np.int32)
    filled, unknown = plane_bits(*config.fill_mask_planes), np.int32(plane_bits("NO_DATA"))
    bands = row_bands(source.shape[0])

    def mark(rows: slice) -> None:
        np.logical_or(no_data[rows], (source.mask[rows] & filled) != 0, out=bad[rows])
        mask[rows] = source.mask[rows]
        np.bitwise_or(mask[rows], unknown, out=mask[rows], where=no_data[rows])

    map_threads(mark, bands, n_threads=config.n_threads)
    image = convolve_image(fill_bad_pixels(source.image, bad), kernel, n_threads=config.n_threads)
    variance = convolve_variance(fill_bad_pixels(source.variance, bad), kernel.squared(), n_threads=config.n_threads)
    extent = kernel.compute_extent(config.kernel_extent_fraction)
    grown = grow_mask(mask, extent)
    _set_rim(grown, int(np.ceil(extent)), plane_bits("EDGE"))

    def blank(rows: slice) -> None:
        np.copyto(image[rows], np.float32(np.nan), where=no_data[rows])
        np.copyto(variance[rows], np.float32(np.inf), where=no_data[rows])

    map_threads(blank, bands, n_threads=config.n_threads)
    return MaskedImage(image, grown, variance)


def _set_rim(mask: IntArray, width: int, bits: int) -> None:
    if width > 0:
        mask[:width] |= bits
        mask[-width:] |= bits
        mask[:, :width] |= bits
        mask[:, -width:] |= bits


def _rescale(image: MaskedImage, factor: float) -> None:
    image.image *= np.float32(factor)
    image.variance *= np.float32(factor**2)


def _subtract(
    minuend: MaskedImage, subtrahend: MaskedImage, background: SpatialBackground, n_threads: int
) -> MaskedImage:
    shape = minuend.shape
    difference = MaskedImage(np.empty(shape, np.float32), np.empty(shape, np.int32), np.empty(shape, np.float32))

    def subtract(rows: slice) -> None:
        _loops.subtract_planes(
            minuend.image[rows],
            minuend.mask[rows],
            minuend.variance[rows],
            subtrahend.image[rows],
            subtrahend.mask[rows],
            subtrahend.variance[rows],
            background.compute_image(rows=rows),
            plane_bits("DETECTED", "DETECTED_NEGATIVE"),
            plane_bits("NO_DATA"),
            difference.image[rows],
            difference.mask[rows],
            difference.variance[rows],
        )

    map_threads(subtract, row_bands(shape[0]), n_threads=n_threads)
    return difference
