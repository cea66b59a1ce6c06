"""The README, followed by somebody new: its commands in its order; those that need more than this are run by other tests."""

import io
import re
import runpy
import shlex
import sys
import tomllib
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from command_lines import assert_understood, shell_lines
from made_skies import make_pair
from prometheus_servers import OPS
from typer.testing import CliRunner

from alertprod.cli.app import app
from alertprod.images.visit_summary import DetectorCalibration, VisitSummary, save_visit_summary

ROOT = OPS.parent
TEXT = (ROOT / "README.md").read_text()
LINES = shell_lines(TEXT)

ELSEWHERE = {
    "make run": ("tests/scenarios/test_demo.py", '"demo"'),
    "make test": (".ci/run", "make test"),
    "ops/kafka/create_topics.sh": ("tests/ops/test_topics.py", "create_topics.sh"),
    "alertprod run": ("tests/observatory.py", '"run"'),
    "alertprod send": ("tests/scenarios/test_saao_series.py", '"send"'),
    "alertprod alerts tail": ("tests/scenarios/test_evening.py", '"tail"'),
    "-c doSubtract=False": ("tests/tasks/test_stored_inputs.py", '"doSubtract=False", "detection.thresholdValue=8"'),
    "pip install": ("Makefile", ",lsst]"),
    "python -m alertprod.butler": ("tests/butler/test_repository.py", "alertprod.butler"),
    "pipetask run": ("tests/butler/test_pipeline.py", "pipetask"),
    "butler register-dataset-type": ("tests/butler/test_repository.py", "register-dataset-type"),
    "butler ingest-files": ("tests/butler/test_repository.py", "ingest-files"),
}
"""Commands that need a broker, a Butler or a fresh machine: where they are run, and a word that stands there."""

SKY = 20.0
"""Counts a pixel, of a detector with a gain of 1 and a read noise of √5: together the noise that `make_pair` draws."""

pytestmark = pytest.mark.slow


def find_elsewhere(line):
    """Return the entry of `ELSEWHERE` that a command belongs to, or None."""
    return next((command for command in ELSEWHERE if line.startswith(command)), None)


@pytest.mark.parametrize("command", ELSEWHERE)
def test_commands_that_are_not_run_here_are_run_elsewhere(command):
    path, word = ELSEWHERE[command]
    assert word in (ROOT / path).read_text()
    assert command in map(find_elsewhere, LINES) or f"`{command}" in TEXT  # or the entry is of a command that is gone


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("alertprod ")])
def test_commands_are_understood(line):
    assert_understood(line)


def table_commands():
    """Yield the commands of the table; a name that follows a command stands in place of its last word."""
    table = TEXT.partition("\n## Commands\n")[2].partition("\n## ")[0]
    for first_cell in re.findall(r"^\| (`.+?`) \|", table, flags=re.MULTILINE):
        named = []
        for words in map(str.split, re.findall(r"`([^`]+)`", first_cell)):
            is_whole = words[0] in ("alertprod", "python")
            named.append(words if is_whole else [*named[0][:2], *words])
        yield from map(shlex.join, named)


@pytest.mark.parametrize("line", list(table_commands()))
def test_commands_of_the_table_exist(line):
    if line.startswith("alertprod "):
        assert_understood(line, is_whole=False)


def write_raw(path, exposure):
    """Write an exposure as the README's telescope does: counts with the sky in them, no mask, no variance, no PSF."""
    cards = fits.Header(
        {"FILTERS": 58, "GAIN": 1.0, "RDNOISE": 5.0**0.5, "MJD-OBS": 61366.1, "EXPTIME": 120.0}
        | {"RA": "23:59:59.76", "DEC": "-30:00:00"}
    )
    cards.update(exposure.wcs.to_header())
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(exposure.image + np.float32(SKY), cards, name="SCI")]).writeto(path)


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The commands of "Your own images" and what each printed, in a folder with two exposures and a template."""
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "data" / "science").mkdir(parents=True)
    (folder / "data" / "templates").mkdir()
    pair = make_pair()
    write_raw(folder / "data/templates/template.fits", pair.template)
    write_raw(folder / "data/science/img0042.fits", pair.science)
    write_raw(folder / "data/science/img0007.fits", pair.science)
    for name in ("img0042.fits", "template.fits"):
        kind = "templates" if name.startswith("t") else "science"
        (folder / name).symlink_to(folder / "data" / kind / name)
    Table({"x": pair.star_x, "y": pair.star_y}).write(folder / "stars42.ecsv")
    fits.PrimaryHDU(np.full(pair.science.shape, 3.0)).writeto(folder / "sky42.fits")
    save_visit_summary(
        VisitSummary({0: DetectorCalibration(psf=pair.science.psf, ap_corr_map={})}), folder / "final42.fits"
    )

    here = {"/data/": f"{folder}/data/", "/var/lib/alertprod": f"{folder}/state"}
    profile, daemon = re.findall(r"```toml\n((?:instrument = |\[kafka\]).*?)```", TEXT, flags=re.DOTALL)
    for path, new in here.items():
        daemon = daemon.replace(path, new)
    (folder / "mysite.toml").write_text(profile)
    (folder / "alertprod.toml").write_text(daemon)
    section = TEXT.partition("\n## Your own images\n")[2].partition("\n## ")[0]
    said = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in shell_lines(section):
            if find_elsewhere(line) is not None:
                continue
            words = shlex.split(line.replace("/data/", here["/data/"]))
            said[line] = run(words)
        said["dry run"] = run(shlex.split("alertprod send --dry-run -c alertprod.toml data/science/img0042.fits"))
    return folder, said


def run(words):
    """Return exit status and text of a command, run in this process."""
    if words[:2] == ["python", "-m"]:
        said = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
            patch.setattr(sys, "argv", words[2:])
            try:
                runpy.run_module(words[2], run_name="__main__")
            except SystemExit as ended:
                return ended.code, said.getvalue()
        return 0, said.getvalue()
    assert words[0] == "alertprod", words
    ended = CliRunner().invoke(app, words[1:])
    return ended.exit_code, f"{ended.output}{ended.exception or ''}"


def test_every_command_of_your_own_images_does_what_it_should(followed):
    _, said = followed
    assert {line: text for line, (status, text) in said.items() if status != 0} == {}
    assert len(said) >= 11


def test_they_leave_what_the_text_says(followed):
    folder, said = followed
    assert {path.name for path in (folder / "first-light").iterdir()} >= {"difference.png", "difference.fits"}
    results = {path.name for path in (folder / "results").iterdir()}
    assert {"deepDiff_differenceExp", "deepDiff_diaSrc", "deepDiff_metadata"} <= results
    assert (folder / "data/templates/templates.json").exists()
    assert '"visit": 42' in said["dry run"][1]


def test_alerts_are_read_as_the_example_reads_them(followed):
    folder, _ = followed
    example = re.search(r"```python\n(from alertprod import read_alerts.*?)```", TEXT, flags=re.DOTALL).group(1)
    (file,) = (folder / "first-light").glob("*.avro")
    here = {}
    exec(example.replace("kafka://kafka:9092/alerts", str(file)), here)
    assert len(here["alerts"].table()) > 0
    assert here["alert"].cutout("difference").data.ndim == 2


def test_every_toml_of_the_readme_is_toml():
    blocks = re.findall(r"```toml\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) == 4
    assert all(tomllib.loads(block) for block in blocks)
