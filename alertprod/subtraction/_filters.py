"""Small filters as arrays: odd squares with the origin in their middle pixel, one or a stack ``(n, size, size)``."""

from collections.abc import Sequence

import numpy as np
import scipy.fft

from alertprod._typing import FloatArray
from alertprod.psf.convolution import convolve_full

TRUNCATION = 1e-3
"""Share of a filter's absolute sum that may be cut off."""

MENDED_EXTENT = 0.1
"""A pixel that was replaced from its neighbours counts as bad as far as the filter is above this fraction of its peak.
What is left of the error beyond stays below 5 sigma for stars of peaks up to a thousand sigma; as far as the mask of
a hole spreads, single bad pixels would take a fifth of a detector that has one in a thousand."""


def transform_side(kernels: Sequence[FloatArray]) -> int:
    """Return a side of transforms on which what is made of filters has room for its wings."""
    return int(scipy.fft.next_fast_len(max(128, 6 * max(kernel.shape[0] for kernel in kernels)), real=True))


def power_spectrum(kernel: FloatArray, side: int) -> FloatArray:
    """Return the squared modulus of a filter's half spectrum on a grid of a side."""
    return np.abs(scipy.fft.rfft2(kernel, s=(side, side))) ** 2


def centred_image(spectrum: FloatArray, side: int) -> FloatArray:
    """Return the kernel of a half spectrum on a grid of a side: real, odd, origin in the middle pixel."""
    image = scipy.fft.fftshift(scipy.fft.irfft2(spectrum, s=(side, side)))
    centre, half = side // 2, (side - 1) // 2
    return image[centre - half : centre + half + 1, centre - half : centre + half + 1]


def crop_kernels(images: FloatArray, truncation: float) -> FloatArray:
    """Cut the rim off kernels ``(n, size, size)`` that holds less than a share of each one's absolute sum."""
    half = images.shape[1] // 2
    offset = np.abs(np.arange(-half, half + 1))
    ring = np.maximum(offset[:, None], offset[None, :]).ravel()
    magnitude = np.abs(images).reshape(len(images), -1)
    within = np.cumsum([np.bincount(ring, weights=row) for row in magnitude], axis=1)
    needed = np.all(within >= (1.0 - truncation) * within[:, -1:], axis=0)
    radius = min(half, max(1, int(np.argmax(needed))))
    inner = slice(half - radius, half + radius + 1)
    return images[:, inner, inner]


def convolve_each(first: FloatArray, second: FloatArray) -> FloatArray:
    """Convolve kernels ``(n, a, a)`` with as many others, or one, ``(n or 1, b, b)``: ``(n, a + b - 1, a + b - 1)``."""
    return convolve_full(first, second)


def stack(images: Sequence[FloatArray]) -> FloatArray:
    """Return kernels of different sides as one array ``(n, side, side)``, with zeros about the smaller ones."""
    side = max(image.shape[0] for image in images)
    return np.array([np.pad(image, (side - image.shape[0]) // 2) for image in images])
