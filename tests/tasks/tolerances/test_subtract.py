"""The reference's tolerances for the subtraction: its test_subtractTask, row by row, on its own simulation.

What is looked at is the difference as `ImageDifferenceTask.run` delivers it, its background taken off. What the
reference fits on are the detected sources of the science image, here the same sources as they were drawn. The match is
the reference's, without our correction for the noise of the convolved image: that believes the variance plane, and
this simulation's plane claims noise under the sources that its pixels do not have.
"""

from dataclasses import replace

import numpy as np
import pytest
from tolerance_skies import BACKGROUND, BAD, GOOD, MID, SHAPE, MadeSky, draw_background, make_sky

from alertprod.errors import BadSubtraction, InsufficientKernelSources, NoTemplateCoverage
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.images.photo_calib import AB_ZERO_POINT_NJY
from alertprod.tasks.difference_metrics import compute_footprint_ratios, compute_limiting_magnitudes
from alertprod.tasks.image_difference import ImageDifferenceConfig, ImageDifferenceTask
from alertprod.tasks.scale_variance import ScaleVarianceTask
from alertprod.tasks.task import Struct

N_PIXELS = SHAPE[0] * SHAPE[1]

NOT_SKY = ("NO_DATA", "EDGE", "DETECTED", "DETECTED_NEGATIVE")


def make_task(*, mode: str | None = None, **fields) -> ImageDifferenceTask:
    config = ImageDifferenceConfig()
    config.update(**{"doMeasurement": False, "doMerge": False, "doScaleDiffimVariance": False, **fields})
    config.subtract["al"].mode = mode
    config.subtract["al"].kernel["AL"].correctNoiseBias = False
    # The reference's order, as it is: two modes that choose orders of their own differ by more than its tolerance.
    config.subtract["al"].kernel["AL"].maxSpatialKernelOrder = 0
    return ImageDifferenceTask(config)


def subtract(science: MadeSky, template: MadeSky, *, task: ImageDifferenceTask | None = None, **fields) -> Struct:
    return (task or make_task(**fields)).run(
        exposure=science.exposure, templateExposure=template.exposure, selectSources=science.sources
    )


def make_template(**changes) -> MadeSky:
    return make_sky(**{"noise_seed": 7, **changes})


def good_pixels(exposure: Exposure) -> np.ndarray:
    return exposure.masked_image.usable(plane_bits("NO_DATA", "EDGE", "BAD", "SAT"))


def clipped(values: np.ndarray) -> np.ndarray:
    """Return the values within 3 standard deviations of their mean, three times over."""
    for _ in range(3):
        values = values[np.abs(values - values.mean()) <= 3.0 * values.std()]
    return values


def clipped_mean(exposure: Exposure) -> float:
    return float(clipped(exposure.image[good_pixels(exposure)].astype(float)).mean())


def sky_variance(exposure: Exposure, science: MadeSky) -> float:
    """Return the clipped mean of the variance plane off the sources, where the simulation's plane is true."""
    sky = good_pixels(exposure) & ((science.exposure.mask & plane_bits("DETECTED")) == 0)
    return float(clipped(exposure.variance[sky].astype(float)).mean())


def clipped_stdev(exposure: Exposure) -> float:
    """Robust standard deviation: the tails that clipping at 3 sigma takes are put back (0.9866 for a Gaussian)."""
    return float(clipped(exposure.image[good_pixels(exposure)].astype(float)).std()) / 0.98660


# -- noise of the difference --


def test_equal_psfs_leave_noise_alone():
    noise = 1.0
    ran = subtract(make_sky(psf_sigma=MID, noise=noise), make_template(psf_sigma=MID, noise=noise))
    difference = ran.subtractedExposure
    assert np.isfinite(difference.image).all()
    assert clipped_mean(difference) == pytest.approx(0.0, abs=5 * noise / np.sqrt(N_PIXELS))
    assert clipped_stdev(difference) == pytest.approx(np.sqrt(2.0) * noise, rel=0.1)


