"""The variance of a weighted sum of pixels follows from the white noises that an image was made of."""

import numpy as np
import pytest
from scipy.signal import convolve2d

from alertprod.geometry.box import Box
from alertprod.images.correlated_noise import ConstantKernel, CorrelatedNoise, NoisePart, make_noise
from alertprod.images.exposure import Exposure
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement.flux import measure_psf_flux
from alertprod.psf.analytic import GaussianPsf
from alertprod.subtraction.convolve import convolve_image
from alertprod.subtraction.decorrelate import decorrelate
from alertprod.subtraction.spatial import SpatialKernel

SIDE = 15


def draw_gaussian(size, sigma):
    half = size // 2
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    image = np.exp(-0.5 * (u**2 + v**2) / sigma**2)
    return image / image.sum()


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def parts(rng):
    """Two noises of uneven variances; one kernel lopsided."""
    kernel = rng.uniform(size=(5, 5))
    return (
        NoisePart(rng.uniform(0.5, 2.0, (SIDE, SIDE)), ConstantKernel(kernel / kernel.sum())),
        NoisePart(rng.uniform(0.5, 2.0, (SIDE, SIDE)), ConstantKernel(draw_gaussian(3, 1.0))),
    )


def test_the_variance_is_that_of_the_covariance_matrix(rng, parts):
    weights = rng.normal(size=(5, 5))
    plane = np.zeros((SIDE, SIDE))
    plane[5:10, 4:9] = weights
    expected = 0.0
    for part in parts:
        kernel = part.kernel.compute_image(x=0.0, y=0.0)
        half = kernel.shape[0] // 2
        for row in range(SIDE):
            for column in range(SIDE):
                # The image of one noisy pixel, and what of it is in the sum.
                impulse = np.zeros((SIDE, SIDE))
                impulse[row, column] = 1.0
                image = convolve2d(impulse, kernel)[half : half + SIDE, half : half + SIDE]
                expected += (image * plane).sum() ** 2 * part.variance[row, column]
    found = CorrelatedNoise(parts).compute_variances(weights[None], column=np.array([6]), row=np.array([7]))
    assert found[0] == pytest.approx(expected, rel=1e-10)
    scaled = CorrelatedNoise(parts).scaled(2.0).scaled(1.5)
    assert scaled.compute_variances(weights[None], column=np.array([6]), row=np.array([7]))[0] == pytest.approx(
        3.0 * expected, rel=1e-10
    )


def test_white_noise_has_the_sum_of_squares_of_the_weights(rng):
    noise = make_noise(np.full((30, 30), 2.0, dtype=np.float32), np.ones((1, 1)))
    weights = rng.normal(size=(3, 7, 7))
    found = noise.compute_variances(weights, column=np.array([10, 15, 20]), row=np.array([9, 9, 20]))
    np.testing.assert_allclose(found, 2.0 * (weights**2).sum(axis=(1, 2)), rtol=1e-12)


def test_unknown_variances_count_as_those_about_them(rng):
    plane = np.full((40, 40), 3.0)
    noise = make_noise(plane, draw_gaussian(5, 1.0))
    weights = np.abs(rng.normal(size=(2, 9, 9)))
    where = {"column": np.array([20, 1]), "row": np.array([20, 38])}
    expected = noise.compute_variances(weights, **where)
    holed = plane.copy()
    holed[18:22, 15:25], holed[:, 0] = np.inf, np.nan
    found = make_noise(holed, draw_gaussian(5, 1.0)).compute_variances(weights, **where)
    # Beyond the border nothing is known either.
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    nothing = make_noise(np.full((40, 40), np.nan), draw_gaussian(5, 1.0)).compute_variances(weights, **where)
    assert np.isnan(nothing).all()


def test_a_varying_kernel_is_taken_where_the_sum_is(rng):
    box = Box.from_shape((50, 50))
    narrow, wide = draw_gaussian(9, 0.6), draw_gaussian(9, 1.6)
    kernel = SpatialKernel(np.array([0.5 * (narrow + wide), 0.5 * (wide - narrow), np.zeros((9, 9))]), 1, box)
    noise = CorrelatedNoise((NoisePart(np.ones((50, 50)), kernel),))
    weights = np.repeat(rng.normal(size=(1, 5, 5)), 2, axis=0)
    found = noise.compute_variances(weights, column=np.array([0, 49]), row=np.array([25, 25]))
    for value, image in zip(found, (narrow, wide), strict=True):
        one = CorrelatedNoise((NoisePart(np.ones((50, 50)), ConstantKernel(image)),))
        expected = one.compute_variances(weights[:1], column=np.array([25]), row=np.array([25]))[0]
        assert value == pytest.approx(expected, rel=1e-9)


