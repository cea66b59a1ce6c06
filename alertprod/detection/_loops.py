"""Compiled loops of detection: the matched filter, growing, labelling, peaks. Plain arrays in and out."""

import numpy as np
from numba import njit

from alertprod._typing import BoolArray, FloatArray, IntArray

POSITIVE, NEGATIVE = 1, 2
"""Bits of the images of detected pixels."""


@njit(cache=True, nogil=True, fastmath={"contract"})
def filter_significance(
    image: FloatArray,
    variance: FloatArray,
    mask: IntArray,
    bad_bits: int,
    kernel_y: FloatArray,
    kernel_x: FloatArray,
    squared_y: FloatArray,
    squared_x: FloatArray,
    out: FloatArray,
) -> None:
    """Correlate with a sum of separable kernels and divide by the noise of the sum.

    `kernel_y`, `kernel_x`: (rank, n_y) and (rank, n_x); `squared_*`: (n_y,), (n_x,), the squared kernel.
    Pixels with a bad bit, a non-finite value or no variance count as absent. `out` is zero where none is left.
    """
    ny, nx = image.shape
    rank, taps_y = kernel_y.shape
    taps_x = kernel_x.shape[1]
    half_y, half_x = taps_y // 2, taps_x // 2
    ring = np.zeros((rank + 1, taps_y, nx), dtype=np.float32)
    values = np.zeros(nx + 2 * half_x, dtype=np.float32)
    variances = np.zeros(nx + 2 * half_x, dtype=np.float32)
    total = np.empty(nx, dtype=np.float32)
    noise = np.empty(nx, dtype=np.float32)
    for y in range(ny + half_y):
        slot = y % taps_y
        if y < ny:
            for x in range(nx):
                v, d = variance[y, x], image[y, x]
                if (mask[y, x] & bad_bits) == 0 and 0.0 < v < np.inf and -np.inf < d < np.inf:
                    values[x + half_x] = d
                    variances[x + half_x] = v
                else:
                    values[x + half_x] = 0.0
                    variances[x + half_x] = 0.0
            for r in range(rank):
                row = ring[r, slot]
                row[:] = 0.0
                for k in range(taps_x):
                    c = kernel_x[r, k]
                    for x in range(nx):
                        row[x] += c * values[x + k]
            row = ring[rank, slot]
            row[:] = 0.0
            for k in range(taps_x):
                c = squared_x[k]
                for x in range(nx):
                    row[x] += c * variances[x + k]
        else:
            ring[:, slot, :] = 0.0
        y_out = y - half_y
        if y_out < 0:
            continue
        total[:] = 0.0
        noise[:] = 0.0
        for k in range(taps_y):
            slot = (y_out - half_y + k) % taps_y
            for r in range(rank):
                c = kernel_y[r, k]
                row = ring[r, slot]
                for x in range(nx):
                    total[x] += c * row[x]
            c = squared_y[k]
            row = ring[rank, slot]
            for x in range(nx):
                noise[x] += c * row[x]
        for x in range(nx):
            out[y_out, x] = total[x] / np.sqrt(noise[x]) if noise[x] > 0.0 else np.float32(0.0)


@njit(cache=True, nogil=True)
def threshold_bits(significance: FloatArray, threshold: float, polarity: int) -> tuple[IntArray, IntArray]:
    """Return the flat indices of pixels at or beyond the threshold, in raster order, and their polarity bits."""
    ny, nx = significance.shape
    count = 0
    for y in range(ny):
        for x in range(nx):
            s = significance[y, x]
            if ((polarity & POSITIVE) != 0 and s >= threshold) or ((polarity & NEGATIVE) != 0 and s <= -threshold):
                count += 1
    pixels = np.empty(count, dtype=np.int64)
    bits = np.empty(count, dtype=np.uint8)
    count = 0
    for y in range(ny):
        for x in range(nx):
            s = significance[y, x]
            if (polarity & POSITIVE) != 0 and s >= threshold:
                pixels[count] = y * nx + x
                bits[count] = POSITIVE
                count += 1
            elif (polarity & NEGATIVE) != 0 and s <= -threshold:
                pixels[count] = y * nx + x
                bits[count] = NEGATIVE
                count += 1
    return pixels, bits


