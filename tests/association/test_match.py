import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alertprod.association.match import UNMATCHED, match_one_to_one
from alertprod.geometry.sphere import separation_arcsec, sky_positions, unit_vectors

ARCSEC = 1 / 3600


def match(sources, objects, radius=1.0, ra0=0.0, dec0=0.0):
    """Match points given as (east, north) arcsec about (ra0, dec0)."""
    s, o = place(sources, ra0, dec0), place(objects, ra0, dec0)
    return match_one_to_one(
        source_ra_deg=s[0], source_dec_deg=s[1], object_ra_deg=o[0], object_dec_deg=o[1], radius_arcsec=radius
    ).tolist()


def place(points, ra0, dec0):
    points = np.radians(np.asarray(points, dtype=float).reshape(-1, 2) * ARCSEC)
    a, d = np.radians(ra0), np.radians(dec0)
    center = unit_vectors(ra0, dec0)
    east = np.array([-np.sin(a), np.cos(a), 0.0])
    north = np.array([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)])
    return sky_positions(center + points[:, :1] * east + points[:, 1:] * north)


def test_nearby_pairs_match_and_others_do_not():
    assert match([(0, 0), (10, 0)], [(10.5, 0), (30, 0), (0, -0.9)]) == [2, 0]
    assert match([(0, 0)], [(1.001, 0)]) == [UNMATCHED]
    assert match([(0, 0)], [(0.999, 0)]) == [0]


def test_an_object_is_given_to_one_source_only():
    assert match([(0, 0.4), (0, 0)], [(0, 0.1)]) == [UNMATCHED, 0]


def test_total_is_smallest_where_nearest_first_would_leave_one_alone():
    # Nearest first takes (0.3 -> 0.5) and leaves source 0 alone.
    assert match([(0, 0), (0.3, 0)], [(0.5, 0), (1.05, 0)]) == [0, 1]


def test_two_poor_matches_are_not_better_than_one_perfect_one():
    # 0.9^2 + 0.95^2 is more than a perfect match and the price of none.
    assert match([(0, 0), (0.95, 0)], [(0, 0), (-0.9, 0)]) == [0, UNMATCHED]


@pytest.mark.parametrize(("ra0", "dec0"), [(0.0, 0.0), (359.9999, -45.0), (120.0, 90.0), (10.0, -89.9999)])
def test_poles_and_ra_zero_are_no_edges(ra0, dec0):
    assert match([(0.3, 0), (5, 5), (-8, 2)], [(-8.2, 2.2), (0, 0.2), (5.1, 4.8)], ra0=ra0, dec0=dec0) == [1, 2, 0]


@pytest.mark.parametrize(("sources", "objects", "expected"), [([], [], []), ([], [(0, 0)], []), ([(0, 0)], [], [-1])])
def test_nothing_matches_nothing(sources, objects, expected):
    assert match(sources, objects) == expected


def test_unknown_positions_match_nothing():
    answer = match_one_to_one(
        source_ra_deg=np.array([np.nan, 10.0]),
        source_dec_deg=np.array([0.0, 0.0]),
        object_ra_deg=np.array([10.0, 10.0]),
        object_dec_deg=np.array([np.nan, 0.0]),
    )
    assert answer.tolist() == [UNMATCHED, 1]


POINTS = st.lists(
    st.tuples(st.floats(-2, 2), st.floats(-2, 2)).map(lambda p: (round(p[0], 3), round(p[1], 3))),
    max_size=5,
    unique=True,
)


@settings(max_examples=150, deadline=None)
@given(POINTS, POINTS)
def test_total_cost_is_that_of_the_best_of_all_assignments(sources, objects):
    answer = match(sources, objects)
    used = [j for j in answer if j != UNMATCHED]
    assert len(used) == len(set(used))
    cost = np.full((len(sources), len(objects) + len(sources)), 1.01)
    for (i, s), (j, o) in itertools.product(enumerate(sources), enumerate(objects)):
        separation = float(separation_arcsec(*place([s], 0, 0), *place([o], 0, 0))[0])
        cost[i, j] = separation**2 if separation <= 1.0 else np.inf
    best = min(
        (
            sum(cost[i, j] for i, j in enumerate(choice))
            for choice in itertools.permutations(range(cost.shape[1]), len(sources))
        ),
        default=0.0,
    )
    total = sum(1.01 if j == UNMATCHED else cost[i, j] for i, j in enumerate(answer))
    assert total == pytest.approx(best, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(POINTS, POINTS, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(sources, objects, random):
    before = match(sources, objects)
    shuffled_sources, shuffled_objects = random.sample(sources, len(sources)), random.sample(objects, len(objects))
    after = match(shuffled_sources, shuffled_objects)

    def cost(order, others, answer):
        pairs = [(order[i], others[j]) for i, j in enumerate(answer) if j != UNMATCHED]
        return round(sum((s[0] - o[0]) ** 2 + (s[1] - o[1]) ** 2 for s, o in pairs), 6), len(pairs)

    # Points on a grid can tie exactly; then the pairs may differ, but never what they cost.
    assert cost(sources, objects, before) == cost(shuffled_sources, shuffled_objects, after)


def test_swapping_sources_and_objects_gives_the_same_pairs():
    rng = np.random.default_rng(5)
    sources, objects = rng.uniform(0, 20, (150, 2)), rng.uniform(0, 20, (150, 2))
    forward = {(i, j) for i, j in enumerate(match(sources, objects)) if j != UNMATCHED}
    backward = {(i, j) for j, i in enumerate(match(objects, sources)) if i != UNMATCHED}
    assert forward == backward
    assert len(forward) > 50
