"""The variance plane of files that have none, and which of their pixels are full or empty.

The variance is that of one pixel, in image units squared. It is made of a smooth sky part and of the photon
noise of what stands above the sky; where a pixel is not clearly above it, that part comes from the mean of its
neighbours, because a variance that follows each pixel's own noise biases every weighted mean towards the faint.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, special

from alertprod._typing import BoolArray, FloatArray, IntArray

_SAMPLES_PER_CELL = 1024
"""Pixels looked at in a cell: its scatter is then known to about 3 %, and better after smoothing over cells."""

_CLIP_SIGMA = 3.0
_CLIP_ITERATIONS = 4
_MIN_GOOD_FRACTION = 0.25
"""Cells with fewer good pixels take their neighbours' values."""

_CLEARLY_ABOVE_SIGMA = 5.0
"""Above it a pixel's own value is a better measure of its photons than its neighbours' mean, which blunts peaks."""

_STRIP_ROWS = 64

_SLOPE_SAMPLE = 2048
"""Side in pixels of the middle part of an image from which the photon slope is estimated."""

_MIN_PIXELS_PER_LEVEL = 200
_SLOPE_SIGNIFICANCE = 3.0


@dataclass(frozen=True, slots=True)
class Sky:
    """Sky level and scatter of single pixels, in image units.

    Parameters
    ----------
    level, rms
        One value a cell, float64, shape ``(n_cells_y, n_cells_x)``, finite.
    shape
        Of the image, ``(ny, nx)``.
    """

    level: FloatArray
    rms: FloatArray
    shape: tuple[int, int]

    def compute_level_image(self) -> FloatArray:
        """Return the level for each pixel, float32, linear between the cells' middles."""
        return _interpolate_cells(self.level, self.shape)

    def compute_rms_image(self) -> FloatArray:
        """Return the scatter for each pixel, float32, linear between the cells' middles."""
        return _interpolate_cells(self.rms, self.shape)


@dataclass(frozen=True, slots=True)
class PhotonSlope:
    """Growth of a pixel's variance with its light, image units (1 / gain), and its standard error."""

    value: float
    error: float


def measure_sky(image: FloatArray, bad: BoolArray, *, cell_size: int) -> Sky:
    """Measure sky level and pixel scatter in cells.

    Parameters
    ----------
    image
        float32, shape ``(ny, nx)``.
    bad
        Pixels not to look at, same shape; NaN counts as bad without it.
    cell_size
        Side of a cell in pixels; adapted so that whole cells cover the image.

    Returns
    -------
    Sky
        Both from the fainter half of each cell: stars make the brighter half wide. Still too wide where
        most pixels carry starlight; there a gain is needed.

    Raises
    ------
    ValueError
        Raised if no cell has enough good pixels.
    """
    ny, nx = image.shape
    n_rows, n_columns = max(1, round(ny / cell_size)), max(1, round(nx / cell_size))
    step = max(1, int(np.sqrt(ny / n_rows * nx / n_columns / _SAMPLES_PER_CELL)))
    rows = _sample_positions(ny, n_rows, step)
    columns = _sample_positions(nx, n_columns, step)
    samples = image[rows[:, None], columns[None, :]].astype(np.float32)
    samples[bad[rows[:, None], columns[None, :]]] = np.nan
    per_row, per_column = rows.size // n_rows, columns.size // n_columns
    cells = samples.reshape(n_rows, per_row, n_columns, per_column).swapaxes(1, 2).reshape(n_rows * n_columns, -1)
    cells[~np.isfinite(cells)] = np.nan
    level, rms, n_good = _clip_cells(np.sort(cells, axis=1))  # NaN sorts last
    usable = (n_good >= max(4, _MIN_GOOD_FRACTION * cells.shape[1])).reshape(n_rows, n_columns)
    if not usable.any():
        msg = "no cell of the sky has enough good pixels"
        raise ValueError(msg)
    level, rms = level.reshape(usable.shape), rms.reshape(usable.shape)
    scatters = usable & (rms > 0)
    return Sky(
        level=_smooth_cells(level, usable),
        rms=_smooth_cells(rms, scatters if scatters.any() else usable),
        shape=(ny, nx),
    )


