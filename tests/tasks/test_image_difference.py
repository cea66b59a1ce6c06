"""`ImageDifferenceTask`: what is promised of configuration, inputs, results, switches and ids."""

import numpy as np
import pytest
from made_skies import NOISE, SHAPE, TRANSIENTS, make_pair
from scipy import ndimage

from alertprod.errors import NoTemplateCoverage, TaskError
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement.catalog import Catalog
from alertprod.tasks.image_difference import ImageDifferenceConfig, ImageDifferenceTask
from alertprod.tasks.sources import make_source_catalog


def copy_planes(exposure: Exposure):
    return [plane.copy() for plane in (exposure.image, exposure.mask, exposure.variance)]


def assert_same_planes(exposure: Exposure, planes):
    for now, before in zip((exposure.image, exposure.mask, exposure.variance), planes, strict=True):
        np.testing.assert_array_equal(now, before)


def assert_same_catalog(first: Catalog, second: Catalog):
    assert first.n_rows == second.n_rows
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def sky_pulls(exposure: Exposure):
    planes = plane_bits("DETECTED", "DETECTED_NEGATIVE", "NO_DATA", "EDGE")
    good = exposure.masked_image.usable(planes)
    return np.where(good, exposure.image / np.sqrt(exposure.variance), np.nan)


def lag_one_correlation(pulls):
    product = pulls[:, 1:] * pulls[:, :-1]
    return np.nanmean(product) / np.nanvar(pulls), np.isfinite(product).sum()


def find_nearest(sources: Catalog, x: float, y: float) -> int:
    distance = np.hypot(sources["x"] - x, sources["y"] - y)
    assert distance.min() < 1.0
    return int(np.argmin(distance))


# -- coverage and ids --


def make_covered(n_good: int, n: int = 100) -> Exposure:
    planes = MaskedImage(np.zeros((n, n), np.float32), np.zeros((n, n), np.int32), np.ones((n, n), np.float32))
    planes.mask.reshape(-1)[n_good:] = plane_bits("NO_DATA", "BAD")
    return Exposure(masked_image=planes)


def test_coverage_is_the_share_of_pixels_with_data(task):
    made = task()
    assert made.checkTemplateIsSufficient(make_covered(2500)) == 0.25
    assert made.metadata["templateCoverage"] == 0.25


@pytest.mark.parametrize("required", [0.09, 0.1, 0.2, 0.3, 0.6, 0.7, 1.0])
def test_exactly_the_required_coverage_is_enough(task, required):
    n_required = round(required * 10_000)
    made = task(requiredTemplateFraction=required)
    assert made.checkTemplateIsSufficient(make_covered(n_required)) == required
    with pytest.raises(NoTemplateCoverage) as caught:
        made.checkTemplateIsSufficient(make_covered(n_required - 1))
    assert caught.value.fraction == (n_required - 1) / 10_000
    assert caught.value.required == required


def test_zero_required_coverage_tries_always(task):
    assert task(requiredTemplateFraction=0.0).checkTemplateIsSufficient(make_covered(0)) == 0.0


def test_only_pixels_without_data_count_against_coverage(task):
    template = make_covered(10_000)
    template.mask[...] = plane_bits("SAT", "BAD", "EDGE", "CR")
    assert task().checkTemplateIsSufficient(template) == 1.0


def test_run_refuses_a_template_that_covers_too_little(task, pair, stars):
    template = pair.template.copy()
    template.mask[20:] |= plane_bits("NO_DATA")
    with pytest.raises(NoTemplateCoverage, match=r"8\.9%"):
        task().run(exposure=pair.science, templateExposure=template, selectSources=stars)


def test_ids_have_the_exposure_above_a_counter_from_one():
    factory = ImageDifferenceTask.makeIdFactory(0b1011, 4)
    assert [factory(), factory()] == [(0b1011 << 59) | 1, (0b1011 << 59) | 2]


