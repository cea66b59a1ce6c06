"""Whiten the noise of a difference whose one side was convolved: DMTN-021, DMTN-179.

Afterwards neighbouring pixels are independent and the variance plane is what pixels show; the difference's PSF is no
longer the one that the match aimed at: `Decorrelated.psf` is. A score image, where the science image was filtered with
its PSF before the match, is not made white but optimal: see `decorrelate_score`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alertprod._bands import map_threads, row_bands
from alertprod._ranges import require_ranges
from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.errors import UnusableExposure
from alertprod.geometry.box import Box
from alertprod.images.correlated_noise import ConstantKernel, CorrelatedNoise, NoisePart
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.convolution import convolve_full
from alertprod.psf.model import PointSpreadFunction
from alertprod.psf.transformed import ConvolvedPsf
from alertprod.subtraction._filters import (
    TRUNCATION,
    centred_image,
    convolve_each,
    crop_kernels,
    power_spectrum,
    stack,
    transform_side,
)
from alertprod.subtraction.alard_lupton import Convolved
from alertprod.subtraction.convolve import convolve_image, convolve_variance, fill_bad_pixels
from alertprod.subtraction.spatial import SpatialKernel

NOISE_MASK_PLANES = (
    "INTRP",
    "EDGE",
    "DETECTED",
    "SAT",
    "CR",
    "BAD",
    "NO_DATA",
    "DETECTED_NEGATIVE",
)
"""Pixels with one of these do not count for the mean variances."""

HOLE_MASK_PLANES = ("SAT", "CR", "BAD", "NO_DATA")
"""Pixels of the difference with one of these are not spread over their neighbours."""

_SMALLEST_POWER = 1e-4
"""Noise power of a frequency relative to that of the sky: below, whitening would amplify it over a hundredfold, and
rounding with it. Reached where the convolved image has nearly all the noise."""

_FAINTEST_POWER = 1e-4
"""Power of the filter that a score was made with, relative to its greatest, around which frequencies fade out: what lies
below holds a thousandth of a star's significance, and the matching kernel has little but noise there, which would make
the correction as wide as a hundred pixels."""

_UNCONVOLVED: FloatArray = np.ones((1, 1))
"""The kernel of an image that was not convolved."""

_ENOUGH_PIXELS = 250_000
"""Pixels that a mean variance is taken of; where there are more, rows and columns are left out."""

_NODES = 3
"""Where the kernel varies, it is whitened at 3 x 3 places: enough for the six terms of order 2."""

_ORDER = 2
"""Order of the whitening kernel's variation: it depends on the matching kernel's square."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecorrelationConfig:
    """How the noise is measured and the variance carried along."""

    ignore_mask_planes: tuple[str, ...] = NOISE_MASK_PLANES
    """Pixels with one of these do not count for the mean variances: sky is wanted."""

    complete_var_plane_propagation: bool = True
    """Convolve the variance planes with the squared kernels, so that the plane is right on stars and beside holes.
    Off, each plane is multiplied by its kernel's sum of squares, the reference's default: right on the sky only."""

    max_variance_ratio: float = 1e8
    """A convolved image whose mean variance is so many times the other's leaves nothing to whiten with; beyond it the
    task warns."""

    def __post_init__(self) -> None:
        plane_bits(*self.ignore_mask_planes)
        require_ranges(self, max_variance_ratio=(1e-30, 1e30))


@dataclass(frozen=True, slots=True)
class Decorrelated:
    """A difference with white noise, or an optimal score.

    Attributes
    ----------
    difference
        Image and variance replaced; the mask is the input's. Pixels of `HOLE_MASK_PLANES` keep their image values.
    kernel
        The kernel that it was convolved with, psi or c: unit sum, so fluxes are as they were.
    psf
        Of a star in the result.
    noise
        The white noises that the result's was made of; what errors of fluxes follow from where it is not white.
    convolved_variance, unconvolved_variance
        The mean variances, at the middle of the image, that it was made from.
    """

    difference: MaskedImage
    kernel: SpatialKernel
    psf: PointSpreadFunction
    noise: CorrelatedNoise
    convolved_variance: float
    unconvolved_variance: float


