"""`ZogyImagePsfMatchTask`: calibration, grids, what comes back."""

from dataclasses import replace

import numpy as np
import pytest
from lsst.pex.config import FieldValidationError
from made_skies import TRANSIENTS, make_pair

from alertprod.errors import BadSubtraction, ExposureMismatch, TaskError, UnusableExposure
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure
from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import PhotoCalib
from alertprod.psf.analytic import GaussianPsf
from alertprod.tasks.image_psf_match import subtractAlgorithmRegistry
from alertprod.tasks.zogy_psf_match import ZogyImagePsfMatchTask


def make_task(**fields) -> ZogyImagePsfMatchTask:
    config = ZogyImagePsfMatchTask.ConfigClass()
    for name, value in fields.items():
        setattr(config.zogyConfig, name, value)
    return ZogyImagePsfMatchTask(config)


@pytest.fixture(scope="module")
def made(pair):
    return make_task().run(pair.science, pair.template)


def measure(exposure: Exposure, x: float, y: float) -> tuple[float, float]:
    """Return flux and error of the unweighted PSF fit."""
    drawn, box = exposure.psf.compute_stellar_image(x=x, y=y)
    rows, columns = box.slices
    image, variance = exposure.image[rows, columns], exposure.variance[rows, columns]
    power = (drawn**2).sum()
    return float((drawn * image).sum() / power), float(np.sqrt((drawn**2 * variance).sum()) / power)


def noise_exposure(variance: float, seed: int, sigma: float, size: int = 256) -> Exposure:
    rng = np.random.default_rng(seed)
    shape = (size, size)
    planes = MaskedImage(
        rng.normal(0.0, np.sqrt(variance), shape).astype(np.float32),
        np.zeros(shape, np.int32),
        np.full(shape, variance, np.float32),
    )
    return Exposure(masked_image=planes, psf=GaussianPsf.from_sigma(sigma))


def test_fluxes_are_those_of_the_transients_on_the_science_exposure_s_scale(pair, made):
    for x, y, flux in TRANSIENTS:
        measured, error = measure(made.diffExp, x, y)
        assert measured == pytest.approx(flux, abs=4.0 * error)
    assert made.diffExp.photo_calib == made.scoreExp.photo_calib == pair.science.photo_calib
    assert made.diffExp.wcs is made.scoreExp.wcs is pair.science.wcs
    assert made.diffExp.info == made.scoreExp.info == pair.science.info
    assert made.warpedExposure is pair.template


def test_a_score_is_the_flux_times_the_greatest_of_its_psf():
    places = ((70, 90, 4000.0), (150, 60, -3000.0))
    pair = make_pair(transients=places)
    made = make_task().run(pair.science, pair.template)
    for x, y, _ in places:
        measured, _ = measure(made.diffExp, x, y)
        peak = made.scoreExp.psf.compute_kernel_image(x=x, y=y).max()
        # Both are sums of PSF times difference; their images end at different places.
        assert made.scoreExp.image[y, x] == pytest.approx(measured * peak, rel=2e-3)


def test_the_difference_is_that_of_the_two_filtered_exposures(pair, made):
    good = np.isfinite(made.diffExp.image)
    delta = made.matchedScienceExp.image - made.matchedExposure.image
    np.testing.assert_allclose(delta[good], made.diffExp.image[good], atol=1e-3)
    for exposure in (made.matchedScienceExp, made.matchedExposure):
        assert exposure.psf is made.diffExp.psf
    star = int(pair.star_flux.argmax())
    fluxes = [
        measure(exposure, pair.star_x[star], pair.star_y[star])[0]
        for exposure in (made.matchedScienceExp, made.matchedExposure)
    ]
    assert fluxes == pytest.approx([pair.star_flux[star]] * 2, rel=0.02)


