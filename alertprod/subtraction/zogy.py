"""Proper subtraction of two images of known PSFs: Zackay, Ofek & Gal-Yam (2016), ApJ 830, 27.

No kernel is fitted: the PSFs are taken at their word, and so is the ratio of the photometric scales. Each image is
convolved with a kernel made of the two PSFs and the noise; the difference of the two has white noise. The paper works
on whole transforms; here the kernels are brought back to pixels, where they are small, can vary over the image, and
a hole or a border reaches no farther than they do.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import correlate1d

from alertprod._typing import FloatArray, IntArray
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.model import PointSpreadFunction
from alertprod.psf.transformed import ConvolvedPsf
from alertprod.subtraction._filters import MENDED_EXTENT, TRUNCATION, convolve_each, crop_kernels
from alertprod.subtraction._zogy_cells import CellKernel
from alertprod.subtraction._zogy_kernels import ZogyKernels, make_kernels
from alertprod.subtraction.convolve import fill_bad_pixels, grow_mask
from alertprod.subtraction.decorrelate import clipped_mean
from alertprod.subtraction.zogy_config import ZogyConfig

_DERIVATIVE = np.array([1.0, -8.0, 0.0, 8.0, -1.0]) / 12.0
"""First derivative to fourth order: within 0.1 % for what was filtered with a PSF."""


@dataclass(frozen=True, slots=True)
class ZogyResult:
    """A proper difference and its score, on the science image's photometric scale.

    Attributes
    ----------
    difference
        D / F_D of the paper: science - template, white noise, a source of flux f is f times `psf`.
    score
        S / F_D^2: the difference correlated with its PSF; a source is f times `score_psf`. ``image / sqrt(variance)``
        is S_corr, the significance of a point source at each pixel.
    matched_science, matched_template
        The two convolved images, ``difference = matched_science - matched_template``; stars in both are `psf`.
    psf, score_psf
        P_D and P_S, of unit sum, at each position.
    science_kernel, template_kernel
        What the two were convolved with, unit sums.
    science_variance, template_variance
        The mean variances that the kernels were made from, on the science image's scale; the mean over the corners of
        the cells.
    """

    difference: MaskedImage
    score: MaskedImage
    matched_science: MaskedImage
    matched_template: MaskedImage
    psf: PointSpreadFunction
    score_psf: PointSpreadFunction
    science_kernel: CellKernel
    template_kernel: CellKernel
    science_variance: float
    template_variance: float


def subtract_zogy(
    science: MaskedImage,
    template: MaskedImage,
    *,
    science_psf: PointSpreadFunction,
    template_psf: PointSpreadFunction,
    flux_ratio: float = 1.0,
    registration_sigma: tuple[float, float] | None = None,
    config: ZogyConfig | None = None,
) -> ZogyResult:
    """Subtract two images of one pixel grid.

    Parameters
    ----------
    science, template
        Same shape and pixel grid, sky subtracted; not modified. Planes that shall not reach the difference are to be
        cleared before.
    science_psf, template_psf
        Their PSFs, on that grid.
    flux_ratio
        What takes the template's pixel values to the science image's photometric scale (F_n / F_r).
    registration_sigma
        Scatter of the relative positions along x and y, pixels; the configuration's by default.

    Returns
    -------
    ZogyResult
        Pixels without data in either image are NaN with NO_DATA and infinite variance; planes spread as far as the
        kernels reach (BAD and CR, filled from neighbours, less), and the rim that was made with pixels beyond the
        border is EDGE. A score is there wherever
        enough good pixels of the difference are, so beside holes and on small ones too; its mask says where not.

    Raises
    ------
    UnusableExposure
        Raised if a PSF has no positive finite sum, or a variance plane no usable pixel.
    BadSubtraction
        Raised if the PSFs' centroids are too far apart.
    ValueError
        Raised if the shapes differ or the flux ratio is not positive.

    Notes
    -----
    Equations 12 to 17 of the paper for D, F_D, P_D and S, 25 to 33 for S_corr: the noise of sources is in the variance,
    ``V(S_n) = k_n^2 * V_n`` with the score's kernels k and the variance planes, squares in pixel space, and so is that
    of the registration, ``sigma_x^2 (dS/dx)^2 + sigma_y^2 (dS/dy)^2``. A scatter of relative positions is shared evenly
    between the two images: then a constant star has that of one, and a transient half of it.
    """
    config = config or ZogyConfig()
    if science.shape != template.shape:
        msg = f"science image of shape {science.shape}, template of shape {template.shape}"
        raise ValueError(msg)
    if not (np.isfinite(flux_ratio) and flux_ratio > 0):
        msg = f"flux ratio is {flux_ratio}; a positive finite number is needed"
        raise ValueError(msg)
    science, template = (_prepare(image, config) for image in (science, template.scaled(flux_ratio)))
    kernels = make_kernels(science, template, science_psf=science_psf, template_psf=template_psf, config=config)
    matched_science = _convolve(science, kernels.science, config)
    matched_template = _convolve(template, kernels.template, config)
    difference = MaskedImage(
        matched_science.image - matched_template.image,
        matched_science.mask | matched_template.mask,
        matched_science.variance + matched_template.variance,
    )
    score = _compute_score(
        difference,
        (matched_science, matched_template),
        (science.variance, template.variance),
        kernels,
        registration_sigma or (config.registration_sigma_x, config.registration_sigma_y),
        config,
    )
    return ZogyResult(
        difference=difference,
        score=score,
        matched_science=matched_science,
        matched_template=matched_template,
        psf=ConvolvedPsf(science_psf, kernels.science, size=kernels.psf.size),
        score_psf=ConvolvedPsf(science_psf, kernels.score_science, size=_score_psf_size(kernels)),
        science_kernel=kernels.science,
        template_kernel=kernels.template,
        science_variance=kernels.science_variance,
        template_variance=kernels.template_variance,
    )


def _prepare(image: MaskedImage, config: ZogyConfig) -> MaskedImage:
    """Return finite planes, holes filled; NO_DATA says where there was nothing, the DETECTED planes are gone."""
    no_data = ~image.usable(plane_bits("NO_DATA"))
    bad = no_data | ((image.mask & plane_bits(*config.fill_mask_planes)) != 0)
    mask: IntArray = image.mask.astype(np.int32) & np.int32(~plane_bits("DETECTED", "DETECTED_NEGATIVE"))
    mask[no_data] |= plane_bits("NO_DATA")
    pixels = image.image
    if config.correct_background:
        sky = ~bad & ((image.mask & plane_bits(*config.ignore_mask_planes)) == 0)
        if sky.any():
            pixels = pixels - np.float32(clipped_mean(pixels[sky]))
    return MaskedImage(fill_bad_pixels(pixels, bad), mask, fill_bad_pixels(image.variance, bad))


def _convolve(image: MaskedImage, kernel: CellKernel, config: ZogyConfig) -> MaskedImage:
    """Convolve the planes of a prepared image; see `subtract_zogy` for masks, pixels without data and the rim."""
    no_data = (image.mask & plane_bits("NO_DATA")) != 0
    pixels = kernel.convolve(image.image, mirrored=True, n_threads=config.n_threads)
    variance = _propagate(image.variance, kernel, config)
    mended = np.int32(plane_bits(*(plane for plane in config.fill_mask_planes if plane != "NO_DATA")))
    # A border of EDGE around the image spreads inwards like every other plane.
    bordered = np.pad(image.mask & ~mended, 1, constant_values=plane_bits("EDGE"))
    mask = grow_mask(bordered, kernel.compute_extent(config.kernel_extent_fraction))[1:-1, 1:-1]
    mask = mask | grow_mask(image.mask & mended, kernel.compute_extent(MENDED_EXTENT))
    pixels[no_data] = np.nan
    variance[no_data] = np.inf
    return MaskedImage(pixels, mask, variance)


def _propagate(variance: FloatArray, kernel: CellKernel, config: ZogyConfig) -> FloatArray:
    """Convolve a variance, positive and finite everywhere, with a kernel's square."""
    squared = kernel.squared(TRUNCATION)
    result = squared.convolve(variance, mirrored=True, n_threads=config.n_threads)
    # Rounding of the transforms must not bring faint pixels beside bright ones to zero or below.
    smallest = variance.min() * squared.images.sum(axis=(2, 3)).min()
    return np.maximum(result, np.float32(smallest), out=result)


