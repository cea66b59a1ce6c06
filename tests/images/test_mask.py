import numpy as np
import pytest

from alertprod.images.mask import MASK_PLANES, plane_bits, remap_planes


def test_the_first_planes_are_numbered_as_rubins():
    rubin = ("BAD", "SAT", "INTRP", "CR", "EDGE", "DETECTED", "DETECTED_NEGATIVE", "SUSPECT", "NO_DATA")
    assert [MASK_PLANES[plane] for plane in rubin] == list(range(9))


def test_every_plane_has_a_bit_of_its_own_in_an_int32():
    assert len(set(MASK_PLANES.values())) == len(MASK_PLANES)
    assert 0 <= min(MASK_PLANES.values()) <= max(MASK_PLANES.values()) < 31


def test_bits_are_or_ed_and_unknown_planes_named():
    assert plane_bits("BAD", "CR") == 0b1001
    assert plane_bits() == 0
    with pytest.raises(KeyError, match="NOPE"):
        plane_bits("BAD", "NOPE")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_bits_move_to_the_layout_in_memory(dtype):
    mask = np.array([[0, 1, 2], [4, 5, 7]], dtype=dtype)
    remapped, dropped = remap_planes(mask, {"SAT": 0, "BAD": 1, "VIGNETTED": 2})
    sat, bad = plane_bits("SAT"), plane_bits("BAD")
    assert remapped.tolist() == [[0, sat, bad], [0, sat, sat | bad]]
    assert remapped.dtype == np.int32
    assert dropped == ["VIGNETTED"]


def test_planes_nobody_set_are_not_reported():
    remapped, dropped = remap_planes(np.array([[1]]), {"BAD": 0, "VIGNETTED": 5})
    assert remapped.tolist() == [[1]]
    assert dropped == []


def test_bits_without_a_name_do_not_survive():
    remapped, _ = remap_planes(np.array([[0b10100001]], dtype=np.int32), {"BAD": 0})
    assert remapped.tolist() == [[1]]


def test_planes_may_swap_places():
    swapped = {"BAD": MASK_PLANES["SAT"], "SAT": MASK_PLANES["BAD"], "CR": MASK_PLANES["CR"]}
    mask = np.array([[plane_bits("BAD"), plane_bits("SAT"), plane_bits("CR")]], dtype=np.int32)
    assert remap_planes(mask, swapped)[0].tolist() == [[plane_bits("SAT"), plane_bits("BAD"), plane_bits("CR")]]
