"""Bands of an image's rows, shared by as many threads as compiled loops may have in this process.

The threads are kept from call to call: an exposure has some seventy such calls, and starting threads for each took a
tenth of a second.
"""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Generic, TypeVar

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
    return map_threads(lambda rows: function(rows.start, rows.stop), row_bands(n_rows, height=height))


def map_threads(
    function: Callable[[_Item], _Result], items: Iterable[_Item], *, n_threads: int | None = None
) -> list[_Result]:
    """Call a function for all items, several at a time; return what it gave, in their order.

    Parameters
    ----------
    n_threads
        As many as ``NUMBA_NUM_THREADS`` says where absent, by default one a core: what a worker is allowed. The caller's
        is one of them, so that a function may itself call this: where all others are busy it does everything alone.

    Notes
    -----
    Of several errors the one of the first item is raised, once nobody is at work any more; what was not begun by then
    is left.
    """
    work = _Work(function, list(items))
    n_threads = numba_config.NUMBA_NUM_THREADS if n_threads is None else n_threads
    n_helpers = min(n_threads, len(work.results)) - 1
    helpers = [_pool(n_threads - 1).submit(work.take_part) for _ in range(n_helpers)]
    work.take_part()
    for helper in helpers:
        if not helper.cancel():
            helper.result()
    if work.errors:
        raise work.errors[min(work.errors)]
    return work.results


class _Work(Generic[_Item, _Result]):
    """Items that several threads do, each the next one that nobody has."""

    def __init__(self, function: Callable[[_Item], _Result], items: list[_Item]) -> None:
        self._function, self._left = function, deque(enumerate(items))
        self.results: list[_Result] = [None] * len(items)  # type: ignore[list-item]  # until each is done
        self.errors: dict[int, BaseException] = {}

    def take_part(self) -> None:
        """Do items until there are none, or one has failed."""
        while self._left and not self.errors:
            try:
                number, item = self._left.popleft()
            except IndexError:  # another thread was quicker
                return
            try:
                self.results[number] = self._function(item)
            except BaseException as error:  # noqa: BLE001 - the caller raises it
                self.errors[number] = error


@cache
def _pool(n_helpers: int) -> ThreadPoolExecutor:
    """Return the threads of those who may have so many beside their own.

    Never more: the C library gives the threads of a worker a heap each (`service.memory`), and one too many would share
    the heap of another: a convolution of 4096² then took 0.65 s where it takes 0.35.
    """
    return ThreadPoolExecutor(n_helpers, thread_name_prefix="bands")


# Threads do not live on in a forked process.
os.register_at_fork(after_in_child=_pool.cache_clear)