def _compute_score(
    difference: MaskedImage,
    matched: tuple[MaskedImage, MaskedImage],
    variances: tuple[FloatArray, FloatArray],
    kernels: ZogyKernels,
    registration_sigma: tuple[float, float],
    config: ZogyConfig,
) -> MaskedImage:
    """Correlate the difference with its PSF, leaving out what is bad; the variance is that of its sources as well.

    `variances` are the planes before any convolution. Where a share of the filter's power lies on bad pixels the rest
    counts for the whole: the score is divided by what is left, and its variance, as the noise of the difference is
    white.
    """
    bits = plane_bits(*config.score_mask_planes)
    good = ((difference.mask & bits) == 0) & np.isfinite(difference.image)
    turned = kernels.psf.turned()

    def correlate(image: FloatArray) -> FloatArray:
        return turned.convolve(np.where(good, image, np.float32(0.0)), mirrored=False, n_threads=config.n_threads)

    power = turned.squared(TRUNCATION)
    power = power.scaled(1.0 / power.images.sum(axis=(2, 3)))
    coverage = power.convolve(good.astype(np.float32), mirrored=False, n_threads=config.n_threads)
    enough = coverage >= config.min_score_coverage
    coverage = np.where(enough, coverage, np.float32(1.0))
    score = correlate(difference.image) / coverage
    variance = _propagate(variances[0], kernels.score_science, config)
    variance += _propagate(variances[1], kernels.score_template, config)
    variance /= coverage
    if max(registration_sigma) > 0:
        for image in matched:
            shifted = _shift_variance(correlate(image.image), registration_sigma) / coverage**2
            variance += 0.5 * shifted
    mask = difference.mask.copy()
    mask[enough] &= np.int32(~bits)
    mask[~enough & ((mask & bits) == 0)] |= plane_bits("NO_DATA")
    score[~enough] = np.nan
    variance[~enough] = np.inf
    return MaskedImage(score, mask, variance)


def _shift_variance(image: FloatArray, sigma: tuple[float, float]) -> FloatArray:
    """Return the variance that a scatter of the position, along x and y, gives every pixel."""
    along_x, along_y = (correlate1d(image, _DERIVATIVE, axis=axis, mode="nearest") for axis in (1, 0))
    return np.float32(sigma[0] ** 2) * along_x**2 + np.float32(sigma[1] ** 2) * along_y**2


def _score_psf_size(kernels: ZogyKernels) -> int:
    psf = kernels.psf.images.reshape(-1, kernels.psf.size, kernels.psf.size)
    return int(crop_kernels(convolve_each(psf, psf[:, ::-1, ::-1]), TRUNCATION).shape[-1])
