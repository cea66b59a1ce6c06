"""Neighbours: detections that touch only since they were grown, and which of them are sources of their own.

Both signs side by side are one source, a dipole or the residual of a bright star; but a point source beside the residual
of a star that is masked is neither, and would be lost with it.
"""

import numpy as np
from scipy.spatial import cKDTree

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.detection._loops import NEGATIVE, POSITIVE
from alertprod.psf.convolution import convolve_full

MIN_SIGNIFICANCE = 10.0
"""Of a point source beside a residual: a fainter bump is told from the residual's own by nothing."""

MAX_MISFIT = 0.15
"""Rms by which a point source's significance may differ from the filtered PSF about its peak, as a share of the peak: half
a pixel off the pixel's centre makes 0.1 of it at 4 pixels FWHM; arcs, spikes and cut lobes differ by 0.2 and more."""

NOISE_MISFIT = 0.5
"""The same in standard deviations of the significance, of which noise makes half of one within the disk."""

CORE_LEVEL = 0.4
"""Share of the peak down to which the two are compared: about a FWHM of the PSF from it."""


def find_points(
    significance: FloatArray,
    kernel: FloatArray,
    *,
    pixels: IntArray,
    parts: IntArray,
    is_peak: BoolArray,
    is_damaged: BoolArray,
) -> BoolArray:
    """Say of each part whether it is a whole point source, clear of any damage.

    Parameters
    ----------
    significance
        The matched-filter significance, shape ``(ny, nx)``.
    kernel
        The filter, odd-sided; about a point source the significance has the shape of its autocorrelation.
    pixels, parts, is_peak, is_damaged
        Flat indices of the pixels beyond the threshold, the part that each belongs to, which of them are peaks, and which
        are saturated, dead or without data: a part with one of these is not clear.

    Returns
    -------
    BoolArray
        Indexed by the number of the part.
    """
    count = int(parts.max(initial=-1)) + 1
    is_point = np.zeros(count, dtype=bool)
    if not is_damaged.any():
        return is_point
    is_clear = np.ones(count, dtype=bool)
    is_clear[parts[is_damaged]] = False
    shape = convolve_full(kernel, kernel[::-1, ::-1])
    half = shape.shape[0] // 2
    shape = shape / shape[half, half]
    rows, columns = np.nonzero(shape >= CORE_LEVEL)
    expected = shape[rows, columns]
    rows, columns = rows - half, columns - half
    ny, nx = significance.shape
    candidates = np.flatnonzero(is_peak & is_clear[parts])
    levels = significance.reshape(-1)[pixels[candidates]]
    # The strongest peak of each part speaks for it.
    order = candidates[np.argsort(-np.abs(levels), kind="stable")]
    _, first = np.unique(parts[order], return_index=True)
    for i in order[first]:
        y, x = divmod(int(pixels[i]), nx)
        peak = significance[y, x]
        v, u = y + rows, x + columns
        if abs(peak) < MIN_SIGNIFICANCE or v.min() < 0 or u.min() < 0 or v.max() >= ny or u.max() >= nx:
            continue
        misfit = np.sqrt(np.mean((significance[v, u] / peak - expected) ** 2))
        is_point[parts[i]] = misfit <= MAX_MISFIT + NOISE_MISFIT / abs(peak)
    return is_point


def split_neighbours(
    shape: tuple[int, int],
    grown: IntArray,
    owner: IntArray,
    count: int,
    *,
    pixels: IntArray,
    bits: IntArray,
    parts: IntArray,
    is_point: BoolArray,
    is_damaged: BoolArray,
) -> tuple[IntArray, int]:
    """Give detections that touch only since they were grown, or only faintly, footprints of their own.

    Parameters
    ----------
    shape
        Rows and columns of the image.
    grown, owner, count
        Flat indices of grown pixels, rising, the component of each, and how many components there are.
    pixels, bits, parts, is_damaged
        Flat indices of detected pixels, their signs, the number of the source that each is part of, and which of them are
        saturated, dead or without data.
    is_point
        Of each part whether it is a point source clear of damage.

    Returns
    -------
    tuple
        New owners of `grown`, and how many there are.

    Notes
    -----
    Of a component of one sign every part is a source. One of both signs stays whole, as a dipole or the residual of a
    bright star, but where it was detected on damaged pixels: point sources then leave it, and the rest stays whole.
    """
    chosen = bits != 0
    pixels, bits, parts, is_damaged = pixels[chosen], bits[chosen], parts[chosen], is_damaged[chosen]
    if not len(pixels):
        return owner, count
    component = owner[np.searchsorted(grown, pixels)]
    signs = np.zeros(count, dtype=bits.dtype)
    np.bitwise_or.at(signs, component, bits)
    beside_damage = np.zeros(count, dtype=bool)
    beside_damage[component[is_damaged]] = True
    has_both = signs == (POSITIVE | NEGATIVE)
    stays = has_both[component] & ~(is_point[parts] & beside_damage[component])
    # What stays together has one number, which no part has.
    parts = np.where(stays, -1, parts)
    pairs = np.unique(np.stack([component, parts], axis=1), axis=0)
    crowded = np.flatnonzero(np.bincount(pairs[:, 0], minlength=count) > 1)
    if not len(crowded):
        return owner, count
    owner = owner.copy()
    order, starts = np.argsort(owner, kind="stable"), np.zeros(count + 1, dtype=np.int64)
    starts[1:] = np.cumsum(np.bincount(owner, minlength=count))
    n_columns = shape[1]
    for number in crowded:
        mine = order[starts[number] : starts[number + 1]]
        core = np.flatnonzero(component == number)
        tree = cKDTree(np.stack([pixels[core] // n_columns, pixels[core] % n_columns], axis=1))
        nearest = tree.query(np.stack([grown[mine] // n_columns, grown[mine] % n_columns], axis=1))[1]
        numbers, split = np.unique(parts[core][nearest], return_inverse=True)
        # The first keeps the component's number.
        owner[mine] = np.where(split == 0, number, count + split - 1)
        count += len(numbers) - 1
    return owner, count
