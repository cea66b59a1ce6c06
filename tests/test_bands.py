import itertools
import threading

import numpy as np
import pytest

from alertprod import _bands
from alertprod._bands import map_bands, map_threads, row_bands
from alertprod.detection.background import estimate_background
from alertprod.detection.line_sums import find_lines
from alertprod.detection.matched_filter import compute_significance
from alertprod.images.masked_image import MaskedImage
from alertprod.images.pulls import compute_quantiles


@pytest.fixture(params=[1, 2, 5])
def n_threads(request, monkeypatch):
    monkeypatch.setattr(_bands.numba_config, "NUMBA_NUM_THREADS", request.param)
    return request.param


def test_bands_cover_all_rows_once_and_in_order(n_threads):
    found = map_bands(lambda first, last: list(range(first, last)), 23, height=5)
    assert [len(band) for band in found] == [5, 5, 5, 5, 3]
    assert list(itertools.chain.from_iterable(found)) == list(range(23))
    assert map_bands(lambda first, last: (first, last), 0) == []


@pytest.mark.parametrize(("n_rows", "height", "first"), [(1, 64, 0), (64, 64, 0), (65, 64, 0), (200, 32, 7), (0, 8, 3)])
def test_slices_cover_each_row_once_and_break_at_multiples(n_rows, height, first):
    bands = row_bands(n_rows, height=height, first=first)
    covered = np.concatenate([np.arange(n_rows)[band] for band in bands]) if bands else np.arange(0)
    np.testing.assert_array_equal(covered, np.arange(n_rows))
    assert all((band.start + first) % height == 0 for band in bands[1:])
    assert all(0 < band.stop - band.start <= height for band in bands)


def test_as_many_threads_work_as_there_may_be(n_threads):
    # Each waits for all the others: with fewer threads this never ends.
    barrier = threading.Barrier(n_threads, timeout=20.0)
    assert map_threads(lambda item: barrier.wait() >= 0 and item, range(n_threads)) == list(range(n_threads))


def test_no_more_threads_work_than_there_may_be(n_threads):
    seen = set()

    def look(item):
        seen.add(threading.get_ident())
        return item

    for _ in range(200):  # a helper is asked again before it has gone to rest
        assert map_threads(lambda item: sum(map_threads(look, range(item))), range(4)) == [0, 0, 1, 3]
    assert len(seen) <= n_threads


def test_one_thread_is_the_callers():
    assert map_threads(lambda _: threading.current_thread(), [0, 1], n_threads=1) == [threading.current_thread()] * 2


def test_an_error_in_one_band_is_the_callers(n_threads):
    def fail_in_the_last(first, last):
        if last == 23:
            raise ArithmeticError(first)

    with pytest.raises(ArithmeticError, match="20"):
        map_bands(fail_in_the_last, 23, height=5)


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    rng = np.random.default_rng(1)
    image = rng.normal(size=(600, 90)).astype(np.float32)
    planes = MaskedImage(image, np.zeros(image.shape, np.int32), np.ones_like(image))
    kernel = np.outer(*2 * [np.array([1.0, 3.0, 5.0, 3.0, 1.0])])
    found = []
    for count in (1, 3):
        monkeypatch.setattr(_bands.numba_config, "NUMBA_NUM_THREADS", count)
        background = estimate_background(image, np.ones(image.shape, dtype=bool), bin_size=9)
        lines = find_lines(image[:64, :64], np.ones((64, 64), np.float32), widths=(2,), threshold=2.0, min_length=20.0)
        found.append(
            (
                compute_significance(planes, kernel, bad_bits=0),
                background.compute_image(),
                lines.ends,
                compute_quantiles(image, (0.25, 0.75)),
            )
        )
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
