"""The PSF model while it is fitted: samples on a grid, a Moffat and its correction per polynomial term."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter

from alertprod._typing import FloatArray
from alertprod.psf._lanczos import sampling_matrices
from alertprod.psf._profile import MoffatProfile
from alertprod.psf._stamps import Stamps
from alertprod.psf.model import FWHM_PER_SIGMA
from alertprod.psf.psfex import evaluate_terms, polynomial_terms

_SAMPLES_PER_FWHM = 4.0
"""Model samples across the FWHM, at least; with fewer, Lanczos-4 no longer draws it to a fraction of a percent."""

_MODEL_ERROR = 0.01
"""Relative error that each model is granted while stars are judged: else the brightest reject one another."""

_DEVIATION = (0.5, 1e-3)
"""Standard deviation expected of the difference to the Moffat profile: relative to it, and to its peak. Where stars
say little, and in the wings where they all do, the model stays with the profile."""

_MAX_STEPS = 12
"""Conjugate-gradient steps of one round; the next goes on from there."""

_TOLERANCE = 3e-3
"""Relative residual at which these steps stop, far below the noise of the solution."""

_WIDENING = 0.6
"""Sigma over FWHM by which the profile is widened for that: to 1.7 times its width, as in the corners of wide fields."""

_SMOOTHNESS = 0.18
"""Scale (sigma over FWHM) below which the difference to the Moffat profile has no structure: the atmosphere leaves none,
and noise has most of its own there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridModel:
    """The PSF while it is fitted; immutable.

    Parameters
    ----------
    base
        Samples of the Moffat profile, shape ``(n, n)``.
    whitened
        The difference to it in units of what is expected, shape ``(n_terms, n, n)``.
    components
        The model's images per polynomial term, same shape.
    order, zero, scale, sampling
        As in `PsfexPsf`.
    fwhm
        Of the Moffat profile, pixels.
    """

    base: FloatArray
    whitened: FloatArray
    components: FloatArray
    order: int
    zero: tuple[float, float]
    scale: tuple[float, float]
    sampling: float
    fwhm: float

    @classmethod
    def from_profile(cls, profile: MoffatProfile, *, half: int, shape: tuple[int, ...], order: int) -> "GridModel":
        sampling = min(1.0, profile.fwhm / _SAMPLES_PER_FWHM)
        reach = int(np.ceil(half / sampling))
        steps = np.arange(-reach, reach + 1) * sampling
        base = profile.evaluate(steps[None, :], steps[:, None])
        base /= base.sum() * sampling**2
        components = np.zeros((len(polynomial_terms(order)), *base.shape))
        components[0] = base
        return cls(
            base=base,
            whitened=np.zeros_like(components),
            components=components,
            order=order,
            zero=((shape[1] - 1) / 2, (shape[0] - 1) / 2),
            scale=(max(shape[1] / 2, 1.0), max(shape[0] / 2, 1.0)),
            sampling=sampling,
            fwhm=profile.fwhm,
        )

    def terms(self, stamps: Stamps) -> FloatArray:
        """Return the polynomial's terms at the stars, shape ``(n_stars, n_terms)``."""
        u = (stamps.x - self.zero[0]) / self.scale[0]
        v = (stamps.y - self.zero[1]) / self.scale[1]
        return evaluate_terms(self.order, u=u, v=v)

    def matrices(self, stamps: Stamps, *, shift: float = 0.0) -> tuple[FloatArray, FloatArray]:
        """Return the drawing matrices of the stars' columns and rows, shape ``(n_stars, size, n_samples)``."""
        draw = [
            sampling_matrices(
                n_samples=self.base.shape[0], size=2 * stamps.half + 1, step=self.sampling, offsets=offsets + shift
            )
            for offsets in stamps.offsets
        ]
        return draw[0], draw[1]

    def place(self, stamps: Stamps) -> FloatArray:
        """Fit flux, sky and position of each star in place; return reduced chi-squared within one FWHM."""
        samples = np.tensordot(self.terms(stamps), self.components, axes=1)
        columns, rows = self.matrices(stamps)
        step = 0.05
        columns_up, rows_up = self.matrices(stamps, shift=step)
        columns_down, rows_down = self.matrices(stamps, shift=-step)
        drawn = rows @ samples @ columns.transpose(0, 2, 1)
        along_x = rows @ samples @ (columns_up - columns_down).transpose(0, 2, 1) / (2 * step)
        along_y = (rows_up - rows_down) @ samples @ columns.transpose(0, 2, 1) / (2 * step)
        return stamps.update(drawn, along_x, along_y, fwhm=self.fwhm)

    def improved(self, stamps: Stamps) -> "GridModel":
        """Return the model that fits the stars where they are now best."""
        use = stamps.use
        terms = self.terms(stamps)[use]
        columns, rows = (matrix[use].astype(np.float32) for matrix in self.matrices(stamps))
        columns_t, rows_t = columns.transpose(0, 2, 1), rows.transpose(0, 2, 1)
        flux = stamps.flux[use, None, None].astype(np.float32)
        drawn = rows @ np.tensordot(terms, self.components, axes=1).astype(np.float32) @ columns_t
        noise2 = stamps.variance[use] + (_MODEL_ERROR * flux * drawn) ** 2
        weights = np.where(stamps.good[use], flux / noise2, 0.0).astype(np.float32)
        profile = rows @ self.base.astype(np.float32) @ columns_t
        residual = stamps.data[use] - stamps.sky[use, None, None] - flux * profile
        # Where the profile may be wider than on average, more is expected in what are otherwise wings.
        wider = gaussian_filter(self.base, _WIDENING * self.fwhm / self.sampling)
        expected = np.hypot(_DEVIATION[0] * np.maximum(self.base, wider), _DEVIATION[1] * self.base.max())
        smooth = _smoothing_matrix(len(self.base), width=_SMOOTHNESS * self.fwhm / self.sampling)

        def forward(whitened: FloatArray) -> FloatArray:
            samples = np.tensordot(terms, expected * (smooth @ whitened @ smooth), axes=1)
            return flux * (rows @ samples.astype(np.float32) @ columns_t)

        def backward(images: FloatArray) -> FloatArray:
            gradient = rows_t @ (weights * images).astype(np.float32) @ columns
            return smooth @ (expected * np.tensordot(terms, gradient.astype(float), axes=(0, 0))) @ smooth

        whitened = _conjugate_gradients(lambda z: z + backward(forward(z)), backward(residual), start=self.whitened)
        components = expected * (smooth @ whitened @ smooth)
        components[0] += self.base
        return replace(self, components=self._normalised(components), whitened=whitened)

    def _normalised(self, components: FloatArray) -> FloatArray:
        """Take out what fluxes and positions of stars can take up: drawn on pixels the sum is 1, the centre 0."""
        components = components / (components[0].sum() * self.sampling**2)
        n = components.shape[1]
        v, u = (np.mgrid[:n, :n] - n // 2) * self.sampling
        weight = np.exp(-0.5 * (u**2 + v**2) * (FWHM_PER_SIGMA / self.fwhm) ** 2)
        slope_y, slope_x = np.gradient(components[0], self.sampling)
        for axis, slope in ((u, slope_x), (v, slope_y)):
            unit = -(weight * axis * slope).sum()
            moments = np.tensordot(components, weight * axis, axes=([1, 2], [0, 1]))
            components += (moments / unit)[:, None, None] * slope
        components[1:] -= components[1:].sum(axis=(1, 2), keepdims=True) * self.sampling**2 * components[0]
        return components


def _smoothing_matrix(n: int, *, width: float) -> FloatArray:
    """Return a symmetric Gaussian filter of standard deviation `width` samples that keeps white noise's variance."""
    steps = np.arange(float(n))
    matrix = np.exp(-0.5 * ((steps[:, None] - steps[None, :]) / max(width, 1e-3)) ** 2)
    return matrix / np.sqrt((matrix[n // 2] ** 2).sum())


def _conjugate_gradients(
    normal: Callable[[FloatArray], FloatArray], right: FloatArray, *, start: FloatArray
) -> FloatArray:
    """Solve ``normal(z) = right`` for a positive definite operator, from `start`."""
    solution = start.copy()
    residual = right - normal(start)
    direction = residual.copy()
    power = float((residual * residual).sum())
    target = _TOLERANCE**2 * float((right * right).sum())
    for _ in range(_MAX_STEPS):
        if power <= target:
            break
        image = normal(direction)
        length = power / float((direction * image).sum())
        solution += length * direction
        residual -= length * image
        power, before = float((residual * residual).sum()), power
        direction = residual + power / before * direction
    return solution
