"""Aperture corrections: what takes a flux measured with a finite aperture or an imperfect PSF to all of a star's light.

They are factors that vary over the detector, one field for each kind of flux: ``psf_flux``, ``gaussian_flux``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev

from alertprod._typing import FloatArray
from alertprod.geometry.box import Box


@dataclass(frozen=True, slots=True, eq=False)
class ChebyshevField:
    """A smooth function of the position on a box of pixels.

    Parameters
    ----------
    box
        Where it is defined: to the outer edges of its pixels.
    coefficients
        Shape ``(n_y, n_x)``: element ``[j, i]`` multiplies ``T_j(y') T_i(x')``, with ``x'`` and ``y'`` from -1 to 1
        across the box. One element is a constant.

    Raises
    ------
    ValueError
        Raised if the box is empty, or the coefficients are no table of finite numbers.
    """

    box: Box
    coefficients: FloatArray

    def __post_init__(self) -> None:
        if self.box.area == 0:
            msg = f"a field needs a box with pixels, not {self.box}"
            raise ValueError(msg)
        if self.coefficients.ndim != 2 or self.coefficients.size == 0 or not np.isfinite(self.coefficients).all():
            msg = f"coefficients of shape {self.coefficients.shape}: a table of finite numbers is needed"
            raise ValueError(msg)

    def evaluate(self, *, x: FloatArray | float, y: FloatArray | float) -> FloatArray:
        """Return the value at each point, shape as `x` and `y` broadcast; NaN outside the box."""
        x, y = np.broadcast_arrays(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
        u = (2.0 * (x - self.box.x_min) + 1.0) / (self.box.x_max - self.box.x_min) - 1.0
        v = (2.0 * (y - self.box.y_min) + 1.0) / (self.box.y_max - self.box.y_min) - 1.0
        inside = (np.abs(u) <= 1.0) & (np.abs(v) <= 1.0)
        value = chebyshev.chebval2d(np.where(inside, u, 0.0), np.where(inside, v, 0.0), self.coefficients.T)
        return np.where(inside, value, np.nan)


@dataclass(frozen=True, slots=True, eq=False)
class ApertureCorrection:
    """The factor of one kind of flux, and its standard error where somebody has measured that."""

    factor: ChebyshevField
    error: ChebyshevField | None = None


ApCorrMap = Mapping[str, ApertureCorrection]
"""The correction of each kind of flux, by the name of its column."""
