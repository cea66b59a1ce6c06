"""Whiten the noise of a difference whose one side was convolved: DMTN-021, DMTN-179.

Afterwards neighbouring pixels are independent and the variance plane is what pixels show; the difference's PSF is no
longer the one that the match aimed at: `Decorrelated.psf` is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy.signal import fftconvolve

from alertprod._typing import BoolArray, FloatArray
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.model import PointSpreadFunction
from alertprod.psf.transformed import ConvolvedPsf
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

_TRUNCATION = 1e-3
"""Share of the whitening kernel's absolute sum that may be cut off."""

_UNCONVOLVED = np.ones((1, 1))
"""The kernel of an image that was not convolved."""

_NODES = 3
"""Where the kernel varies, it is whitened at 3 x 3 places: enough for the six terms of order 2."""

_ORDER = 2
"""Order of the whitening kernel's variation: it depends on the matching kernel's square."""


@dataclass(frozen=True, slots=True)
class Decorrelated:
    """A difference with white noise.

    Attributes
    ----------
    difference
        Image and variance replaced; the mask is the input's. Pixels of `HOLE_MASK_PLANES` keep their image values.
    kernel
        The whitening kernel psi: unit sum, so fluxes are as they were.
    psf
        Of a star in the decorrelated difference.
    convolved_variance, unconvolved_variance
        The mean variances, at the middle of the image, that it was made from.
    """

    difference: MaskedImage
    kernel: SpatialKernel
    psf: PointSpreadFunction
    convolved_variance: float
    unconvolved_variance: float


