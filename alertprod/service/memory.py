"""What a worker does with memory that it has freed: it keeps the planes' and gives back what compiling took.

The C library hands large blocks back at once. Each plane of a 4096² exposure is then 64 MB that the system must find
and fill with zeros again: that was a third of the processor time from the pixels to their difference. What is free in
the middle of the heap, on the other hand, stays the process's own until somebody asks, and a first worker of an
installation compiles every loop, which takes far more than it leaves behind.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
"""Of ``malloc.h``: free memory at the heap's end above which it is handed back, the size from which on a block is asked of
the system by itself, and how many heaps there may be."""

_BLOCK_BYTES = 1 << 30
"""Larger blocks come and go as before: a plane of 16384² is one."""

_KEEP_ALL = -1
"""However much is free at the heap's end: the planes of 8192² come to more than the largest number that ``mallopt`` takes."""


def keep_freed_memory(*, n_threads: int) -> bool:
    """Keep what this process frees from now on; return whether its C library can.

    Parameters
    ----------
    n_threads
        How many of its threads work: each has a heap of its own, so that none waits for another. What one heap keeps is of
        no use to the others, so there are no more, but for one: of those who only watch.

    Notes
    -----
    The process stays as large as its largest exposure made it: what a limit on its memory has to allow for anyway.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, _BLOCK_BYTES), (_M_TRIM_THRESHOLD, _KEEP_ALL), (_M_ARENA_MAX, n_threads + 1))
    return all(mallopt(name, value) for name, value in settings)  # the rest means nothing where one is not known


def return_free_memory() -> None:
    """Give back whole pages that nothing lives on; where the C library has no call for that, do nothing.

    Notes
    -----
    Takes a millisecond or two; what is needed again is had again page by page. Once, before the first exposure: what
    exposures free is kept for their next planes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