def test_the_template_is_brought_to_the_science_exposure_s_scale_by_the_zero_points(pair, made):
    template = replace(
        pair.template,
        masked_image=pair.template.masked_image.scaled(2.5),
        photo_calib=PhotoCalib(pair.template.photo_calib.njy_per_count / 2.5),
    )
    task = make_task()
    again = task.run(pair.science, template)
    assert task.metadata["zogyFluxRatio"] == pytest.approx(0.4)
    np.testing.assert_allclose(again.diffExp.image, made.diffExp.image, atol=0.01)
    np.testing.assert_allclose(again.templateExposure.image, pair.template.image, rtol=1e-5, atol=1e-3)
    assert again.templateExposure.photo_calib == pair.science.photo_calib
    assert again.warpedExposure.photo_calib == template.photo_calib
    given = make_task(scaleByCalibration=False, scienceFluxScaling=2.0, templateFluxScaling=5.0)
    np.testing.assert_array_equal(given.run(pair.science, template).diffExp.image, again.diffExp.image)


def test_swapping_the_exposures_turns_the_sign(pair, made):
    swapped = make_task().run(pair.template, pair.science)
    good = np.isfinite(made.diffExp.image)
    np.testing.assert_allclose(-swapped.diffExp.image[good], made.diffExp.image[good], atol=1e-3)
    good = np.isfinite(made.scoreExp.image) & np.isfinite(swapped.scoreExp.image)
    np.testing.assert_allclose(-swapped.scoreExp.image[good], made.scoreExp.image[good], rtol=1e-3, atol=2e-3)


def test_a_nominal_zero_point_is_refused_unless_the_scaling_is_given(pair):
    nominal = replace(pair.science, photo_calib=PhotoCalib(1.0, is_nominal=True))
    with pytest.raises(TaskError, match="the science exposure's zero point is nominal"):
        make_task().run(nominal, pair.template)
    with pytest.raises(TaskError, match="the template's zero point is nominal"):
        make_task().run(pair.science, replace(pair.template, photo_calib=nominal.photo_calib))
    assert make_task(scaleByCalibration=False).run(nominal, pair.template).diffExp.photo_calib.is_nominal


def test_inputs_are_left_as_they_are(pair):
    before = pair.science.copy(), pair.template.copy()
    make_task(correctBackground=True, registrationSigmaX=0.1).run(pair.science, pair.template)
    for old, new in zip(before, (pair.science, pair.template), strict=True):
        for plane in ("image", "mask", "variance"):
            np.testing.assert_array_equal(getattr(old, plane), getattr(new, plane))


def test_a_template_of_another_grid_is_warped_or_refused(pair):
    shifted = SkyWcs.from_tangent(ra_deg=359.999, dec_deg=-30.0, x=113.5, y=108.5, scale_arcsec=0.3, rotation_deg=20.0)
    template = replace(
        pair.template,
        wcs=shifted,
        masked_image=MaskedImage(
            *(
                np.roll(plane, (-3, 2), axis=(0, 1))
                for plane in (pair.template.image, pair.template.mask, pair.template.variance)
            )
        ),
    )
    with pytest.raises(TaskError, match="not to be warped"):
        make_task().run(pair.science, template, doWarping=False)
    warped = make_task().run(pair.science, template)
    assert warped.diffExp.wcs is pair.science.wcs
    for x, y, flux in TRANSIENTS:
        measured, error = measure(warped.diffExp, x, y)
        assert measured == pytest.approx(flux, abs=4.0 * error)
    cut = replace(template, masked_image=template.masked_image.cutout(template.box.grown(-10)))
    with pytest.raises(ExposureMismatch, match="shape"):
        make_task().run(pair.science, cut, doWarping=False)


def test_what_cannot_be_subtracted_is_named(pair):
    with pytest.raises(TaskError, match="the template exposure has no psf"):
        make_task().run(pair.science, replace(pair.template, psf=None))
    empty = replace(pair.template, masked_image=MaskedImage.empty(pair.template.shape))
    with pytest.raises(UnusableExposure, match="template exposure: variance"):
        make_task().run(pair.science, empty)
    other = replace(pair.template, info=replace(pair.template.info, band="g"))
    with pytest.raises(ExposureMismatch, match="band"):
        make_task().run(pair.science, other)

    class OffCentrePsf(GaussianPsf):
        def compute_offset_image(self, *, x, y, dx, dy):
            return super().compute_offset_image(x=x, y=y, dx=dx + 0.3, dy=dy)

    with pytest.raises(BadSubtraction, match="centroids") as caught:
        make_task().run(pair.science, replace(pair.template, psf=OffCentrePsf(fwhm=3.6)))
    assert caught.value.value == pytest.approx(0.3, abs=1e-3)
    task = make_task(maxPsfCentroidDist=0.5)
    assert task.run(pair.science, replace(pair.template, psf=OffCentrePsf(fwhm=3.6))).diffExp is not None


