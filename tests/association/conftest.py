import numpy as np
import pytest

from alertprod.association.associate import associate
from alertprod.association.columns import KNOWN_OBJECT_COLUMNS
from alertprod.association.forced import ExposureFacts, ForcedFluxes
from alertprod.association.history import History
from alertprod.geometry.wcs import SkyWcs
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog

VISIT_MJD = 61000.25
ARCSEC = 1 / 3600


@pytest.fixture
def make_sources():
    """Sources at offsets in arcsec from (ra, dec) = (0, 0); other columns by name."""

    def make(east, north, *, ids=None, mjd=VISIT_MJD, **columns):
        sources = Catalog(DIA_SOURCE_COLUMNS, len(east))
        sources["dia_source_id"] = 1001 + np.arange(len(east)) if ids is None else ids
        sources["visit"], sources["detector"], sources["band"] = 7, 3, "r"
        sources["midpoint_mjd_tai"] = mjd
        sources["exposure_time_s"] = 30.0
        sources["ra_deg"], sources["dec_deg"] = np.array(east) * ARCSEC % 360.0, np.array(north) * ARCSEC
        sources["psf_flux"], sources["psf_flux_err"] = 1000.0, 50.0
        sources["science_flux"], sources["science_flux_err"] = 1500.0, 60.0
        for name, values in columns.items():
            sources[name] = values
        return sources

    return make


@pytest.fixture
def make_history(make_sources):
    """Objects at offsets in arcsec, each with sources `nights` before; ids from 100 on."""

    def make(east, north, *, nights=(2, 1), **columns):
        objects = Catalog(KNOWN_OBJECT_COLUMNS, len(east))
        objects["dia_object_id"] = 100 + np.arange(len(east))
        objects["ra_deg"], objects["dec_deg"] = np.array(east) * ARCSEC % 360.0, np.array(north) * ARCSEC
        if len(nights) > 1:
            objects["repeated_mjd_tai"] = VISIT_MJD - sorted(nights)[1]
        sources = [
            make_sources(
                east,
                north,
                ids=200 + 1000 * k + np.arange(len(east)),
                mjd=VISIT_MJD - night,
                dia_object_id=objects["dia_object_id"],
                visit=k,
                **columns,
            )
            for k, night in enumerate(nights)
        ]
        empty = History.empty()
        return History(objects, Catalog.concatenate([empty.sources, *sources]), empty.forced)

    return make


@pytest.fixture
def facts():
    # North up, 0.5 arcsec a pixel, so that east and north of 50 arcsec are still on the image.
    wcs = SkyWcs.from_tangent(ra_deg=0.0, dec_deg=0.0, x=200.0, y=200.0, scale_arcsec=0.5)
    return ExposureFacts(
        visit=7,
        detector=3,
        band="r",
        midpoint_mjd_tai=VISIT_MJD,
        time_processed_mjd_tai=VISIT_MJD + 0.01,
        wcs=wcs,
        shape=(401, 401),
    )


@pytest.fixture
def run(facts):
    """Associate; forced fluxes are the pixel positions themselves, so that a mix-up shows."""

    def run(sources, history, **options):
        def measure(*, x, y):
            return ForcedFluxes(x, np.full(len(x), 1.0), y, np.full(len(x), 2.0))

        options.setdefault("measure_forced", measure)
        return associate(sources, history, facts, forced_id_factory=iter(range(9001, 99999)).__next__, **options)

    return run
