"""Compiled loops of detection: thresholds, growing, labelling, peaks, bins. Plain arrays in and out."""

import numpy as np
from numba import njit

from alertprod._bands import map_bands
from alertprod._typing import BoolArray, FloatArray, IntArray

POSITIVE, NEGATIVE = 1, 2
"""Bits of the images of detected pixels."""

_ROWS_OF_BINS = 8
"""Rows of bins that a thread takes at once."""

_BLOCK = 64
"""Pixels of a row that are passed over together where nothing is detected."""


@njit(cache=True, nogil=True)
def threshold_bits(significance: FloatArray, threshold: float, polarity: int) -> tuple[IntArray, IntArray]:
    """Return the flat indices of pixels at or beyond the threshold, in raster order, and their polarity bits."""
    ny, nx = significance.shape
    pixels = np.empty(_BLOCK, dtype=np.int64)
    bits = np.empty(_BLOCK, dtype=np.uint8)
    count = 0
    for y in range(ny):
        for start in range(0, nx, _BLOCK):
            # Nearly everywhere there is nothing: seen by the processor's vectors, in numbers as short as theirs.
            block = significance[y, start : start + _BLOCK]
            n = np.int32(0)
            for k in range(block.size):
                n += np.int32(1) if abs(block[k]) >= threshold else np.int32(0)
            if n == 0:
                continue
            if count + _BLOCK > pixels.size:
                pixels = np.concatenate((pixels, np.empty_like(pixels)))
                bits = np.concatenate((bits, np.empty_like(bits)))
            for x in range(start, start + block.size):
                s = significance[y, x]
                if (polarity & POSITIVE) != 0 and s >= threshold:
                    pixels[count] = y * nx + x
                    bits[count] = POSITIVE
                    count += 1
                elif (polarity & NEGATIVE) != 0 and s <= -threshold:
                    pixels[count] = y * nx + x
                    bits[count] = NEGATIVE
                    count += 1
    return pixels[:count].copy(), bits[:count].copy()


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
def label_pixels(painted: IntArray, bit: int) -> tuple[IntArray, IntArray, int]:
    """Label the eight-connected components of ``painted & bit``.

    Returns the flat indices of the pixels in raster order, the component of each (numbered by first pixel in
    raster order) and the number of components.
    """
    ny, nx = painted.shape
    pixels = np.empty(_BLOCK, dtype=np.int64)
    count = 0
    for y in range(ny):
        for start in range(0, nx, _BLOCK):
            block = painted[y, start : start + _BLOCK]
            any_bits = np.int32(0)
            for k in range(block.size):
                any_bits |= np.int32(block[k])
            if any_bits & bit == 0:
                continue
            if count + _BLOCK > pixels.size:
                pixels = np.concatenate((pixels, np.empty_like(pixels)))
            for x in range(start, start + block.size):
                if painted[y, x] & bit:
                    pixels[count] = y * nx + x
                    count += 1
    pixels = pixels[:count].copy()
    component, n_components = label_islands(pixels, np.zeros(pixels.size, dtype=np.uint8), nx)
    return pixels, component, n_components


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
    samples: FloatArray,
) -> IntArray:
    """Copy the pixels of each bin of a row of bins to a row of `samples`, infinite where not usable; return how many are.

    At most about `max_pixels` pixels of a bin are looked at, on a regular sub-grid. What is left of a row is infinite.
    """
    n_bins = column_edges.size - 1
    height = row_stop - row_start
    steps = np.empty(n_bins, dtype=np.int64)
    for j in range(n_bins):
        width = column_edges[j + 1] - column_edges[j]
        steps[j] = max(1, int(np.floor(np.sqrt(height * width / max_pixels))))
    samples[:] = np.inf
    flat = samples.reshape(-1)
    place = np.arange(n_bins) * samples.shape[1]
    row = np.empty(image.shape[1], dtype=image.dtype)
    infinity = samples.dtype.type(np.inf)
    for y in range(row_start, row_stop):
        values, good = image[y], usable[y]
        for x in range(row.size):
            # A finite number less itself is zero; nothing else is.
            row[x] = values[x] if good[x] & (values[x] - values[x] == 0) else infinity
        for j in range(n_bins):
            if (y - row_start) % steps[j]:
                continue
            # Unsigned, or each index is looked at for counting from the end.
            to, start, step = np.uint64(place[j]), np.uint64(column_edges[j]), np.uint64(steps[j])
            width = -(-(column_edges[j + 1] - column_edges[j]) // steps[j])
            for k in range(np.uint64(width)):
                flat[to + k] = row[start + k * step]
            place[j] += width
    numbers = np.zeros(n_bins, dtype=np.int64)
    for j in range(n_bins):
        n = 0
        for k in range(samples.shape[1]):
            n += samples[j, k] != infinity
        numbers[j] = n
    return numbers


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


def count_sampled(row_edges: IntArray, column_edges: IntArray, max_pixels: int) -> IntArray:
    """Return how many pixels of each bin `sample_bins` looks at."""
    heights, widths = np.diff(row_edges)[:, None], np.diff(column_edges)[None, :]
    steps = np.maximum(1, np.floor(np.sqrt(heights * widths / max_pixels)).astype(np.int64))
    return -(-heights // steps) * -(-widths // steps)


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

    At most about `max_pixels` pixels of a bin are looked at; what is not finite is not usable. Sorted by NumPy, whose sort of short rows uses the
    processor's vectors and is an order of magnitude quicker than a compiled loop's.
    """
    n_rows, n_columns = row_edges.size - 1, column_edges.size - 1
    level = np.full((n_rows, n_columns), np.nan)
    sigma = np.full((n_rows, n_columns), np.nan)
    number = np.zeros((n_rows, n_columns), dtype=np.int64)
    most = int(count_sampled(row_edges, column_edges, max_pixels).max())

    def measure(first: int, last: int) -> None:
        # Used again for each row of bins: fresh memory costs more than what is done in it.
        samples = np.empty((n_columns, most), dtype=image.dtype)
        for i in range(first, last):
            number[i] = sample_bins(image, usable, row_edges[i], row_edges[i + 1], column_edges, max_pixels, samples)
            samples.sort(axis=1)
            clip_sorted(samples, number[i], n_sigma, n_iterations, level[i], sigma[i])

    map_bands(measure, n_rows, height=_ROWS_OF_BINS)
    return level, sigma, number


@njit(cache=True, nogil=True)
def draw_rows(
    knots: FloatArray, piece: IntArray, weights: FloatArray, first: int, last: int, sign: float, out: FloatArray
) -> None:
    """Add to `out`, times `sign`, rows from `first` to before `last` of what is a sum of few of the rows of `knots`.

    `knots`: (2 n + 2, nx), of n bins levels and curvatures, and the slopes beyond the outer two. `piece`: the bin before
    each row; `weights`: (ny, 6), of the levels there and of the next bin, of the curvatures there, and of the slopes.
    """
    n, nx = knots.shape[0] // 2 - 1, knots.shape[1]
    drawn = np.empty(nx, dtype=np.float32)
    for y in range(first, last):
        i = piece[y]
        j = min(i + 1, n - 1)
        a, b, c, d = weights[y, 0], weights[y, 1], weights[y, 2], weights[y, 3]
        level, next_level, curve, next_curve = knots[i], knots[j], knots[n + i], knots[n + j]
        for x in range(nx):
            drawn[x] = a * level[x] + b * next_level[x] + c * curve[x] + d * next_curve[x]
        for k in range(2):
            slope = weights[y, 4 + k]
            if slope != 0.0:
                beyond = knots[2 * n + k]
                for x in range(nx):
                    drawn[x] += slope * beyond[x]
        row, factor = out[y], np.float32(sign)
        for x in range(nx):
            row[x] += factor * drawn[x]


@njit(cache=True, nogil=True)
def set_planes(mask: IntArray, painted: IntArray, positive: int, negative: int, first: int, last: int) -> None:
    """Set in `mask` one of two bits, or both, where `painted` says, and clear them elsewhere: some rows."""
    plus, minus = np.int32(positive), np.int32(negative)
    kept = ~(plus | minus)
    for y in range(first, last):
        for x in range(mask.shape[1]):
            p = painted[y, x]
            bits = (plus if p & POSITIVE else np.int32(0)) | (minus if p & NEGATIVE else np.int32(0))
            mask[y, x] = (mask[y, x] & kept) | bits


@njit(cache=True, nogil=True)
def _is_bright(value: float, variance: float, min_sigma: float) -> bool:
    return (value > 0) & (value * value > min_sigma * min_sigma * variance)


@njit(cache=True, nogil=True)
def _is_too_sharp(
    image: FloatArray,
    variance: FloatArray,
    usable: BoolArray,
    ratios: FloatArray,
    psf_factor: float,
    noise_factor: float,
    hits: BoolArray,
    y: int,
    x: int,
) -> bool:
    """Say whether a pixel is too sharp for a star.

    It is compared with the means of its four pairs of opposite neighbours (columns, rows, diagonals), of which a star
    gives at least `ratios` times the pixel. Hits count as sky.
    """
    p, v = image[y, x], variance[y, x]
    steps = ((0, 1), (1, 0), (1, 1), (1, -1))
    for k in range(4):
        dy, dx = steps[k]
        mean, noise = 0.0, 0.0
        known = True
        for s in (-1, 1):
            row, column = y + s * dy, x + s * dx
            if hits[row, column]:
                continue
            known &= usable[row, column]
            mean += 0.5 * image[row, column]
            noise += 0.25 * variance[row, column]
        limit = psf_factor * ratios[k]
        if known and limit * p > mean + noise_factor * np.sqrt(noise + limit * limit * v):
            return True
    return False


@njit(cache=True, nogil=True)
def find_cosmic_rays(
    image: FloatArray,
    variance: FloatArray,
    usable: BoolArray,
    ratios: FloatArray,
    min_sigma: float,
    psf_factor: float,
    noise_factor: float,
    no_hits: BoolArray,
    row_start: int,
    row_stop: int,
    hits: BoolArray,
) -> None:
    """Mark those pixels of rows that are too sharp for a star; the image's rim is left out."""
    ny, nx = image.shape
    bright = np.empty(nx, dtype=np.int64)
    for y in range(max(1, row_start), min(ny - 1, row_stop)):
        values, variances, flags = image[y], variance[y], usable[y]
        # Listed without branches: one in a hundred is, nobody knows which.
        n = np.uint64(0)
        for x in range(1, nx - 1):
            bright[n] = x
            n += np.uint64(_is_bright(values[x], variances[x], min_sigma) & flags[x])
        for x in bright[:n]:
            hits[y, x] = _is_too_sharp(image, variance, usable, ratios, psf_factor, noise_factor, no_hits, y, x)


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
    latest: IntArray,
) -> IntArray:
    """Mark what touches the latest hits and is too sharp where they count as sky; return it: indices of the flat image.

    What touches earlier hits alone was looked at when they were new.
    """
    ny, nx = image.shape
    added = np.empty(8 * latest.size, dtype=np.int64)
    count = 0
    for i in range(latest.size):
        y, x = latest[i] // nx, latest[i] % nx
        for row in range(max(1, y - 1), min(ny - 1, y + 2)):
            for column in range(max(1, x - 1), min(nx - 1, x + 2)):
                if hits[row, column] or not usable[row, column]:
                    continue
                if _is_bright(image[row, column], variance[row, column], min_sigma) and _is_too_sharp(
                    image, variance, usable, ratios, psf_factor, noise_factor, hits, row, column
                ):
                    added[count] = row * nx + column
                    count += 1
    # Only now: all of a turn see the same hits.
    for i in range(count):
        hits[added[i] // nx, added[i] % nx] = True
    return added[:count]
