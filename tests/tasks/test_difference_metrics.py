"""Figures of a difference: each against what it must be for images that are known."""

from dataclasses import replace

import numpy as np
import pytest

from alertprod.errors import BadSubtraction
from alertprod.images.exposure import Exposure
from alertprod.images.mask import MASK_PLANES, plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import AB_ZERO_POINT_NJY, PhotoCalib
from alertprod.psf.analytic import GaussianPsf
from alertprod.psf.model import FWHM_PER_SIGMA
from alertprod.tasks import difference_metrics
from alertprod.tasks.difference_metrics import (
    check_footprint_ratio,
    compute_footprint_ratios,
    compute_limiting_magnitude,
    compute_limiting_magnitudes,
    compute_psf_sizes,
    count_pixels,
)
from alertprod.tasks.sources import make_source_catalog

SHAPE = (300, 260)
SIGMA = 2.0
NOT_SKY = ("NO_DATA", "DETECTED", "EDGE")


def make_noise(*, seed: int = 3, noise: float = 1.0, psf=None, njy_per_count: float = 1.0) -> Exposure:
    """White noise of a true variance plane."""
    planes = MaskedImage(
        np.random.default_rng(seed).normal(0.0, noise, SHAPE).astype(np.float32),
        np.zeros(SHAPE, np.int32),
        np.full(SHAPE, noise**2, np.float32),
    )
    return Exposure(
        masked_image=planes, psf=psf or GaussianPsf.from_sigma(SIGMA), photo_calib=PhotoCalib(njy_per_count)
    )


# -- PSF sizes --


def test_psf_sizes_are_full_widths_at_half_maximum_in_pixels():
    sizes = compute_psf_sizes(make_noise(psf=GaussianPsf(fwhm=4.0)), make_noise(psf=GaussianPsf(fwhm=6.0)))
    assert sizes == pytest.approx({"sciencePsfSize": 4.0, "templatePsfSize": 6.0}, rel=1e-4)


def test_the_size_of_a_missing_psf_is_nan():
    sizes = compute_psf_sizes(make_noise(), replace(make_noise(), psf=None))
    assert np.isnan(sizes["templatePsfSize"])
    assert sizes["sciencePsfSize"] == pytest.approx(FWHM_PER_SIGMA * SIGMA, rel=1e-4)


# -- limiting magnitudes --


def test_limit_is_five_times_the_noise_of_an_optimal_flux():
    # The noise-equivalent area of a Gaussian is 4 pi sigma^2.
    noise, njy = 3.0, 20.0
    expected = AB_ZERO_POINT_NJY - 2.5 * np.log10(5.0 * noise * np.sqrt(4.0 * np.pi) * SIGMA * njy)
    made = make_noise(noise=noise, njy_per_count=njy)
    assert compute_limiting_magnitude(made, sky_planes=NOT_SKY) == pytest.approx(expected, abs=1e-5)


def test_a_star_at_the_limit_is_measured_with_five_sigma():
    # The definition itself: fluxes fitted at one place of many noise images scatter by a fifth of the limiting flux.
    n = 2000
    psf = GaussianPsf.from_sigma(SIGMA).compute_kernel_image(x=0, y=0)
    noise = np.random.default_rng(8).normal(0.0, 1.5, (n, *psf.shape))
    scatter = ((noise * psf).sum(axis=(1, 2)) / (psf**2).sum()).std()
    limit = 10.0 ** (0.4 * (AB_ZERO_POINT_NJY - compute_limiting_magnitude(make_noise(noise=1.5), sky_planes=NOT_SKY)))
    assert limit / 5.0 == pytest.approx(scatter, rel=5.0 / np.sqrt(2.0 * n))


def test_limit_does_not_depend_on_the_units():
    plain, scaled = make_noise(noise=2.0), make_noise(noise=2.0 * 7.0, njy_per_count=1.0 / 7.0)
    limits = [compute_limiting_magnitude(made, sky_planes=NOT_SKY) for made in (plain, scaled)]
    assert limits[0] == pytest.approx(limits[1], abs=1e-6)


