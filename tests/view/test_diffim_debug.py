import numpy as np
import pytest
from matplotlib.image import imread

from alertprod.images.mask import plane_bits
from alertprod.tasks.debug import DebugOptions, run_debug
from alertprod.tasks.protocols import Marker, Segment
from alertprod.view.diffim_debug import PngDisplay, _paint_mask, plot_image, plot_pulls, plot_stamps


def test_rundebug_writes_its_pictures(pair, tmp_path):
    run_debug(
        PngDisplay(tmp_path / "debug"),
        DebugOptions(display=True),
        difference=pair["difference"],
        science=pair["science"],
        template=pair["template"],
        diaSources=pair["sources"],
    )
    names = sorted(path.name for path in (tmp_path / "debug").iterdir())
    # One of the four is called a dipole, without fitted lobes.
    assert names == ["DiaSources.png", "difference.png", "dipoles.png", "residuals.png"]
    pixels = imread(tmp_path / "debug" / "difference.png")
    assert np.ptp(pixels[..., 0]) > 0.9


def test_a_title_twice_makes_two_files(tmp_path):
    display = PngDisplay(tmp_path)
    for _ in range(3):
        display.show("visit 1: difference / pulls", np.zeros((20, 30)))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["visit_1_difference_pulls.png", "visit_1_difference_pulls_2.png", "visit_1_difference_pulls_3.png"]


def test_marks_and_lines_are_where_they_belong(pair):
    markers = [Marker(10.0, 20.0), Marker(30.0, 40.0, "x", "red"), Marker(5.0, 6.0, "", "cyan", "here")]
    figure = plot_image("title", pair["difference"], markers=markers, segments=[Segment(1.0, 2.0, 3.0, 4.0)])
    panel = figure.axes[0]
    offsets = np.concatenate([marks.get_offsets() for marks in panel.collections])
    np.testing.assert_array_equal(np.sort(offsets, axis=0), [[10.0, 20.0], [30.0, 40.0]])
    np.testing.assert_array_equal(panel.lines[0].get_xydata(), [[1.0, 2.0], [3.0, 4.0]])
    assert panel.texts[0].get_text() == "here"
    assert panel.get_title() == "title"


@pytest.mark.parametrize(("opacity", "layers"), [(0.0, 1), (0.3, 2)])
def test_mask_is_drawn_unless_it_is_wholly_transparent(pair, opacity, layers):
    assert len(plot_image("title", pair["difference"], mask_opacity=opacity).axes[0].images) == layers


def test_plain_pixels_have_no_mask():
    assert len(plot_image("title", np.zeros((30, 30)), mask_opacity=1.0).axes[0].images) == 1


def test_a_block_of_the_mask_shows_what_any_of_its_pixels_has():
    mask = np.zeros((7, 6), dtype=np.int32)
    mask[1, 1], mask[4, 4], mask[6, 0] = plane_bits("BAD"), plane_bits("DETECTED", "EDGE"), plane_bits("BAD")
    painted = _paint_mask(mask, 3, 0.25)
    assert painted.shape == (2, 2, 4)  # the seventh row is no whole block
    np.testing.assert_allclose(painted[0, 0], [1.0, 0.0, 0.0, 0.25])
    np.testing.assert_allclose(painted[1, 1], [0.9, 0.9, 0.0, 0.25])
    assert not painted[0, 1].any()


def test_a_large_image_is_averaged_down_and_keeps_its_coordinates():
    figure = plot_image("title", np.zeros((1500, 3001)), markers=[Marker(2900.0, 1400.0)])
    panel = figure.axes[0]
    assert panel.images[0].get_array().shape == (500, 1000)
    assert panel.images[0].get_extent() == [-0.5, 2999.5, -0.5, 1499.5]
    assert panel.get_xlim() == (-0.5, 3000.5)


def test_stamps_of_each_image_stand_side_by_side(pair):
    science, difference = pair["science"].copy(), pair["difference"].copy()
    difference.image[100, 50] = 3.0 * np.sqrt(difference.variance[100, 50])
    markers = [Marker(50.2, 99.8, "", "red", f"{k}") for k in range(6)] + [Marker(1.0, 2.0, "", "red", "corner")]
    panel = plot_stamps("title", {"science": science, "difference": difference}, markers).axes[0]
    sheet = panel.images[0].get_array().filled(np.nan)
    assert sheet.shape == (2 * 39, 6 * 66)
    assert panel.images[0].get_clim() == (-1.0, 1.0)
    # Half of six standard errors, in the middle of the second stamp of the first group, which is on top.
    assert sheet[39 + 15, 32 + 15] == pytest.approx(0.5)
    assert np.isnan(sheet[:31, :31]).sum() == 31 * 31 - 17 * 18  # off the image
    assert [text.get_text() for text in panel.texts] == ["0", "1", "2", "3", "4", "5", "corner"]
    assert panel.get_title() == "title (science, difference)"


def test_a_change_shows_between_science_and_template(pair):
    science = pair["science"].copy()
    science.image[150, 150] += 500.0
    sheet = plot_stamps("title", {"science": science, "template": pair["template"]}, [Marker(150.0, 150.0)]).axes[0]
    pixels = sheet.images[0].get_array()
    assert pixels[15, 15] > pixels[15, 32 + 15] + 0.5


def test_pulls_are_densities_with_their_median_and_width():
    rng = np.random.default_rng(1)
    samples = {"stars": np.append(rng.normal(0.5, 2.0, 20_000), np.nan), "none": np.full(3, np.nan)}
    panel = plot_pulls("title", samples).axes[0]
    labels = [text.get_text() for text in panel.get_legend().get_texts()]
    assert labels[0].startswith("stars: 20,000 pixels, median +0.")
    assert labels[-1] == "unit normal"
    assert len(labels) == 2
    x, density = panel.lines[0].get_xydata().T
    assert density.sum() * (x[1] - x[0]) == pytest.approx(1.0)
