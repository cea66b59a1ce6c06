"""The reference's tolerances for decorrelation: its test_imageDecorrelation, through the task, in all four modes."""

import numpy as np
import pytest
from tolerance_skies import SHAPE, make_sky

from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.tasks.decorrelate import DecorrelateALKernelSpatialConfig, DecorrelateALKernelSpatialTask
from alertprod.tasks.image_psf_match import ImagePsfMatchTask
from alertprod.tasks.task import Struct

SCIENCE_SIGMA, TEMPLATE_SIGMA = 3.3, 2.2
INNER = np.s_[24:-24, 24:-24]


def make_pair(science_variance: float, template_variance: float, *, n_sources: int = 50):
    """Draw fifty stars twice, in noise of constant variance planes."""
    pair = []
    for sigma, variance, noise_seed in (
        (SCIENCE_SIGMA, science_variance, 6),
        (TEMPLATE_SIGMA, template_variance, 7),
    ):
        sky = make_sky(psf_sigma=sigma, noise=np.sqrt(variance), noise_seed=noise_seed, n_sources=n_sources)
        sky.exposure.variance[...] = variance
        pair.append(sky)
    return pair


def pixel_variance(exposure: Exposure) -> float:
    """Return the variance that the quartiles of the inner pixels tell: a few residuals of stars do not count."""
    low, high = np.percentile(exposure.image[INNER], [25.0, 75.0])
    return float(((high - low) / 1.34898) ** 2)


def plane_mean(exposure: Exposure) -> float:
    return float(exposure.variance[INNER].mean())


@pytest.fixture(scope="module", params=[(0.04, 0.04), (0.08, 0.04), (0.04, 0.08)])
def subtracted(request) -> tuple[Exposure, Exposure, Struct, float]:
    science, template = make_pair(*request.param)
    result = ImagePsfMatchTask().subtractExposures(
        template.exposure, science.exposure, candidateList=science.sources, convolveTemplate=True
    )
    return science.exposure, template.exposure, result, sum(request.param)


def decorrelate(subtracted, *, complete: bool, varying: bool) -> Exposure:
    science, template, result, _ = subtracted
    config = DecorrelateALKernelSpatialConfig()
    config.completeVarPlanePropagation = complete
    return DecorrelateALKernelSpatialTask(config).run(
        science, template, result.subtractedExposure, result.psfMatchingKernel, spatiallyVarying=varying
    ).correctedExposure  # fmt: skip


def test_before_the_correction_pixels_and_plane_show_less_than_the_sum(subtracted):
    _, _, result, expected = subtracted
    assert pixel_variance(result.subtractedExposure) < expected
    assert plane_mean(result.subtractedExposure) < expected


@pytest.mark.parametrize("complete", [True, False])
def test_after_it_they_show_the_sum_of_the_variances(subtracted, complete):
    expected = subtracted[-1]
    means = []
    for varying in (False, True):
        corrected = decorrelate(subtracted, complete=complete, varying=varying)
        assert pixel_variance(corrected) == pytest.approx(expected, rel=0.05)
        assert plane_mean(corrected) == pytest.approx(expected, rel=0.02)
        assert pixel_variance(corrected) == pytest.approx(plane_mean(corrected), rel=0.05)
        means.append(plane_mean(corrected))
    assert means[0] == pytest.approx(means[1], rel=0.03)


def test_noise_is_correlated_before_and_not_after():
    # Images of noise alone, 100 times more of it in the template, subtracted with the kernel of the two PSFs.
    science, template = make_pair(1.0, 100.0, n_sources=0)
    stars = make_pair(0.04, 0.04)
    kernel = ImagePsfMatchTask().subtractExposures(
        stars[1].exposure, stars[0].exposure, candidateList=stars[0].sources, convolveTemplate=True
    ).psfMatchingKernel  # fmt: skip
    noisy = np.random.default_rng(3).normal(0.0, 10.0, SHAPE)
    at_middle = kernel.compute_image(x=SHAPE[1] / 2, y=SHAPE[0] / 2)
    matched = np.fft.irfft2(np.fft.rfft2(noisy) * np.fft.rfft2(at_middle, SHAPE), SHAPE)
    matched = np.roll(matched, -(at_middle.shape[0] // 2), axis=(0, 1))
    difference = science.exposure.copy()
    difference.image[...] -= matched.astype(np.float32)
    difference.mask[...] &= np.int32(~plane_bits("DETECTED", "DETECTED_NEGATIVE"))
    corrected = DecorrelateALKernelSpatialTask().run(
        science.exposure, template.exposure, difference, kernel
    ).correctedExposure  # fmt: skip
    assert all(autocorrelation(difference, 0, lag) > 0.2 for lag in (1, 2, 3))
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (0, 3), (3, 3), (0, 5)):
        assert abs(autocorrelation(corrected, dy, dx)) < 0.1


def autocorrelation(exposure: Exposure, dy: int, dx: int) -> float:
    image = exposure.image[INNER].astype(float)
    image = image - image.mean()
    ny, nx = image.shape
    return float((image[dy:, dx:] * image[: ny - dy, : nx - dx]).mean() / image.var())
