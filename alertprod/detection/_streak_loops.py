"""Compiled loops of the streak finder: binning, sums along all lines, profiles across one. Plain arrays in and out."""

import numpy as np
from numba import njit

from alertprod._typing import BoolArray, FloatArray, IntArray

_N_SAMPLE = 512
"""Lines of nearly one direction that a scatter is taken from: it is then good to 5 %."""

_ROWS_AT_ONCE = 64
"""Rows that are summed to strips of this height before the next: with 2000 columns they are half a megabyte."""

_MIN_SAMPLE = 32
"""With fewer it is taken to be 1."""


@njit(cache=True, nogil=True, error_model="numpy")
def bin_pulls(
    image: FloatArray, variance: FloatArray, mask: IntArray, bad_bits: int, bin_size: int, clip: float
) -> tuple[FloatArray, FloatArray]:
    """Return sums of ``image / sqrt(variance)``, cut at `clip`, and numbers of usable pixels, in square bins; float32."""
    ny, nx = image.shape
    rows, columns = (ny + bin_size - 1) // bin_size, (nx + bin_size - 1) // bin_size
    sums = np.zeros((rows, columns), dtype=np.float32)
    numbers = np.zeros((rows, columns), dtype=np.float32)
    bits, zero, one, infinity = np.int32(bad_bits), np.float32(0.0), np.float32(1.0), np.float32(np.inf)
    low, high = np.float32(-clip), np.float32(clip)
    # Of the rows of a bin, column by column: what the processor's vectors do.
    column_sums = np.empty(columns * bin_size, dtype=np.float32)
    column_numbers = np.empty(columns * bin_size, dtype=np.float32)
    for row in range(rows):
        column_sums[:] = zero
        column_numbers[:] = zero
        for y in range(row * bin_size, min((row + 1) * bin_size, ny)):
            image_row, variance_row, mask_row = image[y], variance[y], mask[y]
            for x in range(nx):
                v, d = variance_row[x], image_row[x]
                # A finite number less itself is zero; nothing else is.
                usable = ((mask_row[x] & bits) == 0) & (v > zero) & (v < infinity) & (d - d == zero)
                pull = min(max(d / np.sqrt(v), low), high)
                column_sums[x] += pull if usable else zero
                column_numbers[x] += one if usable else zero
        for x in range(columns * bin_size):
            sums[row, x // bin_size] += column_sums[x]
            numbers[row, x // bin_size] += column_numbers[x]
    return sums, numbers


@njit(cache=True, nogil=True)
def _join_strips(
    source: FloatArray, target: FloatArray, n: int, first_strip: int, last_strip: int, n_rows: int, padding: int
) -> None:
    """Make strips of height 2 n of pairs of strips of height n; those from `first_strip` to before `last_strip`."""
    width = source.shape[1]
    begin = padding - 2 * n
    for strip in range(first_strip, last_strip):
        first = 2 * n * strip
        if first >= n_rows:
            break
        for t in range(2 * n):
            low = source[first + t // 2]
            shift = (t + 1) // 2
            row = target[first + t]
            if first + n >= n_rows:
                for x in range(begin, width):
                    row[x] = low[x]
                continue
            high = source[first + n + t // 2]
            for x in range(begin, width - shift):
                row[x] = low[x] + high[x + shift]
            for x in range(width - shift, width):
                row[x] = low[x]


@njit(cache=True, nogil=True)
def sum_lines(values: FloatArray, spare: FloatArray, n_rows: int, padding: int, shortest: int, out: FloatArray) -> None:
    """Sum along all lines that lean from 0 to 45 degrees to the right, in strips of doubling height.

    `values`: (height, padding + n_columns) float32, height a power of two, the first `n_rows` rows not zero, the first
    `padding` >= height columns zero; it is overwritten, as is `spare`, zero and of the same shape. `out`: (n_levels, height, padding + n_columns), zero; its last
    entries are the strips of height `height`, the one before those of half the height, down to `shortest`. Row
    ``s * h + t`` of a level of strips of height h is strip s and the lines that end t columns right of where they
    begin, at whose column their sum stands.
    """
    height, _ = values.shape
    source = values
    n = 1
    n_levels = out.shape[0]
    # The low strips, some rows after the others: these stay in the processor's cache from level to level.
    rows = 2
    n_joined = 0
    while rows < shortest and rows < height and rows <= _ROWS_AT_ONCE:
        rows *= 2
        n_joined += 1
    rows //= 2
    for first in range(0, n_rows if n_joined else 0, rows):
        n = 1
        for _ in range(n_joined):
            _join_strips(source, spare, n, first // (2 * n), (first + rows) // (2 * n), n_rows, padding)
            source, spare = spare, source
            n *= 2
        if n_joined % 2:
            source, spare = spare, source
    if n_joined % 2:
        source, spare = spare, source
    while n < height:
        n_left = 0
        m = 2 * n
        while m < height:
            m *= 2
            n_left += 1
        target = out[n_levels - 1 - n_left] if 2 * n >= shortest else spare
        _join_strips(source, target, n, 0, height // (2 * n), n_rows, padding)
        if 2 * n >= shortest:
            source = target
        else:
            source, spare = spare, source
        n *= 2


@njit(cache=True, nogil=True)
def find_strong_lines(
    sums: FloatArray,
    numbers: FloatArray,
    n_rows: int,
    height: int,
    line_width: int,
    min_number: float,
    n_sigma: float,
    block: int,
) -> FloatArray:
    """Return the strongest line of each block of neighbouring lines that is beyond `n_sigma` scatters.

    `sums`, `numbers`: (total height, width), as `sum_lines` gives them for strips of `height`. `line_width` neighbouring
    lines are taken together. Lines with less than `min_number` pixels do not count. Returned is (n, 5): strip, t, first
    column, significance (signed), and the robust scatter, at least 1, of the significances of all lines of nearly the
    same direction: a detector's rows and columns have noise of their own.
    """
    width = sums.shape[1]
    n_strips = (n_rows + height - 1) // height
    n_blocks_t = height // block + 1
    scatter = np.ones(n_blocks_t)
    sample = np.empty(_N_SAMPLE)
    x_step = max(1, width * n_strips * 2 // _N_SAMPLE)
    for i in range(n_blocks_t):
        n_sample = 0
        for strip in range(n_strips):
            for t in range(i * block + block // 4, min(height, (i + 1) * block), block // 2):
                row = strip * height + t
                for x in range(t % x_step, width - line_width + 1, x_step):
                    total, number = 0.0, 0.0
                    for k in range(line_width):
                        total += sums[row, x + k]
                        number += numbers[row, x + k]
                    if number >= min_number and number > 0.0 and n_sample < _N_SAMPLE:
                        sample[n_sample] = abs(total) / np.sqrt(number)
                        n_sample += 1
        if n_sample >= _MIN_SAMPLE:
            scatter[i] = max(1.0, 1.4826 * np.median(sample[:n_sample]))

    n_blocks_x = width // block + 1
    n_lines = max(width - line_width + 1, 0)
    r, w = np.empty(n_lines, dtype=np.float32), np.empty(n_lines, dtype=np.float32)
    least, zero = np.float32(min_number), np.float32(0.0)
    best = np.zeros((n_strips, n_blocks_t, n_blocks_x))
    best_t = np.zeros((n_strips, n_blocks_t, n_blocks_x), dtype=np.int32)
    best_x = np.zeros((n_strips, n_blocks_t, n_blocks_x), dtype=np.int32)
    for strip in range(n_strips):
        for t in range(height):
            row_sums, row_numbers = sums[strip * height + t], numbers[strip * height + t]
            # In single precision, as the sums are: no running total, so that vectors do it.
            limit = np.float32((n_sigma * scatter[t // block]) ** 2)
            r[:] = row_sums[:n_lines]
            w[:] = row_numbers[:n_lines]
            for k in range(1, line_width):
                for x in range(n_lines):
                    r[x] += row_sums[x + k]
                    w[x] += row_numbers[x + k]
            beyond = False
            for x in range(n_lines):
                beyond |= (w[x] >= least) & (w[x] > zero) & (r[x] * r[x] > limit * w[x])
            if not beyond:
                continue
            for x in range(n_lines):
                if w[x] >= least and w[x] > zero and r[x] * r[x] > limit * w[x]:
                    s = np.float64(r[x]) ** 2 / np.float64(w[x])
                    i, j = t // block, x // block
                    if s > best[strip, i, j]:
                        best[strip, i, j] = s
                        best_t[strip, i, j] = t
                        best_x[strip, i, j] = x if r[x] > 0 else -x - 1
    n = 0
    for s in best.flat:
        n += s > 0.0
    found = np.empty((n, 5))
    n = 0
    for strip in range(n_strips):
        for i in range(n_blocks_t):
            for j in range(n_blocks_x):
                if best[strip, i, j] > 0.0:
                    x = best_x[strip, i, j]
                    found[n, 0] = strip
                    found[n, 1] = best_t[strip, i, j]
                    found[n, 2] = x if x >= 0 else -x - 1
                    found[n, 3] = np.sqrt(best[strip, i, j]) * (1.0 if x >= 0 else -1.0)
                    found[n, 4] = scatter[i]
                    n += 1
    return found


@njit(cache=True, nogil=True)
def compute_line_significance(
    sums: FloatArray, numbers: FloatArray, ends: FloatArray, line_widths: IntArray
) -> FloatArray:
    """Return ``sum / sqrt(number)`` of bins on straight lines of given widths; `ends`: (n, 4), x0, y0, x1, y1."""
    ny, nx = sums.shape
    significance = np.zeros(ends.shape[0])
    for i in range(ends.shape[0]):
        x0, y0, x1, y1 = ends[i]
        steep = abs(y1 - y0) > abs(x1 - x0)
        if steep:
            x0, y0, x1, y1 = y0, x0, y1, x1
        n_major, n_minor = (ny, nx) if steep else (nx, ny)
        slope = (y1 - y0) / (x1 - x0)
        r, w = 0.0, 0.0
        for major in range(max(0, int(np.ceil(min(x0, x1)))), min(n_major, int(np.floor(max(x0, x1))) + 1)):
            first = int(np.floor(y0 + slope * (major - x0) - 0.5 * line_widths[i] + 1.0))
            for minor in range(max(0, first), min(n_minor, first + line_widths[i])):
                r += sums[major, minor] if steep else sums[minor, major]
                w += numbers[major, minor] if steep else numbers[minor, major]
        significance[i] = r / np.sqrt(w) if w > 0.0 else 0.0
    return significance


@njit(cache=True, nogil=True)
def sum_profile(
    image: FloatArray,
    variance: FloatArray,
    mask: IntArray,
    bad_bits: int,
    x0: float,
    y0: float,
    direction_x: float,
    direction_y: float,
    length: float,
    n_segments: int,
    half_width: float,
    step: float,
    clip: float,
) -> tuple[FloatArray, FloatArray]:
    """Return sums of ``image / sqrt(variance)``, cut at `clip`, and numbers of pixels, along and across a line.

    The line begins at (x0, y0) and goes `length` along the unit vector. Both arrays are (n_segments, n): equal parts of
    the length, and offsets across it (positive where the line's right hand would be if y went up) in steps of `step`
    from -`half_width`.
    """
    ny, nx = image.shape
    n = int(np.ceil(2.0 * half_width / step))
    sums = np.zeros((n_segments, n))
    numbers = np.zeros((n_segments, n))
    steep = abs(direction_y) > abs(direction_x)
    n_major, n_minor = (ny, nx) if steep else (nx, ny)
    along, aside = (direction_y, direction_x) if steep else (direction_x, direction_y)
    major0, minor0 = (y0, x0) if steep else (x0, y0)
    reach = half_width / abs(along)
    for major in range(n_major):
        middle = minor0 + (major - major0) * aside / along
        for minor in range(max(0, int(np.ceil(middle - reach))), min(n_minor, int(np.floor(middle + reach)) + 1)):
            x, y = (minor, major) if steep else (major, minor)
            d, v = image[y, x], variance[y, x]
            if (mask[y, x] & bad_bits) != 0 or not (0.0 < v < np.inf and -np.inf < d < np.inf):
                continue
            u = (x - x0) * direction_x + (y - y0) * direction_y
            w = (y - y0) * direction_x - (x - x0) * direction_y
            i, j = int(np.floor(u / length * n_segments)), int(np.floor((w + half_width) / step))
            if 0 <= i < n_segments and 0 <= j < n:
                sums[i, j] += min(max(d / np.sqrt(v), -clip), clip)
                numbers[i, j] += 1.0
    return sums, numbers


@njit(cache=True, nogil=True)
def paint_line(
    x0: float, y0: float, direction_x: float, direction_y: float, half_width: float, painted: BoolArray
) -> None:
    """Set every pixel within `half_width` of a line that goes on for ever."""
    ny, nx = painted.shape
    steep = abs(direction_y) > abs(direction_x)
    n_major, n_minor = (ny, nx) if steep else (nx, ny)
    along, aside = (direction_y, direction_x) if steep else (direction_x, direction_y)
    major0, minor0 = (y0, x0) if steep else (x0, y0)
    reach = half_width / abs(along)
    for major in range(n_major):
        middle = minor0 + (major - major0) * aside / along
        for minor in range(max(0, int(np.ceil(middle - reach))), min(n_minor, int(np.floor(middle + reach)) + 1)):
            if steep:
                painted[major, minor] = True
            else:
                painted[minor, major] = True
