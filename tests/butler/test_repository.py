"""A Butler as the tasks' repository: what it finds, what it stores, and what its errors are called."""

import pytest

pytest.importorskip("lsst.daf.butler", reason="the extra lsst is not installed; `make butler` adds it")

import pickle
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from astropy.table import Table
from butler_repository import DETECTOR, INPUTS, INSTRUMENT, SHAPE, SKYMAP, WCS
from lsst.daf.butler import Butler, CollectionType, DatasetRef, DatasetType, FileDataset
from lsst.pex.config import Config, Field
from made_skies import TRANSIENTS

from alertprod.butler import EXPOSURE, _lock_wait
from alertprod.butler.access import ButlerAccess
from alertprod.butler.repository import ButlerRepository
from alertprod.errors import (
    ConfigError,
    CorruptImage,
    DatasetExists,
    DatasetMismatch,
    ImageNotYetAvailable,
    StoreUnavailable,
)
from alertprod.images.fits_io import save_exposure
from alertprod.tasks.image_difference import ImageDifferenceTask
from alertprod.tasks.plugins import open_repository
from alertprod.tasks.sources import make_source_catalog

RUN = "u/test/out"
DATA_ID = {"instrument": INSTRUMENT, "visit": 1, "detector": DETECTOR}


def name(made, **settings) -> str:
    """What follows ``butler:``."""
    said = {"collections": ",".join(INPUTS), **settings}
    return f"{made.root}?{'&'.join(f'{key}={value}' for key, value in said.items())}"


@pytest.fixture
def repository(made):
    """Read only."""
    return ButlerRepository.open(name(made))


