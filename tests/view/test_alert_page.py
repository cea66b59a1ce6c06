import copy

import pytest

from alertprod.view.alert_page import list_facts, make_facts_table, plot_alert, save_alert_page


def test_facts_name_what_a_person_asks_for(packets):
    facts = dict(list_facts(packets[16]))
    assert facts["alert"] == "5000001"
    assert facts["object"] == "1000001, 5 detections"
    assert facts["midpoint"] == "2026-03-13 16:47:23 UTC (MJD 61112.700000 TAI)"
    assert facts["visit"] == "4, detector 1, band g, 30.0 s"
    assert facts["target name"] == "field 7"
    assert facts["PSF flux"].endswith(" nJy")
    assert facts["flags"] == "none"


def test_what_is_null_is_left_out_and_flags_are_named(packets):
    packet = copy.deepcopy(packets[19])
    packet["diaSource"] |= {"psfFlux": None, "centroid_flag": True, "pixelFlags_edge": True, "reliability": 0.5}
    facts = dict(list_facts(packet))
    assert "PSF flux" not in facts
    assert "aperture flux" not in facts
    assert facts["flags"] == "centroid_flag, pixelFlags_edge"
    assert facts["kind"] == "dipole"
    assert facts["reliability"] == "0.500 (of nobody)"


def test_a_solar_system_body_has_its_name(alert_night):
    facts = dict(list_facts(alert_night.packets[-1]))
    assert "object" not in facts
    assert facts["Solar System"] == "2011 UN63, 0.04 arcsec from its prediction"


def test_the_table_has_the_facts(packets):
    assert make_facts_table(packets[16]).row_count == len(list(list_facts(packets[16])))


@pytest.mark.parametrize("number", [0, 16, -1])
def test_a_page_has_pictures_facts_and_a_light_curve(alert_night, number):
    packet = alert_night.packets[number]
    figure = plot_alert(packet)
    figure.canvas.draw()  # constrained layout warns where something does not fit
    titles = [axes.get_title() for part in figure.subfigs for axes in part.axes]
    assert titles[:3] == ["science", "template", "difference"]
    assert titles[-1].endswith("5 detections" if number == 16 else "1 detection")
    shown = {text.get_text() for part in figure.subfigs for axes in part.axes for text in axes.texts}
    assert {value for _, value in list_facts(packet)} <= shown


def test_a_page_is_written_as_png(packets, tmp_path):
    save_alert_page(packets[16], tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
