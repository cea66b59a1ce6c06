"""White noise that was warped has the covariance that the noise kernel says, on the average over its pixels."""

import numpy as np
import pytest

from alertprod.images.masked_image import MaskedImage
from alertprod.psf._lanczos import KERNEL_RADII, kernel_table, kernel_weights
from alertprod.resample import _loops
from alertprod.resample.mapping import PixelMapping
from alertprod.resample.noise import compute_noise_kernel
from alertprod.resample.warp import warp_masked_image

SIDE = 300


def make_mapping(*, angle=0.0, scale=1.0, dx=0.0, dy=0.0):
    cos, sin = scale * np.cos(np.radians(angle)), scale * np.sin(np.radians(angle))
    return PixelMapping.from_affine(np.array([[cos, -sin], [sin, cos]]), x=300.0 + dx, y=30.0 + dy, shape=(SIDE, SIDE))


def correlate(kernel, side=96):
    """Return the kernel's autocorrelation, 1 at no lag, indices being lags."""
    power = np.abs(np.fft.fft2(kernel, s=(side, side))) ** 2
    covariance = np.fft.ifft2(power).real
    return covariance / covariance[0, 0]


@pytest.mark.parametrize(
    "grid",
    [
        {"angle": 28.0},
        {"angle": 5.0, "scale": 0.8},
        {"angle": 40.0, "scale": 1.3},
        {"dx": 0.5, "dy": 0.3},
    ],
)
@pytest.mark.parametrize("kernel", ["lanczos3", "bilinear"])
def test_white_noise_warped_has_the_kernel_s_autocorrelation(grid, kernel):
    mapping = make_mapping(**grid)
    rng = np.random.default_rng(3)
    shape = (800, 800)
    noise = MaskedImage(rng.normal(size=shape).astype("f4"), np.zeros(shape, "i4"), np.ones(shape, "f4"))
    warped = warp_masked_image(noise, mapping, kernel=kernel).image
    assert np.isfinite(warped).all()
    expected = correlate(compute_noise_kernel(mapping, kernel))
    # Of a product of two pixels, over n of them that are correlated themselves; and the mean over 400 places.
    tolerance = 4.0 * np.sqrt((expected**2).sum()) / SIDE + 4.0 * 0.1 / np.sqrt(400)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (2, 0), (1, 2), (3, 3)):
        found = (warped[: SIDE - dy, : SIDE - dx] * warped[dy:, dx:]).mean() / warped.var()
        assert found == pytest.approx(expected[dy, dx], abs=tolerance)


def test_a_whole_pixel_shift_leaves_noise_white():
    kernel = compute_noise_kernel(make_mapping(dx=3.0, dy=-2.0), "lanczos3")
    half = kernel.shape[0] // 2
    assert kernel[half, half] == pytest.approx(1.0, abs=1e-9)
    assert np.abs(kernel).sum() == pytest.approx(1.0, abs=1e-6)


def test_the_white_noise_before_has_the_variance_of_the_source_per_area():
    # At frequency zero the noise is that of the source, whatever the interpolation: flux is conserved.
    for scale in (0.8, 1.0):
        mapping = make_mapping(angle=28.0, scale=scale)
        noise = MaskedImage(np.zeros((800, 800), "f4"), np.zeros((800, 800), "i4"), np.ones((800, 800), "f4"))
        variance = float(warp_masked_image(noise, mapping).variance.mean())
        white = variance / (compute_noise_kernel(mapping, "lanczos3") ** 2).sum()
        # White noise of variance 1 per source pixel: scale^2 of it in a target pixel.
        assert white == pytest.approx(scale**2, rel=0.02)


def test_the_kernel_is_symmetric_and_turns_with_the_axes():
    mapping = make_mapping(dx=0.4, dy=0.1)
    kernel = compute_noise_kernel(mapping, "lanczos3")
    assert kernel.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-12)
    swapped = PixelMapping.from_affine(np.eye(2), x=30.1, y=300.4, shape=(SIDE, SIDE))
    np.testing.assert_allclose(compute_noise_kernel(swapped, "lanczos3"), kernel.T, atol=1e-6)


def test_a_mapping_that_leads_nowhere_has_no_kernel():
    nodes = np.full((4, 4), np.nan)
    assert compute_noise_kernel(PixelMapping(nodes, nodes, step=16, shape=(40, 40)), "lanczos3") is None


@pytest.mark.parametrize("kernel", KERNEL_RADII)
def test_the_compiled_overlaps_are_products_of_dense_rows_of_weights(kernel):
    rng = np.random.default_rng(5)
    u, v = rng.uniform(20, 30, size=(2, 9))
    steps = np.concatenate([rng.uniform(-7, 7, size=(2, 20)), [[0.0], [0.0]], [[3.0], [-1.0]]], axis=1)

    def spread(places):
        """Return the weights of each place on an axis of 60 samples."""
        rows = np.zeros((places.size, 60))
        radius = KERNEL_RADII[kernel]
        for row, place in zip(rows, places, strict=True):
            first = int(np.floor(place)) - radius + 1
            row[first : first + 2 * radius] = kernel_weights(np.array([place % 1.0]), kernel)[0]
        return rows

    expected = [
        np.mean((spread(u) * spread(u + du)).sum(axis=1) * (spread(v) * spread(v + dv)).sum(axis=1))
        for du, dv in steps.T
    ]
    found = _loops.mean_overlaps(u, v, *steps, kernel_table(kernel))
    # The table's steps are 1.2e-4 pixels, and the weights' slope is below 2 per pixel.
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert max(expected) > 0.3
