"""Compiled loops that look at stars one by one on the image itself, no PSF known."""

import numpy as np
from numba import njit

from alertprod._typing import BoolArray, FloatArray, IntArray


@njit(cache=True, nogil=True)
def find_maxima(
    significance: FloatArray, threshold: float, radius: int, row_start: int, row_stop: int
) -> tuple[IntArray, IntArray]:
    """Return (x, y) of pixels of some rows above the threshold that are the largest within `radius`, in raster order.

    Of equal ones the first in raster order counts.
    """
    ny, nx = significance.shape
    count = 0
    xs = np.empty(1024, dtype=np.int64)
    ys = np.empty(1024, dtype=np.int64)
    strong = np.empty(nx, dtype=np.int64)
    for y in range(row_start, row_stop):
        line = significance[y]
        # Listed without branches: few are, nobody knows which.
        n = np.uint64(0)
        for x in range(nx):
            strong[n] = x
            n += np.uint64(line[x] >= threshold)
        for x in strong[:n]:
            s = line[x]
            largest = True
            for row in range(max(0, y - radius), min(ny, y + radius + 1)):
                for column in range(max(0, x - radius), min(nx, x + radius + 1)):
                    if (row - y) ** 2 + (column - x) ** 2 > radius * radius:
                        continue
                    other = significance[row, column]
                    if other > s or (other == s and (row < y or (row == y and column < x))):
                        largest = False
                        break
                if not largest:
                    break
            if largest:
                if count == xs.size:
                    xs = np.concatenate((xs, np.empty(count, dtype=np.int64)))
                    ys = np.concatenate((ys, np.empty(count, dtype=np.int64)))
                xs[count], ys[count] = x, y
                count += 1
    return xs[:count].copy(), ys[:count].copy()


@njit(cache=True, nogil=True)
def measure_stars(
    image: FloatArray,
    variance: FloatArray,
    bad: BoolArray,
    x: FloatArray,
    y: FloatArray,
    sigma: FloatArray,
    max_iterations: int,
    out: FloatArray,
) -> None:
    """Fit a circular Gaussian to each star, position and width free, by adaptive moments.

    `x`, `y`, `sigma` are starts and results, in place. `out`, shape (n, 5): amplitude, its variance, the two
    ellipticity components of the weighted moments, and whether it converged. With `max_iterations` 0 only the
    amplitude at the given position and width is measured.
    """
    ny, nx = image.shape
    for i in range(x.size):
        x0, y0 = x[i], y[i]
        start_sigma = sigma[i]
        out[i, 4] = 0.0
        amplitude = 0.0
        for _ in range(max_iterations + 1):
            s2 = sigma[i] * sigma[i]
            reach = 3.5 * sigma[i] + 1.0
            gg = ggv = s0 = sx = sy = sxx = syy = sxy = 0.0
            first, last = max(0, int(x[i] - reach)), min(nx, int(x[i] + reach) + 2)
            profile = np.exp(-0.5 / s2 * (np.arange(first, last) - x[i]) ** 2)
            for row in range(max(0, int(y[i] - reach)), min(ny, int(y[i] + reach) + 2)):
                v = row - y[i]
                height = np.exp(-0.5 * v * v / s2)
                for column in range(first, last):
                    u = column - x[i]
                    r2 = u * u + v * v
                    if r2 > reach * reach:
                        continue
                    g = height * profile[column - first]
                    if bad[row, column]:
                        # Counts as the current Gaussian: absent pixels then pull neither centre nor width.
                        d = amplitude * g
                    else:
                        d = image[row, column]
                        ggv += g * g * variance[row, column]
                    gd = g * d
                    gg += g * g
                    s0 += gd
                    sx += gd * u
                    sy += gd * v
                    sxx += gd * u * u
                    syy += gd * v * v
                    sxy += gd * u * v
            if not s0 > 0.0:
                break
            amplitude = s0 / gg
            mx, my = sx / s0, sy / s0
            xx, yy, xy = sxx / s0 - mx * mx, syy / s0 - my * my, sxy / s0 - mx * my
            trace = xx + yy
            out[i, 0] = amplitude
            out[i, 1] = ggv / (gg * gg)
            if not trace > 0.02:
                break
            out[i, 2] = (xx - yy) / trace
            out[i, 3] = 2.0 * xy / trace
            if max_iterations == 0:
                break
            new_sigma = np.sqrt(trace)
            x[i] += 2.0 * mx
            y[i] += 2.0 * my
            change = abs(new_sigma - sigma[i]) + abs(mx) + abs(my)
            sigma[i] = new_sigma
            if (x[i] - x0) ** 2 + (y[i] - y0) ** 2 > 4.0 * start_sigma**2 + 1.0 or new_sigma > 20.0:
                break
            if change < 1e-3 * new_sigma:
                out[i, 4] = 1.0
                break