@njit(cache=True, nogil=True)
def paint_shapes(pixels: IntArray, bits: IntArray, half_widths: IntArray, painted: IntArray) -> None:
    """Set in `painted` the bits of each pixel on a disk or diamond about it, of rows as wide as `half_widths` says.

    `half_widths`: (radius + 1,), of the middle row and those above and below it. Pixels whose four neighbours all have
    their bits before painting need no shape: theirs is inside the neighbours'.
    """
    ny, nx = painted.shape
    radius = half_widths.size - 1
    for i in range(pixels.size):
        y, x = pixels[i] // nx, pixels[i] % nx
        painted[y, x] |= bits[i]
    inner = np.zeros(pixels.size, dtype=np.bool_)
    for i in range(pixels.size):
        y, x = pixels[i] // nx, pixels[i] % nx
        b = bits[i]
        inner[i] = (
            0 < y < ny - 1
            and 0 < x < nx - 1
            and (painted[y - 1, x] & painted[y + 1, x] & painted[y, x - 1] & painted[y, x + 1] & b) == b
        )
    for i in range(pixels.size):
        if inner[i]:
            continue
        y, x = pixels[i] // nx, pixels[i] % nx
        b = bits[i]
        for dy in range(-radius, radius + 1):
            row = y + dy
            if row < 0 or row >= ny:
                continue
            w = half_widths[abs(dy)]
            for column in range(max(0, x - w), min(nx, x + w + 1)):
                painted[row, column] |= b


