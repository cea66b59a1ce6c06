import json

import pytest
from astropy.io import fits
from astropy.table import Table

from alertprod.stream.messages import VisitReady


@pytest.mark.slow
def test_a_night_has_exposures_tiles_events_and_the_truth(alertprod, tmp_path):
    ran = alertprod(
        "simulate", tmp_path / "night", "--visits", 1, "--detectors", 2, "--size", 256, "--seed", 5, "--json"
    )
    assert ran.status == 0
    assert ran.json["exposures"] == 2
    events = [VisitReady(**json.loads(line)) for line in (tmp_path / "night/events.jsonl").read_text().splitlines()]
    assert [event.detector for event in events] == [0, 1]
    for event in events:
        with fits.open(event.calexp_uri) as hdus:
            assert hdus["IMAGE"].shape == (256, 256)
            assert hdus[0].header["VISIT"] == event.visit
    assert len(list((tmp_path / "night/templates").glob("*.fits"))) == ran.json["template_tiles"]
    assert set(Table.read(ran.json["truth"])["detector"]) == {0, 1}
    assert (ran.json["directory"], ran.json["events"]) == (f"{tmp_path}/night", f"{tmp_path}/night/events.jsonl")


def test_a_detector_too_small_for_anything_is_wrong_usage(alertprod, tmp_path):
    ran = alertprod("simulate", tmp_path / "night", "--size", 16)
    assert ran.status == 2
    assert "--size" in ran.words
    assert "greater than or equal to 128" in ran.words


def test_a_folder_that_cannot_be_made_is_named(alertprod, tmp_path):
    (tmp_path / "file").write_text("")
    ran = alertprod("simulate", tmp_path / "file" / "night")
    assert ran.status == 1
    assert ran.err == f"alertprod: {tmp_path}/file/night: Not a directory\n"
