"""The matched filter: the signal-to-noise ratio of a point source at each pixel, whatever is masked about it."""

import numpy as np

from alertprod._bands import map_bands
from alertprod._typing import FloatArray
from alertprod.detection import _filter_loops
from alertprod.detection.thresholds import ThresholdType, scale_levels
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.model import PointSpreadFunction

_FILTER_POWER = 0.999
"""Share of the PSF's squared sum within the filter's box: the wings cost time and bring no signal."""

_FILTER_EFFICIENCY = 0.998
"""Signal-to-noise kept by approximating the PSF with separable terms: one for a Gaussian, two for most PSFs."""


def compute_significance(masked_image: MaskedImage, kernel: FloatArray, *, bad_bits: int) -> FloatArray:
    """Return the signal-to-noise ratio of a source of shape `kernel` at each pixel: float32, zero where none is usable.

    Parameters
    ----------
    masked_image
        Background-free image with its variance.
    kernel
        Odd-sided, centred on its middle pixel; any scale.
    bad_bits
        Mask bits of pixels without weight.
    """
    kernel_y, kernel_x, squared_y, squared_x = _separate(kernel)
    significance = np.empty(masked_image.shape, dtype=np.float32)

    def fill(first: int, last: int) -> None:
        _filter_loops.filter_significance(
            masked_image.image, masked_image.variance, masked_image.mask, bad_bits,
            kernel_y, kernel_x, squared_y, squared_x, first, last, significance,
        )  # fmt: skip

    map_bands(fill, masked_image.shape[0])
    return significance


def make_filter_kernel(psf: PointSpreadFunction | float) -> FloatArray:
    """Return the PSF's kernel image cut to the central box that holds its power."""
    if isinstance(psf, int | float):
        half = max(1, int(np.ceil(4.0 * psf)))
        u = np.arange(-half, half + 1, dtype=float)
        profile = np.exp(-0.5 * (u / psf) ** 2)
        kernel: FloatArray = np.outer(profile, profile)
    else:
        x, y = psf.average_position
        kernel = psf.compute_kernel_image(x=x, y=y)
    kernel = kernel / kernel.sum()
    middle = kernel.shape[0] // 2
    power = (kernel**2).sum()
    for half in range(1, middle + 1):
        core = kernel[middle - half : middle + half + 1, middle - half : middle + half + 1]
        if (core**2).sum() >= _FILTER_POWER * power:
            return core
    return kernel


def _separate(kernel: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return float32 rows and columns of the separable terms, and of one term for the squared kernel."""
    u, s, vt = np.linalg.svd(kernel)
    efficiency = np.sqrt(np.cumsum(s**2) / np.sum(s**2))
    rank = int(np.searchsorted(efficiency, _FILTER_EFFICIENCY)) + 1
    kernel_y, kernel_x = (u[:, :rank] * s[:rank]).T, vt[:rank]
    squared = (kernel_y.T @ kernel_x) ** 2
    u, s, vt = np.linalg.svd(squared)
    squared_y, squared_x = u[:, 0], vt[0]
    # The sum is kept exactly: it is the noise where the variance is smooth, which is nearly everywhere.
    scale = squared.sum() / (squared_y.sum() * squared_x.sum())
    single = (np.ascontiguousarray(a, dtype=np.float32) for a in (kernel_y, kernel_x, squared_y * scale, squared_x))
    kernel_y, kernel_x, squared_y, squared_x = single
    return kernel_y, kernel_x, squared_y, squared_x


def compute_unsmoothed_significance(masked_image: MaskedImage, *, bad_bits: int) -> FloatArray:
    """Return ``image / sqrt(variance)``, float32, zero on pixels without weight: of a score image the significance."""
    usable = masked_image.usable(bad_bits)
    significance = np.zeros(masked_image.shape, dtype=np.float32)
    significance[usable] = masked_image.image[usable] / np.sqrt(masked_image.variance[usable])
    return significance


def compute_levels(
    masked_image: MaskedImage, kernel: FloatArray, *, bad_bits: int, kind: ThresholdType, smooth: bool
) -> FloatArray:
    """Return what a threshold of another kind than pixel_stdev is compared with; zero on pixels without weight.

    Parameters
    ----------
    masked_image, kernel, bad_bits
        As for `compute_significance`.
    kind
        See `scale_levels`.
    smooth
        Off for an image that is a score already.
    """
    usable = masked_image.usable(bad_bits)
    flat = MaskedImage(masked_image.image, masked_image.mask, np.where(usable, np.float32(1.0), np.float32(np.nan)))
    if not smooth:
        return scale_levels(
            compute_unsmoothed_significance(flat, bad_bits=bad_bits), masked_image, usable, kind=kind, noise_factor=1.0
        )
    # The noise of a unit-sum kernel's output where each pixel's is 1.
    noise_factor = float(np.sqrt((kernel**2).sum()) / kernel.sum())
    smoothed = compute_significance(flat, kernel, bad_bits=bad_bits) * np.float32(noise_factor)
    return scale_levels(smoothed, masked_image, usable, kind=kind, noise_factor=noise_factor)
