import numpy as np
import pytest

from alertprod.alerts.cutouts import make_cutouts
from alertprod.alerts.packet import PacketInfo, make_packets
from alertprod.association.associate import associate
from alertprod.association.forced import ExposureFacts, PsfPhotometer
from alertprod.association.history import History
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog
from alertprod.psf.analytic import GaussianPsf

SHAPE = (300, 320)
PSF = GaussianPsf(fwhm=4.0, size=31)
WCS = SkyWcs.from_tangent(ra_deg=150.1, dec_deg=2.2, x=160.0, y=150.0, scale_arcsec=0.4)
MJD = 61100.3


def draw(x, y, flux):
    image = np.zeros(SHAPE)
    for one_x, one_y, one_flux in zip(x, y, flux, strict=True):
        stamp, box = PSF.compute_stellar_image(x=one_x, y=one_y)
        image[box.slices] += one_flux * stamp
    return image


def make_exposure(image, variance):
    mask = np.zeros(SHAPE, dtype=np.int32)
    image = image.astype(np.float32)
    image[:, 318:] = np.nan
    mask[:, 318:] = plane_bits("NO_DATA")
    planes = MaskedImage(image, mask, np.full(SHAPE, variance, dtype=np.float32))
    return Exposure(masked_image=planes, wcs=WCS, psf=PSF, info=ExposureInfo(rotation_deg=0.0))


@pytest.fixture(scope="session")
def night():
    """Five visits of one field with four variables: (alerts of all visits, last visit's images and sources)."""
    rng = np.random.default_rng(8)
    star_x, star_y = rng.uniform(20, 295, 60), rng.uniform(20, 280, 60)
    star_flux = 10 ** rng.uniform(2.5, 5.0, 60)
    x, y = np.array([60.0, 150.4, 230.7, 304.0]), np.array([80.0, 200.2, 90.5, 150.0])
    history, packets = History.empty(), []
    for visit in range(5):
        flux = np.array([600 * visit + 400, 900 * np.sin(visit) + 1200, -700 - 50 * visit, 800])
        stars = draw(star_x, star_y, star_flux)
        science = make_exposure(stars + draw(x, y, flux) + rng.normal(0, 8, SHAPE), 64.0)
        template = make_exposure(stars + rng.normal(0, 2, SHAPE), 4.0)
        difference = make_exposure(science.image - template.image, 68.0)
        mjd = MJD + 3.1 * visit
        sources = Catalog(DIA_SOURCE_COLUMNS, 4)
        sources["dia_source_id"] = 1_000_000 * (visit + 1) + np.arange(1, 5)
        sources["visit"], sources["detector"], sources["band"] = visit, 1, "gr"[visit % 2]
        sources["midpoint_mjd_tai"] = sources["time_processed_mjd_tai"] = mjd
        sources["x"], sources["y"], sources["bbox_size"] = x, y, 20
        sources["ra_deg"], sources["dec_deg"] = WCS.pixel_to_sky(x=x, y=y)
        measure = PsfPhotometer(difference=difference, science=science)
        fluxes = measure(x=x, y=y)
        sources["psf_flux"], sources["psf_flux_err"] = fluxes.psf_flux, fluxes.psf_flux_err
        sources["snr"] = np.abs(fluxes.psf_flux / fluxes.psf_flux_err)
        sources["is_negative"] = fluxes.psf_flux < 0
        sources["is_dipole"][3] = visit == 4
        facts = ExposureFacts(
            visit=visit, detector=1, band="gr"[visit % 2], midpoint_mjd_tai=mjd, time_processed_mjd_tai=mjd,
            wcs=WCS, shape=SHAPE,
        )  # fmt: skip
        result = associate(
            sources, history, facts, measure_forced=measure,
            forced_id_factory=iter(range(1_000_000 * (visit + 1) + 1, 9**9)).__next__,
        )  # fmt: skip
        cutouts = make_cutouts(
            result.sources, difference=difference, science=science, template=None if visit == 0 else template
        )
        packets += make_packets(result, cutouts.triplets, PacketInfo())
        history = History(
            result.objects,
            Catalog.concatenate([history.sources, result.sources]),
            Catalog.concatenate([history.forced, result.forced]),
        )
    return packets, {"science": science, "template": template, "difference": difference, "sources": result.sources}


@pytest.fixture
def packets(night):
    return night[0]


@pytest.fixture
def pair(night):
    return night[1]
