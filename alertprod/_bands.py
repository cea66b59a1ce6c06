"""Bands of an image's rows, shared by as many threads as compiled loops may have in this process."""

import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from numba import config as numba_config

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

BAND = 256
"""Rows that are taken at once: enough that a filter's overlap costs little, few enough that threads end together."""

CACHED_ROWS = 64
"""Rows that several operations take one after the other: of 4096 columns of float32 a megabyte, which stays in the
processor's cache meanwhile."""


def row_bands(n_rows: int, *, height: int = CACHED_ROWS, first: int = 0) -> list[slice]:
    """Return slices of `height` rows that cover rows 0 to `n_rows`.

    Parameters
    ----------
    first
        Number of row 0 on a larger grid, at whose multiples of `height` the bands begin.
    """
    edges = [0, *range(height - first % height, n_rows, height), n_rows] if n_rows > 0 else []
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def map_bands(function: Callable[[int, int], _Result], n_rows: int, *, height: int = BAND) -> list[_Result]:
    """Call ``function(first, last)`` for all bands of rows; return what it gave, from the first band to the last.

    Parameters
    ----------
    function
        Must not hold the interpreter's lock where it takes long, and give a band the same whoever its neighbours are:
        where the bands lie does not depend on the number of threads.
    height
        Rows of a band.
    """
    starts = range(0, n_rows, height)
    return map_threads(lambda first: function(first, min(first + height, n_rows)), starts)


def map_threads(
    function: Callable[[_Item], _Result], items: Iterable[_Item], *, n_threads: int | None = None
) -> list[_Result]:
    """Call a function for all items, several at a time; return what it gave, in their order.

    Parameters
    ----------
    n_threads
        As many as ``NUMBA_NUM_THREADS`` says where absent, by default one a core: what a worker is allowed.
    """
    items = list(items)
    n_threads = min(numba_config.NUMBA_NUM_THREADS if n_threads is None else n_threads, len(items))
    if n_threads <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(function, items))
