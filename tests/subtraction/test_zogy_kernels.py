"""`compute_zogy_kernels`: white noise at every frequency, stars that cancel, kernels that stay small."""

import numpy as np
import pytest

from alertprod.psf.analytic import GaussianPsf, MoffatPsf
from alertprod.subtraction._filters import power_spectrum
from alertprod.subtraction._zogy_kernels import _place_nodes, compute_zogy_kernels
from alertprod.subtraction.zogy_config import ZogyConfig

GAUSSIANS = GaussianPsf.from_sigma(2.4), GaussianPsf.from_sigma(1.8)
MOFFATS = MoffatPsf(fwhm=4.4, beta=3.0), MoffatPsf(fwhm=3.6, beta=3.0, ellipticity=0.1)


def make_kernels(psfs, v_n=1.0, v_r=0.3, noise=0.0):
    rng = np.random.default_rng(8)
    images = []
    for psf in psfs:
        image = psf.compute_kernel_image(x=0, y=0)
        image = image + noise * image.max() * rng.normal(size=image.shape)
        images.append(image / image.sum())
    return images, compute_zogy_kernels(*images, science_variance=v_n, template_variance=v_r)


@pytest.mark.parametrize("psfs", [GAUSSIANS, GAUSSIANS[::-1], MOFFATS])
def test_noise_has_the_same_power_at_every_frequency(psfs):
    _, kernels = make_kernels(psfs)
    # The grid that they were made on has one pixel more at most.
    side = next(side for side in (kernels[0].shape[0], kernels[0].shape[0] + 1) if side % 2 == 0)
    power = 1.0 * power_spectrum(kernels[0], side) + 0.3 * power_spectrum(kernels[1], side)
    np.testing.assert_allclose(power, 1.3, rtol=5e-3)
    assert [kernel.sum() for kernel in kernels] == pytest.approx([1.0, 1.0], abs=1e-3)


@pytest.mark.parametrize("psfs", [GAUSSIANS, MOFFATS])
def test_a_star_of_both_images_cancels(psfs):
    images, kernels = make_kernels(psfs)
    side = 512
    star_n, star_r = (
        np.fft.rfft2(kernel, s=(side, side)) * np.fft.rfft2(image, s=(side, side))
        for kernel, image in zip(kernels, images, strict=True)
    )
    # Both have the kernel's and the PSF's middle at different places: compare on one.
    shift = [kernel.shape[0] // 2 + image.shape[0] // 2 for kernel, image in zip(kernels, images, strict=True)]
    first, second = (
        np.roll(np.fft.irfft2(star, s=(side, side)), (-s, -s), axis=(0, 1))
        for star, s in zip((star_n, star_r), shift, strict=True)
    )
    assert np.abs(first - second).max() < 2e-4
    assert first.sum() == pytest.approx(1.0, abs=1e-3)


def test_psf_images_with_noise_do_not_make_kernels_as_large_as_the_grid():
    """Noise of a ten-thousandth of the peak in each pixel of the PSF models, as great as faint frequencies."""
    images, kernels = make_kernels(MOFFATS, noise=1e-4)
    for kernel in kernels:
        half = kernel.shape[0] // 2
        outside = np.hypot(*np.mgrid[-half : half + 1, -half : half + 1]) > images[0].shape[0] // 2
        # A seventh of the template's, were faint frequencies taken at their word.
        assert (kernel[outside] ** 2).sum() < 2e-3 * (kernel**2).sum()


def test_equal_psfs_need_no_kernel():
    images, kernels = make_kernels((GAUSSIANS[0], GAUSSIANS[0]))
    middle = kernels[0].shape[0] // 2
    for kernel in kernels:
        assert kernel[middle, middle] == pytest.approx(1.0, abs=1e-9)
        assert np.abs(kernel).sum() == pytest.approx(1.0, abs=1e-6)
    assert images[0].shape == images[1].shape


def test_a_psf_without_a_width_asks_for_no_border_of_its_own():
    class Needle(GaussianPsf):
        def compute_offset_image(self, **at):
            return np.where(super().compute_offset_image(**at) > 0.1, 1.0, 0.0)

    broad, needle = GaussianPsf.from_sigma(2.4, size=25), Needle.from_sigma(1.0, size=25)
    with pytest.raises(ValueError, match="adaptive moments"):
        needle.compute_sigma()
    config = ZogyConfig(do_spatial_grid=True)
    for found, wanted in zip(
        _place_nodes((900, 700), broad, needle, config), _place_nodes((900, 700), broad, broad, config), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)
