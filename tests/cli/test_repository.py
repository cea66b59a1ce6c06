"""`alertprod repository`."""

import json

import pytest
from small_repository import make_exposure
from typer.testing import CliRunner

from alertprod.cli.app import app
from alertprod.images.fits_io import save_exposure


@pytest.fixture
def command(tmp_path):
    """Run a command on a folder of one exposure, one tile and one file that is neither."""
    save_exposure(make_exposure(visit=7, detector=2), tmp_path / "science.fits")
    save_exposure(make_exposure(), tmp_path / "template.fits")
    (tmp_path / "science_torn.fits").write_bytes(b"torn")

    def command(name, *words):
        return CliRunner().invoke(app, ["repository", name, str(tmp_path / "repository"), *words])

    return command


def test_a_repository_is_made_and_listed(command, tmp_path):
    added = command("add-exposures", str(tmp_path), "--match", "science*", "--release", "2")
    assert added.exit_code == 0
    assert "1 exposures" in added.stdout
    assert "left out: " in added.stderr
    assert "science_torn.fits" in added.stderr
    added = command("add-templates", str(tmp_path), "--match", "template*", "--json")
    assert json.loads(added.stdout)["deep templates"] == 1
    listed = command("ls")
    assert "7" in listed.stdout
    assert "1 exposures; template tiles: 1 deep" in listed.stdout
    listed = json.loads(command("ls", "--json").stdout)
    assert listed["templates"] == {"deep": 1}
    assert [(entry["visit"], entry["detector"], entry["band"]) for entry in listed["exposures"]] == [(7, 2, "r")]


def test_nothing_to_add_is_exit_status_one(command, tmp_path):
    assert command("add-exposures", str(tmp_path), "--match", "nothing*").exit_code == 1
    assert command("add-templates", str(tmp_path), "--match", "nothing*").exit_code == 1
