"""A folder as a repository: what is listed, found, put, and inherited."""

import pickle

import numpy as np
import pytest
from lsst.pex.config import Config, Field
from small_repository import SHAPE, VISITS, WCS, make_exposure, make_repository

from alertprod.errors import ConfigError, CorruptImage, ImageNotYetAvailable
from alertprod.images.fits_io import save_exposure
from alertprod.images.visit_summary import DetectorCalibration, VisitSummary
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog
from alertprod.psf.analytic import GaussianPsf
from alertprod.store.repository import FolderRepository
from alertprod.store.repository_description import Description, add_exposures, add_templates

ID = {"visit": 5, "detector": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def repository(root, tmp_path):
    """A repository for results, so that tests do not see one another's."""
    return FolderRepository.open(str(root), output=str(tmp_path / "out"))


def test_exposures_are_found_by_data_id(repository):
    refs = repository.subset("calexp", [{"visit": 8}, {"visit": 3, "detector": 1}, {"visit": 99}])
    assert [ref.dataId["visit"] for ref in refs] == [3, 8]
    exposure = refs[1].get("calexp")
    assert exposure.info.visit == 8
    assert exposure.image[0, 0] == 8.0
    assert refs[0].dataId == {"instrument": "Tiny", "visit": 3, "detector": 1, "band": "r"}


def test_exposures_of_the_folder_itself_are_listed_relative_to_it(tmp_path):
    save_exposure(make_exposure(visit=1, detector=0), tmp_path / "a.fits")
    add_exposures(tmp_path, str(tmp_path))
    assert Description.load(tmp_path).exposures[0].uri == "a.fits"
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    assert FolderRepository(moved).get("calexp", {"visit": 1, "detector": 0}).info.visit == 1


def test_a_folder_is_listed_afresh(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for visit in (1, 2):
        save_exposure(make_exposure(visit=visit, detector=0), images / f"{visit}.fits")
    assert len(add_exposures(tmp_path / "r", str(images), release=3).added) == 2
    (images / "1.fits").unlink()
    save_exposure(make_exposure(visit=7, detector=0), images / "7.fits")
    add_exposures(tmp_path / "r", str(images))
    repository = FolderRepository(tmp_path / "r")
    assert [entry.visit for entry in repository.exposures] == [2, 7]
    assert repository.get("ccdExposureId", {"visit": 2, "detector": 0}) >> 38 == 3, "the release stays"


def test_files_that_are_no_exposure_are_left_out_with_the_reason(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    save_exposure(make_exposure(visit=1, detector=0), images / "a.fits")
    save_exposure(make_exposure(visit=1, detector=0), images / "b.fits")
    save_exposure(make_exposure(detector=0), images / "c.fits")
    (images / "d.fits").write_bytes(b"no FITS")
    (images / "e.txt").write_text("of no interest")
    report = add_exposures(tmp_path / "r", str(images))
    assert [entry.visit for entry in report.added] == [1]
    twice, unnamed, torn = map(str, report.unusable)
    assert f"b.fits[header]: visit 1 detector 0 is {images}/a.fits already" in twice
    assert "c.fits[header]: no visit, by which an exposure is known" in unnamed
    assert "d.fits" in torn


def test_one_repository_is_read_with_one_profile(root, tmp_path):
    with pytest.raises(ConfigError, match="its exposures are read with alertprod, not saao"):
        add_exposures(root, str(tmp_path), "saao")
    with pytest.raises(ConfigError, match="no such file"):
        add_exposures(root, str(tmp_path), "no-such-profile")


def test_a_folder_of_results_takes_no_exposures(repository, tmp_path):
    for add in (add_exposures, add_templates):
        with pytest.raises(ConfigError, match="it holds results of"):
            add(repository.root, str(tmp_path))


def test_ids_are_packed_by_the_profile(repository):
    assert repository.get("ccdExposureId_bits") == 44
    first, second = (repository.get("ccdExposureId", {"visit": visit, "detector": 1}) for visit in (3, 5))
    assert first != second
    assert second.bit_length() <= 44
    assert repository.exists("ccdExposureId", ID)
    assert not repository.exists("ccdExposureId", {"visit": 4, "detector": 1})


def test_tiles_that_touch_an_exposure_are_found(repository):
    tiles = repository.find(WCS, SHAPE, "r")
    assert [tile.dataId["tile"].rpartition("/")[2] for tile in tiles] == ["left.fits", "right.fits"]
    assert tiles[0].get().image[0, 0] == 10.0
    assert [tile.dataId["tile"][-9:] for tile in repository.find(WCS.shifted(dx=10, dy=0), (24, 4), "r")] == [
        "left.fits"
    ]
    assert repository.find(WCS, SHAPE, "g") == []
    assert repository.find(WCS.shifted(dx=9999.0, dy=0.0), SHAPE, "r") == []


def test_templates_of_another_kind_are_not_mixed_in(root, tmp_path):
    with pytest.raises(ConfigError, match="none of kind goodSeeing; kinds: deep"):
        FolderRepository(root).find(WCS, SHAPE, "r", "goodSeeing")
    copy = tmp_path / "r"
    for subfilter in (0, 1):
        tiles = tmp_path / f"tiles{subfilter}"
        tiles.mkdir()
        save_exposure(make_exposure(), tiles / "tile.fits")
        add_templates(copy, str(tiles), coadd_name="dcr", subfilter=subfilter)
    add_templates(copy, str(tmp_path / "tiles0"), coadd_name="dcr", subfilter=0)
    repository = FolderRepository(copy)
    assert [tile.dataId["subfilter"] for tile in repository.find(WCS, SHAPE, "r", "dcr")] == [1, 0]
    assert repository.templates == {"dcr": 2}


class TestConfig(Config):
    __test__ = False
    number = Field(dtype=int, default=3, doc="A number")


def test_exposures_come_back(repository):
    difference = make_exposure(level=-2.5, visit=5, detector=1)
    repository.put(difference, "deepDiff_differenceExp", ID)
    assert (repository.root / "deepDiff_differenceExp/5/deepDiff_differenceExp-5-1.fits").exists()
    again = repository.get("deepDiff_differenceExp", ID)
    np.testing.assert_array_equal(again.image, difference.image)
    assert again.psf.compute_fwhm() == pytest.approx(3.0, rel=1e-4)


def test_catalogs_come_back_column_by_column(repository):
    sources = Catalog(DIA_SOURCE_COLUMNS, 2)
    sources["dia_source_id"] = [1 << 62, 5]
    sources["x"] = [1.25, np.nan]
    sources["band"] = ["r", None]
    sources["is_dipole"] = [True, False]
    repository.put(sources, "deepDiff_diaSrc", ID)
    again = repository.get("deepDiff_diaSrc", ID)
    assert again.columns == sources.columns
    for name in sources:
        np.testing.assert_array_equal(again[name], sources[name])
        assert again[name].dtype == sources[name].dtype


def test_catalogs_without_rows_come_back(repository):
    repository.put(Catalog(DIA_SOURCE_COLUMNS, 0), "deepDiff_diaSrc_schema")
    again = repository.get("deepDiff_diaSrc_schema")
    assert (again.columns, again.n_rows) == (DIA_SOURCE_COLUMNS, 0)


def test_dictionaries_come_back_with_null_for_what_is_no_number(repository):
    repository.put({"task:part": {"n": np.float32(2.5), "gone": float("nan"), "shape": np.array([1, 2])}}, "meta", ID)
    assert repository.get("meta", ID) == {"task:part": {"n": 2.5, "gone": None, "shape": [1, 2]}}


def test_what_has_no_files_is_refused(repository):
    with pytest.raises(TypeError, match="thing is a object, which is not kept in files"):
        repository.put(object(), "thing")


def test_what_is_not_there_is_named(repository):
    assert not repository.exists("deepDiff_diaSrc", ID)
    with pytest.raises(ImageNotYetAvailable, match="deepDiff_diaSrc-5-1"):
        repository.get("deepDiff_diaSrc", ID)
    with pytest.raises(KeyError, match="the data id visit=5 has no detector"):
        repository.get("deepDiff_diaSrc", {"visit": 5})


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", "{"), ("b.ecsv", "no table"), ("c.py", "import nothing_such")]
)
def test_files_that_cannot_be_read_are_named(repository, name, content):
    (repository.root / name).write_text(content)
    with pytest.raises(CorruptImage, match=name):
        repository.get(name.partition(".")[0])


def test_an_older_file_is_replaced_or_kept_beside_the_new(repository):
    for number in (1, 2, 3):
        repository.put({"number": number}, "packages", backup=True)
    repository.put({"number": 4}, "packages")
    assert repository.get("packages") == {"number": 4}
    kept = {path.name: path.read_text() for path in repository.root.glob("packages*~*")}
    assert sorted(kept) == ["packages.json~1", "packages.json~2"]
    assert '"number": 1' in kept["packages.json~1"]


def test_a_write_that_fails_leaves_what_was_there(repository):
    repository.put({"number": 1}, "packages")
    circle: dict = {}
    circle["self"] = circle
    with pytest.raises(RecursionError):
        repository.put(circle, "packages")
    assert repository.get("packages") == {"number": 1}
    assert {path.name for path in repository.root.iterdir()} == {"packages.json", "repository.json"}


def test_results_are_found_through_the_repository_of_results_alone(root, repository):
    repository.put({"n": 1}, "numbers", ID)
    assert not FolderRepository(root).exists("numbers", ID)
    assert [ref.dataId["visit"] for ref in repository.subset("numbers", [{}])] == [5]
    assert [ref.dataId["visit"] for ref in repository.subset("calexp", [{}])] == list(VISITS)


def test_results_of_results_see_through_to_the_exposures(repository, tmp_path):
    repository.put({"n": 1}, "numbers", ID)
    third = FolderRepository.open(str(repository.root), output=str(tmp_path / "third"))
    assert third.get("numbers", ID) == {"n": 1}
    assert third.get("calexp", ID).info.visit == 5
    third.put({"n": 2}, "numbers", ID)
    assert (third.get("numbers", ID), repository.get("numbers", ID)) == ({"n": 2}, {"n": 1})


def test_a_folder_of_results_belongs_to_one_repository(root, repository, tmp_path):
    assert FolderRepository.open(str(root), output=str(repository.root)).parent == root
    assert FolderRepository.open(str(root), output=str(root)).parent is None
    other = make_repository(tmp_path)
    with pytest.raises(ConfigError, match=f"results of {root}"):
        FolderRepository.open(str(other), output=str(repository.root))
    with pytest.raises(ConfigError, match="not results of another"):
        FolderRepository.open(str(root), output=str(other))


def test_a_description_that_is_none_is_named(tmp_path):
    with pytest.raises(ConfigError, match="not a repository"):
        FolderRepository(tmp_path)
    (tmp_path / "repository.json").write_text('{"exposures": [{"uri": "a"}]}')
    with pytest.raises(ConfigError, match=r"exposures\.0\.instrument: Field required"):
        FolderRepository(tmp_path)
    (tmp_path / "repository.json").write_text('{"version": 9}')
    with pytest.raises(ConfigError, match="format: is"):
        FolderRepository(tmp_path)
    Description(parent=str(tmp_path)).save(tmp_path)
    with pytest.raises(ConfigError, match="is its own ancestor"):
        FolderRepository(tmp_path)


def test_references_can_go_to_another_process(repository):
    repository.put({"n": 1}, "numbers", ID)
    (ref,) = pickle.loads(pickle.dumps(repository.subset("calexp", [{"visit": 5}])))
    assert ref.get("numbers") == {"n": 1}
    assert ref.datasetExists("calexp")
    assert ref.butler.parent == repository.parent


def test_a_visits_calibrations_are_one_file_for_all_its_detectors(repository):
    summary = VisitSummary({1: DetectorCalibration(psf=GaussianPsf(fwhm=3.0)), 2: DetectorCalibration(ap_corr_map={})})
    repository.put(summary, "finalVisitSummary", {"visit": 5})
    assert (repository.root / "finalVisitSummary/5/finalVisitSummary-5.fits").exists()
    (ref,) = repository.subset("finalVisitSummary", [{}])
    found = ref.get("finalVisitSummary")
    assert ref.dataId["visit"] == 5
    assert found[1].psf.compute_fwhm() == pytest.approx(3.0, rel=1e-4)
    assert found[2].ap_corr_map == {}
    assert not repository.exists("finalVisitSummary", {"visit": 3})
    with pytest.raises(KeyError, match="has no visit"):
        repository.get("finalVisitSummary", {"detector": 1})
