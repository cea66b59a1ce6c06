"""The command line of `ImageDifferenceTask` on a real series of images: a folder, data ids, files that stay."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS
from alertprod.store.repository import FolderRepository
from alertprod.store.repository_description import add_exposures, add_templates
from alertprod.tasks.detect_steps import NOT_SKY_PLANES
from alertprod.tasks.image_difference import ImageDifferenceTask
from alertprod.tasks.scale_variance import compute_pull_width

IMAGES = Path(__file__).resolve().parents[3] / "shared" / "data" / "saao_kb13475"

pytestmark = pytest.mark.skipif(not IMAGES.is_dir(), reason=f"the folder of real images, {IMAGES}, is not there")

ID = {"visit": 5, "detector": 0}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("saao") / "repository"
    add_exposures(root, str(IMAGES), "saao", pattern="AKB*I000[159]*")
    add_templates(root, str(IMAGES), "saao", pattern="template*")
    return root


@pytest.fixture(scope="module")
def done(repository, tmp_path_factory):
    """One exposure differenced, and one that is not there asked for."""
    output = tmp_path_factory.mktemp("results")
    ImageDifferenceTask.parseAndRun([str(repository), "--output", str(output), "--id", "visit=5^6", "-L", "warning"])
    return FolderRepository(output)


def test_an_exposure_leaves_its_products(done):
    assert {path.name for path in done.root.iterdir()} == {
        "repository.json",
        "packages.json",
        "deepDiff_config.py",
        "deepDiff_metadata",
        "deepDiff_differenceExp",
        "deepDiff_diaSrc",
        "deepDiff_diaSrc_schema.ecsv",
    }
    metadata = done.get("deepDiff_metadata", ID)["imageDifference"]
    assert metadata["psfMatchingAlgorithm"] == "al"
    assert done.get("deepDiff_config").coaddName == "deep"


def test_the_difference_that_is_left_is_the_one_that_was_measured(done):
    difference = done.get("deepDiff_differenceExp", ID)
    metadata = done.get("deepDiff_metadata", ID)["imageDifference"]
    # Planes are stored without loss; the sum over their pixels is float32.
    assert compute_pull_width(difference, planes=NOT_SKY_PLANES) == pytest.approx(metadata["pullWidth"], rel=1e-5)
    assert difference.info.visit == 5
    assert difference.psf is not None


def test_ids_of_the_sources_begin_with_the_exposures(done):
    sources = done.get("deepDiff_diaSrc", ID)
    assert sources.columns == done.get("deepDiff_diaSrc_schema").columns
    assert {column.name for column in DIA_SOURCE_COLUMNS} <= set(sources)
    assert sources.n_rows > 0
    assert set(sources["dia_source_id"] >> (63 - 44)) == {done.get("ccdExposureId", ID)}


def test_the_module_runs_from_a_shell(repository, tmp_path):
    command = [sys.executable, "-m", "alertprod.tasks", str(repository), "--output", str(tmp_path)]
    done = subprocess.run(
        [*command, "--id", "visit=9", "--show", "data", "config=coaddName"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "id instrument=SAAO-STE3 visit=9 detector=0 band=I\nconfig.coaddName='deep'\n"


def test_what_fails_is_the_exit_status_and_leaves_metadata(repository, tmp_path, capsys):
    words = [str(repository), "--output", str(tmp_path), "--id", "visit=1^9", "-c", "coaddName=goodSeeing"]
    with pytest.raises(SystemExit) as exit_info:
        ImageDifferenceTask.parseAndRun(words)
    assert exit_info.value.code == 2
    lines = capsys.readouterr().err
    assert "failed on instrument=SAAO-STE3 visit=9" in lines
    assert "there are none of kind goodSeeing; kinds: deep" in lines
    left = sorted(path.name for path in tmp_path.glob("goodSeeingDiff_metadata/*/*"))
    assert left == ["goodSeeingDiff_metadata-1-0.json", "goodSeeingDiff_metadata-9-0.json"]
    assert "imageDifference" in json.loads((tmp_path / "goodSeeingDiff_metadata" / "1" / left[0]).read_text())
