import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.signal import convolve2d

from alertprod.psf import _loops
from alertprod.psf._lanczos import KERNEL_RADII, kernel_table, kernel_weights, sampling_matrices
from alertprod.psf.analytic import GaussianPsf, MoffatPsf
from alertprod.psf.model import FWHM_PER_SIGMA
from alertprod.psf.transformed import ConvolvedPsf, MosaicPsf, WarpedPsf


class Affine:
    """A linear mapping from target to source pixels."""

    def __init__(self, matrix, *, x=0.0, y=0.0):
        self.matrix, self.x, self.y = np.asarray(matrix, dtype=float), x, y

    def evaluate(self, *, x, y):
        x_source, y_source = self.matrix @ np.stack([x, y]) + np.array([[self.x], [self.y]])
        return x_source, y_source

    def compute_jacobian(self, *, x, y):  # noqa: ARG002  the same everywhere
        return np.broadcast_to(self.matrix, (len(x), 2, 2))


def gaussian_kernel(x, y):
    """A kernel that widens along x; a function of this module, so that it can be pickled."""
    return 2.5 * GaussianPsf.from_sigma(1.0 + 0.001 * x, size=21).compute_kernel_image(x=x, y=y)


@pytest.mark.parametrize("kernel", KERNEL_RADII)
def test_kernel_weights_sum_to_one_and_are_one_weight_at_whole_pixels(kernel):
    weights = kernel_weights(np.linspace(0, 0.99, 12), kernel)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-14)
    np.testing.assert_array_equal(weights[0], np.eye(2 * KERNEL_RADII[kernel])[KERNEL_RADII[kernel] - 1])


@pytest.mark.parametrize("kernel", KERNEL_RADII)
def test_kernel_weights_seen_from_the_other_side_are_reversed(kernel):
    np.testing.assert_allclose(
        kernel_weights(np.array([0.3]), kernel), kernel_weights(np.array([0.7]), kernel)[:, ::-1], atol=1e-15
    )


def test_sampling_matrices_do_what_the_definition_says():
    offsets, step, n, size = np.array([0.0, 0.37, -0.5]), 0.6, 21, 13
    matrices = sampling_matrices(n_samples=n, size=size, step=step, offsets=offsets)
    for matrix, offset in zip(matrices, offsets, strict=True):
        for pixel in range(size):
            place = n // 2 + (pixel - size // 2 - offset) / step
            t = np.arange(n) - place
            row = np.where(np.abs(t) < 4, np.sinc(t) * np.sinc(t / 4), 0.0)
            expected = row / row.sum() if 0 <= place <= n - 1 else np.zeros(n)
            np.testing.assert_allclose(matrix[pixel], expected, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNEL_RADII)
def test_the_compiled_resampling_does_what_its_twin_does(kernel):
    rng = np.random.default_rng(8)
    radius = KERNEL_RADII[kernel]
    stamp, jacobian = rng.normal(size=(9, 11)), np.array([[0.9, 0.2], [-0.1, 1.1]])
    image = _loops.resample_stamp(stamp, jacobian, 5.3, 4.1, 0.2, -0.4, 15, kernel_table(kernel))
    padded = np.pad(stamp, 20)
    for row in range(15):
        for column in range(15):
            x, y = [5.3, 4.1] + jacobian @ [column - 7 - 0.2, row - 7 + 0.4]
            i, j = int(np.floor(x)), int(np.floor(y))
            weights_x, weights_y = (kernel_weights(np.array([t]), kernel)[0] for t in (x - i, y - j))
            pixels = padded[j + 21 - radius : j + 21 + radius, i + 21 - radius : i + 21 + radius]
            # The table's steps are 1.2e-4 pixels, the slope of the noise is some 3 per pixel.
            assert image[row, column] == pytest.approx(weights_y @ pixels @ weights_x, abs=2e-3)


def test_a_psf_warped_by_the_identity_is_itself():
    psf = MoffatPsf(fwhm=3.0, ellipticity=0.2, size=21)
    warped = WarpedPsf(psf, Affine(np.eye(2), x=7, y=-3), average_position=(10, 10))
    assert warped.size == 21
    image, box = warped.compute_stellar_image(x=20.3, y=9.8)
    expected, expected_box = psf.compute_stellar_image(x=20.3, y=9.8)
    assert box == expected_box
    np.testing.assert_allclose(image, expected, atol=1e-12)


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.3])
def test_a_warped_width_scales_with_the_pixels(scale):
    psf = GaussianPsf(fwhm=5.0, size=41)
    warped = WarpedPsf(psf, Affine(scale * np.eye(2)), average_position=(0, 0))
    # Lanczos-3 adds the square of some 0.1 pixels or takes it away.
    assert warped.compute_fwhm(x=40.0, y=50.0) == pytest.approx(5.0 / scale, rel=5e-3)


