import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alertprod.association.match import UNMATCHED, find_near, match_one_to_one
from alertprod.association.positions import Positions
from alertprod.geometry.sphere import east_and_north, separation_arcsec, sky_positions, unit_vectors

ARCSEC = 1 / 3600
FLOOR = 0.05
OUTLIERS = 0.01


def place(points, ra0=0.0, dec0=0.0):
    """(ra, dec) of (east, north) offsets in arcsec from (ra0, dec0)."""
    points = np.radians(np.asarray(points, dtype=float).reshape(-1, 2) * ARCSEC)
    east, north = east_and_north(ra0, dec0)
    return sky_positions(unit_vectors(ra0, dec0) + points[:, :1] * east + points[:, 1:] * north)


def positions(points, *, err=0.2, covariance=None, ra0=0.0, dec0=0.0):
    """Points about (ra0, dec0) with equal round errors, or covariances of their own."""
    ra, dec = place(points, ra0, dec0)
    if covariance is None:
        covariance = np.zeros((len(ra), 2, 2))
        covariance[:, 0, 0] = covariance[:, 1, 1] = np.broadcast_to(np.asarray(err) ** 2, len(ra))
    return Positions(ra, dec, np.broadcast_to(np.asarray(covariance, dtype=float), (len(ra), 2, 2)))


def match(sources, objects, *, radius=1.0, err=0.2, **where):
    return match_one_to_one(
        positions(sources, err=err, **where), positions(objects, err=err, **where), radius_arcsec=radius
    ).tolist()


def test_nearby_pairs_match_and_others_do_not():
    assert match([(0, 0), (10, 0)], [(10.5, 0), (30, 0), (0, -0.9)]) == [2, 0]
    assert match([(0, 0)], [(1.001, 0)]) == [UNMATCHED]
    assert match([(0, 0)], [(0.999, 0)]) == [0]


@pytest.mark.parametrize("err", [1e-6, 0.01, 1.0, 1e6])
def test_a_lone_pair_within_the_radius_matches_whatever_its_errors(err):
    assert match([(0, 0)], [(0.999, 0)], err=err) == [0]


def test_an_object_is_given_to_one_source_only():
    assert match([(0, 0.4), (0, 0)], [(0, 0.1)]) == [UNMATCHED, 0]


def test_total_is_smallest_where_nearest_first_would_leave_one_alone():
    # Nearest first takes (0.3 -> 0.5) and leaves source 0 alone.
    assert match([(0, 0), (0.3, 0)], [(0.5, 0), (1.05, 0)]) == [0, 1]


def test_two_poor_matches_are_not_better_than_one_perfect_one():
    assert match([(0, 0), (0.95, 0)], [(0, 0), (-0.9, 0)]) == [0, UNMATCHED]


def test_the_more_likely_object_is_taken_not_the_nearer_one():
    # 0.4 arcsec are 8 sigma for the first object, 0.5 are one sigma for the second.
    sources = positions([(0, 0)], err=1e-3)
    objects = positions([(0.4, 0), (-0.5, 0)], err=np.array([1e-3, 0.5]))
    assert match_one_to_one(sources, objects).tolist() == [1]
    alike = positions([(0.4, 0), (-0.5, 0)], err=0.1)
    assert match_one_to_one(sources, alike).tolist() == [0]


def test_direction_of_an_error_counts():
    # An error ellipse that is long from south-west to north-east.
    long_diagonal = [[0.09, 0.085], [0.085, 0.09]]
    sources = positions([(0, 0)], covariance=long_diagonal)
    objects = positions([(0.3, 0.3), (-0.2, 0.2)], err=1e-3)
    assert match_one_to_one(sources, objects).tolist() == [0]
    mirrored = positions([(0, 0)], covariance=[[0.09, -0.085], [-0.085, 0.09]])
    assert match_one_to_one(mirrored, objects).tolist() == [1]


def test_where_no_error_explains_a_separation_the_nearer_is_taken():
    sources, objects = positions([(0, 0)], err=1e-3), positions([(0.9, 0), (-0.7, 0), (0.8, 0.1)], err=1e-3)
    assert match_one_to_one(sources, objects, systematic_err_arcsec=1e-3).tolist() == [1]


def test_a_larger_systematic_error_forgives_more():
    # Sources 0 and 1 compete for object 0; source 1 has object 1 at 0.6 arcsec besides.
    sources, objects = positions([(-0.3, 0), (0.25, 0)], err=0.01), positions([(0, 0), (0.85, 0)], err=0.01)
    assert match_one_to_one(sources, objects, systematic_err_arcsec=0.2).tolist() == [0, 1]


