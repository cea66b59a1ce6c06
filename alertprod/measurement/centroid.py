"""Centroids by fitting the PSF: maximum likelihood, so their errors reach the Cramér-Rao bound."""

from dataclasses import dataclass

import numpy as np

from alertprod._bands import map_threads
from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement import _centroid_loops
from alertprod.measurement.flux import BAD_PLANES
from alertprod.measurement.stamps import chunks, cut_stamps, draw_psfs
from alertprod.psf.model import PointSpreadFunction

_RADIUS_SIGMA = 4.0
"""Pixels within this many PSF sigmas are fitted: beyond, a Gaussian has no slope left and neighbours begin."""

_MAX_ITERATIONS = 20
_TOLERANCE = 1e-3
"""Pixels; steps with the exact PSF follow."""

_MAX_POLISH = 4
_POLISHED = 2e-3
"""Pixels; after a step with the exact PSF as short as this the next would be a hundred times shorter."""

_MAX_SHIFT_SIGMA = 2.0
"""A centroid further from its peak than this many sigmas, and a pixel, has walked to something else."""

CENTROID_FAILURES = (
    "flag",
    "flag_edge",
    "flag_no_second_derivative",
    "flag_not_at_maximum",
    "flag_not_converged",
    "flag_reset_to_peak",
)
"""The flags of `Centroids` that tell of a failed fit, and fall with it where another centroid takes its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Centroids:
    """Positions, each of shape ``(n,)``, pixels; where `flag` is set they are the starting points, errors NaN.

    Of the other flags exactly one of `flag_no_second_derivative` (the pixels determine no position),
    `flag_not_at_maximum` (the flux has the wrong sign), `flag_not_converged` and `flag_reset_to_peak` (the fit left the
    starting point behind) is set with `flag`, and `flag_edge` too where the fitted disk reaches off the image.
    `flag_near_edge` tells of such a disk, `flag_almost_no_second_derivative` of an error above a PSF sigma, whether or
    not the fit succeeded.
    """

    x: FloatArray
    y: FloatArray
    x_err: FloatArray
    y_err: FloatArray
    x_y_cov: FloatArray
    flag: BoolArray
    flag_edge: BoolArray
    flag_near_edge: BoolArray
    flag_no_second_derivative: BoolArray
    flag_almost_no_second_derivative: BoolArray
    flag_not_at_maximum: BoolArray
    flag_not_converged: BoolArray
    flag_reset_to_peak: BoolArray


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
    Gauss-Newton in (flux, x, y). The first steps move one PSF image per source by interpolation; the last (more than
    one only where the PSF is too sharp to be interpolated) with the PSF drawn at the position itself. Weights affect the precision only: the profile is symmetric
    in its residuals, so unlike a flux a position has no bias from photon noise in the variance plane.
    """
    x, y = np.array(x, dtype=float), np.array(y, dtype=float)
    n = len(x)
    out_x, out_y, status = x.copy(), y.copy(), np.empty(n, dtype=np.int64)
    covariance = np.full((n, 3), np.nan)
    radius = max(2.0, _RADIUS_SIGMA * sigma)
    sign = np.where(is_negative, -1.0, 1.0)

    def measure(part: slice) -> None:
        stamps = cut_stamps(masked_image, x=x[part], y=y[part], size=psf.size, bad_planes=bad_planes)
        kernels = draw_psfs(psf, x=stamps.column.astype(float), y=stamps.row.astype(float))
        dx, dy = x[part] - stamps.column, y[part] - stamps.row
        part_status = np.empty(len(dx), dtype=np.int64)
        _centroid_loops.fit_centroids(
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
            part_status,
        )
        near_x, near_y = stamps.column + dx, stamps.row + dy
        away = np.hypot(near_x - x[part], near_y - y[part]) > _MAX_SHIFT_SIGMA * sigma + 1.0
        part_status[away & (part_status == _centroid_loops.CONVERGED)] = _centroid_loops.RAN_AWAY
        part_covariance = np.full((len(dx), 3), np.nan)
        active = np.flatnonzero(part_status == _centroid_loops.CONVERGED)
        for _ in range(_MAX_POLISH):
            if len(active) == 0:
                break
            step, active_covariance, active_status = _polish(
                masked_image, psf, near_x[active], near_y[active], sign[part][active], radius, bad_planes
            )
            ok = active_status == _centroid_loops.CONVERGED
            near_x[active] += np.where(ok, step[:, 0], 0.0)
            near_y[active] += np.where(ok, step[:, 1], 0.0)
            part_covariance[active] = active_covariance
            part_status[active] = active_status
            active = active[ok & (np.hypot(step[:, 0], step[:, 1]) > _POLISHED)]
        singular = (part_status == _centroid_loops.CONVERGED) & ~np.isfinite(part_covariance).all(axis=1)
        part_status[singular] = _centroid_loops.NO_CURVATURE
        good = part_status == _centroid_loops.CONVERGED
        out_x[part] = np.where(good, near_x, x[part])
        out_y[part] = np.where(good, near_y, y[part])
        covariance[part] = np.where(good[:, None], part_covariance, np.nan)
        status[part] = part_status

    map_threads(measure, chunks(n))
    flag = status != _centroid_loops.CONVERGED
    ny, nx = masked_image.shape
    near_edge = ~(
        (out_x - radius >= 0.0) & (out_y - radius >= 0.0) & (out_x + radius <= nx - 1) & (out_y + radius <= ny - 1)
    )
    return Centroids(
        x=out_x,
        y=out_y,
        x_err=np.sqrt(covariance[:, 0]),
        y_err=np.sqrt(covariance[:, 1]),
        x_y_cov=covariance[:, 2],
        flag=flag,
        flag_edge=flag & near_edge,
        flag_near_edge=near_edge,
        flag_no_second_derivative=status == _centroid_loops.NO_CURVATURE,
        flag_almost_no_second_derivative=covariance[:, 0] + covariance[:, 1] > sigma * sigma,
        flag_not_at_maximum=status == _centroid_loops.WRONG_SIGN,
        flag_not_converged=status == _centroid_loops.OUT_OF_ITERATIONS,
        flag_reset_to_peak=status == _centroid_loops.RAN_AWAY,
    )


def _polish(
    masked_image: MaskedImage,
    psf: PointSpreadFunction,
    x: FloatArray,
    y: FloatArray,
    sign: FloatArray,
    radius: float,
    bad_planes: int,
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Make one step with the PSF drawn at each point: steps ``(n, 2)``, covariances ``(n, 3)``, and how it ended."""
    # The stamp is centred on the pixel of the point, as the PSF's stellar image is.
    stamps = cut_stamps(masked_image, x=x, y=y, size=psf.size, bad_planes=bad_planes)
    step, covariance, status = np.zeros((len(x), 2)), np.empty((len(x), 3)), np.empty(len(x), dtype=np.int64)
    _centroid_loops.polish_centroids(
        stamps.values,
        stamps.variances,
        stamps.usable,
        draw_psfs(psf, x=x, y=y),
        x - stamps.column,
        y - stamps.row,
        radius,
        sign,
        step,
        covariance,
        status,
    )
    return step, covariance, status