@njit(cache=True, nogil=True)
def find_root(parent: IntArray, i: int) -> int:
    """Return the root of a forest's node, halving its path (Tarjan & van Leeuwen 1984)."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, nogil=True)
def label_pixels(painted: IntArray, bit: int) -> tuple[IntArray, IntArray, int]:
    """Label the eight-connected components of ``painted & bit``.

    Returns the flat indices of the pixels in raster order, the component of each (numbered by first pixel in
    raster order) and the number of components.
    """
    ny, nx = painted.shape
    count = 0
    for y in range(ny):
        for x in range(nx):
            if painted[y, x] & bit:
                count += 1
    pixels = np.empty(count, dtype=np.int64)
    parent = np.arange(count)
    above = np.full(nx + 2, -1, dtype=np.int64)
    current = np.full(nx + 2, -1, dtype=np.int64)
    i = 0
    for y in range(ny):
        current[:] = -1
        for x in range(nx):
            if not painted[y, x] & bit:
                continue
            pixels[i] = y * nx + x
            current[x + 1] = i
            for neighbour in (current[x], above[x], above[x + 1], above[x + 2]):
                if neighbour >= 0:
                    a, b = find_root(parent, neighbour), find_root(parent, i)
                    if a < b:
                        parent[b] = a
                    elif b < a:
                        parent[a] = b
            i += 1
        above, current = current, above
    component = np.empty(count, dtype=np.int64)
    n_components = 0
    for i in range(count):
        root = find_root(parent, i)
        if root == i:
            component[i] = n_components
            n_components += 1
        else:
            component[i] = component[root]
    return pixels, component, n_components


@njit(cache=True, nogil=True)
def label_islands(pixels: IntArray, bits: IntArray, nx: int) -> tuple[IntArray, int]:
    """Return the eight-connected island of equal bits that each of a list of pixels is in, and how many there are.

    `pixels`: flat indices, rising. Islands are numbered by their first pixel.
    """
    parent = np.arange(pixels.size)
    above = 0
    for i in range(pixels.size):
        p = pixels[i]
        x = p % nx
        if i > 0 and x > 0 and pixels[i - 1] == p - 1 and bits[i - 1] == bits[i]:
            parent[i] = find_root(parent, i - 1)
        while pixels[above] < p - nx - 1:
            above += 1
        j = above
        while pixels[j] <= p - nx + 1:
            if abs(pixels[j] % nx - x) <= 1 and bits[j] == bits[i]:
                a, b = find_root(parent, j), find_root(parent, i)
                if a < b:
                    parent[b] = a
                elif b < a:
                    parent[a] = b
            j += 1
    island = np.empty(pixels.size, dtype=np.int64)
    count = 0
    for i in range(pixels.size):
        root = find_root(parent, i)
        if root == i:
            island[i] = count
            count += 1
        else:
            island[i] = island[root]
    return island, count


@njit(cache=True, nogil=True)
def find_peaks(significance: FloatArray, pixels: IntArray, bits: IntArray) -> BoolArray:
    """Return which of the detected pixels are extrema of their sign among their eight neighbours.

    Of equal neighbours the first in raster order is the peak.
    """
    ny, nx = significance.shape
    is_peak = np.ones(pixels.size, dtype=np.bool_)
    for i in range(pixels.size):
        y, x = pixels[i] // nx, pixels[i] % nx
        sign = 1.0 if bits[i] == POSITIVE else -1.0
        s = sign * significance[y, x]
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                row, column = y + dy, x + dx
                if (dy == 0 and dx == 0) or row < 0 or row >= ny or column < 0 or column >= nx:
                    continue
                other = sign * significance[row, column]
                if other > s or (other == s and (dy < 0 or (dy == 0 and dx < 0))):
                    is_peak[i] = False
    return is_peak


@njit(cache=True, nogil=True)
def compute_coverage(
    image: FloatArray, variance: FloatArray, mask: IntArray, bad_bits: int, weight: FloatArray, x: IntArray, y: IntArray
) -> FloatArray:
    """Return the share of `weight` (n, n), centred on each (x, y), that falls on usable pixels."""
    ny, nx = image.shape
    half_y, half_x = weight.shape[0] // 2, weight.shape[1] // 2
    total = weight.sum()
    coverage = np.zeros(x.size)
    for i in range(x.size):
        covered = 0.0
        for j in range(weight.shape[0]):
            row = y[i] + j - half_y
            if row < 0 or row >= ny:
                continue
            for k in range(weight.shape[1]):
                column = x[i] + k - half_x
                if column < 0 or column >= nx:
                    continue
                v, d = variance[row, column], image[row, column]
                if (mask[row, column] & bad_bits) == 0 and 0.0 < v < np.inf and -np.inf < d < np.inf:
                    covered += weight[j, k]
        coverage[i] = covered / total
    return coverage


@njit(cache=True, nogil=True)
def _nearest_width(values: FloatArray, first: int, last: int, middle: float, k: int) -> float:
    """Return the distance from `middle` to the k-th nearest of the sorted ``values[first:last]``."""
    low, high = first, last - k
    while low < high:
        i = (low + high) // 2
        if middle - values[i] > values[i + k] - middle:
            low = i + 1
        else:
            high = i
    return max(middle - values[low], values[low + k - 1] - middle)


@njit(cache=True, nogil=True)
def sample_bins(
    image: FloatArray,
    usable: BoolArray,
    row_start: int,
    row_stop: int,
    column_edges: IntArray,
    max_pixels: int,
) -> tuple[FloatArray, IntArray]:
    """Return the usable pixels of each bin of a row of bins, ``(n_bins, n)``, infinite after the last; and their numbers.

    At most about `max_pixels` pixels of a bin are looked at, on a regular sub-grid.
    """
    n_bins = column_edges.size - 1
    height = row_stop - row_start
    steps = np.empty(n_bins, dtype=np.int64)
    most = 0
    for j in range(n_bins):
        width = column_edges[j + 1] - column_edges[j]
        steps[j] = max(1, int(np.floor(np.sqrt(height * width / max_pixels))))
        most = max(most, -(-height // steps[j]) * -(-width // steps[j]))
    samples = np.full((n_bins, most), np.inf, dtype=image.dtype)
    numbers = np.zeros(n_bins, dtype=np.int64)
    for j in range(n_bins):
        n = 0
        for y in range(row_start, row_stop, steps[j]):
            for x in range(column_edges[j], column_edges[j + 1], steps[j]):
                if usable[y, x]:
                    samples[j, n] = image[y, x]
                    n += 1
        numbers[j] = n
    return samples, numbers


@njit(cache=True, nogil=True)
def clip_sorted(
    samples: FloatArray, numbers: IntArray, n_sigma: float, n_iterations: int, level: FloatArray, sigma: FloatArray
) -> None:
    """Write clipped median and robust sigma of the first `numbers` of each sorted row of samples.

    The clip uses the median and 1.4826 times the median absolute deviation; of sorted samples each turn of it costs
    next to nothing.
    """
    for j in range(numbers.size):
        values = samples[j]
        first, last = 0, numbers[j]
        if last == 0:
            continue
        for _ in range(n_iterations + 1):
            size = last - first
            upper = first + size // 2
            middle = float(values[upper]) if size % 2 else 0.5 * (float(values[upper - 1]) + float(values[upper]))
            spread = _nearest_width(values, first, last, middle, (size + 1) // 2)
            if size % 2 == 0:
                spread = 0.5 * (spread + _nearest_width(values, first, last, middle, size // 2 + 1))
            spread *= 1.4826
            level[j] = middle
            sigma[j] = spread
            if not spread > 0.0:
                break
            new_first, new_last = first, last
            while new_first < new_last and values[new_first] < middle - n_sigma * spread:
                new_first += 1
            while new_last > new_first and values[new_last - 1] > middle + n_sigma * spread:
                new_last -= 1
            if new_first == first and new_last == last:
                break
            first, last = new_first, new_last


def clipped_medians(
    image: FloatArray,
    usable: BoolArray,
    row_edges: IntArray,
    column_edges: IntArray,
    n_sigma: float,
    n_iterations: int,
    max_pixels: int,
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Return clipped median, robust sigma and number of usable pixels of each bin; NaN and 0 where there is none.

    At most about `max_pixels` pixels of a bin are looked at. Sorted by NumPy, whose sort of short rows uses the
    processor's vectors and is an order of magnitude quicker than a compiled loop's.
    """
    n_rows, n_columns = row_edges.size - 1, column_edges.size - 1
    level = np.full((n_rows, n_columns), np.nan)
    sigma = np.full((n_rows, n_columns), np.nan)
    number = np.zeros((n_rows, n_columns), dtype=np.int64)
    for i in range(n_rows):
        samples, number[i] = sample_bins(image, usable, row_edges[i], row_edges[i + 1], column_edges, max_pixels)
        samples.sort(axis=1)
        clip_sorted(samples, number[i], n_sigma, n_iterations, level[i], sigma[i])
    return level, sigma, number


