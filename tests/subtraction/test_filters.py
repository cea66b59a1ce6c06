"""Small filters: what is cut off, where the origin is."""

import numpy as np
import pytest
from scipy.signal import convolve2d

from alertprod.subtraction._filters import (
    centred_image,
    convolve_each,
    crop_kernels,
    power_spectrum,
    stack,
    transform_side,
)


def disc(size, radius, value=1.0):
    half = size // 2
    return value * (np.hypot(*np.mgrid[-half : half + 1, -half : half + 1]) <= radius)


def test_cropping_keeps_the_share_of_every_filter():
    images = np.stack([disc(31, 4.0), disc(31, 9.0, -1.0)])
    cropped = crop_kernels(images, 0.0)
    assert cropped.shape == (2, 19, 19)
    np.testing.assert_array_equal(cropped, images[:, 6:25, 6:25])
    lossy = crop_kernels(images, 0.1)
    assert lossy.shape[1] < 19
    for before, after in zip(images, lossy, strict=True):
        assert np.abs(after).sum() >= 0.9 * np.abs(before).sum()


def test_a_filter_without_a_rim_stays_whole_and_a_point_keeps_a_neighbour():
    whole = np.ones((1, 5, 5))
    np.testing.assert_array_equal(crop_kernels(whole, 0.0), whole)
    assert crop_kernels(disc(9, 0.0)[None], 0.0).shape == (1, 3, 3)


@pytest.mark.parametrize("side", [128, 135])
def test_a_spectrum_comes_back_with_its_origin_in_the_middle(rng, side):
    image = rng.normal(size=(7, 7))
    padded = np.zeros((side, side))
    padded[:7, :7] = image
    spectrum = np.fft.rfft2(np.roll(padded, (-3, -3), axis=(0, 1)))
    back = centred_image(spectrum, side)
    middle = back.shape[0] // 2
    assert back.shape[0] % 2 == 1
    np.testing.assert_allclose(back[middle - 3 : middle + 4, middle - 3 : middle + 4], image, atol=1e-12)
    np.testing.assert_allclose(power_spectrum(image, side), np.abs(spectrum) ** 2, atol=1e-9)


def test_each_is_convolved_with_its_own_or_all_with_one(rng):
    first, second = rng.normal(size=(3, 5, 5)), rng.normal(size=(3, 7, 7))
    for others in (second, second[:1]):
        made = convolve_each(first, others)
        wanted = [convolve2d(a, b) for a, b in zip(first, np.broadcast_to(others, second.shape), strict=True)]
        np.testing.assert_allclose(made, wanted, atol=1e-12)


def test_filters_of_different_sides_are_stacked_about_their_middles():
    made = stack([np.ones((1, 1)), np.ones((3, 3))])
    np.testing.assert_array_equal(made[0], disc(3, 0.0))
    np.testing.assert_array_equal(made[1], np.ones((3, 3)))


def test_transforms_have_room_for_wings():
    assert transform_side([np.ones((1, 1))]) >= 128
    assert transform_side([np.ones((5, 5)), np.ones((41, 41))]) >= 6 * 41
