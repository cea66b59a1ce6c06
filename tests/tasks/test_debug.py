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
    label_dia_sources,
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
        self.shown, self.stamped, self.histograms = {}, {}, {}

    def show(self, title, image, /, *, markers=(), segments=(), maskTransparency=100.0):
        self.shown[title] = (image, list(markers), list(segments), maskTransparency)

    def stamps(self, title, images, markers, /):
        self.stamped[title] = (images, markers)

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
    assert not display.stamped
    assert not display.histograms


def test_every_picture_is_named_after_its_exposure():
    display = Recorder()
    images = {"difference": make_exposure(), "science": make_exposure(seed=2), "template": make_exposure(seed=3)}
    run_debug(display, ON, **images, diaSources=make_dipoles())
    assert list(display.shown) == ["visit 12 detector 3 difference", "visit 12 detector 3 dipoles"]
    stamped, _ = display.stamped["visit 12 detector 3 DiaSources"]
    assert stamped == {name: images[name] for name in ("science", "template", "difference")}
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
    assert len(display.shown) + len(display.stamped) + len(display.histograms) == 1


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


def test_the_most_significant_are_stamped_first_and_labelled():
    sources = make_sources(6)
    sources["is_dipole"][3], sources["is_negative"][4] = True, True
    sources["x"][5], sources["snr"][0] = np.nan, np.nan
    assert label_dia_sources(sources, most=3) == [
        Marker(140.0, 80.0, "", "red", "9.0"),
        Marker(110.0, 70.0, "", "yellow", "8.0 dipole"),
        Marker(80.0, 60.0, "", "yellow", "7.0"),
    ]
    assert label_dia_sources(sources, most=9)[-1].label == "nan"
    display = Recorder()
    run_debug(display, replace(ON, maxDiaSources=2), difference=make_exposure(), diaSources=sources)
    images, markers = display.stamped["visit 12 detector 3 DiaSources"]
    assert set(images) == {"difference"}
    assert len(markers) == 2


def test_a_transparency_beyond_percent_is_refused():
    with pytest.raises(ValueError, match="0 to 100 percent"):
        DebugOptions(maskTransparency=120.0)
