"""Mask planes: one fixed layout in memory, whatever layout a file declares.

Planes keep Rubin's names. In memory the bits are always those of `MASK_PLANES`; files carry their
own layout in ``MP_<name>`` cards and are remapped when read.
"""

from collections.abc import Mapping

import numpy as np

from alertprod._bands import map_threads, row_bands
from alertprod._typing import IntArray

MASK_PLANES: Mapping[str, int] = {
    "BAD": 0,
    "SAT": 1,
    "INTRP": 2,
    "CR": 3,
    "EDGE": 4,
    "DETECTED": 5,
    "DETECTED_NEGATIVE": 6,
    "SUSPECT": 7,
    "NO_DATA": 8,
    "STREAK": 9,
    "INJECTED": 10,
    "SAT_TEMPLATE": 11,
    "INJECTED_TEMPLATE": 12,
    "HIGH_VARIANCE": 13,
    "CROSSTALK": 14,
    "UNMASKEDNAN": 15,
    "SPIKE": 16,
}
"""Bit number of each plane. The first nine are the order of Rubin's afw; append, never renumber."""


def plane_bits(*names: str) -> int:
    """Return the bits of the named planes, or-ed; `KeyError` names a plane that does not exist."""
    bits = 0
    for name in names:
        bits |= 1 << MASK_PLANES[name]
    return bits


def count_set(mask: IntArray, bits: int) -> int:
    """Return the number of pixels with any of the bits, a few rows at a time: no plane of answers is made."""
    return sum(map_threads(lambda rows: int(np.count_nonzero(mask[rows] & bits)), row_bands(len(mask))))


def remap_planes(mask: IntArray, file_planes: Mapping[str, int]) -> tuple[IntArray, list[str]]:
    """Move a file's mask bits to the layout in memory.

    Parameters
    ----------
    mask
        Bits as the file has them, shape ``(ny, nx)``.
    file_planes
        Bit number of each plane in the file, from its ``MP_*`` cards or a profile.

    Returns
    -------
    mask
        int32 of the same shape, bits as in `MASK_PLANES`; `mask` itself where nothing changes.
    dropped
        Names of the file's planes that have no room here and were set somewhere.
    """
    # Which bits occur at all: one pass, so that the many planes nobody set cost nothing.
    present = int(np.bitwise_or.reduce(mask, axis=None)) if mask.size else 0
    same, moved, dropped = 0, [], []
    for name, bit in file_planes.items():
        if not present >> bit & 1:
            continue
        if name not in MASK_PLANES:
            dropped.append(name)
        elif MASK_PLANES[name] == bit:
            same |= 1 << bit
        else:
            moved.append((bit, MASK_PLANES[name]))
    if present == same and mask.dtype == np.int32:
        return mask, dropped
    remapped = (mask & mask.dtype.type(same)).astype(np.int32)
    for bit, ours in moved:
        remapped |= (mask >> bit & 1).astype(np.int32) << ours
    return remapped, dropped
