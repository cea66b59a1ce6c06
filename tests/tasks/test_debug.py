"""What runDebug draws, on a display that only remembers."""

from dataclasses import replace

import numpy as np
import pytest

from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog
from alertprod.psf.analytic import GaussianPsf
from alertprod.tasks.debug import (
    DebugOptions,
    collect_residuals,
    make_stamp_sheet,
    mark_dia_sources,
    mark_dipoles,
    run_debug,
)
from alertprod.tasks.protocols import Marker, Segment
from alertprod.tasks.sources import make_source_catalog

SHAPE = (120, 150)
ON = DebugOptions(display=True)


class Recorder:
    def __init__(self):
        self.shown, self.histograms = {}, {}

    def show(self, title, image, /, *, markers=(), segments=(), maskTransparency=100.0):
        self.shown[title] = (image, list(markers), list(segments), maskTransparency)

    def histogram(self, title, samples, /):
        self.histograms[title] = samples


def make_exposure(*, level=0.0, noise=2.0, seed=1, visit=12):
    rng = np.random.default_rng(seed)
    image = rng.normal(level, noise, SHAPE).astype(np.float32)
    planes = MaskedImage(image, np.zeros(SHAPE, np.int32), np.full(SHAPE, noise**2, np.float32))
    return Exposure(masked_image=planes, psf=GaussianPsf(fwhm=4.0), info=ExposureInfo(visit=visit, detector=3))


def make_sources(n=4):
    sources = Catalog(DIA_SOURCE_COLUMNS, n)
    sources["x"], sources["y"] = 20.0 + 30 * np.arange(n), 40.0 + 10 * np.arange(n)
    sources["snr"] = 5.0 + np.arange(n)
    return sources


def make_dipoles():
    sources = make_sources()
    sources["is_dipole"][[1, 2]] = True
    for lobe, sign in (("positive", 1.0), ("negative", -1.0)):
        sources[f"dipole_{lobe}_x"][1] = sources["x"][1] + 2 * sign
        sources[f"dipole_{lobe}_y"][1] = sources["y"][1] - sign
    return sources


@pytest.mark.parametrize("given", [{"display": None}, {"options": DebugOptions()}, {"difference": None}])
def test_nothing_is_drawn_unless_asked_for(given):
    display = Recorder()
    settings = {"display": display, "options": ON, "difference": make_exposure(), **given}
    run_debug(settings.pop("display"), settings.pop("options"), **settings, diaSources=make_sources())
    assert not display.shown
    assert not display.histograms


def test_every_picture_is_named_after_its_exposure():
    display = Recorder()
    images = {"difference": make_exposure(), "science": make_exposure(seed=2), "template": make_exposure(seed=3)}
    run_debug(display, ON, **images, diaSources=make_dipoles())
    assert list(display.shown) == [
        "visit 12 detector 3 difference",
        "visit 12 detector 3 DiaSources: science, template, difference",
        "visit 12 detector 3 dipoles",
    ]
    assert list(display.histograms) == ["visit 12 detector 3 residuals"]
    image, markers, segments, transparency = display.shown["visit 12 detector 3 difference"]
    assert image is images["difference"]
    assert len(markers) == 4
    assert not segments
    assert transparency == 80.0


@pytest.mark.parametrize("option", ["showSubtracted", "showPixelResiduals", "showDiaSources", "showDipoles"])
def test_each_option_draws_one_picture(option):
    display = Recorder()
    off = dict.fromkeys(("showSubtracted", "showPixelResiduals", "showDiaSources", "showDipoles"), False)
    options = replace(ON, **{**off, option: True})
    run_debug(display, options, difference=make_exposure(), diaSources=make_dipoles())
    assert len(display.shown) + len(display.histograms) == 1


def test_an_exposure_without_dia_sources_still_shows_its_difference():
    display = Recorder()
    run_debug(display, ON, difference=make_exposure(), diaSources=make_sources(0))
    assert len(display.shown) == len(display.histograms) == 1
    run_debug(display, ON, difference=make_exposure(visit=13), diaSources=None)
    assert len(display.shown) == len(display.histograms) == 2


def test_marks_tell_sign_and_bad_pixels():
    sources = make_sources(5)
    sources["is_negative"][1] = True
    sources["pixel_flags_cr"][[2, 3]] = True
    sources["pixel_flags_cr_center"][3] = True
    sources["x"][4] = np.nan
    assert mark_dia_sources(sources) == [
        Marker(20.0, 40.0, "o", "yellow"),
        Marker(50.0, 50.0, "o", "red"),
        Marker(80.0, 60.0, "+", "yellow"),
        Marker(110.0, 70.0, "x", "yellow"),
    ]


