import numpy as np
import pytest
from scipy.signal import convolve2d

from alertprod.errors import ConfigError
from alertprod.psf.model import FWHM_PER_SIGMA
from alertprod.subtraction.basis import (
    choose_widths,
    compute_trace_fwhm,
    convolve_stamps,
    lead_with_psfs,
    make_alard_lupton_basis,
)
from alertprod.subtraction.config import AlardLuptonConfig


@pytest.fixture
def basis():
    return make_alard_lupton_basis((0.7, 1.5, 3.0), (4, 2, 2), 21)


def test_default_basis_has_27_kernels(basis):
    assert len(basis) == 27
    assert basis.images.shape == (27, 21, 21)


def test_first_kernel_alone_carries_flux(basis):
    sums = basis.images.sum(axis=(1, 2))
    np.testing.assert_allclose(sums[0], 1.0, atol=1e-12)
    np.testing.assert_allclose(sums[1:], 0.0, atol=1e-12)


def test_the_others_have_unit_norm(basis):
    np.testing.assert_allclose((basis.images[1:] ** 2).sum(axis=(1, 2)), 1.0, atol=1e-12)


def test_images_are_the_transform_of_products_of_profiles(basis):
    raw = basis.profiles[basis.y_profile][:, :, None] * basis.profiles[basis.x_profile][:, None, :]
    np.testing.assert_allclose(np.tensordot(basis.transform, raw, axes=1), basis.images, atol=1e-12)


def test_basis_spans_a_gaussian_of_the_width_it_was_made_for():
    sigma = np.sqrt(2.8**2 - 2.0**2)
    sigmas, size, _ = choose_widths(
        AlardLuptonConfig(), convolved_fwhm=2.0 * FWHM_PER_SIGMA, reference_fwhm=2.8 * FWHM_PER_SIGMA
    )
    basis = make_alard_lupton_basis(sigmas, (4, 2, 2), size)
    half = size // 2
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    wanted = np.exp(-0.5 * (u**2 + v**2) / sigma**2)
    wanted /= wanted.sum()
    found = np.linalg.lstsq(basis.images.reshape(len(basis), -1).T, wanted.ravel(), rcond=None)[0]
    residual = np.tensordot(found, basis.images, axes=1) - wanted
    assert np.abs(residual).max() < 1e-3 * wanted.max()


@pytest.mark.parametrize(
    ("convolved", "reference", "first", "mode"),
    [
        (2.0, 2.8, np.sqrt(2.8**2 - 2.0**2) / 2.0, "convolution"),
        (2.0, 2.05, 0.7, "convolution"),
        (2.05, 2.0, 0.4, "deconvolution"),
        (2.0, 2.0, 0.7, "config"),
        (np.nan, 2.0, 0.7, "config"),
    ],
)
def test_widths_follow_the_two_psfs(convolved, reference, first, mode):
    config = AlardLuptonConfig()
    sigmas, size, found_mode = choose_widths(
        config, convolved_fwhm=convolved * FWHM_PER_SIGMA, reference_fwhm=reference * FWHM_PER_SIGMA
    )
    assert found_mode == mode
    assert sigmas[0] == pytest.approx(first, rel=1e-4)
    assert size % 2 == 1
    assert config.kernel_size_min <= size <= config.kernel_size_max


def test_kernel_size_is_six_times_the_widest_sigma_within_its_limits():
    widths = {"convolved_fwhm": 2.0 * FWHM_PER_SIGMA, "reference_fwhm": 2.8 * FWHM_PER_SIGMA}
    sigmas, size, _ = choose_widths(AlardLuptonConfig(), **widths)
    assert size == int(6.0 * sigmas[2])  # 23, odd already
    assert choose_widths(AlardLuptonConfig(kernel_size_min=31), **widths)[1] == 31
    assert choose_widths(AlardLuptonConfig(scale_by_fwhm=False), **widths) == ((0.7, 1.5, 3.0), 21, "config")


def test_trace_fwhm_of_a_gaussian(make_psf):
    assert compute_trace_fwhm(make_psf(2.4)) == pytest.approx(2.4 * FWHM_PER_SIGMA, rel=1e-4)


def test_even_kernels_and_lists_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="odd"):
        make_alard_lupton_basis((1.0,), (2,), 20)
    with pytest.raises(ConfigError, match="kernel_size"):
        AlardLuptonConfig(kernel_size=20)
    with pytest.raises(ConfigError, match="alard_deg_gauss"):
        AlardLuptonConfig(alard_deg_gauss=(4, 2))
    with pytest.raises(ConfigError, match="size_cell_x"):
        AlardLuptonConfig(size_cell_x=16)


def test_stamps_are_convolved_with_every_basis_kernel(basis, make_psf, rng):
    led = lead_with_psfs(basis, convolved_psf=make_psf(2.0), reference_psf=make_psf(2.4))
    stamps = rng.normal(size=(3, 43, 43))
    found = convolve_stamps(stamps, led, 23)
    for n in range(3):
        for i, kernel in enumerate(led.images):
            np.testing.assert_allclose(found[n, i], convolve2d(stamps[n], kernel, mode="valid"), atol=1e-12)


def test_leading_kernel_turns_one_psf_into_the_other(basis, make_psf):
    led = lead_with_psfs(basis, convolved_psf=make_psf(2.0), reference_psf=make_psf(2.4))
    assert led.images[0].sum() == pytest.approx(1.0)
    np.testing.assert_array_equal(led.images[1:], basis.images[1:])
    matched = convolve2d(make_psf(2.0).compute_kernel_image(x=0, y=0), led.images[0], mode="same")
    half = matched.shape[0] // 2
    wanted = make_psf(2.4).compute_kernel_image(x=0, y=0)
    reach = wanted.shape[0] // 2
    found = matched[half - 8 : half + 9, half - 8 : half + 9]
    np.testing.assert_allclose(found, wanted[reach - 8 : reach + 9, reach - 8 : reach + 9], atol=5e-3 * wanted.max())
