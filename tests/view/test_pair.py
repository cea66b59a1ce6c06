import numpy as np
import pytest

from alertprod.images.mask import plane_bits
from alertprod.view.pair import _average_down, _compute_pulls, plot_pair, save_pair


def test_four_panels_with_the_detections_on_the_difference(pair):
    figure = plot_pair(**pair, title="visit 4")
    science, template, difference, histogram = figure.axes
    assert science.get_title() == "science"
    assert template.get_title() == "template, matched"
    marked = {marks.get_label(): len(marks.get_offsets()) for marks in difference.collections}
    assert marked == {"3 positive": 3, "1 negative": 1, "1 dipole": 1}
    assert histogram.get_yscale() == "log"


def test_histogram_is_of_the_sky_without_detections_and_holes(pair):
    pair["difference"].mask[10:20, 10:20] |= plane_bits("DETECTED")
    text = plot_pair(**pair).axes[3].texts[0].get_text()
    assert f"{300 * 318 - 100:,} pixels" in text


def test_averaging_keeps_the_width_of_pure_noise():
    pulls = np.random.default_rng(3).normal(size=(600, 600))
    averaged = _average_down(pulls, 3) * 3
    assert averaged.shape == (200, 200)
    assert averaged.std() == pytest.approx(1.0, abs=5 / (2 * averaged.size) ** 0.5)


def test_averaging_passes_holes_over():
    image = np.array([[1.0, np.nan, 5.0], [3.0, 2.0, 5.0]])
    np.testing.assert_allclose(_average_down(image, 2), [[2.0]])
    assert np.isnan(_average_down(np.full((2, 2), np.nan), 2)).all()


def test_pixels_without_a_variance_have_no_pull(pair):
    exposure = pair["difference"].copy()
    exposure.variance[0, :3] = [0.0, np.inf, -1.0]
    pulls = _compute_pulls(exposure)
    assert np.isnan(pulls[0, [0, 2]]).all()
    assert pulls[0, 1] == 0.0


def test_picture_is_written(pair, tmp_path):
    save_pair(tmp_path / "pair.png", **pair)
    assert (tmp_path / "pair.png").read_bytes().startswith(b"\x89PNG")