def test_what_is_far_away_changes_nothing_here():
    near_sources, near_objects = [(0, 0), (0.95, 0), (5, 5)], [(0, 0), (-0.9, 0), (5.5, 5)]
    expected = match(near_sources, near_objects)
    far = [(100 + 3 * i, 0.99 * (i % 2)) for i in range(50)]
    there = [(100 + 3 * i, 0) for i in range(50)]
    assert match(near_sources + far, near_objects + there)[:3] == expected


@pytest.mark.parametrize(("ra0", "dec0"), [(0.0, 0.0), (359.9999, -45.0), (120.0, 90.0), (10.0, -89.9999), (77.0, -90)])
def test_poles_and_ra_zero_are_no_edges(ra0, dec0):
    assert match([(0.3, 0), (5, 5), (-8, 2)], [(-8.2, 2.2), (0, 0.2), (5.1, 4.8)], ra0=ra0, dec0=dec0) == [1, 2, 0]


def test_errors_in_ra_are_true_angles_at_any_declination():
    # East by 0.4, north by 0.35: the error that is long towards east prefers the former, at 85 degrees as at 0.
    for dec0 in (0.0, 85.0, -89.9):
        sources = positions([(0, 0)], covariance=np.diag([0.16, 0.0025]), dec0=dec0)
        objects = positions([(0.4, 0), (0, 0.35)], err=1e-3, dec0=dec0)
        assert match_one_to_one(sources, objects).tolist() == [0]


def test_covariances_are_turned_into_one_frame_beside_the_pole():
    # Objects on the other side of the pole: their east is the source's west and so on. Both are long along x.
    along_x = np.diag([0.16, 0.0004])

    def seen_from(ra_deg, dec_deg):
        """The covariance along the plane's x, in the (east, north) of a place; the plane is that of RA 0 at the pole."""
        east, north = east_and_north(ra_deg, dec_deg)
        plane = np.stack(east_and_north(0.0, 90.0))  # x, y
        turn = np.stack([east, north]) @ plane.T
        return turn @ along_x @ turn.T

    offsets = [(0.4, 0.0), (0.0, 0.35)]
    ra, dec = place(offsets, 0.0, 90.0)
    objects = Positions(ra, dec, np.stack([seen_from(a, d) for a, d in zip(ra, dec, strict=True)]))
    source = place([(0.001, -0.001)], 0.0, 90.0)
    sources = Positions(*source, np.stack([seen_from(source[0][0], source[1][0])]))
    assert match_one_to_one(sources, objects).tolist() == [0]


@pytest.mark.parametrize(("sources", "objects", "expected"), [([], [], []), ([], [(0, 0)], []), ([(0, 0)], [], [-1])])
def test_nothing_matches_nothing(sources, objects, expected):
    assert match(sources, objects) == expected


def test_unknown_positions_match_nothing():
    errors = np.broadcast_to(np.eye(2), (2, 2, 2))
    sources = Positions(np.array([np.nan, 10.0]), np.array([0.0, 0.0]), errors)
    objects = Positions(np.array([10.0, 10.0]), np.array([np.nan, 0.0]), errors)
    assert match_one_to_one(sources, objects).tolist() == [UNMATCHED, 1]
    assert find_near(sources, objects, radius_arcsec=1.0).tolist() == [1]


def test_find_near_names_every_object_that_could_match():
    sources, objects = positions([(0, 0), (50, 0)]), positions([(80, 0), (0.9, 0), (0, -0.5), (50, 1.1)])
    assert find_near(sources, objects, radius_arcsec=1.0).tolist() == [1, 2]


POINTS = st.lists(
    st.tuples(st.floats(-2, 2), st.floats(-2, 2)).map(lambda p: (round(p[0], 3), round(p[1], 3))),
    max_size=5,
    unique=True,
)
GRID = st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)).map(lambda p: (p[0] / 2, p[1] / 2)), max_size=8)


def price():
    wide = 0.25
    return -np.log(OUTLIERS / (2 * np.pi * wide)) + 0.5 / wide + 0.01


def cost_of_pair(separation, variance):
    expected = (1 - OUTLIERS) * np.exp(-0.5 * separation**2 / variance) / (2 * np.pi * variance)
    outlier = OUTLIERS * np.exp(-0.5 * separation**2 / 0.25) / (2 * np.pi * 0.25)
    return -np.log(expected + outlier)


