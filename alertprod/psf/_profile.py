"""The elliptical Moffat that fits a set of stars best: the start, and the prior, of a fitted PSF."""

from dataclasses import dataclass

import numpy as np

from alertprod._typing import FloatArray
from alertprod.psf._stamps import Stamps, solve_small

_PRIOR_MEAN = np.array([0.0, np.log(2.5), 0.0, 0.0])
_PRIOR_SIGMA = np.array([np.inf, 1.5, 0.5, 0.5])
"""Mean and width of what is believed of (log width, log(beta - 1), e1, e2): beta about 3.5, nearly round."""

_LIMITS = ((-0.3, 0.3), (np.log(0.5), np.log(40.0)), (-0.7, 0.7), (-0.7, 0.7))
"""Largest step of the log width, and ranges of the others; a beta of 40 is a Gaussian to any image."""

_MAX_STARS = 40
"""Stars the profile is fitted to; it has four parameters."""

_MAX_ITERATIONS = 12
_CONVERGED = 2e-3
"""Largest change of a parameter at which the iteration stops; the samples take up what is left."""

_STEP = 0.01
"""Of the numerical derivatives by the parameters, and in pixels by the position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoffatProfile:
    """A Moffat of geometric-mean FWHM `fwhm`, with ellipticity components e1 (along x) and e2 (along the diagonal)."""

    fwhm: float
    beta: float = 3.5
    e1: float = 0.0
    e2: float = 0.0

    @classmethod
    def from_parameters(cls, parameters: FloatArray) -> "MoffatProfile":
        """Build from ``(log fwhm, log(beta - 1), e1, e2)``."""
        return cls(
            fwhm=float(np.exp(parameters[0])),
            beta=float(1.0 + np.exp(parameters[1])),
            e1=float(parameters[2]),
            e2=float(parameters[3]),
        )

    @property
    def parameters(self) -> FloatArray:
        """The vector `from_parameters` takes."""
        return np.array([np.log(self.fwhm), np.log(self.beta - 1.0), self.e1, self.e2])

    def evaluate(self, u: FloatArray, v: FloatArray) -> FloatArray:
        """Return the profile of unit flux at offsets in pixels; flux outside any stamp counted."""
        alpha2 = self.fwhm**2 / (4.0 * np.expm1(np.log(2.0) / self.beta))
        # The quadratic form has determinant 1: width and shape do not mix.
        unit = np.sqrt(1.0 - self.e1**2 - self.e2**2)
        radius2 = ((1.0 - self.e1) * u * u - 2.0 * self.e2 * u * v + (1.0 + self.e1) * v * v) / unit
        return (self.beta - 1.0) / (np.pi * alpha2) * (1.0 + radius2 / alpha2) ** -self.beta

    def draw(self, stamps: Stamps, *, dx: float = 0.0, dy: float = 0.0) -> FloatArray:
        """Return the profile on the pixels of each stamp, moved by `dx`, `dy` from the star's position."""
        steps = np.arange(-stamps.half, stamps.half + 1, dtype=float)
        offset_x, offset_y = stamps.offsets
        u = steps[None, None, :] - offset_x[:, None, None] - dx
        v = steps[None, :, None] - offset_y[:, None, None] - dy
        return self.evaluate(u, v)

    def place(self, stamps: Stamps) -> FloatArray:
        """Fit flux, sky and position of each star in place; return reduced chi-squared within one FWHM."""
        along_x = (self.draw(stamps, dx=_STEP) - self.draw(stamps, dx=-_STEP)) / (2 * _STEP)
        along_y = (self.draw(stamps, dy=_STEP) - self.draw(stamps, dy=-_STEP)) / (2 * _STEP)
        return stamps.update(self.draw(stamps), along_x, along_y, fwhm=self.fwhm)

    def measure_widths(self, stamps: Stamps) -> tuple[FloatArray, FloatArray]:
        """Return each star's relative width difference to the profile, and its standard error."""
        parameters = self.parameters
        by_width = np.array([_STEP, 0.0, 0.0, 0.0])
        wider = MoffatProfile.from_parameters(parameters + by_width).draw(stamps)
        slimmer = MoffatProfile.from_parameters(parameters - by_width).draw(stamps)
        drawn = self.draw(stamps)
        along_x = (self.draw(stamps, dx=_STEP) - self.draw(stamps, dx=-_STEP)) / (2 * _STEP)
        along_y = (self.draw(stamps, dy=_STEP) - self.draw(stamps, dy=-_STEP)) / (2 * _STEP)
        columns = np.stack([drawn, along_x, along_y, np.ones_like(drawn), (wider - slimmer) / (2 * _STEP)], axis=1)
        solution, covariance = solve_small(columns, stamps.data, stamps.weights(drawn))
        flux = np.where(solution[:, 0] > 0, solution[:, 0], np.inf)
        return solution[:, 4] / flux, np.sqrt(np.abs(covariance[:, 4, 4])) / flux


