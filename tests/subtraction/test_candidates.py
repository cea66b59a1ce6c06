import numpy as np
import pytest

from alertprod.images.mask import plane_bits
from alertprod.subtraction.candidates import CandidateList, StampGeometry
from alertprod.subtraction.config import AlardLuptonConfig

GEOMETRY = StampGeometry.for_kernel(21)
NOTHING = np.zeros(0, dtype=np.int64)


@pytest.fixture
def pair(rng, make_image):
    return tuple(make_image(rng.normal(size=(300, 300)), 1.0) for _ in range(2))


def candidates_of(pair, x, y, flux=None, **settings):
    return CandidateList(
        *pair,
        x=np.asarray(x, dtype=float),
        y=np.asarray(y, dtype=float),
        flux=None if flux is None else np.asarray(flux, dtype=float),
        geometry=GEOMETRY,
        config=AlardLuptonConfig(**settings),
    )


def test_stamps_are_those_of_the_reference():
    assert (2 * GEOMETRY.convolved + 1, 2 * GEOMETRY.fitted + 1) == (43, 23)


def test_each_cell_offers_its_brightest(pair):
    x, y = [30.0, 60.0, 90.0, 200.0], [60.0, 60.0, 60.0, 60.0]
    candidates = candidates_of(pair, x, y, [1.0, 3.0, 2.0, 0.5], n_star_per_cell=2)
    assert sorted(candidates.take(NOTHING)) == [1, 2, 3]


def test_a_rejected_star_lets_the_next_move_up(pair):
    candidates = candidates_of(pair, [30.0, 60.0, 90.0], [60.0] * 3, [1.0, 3.0, 2.0], n_star_per_cell=1)
    assert list(candidates.take(NOTHING)) == [1]
    assert list(candidates.take(np.array([1]))) == []
    assert list(candidates.take(NOTHING)) == [2]
    assert list(candidates.take(NOTHING)) == [0]


def test_order_of_the_input_does_not_matter(pair, rng):
    x, y = rng.uniform(25, 270, 60), rng.uniform(25, 270, 60)
    shuffled = rng.permutation(60)
    first = candidates_of(pair, x, y).take(NOTHING)
    second = candidates_of(pair, x[shuffled], y[shuffled]).take(NOTHING)
    assert np.array_equal(first, shuffled[second])


def test_stamps_off_the_image_and_positions_that_are_not_numbers_are_left_out(pair):
    candidates = candidates_of(pair, [10.0, 150.0, np.nan, 150.0], [150.0, 290.0, 150.0, 150.0])
    assert list(candidates.take(NOTHING)) == [3]


def test_pixels_do_not_count_twice(pair):
    candidates = candidates_of(pair, [100.0, 110.0, 140.0], [100.0, 100.0, 100.0], [1.0, 2.0, 3.0])
    assert sorted(candidates.take(NOTHING)) == [1, 2]


@pytest.mark.parametrize(
    ("image", "offset", "usable"),
    [(0, 20, False), (0, 22, True), (1, 2, False), (1, 8, True), (1, 12, True)],
)
def test_bad_pixels_drop_a_star_by_where_they_are(pair, image, offset, usable):
    pair[image].mask[150, 150 + offset] = plane_bits("BAD")
    found = candidates_of(pair, [150.0], [150.0]).take(NOTHING)
    assert (len(found) == 1) == usable


def test_reference_strictness_is_a_setting(pair):
    pair[1].mask[150, 158] = plane_bits("BAD")
    assert len(candidates_of(pair, [150.0], [150.0], max_bad_fraction=0.0).take(NOTHING)) == 0


def test_limit_on_the_image_keeps_the_best_of_each_cell(pair):
    x, y = [30.0, 70.0, 200.0, 240.0], [60.0] * 4
    found = candidates_of(pair, x, y, [4.0, 3.0, 2.0, 1.0], max_kernel_sources=2).take(NOTHING)
    assert sorted(found) == [0, 2]


def test_bad_pixels_have_no_weight_and_no_value(pair):
    pair[1].mask[150, 158] = plane_bits("BAD")
    pair[1].image[150, 158] = np.nan
    candidates = candidates_of(pair, [150.0], [150.0])
    source, _, target, variance, good = candidates.extract(candidates.take(NOTHING))
    assert source.shape == (1, 43, 43)
    assert target.shape == variance.shape == good.shape == (1, 23, 23)
    assert not good[0, 11, 19]
    assert good.sum() == good.size - 1
    assert target[0, 11, 19] == 0.0
    assert np.isfinite(target).all()


@pytest.mark.parametrize("far", [1e7, 1e30, -1e300, np.inf])
def test_positions_off_any_image_are_left_out(pair, far):
    candidates = candidates_of(pair, [far, 150.0, 150.0], [150.0, far, 150.0])
    assert list(candidates.take(NOTHING)) == [2]
    assert set(candidates.refused) == {0, 1}
