import ctypes
import os

import numpy as np
import psutil
import pytest

from alertprod.service.memory import return_free_memory


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
