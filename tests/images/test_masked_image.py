import numpy as np
import pytest

from alertprod.geometry.box import Box
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage


def make_image():
    return MaskedImage(
        np.arange(12, dtype=np.float32).reshape(3, 4), np.zeros((3, 4), np.int32), np.ones((3, 4), np.float32)
    )


def test_planes_must_share_one_shape():
    with pytest.raises(ValueError, match="shapes"):
        MaskedImage(np.zeros((3, 4), np.float32), np.zeros((4, 3), np.int32), np.zeros((3, 4), np.float32))
    with pytest.raises(ValueError, match="two-dimensional"):
        MaskedImage(np.zeros(3, np.float32), np.zeros(3, np.int32), np.zeros(3, np.float32))


def test_an_empty_image_has_no_usable_pixel():
    empty = MaskedImage.empty((2, 3))
    assert empty.shape == (2, 3)
    assert not empty.usable(0).any()
    assert (empty.mask == plane_bits("NO_DATA")).all()


def test_cutouts_are_views_and_copies_are_not():
    image = make_image()
    cutout, copy = image.cutout(Box(x_min=1, y_min=0, x_max=3, y_max=2)), image.copy()
    assert cutout.image.tolist() == [[1, 2], [5, 6]]
    cutout.image[0, 0] = 99
    assert image.image[0, 1] == 99
    copy.image[:] = -1
    assert image.image[2, 3] == 11


def test_cutouts_do_not_wrap_below_zero():
    with pytest.raises(ValueError, match="wrap"):
        make_image().cutout(Box(x_min=-1, y_min=0, x_max=3, y_max=2))


def test_a_pixel_is_usable_when_nothing_speaks_against_it():
    image = make_image()
    image.image[0, 0], image.variance[0, 1], image.variance[0, 2], image.variance[0, 3] = np.nan, 0.0, np.inf, np.nan
    image.mask[1, 0], image.mask[1, 1] = plane_bits("SAT"), plane_bits("DETECTED")
    usable = image.usable(plane_bits("SAT", "BAD"))
    assert not usable[0].any()
    assert usable[1].tolist() == [False, True, True, True]
    assert usable[2].all()


def test_planes_of_the_right_type_are_not_copied():
    planes = np.zeros((3, 4), np.float32), np.zeros((3, 4), np.int32), np.ones((3, 4), np.float32)
    image = MaskedImage(*planes)
    assert image.image is planes[0]
    assert image.mask is planes[1]
    assert image.variance is planes[2]


@pytest.mark.parametrize("dtype", [">f4", ">f8", "f8", "f2", "i2", "u1"])
def test_planes_of_another_type_are_converted(dtype):
    values = np.arange(12).reshape(3, 4).astype(dtype)
    image = MaskedImage(values, values.astype(">i8" if dtype.startswith(">") else "u1"), values)
    for plane, wanted in (("image", "=f4"), ("mask", "=i4"), ("variance", "=f4")):
        found = getattr(image, plane)
        assert found.dtype == np.dtype(wanted)
        assert found.dtype.isnative
        assert found.tolist() == np.arange(12).reshape(3, 4).tolist()


def test_a_number_beyond_float32_is_no_data_and_no_warning():
    planes = np.full((2, 2), 1e300), np.zeros((2, 2), np.int32), np.ones((2, 2))
    assert not MaskedImage(*planes).usable(0).any()


def test_planes_that_hold_no_numbers_are_refused():
    image, mask = np.ones((2, 2), np.float32), np.zeros((2, 2), np.int32)
    with pytest.raises(ValueError, match="a plane of complex64; float32 is needed"):
        MaskedImage(image.astype(np.complex64), mask, image)
    with pytest.raises(ValueError, match="a plane of float32; int32 is needed"):
        MaskedImage(image, image, image)
