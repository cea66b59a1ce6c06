"""Centroids by fitting the PSF: maximum likelihood, so their errors reach the Cramér-Rao bound."""

from dataclasses import dataclass

import numpy as np

from alertprod._typing import BoolArray, FloatArray
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement import _loops
from alertprod.measurement.flux import BAD_PLANES
from alertprod.measurement.stamps import chunks, cut_stamps, draw_psfs
from alertprod.psf.model import PointSpreadFunction

_RADIUS_SIGMA = 3.0
"""Pixels within this many PSF sigmas of the start are fitted: beyond is 0.1 % of a Gaussian's information."""

_MAX_ITERATIONS = 20
_TOLERANCE = 1e-3
"""Pixels; the last step, with the exact PSF, converges quadratically from there."""

_MAX_SHIFT_SIGMA = 2.0
"""A centroid further from its peak than this many sigmas, and a pixel, has walked to something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Centroids:
    """Positions, each of shape ``(n,)``, pixels; where `flag` is set they are the starting points, errors NaN."""

    x: FloatArray
    y: FloatArray
    x_err: FloatArray
    y_err: FloatArray
    x_y_cov: FloatArray
    flag: BoolArray


def fit_centroids(
    masked_image: MaskedImage,
    psf: PointSpreadFunction,
    *,
    x: FloatArray,
    y: FloatArray,
    is_negative: BoolArray,
    sigma: float,
    bad_planes: int = BAD_PLANES,
) -> Centroids:
    """Fit flux and position of a point source near each starting point.

    Parameters
    ----------
    masked_image
        Background-free image and its variance; pixels are weighted by inverse variance.
    psf
        Point spread function of the same image.
    x, y
        Starting points within about a PSF sigma: peaks.
    is_negative
        Whether the source's flux is negative.
    sigma
        PSF sigma in pixels, for the region that is fitted.
    bad_planes
        Mask bits of pixels to leave out.

    Returns
    -------
    Centroids
        `flag` is set where the fit does not converge, changes the flux's sign, or leaves the peak.

    Notes
    -----
    Gauss-Newton in (flux, x, y). The first steps move one PSF image per source by interpolation; the last is
    made with the PSF drawn at the position itself. Weights affect the precision only: the profile is symmetric
    in its residuals, so unlike a flux a position has no bias from photon noise in the variance plane.
    """
    x, y = np.array(x, dtype=float), np.array(y, dtype=float)
    n = len(x)
    out_x, out_y, flag = x.copy(), y.copy(), np.ones(n, dtype=np.bool_)
    covariance = np.full((n, 3), np.nan)
    radius = max(2.0, _RADIUS_SIGMA * sigma)
    sign = np.where(is_negative, -1.0, 1.0)
    for part in chunks(n):
        stamps = cut_stamps(masked_image, x=x[part], y=y[part], size=psf.size, bad_planes=bad_planes)
        kernels = draw_psfs(psf, x=stamps.column.astype(float), y=stamps.row.astype(float))
        dx, dy = x[part] - stamps.column, y[part] - stamps.row
        converged = np.empty(len(dx), dtype=np.bool_)
        _loops.fit_centroids(
            stamps.values,
            stamps.variances,
            stamps.usable,
            kernels,
            dx,
            dy,
            sign[part],
            radius,
            _MAX_ITERATIONS,
            _TOLERANCE,
            converged,
        )
        near_x, near_y = stamps.column + dx, stamps.row + dy
        near = np.hypot(near_x - x[part], near_y - y[part]) <= _MAX_SHIFT_SIGMA * sigma + 1.0
        good = converged & near
        near_x, near_y = np.where(good, near_x, x[part]), np.where(good, near_y, y[part])
        # Centred on the pixel of the new position, as the PSF's stellar image is.
        stamps = cut_stamps(masked_image, x=near_x, y=near_y, size=psf.size, bad_planes=bad_planes)
        images = draw_psfs(psf, x=near_x, y=near_y)
        dx, dy = near_x - stamps.column, near_y - stamps.row
        ok = np.empty(len(dx), dtype=np.bool_)
        part_covariance = np.empty((len(dx), 3))
        _loops.polish_centroids(
            stamps.values,
            stamps.variances,
            stamps.usable,
            images,
            dx.copy(),
            dy.copy(),
            dx,
            dy,
            radius,
            sign[part],
            part_covariance,
            ok,
        )
        good &= ok & np.isfinite(part_covariance).all(axis=1)
        out_x[part] = np.where(good, stamps.column + dx, x[part])
        out_y[part] = np.where(good, stamps.row + dy, y[part])
        covariance[part] = np.where(good[:, None], part_covariance, np.nan)
        flag[part] = ~good
    return Centroids(
        x=out_x,
        y=out_y,
        x_err=np.sqrt(covariance[:, 0]),
        y_err=np.sqrt(covariance[:, 1]),
        x_y_cov=covariance[:, 2],
        flag=flag,
    )
