"""`preconvolve`: a correlation with the PSF, its variance, its mask."""

import numpy as np
import pytest
from scipy.ndimage import correlate

from alertprod.errors import UnusableExposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.analytic import GaussianPsf
from alertprod.psf.model import PointSpreadFunction
from alertprod.subtraction.convolve import convolve_image
from alertprod.subtraction.preconvolve import preconvolve, preconvolve_difference
from alertprod.subtraction.spatial import SpatialKernel

SHAPE = (120, 140)


class CometPsf(PointSpreadFunction):
    """Lopsided: a core with a fainter companion at +2, +3 pixels."""

    def __init__(self, scale: float = 1.0):
        self.scale = scale

    @property
    def size(self):
        return 21

    @property
    def average_position(self):
        return 60.0, 50.0

    def compute_offset_image(self, *, x, y, dx, dy):
        core = GaussianPsf.from_sigma(1.5, size=21).compute_offset_image(x=x, y=y, dx=dx, dy=dy)
        return self.scale * (0.7 * core + 0.3 * np.roll(core, (3, 2), axis=(0, 1)))


def make_image(rng, noise=1.0):
    image = rng.normal(0.0, noise, SHAPE).astype(np.float32)
    return MaskedImage(image, np.zeros(SHAPE, np.int32), np.full(SHAPE, noise**2, np.float32))


def test_it_is_a_correlation_and_not_a_convolution(rng):
    masked_image = make_image(rng)
    psf = CometPsf()
    made = preconvolve(masked_image, psf)
    wanted = correlate(masked_image.image.astype(float), psf.compute_kernel_image(x=0, y=0), mode="reflect")
    np.testing.assert_allclose(made.masked_image.image, wanted, atol=1e-5)
    np.testing.assert_allclose(made.kernel, psf.compute_kernel_image(x=0, y=0)[::-1, ::-1], rtol=1e-12)


def test_variance_is_that_of_its_pixels_and_the_psf_that_of_its_stars(rng):
    psf = CometPsf()
    masked_image = make_image(rng, noise=2.0)
    made = preconvolve(masked_image, psf)
    power = (psf.compute_kernel_image(x=0, y=0) ** 2).sum()
    inner = np.s_[15:-15, 15:-15]
    np.testing.assert_allclose(made.masked_image.variance[inner], 4.0 * power, rtol=1e-3)
    # As many independent pixels as there are filters' areas.
    n_independent = made.masked_image.image[inner].size * power
    assert made.masked_image.image[inner].std() == pytest.approx(
        2.0 * np.sqrt(power), rel=5.0 / np.sqrt(2.0 * n_independent)
    )
    star = MaskedImage(np.zeros(SHAPE, np.float32), masked_image.mask, masked_image.variance)
    image, box = psf.compute_stellar_image(x=60.3, y=50.8)
    star.image[box.slices] = 1000.0 * image
    drawn, box = made.psf.compute_stellar_image(x=60.3, y=50.8)
    np.testing.assert_allclose(preconvolve(star, psf).masked_image.image[box.slices], 1000.0 * drawn, atol=1e-3)


def test_a_gaussian_of_the_psfs_sigma_may_take_its_place(rng):
    psf = CometPsf()
    made = preconvolve(make_image(rng), psf, gaussian=True)
    assert made.kernel.shape == (21, 21)
    assert made.kernel.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_array_equal(made.kernel, made.kernel.T)
    offset = np.arange(21) - 10
    assert (made.kernel.sum(axis=0) * offset**2).sum() == pytest.approx(psf.compute_sigma() ** 2, rel=1e-3)


def test_bad_pixels_are_replaced_before_and_flagged_as_far_as_they_matter(rng):
    psf = GaussianPsf.from_sigma(2.0)
    masked_image = make_image(rng)
    clean = preconvolve(masked_image, psf).masked_image
    masked_image.image[60, 70], masked_image.mask[60, 70] = 1e6, plane_bits("BAD")
    masked_image.mask[30, 30] = plane_bits("SAT")
    masked_image.image[90:95, 100:105], masked_image.mask[90:95, 100:105] = np.nan, plane_bits("NO_DATA")
    before = masked_image.copy()
    made = preconvolve(masked_image, psf).masked_image
    np.testing.assert_array_equal(masked_image.image, before.image)
    np.testing.assert_array_equal(masked_image.mask, before.mask)
    assert np.isnan(made.image[90:95, 100:105]).all()
    # Replaced by its neighbours' mean, a pixel of noise is off by a sigma: the filter's peak is 0.04 of it.
    assert abs(made.image[60, 70] - clean.image[60, 70]) < 5.0 * 0.04 * np.sqrt(1.0 + 0.1)
    distance = np.hypot(*(np.indices(SHAPE) - np.array([60, 70])[:, None, None]))
    is_bad = (made.mask & plane_bits("BAD")) != 0
    # A Gaussian is at a tenth of its peak at 2.15 sigma, at a thousandth at 3.72.
    np.testing.assert_array_equal(is_bad, distance <= 2.15 * 2.0)
    distance = np.hypot(*(np.indices(SHAPE) - np.array([30, 30])[:, None, None]))
    np.testing.assert_array_equal((made.mask & plane_bits("SAT")) != 0, distance <= 3.72 * 2.0)
    edge = (made.mask & plane_bits("EDGE")) != 0
    assert edge[:7].all()
    assert edge[:, -7:].all()
    assert not edge[8:-8, 8:-8].any()


@pytest.mark.parametrize("scale", [np.nan, 0.0, -1.0])
def test_a_psf_that_is_none_is_named(rng, scale):
    with pytest.raises(UnusableExposure, match="science exposure: psf"):
        preconvolve(make_image(rng), CometPsf(scale))


def test_filtering_a_difference_is_filtering_the_science_image_before(rng):
    """With a kernel that varies over the image, too."""
    science, template = make_image(rng), make_image(rng)
    box = science.box
    narrow, wide = (GaussianPsf.from_sigma(sigma, size=11).compute_kernel_image(x=0, y=0) for sigma in (1.0, 1.8))
    kappa = SpatialKernel(np.array([narrow, wide - narrow, 0 * wide]), 1, box)
    difference = MaskedImage(science.image - convolve_image(template.image, kappa), science.mask, science.variance)
    psf = CometPsf()
    made = preconvolve_difference(difference, kappa, psf)
    before = preconvolve(science, psf)
    wanted = before.masked_image.image - convolve_image(template.image, made.matching_kernel)
    # Beyond the borders the two are mirrored at different places.
    inner = np.s_[16:-16, 16:-16]
    np.testing.assert_allclose(made.masked_image.image[inner], wanted[inner], atol=1e-5)
    np.testing.assert_array_equal(made.kernel, before.kernel)
    assert made.matching_kernel.kernel_sum(x=0, y=0) == pytest.approx(kappa.kernel_sum(x=0, y=0))