def test_ids_decode_with_rubins_rules():
    # 2026-02-23, exposure 81, detector 29, release 1, the 67th source.
    packed = 29 + 256 * (81 + 32768 * 5897)
    factory = ImageDifferenceTask.makeIdFactory((1 << 38) | packed, 44)
    assert [factory() for _ in range(67)][-1] == 170050479238676547


def test_an_exposure_that_does_not_fit_has_no_ids():
    assert ImageDifferenceTask.makeIdFactory(2**44 - 1, 44)() == ((2**44 - 1) << 19) | 1
    with pytest.raises(ValueError, match="exposure id is 17592186044416"):
        ImageDifferenceTask.makeIdFactory(2**44, 44)
    with pytest.raises(ValueError, match="exposure id is -1"):
        ImageDifferenceTask.makeIdFactory(-1, 44)


def test_ids_never_wrap():
    factory = ImageDifferenceTask.makeIdFactory(1, 61)
    assert [factory(), factory(), factory()] == [5, 6, 7]
    for _ in range(2):
        with pytest.raises(OverflowError, match="2 bits"):
            factory()


# -- results --


def test_run_returns_the_named_results(result):
    assert set(result.getDict()) == {
        "subtractedExposure",
        "scoreExposure",
        "warpedExposure",
        "matchedExposure",
        "subtractRes",
        "diaSources",
        "selectSources",
        "scienceExposure",
        "templateExposure",
        "kernelCandidates",
    }
    assert isinstance(result.diaSources, Catalog)
    assert result.scoreExposure is None
    assert result.subtractRes.psfMatchingKernel.size == 21
    for name in ("subtractedExposure", "warpedExposure", "matchedExposure"):
        assert getattr(result, name).shape == SHAPE


def test_difference_has_the_science_images_place_time_and_scale(result, pair):
    difference = result.subtractedExposure
    assert difference.wcs is pair.science.wcs
    assert difference.info == pair.science.info
    assert difference.photo_calib == pair.science.photo_calib
    assert difference.psf is not None


def test_exactly_the_changes_are_detected(result):
    sources = result.diaSources
    assert sources.n_rows == len(TRANSIENTS)
    for x, y, change in TRANSIENTS:
        i = find_nearest(sources, x, y)
        assert sources["is_negative"][i] == (change < 0)
        pull = (sources["psf_flux"][i] - change) / sources["psf_flux_err"][i]
        assert abs(pull) < 5.0


def test_difference_is_white_noise_of_its_variance(result):
    pulls = sky_pulls(result.subtractedExposure)
    n = np.isfinite(pulls).sum()
    # Order-2 background, 40-pixel bins, and a scale factor were fitted to the same pixels: they can only lower it.
    assert np.nanstd(pulls) == pytest.approx(1.0, abs=5.0 / np.sqrt(2.0 * n))
    assert np.nanmean(pulls) == pytest.approx(0.0, abs=5.0 / np.sqrt(n))
    correlation, n_pairs = lag_one_correlation(pulls)
    assert abs(correlation) < 5.0 / np.sqrt(n_pairs)


def test_sources_come_by_decreasing_significance_with_rising_ids(task, pair, stars):
    made = task()
    sources = made.run(
        exposure=pair.science,
        templateExposure=pair.template,
        selectSources=stars,
        idFactory=made.makeIdFactory(3, 44),
    ).diaSources
    np.testing.assert_array_equal(sources["dia_source_id"], (3 << 19) + np.arange(1, sources.n_rows + 1))
    assert (np.diff(np.abs(sources["snr"])) <= 0).all()
    assert (sources["visit"] == 1).all()
    assert (sources["detector"] == 4).all()


def test_without_a_factory_ids_count_from_one(result):
    np.testing.assert_array_equal(result.diaSources["dia_source_id"], np.arange(1, result.diaSources.n_rows + 1))


