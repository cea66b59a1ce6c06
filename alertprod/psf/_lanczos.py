"""Interpolation kernels as weights: what drawing models between samples and warping images share."""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from alertprod._typing import FloatArray

KERNEL_RADII: Mapping[str, int] = {"bilinear": 1, "lanczos3": 3, "lanczos5": 5}
"""Interpolation kernels by name, with their half widths in pixels."""


_TABLE_ENTRIES = 4096
"""Steps of a kernel's table within a pixel: positions are good to 1.2e-4 pixels, values to 5e-5 of a star's peak."""


_ON_SAMPLE = 1e-15
"""Distance at which a point is on a sample: that one alone has weight there."""


def lanczos(fractions: FloatArray, order: int) -> FloatArray:
    """Return the windowed sinc ``sinc(t) sinc(t / order)`` at a point's neighbours, up to a factor.

    Parameters
    ----------
    fractions
        Any shape; from 0 to below 1: how far a point lies beyond the sample before it.

    Returns
    -------
    FloatArray
        One axis more, of samples ``-order + 1`` to `order` of the one before the point. The factor, the same for all
        neighbours of a point, is to be divided out by their sum.

    Notes
    -----
    ``sin(pi t)`` is the same for all neighbours but for its sign, so that ``sin(pi t / order) / t^2`` is what remains of
    the product; and by the sum of angles a point costs two sines, however many its neighbours are.
    """
    taps = np.arange(1.0 - order, order + 1.0)
    offsets = fractions[..., None] - taps
    angles, signs = np.pi / order * taps, 1.0 - 2.0 * (taps % 2)
    phases = np.pi / order * fractions[..., None]
    weights = np.sin(phases) * (signs * np.cos(angles)) - np.cos(phases) * (signs * np.sin(angles))
    on_sample = np.abs(offsets) < _ON_SAMPLE
    offsets[on_sample] = 1.0
    weights /= offsets * offsets
    if on_sample.any():
        weights[on_sample.any(axis=-1)] = 0.0
        weights[on_sample] = 1.0
    return weights


def kernel_weights(fractions: FloatArray, kernel: str) -> FloatArray:
    """Return the weights of the pixels around a point.

    Parameters
    ----------
    fractions
        Shape ``(n,)``, from 0 to below 1: how far the point lies beyond the pixel centre before it.
    kernel
        A name of `KERNEL_RADII`; `KeyError` names one that does not exist.

    Returns
    -------
    FloatArray
        Shape ``(n, 2 r)`` for pixels ``-r + 1`` to ``r`` of the one before the point; rows sum to 1
        exactly enough for a constant image to stay constant, and a whole-pixel shift has one weight.
    """
    radius = KERNEL_RADII[kernel]
    fractions = np.asarray(fractions, dtype=float)
    if kernel == "bilinear":
        return np.stack([1.0 - fractions, fractions], axis=-1)
    weights = lanczos(fractions, radius)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


@lru_cache(maxsize=len(KERNEL_RADII))
def kernel_table(kernel: str) -> FloatArray:
    """Return `kernel_weights` in steps of 1/4096 of a pixel, read-only: float64, shape ``(4096, taps)``."""
    table = kernel_weights(np.arange(_TABLE_ENTRIES) / _TABLE_ENTRIES, kernel)
    table.flags.writeable = False
    return table


def sampling_matrices(*, n_samples: int, size: int, step: float, offsets: FloatArray, order: int = 4) -> FloatArray:
    """Return the matrices that draw rows of model samples on pixels.

    Parameters
    ----------
    n_samples
        Length of the model's row; its centre is sample ``n_samples // 2``.
    size
        Number of pixels, odd; their centre is the middle one.
    step
        Pixels between neighbouring samples.
    offsets
        Shape ``(n,)``, pixels by which the model's centre lies off the middle pixel.

    Returns
    -------
    FloatArray
        Shape ``(n, size, n_samples)``; rows sum to 1, or are 0 where the pixel lies off the model.
    """
    offsets = np.asarray(offsets, dtype=float)
    pixels = np.arange(size) - float(size // 2)
    places = n_samples // 2 + (pixels[None, :] - offsets[:, None]) / step
    # A point within rounding of a sample is on it.
    first = np.floor(places + 1e-9).astype(int) - order + 1
    taps = first[..., None] + np.arange(2 * order)
    weights = lanczos(places - (first + order - 1), order)
    inside = (taps >= 0) & (taps < n_samples)
    weights[~inside] = 0.0
    weights[(places < -1e-9) | (places > n_samples - 1 + 1e-9)] = 0.0
    totals = weights.sum(axis=-1, keepdims=True)
    np.divide(weights, totals, out=weights, where=totals != 0)
    matrices = np.zeros((offsets.size, size, n_samples))
    star, pixel, tap = np.nonzero(inside)
    matrices[star, pixel, taps[star, pixel, tap]] = weights[star, pixel, tap]
    return matrices
