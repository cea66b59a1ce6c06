import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alertprod.geometry.box import Box

edges = st.integers(-200, 200)
boxes = st.builds(
    lambda x, y, width, height: Box(x_min=x, y_min=y, x_max=x + width, y_max=y + height),
    edges,
    edges,
    st.integers(0, 50),
    st.integers(0, 50),
)
filled_boxes = boxes.filter(lambda box: box.area > 0)


@given(boxes, boxes)
def test_intersection_does_not_depend_on_order(a, b):
    assert a.intersection(b) == b.intersection(a)
    assert a.intersection(b).area <= min(a.area, b.area)


@given(boxes, boxes, edges, edges)
def test_a_pixel_is_in_the_intersection_when_it_is_in_both(a, b, x, y):
    assert a.intersection(b).contains(x=x, y=y) == (a.contains(x=x, y=y) and b.contains(x=x, y=y))


@given(boxes)
def test_a_box_contains_itself_and_its_intersections(box):
    assert box.contains_box(box)
    assert box.intersection(box) == box


@given(filled_boxes, filled_boxes)
def test_containing_is_intersecting_to_the_same(a, b):
    assert a.contains_box(b) == (a.intersection(b) == b)


@given(filled_boxes, st.integers(0, 20))
def test_growing_and_shrinking_cancel(box, pixels):
    grown = box.grown(pixels)
    assert grown.grown(-pixels) == box
    assert grown.shape == (box.shape[0] + 2 * pixels, box.shape[1] + 2 * pixels)


def test_shrinking_away_leaves_no_area():
    box = Box(x_min=0, y_min=0, x_max=3, y_max=3).grown(-2)
    assert box.shape == (0, 0)
    assert box.area == 0


@given(st.integers(1, 40), st.integers(1, 40))
def test_the_box_of_a_shape_selects_all_of_it(ny, nx):
    box = Box.from_shape((ny, nx))
    assert box.shape == (ny, nx)
    assert np.zeros((ny, nx))[box.slices].shape == (ny, nx)


def test_slices_are_half_open_and_y_comes_first():
    image = np.arange(20).reshape(4, 5)
    assert image[Box(x_min=1, y_min=2, x_max=4, y_max=4).slices].tolist() == [[11, 12, 13], [16, 17, 18]]


def test_slices_below_zero_do_not_wrap():
    with pytest.raises(ValueError, match="wrap"):
        _ = Box(x_min=-1, y_min=0, x_max=3, y_max=3).slices


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.integers(1, 61))
def test_a_centred_box_has_its_size_and_its_point_in_the_middle(x, y, size):
    box = Box.centered(x=x, y=y, size=size)
    assert box.shape == (size, size)
    assert abs((box.x_min + box.x_max - 1) / 2 - x) <= 0.5 + 1e-9
    assert abs((box.y_min + box.y_max - 1) / 2 - y) <= 0.5 + 1e-9


def test_an_odd_box_is_centred_on_the_pixel_of_its_point():
    assert Box.centered(x=10.4, y=9.6, size=3) == Box(x_min=9, y_min=9, x_max=12, y_max=12)


def test_a_point_belongs_to_the_pixel_whose_centre_is_nearest():
    box = Box(x_min=2, y_min=2, x_max=4, y_max=4)
    assert box.contains(x=1.5, y=3.49)
    assert not box.contains(x=1.49, y=3.0)
    assert not box.contains(x=3.5, y=3.0)
