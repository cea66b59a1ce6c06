"""What was put into the images comes out of them: complete, unbiased, with the errors it says, and little else.

The bounds follow from Gaussian noise and the number of changes, five standard errors wide; what is allowed beyond
them is named.
"""

import numpy as np
import pytest
from scipy.stats import norm

from alertprod.images.mask import plane_bits

THRESHOLD = 5.0
FALSE_PER_PIXEL = 6.0 / 4096**2
"""Peaks beyond 5 sigma, of either sign, of white noise seen through a PSF of FWHM 4.4."""

ALLOWED_BY_STARS = 1
"""False detections a field by stars so bright that the kernel is not as accurate as their photons."""

ALLOWED_BY_STARS_WHEN_SHARPER = 8
"""The same where the science image is convolved: the wings of its halo reach beyond the kernel."""

SKY = ("DETECTED", "DETECTED_NEGATIVE", "BAD", "SAT", "CR", "NO_DATA", "EDGE", "SAT_TEMPLATE")


def collect(fields, quantity, *, min_snr=7.0, sign=None):
    """Return the pulls of a quantity over the changes that were found."""
    pulls = []
    for field in fields:
        wanted = (field.row >= 0) & (field.snr > min_snr)
        if sign is not None:
            wanted &= np.sign(field.flux_njy) == sign
        rows, sources = field.row[wanted], field.differenced.sources
        measured, error, truth = {
            "flux": ("psf_flux", "psf_flux_err", field.flux_njy),
            "x": ("x", "x_err", field.x),
            "y": ("y", "y_err", field.y),
        }[quantity]
        pulls.append((sources[measured][rows] - truth[wanted]) / sources[error][rows])
    return np.concatenate(pulls)


def sky_pulls(field):
    difference = field.differenced.difference
    good = difference.masked_image.usable(plane_bits(*SKY))
    return np.where(good, difference.image / np.sqrt(difference.variance), np.nan)


@pytest.mark.parametrize("min_snr", [7.0, 10.0])
def test_changes_are_found_as_often_as_noise_allows(fields, min_snr):
    snr = np.concatenate([field.snr for field in fields])
    found = np.concatenate([field.row >= 0 for field in fields])
    bright = snr > min_snr
    chance = norm.cdf(snr[bright] - THRESHOLD)
    assert bright.sum() > 100
    # One change beyond that: it may lie where a bright star was subtracted.
    least = chance.sum() - 5 * np.sqrt((chance * (1 - chance)).sum()) - 1
    assert found[bright].sum() >= least
    assert found[bright].mean() > 0.97


def test_both_signs_are_found_with_their_sign(fields):
    found = []
    for field in fields:
        wanted = (field.row >= 0) & (field.snr > 10)
        rows, sources = field.row[wanted], field.differenced.sources
        sign = np.sign(field.flux_njy[wanted])
        np.testing.assert_array_equal(np.sign(sources["psf_flux"][rows]), sign)
        found.append(np.stack([sign, sources["is_negative"][rows]]))
    sign, is_negative = np.concatenate(found, axis=1)
    assert min((sign > 0).sum(), (sign < 0).sum()) > 40
    assert not is_negative[sign > 0].any()
    # Beside a bright star a footprint may have pixels of both signs.
    assert is_negative[sign < 0].mean() > 0.95


def test_each_change_is_found_once(fields):
    for field in fields:
        rows = field.row[field.row >= 0]
        assert len(np.unique(rows)) == len(rows)


def most_false(n_pixels):
    expected = FALSE_PER_PIXEL * n_pixels
    return expected + 5 * np.sqrt(expected)


def test_false_detections_are_those_of_noise(fields):
    n_pixels = sum(field.differenced.difference.image.size for field in fields)
    assert sum(field.n_false for field in fields) <= most_false(n_pixels)
    assert sum(field.n_false_by_stars for field in fields) <= ALLOWED_BY_STARS * len(fields)