@dataclass(frozen=True, slots=True)
class _Nodes:
    """The matching kernel at the places where the correction is computed, ``(n, size, size)``, and the noise there."""

    images: FloatArray
    x: FloatArray
    y: FloatArray
    order: int
    box: Box
    variances_u: FloatArray
    variances_c: FloatArray
    middle: int

    def interpolate(self, images: FloatArray) -> SpatialKernel:
        return SpatialKernel.fit(images, x=self.x, y=self.y, order=self.order, box=self.box)


def decorrelate(
    difference: MaskedImage,
    *,
    kernel: SpatialKernel,
    science_variance: FloatArray,
    template_variance: FloatArray,
    convolved: Convolved,
    psf: PointSpreadFunction,
    template_noise_kernel: FloatArray | None = None,
    spatially_varying: bool = False,
    config: DecorrelationConfig | None = None,
    n_threads: int = 2,
) -> Decorrelated:
    """Whiten the noise of a difference.

    Parameters
    ----------
    difference
        As `match_images` left it; not modified.
    kernel
        The matching kernel.
    science_variance, template_variance
        The planes before the match, shape of the difference; values that are not positive and finite have no weight.
    convolved
        Which image the kernel was applied to.
    psf
        Of a star in `difference`.
    template_noise_kernel
        The kernel of unit sum through which white noise has the template's, before the match; white where None.
    spatially_varying
        Follow kernel and noise over the image; otherwise those at the middle serve everywhere.

    Raises
    ------
    UnusableExposure
        Raised if one of the variance planes has no usable pixel.

    Notes
    -----
    With the mean variances v_u and v_c of the unconvolved and the convolved image, the matching kernel kappa and its
    sum s, ``psi(k)^2 = (v_u + v_c s^2) / (v_u + v_c |kappa(k)|^2)``. The variance is that of each pixel's sum over
    independent pixels of the two images: ``psi^2 * V_u + (psi * kappa)^2 * V_c``, squares in pixel space, so it is right
    on stars as well. Where the science image was convolved all is divided by s^2, as the difference was divided by s.

    A template that was warped has correlated noise: white noise seen through a kernel n, of the plane's variance over
    ``sum(n^2)``. It takes part as such, with ``kappa * n`` for kappa.
    """
    config = config or DecorrelationConfig()
    white = _UNCONVOLVED if template_noise_kernel is None else template_noise_kernel
    if convolved == "template":
        planes, names, scale = (science_variance, template_variance), ("science", "template"), 1.0
        noises: tuple[FloatArray, FloatArray] = (_UNCONVOLVED, white)
    else:
        planes, names, scale = (
            (template_variance, science_variance),
            ("template", "science"),
            1 / kernel.kernel_sum() ** 2,
        )
        noises = (white, _UNCONVOLVED)
    nodes = _sample(kernel, difference, planes, names, varying=spatially_varying, config=config, n_threads=n_threads)
    power_u, power_c = (float((noise**2).sum()) for noise in noises)
    paths = convolve_each(nodes.images, noises[1][None])
    whitening = stack(
        [
            compute_whitening_kernel([noises[0], path], [v_u / power_u, v_c / power_c])
            for path, v_u, v_c in zip(paths, nodes.variances_u, nodes.variances_c, strict=True)
        ]
    )
    psi = nodes.interpolate(whitening)
    effective = (
        convolve_each(whitening, noises[0][None]) / np.sqrt(power_u),
        convolve_each(whitening, paths) / np.sqrt(power_c),
    )
    corrected = _correct(difference, psi, planes, effective, nodes, scale=scale, config=config, n_threads=n_threads)
    return Decorrelated(
        difference=corrected,
        kernel=psi,
        psf=ConvolvedPsf(psf, psi),
        noise=_describe_noise(planes, effective, nodes, scale=scale),
        convolved_variance=float(nodes.variances_c[nodes.middle]),
        unconvolved_variance=float(nodes.variances_u[nodes.middle]),
    )