def compute_variance_from_gain(
    image: FloatArray, bad: BoolArray, sky: Sky, *, gain: float, read_noise: float, pedestal: float
) -> FloatArray:
    """Return the variance of photons and read noise.

    Parameters
    ----------
    image
        Image units, sky included, shape ``(ny, nx)``.
    bad
        Pixels without a usable value.
    gain
        Electrons per image unit.
    read_noise
        Electrons.
    pedestal
        Sky level in image units that no photon made.

    Returns
    -------
    FloatArray
        float32, image units squared: ``(sky - pedestal + excess) / gain + (read_noise / gain)**2``.
    """
    read_variance = (read_noise / gain) ** 2
    # Without read noise an empty sky would have no variance, hence infinite weight: one electron at least.
    floor = max(read_variance, 1.0 / gain**2)
    level = sky.compute_level_image()
    variance = (level - np.float32(pedestal)) / np.float32(gain) + np.float32(read_variance)
    np.maximum(variance, np.float32(floor), out=variance)
    # A sky level over crowded stars is too high: here the image itself may say that there is less light.
    add_photon_noise(variance, image, bad, level, slope=1.0 / gain, also_below=True)
    return np.maximum(variance, np.float32(floor), out=variance)


def compute_variance_from_pixels(image: FloatArray, bad: BoolArray, sky: Sky, *, slope: float) -> FloatArray:
    """Return the sky's measured variance plus the photon noise, `slope` image units squared per unit, above it.

    Raises
    ------
    ValueError
        Raised if the sky has no scatter at all: such pixels cannot say what their noise is.
    """
    if not (sky.rms > 0).all():
        msg = "the sky has no scatter to take the noise from"
        raise ValueError(msg)
    variance = sky.compute_rms_image() ** 2
    return add_photon_noise(variance, image, bad, sky.compute_level_image(), slope=slope)


def add_photon_noise(
    sky_variance: FloatArray,
    image: FloatArray,
    bad: BoolArray,
    level: FloatArray,
    *,
    slope: float,
    also_below: bool = False,
) -> FloatArray:
    """Add ``slope * (light above the sky)`` to the sky's variance, in place, and return it.

    Parameters
    ----------
    also_below
        Subtract where there is less light than the sky's.

    Notes
    -----
    The light is the pixel's own where that is clearly above the sky, else the mean of 3 x 3 pixels.
    """
    if slope <= 0:
        return sky_variance
    ny = image.shape[0]
    # In strips that stay in the cache, each with a row of its neighbours above and below.
    for start in range(0, ny, _STRIP_ROWS):
        rows = slice(start, min(start + _STRIP_ROWS, ny))
        reach = slice(max(rows.start - 1, 0), min(rows.stop + 1, ny))
        excess = image[reach] - level[reach]
        excess[bad[reach] | ~np.isfinite(excess)] = 0.0
        own = slice(rows.start - reach.start, rows.stop - reach.start)
        smooth = _mean_3x3(excess, pad_top=reach.start == rows.start, pad_bottom=reach.stop == rows.stop)
        if not also_below:
            np.maximum(smooth, 0.0, out=smooth)
        light = excess[own]
        faint = light < _CLEARLY_ABOVE_SIGMA * np.sqrt(sky_variance[rows])
        np.copyto(light, smooth, where=faint)
        light *= np.float32(slope)
        sky_variance[rows] += light
    return sky_variance