@njit(cache=True, nogil=True)
def grow_cosmic_rays(
    image: FloatArray,
    variance: FloatArray,
    usable: BoolArray,
    ratios: FloatArray,
    min_sigma: float,
    psf_factor: float,
    noise_factor: float,
    hits: BoolArray,
    neighbours_only: bool,  # noqa: FBT001 -- compiled functions know no keywords
) -> int:
    """Mark in `hits` pixels too sharp for a star; return how many were added.

    A pixel is compared with the means of its four pairs of opposite neighbours (columns, rows, diagonals), of which a
    star gives at least `ratios` times the pixel. With `neighbours_only` just pixels touching a hit are looked at, and
    hits count as sky.
    """
    ny, nx = image.shape
    steps = ((0, 1), (1, 0), (1, 1), (1, -1))
    added = np.zeros(hits.shape, dtype=np.bool_) if neighbours_only else hits
    count = 0
    for y in range(1, ny - 1):
        for x in range(1, nx - 1):
            if not usable[y, x] or hits[y, x]:
                continue
            p, v = image[y, x], variance[y, x]
            if not p > min_sigma * np.sqrt(v):
                continue
            if neighbours_only:
                touching = False
                for dy in range(-1, 2):
                    for dx in range(-1, 2):
                        touching |= hits[y + dy, x + dx]
                if not touching:
                    continue
            for k in range(4):
                dy, dx = steps[k]
                mean, noise = 0.0, 0.0
                known = True
                for s in (-1, 1):
                    row, column = y + s * dy, x + s * dx
                    if neighbours_only and hits[row, column]:
                        continue
                    known &= usable[row, column]
                    mean += 0.5 * image[row, column]
                    noise += 0.25 * variance[row, column]
                limit = psf_factor * ratios[k]
                if known and limit * p > mean + noise_factor * np.sqrt(noise + limit * limit * v):
                    added[y, x] = True
                    count += 1
                    break
    if neighbours_only and count:
        for y in range(ny):
            for x in range(nx):
                hits[y, x] |= added[y, x]
    return count