def test_inputs_are_left_as_they_were_and_may_be_read_only(task, pair, stars):
    # Cached template tiles are mapped read-only: writing into one would kill the worker.
    science, template, background = pair.science.copy(), pair.template.copy(), pair.science.copy()
    background.image[...] = 3.0
    inputs = (science, template, background)
    before = [copy_planes(exposure) for exposure in inputs]
    star_before = [stars[name].copy() for name in ("x", "y", "flux")]
    for exposure in inputs:
        for plane in (exposure.image, exposure.mask, exposure.variance):
            plane.flags.writeable = False
    made = task(doAddCalexpBackground=True, doScaleTemplateVariance=True, doScaleDiffimVariance=False)
    first = made.run(
        exposure=science, templateExposure=template, selectSources=stars, calexpBackgroundExposure=background
    )
    again = task(doSubtract=False, doAddCalexpBackground=True).run(
        exposure=science,
        templateExposure=template,
        subtractedExposure=first.subtractedExposure,
        calexpBackgroundExposure=background,
    )
    for exposure, planes in zip(inputs, before, strict=True):
        assert_same_planes(exposure, planes)
    for now, then in zip((stars["x"], stars["y"], stars["flux"]), star_before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert again.subtractedExposure is not first.subtractedExposure
    assert not np.shares_memory(again.subtractedExposure.mask, first.subtractedExposure.mask)


def test_results_share_no_memory_with_the_inputs(result, pair):
    for made in (result.subtractedExposure, result.matchedExposure, result.warpedExposure):
        for given in (pair.science, pair.template):
            assert not np.shares_memory(made.image, given.image)
            assert not np.shares_memory(made.mask, given.mask)
            assert not np.shares_memory(made.variance, given.variance)


# -- the same again --


def test_nothing_of_one_run_leaks_into_the_next(task):
    pairs = [make_pair(seed=seed, visit=seed) for seed in (1, 2)]

    def run(made, pair):
        ids = made.makeIdFactory(pair.science.info.visit, 44)
        ran = made.run(exposure=pair.science, templateExposure=pair.template, idFactory=ids)
        keep = {name: value for name, value in made.metadata.items() if not name.endswith(("Time", "Size"))}
        return ran.diaSources, copy_planes(ran.subtractedExposure), keep

    made = task()
    forward = [run(made, pair) for pair in pairs]
    # The same exposure again, and then the other order, in the same process by the same task, and by another.
    backward = [run(made, pair) for pair in (pairs[1], pairs[1], pairs[0])][1:]
    fresh = [run(task(), pair) for pair in reversed(pairs)]
    for others in (backward[::-1], fresh[::-1]):
        for (sources, planes, metadata), (sources_again, planes_again, metadata_again) in zip(
            forward, others, strict=True
        ):
            assert_same_catalog(sources, sources_again)
            for plane, plane_again in zip(planes, planes_again, strict=True):
                np.testing.assert_array_equal(plane, plane_again)
            np.testing.assert_equal(metadata, metadata_again)
    assert forward[0][0].n_rows > 0
    assert not set(forward[0][0]["dia_source_id"]) & set(forward[1][0]["dia_source_id"])


def test_a_failed_run_leaves_nothing_behind(task, pair, stars, result):
    made = task()
    nothing = make_source_catalog(x=np.zeros(0), y=np.zeros(0), flux=np.zeros(0))
    with pytest.raises(Exception, match="0 usable kernel sources"):
        made.run(exposure=pair.science, templateExposure=pair.template, selectSources=nothing)
    after = made.run(exposure=pair.science, templateExposure=pair.template, selectSources=stars)
    assert_same_catalog(after.diaSources, result.diaSources)


# -- invariances --


def test_swapped_images_give_the_opposite_difference(task, pair, stars):
    only_subtract = {"doDetection": False, "doMeasurement": False, "doMerge": False}
    straight = task(**only_subtract).run(exposure=pair.science, templateExposure=pair.template, selectSources=stars)
    swapped = task(**only_subtract, convolveTemplate=False).run(
        exposure=pair.template, templateExposure=pair.science, selectSources=stars
    )
    # One kernel for both, since the same image is convolved; the scale is that of the image called science.
    scale = straight.subtractRes.match.kernel_sum
    both = (straight.subtractedExposure.mask | swapped.subtractedExposure.mask) & plane_bits("NO_DATA", "EDGE") == 0
    noise = np.sqrt(np.median(straight.subtractedExposure.variance[both]))
    sum_of_both = straight.subtractedExposure.image + scale * swapped.subtractedExposure.image
    np.testing.assert_allclose(sum_of_both[both], 0.0, atol=1e-3 * noise)


def test_brighter_units_change_nothing_but_the_units(task, pair, stars, result):
    scaled = make_pair(flux_scale=8.0)
    sources = task().run(exposure=scaled.science, templateExposure=scaled.template, selectSources=stars).diaSources
    np.testing.assert_array_equal(sources["dia_source_id"], result.diaSources["dia_source_id"])
    # nJy, and so the same; float32 planes round differently.
    np.testing.assert_allclose(sources["psf_flux"], result.diaSources["psf_flux"], rtol=1e-3)
    np.testing.assert_allclose(sources["x"], result.diaSources["x"], atol=1e-3)


# -- switches --


def test_switch_detection(task, pair, stars):
    made = task(doDetection=False, doMeasurement=False, doMerge=False)
    ran = made.run(exposure=pair.science, templateExposure=pair.template, selectSources=stars)
    assert ran.diaSources is None
    assert not (ran.subtractedExposure.mask & plane_bits("DETECTED", "DETECTED_NEGATIVE")).any()
    assert made.metadata["pullWidth"] == pytest.approx(1.0, abs=0.05)


def test_switch_measurement(task, pair, stars):
    ran = task(doMeasurement=False).run(exposure=pair.science, templateExposure=pair.template, selectSources=stars)
    assert ran.diaSources is None
    for x, y, change in TRANSIENTS:
        plane = plane_bits("DETECTED" if change > 0 else "DETECTED_NEGATIVE")
        assert ran.subtractedExposure.mask[round(y), round(x)] & plane


def make_dipole():
    """A star that moved by 2.5 pixels: equal lobes that touch."""
    return make_pair(transients=((110.0, 110.0, 6000.0), (112.5, 110.0, -6000.0)))


def test_switch_merge(task):
    dipole = make_dipole()

    def count(**switches):
        ran = task(**switches).run(exposure=dipole.science, templateExposure=dipole.template)
        near = np.hypot(ran.diaSources["x"] - 111.25, ran.diaSources["y"] - 110.0) < 8
        return ran.diaSources.select(near)

    merged, apart = count(), count(doMerge=False)
    assert merged.n_rows == 1
    assert merged["is_dipole"].all()
    assert apart.n_rows == 2
    assert sorted(apart["is_negative"]) == [False, True]


def test_switch_dipole_fitting(task):
    dipole = make_dipole()
    sources = task(doDipoleFitting=False).run(exposure=dipole.science, templateExposure=dipole.template).diaSources
    assert sources.n_rows > 0
    assert not sources["dipole_fit_attempted"].any()
    assert not sources["is_dipole"].any()
    assert np.isnan(sources["dipole_mean_flux"]).all()


def test_switch_forced_measurement(task, pair, stars, result):
    without = task(doForcedMeasurement=False).run(
        exposure=pair.science, templateExposure=pair.template, selectSources=stars
    )
    assert np.isnan(without.diaSources["science_flux"]).all()
    assert np.isnan(without.diaSources["template_flux"]).all()
    for x, y, change in TRANSIENTS:
        i = find_nearest(result.diaSources, x, y)
        on_science, on_template = (change, 0.0) if change > 0 else (0.0, -change)
        # Stars lie 20 pixels off or more: less than 1e-4 of their light is under the PSF.
        sigma = float(result.diaSources["science_flux_err"][i])
        assert result.diaSources["science_flux"][i] == pytest.approx(on_science, abs=5 * sigma + 10)
        assert result.diaSources["template_flux"][i] == pytest.approx(on_template, abs=5 * sigma + 10)


@pytest.mark.parametrize("varying", [False, True])
def test_switch_decorrelation(task, varying):
    # A template so noisy that half of the noise is left of it when it has been convolved, and correlated.
    noisy = make_pair(template_noise=16.0, transients=())
    # Off the stars: on them science and template noise have another ratio than the one that is whitened.
    sky = noisy.science.variance < 1.2 * NOISE**2
    pulls = {}
    for on in (False, True):
        made = task(
            doDecorrelation=on,
            doSpatiallyVarying=varying,
            doScaleDiffimVariance=False,
            doSubtractDiffimBackground=False,
        )
        # Fitted with so noisy stars a varying kernel varies with their noise.
        made.config.subtract["al"].kernel["AL"].spatialKernelOrder = 0
        ran = made.run(exposure=noisy.science, templateExposure=noisy.template)
        pulls[on] = np.where(sky, sky_pulls(ran.subtractedExposure), np.nan)
        assert hasattr(made, "decorrelate") == on
    assert lag_one_correlation(pulls[False])[0] > 0.2
    whitened, n_pairs = lag_one_correlation(pulls[True])
    assert abs(whitened) < 5.0 / np.sqrt(n_pairs)
    assert np.nanstd(pulls[True]) == pytest.approx(1.0, abs=5.0 / np.sqrt(2.0 * n_pairs))


def test_switch_variance_of_the_difference(task, pair, stars):
    lying = pair.science.copy()
    lying.variance[...] *= 1.5
    template = pair.template.copy()
    template.variance[...] *= 1.5
    inputs = {"exposure": lying, "templateExposure": template, "selectSources": stars}
    on, off = task(), task(doScaleDiffimVariance=False)
    on.run(**inputs)
    off.run(**inputs)
    n = SHAPE[0] * SHAPE[1]
    # The width is from the quartiles: its standard error is 1.36 / sqrt(2 n), the factor is its square.
    assert on.metadata["scaleDiffimVarianceFactor"] == pytest.approx(1 / 1.5, rel=2 * 5 * 1.36 / np.sqrt(2 * n))
    assert on.metadata["pullWidth"] == pytest.approx(1.0, abs=5 * 1.36 / np.sqrt(2 * n))
    assert "scaleDiffimVarianceFactor" not in off.metadata
    assert off.metadata["pullWidth"] == pytest.approx(1 / np.sqrt(1.5), abs=5 * 1.36 / np.sqrt(2 * n))


def test_switch_variance_of_the_template(task, pair, stars):
    lying = pair.template.copy()
    lying.variance[...] *= 4.0
    made = task(doScaleTemplateVariance=True, doScaleDiffimVariance=False)
    ran = made.run(exposure=pair.science, templateExposure=lying, selectSources=stars)
    # Half of the template's pixels hold stars, which the task's quartiles see as noise: no tight bound here.
    assert made.metadata["scaleTemplateVarianceFactor"] < 1.0
    np.testing.assert_allclose(
        ran.warpedExposure.variance, lying.variance * made.metadata["scaleTemplateVarianceFactor"], rtol=1e-5
    )


def test_switch_fractional_error(task, pair, stars):
    # Every star of the science image 3 % off, as a bad flat field leaves them: by far more than noise and kernel have.
    rng = np.random.default_rng(8)
    flux = pair.star_flux * (1.0 + 0.03 * rng.standard_normal(pair.star_flux.size))
    science = pair.science.copy()
    for x, y, change in zip(pair.star_x, pair.star_y, flux - pair.star_flux, strict=True):
        stamp, box = science.psf.compute_stellar_image(x=x, y=y)
        rows, columns = box.slices
        science.image[rows, columns] += (change * stamp).astype(np.float32)
    found = {}
    for switch in (False, True):
        made = task(doEstimateFractionalError=switch)
        made.config.subtract["al"].kernel.active.kernelSumClipping = False
        found[switch] = made.run(exposure=science, templateExposure=pair.template, selectSources=stars).diaSources
    assert made.metadata["fractionalError"] == pytest.approx(0.03, rel=5 * 1.17 / np.sqrt(stars.n_rows))
    assert found[False].n_rows > 2 * len(TRANSIENTS)
    # What changed is still found: with the error it had where nothing was subtracted, else with a part of that more.
    assert found[True].n_rows <= len(TRANSIENTS) + 1
    for x, y, change in TRANSIENTS:
        rows = [find_nearest(sources, x, y) for sources in found.values()]
        errors = [sources["psf_flux_err"][row] for sources, row in zip(found.values(), rows, strict=True)]
        subtracted = max(0.0, -change)
        assert errors[1] == pytest.approx(np.hypot(errors[0], made.metadata["fractionalError"] * subtracted), rel=0.05)


def test_switch_background(task, pair, stars, result):
    sky = pair.science.copy()
    sky.image[...] = 40.0
    added = task(doAddCalexpBackground=True).run(
        exposure=pair.science, templateExposure=pair.template, selectSources=stars, calexpBackgroundExposure=sky
    )
    # What was added is a differential background, which the match takes off again.
    level = [struct.subtractRes.backgroundModel.compute_image().mean() for struct in (added, result)]
    assert level[0] - level[1] == pytest.approx(40.0, abs=5 * 5.0 / SHAPE[0])
    assert added.diaSources.n_rows == result.diaSources.n_rows


def test_switch_background_of_the_difference(task, pair, stars):
    wavy = pair.science.copy()
    # Too fast for the match's order 2, slow enough for bins of 40 pixels.
    wave = 4.0 * np.sin(2.0 * np.pi * np.arange(SHAPE[1]) / 150.0)
    wavy.image[...] += wave.astype(np.float32)
    smooth = {}
    for switch in (False, True):
        made = task(doSubtractDiffimBackground=switch)
        ran = made.run(exposure=wavy, templateExposure=pair.template, selectSources=stars)
        image = np.where(np.isfinite(sky_pulls(ran.subtractedExposure)), ran.subtractedExposure.image, 0.0)
        smooth[switch] = ndimage.uniform_filter(image, 31)[20:-20, 20:-20].std()
    assert smooth[True] < 0.5 * smooth[False]
    assert "diffimBackgroundRms" in made.metadata


def test_switch_direction(task, pair, stars, result):
    assert result.subtractRes.match.convolved == "template"
    science = task(convolveTemplate=False).run(
        exposure=pair.science, templateExposure=pair.template, selectSources=stars
    )
    assert science.subtractRes.match.convolved == "science"
    by_mode = task(convolveTemplate=False)
    by_mode.config.subtract["al"].mode = "convolveTemplate"
    ran = ImageDifferenceTask(by_mode.config).run(
        exposure=pair.science, templateExposure=pair.template, selectSources=stars
    )
    assert_same_planes(ran.subtractedExposure, copy_planes(result.subtractedExposure))
    # Either way the sign is science minus template, and the flux the science image's.
    for x, y, change in TRANSIENTS:
        i = find_nearest(science.diaSources, x, y)
        pull = (science.diaSources["psf_flux"][i] - change) / science.diaSources["psf_flux_err"][i]
        assert abs(pull) < 5.0


def test_auto_mode_convolves_the_sharper_image(task, pair, stars, result):
    config = ImageDifferenceConfig()
    config.subtract["al"].mode = "auto"
    made = ImageDifferenceTask(config)
    ran = made.run(exposure=pair.science, templateExposure=pair.template, selectSources=stars)
    assert_same_planes(ran.subtractedExposure, copy_planes(result.subtractedExposure))
    assert made.subtract.metadata["convolvedExposure"] == "Template"
    made.run(exposure=pair.template, templateExposure=pair.science, selectSources=stars)
    assert made.subtract.metadata["convolvedExposure"] == "Science"


# -- a difference made before --


def test_a_given_difference_is_not_subtracted_again(task, pair, result):
    made = task(doSubtract=False)
    before = copy_planes(result.subtractedExposure)
    ran = made.run(
        exposure=pair.science, templateExposure=result.matchedExposure, subtractedExposure=result.subtractedExposure
    )
    assert ran.subtractRes is None
    assert ran.warpedExposure is None
    assert "subtractExposuresStartWallTime" not in made.subtract.metadata
    assert_same_planes(result.subtractedExposure, before)
    assert ran.diaSources.n_rows == len(TRANSIENTS)
    np.testing.assert_allclose(ran.diaSources["x"], result.diaSources["x"], atol=0.02)
    np.testing.assert_allclose(ran.diaSources["psf_flux"], result.diaSources["psf_flux"], rtol=0.02)
    np.testing.assert_allclose(ran.diaSources["template_flux"], result.diaSources["template_flux"], atol=20)


def test_a_given_difference_needs_no_template(task, pair, result):
    made = task(doSubtract=False)
    sources = made.run(exposure=pair.science, subtractedExposure=result.subtractedExposure).diaSources
    assert sources.n_rows == len(TRANSIENTS)
    assert np.isnan(sources["template_flux"]).all()


# -- what is missing --


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"exposure": None}, "needs an exposure"),
        ({"templateExposure": None}, "needs a templateExposure"),
        ({"exposure": "psf"}, "Exposure has no psf"),
        ({"templateExposure": "psf"}, "the template exposure has no psf"),
    ],
)
def test_missing_inputs_are_named(task, pair, stars, change, words):
    inputs = {"exposure": pair.science, "templateExposure": pair.template}
    for name, what in change.items():
        inputs[name] = None if what is None else inputs[name].copy()
        if what == "psf":
            inputs[name].psf = None
    with pytest.raises(TaskError, match=words):
        task().run(**inputs, selectSources=stars)