def fit_profile(stamps: Stamps, *, fwhm: float, min_stars: int) -> MoffatProfile:
    """Fit one Moffat to all stars, and fluxes, skies and positions in place.

    Raises
    ------
    InsufficientPsfStars
        Raised if fewer than `min_stars` remain.

    Notes
    -----
    Gauss-Newton in the four parameters, with each star's flux, sky and position eliminated (Schur complement); a
    star whose chi is far above the median does not count in that iteration.
    """
    profile = MoffatProfile(fwhm=fwhm)
    for _ in range(3):
        profile.place(stamps)
    stamps.require(min_stars)
    sample = stamps.select(np.flatnonzero(stamps.use)[:_MAX_STARS])
    for _ in range(_MAX_ITERATIONS):
        parameters = profile.parameters
        new = parameters + np.clip(_newton_step(sample, profile), *_LIMITS[0])
        for k in (1, 2, 3):
            new[k] = np.clip(new[k], *_LIMITS[k])
        profile = MoffatProfile.from_parameters(new)
        profile.place(sample)
        sample.require(min_stars)
        if np.abs(new - parameters).max() < _CONVERGED:
            break
    for _ in range(2):
        profile.place(stamps)
    stamps.require(min_stars)
    return profile


def _newton_step(stamps: Stamps, profile: MoffatProfile) -> FloatArray:
    """Return the change of the parameters from the stars that fit about as well as most."""
    parameters = profile.parameters
    limit = 2.0 * max(1.0, float(np.median(stamps.chi[stamps.use])))
    best = np.flatnonzero(stamps.use & (stamps.chi <= limit))
    drawn = profile.draw(stamps)
    flux = stamps.flux[:, None, None]
    images = [
        drawn,
        flux * (profile.draw(stamps, dx=_STEP) - profile.draw(stamps, dx=-_STEP)) / (2 * _STEP),
        flux * (profile.draw(stamps, dy=_STEP) - profile.draw(stamps, dy=-_STEP)) / (2 * _STEP),
        np.ones_like(drawn),
    ]
    for k in range(4):
        step = np.zeros(4)
        step[k] = _STEP
        up, down = (MoffatProfile.from_parameters(parameters + sign * step).draw(stamps) for sign in (1, -1))
        images.append(flux * (up - down) / (2 * _STEP))
    columns = np.stack(images, axis=1)[best].reshape(len(best), 8, -1)
    weights = stamps.weights(drawn)[best].reshape(len(best), 1, -1)
    residual = (stamps.data - flux * drawn - stamps.sky[:, None, None])[best].reshape(len(best), -1, 1)
    # Bring each star to unit flux weight, so that sums over stars of all brightness stay well scaled.
    normal = (columns * weights) @ columns.transpose(0, 2, 1)
    right = ((columns * weights) @ residual)[..., 0]
    own = normal[:, :4, :4] + 1e-12 * np.einsum("nii->ni", normal[:, :4, :4])[:, :, None] * np.eye(4)
    coupling = np.linalg.solve(own, normal[:, :4, 4:])
    shared = (normal[:, 4:, 4:] - normal[:, 4:, :4] @ coupling).sum(axis=0)
    force = (right[:, 4:] - (coupling.transpose(0, 2, 1) @ right[:, :4, None])[..., 0]).sum(axis=0)
    prior = 1.0 / _PRIOR_SIGMA**2
    return np.linalg.solve(shared + np.diag(prior), force + prior * (_PRIOR_MEAN - parameters))