@pytest.mark.parametrize(
    ("mode", "science_noise", "template_noise"),
    [
        ("convolveTemplate", 1.0, 1.0),
        ("convolveTemplate", 1.0, 0.1),
        ("convolveTemplate", 0.1, 0.1),
        ("convolveScience", 1.0, 1.0),
        ("convolveScience", 1.0, 0.1),
        ("convolveScience", 0.1, 0.1),
    ],
)
def test_the_sharper_image_convolved_leaves_the_sum_of_the_variances(mode, science_noise, template_noise):
    science_sigma, template_sigma = (MID, GOOD) if mode == "convolveTemplate" else (GOOD, MID)
    science = make_sky(psf_sigma=science_sigma, noise=science_noise)
    template = make_template(psf_sigma=template_sigma, noise=template_noise)
    difference = subtract(science, template, mode=mode).subtractedExposure
    noise = np.hypot(science_noise, template_noise)
    assert clipped_mean(difference) == pytest.approx(0.0, abs=5 * noise / np.sqrt(N_PIXELS))
    assert sky_variance(difference, science) == pytest.approx(noise**2, rel=0.1)
    assert clipped_stdev(difference) == pytest.approx(noise, rel=0.1)


@pytest.mark.parametrize("noise", [1.0, 0.1])
def test_true_variances_are_not_scaled(noise):
    made = make_sky(psf_sigma=MID, noise=noise)
    assert ScaleVarianceTask().run(made.exposure.copy().masked_image) == pytest.approx(1.0, abs=0.05)


# -- direction --


@pytest.mark.parametrize(
    ("science_sigma", "template_sigma", "forced"), [(MID, GOOD, "convolveTemplate"), (GOOD, MID, "convolveScience")]
)
def test_auto_mode_is_the_forced_direction_bit_for_bit(science_sigma, template_sigma, forced):
    science, template = make_sky(psf_sigma=science_sigma), make_template(psf_sigma=template_sigma)
    automatic = subtract(science, template, mode="auto").subtractedExposure
    chosen = subtract(science, template, mode=forced).subtractedExposure
    for plane in ("image", "mask", "variance"):
        np.testing.assert_array_equal(getattr(automatic, plane), getattr(chosen, plane))


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_swapped_images_give_the_opposite_difference(noise):
    science, template = make_sky(psf_sigma=GOOD, noise=noise), make_template(psf_sigma=MID, noise=noise)
    straight = subtract(science, template, mode="auto").subtractedExposure
    swapped = subtract(replace_sources(template, science), science, mode="auto").subtractedExposure
    both = Exposure(masked_image=swapped.masked_image.copy())
    both.image[...] -= straight.image
    both.mask[...] |= straight.mask
    assert clipped_mean(both) == pytest.approx(0.0, abs=5 * noise / np.sqrt(N_PIXELS))
    assert clipped_stdev(both) == pytest.approx(2.0 * np.sqrt(2.0) * noise, rel=0.1)


def replace_sources(sky: MadeSky, like: MadeSky) -> MadeSky:
    return replace(sky, sources=like.sources)


@pytest.mark.parametrize("sigma", [GOOD, MID, BAD])
def test_of_equal_psfs_either_direction_is_the_plain_difference(sigma):
    noise = 0.1
    science, template = make_sky(psf_sigma=sigma, noise=noise), make_template(psf_sigma=sigma, noise=noise)
    plain = science.exposure.image - template.exposure.image
    by_template, by_science = (
        subtract(science, template, mode=mode).subtractedExposure for mode in ("convolveTemplate", "convolveScience")
    )
    for difference in (by_template, by_science):
        good = good_pixels(difference)
        np.testing.assert_allclose(difference.image[good], plain[good], atol=5 * noise)
    for plane in ("image", "variance"):
        np.testing.assert_allclose(getattr(by_template, plane), getattr(by_science, plane), atol=10 * noise)
    # The rim that is EDGE is as wide as each kernel's own light reaches, which noise makes a pixel more or less.
    edge = plane_bits("EDGE")
    np.testing.assert_array_equal(by_template.mask & ~edge, by_science.mask & ~edge)
    assert np.mean((by_template.mask ^ by_science.mask) != 0) < 4 * 2 / SHAPE[0]


# -- variance planes that lie --


def divide_variance(sky: MadeSky, factor: float) -> MadeSky:
    exposure = sky.exposure.copy()
    exposure.variance[...] /= factor
    return replace(sky, exposure=exposure)


def test_the_factor_of_a_wrong_variance_plane_is_found():
    factor = 1.345
    for sky in (make_sky(psf_sigma=MID), make_template(psf_sigma=GOOD)):
        lying = divide_variance(sky, factor).exposure
        assert ScaleVarianceTask().run(lying.masked_image) == pytest.approx(factor, abs=0.05)
        assert sky_variance(lying, sky) == pytest.approx(1.0, rel=0.1)