def test_an_exposure_that_was_warped_knows_its_noise():
    planes = MaskedImage.empty((20, 20))
    assert Exposure(masked_image=planes).correlated_noise is None
    planes.variance[:] = 2.0
    noise = Exposure(masked_image=planes, noise_kernel=draw_gaussian(3, 0.5)).correlated_noise
    # A weight on one pixel sees the variance plane, a wide one more.
    one, wide = np.zeros((1, 9, 9)), np.ones((1, 9, 9))
    one[0, 4, 4] = 1.0
    middle = {"column": np.array([10]), "row": np.array([10])}
    assert noise.compute_variances(one, **middle)[0] == pytest.approx(2.0)
    assert noise.compute_variances(wide, **middle)[0] > 2.0 * 81


@pytest.mark.parametrize("side", ["science", "template"])
def test_flux_errors_are_right_on_bright_sources_of_either_image(side):
    """Pulls of the fluxes of a grid of sources whose photon noise is in the one or the other image."""
    rng = np.random.default_rng(8)
    spacing, n = 36, 12
    shape = (spacing * n, spacing * n)
    psf, sigma = GaussianPsf.from_sigma(2.0), 1.3
    kernel = SpatialKernel.constant(draw_gaussian(15, sigma), Box.from_shape(shape))
    at = (np.arange(n) + 0.5) * spacing
    x, y = (np.floor(a.ravel()) for a in np.meshgrid(at, at))
    # Five times the sky's noise in the middle of a source; sharper in the template.
    stamp = draw_gaussian(21, 2.0 if side == "science" else np.sqrt(2.0**2 - sigma**2))
    photons = np.zeros(shape)
    for column, row in zip(x.astype(int), y.astype(int), strict=True):
        photons[row - 10 : row + 11, column - 10 : column + 11] += 5.0 * stamp / stamp.max()
    planes = {name: np.ones(shape) + (photons if name == side else 0.0) for name in ("science", "template")}
    pulls, white = [], []
    for _ in range(3):
        science, template = (
            (rng.normal(size=shape) * np.sqrt(planes[name])).astype(np.float32) for name in ("science", "template")
        )
        difference = MaskedImage(
            science - convolve_image(template, kernel), np.zeros(shape, np.int32), np.ones(shape, np.float32)
        )
        result = decorrelate(
            difference, kernel=kernel, science_variance=planes["science"].astype(np.float32),
            template_variance=planes["template"].astype(np.float32), convolved="template", psf=psf,
        )  # fmt: skip
        for found, noise in ((pulls, result.noise), (white, None)):
            fluxes = measure_psf_flux(result.difference, result.psf, x=x, y=y, noise=noise)
            inside = ~fluxes.flag_edge
            found.append((fluxes.flux / fluxes.flux_err)[inside])
    width, white_width = (float(np.sqrt(np.mean(np.concatenate(p) ** 2))) for p in (pulls, white))
    error = 1.0 / np.sqrt(2.0 * sum(map(len, pulls)))
    assert width == pytest.approx(1.0, abs=3.0 * error)
    # What the variance plane says alone is off by more, to the one or the other side.
    assert (white_width - width) * (1.0 if side == "template" else -1.0) > 0.04


def test_light_of_which_a_fraction_is_uncertain_adds_that_fraction_of_its_flux(rng, parts):
    weights, light = rng.uniform(size=(1, 5, 5)), rng.uniform(size=(SIDE, SIDE))
    place = {"column": np.array([6]), "row": np.array([7])}
    noise = CorrelatedNoise(parts).scaled(3.0)
    added = noise.with_fractional_error(0.02, light).compute_variances(weights, **place)
    flux = (weights[0] * light[5:10, 4:9]).sum()
    np.testing.assert_allclose(added - noise.compute_variances(weights, **place), (0.02 * flux) ** 2, rtol=1e-9)
    # It is no noise: a larger noise is not a larger uncertainty of the match.
    again = CorrelatedNoise(parts).with_fractional_error(0.02, light).scaled(3.0)
    np.testing.assert_allclose(again.compute_variances(weights, **place), added, rtol=1e-12)
