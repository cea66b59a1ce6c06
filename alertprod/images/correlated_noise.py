"""Noise whose pixels are not independent: what white noises it was made of, and what a weighted sum of its pixels has.

A variance plane holds each pixel's own variance. Where the noise of an image was made white with one kernel for everywhere,
it is not white on a star: the error of a flux then depends on the images that it came from.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from alertprod._typing import FloatArray, IntArray
from alertprod.psf.convolution import convolve_full

_POWER = 0.99995
"""Share of the weights' squared sum that is looked at: the wings cost time and bring no noise."""


class KernelModel(Protocol):
    """A kernel that may vary over an image."""

    def compute_image(self, *, x: float, y: float) -> FloatArray:
        """Return the kernel at a position, shape ``(size, size)``, size odd."""
        ...


@dataclass(frozen=True, slots=True)
class ConstantKernel:
    """One kernel for everywhere, shape ``(size, size)``, size odd."""

    image: FloatArray

    def compute_image(self, *, x: float, y: float) -> FloatArray:  # noqa: ARG002  the same everywhere
        """Return the kernel."""
        return self.image


@dataclass(frozen=True, slots=True)
class NoisePart:
    """Independent noise of known variances, seen through a kernel.

    Parameters
    ----------
    variance
        Of the noise before the kernel, shape of the image; what is not positive and finite is not known.
    kernel
        What it was convolved with.
    """

    variance: FloatArray
    kernel: KernelModel


@dataclass(frozen=True, slots=True)
class CorrelatedNoise:
    """The noise of an image as the sum of independent parts, and what is wrong with the light that was subtracted.

    Parameters
    ----------
    parts
        The noise.
    scale
        Multiplies the variances of all parts.
    subtracted
        What was taken off the image, its shape.
    fractional_error
        Of `subtracted`: one error for all the light of a place, not one a pixel. `scale` leaves it alone.
    """

    parts: tuple[NoisePart, ...]
    scale: float = 1.0
    subtracted: FloatArray | None = None
    fractional_error: float = 0.0

    def scaled(self, factor: float) -> "CorrelatedNoise":
        """Return the noise with all variances times a factor."""
        return replace(self, scale=self.scale * factor)

    def with_fractional_error(self, fraction: float, subtracted: FloatArray) -> "CorrelatedNoise":
        """Return the noise of an image from which light was subtracted that is known to a fraction."""
        return replace(self, subtracted=subtracted, fractional_error=fraction)

    def compute_variances(self, weights: FloatArray, *, column: IntArray, row: IntArray) -> FloatArray:
        """Return the variances of weighted sums of the image's pixels.

        Parameters
        ----------
        weights
            Shape ``(n, size, size)``, size odd.
        column, row
            The pixels in the middle of the weights, shape ``(n,)``; off the image is allowed.

        Returns
        -------
        FloatArray
            Shape ``(n,)``; NaN where nothing about the middle is known.

        Notes
        -----
        With the weights w, a part's kernel k and variances V: ``sum (k^T w)^2 V``, k^T being the correlation. Unknown
        variances count as the mean of the known ones about. With light L subtracted of which a fraction f is uncertain:
        ``f^2 (sum w L)^2`` more.
        """
        total = np.zeros(len(weights))
        if not len(weights):
            return total
        weights = _trim(weights)
        systematic = np.zeros(len(weights))
        if self.subtracted is not None and self.fractional_error > 0:
            light = np.nan_to_num(_cut(self.subtracted, column, row, weights.shape[1]), posinf=0.0, neginf=0.0)
            systematic = (self.fractional_error * np.einsum("ijk,ijk->i", weights, light)) ** 2
        for part in self.parts:
            kernels = self._draw(part.kernel, column, row)
            spread = convolve_full(weights, kernels[:, ::-1, ::-1])
            spread *= spread
            variances = _cut(part.variance, column, row, spread.shape[1])
            known = np.isfinite(variances) & (variances > 0)
            n_known = known.sum(axis=(1, 2))
            variances = np.where(known, variances, 0.0)
            mean = np.full(len(weights), np.nan)
            np.divide(variances.sum(axis=(1, 2)), n_known, out=mean, where=n_known > 0)
            unknown = np.where(known, 0.0, spread).sum(axis=(1, 2))
            total += np.einsum("ijk,ijk->i", spread, variances) + mean * unknown
        return self.scale * total + systematic

    @staticmethod
    def _draw(kernel: KernelModel, column: IntArray, row: IntArray) -> FloatArray:
        if isinstance(kernel, ConstantKernel):
            return np.broadcast_to(kernel.image, (len(column), *kernel.image.shape))
        return np.array([kernel.compute_image(x=float(x), y=float(y)) for x, y in zip(column, row, strict=True)])


def _trim(weights: FloatArray) -> FloatArray:
    """Return the middles of the weights that hold their power."""
    half = weights.shape[1] // 2
    offset = np.abs(np.arange(-half, half + 1))
    ring = np.maximum(offset[:, None], offset[None, :]).ravel()
    power = np.bincount(ring, weights=(weights**2).sum(axis=0).ravel())
    if not power.sum() > 0:
        return weights
    radius = int(np.searchsorted(np.cumsum(power), _POWER * power.sum()))
    inner = slice(half - radius, half + radius + 1)
    return weights[:, inner, inner]


def _cut(plane: FloatArray, column: IntArray, row: IntArray, size: int) -> FloatArray:
    """Return squares of a plane, NaN beyond it: float64, shape ``(n, size, size)``."""
    offset = np.arange(size) - size // 2
    rows, columns = row[:, None] + offset, column[:, None] + offset
    ny, nx = plane.shape
    inside = ((rows >= 0) & (rows < ny))[:, :, None] & ((columns >= 0) & (columns < nx))[:, None, :]
    values = plane[np.clip(rows, 0, ny - 1)[:, :, None], np.clip(columns, 0, nx - 1)[:, None, :]]
    return np.where(inside, values, np.nan).astype(float)


def make_noise(variance: FloatArray, kernel: FloatArray) -> CorrelatedNoise:
    """Return the noise of an image of these variances that white noise has through a kernel of unit sum."""
    return CorrelatedNoise((NoisePart(variance, ConstantKernel(kernel / np.sqrt((kernel**2).sum()))),))