def test_a_scaled_template_variance_reaches_the_difference():
    factor = 1.345
    science, template = make_sky(psf_sigma=MID), make_template(psf_sigma=GOOD)
    made = make_task(doScaleTemplateVariance=True)
    ran = subtract(science, divide_variance(template, factor), task=made)
    assert made.metadata["scaleTemplateVarianceFactor"] == pytest.approx(factor, abs=0.05)
    assert sky_variance(ran.subtractedExposure, science) == pytest.approx(2.0, rel=0.1)


def test_detected_stars_of_a_template_do_not_count_for_its_noise():
    template = make_template(psf_sigma=GOOD)
    made = make_task(doScaleTemplateVariance=True)
    subtract(make_sky(psf_sigma=MID), template, task=made)
    expected = ScaleVarianceTask().run(template.exposure.copy().masked_image)
    assert made.metadata["scaleTemplateVarianceFactor"] == pytest.approx(expected, rel=1e-6)


# -- background --


@pytest.mark.parametrize("mode", ["convolveTemplate", "convolveScience"])
def test_a_differential_background_is_recovered(mode):
    sigmas = (MID, GOOD) if mode == "convolveTemplate" else (GOOD, MID)
    science = make_sky(psf_sigma=sigmas[0], background=BACKGROUND)
    ran = subtract(science, make_template(psf_sigma=sigmas[1]), mode=mode)
    np.testing.assert_allclose(ran.subtractRes.backgroundModel.coefficients, BACKGROUND, rtol=0.3)
    assert clipped_stdev(ran.subtractedExposure) == pytest.approx(np.sqrt(2.0), rel=0.1)


# -- figures --


def footprint_ratio(template_sigma: float) -> float:
    science = make_sky(psf_sigma=MID)
    ran = subtract(science, make_template(psf_sigma=template_sigma))
    return compute_footprint_ratios(
        ran.subtractedExposure, science.exposure, science.sources, prefix="difference", sky_planes=NOT_SKY
    )["differenceFootprintRatioMean"]


def test_a_good_template_leaves_little_of_the_stars():
    assert footprint_ratio(GOOD) < 0.02


@pytest.mark.parametrize("sigma", [8.0, 9.5])
def test_a_template_far_too_broad_leaves_much_of_the_stars_or_is_refused(sigma):
    # No kernel takes it to the science image's PSF; the sum of the one that is found is near zero, of either sign.
    try:
        ratio = footprint_ratio(sigma)
    except BadSubtraction as refused:
        ratio = np.inf if refused.quantity == "kernel sum" else 0.0
    assert ratio > 0.12


def test_limiting_magnitudes_follow_their_formula():
    # The reference's formula has the area of the PSF and no noise; ours has the noise and the area that it counts in.
    calibs = {"science": (MID, 1.0, 2.5), "template": (GOOD, 0.5, 0.8)}
    skies = {
        name: make_sky(psf_sigma=sigma, noise=noise, njy_per_count=njy).exposure
        for name, (sigma, noise, njy) in calibs.items()
    }
    for exposure, (_, noise, _) in zip(skies.values(), calibs.values(), strict=True):
        exposure.variance[...] = noise**2
    limits = compute_limiting_magnitudes(skies["science"], skies["template"], sky_planes=NOT_SKY)
    fluxes = {name: 5.0 * noise * np.sqrt(4.0 * np.pi) * sigma * njy for name, (sigma, noise, njy) in calibs.items()}
    fluxes["diffim"] = np.hypot(fluxes["science"], fluxes["template"])
    for name, flux in fluxes.items():
        assert limits[f"{name}LimitingMagnitude"] == pytest.approx(AB_ZERO_POINT_NJY - 2.5 * np.log10(flux), abs=1e-6)


# -- too little to work with --


@pytest.mark.parametrize("n_sources", [0, 1, 2])
def test_too_few_sources_are_counted(n_sources):
    science = make_sky(psf_sigma=MID, n_sources=10)
    few = replace(science, sources=science.sources.select(np.arange(n_sources)))
    with pytest.raises(InsufficientKernelSources) as caught:
        subtract(few, make_template(psf_sigma=GOOD, n_sources=10))
    assert caught.value.n_sources <= n_sources < caught.value.n_required == 3


def cover(sky: MadeSky, fraction: float) -> MadeSky:
    """Leave a template with data in its lowest rows only."""
    exposure = sky.exposure.copy()
    first = round(fraction * SHAPE[0])
    exposure.image[first:], exposure.variance[first:] = np.nan, np.inf
    exposure.mask[first:] |= plane_bits("NO_DATA")
    return replace(sky, exposure=exposure)


