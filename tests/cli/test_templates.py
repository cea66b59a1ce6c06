import os

import numpy as np
import pytest
from astropy.io import fits


@pytest.fixture
def tiles(tmp_path, small_night):
    """A folder with two tiles of the night and whatever a test adds."""
    folder = tmp_path / "tiles"
    folder.mkdir()
    for path in sorted(small_night.templates_directory.glob("*.fits"))[:2]:
        os.link(path, folder / path.name)
    return folder


def test_index_and_ls(alertprod, tiles):
    ran = alertprod("templates", "index", tiles)
    assert ran.status == 0
    assert ran.out == f"{tiles}/templates.json: 2 tiles in r\n"
    listed = alertprod("templates", "ls", tiles / "templates.json")
    assert listed.status == 0
    assert all(path.name in listed.out for path in tiles.glob("*.fits"))
    rows = alertprod("templates", "ls", tiles / "templates.json", "--json").json
    assert [row["uri"] for row in rows] == sorted(map(str, tiles.glob("*.fits")))
    for row in rows:
        assert row["band"] == "r"
        assert min(abs(row["ra_deg"] - 359.97), 360 - abs(row["ra_deg"] - 359.97)) < 0.1
        assert 0.7 < row["psf_fwhm_arcsec"] < 0.9  # 0.72, of a profile with wings and through pixels of 0.23
        assert 20.0 < row["depth_mag"] < 26.0


def test_what_cannot_be_a_tile_is_said_and_left_out(alertprod, tiles):
    good = sorted(map(str, tiles.glob("*.fits")))
    whole = (tiles / good[0]).read_bytes()
    (tiles / "truncated.fits").write_bytes(whole[: len(whole) // 2])
    (tiles / "notes.fits").write_text("not FITS at all")
    fits.PrimaryHDU(np.ones((32, 32), np.float32)).writeto(tiles / "flat.fits")
    ran = alertprod("templates", "index", tiles)
    assert ran.status == 0
    assert ran.out == f"{tiles}/templates.json: 2 tiles in r\n"
    left_out = [line for line in ran.err.splitlines() if line.startswith("left out: ")]
    assert sorted(line.partition("[")[0].rpartition("/")[2] for line in left_out) == [
        "flat.fits",
        "notes.fits",
        "truncated.fits",
    ]
    facts = alertprod("templates", "index", tiles, "--json").json
    assert (facts["tiles"], len(facts["unusable"])) == (2, 3)
    assert [row["uri"] for row in alertprod("templates", "ls", facts["index"], "--json").json] == good


def test_none_usable_is_a_failure(alertprod, tmp_path):
    (tmp_path / "broken.fits").write_bytes(b"SIMPLE  =                    T")
    ran = alertprod("templates", "index", tmp_path)
    assert ran.status == 1
    assert f"left out: {tmp_path}/broken.fits" in ran.words
    assert alertprod("templates", "index", tmp_path, "--match", "nothing*").status == 1


def test_names_and_place_of_the_index_can_be_chosen(alertprod, tiles, tmp_path):
    name = min(path.name for path in tiles.glob("*.fits"))
    ran = alertprod("templates", "index", tiles, "--match", name, "-o", tmp_path / "one.json", "--json")
    assert ran.status == 0
    assert ran.json == {"index": f"{tmp_path}/one.json", "tiles": 1, "bands": ["r"], "unusable": []}
    assert [row["uri"] for row in alertprod("templates", "ls", tmp_path / "one.json", "--json").json] == [
        str(tiles / name)
    ]


def test_a_folder_an_index_or_a_profile_that_is_not_there_is_named(alertprod, tmp_path):
    ran = alertprod("templates", "index", tmp_path / "nowhere")
    assert ran.status == 1
    assert f"{tmp_path}/nowhere" in ran.words
    ran = alertprod("templates", "ls", tmp_path / "nowhere.json")
    assert ran.status == 2
    assert f"{tmp_path}/nowhere.json: templates: no such index: make one with `alertprod templates index`" in ran.words
    ran = alertprod("templates", "index", tmp_path, "--profile", "nosuch")
    assert ran.status == 2
    assert "nosuch: profile: no such file; packaged profiles are alertprod," in ran.words


def test_a_file_that_is_no_index_is_named(alertprod, tmp_path):
    (tmp_path / "index.json").write_text('{"tiles": []}')
    ran = alertprod("templates", "ls", tmp_path / "index.json")
    assert ran.status == 2
    assert f"{tmp_path}/index.json: templates: not a template index" in ran.words