@contextmanager
def locked(made):
    """Hold the registry's database, as a long transaction of somebody else does."""
    with closing(sqlite3.connect(made.root / "gen3.sqlite3", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


class SmallConfig(Config):
    number = Field(dtype=int, default=3, doc="A number")


SmallConfig.__module__ = "small_config_of_a_test"  # nobody imports it to write it


def test_a_repository_is_opened_by_its_kind(made):
    assert isinstance(open_repository(f"butler:{name(made)}"), ButlerRepository)


def test_exposures_are_found_by_partial_data_ids_in_order(repository):
    def visits(*wanted):
        return [ref.dataId["visit"] for ref in repository.subset("calexp", wanted)]

    assert visits({}) == [1, 2]
    assert visits({"visit": 2}, {"visit": 1, "detector": DETECTOR}, {"visit": 2, "band": "r"}) == [1, 2]
    assert visits({"visit": 2, "band": "g"}) == []
    assert visits() == []
    assert repository.keys("calexp").items() >= {"visit": int, "detector": int, "instrument": str, "band": str}.items()


def test_an_exposure_comes_back_with_what_the_data_id_knows(repository, made):
    (ref,) = repository.subset("calexp", [{"visit": 2}])
    found, put = ref.get("calexp"), made.pairs[2].science
    np.testing.assert_array_equal(found.image, put.image)
    np.testing.assert_array_equal(found.variance, put.variance)
    assert (found.info.visit, found.info.detector, found.info.physical_filter) == (2, DETECTOR, "TestCam-r")


def test_tiles_are_found_by_their_place(repository):
    def patches(wcs, band="r"):
        return [tile.dataId["patch"] for tile in repository.find(wcs, SHAPE, band)]

    assert patches(WCS) == [0, 1]
    assert patches(WCS.shifted(dx=5000.0, dy=0.0)) == [2]
    assert patches(WCS.shifted(dx=2500.0, dy=0.0)) == []
    assert patches(WCS, band="g") == []
    tile = repository.find(WCS, SHAPE, "r")[0]
    assert tile.get().info.band == "r"
    assert "tract=0 patch=0" in tile.dataId["tile"]


def test_tiles_of_another_sky_map_are_left_out(made):
    assert len(ButlerRepository.open(name(made, skymap=SKYMAP)).find(WCS, SHAPE, "r")) == 2
    assert ButlerRepository.open(name(made, skymap="another")).find(WCS, SHAPE, "r") == []


def test_ids_begin_with_release_and_exposure(made):
    repository = ButlerRepository.open(name(made, release=2))
    (ref,) = repository.subset("calexp", [{"visit": 1}])
    assert ref.get("ccdExposureId") == 2 << 38 | 1 * 256 + DETECTOR
    assert ref.get("ccdExposureId_bits") == 44
    with pytest.raises(ConfigError, match="13 digits"):
        ButlerRepository.open(name(made, profile="rubin")).get("ccdExposureId", DATA_ID)


def test_each_kind_of_dataset_comes_back(fresh):
    made = fresh()
    repository = ButlerRepository.open(name(made), output=RUN)
    catalog = make_source_catalog(x=np.array([1.0, 2.0]), y=np.array([3.0, 4.0]), flux=np.array([5.0, 6.0]))
    repository.put(catalog, "somewhere_src", DATA_ID)
    np.testing.assert_array_equal(repository.get("somewhere_src", DATA_ID)["x"], catalog["x"])
    repository.put({"a": {"b": 1.5}}, "numbers")
    assert repository.get("numbers") == {"a": {"b": 1.5}}
    repository.put({"a": 2}, "numbers")
    assert repository.get("numbers") == {"a": 2}, "what is of the whole run is replaced"
    assert repository.exists("numbers")
    assert not repository.exists("numbers_of_nobody")
    assert not repository.exists("somewhere_src", {**DATA_ID, "visit": 2})
    config = ImageDifferenceTask.ConfigClass()
    config.detection.thresholdValue = 7
    repository.put(config, "deepDiff_config")
    assert repository.get("deepDiff_config").detection.thresholdValue == 7
    with pytest.raises(TypeError, match="has no storage class"):
        repository.put(object(), "something")


def test_a_repository_opens_again_in_another_process(made):
    again = pickle.loads(pickle.dumps(ButlerRepository.open(name(made, skymap=SKYMAP))))
    assert len(again.subset("calexp", [{}])) == 2


def test_the_command_line_runs_on_it(fresh, capsys):
    made = fresh()
    words = [f"butler:{name(made)}", "--output", RUN, "--id", "visit=1", "-c", "detection.thresholdValue=6"]
    ImageDifferenceTask.parseAndRun(words)
    results = ButlerRepository.open(name(made), output=RUN)
    (ref,) = results.subset("deepDiff_diaSrc", [{}])
    assert ref.get("deepDiff_diaSrc").n_rows == len(TRANSIENTS)
    assert ref.get("deepDiff_metadata")["imageDifference"]["templateCoverage"] == 1.0
    assert results.get("deepDiff_config").detection.thresholdValue == 6
    assert results.exists("deepDiff_diaSrc_schema")

    with pytest.raises(SystemExit) as status:  # the same again: the exposure is there
        ImageDifferenceTask.parseAndRun(words)
    assert status.value.code == 1
    assert "DatasetExists" in capsys.readouterr().err

    with pytest.raises(SystemExit) as status:  # another configuration into the same collection
        ImageDifferenceTask.parseAndRun([*words[:-1], "detection.thresholdValue=7"])
    assert status.value.code == 1
    assert "the stored configuration deepDiff_config is another" in capsys.readouterr().err

    with pytest.raises(SystemExit) as status:  # which a collection cannot keep beside the first
        ImageDifferenceTask.parseAndRun([*words[:-1], "detection.thresholdValue=7", "--clobber-config"])
    assert status.value.code == 1
    assert "DatasetExists" in capsys.readouterr().err


@pytest.mark.slow
def test_exposures_run_side_by_side_on_it(fresh):
    made = fresh()
    ImageDifferenceTask.parseAndRun([f"butler:{name(made)}", "--output", RUN, "--id", "visit=1..2", "-j", "2"])
    refs = ButlerRepository.open(name(made), output=RUN).subset("deepDiff_diaSrc", [{}])
    assert [ref.dataId["visit"] for ref in refs] == [1, 2]


def test_an_exposure_that_rubins_stack_wrote_is_read_from_its_file(fresh, tmp_path):
    made = fresh()
    path = tmp_path / "calexp.fits"
    save_exposure(replace(made.pairs[1].science, wcs=WCS), path)
    with Butler.from_config(made.root, writeable=True, run="rubin") as butler:
        dimensions = ("instrument", "visit", "detector")
        kind = DatasetType("visit_image", dimensions, "ExposureF", universe=butler.dimensions)
        butler.registry.registerDatasetType(kind)
        ref = DatasetRef(kind, butler.registry.expandDataId(DATA_ID), run="rubin")
        # Any formatter that can be named without the stack stands for its own, which is not asked.
        formatter = "alertprod.butler.formatters.ExposureFormatter"
        butler.ingest(FileDataset(path=str(path), refs=[ref], formatter=formatter), transfer="copy")
    found = ButlerRepository.open(f"{made.root}?collections=rubin").get("visit_image", DATA_ID)
    np.testing.assert_array_equal(found.image, made.pairs[1].science.image)


@pytest.mark.parametrize(
    ("dataset", "data_id", "error", "says"),
    [
        ("calexps", DATA_ID, DatasetMismatch, "has no such dataset type"),
        ("calexp", {"instrument": INSTRUMENT, "visit": 1}, DatasetMismatch, "its data id needs detector too"),
        (
            "deepCoadd",
            DATA_ID,
            DatasetMismatch,
            "needs skymap, tract, patch, band too|needs band, skymap, tract, patch",
        ),
        ("calexp", {**DATA_ID, "visit": 77}, ImageNotYetAvailable, "calexp .*visit=77"),
    ],
)
def test_what_cannot_be_got_is_named(repository, dataset, data_id, error, says):
    with pytest.raises(error, match=says):
        repository.get(dataset, data_id)


def test_a_key_that_no_data_id_has_is_named(repository):
    with pytest.raises(DatasetMismatch, match="vist"):
        repository.subset("calexp", [{"vist": 1}])


def test_tiles_that_are_of_no_patch_are_refused(repository):
    with pytest.raises(DatasetMismatch, match="no such dataset type"):
        repository.find(WCS, SHAPE, "r", "goodSeeing")
    access = ButlerAccess(repository._settings.root, collections=INPUTS)
    with pytest.raises(DatasetMismatch, match="not of patches"):
        access.find_tiles("calexp", repository_region(), "r")


def repository_region():
    from alertprod.store.sky import compute_footprint

    return compute_footprint(WCS, SHAPE)


def test_a_dataset_type_of_another_kind_is_not_written(fresh):
    repository = ButlerRepository.open(name(fresh()), output=RUN)
    with pytest.raises(DatasetMismatch, match=r"has it as AlertprodExposure of .*, not as StructuredDataDict of"):
        repository.put({"a": 1}, "calexp", DATA_ID)
    with pytest.raises(DatasetMismatch, match="not as StructuredDataDict of the whole repository"):
        repository.put({"a": 1}, "calexp")


def test_an_exposure_is_stored_once(fresh):
    made = fresh()
    repository = ButlerRepository.open(name(made), output=RUN)
    repository.put(made.pairs[1].science, "other_exp", DATA_ID)
    with pytest.raises(DatasetExists, match=rf"other_exp .*visit=1.*{RUN}"):
        repository.put(made.pairs[1].science, "other_exp", DATA_ID)


def test_a_visit_that_the_repository_does_not_know_is_not_stored(fresh):
    made = fresh()
    repository = ButlerRepository.open(name(made), output=RUN)
    with pytest.raises(DatasetMismatch, match="visit"):
        repository.put(made.pairs[1].science, "other_exp", {**DATA_ID, "visit": 77})


def test_a_locked_repository_is_a_store_that_is_away(fresh, monkeypatch):
    monkeypatch.setattr(_lock_wait, "LOCK_WAIT_S", 0.1)
    made = fresh()
    repository = ButlerRepository.open(name(made), output=RUN)
    repository.put({"a": 1}, "numbers", DATA_ID)
    with locked(made), pytest.raises(StoreUnavailable, match="locked"):
        repository.get("calexp", DATA_ID)
    with locked(made), pytest.raises(StoreUnavailable, match="locked"):
        repository.put({"a": 1}, "numbers", {**DATA_ID, "visit": 2})
    repository.put({"a": 1}, "numbers", {**DATA_ID, "visit": 2})


def test_a_file_that_is_gone_or_cut_short_is_named(fresh):
    made = fresh()
    repository = ButlerRepository.open(name(made))
    (path,) = [path for path in (made.root / INPUTS[0]).rglob("*.fits") if "_1_" in path.name or "v1" in str(path)]
    whole = path.read_bytes()
    path.write_bytes(b"x" * len(whole))
    with pytest.raises(CorruptImage):
        repository.get("calexp", DATA_ID)
    path.unlink()
    with pytest.raises(ImageNotYetAvailable):
        repository.get("calexp", DATA_ID)


@pytest.mark.parametrize(
    ("settings", "output", "field"),
    [
        ("", None, "collections"),
        ("?collections=nobody", None, "collections"),
        ("?collections=templates&colour=red", None, "colour"),
        ("?collections=templates&release=64", None, "release"),
        ("?collections=templates&profile=nobody", None, "profile"),
        ("?collections=templates", "chain", "output"),
    ],
)
def test_what_cannot_be_opened_is_a_mistake_of_the_configuration(fresh, settings, output, field):
    made = fresh()
    with Butler.from_config(made.root, writeable=True) as butler:
        butler.collections.register("chain", CollectionType.CHAINED)
    with pytest.raises(ConfigError) as caught:
        ButlerRepository.open(f"{made.root}{settings}", output=output)
    assert caught.value.field == field


def test_a_folder_that_is_no_repository_is_named(tmp_path):
    with pytest.raises(ConfigError, match="not a Butler repository"):
        ButlerRepository.open(f"{tmp_path}?collections=a")


def test_a_repository_that_is_only_read_takes_nothing(repository):
    with pytest.raises(ConfigError, match="no collection is named to put"):
        repository.put({}, "numbers")


@pytest.mark.slow
def test_files_come_in_with_the_middlewares_own_commands(fresh, tmp_path):
    made = fresh()
    path = tmp_path / "calexp.fits"
    save_exposure(replace(made.pairs[1].science, wcs=WCS), path)
    table = Table({"filename": [str(path)], **{key: [value] for key, value in DATA_ID.items()}})
    table.write(tmp_path / "files.ecsv")
    butler = [str(Path(sys.executable).parent / "butler")]
    register = ["register-dataset-type", made.root, "other_calexp", EXPOSURE, "instrument", "visit", "detector"]
    ingest = ["ingest-files", made.root, "other_calexp", "ingested", tmp_path / "files.ecsv"]
    ingest += ["--formatter", "alertprod.butler.formatters.ExposureFormatter", "--transfer", "copy"]
    for command in (register, ingest):
        done = subprocess.run(butler + [str(word) for word in command], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    found = ButlerRepository.open(f"{made.root}?collections=ingested").get("other_calexp", DATA_ID)
    np.testing.assert_array_equal(found.image, made.pairs[1].science.image)
