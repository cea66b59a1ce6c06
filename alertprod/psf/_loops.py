"""Compiled loops over the pixels of a stamp."""

import numba
import numpy as np

from alertprod._typing import FloatArray


@numba.njit(cache=True, nogil=True)
def resample_stamp(
    stamp: FloatArray, jacobian: FloatArray, x: float, y: float, dx: float, dy: float, size: int, table: FloatArray
) -> FloatArray:
    """Interpolate a stamp on a grid of pixels; what lies off the stamp counts as 0.

    Parameters
    ----------
    stamp
        float64, shape ``(ny, nx)``.
    jacobian
        d(stamp x, y)/d(pixel x, y), shape ``(2, 2)``.
    x, y
        Position on the stamp of the point that lies `dx`, `dy` pixels off the middle pixel.
    table
        Kernel weights by fraction of a pixel, shape ``(n_entries, taps)``.
    """
    ny, nx = stamp.shape
    n_entries, taps = table.shape
    half = size // 2
    image = np.zeros((size, size))
    for row in range(size):
        v = row - half - dy
        for column in range(size):
            u = column - half - dx
            x_here = x + jacobian[0, 0] * u + jacobian[0, 1] * v
            y_here = y + jacobian[1, 0] * u + jacobian[1, 1] * v
            # The table rounds as that of a warp does: within half an entry of a pixel's centre is on it.
            steps_x = int(np.floor(x_here * n_entries + 0.5))
            steps_y = int(np.floor(y_here * n_entries + 0.5))
            first_column = steps_x // n_entries - taps // 2 + 1
            first_row = steps_y // n_entries - taps // 2 + 1
            weights_x, weights_y = table[steps_x % n_entries], table[steps_y % n_entries]
            total = 0.0
            for j in range(max(0, -first_row), min(taps, ny - first_row)):
                line = 0.0
                for i in range(max(0, -first_column), min(taps, nx - first_column)):
                    line += weights_x[i] * stamp[first_row + j, first_column + i]
                total += weights_y[j] * line
            image[row, column] = total
    return image


@numba.njit(cache=True, nogil=True)
def resample_stamps(
    stamps: FloatArray,
    jacobians: FloatArray,
    x: FloatArray,
    y: FloatArray,
    dx: FloatArray,
    dy: FloatArray,
    size: int,
    table: FloatArray,
) -> FloatArray:
    """Interpolate stamps, each with its own place and derivatives: `resample_stamp` along the first axes."""
    images = np.empty((len(stamps), size, size))
    for n in range(len(stamps)):
        images[n] = resample_stamp(stamps[n], jacobians[n], x[n], y[n], dx[n], dy[n], size, table)
    return images
