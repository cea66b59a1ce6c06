import pytest
from rich.console import Console

from alertprod.view.live_alerts import LiveAlerts, describe_line


def rendered(live, *, width=80, height=24):
    console = Console(width=width, height=height, color_system=None)
    return ["".join(segment.text for segment in line) for line in console.render_lines(live, pad=False)]


@pytest.fixture
def live(alert_night):
    live = LiveAlerts("alerts on here:9092", clock=lambda: 100.0)
    for packet in alert_night.packets:
        live.add(packet)
    return live


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 10), (132, 40)])
def test_it_fits_its_terminal_and_shows_the_newest(live, alert_night, width, height):
    lines = rendered(live, width=width, height=height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert "21 alerts" in lines[0]
    assert "2011 UN63" in lines[-1]
    assert not any("…" in line for line in lines)
    assert any("visit/detector" in line for line in lines) == (width > 100)


def test_ids_of_nineteen_digits_are_whole_on_eighty_columns(alert_night):
    packet = alert_night.packets[18]
    identity = 2**62 + 12345
    packet = {
        **packet,
        "diaSource": {
            **packet["diaSource"],
            "diaObjectId": identity,
            "psfFlux": -123456.0,
            "snr": 1234.5,
            "isDipole": True,
        },
        "diaObject": {**packet["diaObject"], "nDiaSources": 123},
    }
    live = LiveAlerts("alerts")
    live.add(packet)
    (*_, line) = rendered(live)
    assert line.split()[1] == str(identity)
    assert line.split()[-2:] == ["dip", "neg"]
    assert "…" not in line


def test_kinds_are_said(live):
    text = "\n".join(rendered(live, height=40))
    assert "new neg" in text
    assert "dip" in text


def test_the_rate_is_that_of_the_last_half_minute(alert_night):
    now = [0.0]
    live = LiveAlerts("alerts", clock=lambda: now[0])
    for _ in range(60):
        live.add(alert_night.packets[0])
    assert live.rate_hz() == 2.0
    now[0] = 31.0
    live.add(alert_night.packets[0])
    assert live.rate_hz() == pytest.approx(1 / 30)


def test_what_is_unreadable_is_counted_and_the_last_is_named(live):
    live.add_unreadable("alerts/0@4: first")
    live.add_unreadable("alerts/0@9: " + "long " * 50)
    lines = rendered(live)
    assert lines[1].startswith("2 unreadable, the last: alerts/0@9: long")
    assert max(map(len, lines)) <= 80


def test_nothing_yet_is_a_head_and_an_empty_table():
    lines = rendered(LiveAlerts("alerts on here"))
    assert lines[0].startswith("alerts on here  0 alerts")


def test_a_line_has_one_word_a_fact(alert_night):
    line = describe_line(alert_night.packets[16])
    words = line.split()
    assert words[0] == "61112.70000"
    assert words[1:3] == ["4/1", "g"]
    assert words[words.index("alert") + 1] == "5000001"
    assert words[words.index("object") + 1] == "1000001"
    assert words[words.index("history") + 1] == "4"
    body = describe_line(alert_night.packets[-1])
    assert f"object {int.from_bytes(b'K11U63N', 'big')}" in body
