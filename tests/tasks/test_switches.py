"""Every switch of `ImageDifferenceTask` does what its name says; those of the plain difference are beside its other promises."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from made_skies import NOISE, SHAPE, TRANSIENTS, PairReference, make_pair

from alertprod.errors import ExposureMismatch, TaskError
from alertprod.images.ap_corr import ApertureCorrection, ChebyshevField
from alertprod.images.mask import plane_bits
from alertprod.images.photo_calib import PhotoCalib
from alertprod.measurement.catalog import Catalog, Column
from alertprod.psf.analytic import GaussianPsf
from alertprod.tasks import ImageDifferenceTask
from alertprod.tasks.astrometry import LoadReferenceObjectsConfig
from alertprod.tasks.config_fields import apply_overrides
from alertprod.tasks.sources import make_source_catalog

ZOGY = {"subtract.name": "zogy", "doDecorrelation": False}
SCORE = {"useScoreImageDetection": True, "doWriteSubtractedExp": False}


def make_task(**settings) -> ImageDifferenceTask:
    config = ImageDifferenceTask.ConfigClass()
    apply_overrides(config, {name.replace("__", "."): value for name, value in settings.items()}, source="test")
    return ImageDifferenceTask(config)


def run(made, pair, **inputs):
    return made.run(exposure=pair.science, templateExposure=pair.template, **inputs)


def assert_the_changes_are_found(sources, pair):
    """Every transient once, at its place, with its flux within five standard errors; else residuals of bright stars."""
    found = []
    for x, y, flux in TRANSIENTS:
        (nearest,) = np.flatnonzero(np.hypot(sources["x"] - x, sources["y"] - y) < 1.0)
        assert abs(sources["psf_flux"][nearest] - flux) < 5 * sources["psf_flux_err"][nearest]
        assert sources["is_negative"][nearest] == (flux < 0)
        found.append(nearest)
    bright = pair.star_flux > 5e4
    for other in set(range(sources.n_rows)) - set(found):
        distance = np.hypot(pair.star_x[bright] - sources["x"][other], pair.star_y[bright] - sources["y"][other])
        assert distance.min() < 12.0
        assert sources["snr"][other] < 8.0


# -- other images to detect on --


@pytest.mark.parametrize("gaussian", [False, True])
def test_score_image_of_the_preconvolved_exposure(pair, stars, result, gaussian):
    made = make_task(**SCORE, doWriteScoreExp=True, useGaussianForPreConvolution=gaussian)
    ran = run(made, pair, selectSources=stars)
    assert_the_changes_are_found(ran.diaSources, pair)
    score = ran.scoreExposure
    sky = score.masked_image.usable(plane_bits("DETECTED", "DETECTED_NEGATIVE", "EDGE", "NO_DATA"))
    pulls = score.image[sky] / np.sqrt(score.variance[sky])
    # Pixels of a score are as independent as PSFs: of 4 pi sigma^2 pixels each.
    n_independent = sky.sum() / (4 * np.pi * (4.4 / 2.355) ** 2)
    assert np.std(pulls) == pytest.approx(1.0, abs=5 / np.sqrt(2 * n_independent))
    # What is detected on the score is marked on the difference, which is what sources are measured on.
    detected = plane_bits("DETECTED", "DETECTED_NEGATIVE")
    np.testing.assert_array_equal(score.mask & detected, ran.subtractedExposure.mask & detected)
    # As significant as on the difference, where that is known to be right: the noise of a source of the science image.
    for x, y, flux in TRANSIENTS:
        if flux > 0:
            significance = score.image[round(y), round(x)] / np.sqrt(score.variance[round(y), round(x)])
            plain = np.argmin(np.hypot(result.diaSources["x"] - x, result.diaSources["y"] - y))
            assert significance == pytest.approx(float(result.diaSources["snr"][plain]), rel=0.1)


def test_score_image_without_decorrelation(pair, stars):
    made = make_task(**SCORE, doDecorrelation=False)
    ran = run(made, pair, selectSources=stars)
    assert ran.scoreExposure is not None
    assert not hasattr(made, "decorrelate")
    assert len(TRANSIENTS) <= ran.diaSources.n_rows


@pytest.mark.parametrize("score", [False, True])
def test_zogy(pair, score):
    made = make_task(**ZOGY, useScoreImageDetection=score)
    ran = run(made, pair)
    assert_the_changes_are_found(ran.diaSources, pair)
    assert (ran.scoreExposure is not None) == score
    assert made.metadata["psfMatchingAlgorithm"] == "zogy"
    assert made.metadata["pullWidth"] == pytest.approx(1.0, abs=0.03)
    for x, y, flux in TRANSIENTS:
        nearest = np.argmin(np.hypot(ran.diaSources["x"] - x, ran.diaSources["y"] - y))
        measured = ran.diaSources["science_flux"][nearest] - ran.diaSources["template_flux"][nearest]
        errors = np.hypot(ran.diaSources["science_flux_err"], ran.diaSources["template_flux_err"])[nearest]
        assert abs(measured - flux) < 5 * errors


def test_delta_function_kernels(pair, stars):
    ran = run(make_task(subtract__al__kernel="DF"), pair, selectSources=stars)
    assert {(round(x), round(y)) for x, y, _ in TRANSIENTS} <= {
        (round(float(x)), round(float(y))) for x, y in zip(ran.diaSources["x"], ran.diaSources["y"], strict=True)
    }


# -- kernel stars --


def test_select_sources_keeps_every_fifth_star_to_judge_by(pair):
    made = make_task(doSelectSources=True)
    on_science = made.characterize.selectKernelSources(pair.science)
    ran = run(made, pair, selectSources=on_science)
    n_control, n_kernel = made.metadata["nControlSources"], made.metadata["nKernelSourcesSelected"]
    assert n_control == -(-(n_control + n_kernel) // 5)
    assert n_kernel <= on_science.n_rows
    assert len(ran.subtractRes.kernelCellSet) == n_kernel
    assert_the_changes_are_found(ran.diaSources, pair)


def test_select_sources_looks_for_them_where_none_are_given(pair, caplog):
    ran = run(make_task(doSelectSources=True), pair)
    assert "doSelectSources without selectSources" in caplog.text
    assert ran.selectSources.n_rows > 10


def test_control_seed_chooses_others(pair, stars):
    taken = []
    for seed in (10, 10, 11):
        made = make_task(doSelectSources=True, controlRandomSeed=seed)
        cells = run(made, pair).subtractRes.kernelCellSet
        taken.append(set(zip(cells.x.tolist(), cells.y.tolist(), strict=True)))
    assert taken[0] == taken[1] != taken[2]


def test_colours_and_variables_extend_the_control_sample(pair):
    on_science = make_task().characterize.selectKernelSources(pair.science)
    on_science["g_minus_r"][::7] = 2.5
    on_science["is_variable"][3::7] = True
    counts = {}
    for extended in (False, True):
        made = make_task(doSelectSources=True, doSelectDcrCatalog=extended, doSelectVariableCatalog=extended)
        run(made, pair, selectSources=on_science)
        counts[extended] = made.metadata["nControlSources"], made.metadata["nControlDcr"]
        assert (made.metadata["nControlVariable"] > 0) == extended
    assert counts[True] > counts[False]
    assert counts[False][1] == 0 < counts[True][1]


def test_kernel_sources_from_the_reference_catalogue(pair):
    config = ImageDifferenceTask.ConfigClass()
    config.doSelectSources = config.kernelSourcesFromRef = True
    made = ImageDifferenceTask(config, refObjLoader=PairReference(pair))
    assert_the_changes_are_found(run(made, pair).diaSources, pair)
    assert made.astrometer.metadata["nReference"] == len(pair.star_x)


def test_kernel_sources_from_no_reference_catalogue_is_an_error(pair):
    with pytest.raises(TaskError, match="no reference catalogue"):
        run(make_task(doSelectSources=True, kernelSourcesFromRef=True), pair)


def test_the_configuration_names_the_reference_catalogue(pair, tmp_path):
    file = tmp_path / "stars.ecsv"
    ra, dec = pair.science.wcs.pixel_to_sky(x=pair.star_x, y=pair.star_y)
    rows = "\n".join(f"{r!r} {d!r}" for r, d in zip(ra.tolist(), dec.tolist(), strict=True))
    file.write_text(f"# %ECSV 1.0\n# ---\n# datatype:\n# - {{name: ra_deg, datatype: float64}}\n"
                    f"# - {{name: dec_deg, datatype: float64}}\nra_deg dec_deg\n{rows}\n")  # fmt: skip
    made = make_task(doMatchSources=True, refObjLoader__uri=str(file))
    assert made.astrometer.refObjLoader is not None
    assert LoadReferenceObjectsConfig().makeLoader() is None


# -- registration --


def test_register_takes_a_misregistration_out(pair):
    # The template is where its stars are, but its world coordinates say 0.7 pixels elsewhere.
    shifted = replace(pair.template, wcs=pair.template.wcs.shifted(dx=0.5, dy=-0.5))
    ratios, offsets = {}, {}
    for registered in (False, True):
        made = make_task(
            doSelectSources=True, doUseRegister=registered, doDebugRegister=registered, subtract__al__mode="auto"
        )
        ran = made.run(exposure=pair.science, templateExposure=shifted)
        ratios[registered] = ran.subtractRes.psfMatchingKernel.compute_image(x=112, y=112)
        u = np.arange(ratios[registered].shape[0]) - ratios[registered].shape[0] // 2
        kernel = ratios[registered] / ratios[registered].sum()
        offsets[registered] = np.array([(kernel.sum(axis=0) * u).sum(), (kernel.sum(axis=1) * u).sum()])
        assert_the_changes_are_found(ran.diaSources, pair)
    # Otherwise the kernel has to move the stars.
    assert np.hypot(*offsets[False]) > 0.5
    assert np.hypot(*offsets[True]) < 0.1
    assert np.isnan(made.metadata["RegisterRedLongOffsetMedian"])
    assert "RegisterGreenLatOffsetStd" in made.metadata


# -- more about sources --


def test_sky_sources_are_measured_beside_the_others(pair, stars):
    made = make_task(doSkySources=True, skySources__nSources=60)
    sources = run(made, pair, selectSources=stars).diaSources
    sky = sources.select(sources["sky_source"])
    assert 40 <= sky.n_rows <= 60
    assert_the_changes_are_found(sources.select(~sources["sky_source"]), pair)
    pulls = sky["psf_flux"] / sky["psf_flux_err"]
    assert abs(pulls.mean()) < 5 / np.sqrt(sky.n_rows)
    assert np.std(pulls) == pytest.approx(1.0, abs=5 / np.sqrt(2 * sky.n_rows))
    # Another exposure has others.
    moved = replace(pair, science=replace(pair.science, info=replace(pair.science.info, visit=77)))
    again = run(made, moved, selectSources=stars).diaSources
    assert set(again["x"][again["sky_source"]].tolist()) != set(sky["x"].tolist())


def test_match_sources(pair):
    config = ImageDifferenceTask.ConfigClass()
    config.doMatchSources = True
    made = ImageDifferenceTask(config, refObjLoader=PairReference(pair))
    x, y = np.array([TRANSIENTS[0][0] + 0.6, 20.0]), np.array([TRANSIENTS[0][1], 20.0])
    near = make_source_catalog(x=x, y=y, flux=np.array([1.0, 2.0]), source_id=np.array([71, 72]))
    detected = make_task(doSubtract=False, doMatchSources=True)
    given = run(make_task(), pair)
    sources = detected.run(
        exposure=pair.science,
        templateExposure=given.templateExposure,
        subtractedExposure=given.subtractedExposure,
        selectSources=near,
    ).diaSources
    matched = np.flatnonzero(sources["src_match_id"])
    assert sources["src_match_id"][matched].tolist() == [71]
    assert np.hypot(sources["x"][matched] - TRANSIENTS[0][0], sources["y"][matched] - TRANSIENTS[0][1])[0] < 0.5
    # No transient of the pair lies on a star of the catalogue.
    assert not run(made, pair).diaSources["ref_match_id"].any()
    assert made.metadata["nRefMatches"] == 0


def test_metrics_of_every_kernel_candidate(pair, stars):
    made = make_task(doAddMetrics=True, doSelectSources=True)
    ran = run(made, pair)
    assert ran.kernelCandidates.n_rows == made.metadata["nKernelSourcesSelected"]
    assert abs(made.metadata["KCDiffimMean_SPATIAL_MEDIAN"]) < 0.1
    assert made.metadata["KCDiffimStDev_SPATIAL_MEDIAN"] == pytest.approx(1.0, abs=0.1)
    assert made.metadata["ControlKCDiffimStDev_SPATIAL_MEDIAN"] == pytest.approx(1.0, abs=0.2)
    assert made.metadata["NFalsePositivesTotal"] == ran.diaSources.n_rows
    assert run(make_task(), pair, selectSources=stars).kernelCandidates is None


def test_aperture_corrections(pair, stars, result):
    corrections = {"psf_flux": ApertureCorrection(ChebyshevField(pair.science.box, np.array([[1.1]])))}
    corrected = replace(pair.science, ap_corr_map=corrections)
    for applied, factor in ((True, 1.1), (False, 1.0)):
        sources = (
            make_task(doApCorr=applied)
            .run(exposure=corrected, templateExposure=pair.template, selectSources=stars)
            .diaSources
        )
        np.testing.assert_allclose(sources["psf_flux"], factor * result.diaSources["psf_flux"], rtol=1e-5)


def test_aperture_corrections_without_measurement(pair, stars):
    ran = run(make_task(doMeasurement=False, doApCorr=True), pair, selectSources=stars)
    assert ran.diaSources is None


def test_grow_footprint_joins_signs_that_are_apart(task):
    close = make_pair(transients=((100.0, 95.0, 1500.0), (100.0, 121.0, -1500.0)))
    counts = {
        grow: task(growFootprint=grow).run(exposure=close.science, templateExposure=close.template).diaSources.n_rows
        for grow in (0, 8)
    }
    assert counts == {0: 2, 8: 1}


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_close_bright_transients_of_one_sign_are_two_sources(task, share):
    """Eight PSF sigmas apart, with light between them far beyond the threshold."""
    places = ((95.3, 100.4, 30000.0), (110.2, 101.0, share * 30000.0))
    close = make_pair(transients=places)
    sources = task().run(exposure=close.science, templateExposure=close.template).diaSources
    for x, y, flux in places:
        (nearest,) = np.flatnonzero(np.hypot(sources["x"] - x, sources["y"] - y) < 0.3)
        # Of the brighter one's light less than a part in 10^6 falls on the other.
        assert abs(sources["psf_flux"][nearest] - flux) < 5 * sources["psf_flux_err"][nearest]
        assert not sources["is_dipole"][nearest]


def test_cosmic_rays_on_the_difference(pair, stars):
    struck = pair.science.copy()
    struck.image[40, 180] += 100 * NOISE
    with_hit = {
        on: run(make_task(doFindCosmicRays=on), replace(pair, science=struck), selectSources=stars)
        for on in (False, True)
    }
    assert with_hit[True].subtractedExposure.mask[40, 180] & plane_bits("CR")
    assert not with_hit[False].subtractedExposure.mask[40, 180] & plane_bits("CR")
    assert with_hit[True].diaSources.n_rows == len(TRANSIENTS) < with_hit[False].diaSources.n_rows


def test_glints_in_a_row_are_flagged(task):
    row = tuple((25.0 + 25.0 * i, 60.0 + 9.0 * i, 3000.0) for i in range(8))
    glinting = make_pair(transients=row)
    for on in (False, True):
        sources = (
            task(doFindGlintTrails=on).run(exposure=glinting.science, templateExposure=glinting.template).diaSources
        )
        assert sources["glint_trail"].sum() == (sources.n_rows if on else 0)
        assert sources.n_rows == len(row)


# -- calibration --


def test_finalized_psf_and_corrections_replace_the_exposures(pair, caplog):
    made = make_task(doApplyFinalizedPsf=True)
    final = SimpleNamespace(psf=GaussianPsf(fwhm=4.4), ap_corr_map={})
    science = pair.science
    calibrated = made.prepareCalibratedExposure(science, {science.info.detector: final})
    assert calibrated.psf is final.psf
    assert calibrated.ap_corr_map is final.ap_corr_map
    assert calibrated.image is science.image
    assert made.prepareCalibratedExposure(science, None) is science
    assert not caplog.text
    for catalog, missing in (
        ({99: final}, "row"),
        ({4: SimpleNamespace(psf=None, ap_corr_map={})}, "psf"),
        ({4: SimpleNamespace(psf=final.psf, ap_corr_map=None)}, "ap_corr_map"),
    ):
        assert made.prepareCalibratedExposure(science, catalog) is science
        assert f"no {missing} for detector 4" in caplog.text
        caplog.clear()


def test_an_exposure_without_a_detector_needs_no_catalogue(pair):
    anonymous = replace(pair.science, info=replace(pair.science.info, detector=None))
    assert make_task().prepareCalibratedExposure(anonymous) is anonymous


# -- inputs that contradict the configuration --


def test_a_difference_is_given_or_made(pair, result):
    with pytest.raises(TaskError, match="one of them is too much"):
        run(make_task(), pair, subtractedExposure=result.subtractedExposure)
    with pytest.raises(TaskError, match="needs a subtractedExposure"):
        run(make_task(doSubtract=False), pair)


def test_a_given_difference_must_fit(pair, result):
    made = make_task(doSubtract=False)
    without = replace(result.subtractedExposure, psf=None)
    with pytest.raises(TaskError, match="subtractedExposure has no psf"):
        run(made, pair, subtractedExposure=without)
    planes = result.subtractedExposure.masked_image
    small = replace(result.subtractedExposure, masked_image=type(planes)(
        planes.image[:100], planes.mask[:100], planes.variance[:100]))  # fmt: skip
    with pytest.raises(ExposureMismatch, match="shape of the subtractedExposure"):
        run(made, pair, subtractedExposure=small)
    with pytest.raises(ExposureMismatch, match="shape of the calexpBackgroundExposure"):
        run(make_task(doAddCalexpBackground=True), pair, calexpBackgroundExposure=small)


def test_a_given_difference_is_measured_with_a_template_as_it_is_stored(pair, result):
    """On another grid and another scale, with a calibration that says so."""
    scale = 40.0
    planes = pair.template.masked_image.scaled(scale)
    rolled = type(planes)(
        *(np.roll(plane, (-2, 3), axis=(0, 1)) for plane in (planes.image, planes.mask, planes.variance))
    )
    stored = replace(
        pair.template,
        masked_image=rolled,
        photo_calib=PhotoCalib(pair.template.photo_calib.njy_per_count / scale),
        wcs=pair.template.wcs.shifted(dx=3.0, dy=-2.0),
    )
    ran = make_task(doSubtract=False).run(
        exposure=pair.science, templateExposure=stored, subtractedExposure=result.subtractedExposure
    )
    assert_the_changes_are_found(ran.diaSources, pair)
    first, again = result.diaSources, ran.diaSources
    # The second look takes a background off what has none left: far less than a flux's error.
    for name in ("psf_flux", "science_flux"):
        assert (np.abs(again[name] - first[name]) < 0.1 * first[f"{name}_err"]).all(), name
    # The first were measured on the matched template, with its noise.
    difference = again["template_flux"] - first["template_flux"]
    assert (np.abs(difference) < 5 * np.hypot(again["template_flux_err"], first["template_flux_err"])).all()


def test_tables_of_stars_need_no_more_than_positions(pair, stars):
    plain = Catalog([Column("x", "f8", "pixel", "x"), Column("y", "f8", "pixel", "y")], stars.n_rows)
    plain["x"], plain["y"] = stars["x"], stars["y"]
    assert_the_changes_are_found(run(make_task(), pair, selectSources=plain).diaSources, pair)
    nowhere = Catalog([Column("x", "f8", "pixel", "x"), Column("ra_deg", "f8", "deg", "ra")], 3)
    with pytest.raises(TaskError, match="a table of 3 sources without y: positions in pixels are needed"):
        run(make_task(), pair, selectSources=nowhere)


def test_a_template_on_another_grid_is_warped(pair, stars, result):
    elsewhere = replace(pair.template, wcs=pair.template.wcs.shifted(dx=3.0, dy=-2.0))
    planes = pair.template.masked_image
    rolled = replace(elsewhere, masked_image=type(planes)(
        *(np.roll(plane, (-2, 3), axis=(0, 1)) for plane in (planes.image, planes.mask, planes.variance))))  # fmt: skip
    ran = make_task().run(exposure=pair.science, templateExposure=rolled, selectSources=stars)
    assert_the_changes_are_found(ran.diaSources, pair)
    assert ran.warpedExposure.shape == pair.science.shape


def test_streaks_are_marked_and_their_detections_flagged(pair, stars):
    crossed = pair.science.copy()
    v, u = np.mgrid[: SHAPE[0], : SHAPE[1]]
    distance = (u - 20.0) * np.sin(0.6) - (v - 30.0) * np.cos(0.6)
    sigma = 4.4 / 2.355
    crossed.image[...] += (8 * NOISE * np.exp(-0.5 * (distance / sigma) ** 2)).astype(np.float32)
    for on in (False, True):
        ran = run(make_task(doMaskStreaks=on), replace(pair, science=crossed), selectSources=stars)
        marked = (ran.subtractedExposure.mask & plane_bits("STREAK")) != 0
        inner = (u > 20) & (u < 200) & (v > 20) & (v < 200)
        assert marked[inner & (np.abs(distance) < sigma)].all() == on
        assert not marked[np.abs(distance) > 30].any()
        near = np.abs(np.interp(0, [0], [0]) + (ran.diaSources["x"] - 20.0) * np.sin(0.6)
                      - (ran.diaSources["y"] - 30.0) * np.cos(0.6)) < 3  # fmt: skip
        assert near.any()
        assert (ran.diaSources["pixel_flags_streak_center"][near] == on).all()
