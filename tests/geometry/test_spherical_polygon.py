import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alertprod.geometry.sphere import SphericalPolygon, separation_arcsec, sky_positions, unit_vectors

PLACES = [(10.0, 0.0), (0.0, 0.0), (359.999, 45.0), (123.0, 90.0), (200.0, -90.0), (180.0, -89.9)]


def frame(ra_deg, dec_deg):
    """Unit vectors towards a point, east and north of it (any turn will do at a pole)."""
    a, d = np.radians(ra_deg), np.radians(dec_deg)
    return (
        unit_vectors(ra_deg, dec_deg),
        np.array([-np.sin(a), np.cos(a), 0.0]),
        np.array([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)]),
    )


def project(ra_deg, dec_deg, x, y):
    """Unit vectors of points of the plane that touches the sphere at a place; x and y in its radii."""
    up, east, north = frame(ra_deg, dec_deg)
    points = up + np.multiply.outer(x, east) + np.multiply.outer(y, north)
    return points / np.linalg.norm(points, axis=-1, keepdims=True)


def rectangle(place, x, y, width, height, turn_deg=0.0):
    t = np.radians(turn_deg)
    u, v = np.array([-1, 1, 1, -1]) * width / 2, np.array([-1, -1, 1, 1]) * height / 2
    return SphericalPolygon(project(*place, x + u * np.cos(t) - v * np.sin(t), y + u * np.sin(t) + v * np.cos(t)))


@pytest.mark.parametrize("place", PLACES)
def test_a_rectangle_has_its_own_points_and_no_others(place):
    polygon = rectangle(place, 0.0, 0.0, 0.02, 0.01, turn_deg=30.0)
    rng = np.random.default_rng(3)
    u, v = rng.uniform(-0.02, 0.02, (2, 1000))
    t = np.radians(30.0)
    inside = (np.abs(u) <= 0.01) & (np.abs(v) <= 0.005)
    points = project(*place, u * np.cos(t) - v * np.sin(t), u * np.sin(t) + v * np.cos(t))
    np.testing.assert_array_equal(polygon.contains(points), inside)
    assert not polygon.contains(-points).any()
    assert not polygon.contains(np.full(3, np.nan))


@pytest.mark.parametrize("place", PLACES)
def test_overlap_of_neighbours_follows_their_distance(place):
    first = rectangle(place, 0.0, 0.0, 0.01, 0.01)
    for shift, overlaps in [(0.0, True), (0.0099, True), (0.0101, False), (0.5, False)]:
        for x, y in [(shift, 0.0), (-shift, 0.0), (0.0, shift), (0.0, -shift)]:
            other = rectangle(place, x, y, 0.01, 0.01)
            assert first.overlaps(other) == other.overlaps(first) == overlaps


def test_polygons_that_cross_without_holding_a_corner_overlap():
    assert rectangle(PLACES[1], 0.0, 0.0, 0.1, 0.01).overlaps(rectangle(PLACES[1], 0.0, 0.0, 0.01, 0.1))


def test_a_polygon_overlaps_what_it_holds():
    small, large = rectangle(PLACES[3], 0.01, 0.0, 0.001, 0.001), rectangle(PLACES[3], 0.0, 0.0, 0.1, 0.1)
    assert small.overlaps(large)
    assert large.overlaps(small)


@pytest.mark.parametrize("place", PLACES)
def test_the_other_side_of_the_sphere_does_not_overlap(place):
    ra, dec = place
    first = rectangle(place, 0.0, 0.0, 0.5, 0.1)
    assert not first.overlaps(rectangle((ra + 180.0, -dec), 0.0, 0.0, 0.1, 0.5))


shapes = st.tuples(
    st.floats(-0.3, 0.3), st.floats(-0.3, 0.3), st.floats(0.02, 0.4), st.floats(0.02, 0.4), st.floats(0.0, 180.0)
)