def test_coverage_below_the_limit_is_no_work():
    with pytest.raises(NoTemplateCoverage) as caught:
        subtract(make_sky(psf_sigma=MID), cover(make_template(psf_sigma=GOOD), 0.09))
    assert caught.value.fraction == pytest.approx(0.09, abs=0.5 / SHAPE[0])


def test_coverage_just_above_the_limit_fails_with_the_number_of_stars_or_as_no_work():
    # It is enough to try, and too little for stamps of stars: the reference calls that no work as well.
    with pytest.raises((NoTemplateCoverage, InsufficientKernelSources)):
        subtract(make_sky(psf_sigma=MID), cover(make_template(psf_sigma=GOOD), 0.15))


def test_coverage_of_seven_tenths_succeeds():
    ran = subtract(make_sky(psf_sigma=MID), cover(make_template(psf_sigma=GOOD), 0.7))
    difference = ran.subtractedExposure
    assert clipped_mean(difference) == pytest.approx(0.0, abs=5 / np.sqrt(0.7 * N_PIXELS))
    # Rows without data spread as far as the kernel reaches, at most half of it.
    n_rows = round(0.7 * SHAPE[0])
    no_data = (difference.mask & plane_bits("NO_DATA")) != 0
    assert no_data[n_rows:].all()
    assert not no_data[: n_rows - ran.subtractRes.psfMatchingKernel.size // 2].any()


# -- what the difference carries --


@pytest.mark.parametrize("mode", ["convolveTemplate", "convolveScience"])
def test_the_difference_has_the_science_images_wcs_filter_and_calibration(mode):
    science = make_sky(psf_sigma=MID, njy_per_count=3.0)
    template = make_template(psf_sigma=GOOD, njy_per_count=2.0)
    # Without decorrelation: that whitens the PSF with the noise.
    ran = subtract(science, template, mode=mode, doDecorrelation=False)
    difference = ran.subtractedExposure
    assert difference.wcs is science.exposure.wcs
    assert (difference.info.band, difference.info.physical_filter) == ("r", "r_03")
    assert difference.photo_calib == science.exposure.photo_calib
    kept = science if mode == "convolveTemplate" else template
    assert difference.psf is kept.exposure.psf


def test_planes_that_say_nothing_of_the_difference_are_cleared_and_the_others_kept():
    # One square for each plane, off the sources, 8 pixels wide.
    science, template = make_sky(psf_sigma=MID), make_template(psf_sigma=GOOD)
    preserved, renamed = ("NO_DATA", "BAD", "HIGH_VARIANCE"), ("SAT", "INJECTED")
    cleared = ("DETECTED", "DETECTED_NEGATIVE", "CR", "SUSPECT", "STREAK", "EDGE", "INTRP")
    squares = {plane: (slice(4, 12), slice(20 + 16 * i, 28 + 16 * i)) for i, plane in enumerate(
        (*preserved, *renamed, *cleared))}  # fmt: skip
    masked = template.exposure.copy()
    for plane, square in squares.items():
        masked.mask[square] |= plane_bits(plane)
    mask = subtract(science, replace(template, exposure=masked)).subtractedExposure.mask

    def fraction(plane, square):
        return float(((mask[square] & plane_bits(plane)) != 0).mean())

    for plane in preserved:
        assert fraction(plane, squares[plane]) == 1.0
    for plane in renamed:
        assert fraction(f"{plane}_TEMPLATE", squares[plane]) == 1.0
        assert fraction(plane, squares[plane]) == 0.0
    interior = (slice(24, -24), slice(24, -24))
    for plane in cleared:
        if plane == "EDGE":
            # The rim of the convolution is EDGE whatever the template says; within it the template's are forgotten.
            continue
        assert fraction(plane, squares[plane]) == 0.0
    assert fraction("EDGE", interior) == 0.0
    for plane in ("DETECTED", "DETECTED_NEGATIVE"):
        assert fraction(plane, (slice(None), slice(None))) == 0.0


def test_background_draws_what_the_model_evaluates():
    # The maker is independent of the code under test; this is the one thing both must agree on.
    surface = draw_background((5, 3), BACKGROUND)
    assert surface[2, 1] == pytest.approx(2.2 - 1.2 - 1.0)
    assert surface[0, 0] == pytest.approx(2.2 - 2.1 - 2.0 + 1.2 + 1.1 + 1.0)
