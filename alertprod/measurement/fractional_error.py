"""The error of a difference's fluxes that grows with the flux subtracted: of the match, of the flat field, of the air."""

import numpy as np
from scipy.optimize import brentq

from alertprod._typing import FloatArray

_LEAST_STARS = 20
"""Fewer cannot tell a scatter from one odd star."""

_MOST_STARS = 100
"""The brightest, for their noise: faint stars know nothing of a fraction of their flux."""

_MEDIAN = 0.67449
"""Of the absolute value of a normal deviate."""

_MEDIAN_ERROR = 1.166
"""Standard error of such a median times the root of the number, in units of the median."""

_SURE = 2.0
"""The scatter counts where it is beyond the noise by this many standard errors."""

_HIGHEST = 1.0
"""Where the residuals are as large as the stars, nothing was subtracted at all."""


def estimate_fractional_error(flux: FloatArray, flux_err: FloatArray, subtracted_flux: FloatArray) -> float:
    """Estimate the error, as a fraction of the flux subtracted, that constant stars' fluxes on a difference have.

    Parameters
    ----------
    flux, flux_err
        Of stars on the difference with the errors that the noise alone gives, shape ``(n,)``; what is not finite is left
        out.
    subtracted_flux
        Of the same stars on what was subtracted, shape ``(n,)``.

    Returns
    -------
    float
        f, with which half of the stars have ``|flux| < 0.67449 sqrt(flux_err² + f² subtracted_flux²)``; 0 where the
        noise explains their scatter within two standard errors, or where there are fewer than 20 stars.

    Notes
    -----
    A median, so that variable stars do not count. Of the 100 stars with the most flux for their noise.
    """
    known = np.isfinite(flux) & np.isfinite(subtracted_flux) & np.isfinite(flux_err) & (flux_err > 0)
    significance = np.abs(subtracted_flux[known]) / flux_err[known]
    order = np.argsort(-significance)[:_MOST_STARS]
    if len(order) < _LEAST_STARS:
        return 0.0
    pull, significance = np.abs(flux[known] / flux_err[known])[order], significance[order]

    def excess(fraction: float) -> float:
        return float(np.median(pull / np.hypot(1.0, fraction * significance))) / _MEDIAN - 1.0

    if excess(0.0) <= _SURE * _MEDIAN_ERROR / np.sqrt(len(order)):
        return 0.0
    return _HIGHEST if excess(_HIGHEST) >= 0 else float(brentq(excess, 0.0, _HIGHEST))
