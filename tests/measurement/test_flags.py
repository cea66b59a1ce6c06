import numpy as np
import pytest

from alertprod.detection.footprints import build_footprints
from alertprod.images.mask import plane_bits
from alertprod.measurement.flags import FLAG_NAMES, measure_pixel_flags


@pytest.fixture
def footprints():
    """One footprint: the square 4 <= x, y < 12 of a 20 x 24 image, peak at (8, 8)."""
    y, x = np.mgrid[4:12, 4:12]
    pixels = (y * 24 + x).ravel()
    return build_footprints(
        shape=(20, 24),
        sigma=1.5,
        pixels=pixels,
        owner=np.zeros(len(pixels), dtype=int),
        peak_pixels=np.array([8 * 24 + 8]),
        peak_owner=np.array([0]),
        peak_significance=np.array([9.0]),
    )


def flags_with(footprints, plane, points, x=8.2, y=7.9):
    mask = np.zeros(footprints.shape, dtype=np.int32)
    for column, row in points:
        mask[row, column] |= plane_bits(plane)
    return measure_pixel_flags(footprints, mask, x=np.array([x]), y=np.array([y]))


@pytest.mark.parametrize(
    ("name", "plane"),
    [
        ("bad", "BAD"),
        ("saturated", "SAT"),
        ("interpolated", "INTRP"),
        ("cr", "CR"),
        ("nodata", "NO_DATA"),
        ("suspect", "SUSPECT"),
        ("streak", "STREAK"),
        ("sat_template", "SAT_TEMPLATE"),
        ("spike", "SPIKE"),
        ("edge", "EDGE"),
    ],
)
def test_a_plane_sets_its_own_flag_and_no_other(footprints, name, plane):
    flags = flags_with(footprints, plane, [(5, 5)])
    assert {flag for flag in FLAG_NAMES if flags.get(flag)[0]} == {name}


def test_pixel_beside_the_footprint_sets_nothing(footprints):
    flags = flags_with(footprints, "BAD", [(12, 8), (3, 8), (8, 3)])
    assert not any(flags.get(flag)[0] for flag in FLAG_NAMES)


def test_center_is_the_three_by_three_about_the_centroid(footprints):
    for column, row, inside in [(9, 9, True), (7, 7, True), (10, 8, False), (8, 6, False)]:
        assert flags_with(footprints, "SAT", [(column, row)]).get("saturatedCenter")[0] == inside
    # Half a pixel further the centre's pixel is the next one.
    assert flags_with(footprints, "SAT", [(10, 8)], x=8.6).get("saturatedCenter")[0]


def test_center_all_needs_all_nine(footprints):
    nine = [(x, y) for x in (7, 8, 9) for y in (7, 8, 9)]
    assert flags_with(footprints, "INTRP", nine).get("interpolatedCenterAll")[0]
    assert not flags_with(footprints, "INTRP", nine[1:]).get("interpolatedCenterAll")[0]
    assert flags_with(footprints, "INTRP", nine[1:]).get("interpolatedCenter")[0]


@pytest.mark.parametrize("point", [(-0.6, 8.0), (8.0, 19.5), (np.nan, 8.0), (1e12, 8.0)])
def test_centroid_off_the_image(footprints, point):
    flags = flags_with(footprints, "BAD", [], x=point[0], y=point[1])
    assert flags.get("offimage")[0]
    assert flags.get("edge")[0]
    assert flags.get("edgeCenter")[0]


def test_centroid_on_the_border_is_on_the_image(footprints):
    flags = flags_with(footprints, "BAD", [], x=-0.4, y=8.0)
    assert not flags.get("offimage")[0]
    assert flags.get("edgeCenter")[0], "its 3 x 3 pixels reach beyond"


def test_unknown_flag_is_an_error(footprints):
    with pytest.raises(KeyError):
        flags_with(footprints, "BAD", []).get("nonsense")
