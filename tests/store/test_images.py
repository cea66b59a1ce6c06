import fsspec
import numpy as np
import pytest

from alertprod.errors import CorruptImage, ImageNotYetAvailable
from alertprod.images.fits_io import save_exposure
from alertprod.store.images import ImageStore


@pytest.mark.parametrize("root", ["{tmp_path}", "file://{tmp_path}", "memory://images"])
def test_an_exposure_loads_from_any_store(tmp_path, exposure, wcs, root):
    original = exposure(wcs=wcs())
    save_exposure(original, tmp_path / "original.fits")
    uri = root.format(tmp_path=tmp_path) + "/a.fits"
    with fsspec.open(uri, "wb") as file:
        file.write((tmp_path / "original.fits").read_bytes())
    loaded = ImageStore().load(uri)
    np.testing.assert_array_equal(loaded.image, original.image)
    assert loaded.info.band == "r"


@pytest.mark.parametrize("uri", ["/nowhere/a.fits", "memory://nowhere/a.fits"])
def test_an_image_that_is_not_there_may_come(uri):
    with pytest.raises(ImageNotYetAvailable) as caught:
        ImageStore().load(uri)
    assert caught.value.uri == uri


@pytest.mark.parametrize("root", ["{tmp_path}", "memory://images"])
def test_bytes_that_are_no_image_name_the_file(tmp_path, root):
    uri = root.format(tmp_path=tmp_path) + "/bad.fits"
    with fsspec.open(uri, "wb") as file:
        file.write(b"not a FITS file")
    with pytest.raises(CorruptImage) as caught:
        ImageStore().load(uri)
    assert caught.value.uri == uri
