"""Brightness limits of pictures: robust, so that one star or cosmic ray does not black out the rest."""

import numpy as np

from alertprod._typing import FloatArray

_SIGMA_PER_MAD = 1.4826


def compute_center_and_noise(values: FloatArray) -> tuple[float, float]:
    """Return the median and the robust standard deviation of the finite values; (0, 1) where there are none.

    A constant image has noise 1, so that limits made from it never coincide.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    center = float(np.median(finite))
    noise = _SIGMA_PER_MAD * float(np.median(np.abs(finite - center)))
    return center, noise if noise > 0 else float(np.std(finite)) or 1.0


def stretch_sky(values: FloatArray, *, center: float, noise: float, softening: float = 4.0) -> FloatArray:
    """Return values through an inverse hyperbolic sine: linear in the noise, logarithmic in stars.

    Parameters
    ----------
    values
        Any shape; NaN stays NaN.
    center, noise
        As `compute_center_and_noise` gives them.
    softening
        Where linear turns to logarithmic, in units of the noise.
    """
    return np.arcsinh((values - center) / (softening * noise))
