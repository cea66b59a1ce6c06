"""Gaussian and Moffat profiles with elliptical isophotes, the same everywhere on the detector.

Profiles are sampled at pixel centres, not integrated over pixels: a width measured on an image
already contains the pixel's own response, and that is the width to give here.
"""

from abc import abstractmethod

import numpy as np

from alertprod._typing import FloatArray
from alertprod.psf.model import FWHM_PER_SIGMA, PointSpreadFunction

_GAUSSIAN_EXTENT_FWHM = 2.2
"""Half side of a Gaussian's default image over its FWHM: beyond 5.2 sigma lies 1e-6 of the flux."""

_MOFFAT_EXTENT_FWHM = 4.0
"""Half side of a Moffat's default image over its FWHM: a beta of 3 leaves less than 0.3 % of the flux outside."""

_MAX_SIZE = 1025
"""Larger PSF images are a mistake in a header, not optics."""


class EllipticalPsf(PointSpreadFunction):
    """What the analytic profiles share: an elliptical radius and a size.

    Parameters
    ----------
    fwhm
        Geometric mean of the FWHM along the two axes, pixels.
    ellipticity
        ``1 - b/a`` of the isophotes, from 0 to below 1.
    position_angle_deg
        Of the major axis, from +x towards +y.
    size
        Side of the images, odd; by default as large as the profile needs.
    average_position
        ``(x, y)`` to report; the profile does not depend on it.

    Raises
    ------
    ValueError
        Raised if a parameter is out of its range.
    """

    def __init__(
        self,
        *,
        fwhm: float,
        ellipticity: float = 0.0,
        position_angle_deg: float = 0.0,
        size: int | None = None,
        average_position: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        if not (np.isfinite(fwhm) and fwhm > 0):
            msg = f"FWHM is {fwhm}; a positive number of pixels is needed"
            raise ValueError(msg)
        if not 0.0 <= ellipticity < 1.0:
            msg = f"ellipticity is {ellipticity}; 0 <= 1 - b/a < 1 is needed"
            raise ValueError(msg)
        if not np.isfinite(position_angle_deg):
            msg = f"position angle is {position_angle_deg}"
            raise ValueError(msg)
        self._fwhm = float(fwhm)
        self._ellipticity = float(ellipticity)
        self._position_angle_deg = float(position_angle_deg)
        self._average_position = (float(average_position[0]), float(average_position[1]))
        if size is None:
            fwhm_major = self._fwhm / np.sqrt(1.0 - self._ellipticity)
            # A size that follows from a huge width is bounded; one that was asked for is not touched.
            size = min(2 * max(2, int(np.ceil(self._extent_fwhm() * fwhm_major))) + 1, _MAX_SIZE)
        if size < 1 or size % 2 == 0 or size > _MAX_SIZE:
            msg = f"size is {size}; an odd number from 1 to {_MAX_SIZE} is needed"
            raise ValueError(msg)
        self._size = int(size)

    @property
    def fwhm(self) -> float:
        """Geometric mean of the FWHM along the two axes, pixels."""
        return self._fwhm

    @property
    def ellipticity(self) -> float:
        """``1 - b/a`` of the isophotes."""
        return self._ellipticity

    @property
    def position_angle_deg(self) -> float:
        """Angle of the major axis from +x towards +y."""
        return self._position_angle_deg

    @property
    def size(self) -> int:
        """Side of the images in pixels, odd."""
        return self._size

    @property
    def average_position(self) -> tuple[float, float]:
        """The (x, y) given at construction."""
        return self._average_position

    def compute_offset_image(self, *, x: float, y: float, dx: float, dy: float) -> FloatArray:  # noqa: ARG002  the profile is the same everywhere
        """Return the profile with its centre `dx`, `dy` pixels off the middle pixel: ``(size, size)``, sum 1."""
        half = self._size // 2
        steps = np.arange(-half, half + 1, dtype=float)
        angle = np.radians(self._position_angle_deg)
        axis_ratio = 1.0 - self._ellipticity
        u, v = steps[None, :] - dx, steps[:, None] - dy
        along = u * np.cos(angle) + v * np.sin(angle)
        across = v * np.cos(angle) - u * np.sin(angle)
        radius2 = along * along * axis_ratio + across * across / axis_ratio
        image = self._profile(radius2)
        return image / image.sum()

    @abstractmethod
    def _profile(self, radius2: FloatArray) -> FloatArray:
        """Return the unnormalised profile at squared circularised radii, pixels squared."""

    @classmethod
    @abstractmethod
    def _extent_fwhm(cls) -> float:
        """Return the half side of the default image over the FWHM."""


class GaussianPsf(EllipticalPsf):
    """An elliptical Gaussian; parameters as in `EllipticalPsf`."""

    @classmethod
    def from_sigma(cls, sigma: float, *, size: int | None = None) -> "GaussianPsf":
        """Build a circular Gaussian of standard deviation `sigma` pixels."""
        return cls(fwhm=sigma * FWHM_PER_SIGMA, size=size)

    def _profile(self, radius2: FloatArray) -> FloatArray:
        sigma = self._fwhm / FWHM_PER_SIGMA
        return np.exp(-0.5 * radius2 / sigma**2)

    @classmethod
    def _extent_fwhm(cls) -> float:
        return _GAUSSIAN_EXTENT_FWHM


class MoffatPsf(EllipticalPsf):
    """An elliptical Moffat profile ``(1 + r^2 / alpha^2)^-beta``; the other parameters as in `EllipticalPsf`.

    Parameters
    ----------
    beta
        Exponent, above 1 (where the flux would be infinite); 2.5 to 4.8 is the atmosphere.

    Notes
    -----
    Moffat (1969); ``alpha = FWHM / (2 sqrt(2^(1/beta) - 1))``.
    """

    def __init__(
        self,
        *,
        fwhm: float,
        beta: float = 3.0,
        ellipticity: float = 0.0,
        position_angle_deg: float = 0.0,
        size: int | None = None,
        average_position: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        if not (np.isfinite(beta) and beta > 1.0):
            msg = f"Moffat beta is {beta}; more than 1 is needed"
            raise ValueError(msg)
        self._beta = float(beta)
        super().__init__(
            fwhm=fwhm,
            ellipticity=ellipticity,
            position_angle_deg=position_angle_deg,
            size=size,
            average_position=average_position,
        )

    @property
    def beta(self) -> float:
        """Exponent of the profile."""
        return self._beta

    def _profile(self, radius2: FloatArray) -> FloatArray:
        alpha2 = self._fwhm**2 / (4.0 * np.expm1(np.log(2.0) / self._beta))
        return (1.0 + radius2 / alpha2) ** -self._beta

    @classmethod
    def _extent_fwhm(cls) -> float:
        return _MOFFAT_EXTENT_FWHM
