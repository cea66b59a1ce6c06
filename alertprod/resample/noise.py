"""The noise of warped images: what correlation the interpolation gives to noise that had none.

A variance plane cannot say it, and what is filtered afterwards needs it: of a point source at 4 pixels FWHM the noise of a
Lanczos-3 warp is 12 % above what its variance plane says.
"""

import numpy as np
import scipy.fft

from alertprod._typing import FloatArray
from alertprod.psf._lanczos import KERNEL_RADII, kernel_table
from alertprod.resample._loops import mean_overlaps
from alertprod.resample.mapping import PixelMapping

_PLACES = 400
"""Pixels that the covariance is the mean of: where source and target pixels are turned or scaled against one another they
meet in all ways, and the mean is then good to half a percent."""

_MAX_REACH = 16
"""Pixels beyond which no covariance is looked for: a target so much finer than the source is blank between its samples."""

_SMALLEST_POWER = 1e-4
"""Of the noise at a frequency, relative to that at none: rounding makes it negative where an interpolation leaves nothing."""


def compute_noise_kernel(mapping: PixelMapping, kernel: str) -> FloatArray | None:
    """Return the kernel through which white noise has the noise of a warped image, on the average over its pixels.

    Parameters
    ----------
    mapping
        From target to source pixels.
    kernel
        What it is interpolated with, see `warp_masked_image`.

    Returns
    -------
    FloatArray or None
        Shape ``(size, size)``, size odd, symmetric, unit sum. The white noise has the variance of the warped image over
        the kernel's squared sum. None where the mapping leads nowhere.

    Notes
    -----
    The covariance of two target pixels is the sum of the products of their weights (`warp_masked_image`); its mean over
    pixels depends on the lag alone, and the kernel's spectrum is the root of that mean's. Where the grids are only
    shifted all pixels have the same covariance, and the mean is exact.
    """
    ny, nx = mapping.shape
    # A sequence that fills the plane evenly and meets no lattice (R. D. Martin's, of the plastic number).
    steps = np.arange(1, _PLACES + 1)
    x, y = np.floor(steps * 0.7548776662466927 % 1.0 * nx), np.floor(steps * 0.5698402909980532 % 1.0 * ny)
    u, v = mapping.evaluate(x=x, y=y)
    known = np.isfinite(u) & np.isfinite(v)
    jacobian = mapping.compute_jacobian(x=(nx - 1) / 2, y=(ny - 1) / 2)
    if not known.any():
        return None
    if not np.isfinite(jacobian).all():
        jacobian = mapping.compute_jacobian(x=float(x[known][0]), y=float(y[known][0]))
        if not np.isfinite(jacobian).all():
            return None
    u, v = u[known], v[known]
    # Where even the source's longest step between target pixels takes the kernels apart.
    smallest = float(np.linalg.svd(jacobian, compute_uv=False)[-1])
    reach = _MAX_REACH
    if smallest * _MAX_REACH > 2.0 * KERNEL_RADII[kernel]:
        reach = int(np.ceil(2.0 * KERNEL_RADII[kernel] / smallest))
    covariance = np.zeros((2 * reach + 1, 2 * reach + 1))
    dy, dx = (axis.ravel() for axis in np.mgrid[: reach + 1, -reach : reach + 1])
    du, dv = jacobian @ np.stack([dx, dy]).astype(float)
    # One of each pair of opposite lags, and none at which the kernels are apart.
    near = (np.maximum(np.abs(du), np.abs(dv)) < 2 * KERNEL_RADII[kernel]) & ((dy > 0) | (dx >= 0))
    dy, dx = dy[near], dx[near]
    values = mean_overlaps(u, v, du[near], dv[near], kernel_table(kernel))
    covariance[reach + dy, reach + dx] = covariance[reach - dy, reach - dx] = values
    side = int(scipy.fft.next_fast_len(8 * reach + 1))
    padded = np.zeros((side, side))
    padded[: 2 * reach + 1, : 2 * reach + 1] = covariance
    power = scipy.fft.fft2(np.roll(padded, (-reach, -reach), axis=(0, 1))).real
    image = scipy.fft.ifft2(np.sqrt(np.maximum(power, _SMALLEST_POWER * power[0, 0]))).real
    noise = np.roll(image, (reach, reach), axis=(0, 1))[: 2 * reach + 1, : 2 * reach + 1]
    result: FloatArray = noise / noise.sum()
    return result
