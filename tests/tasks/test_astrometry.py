import numpy as np
import pytest
from astropy.table import Table

from alertprod.errors import ConfigError, TaskError
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement.catalog import Catalog
from alertprod.tasks.astrometry import AstrometryConfig, AstrometryTask, LoadReferenceObjectsConfig
from alertprod.tasks.reference_loader import REFERENCE_COLUMNS
from alertprod.tasks.sources import make_source_catalog

WCS = SkyWcs.from_tangent(ra_deg=0.0, dec_deg=-10.0, x=50.0, y=40.0, scale_arcsec=0.3)
X, Y = np.array([5.0, 40.0, 90.0, 60.0]), np.array([5.0, 70.0, 30.0, 50.0])


class Loader:
    """Gives three objects, the first three sources' own, and remembers what it was asked for."""

    def __init__(self, *, shift_arcsec=0.0):
        self.objects = Catalog(REFERENCE_COLUMNS, 3)
        self.objects["reference_id"] = [11, 12, 13]
        self.objects["g_minus_r"] = [0.1, 0.2, 0.3]
        self.objects["ra_deg"], self.objects["dec_deg"] = WCS.pixel_to_sky(x=X[:3], y=Y[:3])
        self.objects["dec_deg"] -= shift_arcsec / 3600
        self.asked = {}

    def load_circle(self, **asked):
        self.asked = asked
        return self.objects


def make_exposure(wcs=WCS):
    info = ExposureInfo(shutter_open_mjd_tai=61000.0, shutter_close_mjd_tai=61000.5)
    return Exposure(masked_image=MaskedImage.empty((80, 100)), wcs=wcs, info=info)


def test_sources_are_matched_with_what_lies_under_the_exposure():
    loader, exposure = Loader(shift_arcsec=0.4), make_exposure()
    task = AstrometryTask(refObjLoader=loader)
    found = task.loadAndMatch(exposure, make_source_catalog(x=X, y=Y))
    assert found.matches.first["reference_id"].tolist() == [11, 12, 13]
    assert found.matches.second_rows.tolist() == [0, 1, 2]
    assert found.refCat is loader.objects
    assert (found.offsetEast, found.offsetNorth) == pytest.approx((0.0, 0.4), abs=1e-6)
    assert task.metadata["nMatches"] == 3
    # The circle holds the corners and a margin, at the middle of the exposure.
    assert loader.asked["radius_arcsec"] == pytest.approx(0.3 * np.hypot(50, 40) + 10.0, rel=1e-3)
    assert loader.asked["epoch_mjd_tai"] == 61000.25
    ra, dec = WCS.compute_center((80, 100))
    assert (loader.asked["ra_deg"], loader.asked["dec_deg"]) == (ra, dec)


def test_nothing_that_matches_is_told_with_its_numbers():
    config = AstrometryConfig()
    config.matchRadius = 0.3
    task = AstrometryTask(config, refObjLoader=Loader(shift_arcsec=0.4))
    with pytest.raises(TaskError, match=r"none of 4 sources is within 0\.30 arcsec of one of 3"):
        task.loadAndMatch(make_exposure(), make_source_catalog(x=X, y=Y))


def test_what_is_missing_is_named():
    sources = make_source_catalog(x=X, y=Y)
    with pytest.raises(TaskError, match="refObjLoader"):
        AstrometryTask().loadAndMatch(make_exposure(), sources)
    with pytest.raises(TaskError, match="no world coordinates"):
        AstrometryTask(refObjLoader=Loader()).loadAndMatch(make_exposure(wcs=None), sources)


def test_the_catalogue_that_the_configuration_names_is_opened(tmp_path):
    ra, dec = WCS.pixel_to_sky(x=X, y=Y)
    Table({"RA": ra, "DE": dec, "g": [1.0, 2.0, 3.0, 4.0], "r": [0.5, 0.5, 0.5, 0.5]}).write(tmp_path / "stars.ecsv")
    config = LoadReferenceObjectsConfig()
    assert config.makeLoader() is None
    config.uri = str(tmp_path / "stars.ecsv")
    config.columns = {"ra_deg": "RA", "dec_deg": "DE", "mag_g": "g", "mag_r": "r"}
    found = AstrometryTask(refObjLoader=config.makeLoader()).loadAndMatch(
        make_exposure(), make_source_catalog(x=X, y=Y)
    )
    assert found.matches.first["g_minus_r"].tolist() == [0.5, 1.5, 2.5, 3.5]
    config.uri = str(tmp_path / "missing.ecsv")
    with pytest.raises(ConfigError, match="no such file"):
        config.makeLoader()