@pytest.mark.parametrize("sign", [-1.0, 1.0, None])
@pytest.mark.parametrize("quantity", ["flux", "x", "y"])
def test_pulls_are_standard_normal(fields, quantity, sign):
    pulls = collect(fields, quantity, sign=sign)
    n = len(pulls)
    assert n > 60
    assert pulls.mean() == pytest.approx(0.0, abs=5 / np.sqrt(n))
    assert pulls.std() == pytest.approx(1.0, abs=5 / np.sqrt(2 * n))
    assert np.abs(pulls).max() < 5.0


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_flux_scale_is_the_true_one(fields, sign):
    numerator = denominator = 0.0
    for field in fields:
        wanted = (field.row >= 0) & (field.snr > 7) & (np.sign(field.flux_njy) == sign)
        rows, sources = field.row[wanted], field.differenced.sources
        weight = sources["psf_flux_err"][rows].astype(float) ** -2
        numerator += (weight * sources["psf_flux"][rows] * field.flux_njy[wanted]).sum()
        denominator += (weight * field.flux_njy[wanted] ** 2).sum()
    assert numerator / denominator == pytest.approx(1.0, abs=5 / np.sqrt(denominator))


def test_pixels_scatter_as_their_variance_says(fields):
    for field in fields:
        pulls = sky_pulls(field)
        n = np.isfinite(pulls).sum()
        low, high = np.nanpercentile(pulls, [25.0, 75.0])
        # The standard error of a width from quartiles is 1.36 / sqrt(2 n).
        error = 1.36 / np.sqrt(2 * n)
        assert 0.7413 * (high - low) == pytest.approx(1.0, abs=5 * error)
        assert np.nanmean(pulls) == pytest.approx(0.0, abs=5 / np.sqrt(n))
        # What the rescaling found left to do: the variance was right before it, to twice that error.
        assert field.differenced.figures["variance_scale"] == pytest.approx(1.0, abs=5 * 2 * error)


def test_noise_is_white(fields):
    for field in fields:
        pulls = sky_pulls(field)
        for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0)):
            ny, nx = pulls.shape
            product = pulls[dy:, dx:] * pulls[: ny - dy, : nx - dx]
            n = np.isfinite(product).sum()
            # Warping correlated the template's tenth of the noise, which nothing undoes: its share of 0.02 is allowed.
            assert abs(np.nanmean(product)) < 0.02 + 5 / np.sqrt(n)


def test_figures_describe_the_field(fields):
    for field in fields:
        figures = field.differenced.figures
        assert figures["n_sources"] == field.differenced.sources.n_rows
        # Wings beyond the PSF's 41 pixels are in another share of the two images' stamps.
        assert figures["kernel_sum"] == pytest.approx(1.0, abs=0.01)
        assert figures["template_coverage"] == 1.0
        assert figures["residual_ratio"] < 1.1
        assert figures["n_kernel_sources"] > 20


def test_a_sharper_science_image_is_convolved_and_changes_are_found_all_the_same(sharp_field):
    difference = sharp_field.differenced.difference
    assert difference.info.provenance["convolved"] == "science"
    bright = sharp_field.snr > 12
    assert bright.sum() > 20
    assert (sharp_field.row[bright] < 0).sum() <= 1
    for quantity in ("flux", "x", "y"):
        pulls = collect([sharp_field], quantity, min_snr=10.0)
        n = len(pulls)
        assert pulls.mean() == pytest.approx(0.0, abs=5 / np.sqrt(n))
        assert pulls.std() == pytest.approx(1.0, abs=5 / np.sqrt(2 * n))
    assert sharp_field.n_false <= most_false(difference.image.size)
    assert sharp_field.n_false_by_stars <= ALLOWED_BY_STARS_WHEN_SHARPER
    # The template's noise, resampled to smaller pixels, stays correlated: the variance was raised to what a point source
    # sees of it, and pixels one by one scatter less.
    figures = sharp_field.differenced.figures
    raised = figures["noise_correlation"] if figures["noise_correlation"] > 1.1 else 1.0
    assert figures["pull_width"] * raised == pytest.approx(1.0, abs=0.01)
