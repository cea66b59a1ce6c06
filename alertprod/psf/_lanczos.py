"""Lanczos windows as matrices: what PSF models need to be drawn between their samples."""

import numpy as np

from alertprod._typing import FloatArray


def lanczos(offsets: FloatArray, order: int) -> FloatArray:
    """Return the windowed sinc ``sinc(t) sinc(t / order)``, zero for ``|t| >= order``; t in samples."""
    return np.where(np.abs(offsets) < order, np.sinc(offsets) * np.sinc(offsets / order), 0.0)


def sampling_matrix(*, n_samples: int, size: int, step: float, offset: float, order: int = 4) -> FloatArray:
    """Return the matrix that draws a row of model samples on pixels.

    Parameters
    ----------
    n_samples
        Length of the model's row; its centre is sample ``n_samples // 2``.
    size
        Number of pixels, odd; their centre is the middle one.
    step
        Pixels between neighbouring samples.
    offset
        Pixels by which the model's centre lies off the middle pixel.

    Returns
    -------
    FloatArray
        Shape ``(size, n_samples)``; rows sum to 1, or are 0 where the pixel lies off the model.
    """
    pixels = np.arange(size) - size // 2
    places = n_samples // 2 + (pixels - offset) / step
    weights = lanczos(np.arange(n_samples)[None, :] - places[:, None], order)
    weights[(places < 0) | (places > n_samples - 1)] = 0.0
    totals = weights.sum(axis=1, keepdims=True)
    return np.divide(weights, totals, out=np.zeros_like(weights), where=totals > 0)
