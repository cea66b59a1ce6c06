"""Five visits of one field with four variables, and a body of the Solar System in the last: their alerts, quickly made."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from alertprod.alerts.avro import decode_alert
from alertprod.alerts.cutouts import make_cutouts
from alertprod.alerts.packet import AlertMessage, PacketInfo, make_messages
from alertprod.association.associate import associate
from alertprod.association.forced import ExposureFacts, PsfPhotometer
from alertprod.association.history import History
from alertprod.association.solar_system import Ephemerides, SolarSystemMatches, match_solar_system
from alertprod.association.solar_system_columns import ORBIT_COLUMNS, PREDICTION_COLUMNS
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
X, Y = (60.0, 150.4, 230.7, 304.0), (80.0, 200.2, 90.5, 150.0)
BODY = (100.0, 240.0)


@dataclass(frozen=True)
class AlertNight:
    """What was made."""

    messages: list[AlertMessage]
    packets: list[dict[str, Any]]
    """The same, decoded."""
    last: dict[str, Any]
    """The last visit's images and sources."""


def make_alert_night() -> AlertNight:
    """Make it; the fourth source is beside an edge, and a dipole in the last visit; the first visit has no template."""
    rng = np.random.default_rng(8)
    star_x, star_y = rng.uniform(20, 295, 60), rng.uniform(20, 280, 60)
    star_flux = 10 ** rng.uniform(2.5, 5.0, 60)
    history, messages = History.empty(), []
    for visit in range(5):
        x, y = np.array(X), np.array(Y)
        flux = np.array([600 * visit + 400, 900 * np.sin(visit) + 1200, -700 - 50 * visit, 800])
        if visit == 4:
            x, y, flux = np.append(x, BODY[0]), np.append(y, BODY[1]), np.append(flux, 1500.0)
        stars = _draw(star_x, star_y, star_flux)
        science = _make_exposure(stars + _draw(x, y, flux) + rng.normal(0, 8, SHAPE), 64.0)
        template = _make_exposure(stars + rng.normal(0, 2, SHAPE), 4.0)
        difference = _make_exposure(science.image - template.image, 68.0)
        mjd = MJD + 3.1 * visit
        measure = PsfPhotometer(difference=difference, science=science)
        sources = _measure(visit, x, y, mjd, measure)
        matches = SolarSystemMatches.none()
        if visit == 4:
            sources, matches = match_solar_system(sources, _predict(sources, mjd))
        result = associate(
            sources, history,
            ExposureFacts(
                visit=visit, detector=1, band="gr"[visit % 2], midpoint_mjd_tai=mjd, time_processed_mjd_tai=mjd + 0.001,
                wcs=WCS, shape=SHAPE,
            ),
            measure_forced=measure, solar_system=matches,
            forced_id_factory=iter(range(1_000_000 * (visit + 1) + 1, 9**9)).__next__,
        )  # fmt: skip
        cutouts = make_cutouts(
            result.sources, difference=difference, science=science, template=None if visit == 0 else template
        )
        info = PacketInfo(target_name="field 7", program_version="0.1.0", config_hash="0123abcd")
        messages += make_messages(result, cutouts.triplets, info)
        history = History(
            result.objects,
            Catalog.concatenate([history.sources, result.sources]),
            Catalog.concatenate([history.forced, result.forced]),
        )
    packets = [decode_alert(message.value) for message in messages]
    last = {"science": science, "template": template, "difference": difference, "sources": result.sources}
    return AlertNight(messages, packets, last)


def _draw(x, y, flux):
    image = np.zeros(SHAPE)
    for one_x, one_y, one_flux in zip(x, y, flux, strict=True):
        stamp, box = PSF.compute_stellar_image(x=one_x, y=one_y)
        image[box.slices] += one_flux * stamp
    return image


def _make_exposure(image, variance):
    mask = np.zeros(SHAPE, dtype=np.int32)
    image = image.astype(np.float32)
    image[:, 318:] = np.nan
    mask[:, 318:] = plane_bits("NO_DATA")
    planes = MaskedImage(image, mask, np.full(SHAPE, variance, dtype=np.float32))
    return Exposure(masked_image=planes, wcs=WCS, psf=PSF, info=ExposureInfo(rotation_deg=0.0))


def _measure(visit, x, y, mjd, measure):
    sources = Catalog(DIA_SOURCE_COLUMNS, len(x))
    sources["dia_source_id"] = 1_000_000 * (visit + 1) + np.arange(1, len(x) + 1)
    sources["visit"], sources["detector"], sources["band"] = visit, 1, "gr"[visit % 2]
    sources["midpoint_mjd_tai"], sources["time_processed_mjd_tai"] = mjd, mjd + 0.001
    sources["exposure_time_s"] = 30.0
    sources["x"], sources["y"], sources["bbox_size"] = x, y, 20
    sources["ra_deg"], sources["dec_deg"] = WCS.pixel_to_sky(x=x, y=y)
    fluxes = measure(x=x, y=y)
    sources["psf_flux"], sources["psf_flux_err"] = fluxes.psf_flux, fluxes.psf_flux_err
    sources["science_flux"], sources["science_flux_err"] = fluxes.science_flux, fluxes.science_flux_err
    sources["snr"] = np.abs(fluxes.psf_flux / fluxes.psf_flux_err)
    sources["is_negative"] = fluxes.psf_flux < 0
    sources["is_dipole"][3] = visit == 4
    return sources


def _predict(sources, mjd):
    table = Catalog(PREDICTION_COLUMNS, 1)
    table["designation"], table["mjd_tai"] = "2011 UN63", mjd
    table["ra_deg"], table["dec_deg"] = sources["ra_deg"][-1] + 1e-5, sources["dec_deg"][-1]
    table["ra_rate_deg_d"], table["dec_rate_deg_d"] = 0.2, -0.1
    orbits = Catalog([column for column in ORBIT_COLUMNS if column.name in ("u_param", "a", "updated_at")], 1)
    orbits["u_param"], orbits["a"], orbits["updated_at"] = 0, 2.5, 1_790_000_000_123_456
    return Ephemerides(table, orbits)