def decorrelate_score(
    score: MaskedImage,
    *,
    kernel: SpatialKernel,
    preconvolution_kernel: FloatArray,
    science_variance: FloatArray,
    template_variance: FloatArray,
    psf: PointSpreadFunction,
    template_noise_kernel: FloatArray | None = None,
    spatially_varying: bool = False,
    config: DecorrelationConfig | None = None,
    n_threads: int = 2,
) -> Decorrelated:
    """Turn the difference of a pre-convolved science image and a matched template into an optimal score.

    Parameters
    ----------
    score
        Pre-convolved science image minus the template convolved with `kernel`; not modified.
    kernel
        The matching kernel, from the template to the pre-convolved science image.
    preconvolution_kernel
        What the science image was convolved with: its PSF turned by 180 degrees, or a Gaussian; odd square, unit sum.
    science_variance, template_variance
        The planes before any convolution, shape of the score.
    psf
        Of a star in the science image, before any convolution.
    template_noise_kernel
        As for `decorrelate`.
    spatially_varying
        Follow kernel and noise over the image; otherwise those at the middle serve everywhere.

    Returns
    -------
    Decorrelated
        ``image / sqrt(variance)`` is the significance of a point source at each pixel, N(0, 1) on the sky; a source is
        its flux times `psf`, which has unit sum. Its noise is correlated, as that of any filtered image.

    Raises
    ------
    UnusableExposure
        Raised if one of the variance planes has no usable pixel.

    Notes
    -----
    With the filter p and the kernel kappa, the noise has the power ``v_u |p|^2 + v_c |kappa|^2`` and a star in the
    science image the shape ``|p|^2``, so the matched filter of the score is
    ``c(k) = (v_u + v_c s^2) |p|^2 / (v_u |p|^2 + v_c |kappa|^2)``, scaled to 1 at frequency zero: DMTN-179. It is the
    same as the whitened difference correlated with its own PSF. The variance is
    ``(c * p)^2 * V_u + (c * kappa)^2 * V_c``, squares in pixel space.
    """
    config = config or DecorrelationConfig()
    planes = (science_variance, template_variance)
    names = ("science", "template")
    nodes = _sample(kernel, score, planes, names, varying=spatially_varying, config=config, n_threads=n_threads)
    white = _UNCONVOLVED if template_noise_kernel is None else template_noise_kernel
    power_c = float((white**2).sum())
    paths = convolve_each(nodes.images, white[None])
    correction = stack(
        [
            compute_score_kernel(path, preconvolution_kernel, [v_u, v_c / power_c])
            for path, v_u, v_c in zip(paths, nodes.variances_u, nodes.variances_c, strict=True)
        ]
    )
    c = nodes.interpolate(correction)
    filtering = convolve_each(correction, preconvolution_kernel[None])
    effective = (filtering, convolve_each(correction, paths) / np.sqrt(power_c))
    corrected = _correct(score, c, planes, effective, nodes, scale=1.0, config=config, n_threads=n_threads)
    x, y = kernel.centre
    drawn = convolve_full(psf.compute_kernel_image(x=x, y=y), filtering[nodes.middle])
    return Decorrelated(
        difference=corrected,
        kernel=c,
        noise=_describe_noise(planes, effective, nodes, scale=1.0),
        psf=ConvolvedPsf(psf, nodes.interpolate(filtering), size=crop_kernels(drawn[None], TRUNCATION).shape[1]),
        convolved_variance=float(nodes.variances_c[nodes.middle]),
        unconvolved_variance=float(nodes.variances_u[nodes.middle]),
    )


def compute_whitening_kernel(kernels: Sequence[FloatArray], variances: Sequence[float]) -> FloatArray:
    """Return the kernel that whitens a sum of independent white noises, each convolved with its own kernel.

    Parameters
    ----------
    kernels
        Each of shape ``(size, size)``, size odd; a single 1 for noise that was not convolved.
    variances
        Of the noises before their convolutions.

    Returns
    -------
    FloatArray
        float64, square, odd, symmetric, unit sum; see `decorrelate`.
    """
    side = transform_side(kernels)
    power: FloatArray = np.zeros(())
    for kernel, variance in zip(kernels, variances, strict=True):
        power = power + variance * power_spectrum(kernel, side)
    spectrum = np.sqrt(power[0, 0] / np.maximum(power, _SMALLEST_POWER * power[0, 0]))
    return _unit_kernel(spectrum, side)


