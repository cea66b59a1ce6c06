"""Files of other programs become datasets, or are refused when they are added."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from small_repository import SHAPE, make_exposure, make_repository

from alertprod.errors import ConfigError, CorruptImage, ImageNotYetAvailable, TaskError
from alertprod.images.fits_io import save_exposure
from alertprod.store.repository import FolderRepository
from alertprod.store.repository_files import add_file
from alertprod.tasks.sources import SOURCE_COLUMNS

ID = {"visit": 5, "detector": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def results(root, tmp_path):
    """A folder of results: files may be added to it too."""
    return FolderRepository.open(str(root), output=str(tmp_path / "out")).root


@pytest.mark.parametrize("in_extension", [False, True])
def test_a_background_is_the_first_image_of_its_file(results, tmp_path, in_extension):
    sky = np.arange(SHAPE[0] * SHAPE[1], dtype=">f8").reshape(SHAPE)
    image = fits.ImageHDU(sky) if in_extension else fits.PrimaryHDU(sky)
    fits.HDUList([fits.PrimaryHDU(), image] if in_extension else [image]).writeto(tmp_path / "sky.fits")
    assert add_file(results, "calexpBackground", tmp_path / "sky.fits", **ID) == ID
    found = FolderRepository(results).get("calexpBackground", ID)
    np.testing.assert_array_equal(found.image, sky)


def test_a_table_of_stars_gets_the_columns_that_it_lacks(results, tmp_path):
    Table({"x": [1.5, 2.5], "y": [3.0, 4.0], "flux": [10.0, 5.0], "whatever": [1, 2]}).write(tmp_path / "stars.ecsv")
    add_file(results, "src", tmp_path / "stars.ecsv", **ID)
    found = FolderRepository(results).get("src", ID)
    assert found.columns == SOURCE_COLUMNS
    assert found["flux"].tolist() == [10.0, 5.0]
    assert found["source_id"].tolist() == [1, 2]
    assert np.isnan(found["fwhm"]).all()


def test_what_a_dataset_cannot_be_is_refused_and_nothing_is_kept(results, tmp_path):
    save_exposure(make_exposure(visit=5, detector=1), tmp_path / "exposure.fits")
    (tmp_path / "torn.fits").write_bytes(b"torn")
    fits.PrimaryHDU().writeto(tmp_path / "empty.fits")
    Table({"ra": [1.0]}).write(tmp_path / "sky.ecsv")
    for dataset, name, error in (
        ("finalVisitSummary", "exposure.fits", CorruptImage),
        ("calexpBackground", "torn.fits", CorruptImage),
        ("calexpBackground", "empty.fits", CorruptImage),
        ("calexpBackground", "gone.fits", ImageNotYetAvailable),
        ("src", "sky.ecsv", TaskError),
        ("src", "torn.fits", CorruptImage),
        ("deepDiff_diaSrc", "sky.ecsv", ConfigError),
    ):
        with pytest.raises(error):
            add_file(results, dataset, tmp_path / name, **ID)
        assert not FolderRepository(results).exists(dataset, ID)


def test_there_must_be_such_an_exposure(results, tmp_path):
    with pytest.raises(ConfigError, match="there is no exposure of visit=6 detector=1"):
        add_file(results, "calexpBackground", tmp_path / "sky.fits", visit=6, detector=1)
    with pytest.raises(ConfigError, match="is of one detector: say of which"):
        add_file(results, "calexpBackground", tmp_path / "sky.fits", visit=5)