def test_noise_alone_keeps_the_reference_task_s_tolerances():
    """Equal noise of variance 100, no sources: pixels, plane and greatest significance."""
    made = make_task().run(noise_exposure(100.0, 1, 3.3), noise_exposure(100.0, 2, 2.2))
    good = made.diffExp.mask == 0
    assert made.diffExp.image[good].var() == pytest.approx(200.0, rel=0.1)
    assert made.diffExp.variance[good].mean() == pytest.approx(200.0, rel=0.05)
    significance = (made.scoreExp.image / np.sqrt(made.scoreExp.variance))[made.scoreExp.mask == 0]
    assert np.abs(significance).max() < 5.0


def test_sources_that_changed_stand_out():
    """Ten sources of which the flux changed by 10 % over noise of variance 10."""
    science, template = noise_exposure(10.0, 3, 3.3), noise_exposure(10.0, 4, 2.2)
    rng = np.random.default_rng(5)
    places = [(40 + 55 * (i % 4), 40 + 80 * (i // 4)) for i in range(10)]
    for x, y in places:
        flux = rng.uniform(2000.0, 4000.0)
        for exposure, factor in ((science, 1.1), (template, 1.0)):
            image, box = exposure.psf.compute_stellar_image(x=x, y=y)
            exposure.image[box.slices] += (factor * flux * image).astype(np.float32)
    made = make_task().run(science, template)
    significance = made.scoreExp.image / np.sqrt(made.scoreExp.variance)
    assert np.nanmax(significance) > 5.0
    assert np.nanmin(significance) > -5.0


def test_registration_scatter_may_come_from_the_caller(pair, made):
    by_caller = make_task().run(pair.science, pair.template, registrationSigma=(0.2, 0.1)).scoreExp
    by_config = make_task(registrationSigmaX=0.2, registrationSigmaY=0.1).run(pair.science, pair.template).scoreExp
    np.testing.assert_array_equal(by_caller.variance, by_config.variance)
    assert (by_caller.variance >= made.scoreExp.variance).all()
    star = int(pair.star_flux.argmax())
    row, column = round(pair.star_y[star]), round(pair.star_x[star]) + 2
    assert by_caller.variance[row, column] > 2.0 * made.scoreExp.variance[row, column]


def test_it_is_registered_under_the_field_s_name_and_says_what_it_did(pair):
    assert subtractAlgorithmRegistry["zogy"] is ZogyImagePsfMatchTask
    task = make_task(doSpatialGrid=True, gridInnerSize=2.0)
    task.run(pair.science, pair.template)
    # PSF images of 21 pixels, the larger border: five cells of 42, so six corners.
    assert task.metadata["zogyGridShape"] == [6, 6]
    # Of the sky 25 and 4, and of the stars what clipping leaves.
    assert 25.0 < task.metadata["zogyScienceVariance"] < 35.0
    variance = task.metadata["zogyScienceVariance"] + task.metadata["zogyTemplateVariance"]
    assert task.metadata["zogyFluxZeroPoint"] == pytest.approx(variance**-0.5)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(FieldValidationError, match="NOT_A_PLANE"):
        make_task(ignoreMaskPlanes=["NOT_A_PLANE"])
    with pytest.raises(FieldValidationError):
        make_task(maxPsfCentroidDist=0.0)
    with pytest.raises(FieldValidationError):
        make_task(templateFluxScaling=0.0)


def test_the_grid_leaves_an_image_of_uniform_psf_as_it_is(made):
    pair = make_pair()
    on_grid = make_task(doSpatialGrid=True, gridInnerSize=2.0).run(pair.science, pair.template)
    # Corners see other mean variances, so their kernels differ a little; white noise and fluxes stay.
    pulls = (on_grid.diffExp.image - made.diffExp.image) / np.sqrt(made.diffExp.variance)
    assert np.nanstd(pulls) < 0.1
