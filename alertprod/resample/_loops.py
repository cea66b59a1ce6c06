"""Compiled loops of warping and merging, over the pixels of whole images."""

import numba
import numpy as np

from alertprod._typing import FloatArray, IntArray

FLAGGED = 1
"""Bit of the near map: some mask plane is set within a kernel's reach."""

UNUSABLE = 2
"""Bit of the near map: some pixel within a kernel's reach has no value."""

INVALID = 1 << 30
"""Bit added to the mask of pixels without a value; above every mask plane."""


@numba.njit(cache=True, nogil=True)
def prepare_source(
    image: FloatArray,
    mask: IntArray,
    variance: FloatArray,
    no_data: int,
    clean_image: FloatArray,
    clean_variance: FloatArray,
    flags: IntArray,
) -> int:
    """Copy rows of a source, with zeros and `INVALID` for pixels without a value; returns all flags or-ed."""
    ny, nx = image.shape
    seen = 0
    for y in range(ny):
        for x in range(nx):
            value, noise, bits = image[y, x], variance[y, x], mask[y, x]
            # Also false for NaN.
            if np.isfinite(value) and noise > 0 and np.isfinite(noise) and (bits & no_data) == 0:
                clean_image[y, x] = value
                clean_variance[y, x] = noise
            else:
                clean_image[y, x] = 0.0
                clean_variance[y, x] = 0.0
                bits |= INVALID
            flags[y, x] = bits
            seen |= bits
    return seen


@numba.njit(cache=True, nogil=True)
def map_near(flags: IntArray, radius: int, near: IntArray, row_start: int, row_stop: int) -> None:
    """Mark those pixels of rows whose kernel, from ``-radius + 1`` to `radius`, meets a flag: `FLAGGED`, `UNUSABLE`."""
    ny, nx = flags.shape
    rows = np.zeros((2 * radius, nx), dtype=np.uint8)
    line = np.zeros(nx, dtype=np.uint8)
    taps = 2 * radius
    for y in range(max(-radius, row_start - taps) + 1, row_stop):
        # Row y + radius enters the ring; pixels above the image have no flags of their own.
        entering = y + radius
        ring = rows[entering % taps]
        if entering < ny:
            for x in range(nx):
                bits = flags[entering, x]
                line[x] = (np.uint8(FLAGGED) if bits != 0 else np.uint8(0)) | (
                    np.uint8(UNUSABLE) if bits & INVALID else np.uint8(0)
                )
            for x in range(nx):
                ring[x] = line[x]
            for shift in range(1, radius + 1):
                for x in range(nx - shift):
                    ring[x] |= line[x + shift]
            for shift in range(1, radius):
                for x in range(shift, nx):
                    ring[x] |= line[x - shift]
        else:
            for x in range(nx):
                ring[x] = 0
        if y < row_start:
            continue
        for x in range(nx):
            near[y, x] = rows[0, x]
        for k in range(1, taps):
            for x in range(nx):
                near[y, x] |= rows[k, x]


