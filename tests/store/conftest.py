"""Databases to test on: SQLite always, PostgreSQL where there is one."""

import uuid

import numpy as np
import pytest
import sqlalchemy as sa

from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import PhotoCalib
from alertprod.psf.analytic import GaussianPsf
from alertprod.store.database import Database, upgrade
from alertprod.store.ledger import Ledger
from alertprod.store.tables import METADATA


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="session")
def postgres_url(postgres_server):
    # A database of our own: whatever is on that server is somebody's.
    name = f"alertprod_test_{uuid.uuid4().hex[:12]}"
    admin = sa.create_engine(
        sa.make_url(postgres_server).set(drivername="postgresql+psycopg"),
        isolation_level="AUTOCOMMIT",
        poolclass=sa.NullPool,
    )
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    url = sa.make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    upgrade(url)
    yield url
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory):
    path = tmp_path_factory.mktemp("database") / "empty.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(migrated_sqlite, tmp_path):
    path = tmp_path / "alerts.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request):
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite_url")
    url = request.getfixturevalue("postgres_url")
    database = Database(url)
    with database.write() as connection:
        for table in METADATA.sorted_tables:
            connection.execute(sa.delete(table))
    database.close()
    return url


@pytest.fixture
def database(database_url):
    database = Database(database_url, busy_timeout_s=10.0)
    yield database
    database.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(database, clock):
    return Ledger(database, clock=clock)


def make_exposure(*, wcs, shape=(60, 80), band="r", level=100.0, variance=4.0, zero_point=31.4, fwhm=4.0, has_psf=True):
    """A flat exposure with a known level and noise, in counts of a given zero point."""
    rng = np.random.default_rng(11)
    image = (level + np.sqrt(variance) * rng.standard_normal(shape)).astype(np.float32)
    return Exposure(
        masked_image=MaskedImage(image, np.zeros(shape, dtype=np.int32), np.full(shape, variance, dtype=np.float32)),
        wcs=wcs,
        psf=GaussianPsf(fwhm=fwhm, size=25) if has_psf else None,
        photo_calib=PhotoCalib.from_zero_point(zero_point),
        info=ExposureInfo(instrument="SimCam", band=band),
    )


def make_wcs(ra_deg=150.0, dec_deg=2.0, *, shape=(60, 80), scale_arcsec=0.5, rotation_deg=0.0):
    """A tangent plane whose middle is at a place."""
    return SkyWcs.from_tangent(
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        x=(shape[1] - 1) / 2,
        y=(shape[0] - 1) / 2,
        scale_arcsec=scale_arcsec,
        rotation_deg=rotation_deg,
    )


@pytest.fixture
def exposure():
    return make_exposure


@pytest.fixture
def wcs():
    return make_wcs
