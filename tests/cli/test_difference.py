import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table

from alertprod.alerts.avro import read_alerts
from alertprod.images.fits_io import load_exposure
from alertprod.sim.score import Detections, score_detections

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def science(small_night):
    return small_night.exposure_path(1, 0)


@pytest.fixture(scope="module")
def tiles(small_night):
    return sorted(small_night.templates_directory.glob("*.fits"))


@pytest.fixture(scope="module")
def subtracted(alertprod, science, tiles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("difference") / "made" / "when absent"
    ran = alertprod("difference", science, *tiles, "-o", folder, "--json")
    assert ran.status == 0, ran.err
    return ran.json


def test_every_file_is_there_and_they_agree(subtracted, science):
    table = Table.read(subtracted["dia_sources"])
    alerts = list(read_alerts(Path(subtracted["alerts"])))
    assert len(table) == len(alerts) == subtracted["n_dia_sources"] == subtracted["n_alerts"] > 0
    assert subtracted["n_negative"] == np.count_nonzero(table["is_negative"])
    np.testing.assert_array_equal([alert["diaSource"]["ra"] for alert in alerts], table["ra_deg"])
    assert table["psf_flux"].unit == "nJy"
    difference, matched = load_exposure(subtracted["difference"]), load_exposure(subtracted["matched_template"])
    np.testing.assert_allclose(
        (difference.image + matched.image)[200:300, 200:300], load_exposure(science).image[200:300, 200:300], atol=1e5
    )
    assert Path(subtracted["picture"]).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_bright_changes_are_found_and_the_noise_is_what_the_variance_says(subtracted, small_night):
    truth = Table.read(small_night.directory / "truth.ecsv")
    here = truth[(truth["visit"] == small_night.visit_id(1)) & (truth["detector"] == 0)]
    sources = [alert["diaSource"] for alert in read_alerts(Path(subtracted["alerts"]))]
    columns = (np.array([source[name] for source in sources]) for name in ("visit", "detector", "ra", "dec"))
    score = score_detections(Detections(*columns), here, radius_arcsec=0.6)
    bright = here[here["is_measurable"] & (here["snr"] > 15)]
    assert score.n_found[-1] == score.n_injected[-1]
    assert len(bright) > 0
    assert subtracted["figures"]["pull_width"] == pytest.approx(1.0, abs=0.02)
    assert subtracted["figures"]["kernel_sum"] == pytest.approx(1.0, abs=0.03)


def test_images_of_one_grid_need_no_world_coordinates_and_make_no_alerts(alertprod, subtracted, science, tmp_path):
    bare = tmp_path / "bare.fits"
    with fits.open(science) as hdus:
        for card in list(hdus["IMAGE"].header["C*"]):
            if card.startswith(("CRVAL", "CRPIX", "CTYPE", "CD", "CUNIT")):
                del hdus["IMAGE"].header[card]
        hdus.writeto(bare)
    ran = alertprod("difference", bare, subtracted["matched_template"], "-o", tmp_path / "out")
    assert ran.status == 1
    assert f"{bare}[image]: no world coordinates; --pixel-aligned subtracts images of one grid" in ran.words
    ran = alertprod(
        "difference", bare, subtracted["matched_template"], "-o", tmp_path / "out", "--pixel-aligned", "--json"
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert "no alerts: the images have no world coordinates" in ran.words
    assert "alerts" not in ran.json
    assert not (tmp_path / "out/alerts.avro").exists()
    # The matched template again, without its warping: the same bright sources.
    first, second = (Table.read(facts["dia_sources"]) for facts in (subtracted, ran.json))
    bright = first[np.abs(first["snr"]) > 10]
    assert len(bright) > 0
    for row in bright:
        assert np.hypot(second["x"] - row["x"], second["y"] - row["y"]).min() < 1.0


def test_settings_and_the_tables_format_can_be_chosen(alertprod, subtracted, science, tiles, tmp_path):
    ran = alertprod(
        "difference", science, *tiles, "-o", tmp_path, "--table", "parquet", "--set", "detection.thresholdValue=9.5"
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert f"dia sources: {tmp_path}/dia_sources.parquet" in ran.out
    table = pq.read_table(tmp_path / "dia_sources.parquet")
    before = Table.read(subtracted["dia_sources"])
    assert 0 < table.num_rows < len(before)
    assert table.column_names == before.colnames
    # The threshold is on the smoothed image; the measured S/N differs from it by little.
    assert np.abs(table["snr"].to_numpy()).min() > 8.0


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("detection.nosuch=5", "--set: detection.nosuch: cannot be set to 5: no such field"),
        ("detection.thresholdValue=high", "--set: detection.thresholdValue: cannot be set to 'high'"),
        ("detection.thresholdValue", "--set: detection.thresholdValue: NAME=VALUE is needed"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(alertprod, science, tiles, tmp_path, setting, said):
    ran = alertprod("difference", science, *tiles, "-o", tmp_path / "out", "--set", setting)
    assert ran.status == 2
    assert said in ran.words
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_subtracted_is_named(alertprod, science, tiles, tmp_path):
    elsewhere = tmp_path / "elsewhere.fits"
    with fits.open(tiles[0]) as hdus:
        hdus["IMAGE"].header["CRVAL2"] += 5.0
        hdus.writeto(elsewhere)
    truncated = tmp_path / "truncated.fits"
    truncated.write_bytes(science.read_bytes()[:100_000])
    for images, said in (
        ((tmp_path / "absent.fits", tiles[0]), f"{tmp_path}/absent.fits: no such file"),
        ((science, tmp_path / "absent.fits"), f"{tmp_path}/absent.fits: no such file"),
        ((truncated, tiles[0]), f"corrupt_image: {truncated}[IMAGE]: declares data up to byte"),
        ((science, elsewhere), "no_template_coverage: "),
    ):
        ran = alertprod("difference", *images, "-o", tmp_path / "out")
        assert ran.status == 1
        assert said in ran.words
        assert "Traceback" not in ran.err
        assert not (tmp_path / "out").exists()
    ran = alertprod("difference", science, tiles[0], "-o", tmp_path / "out", "--pixel-aligned")
    assert ran.status == 2
    assert "one of shape (512, 512) is needed; there are (900, 900)" in ran.words


def test_the_facts_are_readable_without_json_too(alertprod, subtracted, science, tmp_path):
    ran = alertprod("difference", science, subtracted["matched_template"], "-o", tmp_path, "--pixel-aligned")
    assert ran.status == 0
    facts = dict(line.split(": ", 1) for line in ran.out.splitlines())
    assert facts["alerts"] == str(tmp_path / "alerts.avro")
    assert int(facts["n alerts"]) == len(list(read_alerts(tmp_path / "alerts.avro")))
    assert json.loads(facts["seconds"]) > 0