def test_rotating_the_grid_rotates_the_psf():
    psf = GaussianPsf(fwhm=5.0, ellipticity=0.3, size=41)
    c, s = np.cos(np.radians(40)), np.sin(np.radians(40))
    # Source = R(+40) target: the source's x axis lies at -40 degrees on the target.
    warped = WarpedPsf(psf, Affine([[c, -s], [s, c]]), average_position=(0, 0))
    ixx, iyy, ixy = warped.compute_moments(x=3.0, y=4.0)
    assert np.degrees(0.5 * np.arctan2(2 * ixy, ixx - iyy)) == pytest.approx(-40.0, abs=0.5)


@pytest.mark.parametrize(("dx", "dy"), [(0.0, 0.0), (0.5, -0.4)])
def test_a_warped_psf_is_centred_where_it_is_asked_to_be(dx, dy):
    warped = WarpedPsf(GaussianPsf(fwhm=4.0, size=41), Affine([[0.9, 0.1], [-0.1, 0.9]]), average_position=(0, 0))
    image = warped.compute_offset_image(x=12.3, y=45.6, dx=dx, dy=dy)
    steps = np.arange(warped.size) - warped.size // 2
    assert (image.sum(axis=0) * steps).sum() == pytest.approx(dx, abs=0.01)
    assert (image.sum(axis=1) * steps).sum() == pytest.approx(dy, abs=0.01)


def test_a_position_that_maps_nowhere_is_refused():
    warped = WarpedPsf(GaussianPsf(fwhm=4.0), Affine(np.eye(2), x=np.nan), average_position=(0, 0), size=21)
    with pytest.raises(ValueError, match="does not map"):
        warped.compute_kernel_image(x=1, y=2)


def test_a_mosaic_shows_each_tile_and_their_weighted_mean():
    tiles = [GaussianPsf(fwhm=3.0, size=21), GaussianPsf(fwhm=4.0, size=25)]
    weights = np.array([[[1.0, 3.0, 0.0, 0.0]], [[0.0, 1.0, 1.0, 0.0]]])
    mosaic = MosaicPsf(tiles, weights, block=10, average_position=(15, 5))
    images = [np.pad(tiles[0].compute_kernel_image(x=0, y=0), 2), tiles[1].compute_kernel_image(x=0, y=0)]
    np.testing.assert_allclose(mosaic.compute_kernel_image(x=3, y=3), images[0], atol=1e-15)
    np.testing.assert_allclose(mosaic.compute_kernel_image(x=15, y=3), 0.75 * images[0] + 0.25 * images[1], atol=1e-15)
    # The last block has no tile: its neighbour's PSF is the best guess, and so it is far outside.
    for x in (35.0, 1e6):
        np.testing.assert_allclose(mosaic.compute_kernel_image(x=x, y=-50), images[1], atol=1e-15)


def test_a_mosaic_without_tiles_is_refused():
    with pytest.raises(ValueError, match="weight"):
        MosaicPsf([GaussianPsf(fwhm=3.0)], np.zeros((1, 2, 2)), block=10, average_position=(0, 0))
    with pytest.raises(ValueError, match="fit"):
        MosaicPsf([GaussianPsf(fwhm=3.0)], np.ones((2, 2, 2)), block=10, average_position=(0, 0))


def test_gaussians_convolve_into_a_gaussian():
    psf = ConvolvedPsf(GaussianPsf.from_sigma(2.0, size=41), gaussian_kernel)
    for x in (0.0, 500.0):
        assert psf.compute_fwhm(x=x, y=0) == pytest.approx(FWHM_PER_SIGMA * np.hypot(2.0, 1.0 + 0.001 * x), rel=2e-3)


