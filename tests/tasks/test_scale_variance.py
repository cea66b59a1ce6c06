"""`ScaleVarianceTask`: the variance plane says what the pixels show, and what a point source sees of them."""

import numpy as np
import pytest
from scipy import ndimage

from alertprod.detection.matched_filter import compute_significance, make_filter_kernel
from alertprod.errors import BadSubtraction
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.analytic import GaussianPsf
from alertprod.tasks.scale_variance import ScaleVarianceConfig, ScaleVarianceTask, compute_pull_width

SIDE = 256
# A width from quartiles has the standard error 1.36 / sqrt(2 n); the factor is its square, twice as uncertain.
FACTOR_ERROR = 2 * 1.36 / np.sqrt(2 * SIDE**2)
PSF = GaussianPsf(fwhm=4.0)


def make_noise(*, variance=9.0, claimed=9.0, seed=5):
    rng = np.random.default_rng(seed)
    image = (np.sqrt(variance) * rng.standard_normal((SIDE, SIDE))).astype(np.float32)
    return MaskedImage(image, np.zeros((SIDE, SIDE), np.int32), np.full((SIDE, SIDE), claimed, np.float32))


def make_task(**fields):
    config = ScaleVarianceConfig()
    config.update(**fields)
    return ScaleVarianceTask(config)


@pytest.mark.parametrize("wrong_by", [0.5, 1.0, 1.345, 4.0])
def test_factor_is_how_far_the_plane_is_off(wrong_by):
    noise = make_noise(variance=9.0 * wrong_by)
    before = noise.image.copy()
    factor = make_task().run(noise)
    # The background's 8 x 8 bins are fitted to the same pixels: 64 of 65536 degrees of freedom.
    assert factor == pytest.approx(wrong_by, rel=5 * FACTOR_ERROR + 0.001)
    np.testing.assert_allclose(noise.variance, 9.0 * factor, rtol=1e-6)
    np.testing.assert_array_equal(noise.image, before)


def test_sources_and_masked_pixels_do_not_count():
    noise = make_noise()
    noise.image[50:90, 50:90] += 500.0
    noise.mask[50:90, 50:90] |= plane_bits("DETECTED")
    noise.image[100:110] = np.nan
    noise.image[:, 200:205] = 1e5
    noise.mask[:, 200:205] |= plane_bits("SAT")
    assert make_task().run(noise) == pytest.approx(1.0, abs=6 * FACTOR_ERROR)


def test_a_smooth_background_does_not_count():
    noise = make_noise()
    noise.image += np.linspace(-10.0, 10.0, SIDE, dtype=np.float32)
    assert make_task().run(noise) == pytest.approx(1.0, abs=6 * FACTOR_ERROR)


def test_scaling_is_done_once():
    noise = make_noise(claimed=5.0)
    make_task().run(noise)
    assert make_task().run(noise) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("wrong_by", [0.09, 11.5])
def test_a_plane_that_means_nothing_is_an_error_with_its_number(wrong_by):
    noise = make_noise(variance=9.0 * wrong_by)
    with pytest.raises(BadSubtraction) as caught:
        make_task().run(noise)
    assert caught.value.value == pytest.approx(wrong_by, rel=0.05)
    assert caught.value.limit == 10.0
    np.testing.assert_array_equal(noise.variance, 9.0)


def test_the_limit_is_configured():
    assert make_task(limit=20.0).run(make_noise(variance=9.0 * 11.5)) == pytest.approx(11.5, rel=0.05)


def test_without_pixels_nothing_is_scaled():
    noise = make_noise()
    noise.mask[...] = plane_bits("NO_DATA")
    assert make_task().run(noise, PSF) == 1.0
    np.testing.assert_array_equal(noise.variance, 9.0)


def test_white_noise_is_white_to_a_point_source():
    noise = make_noise()
    task = make_task()
    factor = task.run(noise, PSF)
    # The matched filter leaves about one independent value per 4 pi sigma^2 = 36 pixels.
    assert task.metadata["noiseCorrelation"] == pytest.approx(1.0, abs=5 * 1.36 / np.sqrt(2 * SIDE**2 / 36))
    assert factor == pytest.approx(1.0, abs=6 * FACTOR_ERROR)


def test_correlated_noise_raises_the_variance_to_what_a_point_source_sees():
    noise = make_noise()
    blur = ndimage.gaussian_filter(noise.image, 0.6)
    noise.image[...] = blur * (3.0 / blur.std())
    task = make_task()
    factor = task.run(noise, PSF)
    correlation = task.metadata["noiseCorrelation"]
    assert correlation > 1.1
    assert factor == pytest.approx(correlation**2, rel=6 * FACTOR_ERROR)
    significance = compute_significance(noise, make_filter_kernel(PSF), bad_bits=0)
    assert significance.std() == pytest.approx(1.0, abs=5 / np.sqrt(2 * SIDE**2 / 36))


def test_a_plane_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="there is no NOPE"):
        make_task(maskPlanes=["SAT", "NOPE"])


def test_pull_width_is_that_of_the_pixels_that_count():
    noise = make_noise(variance=36.0)
    assert compute_pull_width(Exposure(masked_image=noise), planes=("SAT",)) == pytest.approx(2.0, rel=FACTOR_ERROR * 5)
    noise.mask[...] = plane_bits("SAT")
    assert np.isnan(compute_pull_width(Exposure(masked_image=noise), planes=("SAT",)))


def test_a_part_of_a_large_image_tells_that_its_noise_is_white(monkeypatch):
    monkeypatch.setattr("alertprod.tasks.scale_variance._ENOUGH_PIXELS", SIDE**2 // 4)
    monkeypatch.setattr("alertprod.tasks.scale_variance.BAND", 16)
    task, noise = make_task(), make_noise()
    of_all = make_task()
    monkeypatch.setattr(of_all, "config", make_task(maxNoiseCorrelation=0.9).config)
    whole, part = of_all.computeNoiseCorrelation(noise, PSF), task.computeNoiseCorrelation(noise, PSF)
    assert part != whole
    # A filter of 4 pixels FWHM leaves one independent value in 4 pi sigma^2 = 36 pixels.
    assert part == pytest.approx(whole, abs=5 * 1.17 / np.sqrt(SIDE**2 / 4 / 36))
    # Correlated noise, and a sample that is masked, are looked at in full.
    smooth = make_noise()
    smooth.image[...] = ndimage.gaussian_filter(smooth.image, 1.0)
    assert task.computeNoiseCorrelation(smooth, PSF) == of_all.computeNoiseCorrelation(smooth, PSF)
    for first in range(0, SIDE, 64):
        noise.mask[first : first + 16] = plane_bits("BAD")
    assert task.computeNoiseCorrelation(noise, PSF) == of_all.computeNoiseCorrelation(noise, PSF)
