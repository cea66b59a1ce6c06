import numpy as np
import pytest

from alertprod.alerts.cutouts import CutoutTriplet
from alertprod.association.associate import associate
from alertprod.association.columns import DIA_FORCED_SOURCE_COLUMNS
from alertprod.association.forced import ExposureFacts, ForcedFluxes
from alertprod.association.history import History
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import PhotoCalib
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog
from alertprod.psf.analytic import GaussianPsf

SHAPE = (200, 240)
VISIT_MJD = 61000.25
PSF = GaussianPsf(fwhm=3.5, size=41)


@pytest.fixture
def wcs():
    return SkyWcs.from_tangent(ra_deg=359.999, dec_deg=-30.0, x=120.0, y=100.0, scale_arcsec=0.2, rotation_deg=35.0)


@pytest.fixture
def make_exposure(wcs):
    def make(*, njy_per_count=2.0, seed=1, is_nominal=False, psf=PSF):
        rng = np.random.default_rng(seed)
        return Exposure(
            masked_image=MaskedImage(
                image=rng.normal(0.0, 10.0, SHAPE).astype(np.float32),
                mask=np.zeros(SHAPE, dtype=np.int32),
                variance=np.full(SHAPE, 100.0, dtype=np.float32),
            ),
            wcs=wcs,
            psf=psf,
            photo_calib=PhotoCalib(njy_per_count, is_nominal=is_nominal),
            info=ExposureInfo(rotation_deg=35.0),
        )

    return make


@pytest.fixture
def make_sources(wcs):
    """Sources at pixel positions, measured as far as a packet needs; ids count up from `first_id`."""

    def make(x, y, *, first_id=1001, mjd=VISIT_MJD, visit=7, bbox_size=30):
        sources = Catalog(DIA_SOURCE_COLUMNS, len(x))
        sources["dia_source_id"] = first_id + np.arange(len(x))
        sources["visit"], sources["detector"], sources["band"] = visit, 3, "r"
        sources["midpoint_mjd_tai"] = mjd
        sources["exposure_time_s"] = 30.0
        sources["x"], sources["y"] = x, y
        sources["ra_deg"], sources["dec_deg"] = wcs.pixel_to_sky(x=np.array(x, float), y=np.array(y, float))
        sources["psf_flux"], sources["psf_flux_err"] = 1000.0, 50.0
        sources["science_flux"], sources["science_flux_err"] = 1500.0, 60.0
        sources["time_processed_mjd_tai"] = mjd + 0.001
        sources["bbox_size"] = bbox_size
        return sources

    return make


@pytest.fixture
def make_history(make_sources):
    """One object seen on `n_visits` nights, where the first source of `make_sources([50], [60])` is.

    All of them before the visit, but for the last `later` ones.
    """

    def make(n_visits, later=0):
        if n_visits == 0:
            return History.empty()
        objects, sources = History.empty().objects, []
        for night in range(n_visits):
            past = make_sources(
                [50.0],
                [60.0],
                first_id=100 + night,
                mjd=VISIT_MJD - n_visits + later + night + (night >= n_visits - later),
                visit=night,
            )
            past["dia_object_id"] = 100
            sources.append(past)
        merged = Catalog.concatenate(sources)
        objects = Catalog.from_rows(
            objects.columns,
            [
                {
                    "dia_object_id": 100,
                    "ra_deg": merged["ra_deg"][0],
                    "dec_deg": merged["dec_deg"][0],
                    "repeated_mjd_tai": VISIT_MJD - 2 if n_visits > 1 else None,
                }
            ],
        )
        forced = Catalog(DIA_FORCED_SOURCE_COLUMNS, n_visits)
        forced["dia_forced_source_id"] = 500 + np.arange(n_visits)
        forced["dia_object_id"] = 100
        forced["visit"], forced["detector"] = np.arange(n_visits), 3
        forced["ra_deg"], forced["dec_deg"] = merged["ra_deg"], merged["dec_deg"]
        forced["midpoint_mjd_tai"], forced["time_processed_mjd_tai"] = merged["midpoint_mjd_tai"], VISIT_MJD
        forced["psf_flux"] = np.arange(n_visits)
        # Newest first: nobody promises an order.
        return History(objects, merged.select(np.arange(n_visits)[::-1]), forced.select(np.arange(n_visits)[::-1]))

    return make


@pytest.fixture
def make_association(wcs, make_sources, make_history):
    def make(n_visits=3, *, later=0, sources=None, solar_system=None):
        def measure(*, x, y):
            return ForcedFluxes(*(np.full(len(x), value) for value in (990.0, 40.0, 1490.0, 50.0)))

        return associate(
            make_sources([50.0, 150.0], [60.0, 90.0]) if sources is None else sources,
            make_history(n_visits, later),
            ExposureFacts(
                visit=7,
                detector=3,
                band="r",
                midpoint_mjd_tai=VISIT_MJD,
                time_processed_mjd_tai=VISIT_MJD + 0.001,
                wcs=wcs,
                shape=SHAPE,
            ),
            measure_forced=measure,
            forced_id_factory=iter(range(9001, 9999)).__next__,
            solar_system=solar_system,
        )

    return make


@pytest.fixture
def no_cutouts():
    return lambda association: [CutoutTriplet(None, None, None)] * association.sources.n_rows
