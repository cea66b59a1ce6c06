"""Memory that a process has freed and keeps for its next planes, in place of asking the system for it each time.

The C library hands large blocks back at once. Each plane of a 4096² exposure is then 64 MB that the system must find
and fill with zeros again: that was a quarter of the processor time of an exposure.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
"""Of ``malloc.h``: free memory at the heap's end above which it is handed back, and the size from which on a block is
asked of the system by itself."""

_BLOCK_BYTES = 1 << 30
"""Larger blocks come and go as before: a plane of 16384² is one."""

_KEPT_BYTES = (1 << 31) - 1
"""The most that ``mallopt`` takes, and more than an exposure needs."""


def keep_freed_memory() -> bool:
    """Keep what this process frees from now on; return whether its C library can.

    Notes
    -----
    The process stays as large as its largest exposure made it: what a limit on its memory has to allow for anyway.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _BLOCK_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