def estimate_photon_slope(image: FloatArray, bad: BoolArray, sky: Sky) -> PhotonSlope | None:
    """Estimate how a pixel's variance grows with the light in it, from one image.

    Parameters
    ----------
    image, bad, sky
        As for `compute_variance_from_pixels`; stars at least about three pixels wide.

    Returns
    -------
    PhotonSlope or None
        None where too few bright pixels show it.

    Notes
    -----
    A sixth difference along both axes passes only the highest spatial frequencies, where a sampled star has
    next to nothing and white noise has as much as anywhere. Its robust variance in classes of the local light L
    is fitted as ``a + b L + c L**2``: c takes what stars leak. Resampled noise is suppressed by the filter, in sky
    and stars alike, so b is scaled by (sky variance) / a. The classes end where the leak exceeds the photons.
    """
    middle = tuple(
        slice(max(0, (n - _SLOPE_SAMPLE) // 2), max(0, (n - _SLOPE_SAMPLE) // 2) + _SLOPE_SAMPLE) for n in sky.shape
    )
    rms = float(np.median(sky.rms))
    excess = (image - sky.compute_level_image())[middle]
    unusable = bad[middle] | ~np.isfinite(excess)
    excess[unusable] = 0.0
    taps = np.array([1, -6, 15, -20, 15, -6, 1], dtype=np.float32)
    taps /= np.sqrt((taps**2).sum())
    light = ndimage.correlate1d(ndimage.correlate1d(excess, taps**2, axis=0), taps**2, axis=1)
    noise = ndimage.correlate1d(ndimage.correlate1d(excess, taps, axis=0), taps, axis=1)
    good = ~ndimage.maximum_filter(unusable, size=7)
    good[:3], good[-3:], good[:, :3], good[:, -3:] = False, False, False, False
    light, noise = light[good], noise[good]

    edges = rms * np.concatenate([[-1.0, 0.5], 0.5 * 1.6 ** np.arange(1.0, 24.0)])
    order = np.digitize(light, edges)
    classes = [order == k for k in range(1, edges.size)]
    classes = [inside for inside in classes if inside.sum() >= _MIN_PIXELS_PER_LEVEL]
    if len(classes) < 4:
        return None
    level = np.array([light[inside].mean() for inside in classes])
    variance = np.array([(1.4826 * np.median(np.abs(noise[inside]))) ** 2 for inside in classes])
    # 1.17: the median's inefficiency; 2: neighbouring differences share pixels.
    error = variance * 2.0 * 1.17 * 2.0 / np.sqrt([inside.sum() for inside in classes])
    n_used = len(classes)
    while n_used >= 4:
        design = np.stack([np.ones(n_used), level[:n_used], level[:n_used] ** 2], axis=1) / error[:n_used, None]
        covariance = np.linalg.inv(design.T @ design)
        a, b, c = covariance @ (design.T @ (variance[:n_used] / error[:n_used]))
        if c * level[n_used - 1] <= max(b, 0.0) or n_used == 4:
            break
        n_used -= 1
    if not (a > 0 and b > _SLOPE_SIGNIFICANCE * np.sqrt(covariance[1, 1])):
        return None
    scale = rms**2 / a
    return PhotonSlope(value=float(b * scale), error=float(np.sqrt(covariance[1, 1]) * scale))


def mask_saturated(image: FloatArray, mask: IntArray, *, level: float, bit: int, grow: int) -> int:
    """Set `bit` in `mask`, in place, at and around pixels of `level` and more.

    Parameters
    ----------
    grow
        Radius in pixels of the disc around each.

    Returns
    -------
    int
        Number of full pixels, without those around them.
    """
    rows, columns = np.nonzero(image >= level)
    reach = np.arange(-grow, grow + 1)
    ny, nx = image.shape
    for dy in reach:
        for dx in reach[reach**2 + dy**2 <= grow**2 + grow]:
            y, x = rows + dy, columns + dx
            inside = (y >= 0) & (y < ny) & (x >= 0) & (x < nx)
            mask[y[inside], x[inside]] |= bit
    return int(rows.size)


def _mean_3x3(image: FloatArray, *, pad_top: bool, pad_bottom: bool) -> FloatArray:
    """Return means of 3 x 3 pixels, borders repeated; rows without a neighbour are dropped unless padded."""
    padded = np.pad(image, ((int(pad_top), int(pad_bottom)), (1, 1)), mode="edge")
    across = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    mean: FloatArray = across[:-2] + across[1:-1] + across[2:]
    mean *= np.float32(1.0 / 9.0)
    return mean


def _sample_positions(n_pixels: int, n_cells: int, step: int) -> IntArray:
    """Return the same number of positions in each cell, every `step` pixels, cell after cell."""
    edges = np.linspace(0, n_pixels, n_cells + 1)
    per_cell = max(1, int(np.ceil(n_pixels / n_cells / step)))
    inside = (np.arange(per_cell) + 0.5) / per_cell
    positions = edges[:-1, None] + inside[None, :] * np.diff(edges)[:, None]
    return np.clip(positions.astype(np.intp).ravel(), 0, n_pixels - 1)


def _clip_cells(cells: FloatArray) -> tuple[FloatArray, FloatArray, IntArray]:
    """Return median, lower-half scatter and number of good samples of sorted float32 rows (NaN last)."""
    n_good = np.isfinite(cells).sum(axis=1)
    index, position = np.arange(cells.shape[0]), np.arange(cells.shape[1])
    low, high = np.zeros_like(n_good), n_good.copy()
    median = rms = np.full(cells.shape[0], np.nan, dtype=np.float32)
    # Of a normal distribution cut at the clip: what is left of its second moment.
    left_over = 1.0 - 2.0 * _CLIP_SIGMA * _normal_density(_CLIP_SIGMA) / special.erf(_CLIP_SIGMA / np.sqrt(2.0))
    for _ in range(_CLIP_ITERATIONS):
        last = np.maximum(high - 1, 0)
        middle = (low + last) // 2
        both = cells[index, middle] + cells[index, np.minimum((low + last + 1) // 2, last)]
        median = np.where(high - low >= 4, np.float32(0.5) * both, np.float32(np.nan))
        below = cells - median[:, None]
        below[(position < low[:, None]) | (position > middle[:, None])] = 0.0
        rms = np.sqrt(np.einsum("ij,ij->i", below, below) / np.maximum(middle + 1 - low, 1) / left_over)
        reach = np.float32(_CLIP_SIGMA) * rms.astype(np.float32)
        low = (cells < (median - reach)[:, None]).sum(axis=1)
        high = (cells <= (median + reach)[:, None]).sum(axis=1)
    return median.astype(float), np.where(np.isfinite(median), rms, 0.0).astype(float), n_good


def _normal_density(x: float) -> float:
    return float(np.exp(-0.5 * x * x) / np.sqrt(2.0 * np.pi))


def _smooth_cells(values: FloatArray, usable: BoolArray) -> FloatArray:
    """Give unusable cells their nearest neighbour's value, then take the median of 3 x 3 cells."""
    if not usable.all():
        nearest = ndimage.distance_transform_edt(~usable, return_distances=False, return_indices=True)
        values = values[tuple(nearest)]
    smooth: FloatArray = ndimage.median_filter(values, size=3, mode="nearest")
    return smooth


def _interpolate_cells(cells: FloatArray, shape: tuple[int, int]) -> FloatArray:
    """Return the bilinear interpolation between cell middles, constant beyond the outermost; float32."""
    along_y, along_x = (_linear_weights(n, n_cells) for n, n_cells in zip(shape, cells.shape, strict=True))
    return (along_y @ cells).astype(np.float32) @ along_x.T.astype(np.float32)


def _linear_weights(n_pixels: int, n_cells: int) -> FloatArray:
    position = np.clip((np.arange(n_pixels) + 0.5) * n_cells / n_pixels - 0.5, 0.0, n_cells - 1.0)
    left = np.minimum(position.astype(np.intp), max(n_cells - 2, 0))
    weights = np.zeros((n_pixels, n_cells))
    weights[np.arange(n_pixels), left] = 1.0 - (position - left)
    if n_cells > 1:
        weights[np.arange(n_pixels), left + 1] = position - left
    return weights