@numba.njit(cache=True, nogil=True)
def _careful(
    image: FloatArray,
    variance: FloatArray,
    flags: IntArray,
    row_weights: FloatArray,
    column_weights: FloatArray,
    first_row: int,
    first_column: int,
    taps: int,
    least_weight: float,
    greatest_loss: float,
    edge: int,
) -> tuple[float, float, int]:
    """Interpolate one pixel that meets flags or the image's rim: value, variance and bits (`INVALID` if none)."""
    ny, nx = image.shape
    total = 0.0
    noise = 0.0
    weight_sum = 0.0
    weight_size = 0.0
    lost_size = 0.0
    center_weight = 0.0
    center_is_good = False
    bits = 0
    for j in range(taps):
        y = first_row + j
        for i in range(taps):
            weight = row_weights[j] * column_weights[i]
            if weight == 0.0:
                continue
            x = first_column + i
            size = abs(weight)
            weight_size += size
            inside = 0 <= y < ny and 0 <= x < nx
            here = flags[y, x] if inside else INVALID
            good = (here & INVALID) == 0
            if weight > center_weight:
                center_weight = weight
                center_is_good = good
            if size >= least_weight:
                bits |= here & ~INVALID
            if good:
                weight_sum += weight
                total += weight * image[y, x]
                noise += weight * weight * variance[y, x]
            else:
                lost_size += size
    if not center_is_good or lost_size > greatest_loss * weight_size:
        return 0.0, 0.0, bits | INVALID
    if lost_size > 0.0:
        total /= weight_sum
        noise /= weight_sum * weight_sum
        if lost_size >= least_weight:
            bits |= edge
    return total, noise, bits


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz", "arcp"})
def warp_rows(
    image: FloatArray,
    variance: FloatArray,
    flags: IntArray,
    near: IntArray,
    x_nodes: FloatArray,
    y_nodes: FloatArray,
    area_nodes: FloatArray,
    step: int,
    table: FloatArray,
    taps: int,
    least_weight: float,
    greatest_loss: float,
    edge: int,
    no_data: int,
    out_image: FloatArray,
    out_mask: IntArray,
    out_variance: FloatArray,
    row_start: int,
    row_stop: int,
) -> None:
    """Fill rows of a target image; where the source does not reach: NaN, `no_data`, infinite variance.

    Parameters
    ----------
    image, variance, flags
        From `prepare_source`.
    near
        From `map_near`.
    x_nodes, y_nodes, area_nodes, step
        From `PixelMapping.nodes`.
    table
        float32, shape ``(n_entries, width)``: kernel weights by fraction of a pixel, padded with zeros from `taps`
        to `width`, which is 8: a row of weights then fills a vector register.
    """
    ny, nx = image.shape
    n_columns = out_image.shape[1]
    n_entries, width = table.shape
    radius = taps // 2
    squares = table * table
    flat_image, flat_variance, flat_flags = image.ravel(), variance.ravel(), flags.ravel()
    flat_table, flat_squares, flat_near = table.ravel(), squares.ravel(), near.ravel()
    stride = np.uint64(nx)
    least = np.float32(least_weight)
    line_x = np.empty(x_nodes.shape[1])
    line_y = np.empty(x_nodes.shape[1])
    line_area = np.empty(x_nodes.shape[1])
    columns, rows, entries_x, entries_y = np.empty((4, step), dtype=np.int32)
    areas = np.empty(step, dtype=np.float32)
    for y in range(row_start, row_stop):
        line_image, line_mask, line_variance = out_image[y], out_mask[y], out_variance[y]
        line_image[:], line_mask[:], line_variance[:] = np.nan, no_data, np.inf
        node_row = min(y // step, x_nodes.shape[0] - 2)
        t = (y - node_row * step) / step
        for k in range(line_x.size):
            line_x[k] = x_nodes[node_row, k] + t * (x_nodes[node_row + 1, k] - x_nodes[node_row, k])
            line_y[k] = y_nodes[node_row, k] + t * (y_nodes[node_row + 1, k] - y_nodes[node_row, k])
            line_area[k] = area_nodes[node_row, k] + t * (area_nodes[node_row + 1, k] - area_nodes[node_row, k])
        for cell in range(line_x.size - 1):
            x_from, x_to = line_x[cell], line_x[cell + 1]
            y_from, y_to = line_y[cell], line_y[cell + 1]
            # Cells wholly off the source stay as they are, and so do those that map nowhere (NaN).
            if not (
                max(x_from, x_to) >= -0.5
                and min(x_from, x_to) <= nx - 0.5
                and max(y_from, y_to) >= -0.5
                and min(y_from, y_to) <= ny - 0.5
            ):
                continue
            # Of a cell at once, without branches: what the processor's vectors do.
            for k in range(step):
                t = k / step
                x_source = x_from + t * (x_to - x_from)
                y_source = y_from + t * (y_to - y_from)
                column, row = np.floor(x_source), np.floor(y_source)
                entry_x = np.int32((x_source - column) * n_entries + 0.5)
                entry_y = np.int32((y_source - row) * n_entries + 0.5)
                # Within half an entry below the next pixel's centre is on it: unshifted images stay exact.
                next_x, next_y = entry_x == n_entries, entry_y == n_entries
                entries_x[k] = 0 if next_x else entry_x
                entries_y[k] = 0 if next_y else entry_y
                columns[k] = np.int32(column) + next_x
                rows[k] = np.int32(row) + next_y
                is_off = not (-0.5 <= x_source <= nx - 0.5 and -0.5 <= y_source <= ny - 0.5)
                if is_off:
                    rows[k] = -taps
                areas[k] = line_area[cell] + t * (line_area[cell + 1] - line_area[cell])
            for x in range(cell * step, min((cell + 1) * step, n_columns)):
                k = x - cell * step
                column, row, entry_x, entry_y, area = columns[k], rows[k], entries_x[k], entries_y[k], areas[k]
                if row == -taps:
                    continue
                target = np.uint64(x)
                first_column = column - radius + 1
                first_row = row - radius + 1
                interior = (
                    first_column >= 0 and first_row >= 0 and first_column + width <= nx and first_row + taps <= ny
                )
                state = flat_near[np.uint64(row * nx + column)] if interior else UNUSABLE
                if state & UNUSABLE:
                    value, noise, bits = _careful(
                        image,
                        variance,
                        flags,
                        table[entry_y],
                        table[entry_x],
                        first_row,
                        first_column,
                        taps,
                        least_weight,
                        greatest_loss,
                        edge,
                    )
                    if bits & INVALID:
                        line_mask[target] = (bits & ~INVALID) | no_data
                        continue
                    line_image[target] = value * area
                    line_variance[target] = noise * area * area
                    line_mask[target] = bits & ~no_data
                    continue
                total = np.float32(0.0)
                noise = np.float32(0.0)
                if taps == 6:
                    # Unsigned offsets into flat planes: a signed index could be negative and wrap, and then
                    # the eight lanes would be gathered one by one.
                    start = np.uint64(first_row * nx + first_column)
                    weight_row = np.uint64(entry_y * width)
                    weight_column = np.uint64(entry_x * width)
                    for i in range(8):
                        lane = np.float32(0.0)
                        lane_noise = np.float32(0.0)
                        for j in range(6):
                            place = start + np.uint64(j) * stride + np.uint64(i)
                            row_tap = weight_row + np.uint64(j)
                            lane += flat_table[row_tap] * flat_image[place]
                            lane_noise += flat_squares[row_tap] * flat_variance[place]
                        tap = weight_column + np.uint64(i)
                        total += flat_table[tap] * lane
                        noise += flat_squares[tap] * lane_noise
                else:
                    for j in range(taps):
                        lane = np.float32(0.0)
                        lane_noise = np.float32(0.0)
                        for i in range(taps):
                            lane += table[entry_x, i] * image[first_row + j, first_column + i]
                            lane_noise += squares[entry_x, i] * variance[first_row + j, first_column + i]
                        total += table[entry_y, j] * lane
                        noise += squares[entry_y, j] * lane_noise
                scale = np.float32(area)
                line_image[target] = total * scale
                line_variance[target] = noise * scale * scale
                bits = np.int32(0)
                if state & FLAGGED:
                    for j in range(taps):
                        start = np.uint64((first_row + j) * nx + first_column)
                        weight_column = np.uint64(entry_x * width)
                        least_column = least / max(abs(table[entry_y, j]), np.float32(1e-9))
                        for i in range(width):
                            tap = np.uint64(i)
                            if abs(flat_table[weight_column + tap]) >= least_column:
                                bits |= flat_flags[start + tap]
                line_mask[target] = bits


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def accumulate_tile(
    image: FloatArray,
    mask: IntArray,
    variance: FloatArray,
    scale: float,
    no_data: int,
    sum_image: FloatArray,
    sum_variance: FloatArray,
    sum_weight: FloatArray,
    or_mask: IntArray,
    x_min: int,
    y_min: int,
    block: int,
    block_weight: FloatArray,
) -> None:
    """Add a tile, times `scale`, with weight ``variance ** -0.5``; adds its mean weight per block too.

    The tile's first pixel is `x_min`, `y_min` of the sums, which start block (0, 0) at their own first pixel.
    """
    ny, nx = image.shape
    bits, zero, one, infinity = np.int32(no_data), np.float32(0.0), np.float32(1.0), np.float32(np.inf)
    factor, square = np.float32(scale), np.float32(scale * scale)
    for y in range(ny):
        row = y + y_min
        values, variances, flags = image[y], variance[y], mask[y]
        columns = slice(x_min, x_min + nx)
        line_image, line_variance = sum_image[row, columns], sum_variance[row, columns]
        line_weight, line_mask = sum_weight[row, columns], or_mask[row, columns]
        start = 0
        while start < nx:
            # To the end of the block, so that its weight is summed in registers.
            block_column = (start + x_min) // block
            stop = min(nx, (block_column + 1) * block - x_min)
            total = zero
            for x in range(np.uint64(start), np.uint64(stop)):
                value, noise = values[x], variances[x]
                # A finite number less itself is zero; nothing else is.
                usable = ((flags[x] & bits) == 0) & (noise > zero) & (noise < infinity) & (value - value == zero)
                noise = noise * square if usable else one
                weight = one / np.sqrt(noise) if usable else zero
                line_image[x] += weight * (value * factor if usable else zero)
                line_variance[x] += weight * noise
                line_weight[x] += weight
                line_mask[x] |= flags[x] if usable else np.int32(0)
                total += weight
            block_weight[row // block, block_column] += total / np.float32(block * block)
            start = stop


@numba.njit(cache=True, nogil=True)
def finish_merge(
    sum_image: FloatArray, sum_variance: FloatArray, sum_weight: FloatArray, or_mask: IntArray, no_data: int
) -> None:
    """Turn the sums into means in place; pixels without weight become NaN, infinite variance, NO_DATA."""
    ny, nx = sum_image.shape
    for y in range(ny):
        for x in range(nx):
            weight = sum_weight[y, x]
            if weight > 0:
                sum_image[y, x] /= weight
                sum_variance[y, x] /= weight
            else:
                sum_image[y, x] = np.nan
                sum_variance[y, x] = np.inf
                or_mask[y, x] |= no_data


@numba.njit(cache=True, nogil=True)
def _look_up(place: float, n_entries: int) -> tuple[int, int]:
    """Return the sample before a place and the entry of a kernel's table for what it lies beyond."""
    sample = int(np.floor(place))
    entry = int((place - sample) * n_entries + 0.5)
    if entry == n_entries:
        return sample + 1, 0
    return sample, entry


@numba.njit(cache=True, nogil=True)
def _overlap(table: FloatArray, sample: int, entry: int, other: float) -> float:
    """Return the sum of products of the weights that two places of an axis give to the samples they share."""
    other_sample, other_entry = _look_up(other, table.shape[0])
    lag = other_sample - sample
    total = 0.0
    for tap in range(max(0, lag), min(table.shape[1], table.shape[1] + lag)):
        total += table[entry, tap] * table[other_entry, tap - lag]
    return total


@numba.njit(cache=True, nogil=True)
def mean_overlaps(u: FloatArray, v: FloatArray, du: FloatArray, dv: FloatArray, table: FloatArray) -> FloatArray:
    """Return, for every step, the mean over places of the sum of products of weights there and a step further.

    Parameters
    ----------
    u, v
        Shape ``(n_places,)``, source pixels.
    du, dv
        Shape ``(n_steps,)``, source pixels.
    table
        From `kernel_table`.
    """
    result = np.zeros(du.size)
    for place in range(u.size):
        column, entry_x = _look_up(u[place], table.shape[0])
        row, entry_y = _look_up(v[place], table.shape[0])
        for step in range(du.size):
            along_x = _overlap(table, column, entry_x, u[place] + du[step])
            if along_x != 0.0:
                result[step] += along_x * _overlap(table, row, entry_y, v[place] + dv[step])
    return result / u.size