def test_what_is_not_sky_does_not_count_for_the_limit():
    made = make_noise()
    expected = compute_limiting_magnitude(made, sky_planes=NOT_SKY)
    made.variance[:250] = 100.0
    made.mask[:250] = plane_bits("DETECTED")
    assert compute_limiting_magnitude(made, sky_planes=NOT_SKY) == expected
    assert compute_limiting_magnitude(made, sky_planes=("NO_DATA",)) < expected - 2.0


def test_a_limit_needs_sky_and_a_psf():
    no_sky = make_noise()
    no_sky.mask[...] = plane_bits("NO_DATA")
    assert np.isnan(compute_limiting_magnitude(no_sky, sky_planes=NOT_SKY))
    assert np.isnan(compute_limiting_magnitude(replace(make_noise(), psf=None), sky_planes=NOT_SKY))


def test_a_differences_limit_adds_the_flux_variances_of_both():
    limits = compute_limiting_magnitudes(make_noise(noise=1.0), make_noise(noise=1.0), sky_planes=NOT_SKY)
    assert limits["scienceLimitingMagnitude"] == limits["templateLimitingMagnitude"]
    # Twice the variance: a magnitude of 2.5 log10(sqrt 2) less.
    lost = 2.5 * np.log10(np.sqrt(2.0))
    assert limits["diffimLimitingMagnitude"] == pytest.approx(limits["scienceLimitingMagnitude"] - lost, abs=1e-6)
    deep = compute_limiting_magnitudes(make_noise(noise=1.0), make_noise(noise=1e-4), sky_planes=NOT_SKY)
    assert deep["diffimLimitingMagnitude"] == pytest.approx(deep["scienceLimitingMagnitude"], abs=1e-6)


def test_without_a_template_limit_the_difference_has_the_science_images():
    limits = compute_limiting_magnitudes(make_noise(), replace(make_noise(), psf=None), sky_planes=NOT_SKY)
    assert np.isnan(limits["templateLimitingMagnitude"])
    assert limits["diffimLimitingMagnitude"] == pytest.approx(limits["scienceLimitingMagnitude"], abs=1e-9)


def test_without_a_science_limit_there_is_no_limit_of_a_difference():
    limits = compute_limiting_magnitudes(replace(make_noise(), psf=None), make_noise(), sky_planes=NOT_SKY)
    assert np.isnan(limits["diffimLimitingMagnitude"])


# -- footprint ratios --

FLUX = 20_000.0
STARS = make_source_catalog(
    x=np.array([50.0, 130.4, 210.0, 60.2, 190.0]),
    y=np.array([60.0, 50.0, 80.7, 210.0, 200.3]),
    flux=np.full(5, FLUX),
)


def add_stars(exposure: Exposure, flux: float) -> Exposure:
    for x, y in zip(STARS["x"], STARS["y"], strict=True):
        stamp, box = exposure.psf.compute_stellar_image(x=x, y=y)
        exposure.image[box.slices] += (flux * stamp).astype(np.float32)
    return exposure


def ratios_of(difference, science, *, stars=STARS, **sky):
    return compute_footprint_ratios(difference, science, stars, prefix="difference", sky_planes=NOT_SKY, **sky)


@pytest.fixture
def science() -> Exposure:
    return add_stars(make_noise(seed=1, noise=0.1), FLUX)


@pytest.mark.parametrize("left", [0.05, -0.3, 1.0])
def test_ratio_is_the_share_of_the_light_that_is_left(science, left):
    difference = add_stars(make_noise(seed=2, noise=0.01), left * FLUX)
    ratios = ratios_of(difference, science)
    # Noise adds to the mean of |D| and |S| away from the stars' cores: a few parts in a thousand here.
    assert ratios["differenceFootprintRatioMean"] == pytest.approx(abs(left), rel=0.02)
    assert ratios["differenceFootprintRatioStdev"] < 0.01 * abs(left)