def test_a_background_that_is_to_be_added_must_be_there(task, pair, stars):
    with pytest.raises(TaskError, match="calexpBackgroundExposure"):
        task(doAddCalexpBackground=True).run(exposure=pair.science, templateExposure=pair.template, selectSources=stars)


# -- masks --


def test_a_templates_mask_says_only_what_concerns_a_difference(task, pair, stars):
    template = pair.template.copy()
    spots = {"SAT": 40, "INJECTED": 60, "EDGE": 80, "DETECTED": 100, "BAD": 120, "HIGH_VARIANCE": 140, "NO_DATA": 160}
    for plane, row in spots.items():
        template.mask[row, 200] |= plane_bits(plane)
    template.mask[180, 200] |= plane_bits("CR")
    template.image[180, 200] += 1e4
    ran = task().run(exposure=pair.science, templateExposure=template, selectSources=stars)

    def is_set(plane, row):
        return bool(ran.subtractedExposure.mask[row, 200] & plane_bits(plane))

    assert is_set("SAT_TEMPLATE", 40)
    assert not is_set("SAT", 40)
    assert is_set("INJECTED_TEMPLATE", 60)
    assert not is_set("INJECTED", 60)
    assert not is_set("EDGE", 80)
    assert is_set("BAD", 120)
    assert is_set("HIGH_VARIANCE", 140)
    assert is_set("NO_DATA", 160)
    assert np.isnan(ran.subtractedExposure.image[160, 200])
    # A cosmic ray is repaired: no hole, no ghost of it, and whoever is found there is told.
    assert is_set("INTRP", 180)
    assert not is_set("CR", 180)
    around = np.hypot(ran.diaSources["x"] - 200, ran.diaSources["y"] - 180) < 15
    # A neighbours' mean in a star's wing is not what was there: what is left of it is flagged.
    assert (np.abs(ran.diaSources["snr"][around]) < 10).all()
    assert ran.diaSources["pixel_flags_interpolated"][around].all()
