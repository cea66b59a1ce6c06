import numpy as np
import pytest

from alertprod.view.light_curves import choose_objects, choose_time_axis, plot_light_curves, save_light_curves


def test_latest_alert_of_each_object_is_chosen(packets):
    chosen = choose_objects(packets, max_objects=10)
    assert len(chosen) == 4
    assert {packet["diaSource"]["visit"] for packet in chosen} == {4}
    assert choose_objects(reversed(packets), max_objects=10) == chosen
    assert len(choose_objects(packets, max_objects=2)) == 2


def test_panel_shows_every_detection_and_forced_point(packets):
    (packet,) = choose_objects(packets, max_objects=1)
    panel = plot_light_curves([packet]).axes[0]
    shown = sum(len(container.lines[0].get_xdata()) for container in panel.containers)
    # Five detections; forced from the second visit on.
    assert shown == 5 + 4
    assert "5 detections" in panel.get_title()


def test_points_have_their_errors_as_bars(packets):
    (packet,) = choose_objects(packets, max_objects=1)
    panel = plot_light_curves([packet]).axes[0]
    assert all(container.has_yerr for container in panel.containers)


def test_legend_names_bands_and_kinds(packets):
    figure = plot_light_curves(choose_objects(packets, max_objects=4))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["g", "r", "detection", "forced"]


def test_missing_fluxes_are_left_out(packets):
    (packet,) = choose_objects(packets, max_objects=1)
    blank = {**packet, "diaSource": {**packet["diaSource"], "psfFlux": None}, "prvDiaForcedSources": None}
    panel = plot_light_curves([blank]).axes[0]
    assert sum(len(container.lines[0].get_xdata()) for container in panel.containers) == 4


def test_a_flux_of_huge_error_does_not_set_the_axis_and_is_counted(packets):
    (packet,) = choose_objects(packets, max_objects=1)
    first, *others = packet["prvDiaForcedSources"]
    vague = {**first, "psfFlux": 1e7, "psfFluxErr": 1e7}
    plain, spoilt = (
        plot_light_curves([{**packet, "prvDiaForcedSources": forced}]).axes[0]
        for forced in ([first, *others], [vague, *others])
    )
    assert np.ptp(spoilt.get_ylim()) < 2 * np.ptp(plain.get_ylim())
    texts = [[text.get_text() for text in panel.texts] for panel in (plain, spoilt)]
    assert "1 of large error beyond" in texts[1]
    assert not any("beyond" in text for text in texts[0])


def test_page_is_written(packets, tmp_path):
    path = tmp_path / "light_curves.png"
    assert save_light_curves(packets, path) == 4
    assert path.read_bytes().startswith(b"\x89PNG")


def test_no_alerts_make_no_page(tmp_path):
    with pytest.raises(ValueError, match="no light curves"):
        save_light_curves([], tmp_path / "none.png")


@pytest.mark.parametrize(
    ("span_days", "unit", "expected"),
    [(10 / 1440, "minutes since 2024-01-01 06:00 TAI", 10.5), (0.5, "hours since 2024-01-01 0h TAI (MJD 60310)", 18.0),
     (30.0, "days since 2024-01-01 0h TAI (MJD 60310)", 30.25)],
)  # fmt: skip
def test_times_are_numbers_of_few_digits(packets, span_days, unit, expected):
    first = 60310.25 + 0.5 / 1440
    bare = {"prvDiaSources": None, "prvDiaForcedSources": None}
    dated = [
        {**packets[0], **bare, "diaSource": {**packets[0]["diaSource"], "midpointMjdTai": time}}
        for time in (first, first + span_days)
    ]
    axis = choose_time_axis(dated)
    assert axis.label == unit
    assert axis.place(np.array(first + span_days)) == pytest.approx(
        expected, abs=0.01 + (0.01 if span_days > 1e-2 else 0)
    )
