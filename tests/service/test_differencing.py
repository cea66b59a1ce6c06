"""`difference_exposures`: what daemon and offline command do alike between two exposures and their sources."""

from dataclasses import replace

import numpy as np
import pytest
from made_skies import TRANSIENTS, make_pair

from alertprod.errors import InsufficientKernelSources, NoTemplateCoverage
from alertprod.factory import create_task
from alertprod.images.mask import plane_bits
from alertprod.images.photo_calib import PhotoCalib
from alertprod.metrics import FIGURES, STAGES
from alertprod.service.differencing import difference_exposures


@pytest.fixture(scope="module")
def pair():
    return make_pair()


def difference(science, template, *, task=None, **more):
    task = task or create_task({}, source="test", n_threads=1)
    return difference_exposures(task, science, template, id_factory=task.makeIdFactory(9, 44), **more)


@pytest.fixture(scope="module")
def differenced(pair):
    return difference(pair.science, pair.template)


def copy_planes(exposure):
    return [plane.copy() for plane in (exposure.image, exposure.mask, exposure.variance)]


def test_changes_become_sources_with_ids(differenced):
    sources = differenced.sources
    np.testing.assert_array_equal(sources["dia_source_id"], (9 << 19) + np.arange(1, 4))
    for x, y, change in TRANSIENTS:
        distance = np.hypot(sources["x"] - x, sources["y"] - y)
        i = int(distance.argmin())
        assert distance[i] < 0.5
        assert abs(sources["psf_flux"][i] - change) < 5 * sources["psf_flux_err"][i]


def test_figures_are_finite_numbers_of_known_names(differenced):
    assert set(FIGURES) <= set(differenced.figures)
    assert all(isinstance(value, float) and np.isfinite(value) for value in differenced.figures.values())
    assert differenced.figures["n_sources"] == 3.0
    assert differenced.figures["science_fwhm_pixels"] == pytest.approx(4.4, rel=0.02)
    assert differenced.figures["template_fwhm_pixels"] == pytest.approx(3.6, rel=0.02)
    assert differenced.figures["template_coverage"] == 1.0


def test_limiting_magnitude_is_that_of_five_sigma_on_the_sky(differenced):
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(30.0, 195.0, 5.0), np.arange(30.0, 195.0, 5.0)))
    # Of a place without a star, whose own light would add to it.
    magnitude = 31.4 - 2.5 * np.log10(5 * differenced.photometer(x=x, y=y).psf_flux_err.min())
    assert differenced.figures["limiting_magnitude"] == pytest.approx(magnitude, abs=0.2)


def test_stages_are_those_of_the_metrics(differenced):
    assert set(differenced.stage_seconds) <= set(STAGES)
    assert {"psf", "match", "subtract", "decorrelate", "detect", "measure"} <= set(differenced.stage_seconds)
    assert all(seconds >= 0 for seconds in differenced.stage_seconds.values())


def test_stages_are_of_this_exposure_alone(pair):
    task = create_task({}, source="test", n_threads=1)
    unknown = replace(pair.template, psf=None)
    first = difference(pair.science, unknown, task=task)
    second = difference(pair.science, pair.template, task=task)
    assert set(first.stage_seconds) == set(second.stage_seconds)
    assert sum(second.stage_seconds.values()) < 5.0


@pytest.mark.parametrize(
    ("mode", "science_fwhm", "template_fwhm"), [("convolveTemplate", 4.4, 3.6), ("convolveScience", 3.6, 4.4)]
)
def test_scale_between_images_is_one_where_the_zero_points_are_right(mode, science_fwhm, template_fwhm):
    # The template in nJy, as template stores give it, the science image in counts of 4 nJy.
    pair = make_pair(science_fwhm=science_fwhm, template_fwhm=template_fwhm)
    science = pair.science.copy()
    science.image[...] /= 4.0
    science.variance[...] /= 16.0
    science.photo_calib = PhotoCalib(4.0)
    made = difference(science, pair.template, task=create_task({"subtract.al.mode": mode}, source="test", n_threads=1))
    assert made.figures["kernel_sum"] == pytest.approx(1.0, abs=0.01)
    for x, y, change in TRANSIENTS:
        i = int(np.hypot(made.sources["x"] - x, made.sources["y"] - y).argmin())
        assert abs(made.sources["psf_flux"][i] - change) < 5 * made.sources["psf_flux_err"][i]
        on_template = max(0.0, -change)
        assert abs(made.sources["template_flux"][i] - on_template) < 5 * made.sources["template_flux_err"][i] + 20


def test_images_without_psf_and_with_sky_are_made_ready(pair, differenced):
    bare = []
    for given, level in ((pair.science, 300.0), (pair.template, 500.0)):
        bare.append(replace(given.copy(), psf=None))
        bare[-1].image[...] += level
    before = [copy_planes(exposure) for exposure in bare]
    made = difference(*bare)
    assert made.sources.n_rows == differenced.sources.n_rows
    np.testing.assert_allclose(np.sort(made.sources["psf_flux"]), np.sort(differenced.sources["psf_flux"]), rtol=0.05)
    assert "fitted from" in made.science.info.provenance["psf"]
    for exposure, planes in zip(bare, before, strict=True):
        for now, then in zip((exposure.image, exposure.mask, exposure.variance), planes, strict=True):
            np.testing.assert_array_equal(now, then)
        assert exposure.psf is None


def test_provenance_says_what_was_convolved_and_what_is_nominal(pair, differenced):
    assert differenced.difference.info.provenance["convolved"] == "template"
    assert "template_zero_point" not in differenced.difference.info.provenance
    nominal = replace(pair.template, photo_calib=PhotoCalib(1.0, is_nominal=True))
    made = difference(pair.science, nominal)
    assert made.difference.info.provenance["template_zero_point"] == "nominal"
    # And the ratio of the scales is nothing to be judged by.
    assert "kernel_sum" not in made.figures
    assert made.figures["kernel_sum_nominal"] == pytest.approx(differenced.figures["kernel_sum"])
    assert "convolved" not in pair.science.info.provenance


def test_a_background_is_added_back_where_the_configuration_says_so(pair):
    sky = pair.science.copy()
    sky.image[...] = 50.0
    task = create_task({"doAddCalexpBackground": True}, source="test", n_threads=1)
    assert difference(pair.science, pair.template, task=task, background=sky).sources.n_rows == 3


def test_coverage_is_looked_at_before_anything_else(pair):
    template = pair.template.copy()
    template.mask[15:] |= plane_bits("NO_DATA")
    with pytest.raises(NoTemplateCoverage):
        # A science image without a star would fail as well, later.
        difference(replace(pair.science, psf=None), template)


def test_too_few_stars_is_the_tasks_error(pair):
    task = create_task({"subtract.al.kernel.AL.minKernelSources": 1000}, source="test", n_threads=1)
    with pytest.raises(InsufficientKernelSources) as caught:
        difference(pair.science, pair.template, task=task)
    assert caught.value.n_required == 1000


def test_photometer_measures_difference_and_science_in_njy(differenced):
    x, y = np.array([TRANSIENTS[0][0], 30.0]), np.array([TRANSIENTS[0][1], 30.0])
    forced = differenced.photometer(x=x, y=y)
    assert abs(forced.psf_flux[0] - TRANSIENTS[0][2]) < 5 * forced.psf_flux_err[0]
    assert abs(forced.psf_flux[1]) < 5 * forced.psf_flux_err[1]
    assert forced.science_flux[0] == pytest.approx(TRANSIENTS[0][2], abs=float(5 * forced.science_flux_err[0]))
