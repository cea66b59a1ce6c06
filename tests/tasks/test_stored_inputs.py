"""What `ImageDifferenceTask` takes from a repository beside the exposure, through its command line and our own store."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from made_skies import TRANSIENTS
from typer.testing import CliRunner

from alertprod.cli.app import app
from alertprod.images.ap_corr import ApertureCorrection, ChebyshevField
from alertprod.images.exposure import ExposureInfo
from alertprod.images.fits_io import save_exposure
from alertprod.images.visit_summary import DetectorCalibration, VisitSummary, save_visit_summary
from alertprod.psf.analytic import GaussianPsf
from alertprod.store.repository import FolderRepository
from alertprod.store.repository_description import add_exposures, add_templates
from alertprod.tasks.image_difference import ImageDifferenceTask

ID = {"visit": 1, "detector": 4}
FACTOR = 1.1


def in_band(template):
    """Return a template as an archive has it: of a band."""
    return replace(template, info=ExposureInfo(band="r"))


@pytest.fixture(scope="module")
def corrections(pair):
    return {"psf_flux": ApertureCorrection(ChebyshevField(pair.science.box, np.array([[FACTOR]])))}


@pytest.fixture(scope="module")
def root(tmp_path_factory, pair):
    """A visit whose exposure has a PSF that is a little too wide, and a template."""
    folder = tmp_path_factory.mktemp("stored")
    for name, exposure in (
        ("science", replace(pair.science, psf=GaussianPsf(fwhm=4.9))),
        ("template", in_band(pair.template)),
    ):
        (folder / name).mkdir()
        save_exposure(exposure, folder / name / "image.fits")
    add_exposures(folder / "repository", str(folder / "science"))
    add_templates(folder / "repository", str(folder / "template"))
    return folder / "repository"


@pytest.fixture
def run(root, tmp_path):
    """Run the command line on the visit, and return what came out and the folder of results."""

    def run(*words, output="out"):
        folder = tmp_path / output
        ended = ImageDifferenceTask.parseAndRun(
            [str(root), "--output", str(folder), "--id", "visit=1", "-L", "warning", "--doraise", *words],
            doReturnResults=True,
        )
        return ended.resultList[0].result, FolderRepository(folder)

    return run


@pytest.fixture(scope="module")
def add_file(root):
    """Run ``alertprod repository add-file``."""

    def add_file(*words):
        return CliRunner().invoke(app, ["repository", "add-file", str(root), *map(str, words)], catch_exceptions=False)

    return add_file


def flux_of_the_first(sources):
    x, y, _ = TRANSIENTS[0]
    return sources["psf_flux"][np.argmin(np.hypot(sources["x"] - x, sources["y"] - y))]


def test_the_visits_last_calibration_replaces_the_exposures(run, root, pair, corrections, add_file, tmp_path):
    summary = VisitSummary({4: DetectorCalibration(psf=pair.science.psf, ap_corr_map=corrections)})
    save_visit_summary(summary, tmp_path / "final.fits")
    assert add_file("finalVisitSummary", tmp_path / "final.fits", "--visit", 1).exit_code == 0
    assert (root / "finalVisitSummary/1/finalVisitSummary-1.fits").exists()
    assert set(FolderRepository(root).get("finalVisitSummary", {"visit": 1})) == {4}
    plain, _ = run()
    final, results = run("-c", "doApplyFinalizedPsf=True", output="final")
    assert plain.scienceExposure.psf.compute_fwhm() == pytest.approx(4.9, rel=1e-3)
    assert final.scienceExposure.psf.compute_fwhm() == pytest.approx(4.4, rel=1e-3)
    # By another PSF the flux differs; without corrections it is the sky's.
    uncorrected, _ = run("-c", "doApplyFinalizedPsf=True", "doApCorr=False", output="uncorrected")
    first = flux_of_the_first(final.diaSources)
    assert first == pytest.approx(FACTOR * flux_of_the_first(uncorrected.diaSources), rel=1e-5)
    _, _, flux = TRANSIENTS[0]
    assert abs(flux_of_the_first(uncorrected.diaSources) - flux) < 5 * uncorrected.diaSources["psf_flux_err"].max()
    # The difference that is kept carries them on.
    kept = results.get("deepDiff_differenceExp", ID)
    assert kept.ap_corr_map["psf_flux"].factor.evaluate(x=50.0, y=60.0) == pytest.approx(FACTOR)


def test_corrections_in_an_exposures_own_file_are_applied(tmp_path, pair, corrections):
    for name, exposure in (
        ("science", replace(pair.science, ap_corr_map=corrections)),
        ("template", in_band(pair.template)),
    ):
        (tmp_path / name).mkdir()
        save_exposure(exposure, tmp_path / name / "image.fits")
    add_exposures(tmp_path / "r", str(tmp_path / "science"))
    add_templates(tmp_path / "r", str(tmp_path / "template"))
    ImageDifferenceTask.parseAndRun([str(tmp_path / "r"), "--id", "visit=1", "-L", "warning", "--doraise"])
    sources = FolderRepository(tmp_path / "r").get("deepDiff_diaSrc", ID)
    np.testing.assert_allclose(sources["psf_flux_ap_corr"], FACTOR, rtol=1e-6)


def test_the_sky_that_was_taken_off_is_put_back(run, add_file, pair, tmp_path):
    # As another program writes it: one image, nothing else.
    fits.PrimaryHDU(np.full(pair.science.shape, 300.0)).writeto(tmp_path / "sky.fits")
    assert add_file("calexpBackground", tmp_path / "sky.fits", "--visit", 1, "--detector", 4).exit_code == 0
    plain, _ = run()
    added, _ = run("-c", "doAddCalexpBackground=True", output="added")
    np.testing.assert_allclose(added.scienceExposure.image - plain.scienceExposure.image, 300.0, atol=0.02)
    # It belongs to the differential background, and goes with that.
    levels = [np.median(result.subtractRes.backgroundModel.compute_image()) for result in (plain, added)]
    assert levels[1] - levels[0] == pytest.approx(300.0, abs=5 * 5.0 / 224)
    assert flux_of_the_first(added.diaSources) == pytest.approx(flux_of_the_first(plain.diaSources), rel=0.01)


def test_a_table_of_stars_is_what_the_kernel_is_fitted_on(run, root, add_file, pair, tmp_path):
    chosen = slice(0, None, 2)
    Table({"x": pair.star_x[chosen], "y": pair.star_y[chosen]}).write(tmp_path / "stars.ecsv")
    assert add_file("src", tmp_path / "stars.ecsv", "--visit", 1, "--detector", 4).exit_code == 0
    try:
        result, _ = run()
        np.testing.assert_array_equal(result.selectSources["x"], pair.star_x[chosen])
        np.testing.assert_array_equal(result.subtractRes.kernelCellSet.x, pair.star_x[chosen])
    finally:
        # The repository is shared, and stars are used wherever they are there.
        (root / "src/1/src-1-4.ecsv").unlink()


def test_a_stored_difference_is_detected_on_again(run):
    first, results = run()
    again, _ = run("-c", "doSubtract=False", "detection.thresholdValue=8", "--clobber-config")
    assert again.subtractRes is None
    found = {
        (round(float(x)), round(float(y))) for x, y in zip(again.diaSources["x"], again.diaSources["y"], strict=True)
    }
    assert {(round(x), round(y)) for x, y, _ in TRANSIENTS} <= found
    assert again.diaSources["snr"].min() >= 8.0
    np.testing.assert_array_equal(results.get("deepDiff_differenceExp", ID).image, first.subtractedExposure.image)
    assert results.get("deepDiff_diaSrc", ID).n_rows == again.diaSources.n_rows
    assert flux_of_the_first(again.diaSources) == pytest.approx(flux_of_the_first(first.diaSources), rel=0.01)


def test_without_a_stored_difference_there_is_nothing_to_detect_on(run):
    with pytest.raises(FileNotFoundError, match="deepDiff_differenceExp-1-4: no such file"):
        run("-c", "doSubtract=False")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ("calexp", "x.fits", "--visit", 1),
            "calexp: is not added from a file; calexpBackground, finalVisitSummary, src",
        ),
        (("src", "x.ecsv", "--visit", 1), "src: is of one detector: say of which"),
        (("src", "x.ecsv", "--visit", 9, "--detector", 4), "there is no exposure of visit=9 detector=4"),
    ],
)
def test_what_cannot_be_added_is_said(add_file, words, problem):
    with pytest.raises(ValueError, match=problem):
        add_file(*words)