@settings(max_examples=150, deadline=None)
@given(POINTS, POINTS)
def test_total_cost_is_that_of_the_best_of_all_assignments(sources, objects):
    answer = match(sources, objects)
    used = [j for j in answer if j != UNMATCHED]
    assert len(used) == len(set(used))
    cost = np.full((len(sources), len(objects) + len(sources)), price())
    for (i, s), (j, o) in itertools.product(enumerate(sources), enumerate(objects)):
        separation = float(separation_arcsec(*place([s]), *place([o]))[0])
        cost[i, j] = cost_of_pair(separation, 2 * 0.2**2 + FLOOR**2) if separation <= 1.0 else np.inf
    best = min(
        (
            sum(cost[i, j] for i, j in enumerate(choice))
            for choice in itertools.permutations(range(cost.shape[1]), len(sources))
        ),
        default=0.0,
    )
    total = sum(price() if j == UNMATCHED else cost[i, j] for i, j in enumerate(answer))
    assert total == pytest.approx(best, abs=1e-5)


@settings(max_examples=150, deadline=None)
@given(st.one_of(POINTS, GRID), st.one_of(POINTS, GRID), st.randoms(use_true_random=False))
@example([(0.0, 0.0)], [(0.5, 0.0), (-0.5, 0.0)], None)
@example([(0.5, 0.0), (-0.5, 0.0), (0.0, 0.5)], [(0.0, 0.0)], None)
def test_order_of_rows_does_not_matter_even_where_assignments_tie(sources, objects, random):
    def pairs(source_order, object_order):
        answer = match([sources[i] for i in source_order], [objects[j] for j in object_order])
        # By place, because alike points are interchangeable.
        return sorted(
            (sources[i], objects[object_order[j]]) for i, j in zip(source_order, answer, strict=True) if j != UNMATCHED
        )

    i, j = list(range(len(sources))), list(range(len(objects)))
    before = pairs(i, j)
    shuffled = (i[::-1], j[::-1]) if random is None else (random.sample(i, len(i)), random.sample(j, len(j)))
    assert pairs(*shuffled) == before


def test_of_points_alike_just_one_is_matched_and_always_the_same():
    answer = match([(0, 0), (0, 0), (0, 0)], [(0.1, 0)])
    assert sorted(answer) == [UNMATCHED, UNMATCHED, 0]
    assert match([(0, 0), (0, 0), (0, 0)], [(0.1, 0)]) == answer


def test_swapping_sources_and_objects_gives_the_same_pairs():
    rng = np.random.default_rng(5)
    sources, objects = rng.uniform(0, 20, (150, 2)), rng.uniform(0, 20, (150, 2))
    forward = {(i, j) for i, j in enumerate(match(sources, objects)) if j != UNMATCHED}
    backward = {(i, j) for j, i in enumerate(match(objects, sources)) if i != UNMATCHED}
    assert forward == backward
    assert len(forward) > 50


def test_moving_the_sky_changes_no_pair():
    rng = np.random.default_rng(6)
    sources, objects = rng.uniform(0, 15, (100, 2)), rng.uniform(0, 15, (120, 2))
    expected = match(sources, objects)
    for ra0, dec0 in ((0.0, 60.0), (200.0, -89.99), (33.0, 90.0)):
        assert match(sources, objects, ra0=ra0, dec0=dec0) == expected


def test_true_pairs_are_found_more_often_by_likelihood_than_by_distance():
    # Half of the objects are known ten times better than the others, in a crowded field.
    rng = np.random.default_rng(7)
    n, side = 4000, 60.0
    objects = rng.uniform(0, side, (n, 2))
    err = np.where(np.arange(n) % 2, 0.02, 0.25)
    sources = objects + rng.normal(0, 1, (n, 2)) * err[:, None]
    by_likelihood = match_one_to_one(positions(sources, err=err), positions(objects, err=0.01))
    blind = match_one_to_one(positions(sources, err=0.18), positions(objects, err=0.01))
    right, right_blind = by_likelihood == np.arange(n), blind == np.arange(n)
    # Of the sources on which the two differ, as many would be right by either if there were nothing in it.
    sigma = np.sqrt(np.count_nonzero(right != right_blind))
    assert np.count_nonzero(right) - np.count_nonzero(right_blind) > 5 * sigma