def compute_score_kernel(kernel: FloatArray, preconvolution: FloatArray, variances: Sequence[float]) -> FloatArray:
    """Return the kernel c of `decorrelate_score`.

    Parameters
    ----------
    kernel, preconvolution
        Matching kernel and the science image's filter, each of shape ``(size, size)``, size odd.
    variances
        Of science image and template before their convolutions.

    Returns
    -------
    FloatArray
        float64, square, odd, symmetric, unit sum.
    """
    side = transform_side([kernel, preconvolution])
    signal = power_spectrum(preconvolution, side)
    noise = variances[0] * signal + variances[1] * power_spectrum(kernel, side)
    return _unit_kernel(signal / (noise + _FAINTEST_POWER * noise[0, 0]), side)


def compute_mean_variance(plane: FloatArray, ignored: BoolArray) -> float:
    """Return the mean of a variance plane, clipped three times at 3 sigma; NaN where no pixel counts.

    Parameters
    ----------
    plane
        Variance; only values that are positive and finite count.
    ignored
        True where a pixel does not count.
    """
    stride = _choose_stride(plane.size)
    plane, ignored = plane[::stride, ::stride], ignored[::stride, ::stride]
    return clipped_mean(plane[~(ignored | without_weight(plane))])


def _choose_stride(n_pixels: int) -> int:
    """Return the step at which rows and columns are taken: of so many pixels a mean is good to a part in a thousand."""
    return max(1, int(np.sqrt(n_pixels / _ENOUGH_PIXELS)))


def clipped_mean(values: FloatArray) -> float:
    """Return the mean, clipped three times at three robust sigmas about the median; NaN where there are no values.

    Notes
    -----
    Stars that nobody has marked raise mean and standard deviation alike: clipping about those leaves them in.
    """
    for _ in range(3):
        if values.size > 1:
            middle = float(np.median(values))
            deviation = np.abs(values - middle)
            values = values[deviation <= 3.0 * 1.4826 * float(np.median(deviation)) + 1e-6 * abs(middle)]
    return float(values.mean(dtype=float)) if values.size else float("nan")


def without_weight(plane: FloatArray) -> BoolArray:
    """Return where a variance is not positive and finite."""
    return ~(np.isfinite(plane) & (plane > 0))


def _sample(
    kernel: SpatialKernel,
    difference: MaskedImage,
    planes: tuple[FloatArray, FloatArray],
    names: tuple[str, str],
    *,
    varying: bool,
    config: DecorrelationConfig,
    n_threads: int,
) -> _Nodes:
    """Evaluate kernel and noise at the middle, or at `_NODES` x `_NODES` places."""
    x_c, y_c = kernel.centre
    if varying:
        images, x, y = kernel.sample(_NODES)
        order = _ORDER
    else:
        images, x, y, order = kernel.compute_image(x=x_c, y=y_c)[None], np.array([x_c]), np.array([y_c]), 0
    ignored = plane_bits(*config.ignore_mask_planes)
    variances_u, variances_c = map_threads(
        lambda i: _mean_variances(planes[i], difference.mask, ignored, names[i], x=x, y=y, box=kernel.box),
        range(2),
        n_threads=n_threads,
    )
    middle = int(np.argmin((x - x_c) ** 2 + (y - y_c) ** 2))
    return _Nodes(images, x, y, order, kernel.box, variances_u, variances_c, middle)