def test_noise_alone_leaves_nothing(science):
    ratios = ratios_of(make_noise(seed=2, noise=1.0), science)
    n_pixels = np.pi * (2.5 * FWHM_PER_SIGMA * SIGMA) ** 2
    # The mean of |N| over a footprint scatters by sqrt(1 - 2/pi) / sqrt(n).
    scatter = np.sqrt(1.0 - 2.0 / np.pi) / np.sqrt(n_pixels) / (FLUX / n_pixels)
    assert ratios["differenceFootprintRatioMean"] < 5.0 * scatter


def test_sky_from_pixels_is_sky_from_sky_sources(science, monkeypatch):
    # A faint difference in much noise: had the sky its median, an eighth of the noise would stay.
    difference = make_noise(seed=2, noise=1.0)
    rng = np.random.default_rng(4)
    sky_x, sky_y = rng.uniform(20, 240, 200), rng.uniform(100, 180, 200)
    from_pixels = ratios_of(difference, science)
    from_sources = ratios_of(difference, science, sky_x=sky_x, sky_y=sky_y)
    n_pixels = np.pi * (2.5 * FWHM_PER_SIGMA * SIGMA) ** 2
    # Both know the sky's level, 0.8, to better than 1 %.
    assert from_pixels["differenceFootprintRatioMean"] == pytest.approx(
        from_sources["differenceFootprintRatioMean"], abs=0.01 * n_pixels / FLUX
    )
    monkeypatch.setattr(difference_metrics, "_MEAN_OVER_MEDIAN", 1.0)
    assert ratios_of(difference, science)["differenceFootprintRatioMean"] > 0.1 * n_pixels / FLUX


def test_sky_sources_have_the_ratio_of_the_two_noises(science):
    # Between the rows of stars there is nothing but noise, of 0.3 and 0.1.
    rng = np.random.default_rng(4)
    sky_x, sky_y = rng.uniform(20, 240, 300), rng.uniform(105, 175, 300)
    ratios = ratios_of(make_noise(seed=2, noise=0.3), science, sky_x=sky_x, sky_y=sky_y)
    n_pixels = np.pi * 8.0**2
    # Of one footprint: mean of |N| has sqrt(pi/2 - 1) / sqrt(n), the quotient of two the root of two times that.
    relative = np.sqrt(np.pi / 2.0 - 1.0) * np.sqrt(2.0 / n_pixels)
    assert ratios["differenceFootprintSkyRatioMean"] == pytest.approx(3.0, rel=relative)
    assert ratios["differenceFootprintSkyRatioStdev"] == pytest.approx(3.0 * relative, rel=0.3)


def test_bad_pixels_do_not_count_and_a_star_that_is_half_bad_neither(science):
    difference = add_stars(make_noise(seed=2, noise=0.01), 0.1 * FLUX)
    expected = ratios_of(difference, science)
    column = round(float(STARS["x"][0]))
    difference.image[:, column + 4 :][50:70, :3] = 1e6
    difference.mask[:, column + 4 :][50:70, :3] = plane_bits("SAT")
    some_bad = ratios_of(difference, science)["differenceFootprintRatioMean"]
    assert some_bad == pytest.approx(expected["differenceFootprintRatioMean"], rel=0.01)
    difference.mask[:, : column + 1] = plane_bits("NO_DATA")
    difference.image[:, : column + 1] = np.nan
    four = STARS.select(np.array([1, 2, 3, 4]))
    ratios = ratios_of(difference, science)
    # The fourth star stands in the strip too, ten pixels further: not half of it is lost.
    assert ratios == pytest.approx(ratios_of(difference, science, stars=four), nan_ok=True)


def test_stars_off_the_image_do_not_count(science):
    difference = add_stars(make_noise(seed=2, noise=0.01), 0.1 * FLUX)
    more = make_source_catalog(x=np.append(STARS["x"], [-50.0, np.nan]), y=np.append(STARS["y"], [10.0, 10.0]))
    assert ratios_of(difference, science, stars=more) == pytest.approx(ratios_of(difference, science), nan_ok=True)


