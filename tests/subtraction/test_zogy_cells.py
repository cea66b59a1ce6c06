"""`CellKernel`: interpolated kernels, against sums over pixels."""

import numpy as np
import pytest
from scipy.ndimage import convolve

from alertprod.subtraction._zogy_cells import CellKernel


def make_kernel(rng, n_y=2, n_x=3, size=5, shape=(40, 60)):
    x, y = ((np.arange(n) + 0.5) * length / n - 0.5 for n, length in ((n_x, shape[1]), (n_y, shape[0])))
    return CellKernel(rng.normal(size=(n_y, n_x, size, size)), x, y)


def convolve_by_pixels(image, kernel, *, mirrored):
    """Spread each pixel with the kernel of its own place: the definition."""
    half = kernel.size // 2
    ny, nx = image.shape
    padded = np.pad(image, 2 * half, mode="symmetric") if mirrored else np.pad(image, 2 * half)
    total = np.zeros_like(padded)
    for j in range(half, padded.shape[0] - half):
        for i in range(half, padded.shape[1] - half):
            at = kernel(float(i - 2 * half), float(j - 2 * half))
            total[j - half : j + half + 1, i - half : i + half + 1] += padded[j, i] * at
    return total[2 * half : 2 * half + ny, 2 * half : 2 * half + nx]


def test_kernels_are_interpolated_between_the_corners_and_constant_beyond(rng):
    kernel = make_kernel(rng)
    np.testing.assert_allclose(kernel(float(kernel.x[1]), float(kernel.y[0])), kernel.images[0, 1])
    between = kernel((kernel.x[0] + kernel.x[1]) / 2, (kernel.y[0] + kernel.y[1]) / 2)
    np.testing.assert_allclose(between, kernel.images[:, :2].mean(axis=(0, 1)))
    np.testing.assert_allclose(kernel(-100.0, -100.0), kernel.images[0, 0])
    np.testing.assert_allclose(kernel(1e6, 1e6), kernel.images[-1, -1])


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize(("n_y", "n_x"), [(1, 1), (1, 4), (2, 3)])
def test_light_is_spread_by_the_kernel_of_its_own_place(rng, n_y, n_x, mirrored):
    kernel = make_kernel(rng, n_y, n_x)
    image = rng.normal(size=(40, 60)).astype(np.float32)
    made = kernel.convolve(image, mirrored=mirrored, n_threads=1)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, convolve_by_pixels(image.astype(float), kernel, mirrored=mirrored), atol=1e-4)


def test_turned_is_a_correlation(rng):
    kernel = make_kernel(rng, 1, 1)
    image = rng.normal(size=(40, 60)).astype(np.float32)
    wanted = convolve(image.astype(float), kernel.images[0, 0, ::-1, ::-1], mode="reflect")
    np.testing.assert_allclose(kernel.turned().convolve(image, mirrored=True, n_threads=1), wanted, atol=1e-4)


def test_squares_keep_their_sums_when_their_rims_are_cut_off(rng):
    kernel = make_kernel(rng, size=21)
    envelope = np.exp(-0.3 * np.hypot(*np.mgrid[-10:11, -10:11]))
    kernel = CellKernel(kernel.images * envelope, kernel.x, kernel.y)
    squared = kernel.squared(1e-2)
    assert squared.size < 21
    np.testing.assert_allclose(squared.images.sum(axis=(2, 3)), (kernel.images**2).sum(axis=(2, 3)))
    np.testing.assert_allclose(
        kernel.scaled(np.full((2, 3), 2.0)).squared(0.0).images.sum(), 4.0 * (kernel.images**2).sum()
    )


def test_the_extent_is_that_of_the_widest_corner(rng):
    images = np.zeros((1, 2, 9, 9))
    images[0, :, 4, 4] = 1.0, 2.0
    images[0, 0, 4, 7], images[0, 1, 4, 8] = 0.1, 0.1
    kernel = CellKernel(images, np.array([10.0, 30.0]), np.array([10.0]))
    assert kernel.compute_extent(0.1) == 3.0
    assert kernel.compute_extent(0.05) == 4.0
    assert kernel.compute_extent(0.5) == 0.0
