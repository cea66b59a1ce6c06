import ctypes
import multiprocessing
import os
import resource
import sys
from multiprocessing.connection import Connection

import numpy as np
import psutil
import pytest

from alertprod.service.memory import keep_freed_memory, return_free_memory

_PLANE_BYTES = 64 << 20


def _count_faults(connection: Connection, *, keep: bool) -> None:
    """Fill a plane several times over; send how many pages the system had to provide after the first time."""
    if keep and not keep_freed_memory(n_threads=2):
        connection.send(None)
        return
    for turn in range(4):
        if turn == 1:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.empty(_PLANE_BYTES, np.uint8).fill(1)
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is of Linux's C libraries")
def test_a_plane_takes_the_memory_of_the_one_before() -> None:
    context = multiprocessing.get_context("spawn")
    faults = {}
    for keep in (False, True):
        ours, theirs = context.Pipe()
        process = context.Process(target=_count_faults, args=(theirs,), kwargs={"keep": keep})
        process.start()
        faults[keep] = ours.recv()
        process.join(10.0)
    if faults[True] is None:
        pytest.skip("this C library has no mallopt")
    # Three planes of pages of 2 MB at the largest; kept, a few of the interpreter's own.
    assert faults[False] >= 3 * 32
    assert faults[True] < 16


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library has no malloc_trim")
def test_what_is_free_between_what_lives_on_is_given_back():
    process = psutil.Process(os.getpid())
    block, n = 100_000, 1000  # smaller than what is mapped apart, so that all of it is one heap
    blocks = [np.ones(block, np.uint8) for _ in range(n)]
    full = process.memory_info().rss
    blocks = blocks[::10]  # they pin the heap from end to end
    return_free_memory()
    given_back = full - process.memory_info().rss
    assert given_back > 0.6 * block * n, "nine of ten are free, and each has whole pages"
    assert all((each == 1).all() for each in blocks)