@pytest.mark.parametrize("flag", ["interpolated", "saturated", "cr"])
def test_each_of_the_three_flags_marks(flag):
    sources = make_sources(1)
    sources[f"pixel_flags_{flag}"] = True
    assert mark_dia_sources(sources)[0].symbol == "+"
    sources[f"pixel_flags_{flag}_center"] = True
    assert mark_dia_sources(sources)[0].symbol == "x"


def test_dipoles_are_lines_between_their_lobes():
    markers, segments = mark_dipoles(make_dipoles())
    assert segments == [Segment(48.0, 51.0, 52.0, 49.0, "cyan")]  # the other has no fitted lobes
    assert [(marker.x, marker.y, marker.colour) for marker in markers] == [(48.0, 51.0, "red"), (52.0, 49.0, "yellow")]


def test_residuals_of_pure_noise_are_unit_normal_everywhere():
    difference = make_exposure(noise=3.0)
    places = {"kernel stars": make_source_catalog(x=np.array([30.0, 100.0]), y=np.array([30.0, 90.0])), "none": None}
    samples = collect_residuals(difference, places)
    assert set(samples) == {"kernel stars", "sky"}
    # A disk of one FWHM, 4 pixels, has 49 pixels.
    assert samples["kernel stars"].size == 2 * 49
    for values in samples.values():
        assert values.std() == pytest.approx(1.0, abs=5 / np.sqrt(2 * values.size))


def test_bad_pixels_and_detections_are_no_residuals():
    difference = make_exposure()
    difference.mask[30, 30] = plane_bits("SAT")
    difference.variance[31, 30] = np.nan
    difference.mask[:10] = plane_bits("DETECTED")
    samples = collect_residuals(difference, {"stars": make_source_catalog(x=np.array([30.0]), y=np.array([30.0]))})
    assert samples["stars"].size == 47
    assert samples["sky"].size == 110 * 150 - 2
    assert np.isfinite(samples["sky"]).all()


def test_stars_off_the_image_and_without_a_place_count_for_nothing():
    stars = make_source_catalog(x=np.array([-50.0, np.nan, 0.0]), y=np.array([10.0, 10.0, 0.0]))
    samples = collect_residuals(make_exposure(), {"stars": stars})
    assert samples["stars"].size == 17  # a quarter of the disk, with its axes


def test_a_sheet_has_the_pixels_of_each_image_side_by_side():
    science, difference = make_exposure(level=500.0, seed=4), make_exposure(seed=5)
    science.image[50, 50] = 500.0 + 40.0
    difference.image[50, 50] = -60.0
    sources = make_sources(7)
    sources["is_dipole"][1], sources["is_negative"][2] = True, True
    sheet, markers = make_stamp_sheet([science, difference], sources, per_row=4)
    assert [marker.label for marker in markers[:3]] == ["5.0", "6.0 dipole", "7.0"]
    assert markers[2].colour == "red"
    height, width = sheet.shape[0] // 2, sheet.shape[1] // 4
    assert (markers[4].x, markers[0].x) == (0.0, 0.0)
    assert markers[0].y - markers[4].y == height  # the first row is on top
    # The second source, at (50, 50): the middles of its stamps, as pulls about the image's level.
    left = width
    bottom = height
    assert sheet[bottom + 15, left + 15] == pytest.approx(20.0, abs=0.2)
    assert sheet[bottom + 15, left + 32 + 15] == pytest.approx(-30.0, abs=0.2)
    # Sources beyond the border have no pixels there.
    assert np.isnan(sheet[:height, left * 2 : left * 2 + 31]).any()


def test_the_most_significant_are_shown_where_there_are_too_many():
    display = Recorder()
    sources = make_sources(4)
    run_debug(display, replace(ON, maxDiaSources=2), difference=make_exposure(), diaSources=sources)
    _, markers, _, _ = display.shown["visit 12 detector 3 DiaSources: difference"]
    assert [marker.label for marker in markers] == ["7.0", "8.0"]


def test_a_transparency_beyond_percent_is_refused():
    with pytest.raises(ValueError, match="0 to 100 percent"):
        DebugOptions(maskTransparency=120.0)
