from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from alertprod.images.mask import plane_bits
from alertprod.subtraction.alard_lupton import match_images
from alertprod.subtraction.candidate_quality import (
    compare_by_distance,
    compare_by_tails,
    measure_candidates,
    measure_kernel,
)
from alertprod.subtraction.config import AlardLuptonConfig


def test_distance_from_the_normal_distribution_is_kolmogorovs(rng):
    for scale in (1.0, 1.3):
        sample = rng.normal(0.1, scale, 500)
        distance, probability = compare_by_distance(sample)
        expected = stats.kstest(sample, "norm")
        assert distance == pytest.approx(expected.statistic, rel=1e-12)
        assert probability == pytest.approx(expected.pvalue, rel=0.02, abs=1e-5)


def test_a_squared_is_the_integral_it_stands_for(rng):
    """Against n times the integral of (F_n - F)² / (F (1 - F)) over F, by hand on a fine grid."""
    sample = rng.normal(0.2, 1.1, 40)
    grid = np.linspace(1e-7, 1.0 - 1e-7, 2_000_001)
    empirical = np.searchsorted(np.sort(stats.norm.cdf(sample)), grid, side="right") / 40
    integral = 40 * np.trapezoid((empirical - grid) ** 2 / (grid * (1.0 - grid)), grid)
    assert compare_by_tails(sample)[0] == pytest.approx(integral, rel=1e-3)


@pytest.mark.parametrize("compare", [compare_by_distance, compare_by_tails])
def test_probabilities_of_noise_are_spread_evenly(rng, compare):
    n = 600
    probabilities = [compare(rng.normal(size=400))[1] for _ in range(n)]
    for level in (0.05, 0.3, 0.7):
        error = np.sqrt(level * (1 - level) / n)
        assert np.mean(np.array(probabilities) < level) == pytest.approx(level, abs=4 * error)


def test_wings_far_out_are_improbable():
    sample = stats.norm.ppf((np.arange(400) + 0.5) / 400)
    assert compare_by_tails(sample)[1] > 0.99
    assert compare_by_tails(np.r_[sample, -45.0, 45.0])[1] < 0.01


def test_a_kernels_centroid_and_width_are_its_gaussians():
    v, u = np.mgrid[-12:13, -12:13]
    kernel = 1.3 * np.exp(-0.5 * ((u - 0.7) ** 2 + (v + 1.2) ** 2) / 1.8**2)
    np.testing.assert_allclose(measure_kernel(kernel), (0.7, -1.2, 1.8), atol=1e-4)
    assert np.isnan(measure_kernel(-kernel)).all()


@pytest.fixture
def pair(rng, make_field, make_psf):
    field = make_field(rng, shape=(300, 300), n=25, flux=(3e3, 3e4))
    science = field.observe(make_psf(2.4), noise=1.0, rng=rng, background=2.0)
    template = field.observe(make_psf(1.9), noise=0.5, rng=rng)
    return science, template, make_psf(2.4), make_psf(1.9), field


def measure(pair, convolve, science=None):
    changed, template, science_psf, template_psf, field = pair
    changed = changed if science is None else science
    result = match_images(
        changed,
        template,
        science_psf=science_psf,
        template_psf=template_psf,
        star_x=field.x,
        star_y=field.y,
        star_flux=field.flux,
        convolve=convolve,
    )
    images = (template, changed) if convolve == "template" else (changed, template)
    sign = 1 if convolve == "template" else -1
    return measure_candidates(*images, result.fit.cell_set, config=AlardLuptonConfig(), sign=sign), result


def test_residuals_of_good_stars_are_noise(pair):
    quality, result = measure(pair, "template")
    for statistics in (quality.local, quality.spatial):
        used = result.used
        n = quality.n_pixels[used]
        assert (n == 23**2).all()
        assert (np.abs(statistics.mean[used]) < 5 / np.sqrt(n)).all()
        np.testing.assert_allclose(statistics.stdev[used], 1.0, atol=5 / np.sqrt(2 * 23**2))
        np.testing.assert_allclose(statistics.iqr[used], 1.349, atol=5 * 1.57 / 23)
        # A kernel of 27 functions and 3 of sky takes its degrees of freedom.
        assert np.median(statistics.chi2[used]) == pytest.approx(1.0, abs=2 * 30 / 23**2)
        assert np.median(statistics.ks_probability[used]) > 0.05
        assert np.median(statistics.ad_probability[used]) > 0.05
        np.testing.assert_allclose(statistics.background[used], 2.0, atol=0.5)
        np.testing.assert_allclose(statistics.kernel_sigma[used], np.sqrt(2.4**2 - 1.9**2), rtol=0.3)
        assert np.median(statistics.kernel_sum[used]) == pytest.approx(1.0, abs=0.01)


def test_figures_are_those_of_the_differences_pixels(pair):
    """The difference on a star's stamp, over the noise of its two images, has the same mean and median."""
    quality, result = measure(pair, "template")
    *_, field = pair
    for star in result.used[:3]:
        x, y = int(np.floor(field.x[star] + 0.5)), int(np.floor(field.y[star] + 0.5))
        stamp = result.difference.image[y - 11 : y + 12, x - 11 : x + 12]
        power = (result.kernel(field.x[star], field.y[star]) ** 2).sum()
        pulls = stamp / np.sqrt(1.0 + 0.25 * power)
        # The image is convolved with the kernel of each pixel, the stamp with that of its star.
        assert quality.spatial.mean[star] == pytest.approx(pulls.mean(), abs=0.02)
        assert quality.spatial.median[star] == pytest.approx(np.median(pulls), abs=0.05)
        assert quality.spatial.stdev[star] == pytest.approx(pulls.std(), rel=0.02)


@pytest.mark.parametrize("convolve", ["template", "science"])
def test_a_star_that_brightened_has_positive_residuals_with_the_matchs_kernel_alone(pair, make_psf, convolve):
    science, *_, field = pair
    science = science.copy()
    index = int(measure(pair, convolve)[1].used[0])
    alone = replace(field, x=field.x[[index]], y=field.y[[index]], flux=0.3 * field.flux[[index]])
    science.image += alone.draw(make_psf(2.4)).astype(np.float32)
    quality, result = measure(pair, convolve, science)
    assert index in result.rejected
    assert quality.spatial.mean[index] > 0.2
    assert quality.spatial.ad_probability[index] < 1e-6
    assert abs(quality.local.mean[index]) < 0.2
    assert quality.local.chi2[index] < quality.spatial.chi2[index] / 5


def test_a_star_without_a_clean_stamp_has_no_figures(pair):
    science, *_, field = pair
    science = science.copy()
    result = measure(pair, "template")[1]
    index = int(result.used[0])
    science.mask[round(field.y[index]), round(field.x[index])] |= plane_bits("SAT")
    quality = measure(pair, "template", science)[0]
    assert quality.n_pixels[index] == 0
    assert np.isnan(quality.local.mean[index])
    assert np.isnan(quality.spatial.kernel_sum[index])
