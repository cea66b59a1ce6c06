import numpy as np
import pytest
from matplotlib.image import imread

from alertprod.view.triplets import describe_alert, plot_triplets, save_triplets


def test_each_alert_has_three_panels_with_its_pixels(packets):
    figure = plot_triplets(packets[-4:])
    assert len(figure.axes) == 12
    assert all(len(axis.images) == 1 for axis in figure.axes)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["science", "template", "difference"]


def test_science_and_template_share_a_stretch_and_the_difference_is_symmetric(packets):
    science, template, difference = (axis.images[0] for axis in plot_triplets(packets[-1:]).axes)
    assert science.get_clim() == template.get_clim()
    low, high = difference.get_clim()
    assert low == -high


def test_missing_cutout_is_said(packets):
    template = plot_triplets(packets[:1]).axes[1]
    assert not template.images
    assert template.texts[0].get_text() == "none"


def test_labels_name_object_significance_flux_and_date(packets):
    first, second = describe_alert(packets[0])
    source = packets[0]["diaSource"]
    assert first == f"object {source['diaObjectId']}  new"
    assert f"S/N {source['snr']:.3g}" in second
    assert f"± {source['psfFluxErr']:.3g} nJy" in second
    assert second.endswith("2026-03-01 07:11 UTC")


def test_dipoles_and_negatives_are_marked(packets):
    texts = [describe_alert(packet)[0] for packet in packets[-4:]]
    assert ["dipole" in text for text in texts] == [False, False, False, True]
    assert ["negative" in text for text in texts] == [False, False, True, False]
    assert not any("new" in text for text in texts)


def test_unknown_numbers_do_not_break_a_label(packets):
    source = {**packets[0]["diaSource"], "snr": None, "psfFlux": None, "band": None, "diaObjectId": None}
    first, second = describe_alert({**packets[0], "diaSource": {**source, "ssObjectId": 5}, "diaObject": None})
    assert first == "Solar System 5"
    assert second.startswith("S/N ?  ? ±")


def test_sheet_shows_the_most_significant(packets, tmp_path):
    path = tmp_path / "alerts.png"
    assert save_triplets(packets, path, max_alerts=5) == 5
    pixels = imread(path)
    assert pixels.shape[2] in (3, 4)
    assert np.ptp(pixels[..., 0]) > 0.9


def test_no_alerts_make_no_sheet(tmp_path):
    with pytest.raises(ValueError, match="no alerts"):
        save_triplets([], tmp_path / "alerts.png")
