from dataclasses import replace

import numpy as np
import pytest

from alertprod.detection.footprints import FootprintSet, build_footprints
from alertprod.geometry.box import Box


def three_footprints():
    """Footprints 0 (dropped: no peak), 1 and 2 on a 4 x 5 image."""
    return build_footprints(
        shape=(4, 5),
        sigma=1.5,
        pixels=np.array([0, 7, 6, 2, 13, 18, 19]),
        owner=np.array([0, 1, 1, 1, 2, 2, 2]),
        peak_pixels=np.array([7, 2, 18]),
        peak_owner=np.array([1, 1, 2]),
        peak_significance=np.array([6.0, -7.0, 9.0]),
    )


def test_footprints_are_ordered_by_their_strongest_peak():
    footprints = three_footprints()
    assert len(footprints) == 2
    assert footprints.significance.tolist() == [9.0, 7.0]
    assert footprints.area.tolist() == [3, 3]
    assert footprints.x.tolist() == [3, 2]
    assert footprints.y.tolist() == [3, 0]
    assert footprints.peak_significance.tolist() == [9.0, -7.0, 6.0]
    assert footprints.has_both_signs.tolist() == [False, True]


def test_boxes_are_half_open_and_hold_the_pixels():
    footprints = three_footprints()
    assert footprints.box(0) == Box(x_min=3, y_min=2, x_max=5, y_max=4)
    assert footprints.box(1) == Box(x_min=1, y_min=0, x_max=3, y_max=2)
    y, x = footprints.footprint_pixels(1)
    assert list(zip(x.tolist(), y.tolist(), strict=True)) == [(2, 0), (1, 1), (2, 1)]


def test_strongest_peak_of_each_sign():
    footprints = three_footprints()
    x, y = footprints.strongest_peak(positive=True)
    assert (x.tolist(), y.tolist()) == ([3, 2], [3, 1])
    x, y = footprints.strongest_peak(positive=False)
    assert (x.tolist(), y.tolist()) == ([-1, 2], [-1, 0])


def test_selection_keeps_pixels_and_peaks_together():
    footprints = three_footprints()
    picked = footprints.select(np.array([False, True]))
    assert len(picked) == 1
    np.testing.assert_array_equal(picked.footprint_pixels(0), footprints.footprint_pixels(1))
    assert picked.peak_significance.tolist() == [-7.0, 6.0]
    swapped = footprints.select(np.array([1, 0]))
    assert swapped.significance.tolist() == [7.0, 9.0]
    assert len(footprints.select(np.array([False, False]))) == 0


def test_any_peak_on_looks_at_every_peak():
    mask = np.full((4, 5), 1, dtype=np.int32)
    mask[1, 2] = 6
    assert three_footprints().any_peak_on(mask, 2).tolist() == [False, True]
    assert three_footprints().any_peak_on(mask, 8).tolist() == [False, False]


def test_empty_set_answers_everything():
    empty = three_footprints().select(np.zeros(0, dtype=int))
    assert len(empty) == 0
    assert empty.is_negative.shape == empty.has_both_signs.shape == empty.x.shape == (0,)
    assert empty.any_peak_on(np.zeros((4, 5), dtype=np.int32), 1).shape == (0,)
    assert not empty.compute_labels().any()


def test_footprints_are_not_sky_unless_said():
    footprints = three_footprints()
    assert footprints.is_sky.tolist() == [False, False]
    sky = replace(footprints, is_sky=np.array([False, True]))
    assert sky.select(np.array([1, 0])).is_sky.tolist() == [True, False]
    with pytest.raises(ValueError, match="is_sky"):
        replace(footprints, is_sky=np.array([True, False, True]))


def test_concatenated_sets_keep_their_order_pixels_and_peaks():
    footprints = three_footprints()
    sky = build_footprints(
        shape=(4, 5),
        sigma=9.0,
        pixels=np.array([15]),
        owner=np.array([0]),
        peak_pixels=np.array([15]),
        peak_owner=np.array([0]),
        peak_significance=np.zeros(1),
        is_sky=True,
    )
    joined = FootprintSet.concatenate([footprints, sky])
    assert len(joined) == 3
    assert joined.sigma == footprints.sigma
    assert joined.is_sky.tolist() == [False, False, True]
    assert joined.is_negative.tolist() == [False, False, False]
    for i in (0, 1):
        np.testing.assert_array_equal(joined.footprint_pixels(i), footprints.footprint_pixels(i))
        assert joined.box(i) == footprints.box(i)
    assert (joined.x[2], joined.y[2], joined.n_peaks[2]) == (0, 3, 1)
    np.testing.assert_array_equal(joined.select(~joined.is_sky).pixels, footprints.pixels)


def test_concatenating_nothing_or_other_images_is_refused():
    footprints = three_footprints()
    with pytest.raises(ValueError, match="shapes"):
        FootprintSet.concatenate([])
    with pytest.raises(ValueError, match="shapes"):
        FootprintSet.concatenate([footprints, replace(footprints, shape=(5, 4))])
    assert len(FootprintSet.concatenate([footprints.select(np.zeros(0, dtype=int)), footprints])) == 2
