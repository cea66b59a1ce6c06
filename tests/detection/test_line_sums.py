"""Sums along lines, against lines drawn pixel by pixel."""

import numpy as np
import pytest

from alertprod.detection import _streak_loops as loops
from alertprod.detection.line_sums import compute_distances, find_lines, line_through
from alertprod.images.mask import plane_bits

SHAPE = (64, 80)


def offsets(height: int, t: int) -> list[int]:
    """Columns of a digital line of `height` rows that ends `t` columns right of where it begins."""
    if height == 1:
        return [0]
    half = offsets(height // 2, t // 2)
    return half + [(t + 1) // 2 + column for column in half]


@pytest.mark.parametrize(("n_rows", "height"), [(8, 8), (6, 8), (16, 16), (9, 16), (61, 64)])
def test_sums_are_those_of_every_digital_line(n_rows, height):
    n_columns = 11
    image = np.random.default_rng(1).normal(size=(n_rows, n_columns)).astype(np.float32)
    padded = np.zeros((height, height + n_columns), dtype=np.float32)
    padded[:n_rows, height:] = image
    wide = np.pad(image, ((0, height - n_rows), (height, height)))
    out = np.zeros((2, height, height + n_columns), dtype=np.float32)
    loops.sum_lines(padded, np.zeros_like(padded), n_rows, height, height // 2, out)
    for level, strip_height in enumerate((height // 2, height)):
        for strip in range(height // strip_height):
            first = strip * strip_height
            for t in range(strip_height):
                for x in range(-strip_height, n_columns):
                    rows = np.arange(strip_height) + first
                    columns = np.array(offsets(strip_height, t)) + x + height
                    expected = wide[rows, columns].sum()
                    assert out[level, first + t, x + height] == pytest.approx(expected, abs=1e-5)


def test_bins_hold_cut_pulls_and_numbers_of_usable_pixels():
    rng = np.random.default_rng(2)
    image = rng.normal(0.0, 4.0, (10, 13)).astype(np.float32)
    variance = rng.uniform(0.5, 2.0, image.shape).astype(np.float32)
    mask = np.where(rng.random(image.shape) < 0.2, plane_bits("BAD"), 0).astype(np.int32)
    image[3, 4], variance[5, 6] = np.nan, -1.0
    sums, numbers = loops.bin_pulls(image, variance, mask, plane_bits("BAD"), 4, 3.0)
    usable = (mask == 0) & np.isfinite(image) & (variance > 0)
    pulls = np.zeros(image.shape)
    pulls[usable] = np.clip(image[usable] / np.sqrt(variance[usable]), -3.0, 3.0)
    padded = [np.pad(plane, ((0, 2), (0, 3))).reshape(3, 4, 4, 4).sum(axis=(1, 3)) for plane in (pulls, usable)]
    np.testing.assert_allclose(sums, padded[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(numbers, padded[1])


def test_strongest_line_of_each_block_is_that_of_a_search_by_hand():
    rng = np.random.default_rng(3)
    height, block, width = 16, 4, 3
    sums = rng.normal(size=(height, 40)).astype(np.float32)
    numbers = rng.uniform(0.0, 2.0, sums.shape).astype(np.float32)
    found = loops.find_strong_lines(sums, numbers, height, height, width, 1.0, 1.5, block)
    window = np.lib.stride_tricks.sliding_window_view
    total, number = window(sums, width, axis=1).sum(axis=2), window(numbers, width, axis=1).sum(axis=2)
    significance = np.where(number >= 1.0, total / np.sqrt(np.maximum(number, 1e-9)), 0.0)
    for row in found:
        strip, t, x, value, scatter = row
        assert (strip, value) == (0, pytest.approx(significance[int(t), int(x)], rel=1e-4))
        i, j = int(t) // block * block, int(x) // block * block
        assert abs(value) == pytest.approx(np.abs(significance[i : i + block, j : j + block]).max(), rel=1e-4)
        assert abs(value) > 1.5 * scatter
        assert scatter >= 1.0
    blocks = [
        np.abs(significance[i : i + block, j : j + block]).max() > 1.5 * found[:, 4].max()
        for i in range(0, height, block)
        for j in range(0, significance.shape[1], block)
    ]
    assert len(found) >= sum(blocks) > 0


def test_pure_noise_has_unit_significance():
    rng = np.random.default_rng(4)
    sums = rng.normal(size=(128, 128)).astype(np.float32)
    found = find_lines(sums, np.ones_like(sums), widths=(2,), threshold=0.0, min_length=30.0)
    # The strongest of 64 lines each: of that many normal deviates the mean of the largest is 2.7.
    assert 2.0 < np.median(np.abs(found.significance)) < 3.2
    assert found.noise.mean() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("ends", [(0, 10, 79, 40), (30, 0, 42, 63), (0, 50, 79, 20), (50, 0, 20, 63), (5, 0, 68, 63)])
def test_a_line_in_any_direction_is_the_strongest_found(ends):
    image = np.zeros(SHAPE, dtype=np.float32)
    t = np.linspace(0.0, 1.0, 400)
    columns, rows = (np.rint(a + (b - a) * t).astype(int) for a, b in ((ends[0], ends[2]), (ends[1], ends[3])))
    image[rows, columns] = 1.0
    found = find_lines(image, np.ones_like(image), widths=(2,), threshold=3.0, min_length=20.0)
    best = int(np.argmax(found.significance / found.noise))
    true_line = line_through(ends, SHAPE)
    assert true_line is not None
    # A digital line is within a pixel of the straight one; its two ends are whole pixels.
    assert compute_distances(np.array(true_line.ends), found.ends[best : best + 1])[0] < 1.5


def test_exact_lines_have_the_significance_of_their_pixels():
    rng = np.random.default_rng(5)
    sums, numbers = rng.normal(size=SHAPE).astype(np.float32), rng.uniform(1.0, 2.0, SHAPE).astype(np.float32)
    ends = np.array([[-0.5, 20.0, 79.5, 20.0], [33.0, -0.5, 33.0, 63.5], [10.0, 0.0, 73.0, 63.0]])
    significance = loops.compute_line_significance(sums, numbers, ends, np.array([1, 2, 1]))
    diagonal = (np.arange(64), np.arange(10, 74))
    cuts = [(20, slice(None)), (slice(None), slice(33, 35)), diagonal]
    for value, cut in zip(significance, cuts, strict=True):
        assert value == pytest.approx(sums[cut].sum() / np.sqrt(numbers[cut].sum()), rel=1e-5)


@pytest.mark.parametrize("angle", [0.0, 17.0, 45.0, 80.0, 90.0, 135.0, 200.0])
def test_profile_holds_each_pixel_at_its_place_along_and_across(angle):
    rng = np.random.default_rng(6)
    image = rng.normal(size=SHAPE).astype(np.float32)
    variance, mask = np.full(SHAPE, 4.0, dtype=np.float32), np.zeros(SHAPE, dtype=np.int32)
    mask[30, 40] = 1
    dx, dy = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    x0, y0, length, half, n = 40.3 - 20.0 * dx, 31.6 - 20.0 * dy, 40.0, 6.0, 8
    sums, numbers = loops.sum_profile(image, variance, mask, 1, x0, y0, dx, dy, length, n, half, 0.5, 1.2)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    u = (x - x0) * dx + (y - y0) * dy
    v = (y - y0) * dx - (x - x0) * dy
    inside = (np.abs(v) < half) & (u >= 0) & (u < length) & (mask == 0)
    i, j = (np.floor(u[inside] / length * n).astype(int), np.floor((v[inside] + half) / 0.5).astype(int))
    expected = np.zeros_like(sums)
    np.add.at(expected, (i, j), np.clip(image[inside] / 2.0, -1.2, 1.2))
    counts = np.zeros_like(numbers)
    np.add.at(counts, (i, j), 1.0)
    # Pixels on the very border of a cell may fall on either side of it.
    assert np.abs(counts - numbers).sum() <= 4
    assert np.abs(sums - expected).max() <= 2.4
    assert sums.sum() == pytest.approx(expected.sum(), abs=2.4)


@pytest.mark.parametrize("angle", [0.0, 17.0, 45.0, 80.0, 90.0, 135.0])
def test_painted_are_the_pixels_within_the_half_width(angle):
    dx, dy = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    painted = np.zeros(SHAPE, dtype=bool)
    loops.paint_line(40.21, 30.37, dx, dy, 3.3, painted)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    np.testing.assert_array_equal(painted, np.abs((y - 30.37) * dx - (x - 40.21) * dy) <= 3.3)


def test_lines_end_on_the_border_of_the_outer_pixels():
    line = line_through((10.0, 10.0, 20.0, 10.0), SHAPE)
    assert line is not None
    assert line.ends == pytest.approx((-0.5, 10.0, 79.5, 10.0))
    steep = line_through((10.0, 40.0, 10.0, 30.0), SHAPE)
    assert steep is not None
    assert steep.ends == pytest.approx((10.0, 63.5, 10.0, -0.5))
    assert line_through((0.0, 70.0, 10.0, 70.0), SHAPE) is None
    assert line_through((-10.0, 0.0, 0.0, -10.0), SHAPE) is None


def test_moving_a_line_across_keeps_it_from_edge_to_edge():
    line = line_through((0.0, 20.0, 79.0, 30.0), SHAPE)
    assert line is not None
    moved = line.shift(2.0, -3.0, SHAPE)
    assert moved is not None
    dx, dy = line.direction_x, line.direction_y
    begin, end = np.array(line.ends[:2]), np.array(line.ends[2:])
    through = line_through((*(begin + 2.0 * np.array([-dy, dx])), *(end - 3.0 * np.array([-dy, dx]))), SHAPE)
    assert through is not None
    assert moved.ends == pytest.approx(through.ends)
