"""Compiled loops over the pixels of a stamp."""

import numba
import numpy as np

from alertprod._typing import FloatArray


@numba.njit(cache=True, nogil=True)
def resample_stamp(
    stamp: FloatArray,
    column_weights: FloatArray,
    row_weights: FloatArray,
    columns: FloatArray,
    rows: FloatArray,
) -> FloatArray:
    """Interpolate a stamp at a list of points; pixels off the stamp count as 0.

    Parameters
    ----------
    stamp
        float64, shape ``(ny, nx)``.
    column_weights, row_weights
        float64, shape ``(n, taps)``: kernel weights of each point along x and y.
    columns, rows
        int64, shape ``(n,)``: first pixel of each point's kernel.
    """
    ny, nx = stamp.shape
    n, taps = column_weights.shape
    values = np.zeros(n)
    for k in range(n):
        total = 0.0
        for j in range(max(0, -rows[k]), min(taps, ny - rows[k])):
            row = 0.0
            for i in range(max(0, -columns[k]), min(taps, nx - columns[k])):
                row += column_weights[k, i] * stamp[rows[k] + j, columns[k] + i]
            total += row_weights[k, j] * row
        values[k] = total
    return values
