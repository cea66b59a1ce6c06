"""Giving memory back to the system: what is free in the middle of a process's heap stays its own until somebody asks.

A first worker of an installation compiles every loop, which takes far more than it leaves behind.
"""

import ctypes


def return_free_memory() -> None:
    """Give back whole pages that nothing lives on; where the C library has no call for that, do nothing.

    Notes
    -----
    Takes a millisecond or two; what is needed again is had again page by page. Once, before the first exposure: what exposures free is kept for their next planes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
