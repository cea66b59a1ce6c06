"""Rows cut into bands, and shared out to threads."""

import threading

import numpy as np
import pytest

from alertprod._bands import map_threads, row_bands


@pytest.mark.parametrize(("n_rows", "height", "first"), [(1, 64, 0), (64, 64, 0), (65, 64, 0), (200, 32, 7), (0, 8, 3)])
def test_bands_cover_each_row_once_and_break_at_multiples(n_rows, height, first):
    bands = row_bands(n_rows, height=height, first=first)
    covered = np.concatenate([np.arange(n_rows)[band] for band in bands]) if bands else np.arange(0)
    np.testing.assert_array_equal(covered, np.arange(n_rows))
    assert all((band.start + first) % height == 0 for band in bands[1:])
    assert all(0 < band.stop - band.start <= height for band in bands)


def test_results_come_in_the_order_of_the_parts():
    barrier = threading.Barrier(2, timeout=10.0)

    def work(number):
        if number < 2:  # both are under way at once
            barrier.wait()
        return number * number

    assert map_threads(work, range(10), n_threads=2) == [number * number for number in range(10)]


def test_one_thread_is_the_callers():
    assert map_threads(lambda _: threading.current_thread(), [0, 1], n_threads=1) == [threading.current_thread()] * 2


def test_what_a_part_raises_is_raised():
    def work(number):
        if number == 3:
            raise KeyError(number)

    for n_threads in (1, 2):
        with pytest.raises(KeyError):
            map_threads(work, range(5), n_threads=n_threads)
