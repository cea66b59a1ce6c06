import numpy as np
import pytest

from alertprod.detection.glints import GlintTrailConfig, find_glint_trails

SIDE = 4096.0


def make_row(rng, n, *, spacing=50.0, scatter=1.0, x=1500.0, y=2000.0, angle=0.4):
    """Return points along a line, with scatter across it."""
    along, across = spacing * np.arange(n), rng.normal(0.0, scatter, n)
    return (
        x + along * np.cos(angle) - across * np.sin(angle),
        y + along * np.sin(angle) + across * np.cos(angle),
    )


def with_others(rng, row, n):
    x, y = rng.uniform(0.0, SIDE, (2, n))
    return np.append(row[0], x), np.append(row[1], y)


def test_a_row_of_flashes_is_found_with_its_line():
    rng = np.random.default_rng(1)
    row = make_row(rng, 9)
    x, y = with_others(rng, row, 100)
    found = find_glint_trails(x=x, y=y)
    assert found.is_glint[:9].all()
    # What else lies within 15 pixels of 500 pixels of line: 100 * 2 * 15 * 500 / SIDE^2 = 0.1 points.
    assert found.is_glint[9:].sum() <= 1
    (trail,) = found.trails
    assert trail.members[np.isin(trail.members, np.arange(9))].tolist() in (list(range(9)), list(range(9))[::-1])
    assert trail.angle == pytest.approx(0.4, abs=5.0 * 1.0 / (np.sqrt(9) * 130.0))
    assert trail.length == pytest.approx(400.0, abs=10.0)
    assert trail.rms < 3.0


def test_five_alone_are_a_trail_and_four_are_not():
    rng = np.random.default_rng(2)
    for n, expected in ((5, True), (4, False)):
        x, y = make_row(rng, n)
        assert find_glint_trails(x=x, y=y).is_glint.all() == expected


@pytest.mark.parametrize("n", [30, 300])
def test_points_strewn_at_random_are_no_trails(n):
    found = 0
    for seed in range(20):
        x, y = np.random.default_rng([seed, n]).uniform(0.0, SIDE, (2, n))
        found += len(find_glint_trails(x=x, y=y).trails)
    # One in a hundred images is allowed: of 20, none or one with 98 %.
    assert found <= 1


def test_debris_about_bright_stars_is_no_trail():
    rng = np.random.default_rng(4)
    centers = rng.uniform(0.0, SIDE, (6, 2))
    x, y = (np.repeat(centers, 6, axis=0) + rng.normal(0.0, 6.0, (36, 2))).T
    assert not find_glint_trails(x=x, y=y).is_glint.any()


def test_two_trails_are_two():
    rng = np.random.default_rng(5)
    first, second = make_row(rng, 8), make_row(rng, 12, x=3000.0, y=500.0, angle=2.0)
    x, y = with_others(rng, (np.append(first[0], second[0]), np.append(first[1], second[1])), 50)
    found = find_glint_trails(x=x, y=y)
    assert [len(set(trail.members) & set(range(20))) for trail in found.trails] == [12, 8]


def test_a_trail_goes_on_beyond_the_radius():
    rng = np.random.default_rng(6)
    x, y = make_row(rng, 20, spacing=90.0, x=500.0, y=500.0)
    found = find_glint_trails(x=x, y=y)
    assert found.is_glint.all()
    assert len(found.trails) == 1


def test_points_too_far_apart_or_off_the_line_are_no_trail():
    rng = np.random.default_rng(7)
    x, y = make_row(rng, 7, spacing=600.0, x=100.0, y=100.0)
    assert not find_glint_trails(x=x, y=y).is_glint.any()
    x, y = make_row(rng, 7, scatter=120.0)
    assert not find_glint_trails(x=x, y=y).is_glint.any()


def test_the_result_does_not_depend_on_the_order_and_repeats():
    rng = np.random.default_rng(8)
    x, y = with_others(rng, make_row(rng, 9), 200)
    expected = find_glint_trails(x=x, y=y).is_glint
    np.testing.assert_array_equal(find_glint_trails(x=x, y=y).is_glint, expected)
    order = rng.permutation(len(x))
    np.testing.assert_array_equal(find_glint_trails(x=x[order], y=y[order]).is_glint, expected[order])


def test_points_that_are_not_finite_belong_to_no_trail():
    x, y = make_row(np.random.default_rng(9), 9)
    x[4] = np.nan
    found = find_glint_trails(x=x, y=y)
    assert found.is_glint.tolist() == [True] * 4 + [False] + [True] * 4


def test_without_points_there_is_nothing():
    found = find_glint_trails(x=np.zeros(0), y=np.zeros(0))
    assert found.trails == ()
    assert found.is_glint.shape == (0,)


@pytest.mark.parametrize("fields", [{"min_points": 2}, {"radius": 0.0}, {"max_rms": -1.0}, {"max_by_chance": 0.0}])
def test_impossible_settings_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        GlintTrailConfig(**fields)
