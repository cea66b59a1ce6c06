"""Compiled loop of `alertprod.detection.blends`: flooding from the peaks down. Plain arrays in and out."""

import numpy as np
from numba import njit

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.detection._loops import find_root


@njit(cache=True, nogil=True)
def flood(
    level: FloatArray,
    pixels: IntArray,
    island: IntArray,
    is_peak: BoolArray,
    nx: int,
    min_dip: float,
    dip_share: float,
    peak_share: float,
) -> IntArray:
    """Return the summit that each of a list of pixels belongs to, as an index into the list.

    `pixels`: flat indices, rising; `level`, `island`, `is_peak`: of each of them. Pixels are taken from the highest
    down. Where one joins two summits, the lower of them is forgotten unless it is a peak, is `peak_share` of the higher
    one, and the pixel lies below it by more than `min_dip` and `dip_share` of it.
    """
    n = pixels.size
    parent = np.full(n, -1, dtype=np.int64)
    near = np.empty(8, dtype=np.int64)
    for i in np.argsort(-level, kind="mergesort"):
        p, x = pixels[i], pixels[i] % nx
        count = 0
        highest = -1
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                if (dy == 0 and dx == 0) or x + dx < 0 or x + dx >= nx:
                    continue
                j = np.searchsorted(pixels, p + dy * nx + dx)
                if j == n or pixels[j] != p + dy * nx + dx or parent[j] < 0 or island[j] != island[i]:
                    continue
                near[count] = j
                count += 1
                if highest < 0 or level[j] > level[highest]:
                    highest = j
        if count == 0:
            parent[i] = i
            continue
        top = find_root(parent, highest)
        for k in range(count):
            summit = find_root(parent, near[k])
            if level[summit] > level[top]:
                top = summit
        for k in range(count):
            summit = find_root(parent, near[k])
            if summit == top:
                continue
            dip = level[summit] - level[i]
            stays = is_peak[summit] and level[summit] >= peak_share * level[top]
            if not (stays and dip > min_dip and dip > dip_share * level[summit]):
                parent[summit] = top
        parent[i] = find_root(parent, highest)
    summits = np.empty(n, dtype=np.int64)
    for i in range(n):
        summits[i] = find_root(parent, i)
    return summits
