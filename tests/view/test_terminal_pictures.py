import copy

import numpy as np
import pytest
from rich.console import Console

from alertprod.view.terminal_pictures import draw_light_curve, draw_triplet
from alertprod.view.triplets import stretch_cutouts


def cells(renderable, width):
    """Lines of (character, colour, colour behind)."""
    console = Console(width=width, color_system="truecolor", force_terminal=True)
    lines = []
    for line in console.render_lines(renderable, pad=False):
        lines.append([])
        for segment in line:
            style = segment.style
            for character in segment.text:
                color = style.color.name if style and style.color else ""
                behind = style.bgcolor.name if style and style.bgcolor else ""
                lines[-1].append((character, color, behind))
    return lines


def pixels(line_cells):
    return [cell for cell in line_cells if cell[0] == "▀"]


def test_each_cell_holds_two_pixels_of_a_cutout(packets):
    packet = packets[16]
    lines = cells(draw_triplet(packet, width=100), 100)
    science, _, difference = stretch_cutouts(packet)
    assert [len(pixels(line)) for line in lines[1:]][:15] == [90] * 15
    for cutout, first in ((science, 0), (difference, 60)):
        levels = np.clip((cutout.image - cutout.low) / (cutout.high - cutout.low), 0, 1)
        grey = [[f"#{round(255 * level):02x}" * 1 for level in row] for row in levels[::-1]]
        for number, line in enumerate(lines[1:16]):
            shown = pixels(line)[first : first + 30]
            assert [cell[1][:3] for cell in shown] == grey[2 * number]
            assert [cell[2][:3] for cell in shown] == grey[2 * number + 1]


def test_the_source_is_in_the_middle_and_bright_in_the_difference(packets):
    lines = cells(draw_triplet(packets[16], width=100), 100)
    row = pixels(lines[1 + 7])[60:]
    assert int(row[15][1][1:3], 16) > 200
    assert int(row[2][1][1:3], 16) < 200


@pytest.mark.parametrize("width", [20, 40, 80])
def test_narrow_terminals_get_smaller_pictures(packets, width):
    lines = cells(draw_triplet(packets[16], width=width), width)
    assert max(map(len, lines)) <= width
    side = (width - 4) // 3
    assert len([line for line in lines if pixels(line)]) == -(-side // 2)
    assert len(pixels(lines[1])) == 3 * side


def test_an_odd_side_ends_in_half_a_line(packets):
    lines = cells(draw_triplet(packets[16], width=43), 43)
    last = [line for line in lines if pixels(line)][-1]
    assert {behind for _, _, behind in pixels(last)} == {""}


def test_a_missing_cutout_is_said_and_pixels_without_data_have_their_colour(packets):
    text = "".join(character for line in cells(draw_triplet(packets[0], width=100), 100) for character, *_ in line)
    assert "none" in text
    edge = pixels(cells(draw_triplet(packets[19], width=100), 100)[5])
    assert edge[29][1] == "#c9d6e2"


def test_light_curve_has_a_symbol_a_point_between_its_extremes(packets):
    text = draw_light_curve(packets[16], width=70, height=12).plain
    lines = text.splitlines()
    assert len(lines) == 12
    assert max(map(len, lines)) <= 70
    assert "".join(lines[:-1]).count("●") == 5
    assert lines[0].rstrip().endswith("●")  # the last is the brightest
    assert "0 ┤┈" in text
    assert lines[-1].split()[:2] == ["MJD", "61100.300"]
    assert lines[-1].endswith("61112.700")
    assert "nJy in r g" in lines[-1] or "nJy in g r" in lines[-1]


def test_forced_measurements_show_where_nothing_was_detected(packets):
    packet = copy.deepcopy(packets[16])
    packet["prvDiaSources"] = packet["prvDiaSources"][:1]
    plain = "".join(draw_light_curve(packet, width=70).plain.splitlines()[:-1])
    assert (plain.count("●"), plain.count("○")) == (2, 3)


def test_negative_fluxes_hang_below_zero(packets):
    lines = draw_light_curve(packets[18], width=70).plain.splitlines()
    assert lines[0].startswith("   0 ┤┈")
    assert lines[-2].strip().startswith("-")


def test_one_point_and_none_are_drawn_too(packets):
    one = draw_light_curve(packets[0], width=60).plain
    assert one.count("●") == 1 + 1
    assert "61100.300" in one
    packet = copy.deepcopy(packets[0])
    packet["diaSource"]["psfFlux"] = None
    assert draw_light_curve(packet).plain == "no fluxes"


def test_fluxes_without_errors_are_points(packets):
    packet = copy.deepcopy(packets[0])
    packet["diaSource"]["psfFluxErr"] = None
    assert "│●" not in draw_light_curve(packet, width=60).plain.replace(" ", "")