@pytest.mark.parametrize("size", [None, 15, 61])
def test_a_convolved_image_is_cut_or_padded_to_its_size(size):
    inner = GaussianPsf(fwhm=4.0, size=31)
    psf = ConvolvedPsf(inner, gaussian_kernel, size=size)
    image = psf.compute_offset_image(x=10, y=20, dx=0.2, dy=0.1)
    assert image.shape == (psf.size, psf.size)
    assert image.sum() == pytest.approx(1.0)
    full = convolve2d(inner.compute_offset_image(x=10, y=20, dx=0.2, dy=0.1), gaussian_kernel(10, 20))
    rim = (51 - psf.size) // 2
    expected = full[rim:-rim, rim:-rim] if rim > 0 else np.pad(full, -rim)
    np.testing.assert_allclose(image, expected / expected.sum(), atol=1e-12)


def test_kernels_with_even_sides_are_refused():
    psf = ConvolvedPsf(GaussianPsf(fwhm=4.0), lambda *_: np.ones((4, 5)))
    with pytest.raises(ValueError, match="odd"):
        psf.compute_kernel_image(x=0, y=0)
    with pytest.raises(ValueError, match="odd"):
        ConvolvedPsf(GaussianPsf(fwhm=4.0), gaussian_kernel, size=10)


def make_nested():
    warped = WarpedPsf(MoffatPsf(fwhm=3.0), Affine([[0.9, 0.1], [-0.1, 0.9]], x=5), average_position=(50, 50))
    mosaic = MosaicPsf([warped, GaussianPsf(fwhm=4.0)], np.ones((2, 3, 3)), block=32, average_position=(50, 50))
    return ConvolvedPsf(mosaic, gaussian_kernel)


def test_nested_psfs_are_pickled():
    psf = make_nested()
    again = pickle.loads(pickle.dumps(psf))
    np.testing.assert_array_equal(again.compute_kernel_image(x=12, y=34), psf.compute_kernel_image(x=12, y=34))


def test_threads_may_share_a_psf():
    psf = make_nested()
    places = [(float(x), float(y)) for x in range(0, 90, 15) for y in range(0, 90, 15)]
    alone = [psf.compute_kernel_image(x=x, y=y) for x, y in places]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda p: psf.compute_kernel_image(x=p[0], y=p[1]), places))
    np.testing.assert_array_equal(together, alone)


class Nowhere(Affine):
    """A mapping to a place that is not there, like that of the other side of the sky."""

    def __init__(self):
        super().__init__(np.full((2, 2), np.nan), x=np.nan, y=np.nan)


def test_a_psf_that_is_mapped_nowhere_is_not_defined_there():
    psf = WarpedPsf(GaussianPsf(fwhm=4.0), Nowhere(), average_position=(5.0, 5.0))
    assert psf.size == GaussianPsf(fwhm=4.0).size
    with pytest.raises(ValueError, match="does not map to the source grid"):
        psf.compute_kernel_image(x=5.0, y=5.0)


def test_a_psf_that_is_not_finite_is_not_convolved():
    class Spoiled(GaussianPsf):
        def compute_offset_image(self, *, x, y, dx, dy):
            return np.nan * super().compute_offset_image(x=x, y=y, dx=dx, dy=dy)

    with pytest.raises(ValueError, match=r"not finite at x 3\.0, y 4\.0"):
        ConvolvedPsf(Spoiled(fwhm=4.0), gaussian_kernel).compute_kernel_image(x=3.0, y=4.0)


class WideningKernel:
    """`gaussian_kernel` that draws many at once too."""

    def __call__(self, x, y):
        return gaussian_kernel(x, y)

    def compute_images(self, *, x, y):
        return np.array([gaussian_kernel(*place) for place in zip(x, y, strict=True)])


@pytest.mark.parametrize("n", [1, 3, 150])
def test_many_convolved_stars_are_those_drawn_one_by_one(n):
    rng = np.random.default_rng(n)
    psf = ConvolvedPsf(MoffatPsf(fwhm=3.0, size=25), WideningKernel())
    x, y = rng.uniform(0, 500, (2, n))
    x[0] = np.nan
    images = psf.compute_stellar_images(x=x, y=y)
    assert np.isnan(images[0]).all()
    for i in range(1, n):
        expected = psf.compute_stellar_image(x=x[i], y=y[i])[0]
        np.testing.assert_allclose(images[i], expected, atol=1e-14)


def test_a_star_where_the_psf_is_not_defined_is_none_among_many():
    psf = WarpedPsf(GaussianPsf(fwhm=3.0, size=15), Affine(np.eye(2), x=np.nan), average_position=(5.0, 5.0), size=15)
    assert np.isnan(psf.compute_stellar_images(x=np.array([5.0, 6.0]), y=np.array([5.0, 6.0]))).all()
