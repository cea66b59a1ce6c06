"""Compiled loop of the matched filter, by rows. Plain arrays in and out."""

import numpy as np
from numba import njit

from alertprod._typing import FloatArray, IntArray

_AT_ONCE = 5
"""Taps added in one pass over a row: their sum stays in a register meanwhile."""


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def _add_five(
    first: FloatArray,
    second: FloatArray,
    third: FloatArray,
    fourth: FloatArray,
    fifth: FloatArray,
    taps: FloatArray,
    out: FloatArray,
) -> None:
    """Add five rows times five taps to a row."""
    a, b, c, d, e = taps[0], taps[1], taps[2], taps[3], taps[4]
    for x in range(out.size):
        out[x] += a * first[x] + b * second[x] + c * third[x] + d * fourth[x] + e * fifth[x]


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def filter_significance(
    image: FloatArray,
    variance: FloatArray,
    mask: IntArray,
    bad_bits: int,
    kernel_y: FloatArray,
    kernel_x: FloatArray,
    squared_y: FloatArray,
    squared_x: FloatArray,
    first: int,
    last: int,
    out: FloatArray,
) -> None:
    """Correlate with a sum of separable kernels and divide by the noise of the sum: rows from `first` to before `last`.

    `kernel_y`, `kernel_x`: (rank, n_y) and (rank, n_x); `squared_*`: (n_y,), (n_x,), the squared kernel.
    Pixels with a bad bit, a non-finite value or no variance count as absent. `out` is zero where none is left.
    """
    ny, nx = image.shape
    rank, taps_y = kernel_y.shape
    taps_x = kernel_x.shape[1]
    half_y, half_x = taps_y // 2, taps_x // 2
    # The squared kernel is one term more, of the variance; all are filled up with zeros to whole passes.
    n_y, n_x = -(-taps_y // _AT_ONCE) * _AT_ONCE, -(-taps_x // _AT_ONCE) * _AT_ONCE
    weights_y = np.zeros((rank + 1, n_y), dtype=np.float32)
    weights_x = np.zeros((rank + 1, n_x), dtype=np.float32)
    weights_y[:rank, :taps_y] = kernel_y
    weights_x[:rank, :taps_x] = kernel_x
    weights_y[rank, :taps_y] = squared_y
    weights_x[rank, :taps_x] = squared_x
    bits, zero, infinity = np.int32(bad_bits), np.float32(0.0), np.float32(np.inf)
    ring = np.zeros((taps_y, rank + 1, nx), dtype=np.float32)
    padded = np.zeros((2, nx + n_x), dtype=np.float32)
    values, variances = padded[0, half_x : half_x + nx], padded[1, half_x : half_x + nx]
    sums = np.empty((2, nx), dtype=np.float32)
    total, noise = sums[0], sums[1]
    end = taps_y - 1
    for y in range(max(0, first - half_y), last + half_y):
        lines = ring[y % taps_y]
        lines[:] = zero
        if y < ny:
            image_row, variance_row, mask_row = image[y], variance[y], mask[y]
            for x in range(nx):
                d, v = image_row[x], variance_row[x]
                # A finite number less itself is zero; nothing else is.
                usable = ((mask_row[x] & bits) == 0) & (v > zero) & (v < infinity) & (d - d == zero)
                values[x] = d if usable else zero
                variances[x] = v if usable else zero
            for r in range(rank + 1):
                row = padded[1 if r == rank else 0]
                for k in range(0, n_x, _AT_ONCE):
                    _add_five(
                        row[k : k + nx],
                        row[k + 1 : k + 1 + nx],
                        row[k + 2 : k + 2 + nx],
                        row[k + 3 : k + 3 + nx],
                        row[k + 4 : k + 4 + nx],
                        weights_x[r, k : k + _AT_ONCE],
                        lines[r],
                    )
        y_out = y - half_y
        if y_out < first:
            continue
        sums[:] = zero
        top = y_out - half_y
        for r in range(rank + 1):
            for k in range(0, n_y, _AT_ONCE):
                # Beyond the last tap the weights are zero, whatever the row.
                _add_five(
                    ring[(top + k) % taps_y, r],
                    ring[(top + min(k + 1, end)) % taps_y, r],
                    ring[(top + min(k + 2, end)) % taps_y, r],
                    ring[(top + min(k + 3, end)) % taps_y, r],
                    ring[(top + min(k + 4, end)) % taps_y, r],
                    weights_y[r, k : k + _AT_ONCE],
                    sums[1 if r == rank else 0],
                )
        out_row = out[y_out]
        for x in range(nx):
            n = noise[x]
            out_row[x] = total[x] / np.sqrt(n) if n > zero else zero