def _mean_variances(
    plane: FloatArray, mask: IntArray, ignored: int, name: str, *, x: FloatArray, y: FloatArray, box: Box
) -> FloatArray:
    """Return the clipped mean variance around each point, of the whole image where there is a single point.

    Pixels with an `ignored` bit in the mask do not count.
    """
    ny, nx = plane.shape
    reach_y, reach_x = (ny, nx) if len(x) == 1 else (ny // _NODES + 1, nx // _NODES + 1)
    means = np.full(len(x), np.nan)
    for i in range(len(x)):
        row, column = int(y[i]) - box.y_min, int(x[i]) - box.x_min
        rows = slice(max(0, row - reach_y // 2), min(ny, row + reach_y // 2 + 1))
        columns = slice(max(0, column - reach_x // 2), min(nx, column + reach_x // 2 + 1))
        part, bits = plane[rows, columns], mask[rows, columns]
        stride = _choose_stride(part.size)
        part, bits = part[::stride, ::stride], bits[::stride, ::stride]
        means[i] = compute_mean_variance(part, (bits & ignored) != 0)
    if np.isnan(means).all():
        raise UnusableExposure(name, "variance", "its plane has no usable pixel")
    # A place without data takes the mean of the others.
    return np.where(np.isnan(means), np.nanmean(means), means)


def _describe_noise(
    planes: tuple[FloatArray, FloatArray], effective: tuple[FloatArray, FloatArray], nodes: _Nodes, *, scale: float
) -> CorrelatedNoise:
    """Return the noise of `planes` through the `effective` kernels; the planes are not copied."""
    parts = []
    for plane, kernels in zip(planes, effective, strict=True):
        images = crop_kernels(kernels, TRUNCATION)
        model = ConstantKernel(images[0]) if len(images) == 1 else nodes.interpolate(images)
        parts.append(NoisePart(plane, model))
    return CorrelatedNoise(tuple(parts), scale)


def _correct(
    difference: MaskedImage,
    kernel: SpatialKernel,
    planes: tuple[FloatArray, FloatArray],
    effective: tuple[FloatArray, FloatArray],
    nodes: _Nodes,
    *,
    scale: float,
    config: DecorrelationConfig,
    n_threads: int,
) -> MaskedImage:
    """Convolve an image with the correcting kernel; the variance is that of `planes` through the `effective` kernels."""
    shape, bands, hole_bits = difference.shape, row_bands(difference.shape[0]), plane_bits(*HOLE_MASK_PLANES)
    hole = np.empty(shape, dtype=np.bool_)

    def mark(rows: slice) -> None:
        np.isfinite(difference.image[rows], out=hole[rows])
        np.logical_or((difference.mask[rows] & hole_bits) != 0, ~hole[rows], out=hole[rows])

    map_threads(mark, bands, n_threads=n_threads)
    image = convolve_image(fill_bad_pixels(difference.image, hole), kernel, n_threads=n_threads)
    parts = []
    for plane, kernels in zip(planes, effective, strict=True):
        squared = kernels**2 * scale
        factor = squared.sum(axis=(1, 2), keepdims=True)
        if config.complete_var_plane_propagation:
            squared = crop_kernels(squared, TRUNCATION)
            squared *= factor / squared.sum(axis=(1, 2), keepdims=True)
        else:
            squared = factor
        filled = fill_bad_pixels(plane, _find_weightless(plane, n_threads))
        parts.append(convolve_variance(filled, nodes.interpolate(squared), n_threads=n_threads))
        del filled
    variance, other = parts
    mask = np.empty(shape, dtype=np.int32)

    def finish(rows: slice) -> None:
        np.copyto(image[rows], difference.image[rows], where=hole[rows])
        variance[rows] += other[rows]
        np.copyto(variance[rows], np.float32(np.inf), where=~np.isfinite(difference.variance[rows]))
        mask[rows] = difference.mask[rows]

    map_threads(finish, bands, n_threads=n_threads)
    return MaskedImage(image, mask, variance)


def _find_weightless(plane: FloatArray, n_threads: int) -> BoolArray:
    """Return `without_weight`, by several threads."""
    found = np.empty(plane.shape, dtype=np.bool_)

    def find(rows: slice) -> None:
        found[rows] = without_weight(plane[rows])

    map_threads(find, row_bands(len(plane)), n_threads=n_threads)
    return found


def _unit_kernel(spectrum: FloatArray, side: int) -> FloatArray:
    cropped = crop_kernels(centred_image(spectrum, side)[None], TRUNCATION)[0]
    return cropped / cropped.sum()