def test_without_stars_there_is_no_ratio(science):
    ratios = ratios_of(make_noise(), science, stars=STARS.select(np.zeros(5, dtype=bool)))
    assert list(ratios) == [
        "differenceFootprintRatioMean",
        "differenceFootprintRatioStdev",
        "differenceFootprintRatioMedian",
        "differenceFootprintSkyRatioMean",
        "differenceFootprintSkyRatioStdev",
    ]
    assert np.isnan(list(ratios.values())).all()
    check_footprint_ratio(ratios, prefix="difference", max_median=0.2)


def test_too_much_left_of_the_stars_is_a_bad_subtraction(science):
    ratios = ratios_of(add_stars(make_noise(seed=2, noise=0.01), 0.3 * FLUX), science)
    check_footprint_ratio(ratios, prefix="difference", max_median=0.31)
    check_footprint_ratio(ratios, prefix="difference", max_median=None)
    with pytest.raises(BadSubtraction, match="differenceFootprintRatioMedian") as caught:
        check_footprint_ratio(ratios, prefix="difference", max_median=0.2)
    assert caught.value.value == pytest.approx(0.3, rel=0.02)
    assert caught.value.limit == 0.2


def test_a_transient_on_a_star_is_no_bad_subtraction(science):
    difference = make_noise(seed=2, noise=0.1)
    stamp, box = difference.psf.compute_stellar_image(x=STARS["x"][0], y=STARS["y"][0])
    difference.image[box.slices] += (10.0 * FLUX * stamp).astype(np.float32)
    ratios = ratios_of(difference, science)
    assert ratios["differenceFootprintRatioMean"] > 1.0
    check_footprint_ratio(ratios, prefix="difference", max_median=0.2)


# -- pixel counts --


def test_pixels_are_counted_by_what_they_are():
    mask = np.zeros((600, 50), np.int32)
    mask[:10] |= plane_bits("DETECTED")
    mask[5:25] |= plane_bits("NO_DATA")
    mask[20:26, :10] |= plane_bits("DETECTED_NEGATIVE")
    mask[590:] |= plane_bits("SPIKE")
    counts = count_pixels(mask, bad_planes=("NO_DATA", "SPIKE"), planes=("SPIKE", "CR", "DETECTED_NEGATIVE"))
    assert counts == {
        "nGoodPixels": 600 * 50 - 30 * 50,
        "nBadPixels": 30 * 50,
        "nPixelsDetectedPositive": 500,
        "nPixelsDetectedNegative": 60,
        "nBadPixelsDetectedPositive": 250,
        "nBadPixelsDetectedNegative": 50,
        "spike_mask_fraction": 500 / 30000,
        "cr_mask_fraction": 0.0,
        "detected_negative_mask_fraction": 60 / 30000,
    }


def test_counts_equal_those_of_plain_numpy():
    mask = np.random.default_rng(2).integers(0, 1 << len(MASK_PLANES), (517, 33)).astype(np.int32)
    counts = count_pixels(mask, bad_planes=("BAD", "SAT"), planes=tuple(MASK_PLANES))
    bad = (mask & plane_bits("BAD", "SAT")) != 0
    assert counts["nBadPixels"] == np.count_nonzero(bad)
    assert counts["nBadPixelsDetectedNegative"] == np.count_nonzero(bad & (mask & plane_bits("DETECTED_NEGATIVE") != 0))
    for plane in MASK_PLANES:
        expected = np.count_nonzero(mask & plane_bits(plane)) / mask.size
        assert counts[f"{plane.lower()}_mask_fraction"] == expected


def test_a_plane_that_does_not_exist_is_an_error():
    with pytest.raises(KeyError, match="NOPE"):
        count_pixels(np.zeros((3, 3), np.int32), bad_planes=(), planes=("NOPE",))


def test_bits_that_are_no_planes_do_not_count():
    mask = np.full((3, 4), plane_bits("BAD"), np.int32)
    mask[0] |= np.int32(1 << 30)
    mask[1] |= np.int32(-(2**31))
    counts = count_pixels(mask, bad_planes=("BAD",), planes=("SAT",))
    assert (counts["nBadPixels"], counts["sat_mask_fraction"]) == (12, 0.0)