def decorrelate(
    difference: MaskedImage,
    *,
    kernel: SpatialKernel,
    science_variance: FloatArray,
    template_variance: FloatArray,
    convolved: Convolved,
    psf: PointSpreadFunction,
    spatially_varying: bool = False,
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
    spatially_varying
        Follow kernel and noise over the image; otherwise those at the middle serve everywhere.

    Raises
    ------
    ValueError
        Raised if one of the variance planes has no usable pixel.

    Notes
    -----
    With the mean variances v_u and v_c of the unconvolved and the convolved image, the matching kernel kappa and its
    sum s, ``psi(k)^2 = (v_u + v_c s^2) / (v_u + v_c |kappa(k)|^2)``. The variance is that of each pixel's sum over
    independent pixels of the two images: ``psi^2 * V_u + (psi * kappa)^2 * V_c``, squares in pixel space, so it is right
    on stars as well. Where the science image was convolved all is divided by s^2, as the difference was divided by s.
    """
    if convolved == "template":
        plane_u, plane_c, scale = science_variance, template_variance, 1.0
    else:
        plane_u, plane_c, scale = template_variance, science_variance, 1.0 / kernel.kernel_sum() ** 2
    ignored = (difference.mask & plane_bits(*NOISE_MASK_PLANES)) != 0
    unknown_u, unknown_c = _without_weight(plane_u), _without_weight(plane_c)
    x_c, y_c = kernel.centre
    if spatially_varying:
        images, x, y = kernel.sample(_NODES)
        order = _ORDER
    else:
        images, x, y = kernel.compute_image(x=x_c, y=y_c)[None], np.array([x_c]), np.array([y_c])
        order = 0
    variances_u = _mean_variances(plane_u, ignored | unknown_u, x=x, y=y, kernel=kernel)
    variances_c = _mean_variances(plane_c, ignored | unknown_c, x=x, y=y, kernel=kernel)
    whitening = [
        compute_whitening_kernel([_UNCONVOLVED, image], [v_u, v_c])
        for image, v_u, v_c in zip(images, variances_u, variances_c, strict=True)
    ]
    side = max(image.shape[0] for image in whitening)
    whitening_images = np.array([_embed(image, side) for image in whitening])
    box = kernel.box
    psi = SpatialKernel.fit(whitening_images, x=x, y=y, order=order, box=box)

    hole = (difference.mask & plane_bits(*HOLE_MASK_PLANES)) != 0
    hole |= ~np.isfinite(difference.image)
    image = convolve_image(fill_bad_pixels(difference.image, hole), psi, n_threads=n_threads)
    image[hole] = difference.image[hole]

    overall = np.array([fftconvolve(a, b) for a, b in zip(whitening_images, images, strict=True)])
    variance = convolve_variance(
        fill_bad_pixels(plane_u, unknown_u),
        SpatialKernel.fit(whitening_images**2 * scale, x=x, y=y, order=order, box=box),
        n_threads=n_threads,
    )
    variance += convolve_variance(
        fill_bad_pixels(plane_c, unknown_c),
        SpatialKernel.fit(_crop(overall**2, _TRUNCATION) * scale, x=x, y=y, order=order, box=box),
        n_threads=n_threads,
    )
    variance[~np.isfinite(difference.variance)] = np.inf
    middle = int(np.argmin((x - x_c) ** 2 + (y - y_c) ** 2))
    return Decorrelated(
        difference=MaskedImage(image, difference.mask.copy(), variance),
        kernel=psi,
        psf=ConvolvedPsf(psf, psi),
        convolved_variance=float(variances_c[middle]),
        unconvolved_variance=float(variances_u[middle]),
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
    largest = max(kernel.shape[0] for kernel in kernels)
    side = scipy.fft.next_fast_len(max(128, 6 * largest), real=True)
    power = np.zeros((side, side // 2 + 1))
    for kernel, variance in zip(kernels, variances, strict=True):
        power += variance * np.abs(scipy.fft.rfft2(kernel, s=(side, side))) ** 2
    spectrum = np.sqrt(power[0, 0] / np.maximum(power, _SMALLEST_POWER * power[0, 0]))
    image = scipy.fft.fftshift(scipy.fft.irfft2(spectrum, s=(side, side)))
    # The origin is the middle pixel of an odd square.
    centre = side // 2
    half = (side - 1) // 2
    image = image[centre - half : centre + half + 1, centre - half : centre + half + 1]
    cropped = _crop(image[None], _TRUNCATION)[0]
    return cropped / cropped.sum()


def _crop(images: FloatArray, truncation: float) -> FloatArray:
    """Cut the rim off that holds less than a share of the absolute sum of any of the images."""
    half = images.shape[1] // 2
    offset = np.abs(np.arange(-half, half + 1))
    ring = np.maximum(offset[:, None], offset[None, :]).ravel()
    magnitude = np.abs(images).reshape(len(images), -1)
    within = np.cumsum([np.bincount(ring, weights=row) for row in magnitude], axis=1)
    needed = np.all(within >= (1.0 - truncation) * within[:, -1:], axis=0)
    radius = max(1, int(np.argmax(needed)))
    inner = slice(half - radius, half + radius + 1)
    return images[:, inner, inner]


def _embed(image: FloatArray, side: int) -> FloatArray:
    rim = (side - image.shape[0]) // 2
    return np.pad(image, rim)


def _without_weight(plane: FloatArray) -> BoolArray:
    return ~(np.isfinite(plane) & (plane > 0))


def _mean_variances(
    plane: FloatArray, ignored: BoolArray, *, x: FloatArray, y: FloatArray, kernel: SpatialKernel
) -> FloatArray:
    """Return the clipped mean variance around each point, of the whole image where there is a single point."""
    ny, nx = plane.shape
    reach_y, reach_x = (ny, nx) if len(x) == 1 else (ny // _NODES + 1, nx // _NODES + 1)
    stride = max(1, int(np.sqrt(plane.size / 1_000_000)))
    means = np.full(len(x), np.nan)
    for i in range(len(x)):
        row, column = int(y[i]) - kernel.box.y_min, int(x[i]) - kernel.box.x_min
        rows = slice(max(0, row - reach_y // 2), min(ny, row + reach_y // 2 + 1), stride)
        columns = slice(max(0, column - reach_x // 2), min(nx, column + reach_x // 2 + 1), stride)
        values = plane[rows, columns][~ignored[rows, columns]].astype(float)
        for _ in range(3):
            if values.size > 1:
                values = values[np.abs(values - values.mean()) <= 3.0 * values.std() + 1e-6 * abs(values.mean())]
        if values.size:
            means[i] = values.mean()
    if np.isnan(means).all():
        msg = "a variance plane has no usable pixel"
        raise ValueError(msg)
    # A place without data takes the mean of the others.
    return np.where(np.isnan(means), np.nanmean(means), means)