@settings(max_examples=150, deadline=None)
@given(place=st.sampled_from(PLACES), first=shapes, second=shapes)
def test_overlap_agrees_with_sampling(place, first, second):
    a, b = rectangle(place, *first[:4], first[4]), rectangle(place, *second[:4], second[4])

    def grid(polygon):
        u, v = np.meshgrid(np.linspace(0, 1, 41), np.linspace(0, 1, 41))
        corners = polygon.vertices
        points = (
            ((1 - u) * (1 - v))[..., None] * corners[0]
            + (u * (1 - v))[..., None] * corners[1]
            + (u * v)[..., None] * corners[2]
            + ((1 - u) * v)[..., None] * corners[3]
        ).reshape(-1, 3)
        return points / np.linalg.norm(points, axis=-1, keepdims=True)

    sampled = bool(b.contains(grid(a)).any() or a.contains(grid(b)).any())
    if sampled:
        assert a.overlaps(b)
    else:
        # What a grid of 40 steps misses is a sliver: then one of the two must be within a step of the other.
        step = 3600.0 * np.degrees(max(*first[2:4], *second[2:4]) * np.sqrt(0.5) / 40) * 2
        near = b.compute_distance_arcsec(grid(a)).min() < step
        assert near or not a.overlaps(b)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2)), min_size=3, max_size=20), st.sampled_from(PLACES)
)
def test_a_hull_holds_its_points_in_any_order(points, place):
    x, y = np.array(points).T
    vectors = project(*place, x, y)
    spread = np.linalg.svd(np.stack([x - x.mean(), y - y.mean()]), compute_uv=False)
    assume(spread[-1] > 1e-3)
    hull = SphericalPolygon.hull(*sky_positions(vectors))
    # Of points closer than 1e-7 of the extent (0.4 radians at most, 0.01 arcsec) one is kept.
    assert (hull.compute_distance_arcsec(vectors) < 0.02).all()
    again = SphericalPolygon.hull(*sky_positions(vectors[::-1]))
    assert again.compute_area_arcsec2() == pytest.approx(hull.compute_area_arcsec2(), rel=1e-4)


@pytest.mark.parametrize("place", PLACES)
def test_distance_to_a_rectangle_is_that_to_its_nearest_edge_or_corner(place):
    half, arcsec = 1e-3, 3600.0 * np.degrees(1.0)
    polygon = rectangle(place, 0.0, 0.0, 2 * half, 2 * half)
    x = np.array([0.0, 2 * half, 0.0, 2 * half, -3 * half])
    y = np.array([0.0, 0.0, -2 * half, 2 * half, 0.5 * half])
    # The plane is flat to the third order of the angle.
    expected = np.array([0.0, half, half, half * np.sqrt(2), 2 * half]) * arcsec
    np.testing.assert_allclose(polygon.compute_distance_arcsec(project(*place, x, y)), expected, rtol=1e-5, atol=1e-9)


def test_the_area_of_an_octant_is_an_eighth_of_the_sphere():
    octant = SphericalPolygon(np.eye(3))
    assert octant.compute_area_arcsec2() == pytest.approx(np.degrees(np.degrees(np.pi / 2)) * 3600.0**2, rel=1e-12)


@pytest.mark.parametrize("place", PLACES)
def test_a_cap_is_within_its_polygon(place):
    ra, dec = place
    polygon = SphericalPolygon.cap(ra_deg=ra, dec_deg=dec, radius_arcsec=3600.0)
    angle = np.linspace(0.0, 2 * np.pi, 100)
    rim = np.tan(np.radians(1.0)) * 0.999999
    assert polygon.contains(project(*place, rim * np.cos(angle), rim * np.sin(angle))).all()
    assert polygon.radius_arcsec == pytest.approx(3600.0, rel=0.01)
    assert separation_arcsec(*sky_positions(polygon.center), ra, dec) < 1e-6


@pytest.mark.parametrize(
    "vertices",
    [
        np.eye(3)[:2],
        np.eye(3)[[1, 0, 2]],  # clockwise
        np.eye(3)[[0, 0, 1]],
        np.full((4, 3), np.nan),
        project(10.0, 0.0, np.array([0.0, 0.1, 0.02, 0.1]), np.array([0.0, -0.1, 0.0, 0.1])),  # an arrow head
        project(10.0, 0.0, np.array([-50.0, 50.0, 0.0]), np.array([-50.0, -50.0, 50.0])),
    ],
)
def test_what_is_no_convex_polygon_is_refused(vertices):
    with pytest.raises(ValueError, match=r"vert|reaches"):
        SphericalPolygon(vertices)


@pytest.mark.parametrize(
    ("ra_deg", "dec_deg"),
    [
        ([1.0, 2.0], [0.0, 0.0]),
        ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]),
        ([1.0, 2.0, np.nan], [0.0, 1.0, 2.0]),
        ([0.0, 120.0, 240.0], [1.0, 1.0, 1.0]),
    ],
)
def test_points_that_span_no_area_have_no_hull(ra_deg, dec_deg):
    with pytest.raises(ValueError, match=r"hull|beyond"):
        SphericalPolygon.hull(np.array(ra_deg), np.array(dec_deg))
