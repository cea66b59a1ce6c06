"""What a packet says, against the sky that was drawn: units, frames, time scales, what is null, and what follows from what.

Two visits of one field go the way of every exposure, from pixels to bytes; all is judged by what a reader decodes. Counts
are not nanojanskys here, pixels not arcseconds, the declination is far from 0 and the camera rotated, so that a factor
which is left out shows.
"""

import datetime
from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import BarycentricMeanEcliptic, SkyCoord
from made_skies import NOISE, make_pair

from alertprod.alerts.avro import decode_alert
from alertprod.alerts.cutouts import CutoutConfig, load_cutout
from alertprod.alerts.packet import PacketInfo
from alertprod.alerts.registry import record_types
from alertprod.alerts.validation import validate_envelope, validate_packet
from alertprod.association.config import AssociationConfig
from alertprod.association.forced import ExposureFacts
from alertprod.association.history import History
from alertprod.factory import create_task
from alertprod.geometry.sphere import separation_arcsec
from alertprod.ids import RubinPacker
from alertprod.measurement.catalog import Catalog
from alertprod.service.differencing import difference_exposures
from alertprod.service.packaging import package_alerts, prepare_sources

COUNTS_PER_NJY = 2.5
SCALE_ARCSEC = 0.3
TEMPLATE_NOISE = 2.0
VISITS = (2026112200081, 2026112500012)
DETECTOR = 29
RELEASE = 1
EXPOSURE_TIME_S = 30.0
NOW = 61370.25
TRANSIENTS = {
    VISITS[0]: ((70.3, 90.2, 4000.0), (150.6, 60.4, -3000.0), (100.1, 170.7, 2500.0)),
    VISITS[1]: ((70.3, 90.2, 6000.0), (150.6, 60.4, -4500.0), (100.1, 170.7, 2500.0)),
}
SIGMA_ARCSEC = 4.4 / 2.3548 * SCALE_ARCSEC


def shutter_open(visit):
    day = datetime.date(visit // 10**9, visit // 10**7 % 100, visit // 10**5 % 100)
    return day.toordinal() - datetime.date(1858, 11, 17).toordinal() + 0.3


def midpoint(visit):
    return shutter_open(visit) + 0.5 * EXPOSURE_TIME_S / 86_400


class Visit:
    """One visit's alerts, with what they were made from."""

    def __init__(self, visit, history):
        pair = make_pair(
            seed=visit % 1000, transients=TRANSIENTS[visit], template_noise=TEMPLATE_NOISE,
            flux_scale=COUNTS_PER_NJY, visit=visit,
        )  # fmt: skip
        info = replace(
            pair.science.info, detector=DETECTOR, shutter_open_mjd_tai=shutter_open(visit),
            exposure_time_s=EXPOSURE_TIME_S, rotation_deg=20.0,
        )  # fmt: skip
        task = create_task({}, source="test", n_threads=1)
        exposure_id = (RELEASE << 38) | RubinPacker().pack(visit=visit, detector=DETECTOR)
        self.differenced = difference_exposures(
            task, replace(pair.science, info=info), pair.template, id_factory=task.makeIdFactory(exposure_id, 44)
        )
        facts = ExposureFacts(
            visit=visit, detector=DETECTOR, band="r", midpoint_mjd_tai=info.midpoint_mjd_tai,
            time_processed_mjd_tai=NOW, wcs=self.differenced.difference.wcs, shape=self.differenced.difference.shape,
        )  # fmt: skip
        association = AssociationConfig()
        packaged = package_alerts(
            prepare_sources(self.differenced, facts, association=association, cutouts=CutoutConfig()),
            history, self.differenced, facts=facts, association=association,
            info=PacketInfo(target_name="field", observation_reason="", program_version="0.1.0", config_hash="0123"),
            forced_id_factory=task.makeIdFactory(exposure_id, 44),
        )  # fmt: skip
        made = packaged.association
        self.history = History(
            made.objects,
            Catalog.concatenate([history.sources, made.sources]),
            Catalog.concatenate([history.forced, made.forced]),
        )
        self.messages = list(packaged.messages(producer_timestamp_ms=1_790_000_000_000))
        self.packets = [decode_alert(message.value) for message in self.messages]
        self.catalog = self.differenced.sources
        # Of each transient; a peak of the noise is an alert too, now and then.
        self.of_transients = [self._nearest(x, y) for x, y, _ in TRANSIENTS[visit]]

    def _nearest(self, x, y):
        distance = [np.hypot(p["diaSource"]["x"] - x, p["diaSource"]["y"] - y) for p in self.packets]
        assert min(distance) < 1.0
        return self.packets[int(np.argmin(distance))]


@pytest.fixture(scope="module")
def visits():
    first = Visit(VISITS[0], History.empty())
    return first, Visit(VISITS[1], first.history)


@pytest.fixture(scope="module")
def alerts(visits):
    """(packet, x, y, change of flux) of each transient in the second visit."""
    _, second = visits
    return [(p, *truth) for p, truth in zip(second.of_transients, TRANSIENTS[VISITS[1]], strict=True)]


def test_nothing_is_wrong_with_any_of_them(visits):
    for visit in visits:
        for message, packet in zip(visit.messages, visit.packets, strict=True):
            found = validate_packet(packet) + validate_envelope(packet, key=message.key, headers=message.headers)
            assert [finding for finding in found if finding.level == "error"] == []


def test_every_field_is_there_and_only_what_is_not_known_is_null(alerts):
    never = {
        "timeWithdrawnMjdTai",
        "trailAlgorithm",
        "parentDiaSourceId",
        "ssObjectId",
        "reliability",
        "reliabilityVersion",
    }
    for packet, *_ in alerts:
        source = packet["diaSource"]
        assert list(source) == list(record_types("diaSource"))
        null = {field for field, value in source.items() if value is None}
        # Neither is a trail or a dipole: what only those have.
        assert null - never <= {f for f in source if f.startswith(("trail", "dipole"))}
        assert never <= null
        assert not any(isinstance(value, float) and not np.isfinite(value) for value in source.values())


def test_ids_are_rubins(visits):
    for visit, number in zip(visits, VISITS, strict=True):
        packed = RubinPacker().pack(visit=number, detector=DETECTOR)
        counters = []
        for packet in visit.packets:
            rest, counter = divmod(packet["diaSourceId"], 1 << 19)
            assert divmod(rest, 1 << 38) == (RELEASE, packed)
            counters.append(counter)
        assert min(counters) >= 1
        assert len(set(counters)) == len(counters)
        # As decoded by hand: detector, sequence number, day.
        assert packed % 256 == DETECTOR
        assert packed // 256 % 32768 == number % 100_000


def test_times_are_tai_days_of_the_middle_of_the_exposure(alerts):
    for packet, *_ in alerts:
        source = packet["diaSource"]
        assert source["midpointMjdTai"] == pytest.approx(midpoint(VISITS[1]), abs=1e-9)  # 0.1 ms; 37 s would be 4e-4
        assert source["timeProcessedMjdTai"] == NOW
        assert source["exposureTime"] == EXPOSURE_TIME_S
        assert (source["visit"], source["detector"], source["band"]) == (VISITS[1], DETECTOR, "r")


def test_positions_are_those_of_the_sky_in_degrees(visits, alerts):
    wcs = visits[1].differenced.difference.wcs
    for packet, x, y, _ in alerts:
        source = packet["diaSource"]
        # The first pixel's centre is 0: the drawn place, within five errors.
        assert abs(source["x"] - x) < 5 * source["xErr"]
        assert abs(source["y"] - y) < 5 * source["yErr"]
        ra, dec = wcs.pixel_to_sky(x=source["x"], y=source["y"])
        assert separation_arcsec(source["ra"], source["dec"], ra, dec) < 1e-4  # float32 of x and y
        true_ra, true_dec = wcs.pixel_to_sky(x=x, y=y)
        error = 3600 * np.hypot(source["raErr"], source["decErr"])
        assert separation_arcsec(source["ra"], source["dec"], true_ra, true_dec) < 5 * error


def test_errors_of_positions_are_degrees_on_the_sky_with_the_cosine_of_the_declination(visits, alerts):
    rows = {int(identity): row for row, identity in enumerate(visits[1].catalog["dia_source_id"])}
    degrees_per_pixel = SCALE_ARCSEC / 3600
    for packet, *_ in alerts:
        source = packet["diaSource"]
        ra, dec, both = source["raErr"], source["decErr"], source["ra_dec_Cov"]
        x, y = source["xErr"], source["yErr"]
        x_y = float(visits[1].catalog["x_y_cov"][rows[source["diaSourceId"]]])
        # A rotation leaves trace and determinant of a covariance alone. cos(-30 deg) would change both.
        assert ra**2 + dec**2 == pytest.approx((x**2 + y**2) * degrees_per_pixel**2, rel=1e-3)
        assert ra**2 * dec**2 - both**2 == pytest.approx((x**2 * y**2 - x_y**2) * degrees_per_pixel**4, rel=3e-3)


def test_fluxes_are_nanojanskys_with_honest_errors(alerts):
    pixels = 4 * np.pi * (4.4 / 2.3548) ** 2  # of noise, under a Gaussian
    sky_error = np.sqrt(pixels * (NOISE**2 + TEMPLATE_NOISE**2))
    for packet, _, _, flux in alerts:
        source = packet["diaSource"]
        assert abs(source["psfFlux"] - flux) < 5 * source["psfFluxErr"]
        # Between the sky's share alone and that with all the source's photons in one pixel's weight.
        assert 0.9 * sky_error < source["psfFluxErr"] < np.hypot(sky_error, np.sqrt(2 * abs(flux)))
        assert abs(source["apFlux"] - flux) < 5 * source["apFluxErr"]
        assert source["apFluxErr"] > source["psfFluxErr"]
        assert source["isNegative"] == (flux < 0)
        assert source["snr"] > 5
        science, template = max(flux, 0.0), max(-flux, 0.0)
        assert abs(source["scienceFlux"] - science) < 5 * source["scienceFluxErr"]
        assert abs(source["templateFlux"] - template) < 5 * source["templateFluxErr"]


def test_moments_are_square_arcseconds(alerts):
    for packet, *_ in alerts:
        source = packet["diaSource"]
        for field in ("ixxPSF", "iyyPSF"):
            assert source[field] == pytest.approx(SIGMA_ARCSEC**2, rel=0.15)  # decorrelation sharpens it
        # Relative error of a moment: sqrt(2) over the significance, and as much again for the fitted weight.
        for field, of_psf in (("ixx", "ixxPSF"), ("iyy", "iyyPSF")):
            assert source[field] == pytest.approx(source[of_psf], rel=10 / source["snr"])
        assert abs(source["ixy"]) < 10 / source["snr"] * source["ixx"]
        assert source["extendedness"] < 0.5


def test_boxes_are_pixels_and_make_the_cutouts(alerts):
    for packet, *_ in alerts:
        size = packet["diaSource"]["bboxSize"]
        assert 5 < size < 102
        for field in ("cutoutScience", "cutoutTemplate", "cutoutDifference"):
            cutout = load_cutout(packet[field])
            assert cutout.data.shape == (max(30, size),) * 2
            assert cutout.header["ROTPA"] == 20.0
        # In nanojanskys as everything else: the sum over the aperture's pixels is the aperture's flux.
        y, x = np.mgrid[: cutout.shape[0], : cutout.shape[1]]
        middle = cutout.wcs.world_to_pixel_values(packet["diaSource"]["ra"], packet["diaSource"]["dec"])
        within = np.hypot(x - middle[0], y - middle[1]) < 12
        assert cutout.data[within].sum() == pytest.approx(
            packet["diaSource"]["apFlux"], abs=packet["diaSource"]["apFluxErr"]
        )


def test_the_history_is_the_first_visits_detection_as_it_was_sent_then(visits, alerts):
    before = {p["diaSourceId"]: p["diaSource"] for p in visits[0].packets}
    for packet, *_ in alerts:
        (previous,) = packet["prvDiaSources"]
        assert previous == before[previous["diaSourceId"]]
        assert packet["diaObject"]["nDiaSources"] == 2


def test_the_object_sums_up_its_sources(alerts):
    for packet, *_ in alerts:
        sources = [*packet["prvDiaSources"], packet["diaSource"]]
        parent = packet["diaObject"]
        flux, error, science, science_error = (
            np.array([source[field] for source in sources])
            for field in ("psfFlux", "psfFluxErr", "scienceFlux", "scienceFluxErr")
        )
        time = np.array([source["midpointMjdTai"] for source in sources])
        weight = 1 / error**2
        rounding = {"rel": 1e-5}
        assert parent["r_psfFluxMean"] == pytest.approx((weight * flux).sum() / weight.sum(), **rounding)
        assert parent["r_psfFluxMeanErr"] == pytest.approx(weight.sum() ** -0.5, **rounding)
        assert parent["r_psfFluxSigma"] == pytest.approx(flux.std(ddof=1), **rounding)
        assert parent["r_psfFluxErrMean"] == pytest.approx(error.mean(), **rounding)
        assert (parent["r_psfFluxMin"], parent["r_psfFluxMax"]) == (flux.min(), flux.max())
        assert parent["r_psfFluxMaxSlope"] == pytest.approx((flux[1] - flux[0]) / (time[1] - time[0]), rel=1e-4)
        weight = 1 / science_error**2
        assert parent["r_scienceFluxMean"] == pytest.approx((weight * science).sum() / weight.sum(), rel=1e-4, abs=1e-2)
        assert parent["r_psfFluxNdata"] == 2
        assert (parent["firstDiaSourceMjdTai"], parent["lastDiaSourceMjdTai"]) == tuple(time)
        assert parent["diaObjectId"] == sources[0]["diaSourceId"]
        assert parent["validityStartMjdTai"] >= time[-1]
        for band in "ugizy":
            assert parent[f"{band}_psfFluxNdata"] == 0
            assert parent[f"{band}_psfFluxMean"] is parent[f"{band}_scienceFluxMean"] is None
        places = SkyCoord([s["ra"] for s in sources] * u.deg, [s["dec"] for s in sources] * u.deg)
        own = SkyCoord(parent["ra"] * u.deg, parent["dec"] * u.deg)
        # Between its sources, at a place that no single one could have at random.
        assert own.separation(places).max() <= 1.0001 * places[0].separation(places[1])


def test_forced_photometry_agrees_with_the_detection(alerts):
    for packet, *_ in alerts:
        (forced,) = packet["prvDiaForcedSources"]
        source = packet["diaSource"]
        assert forced["diaObjectId"] == source["diaObjectId"]
        assert (forced["visit"], forced["detector"], forced["band"]) == (VISITS[1], DETECTOR, "r")
        assert forced["midpointMjdTai"] == source["midpointMjdTai"]
        # Measured a fraction of a pixel off: the same within a fraction of an error.
        assert abs(forced["psfFlux"] - source["psfFlux"]) < source["psfFluxErr"]
        assert abs(forced["scienceFlux"] - source["scienceFlux"]) < source["scienceFluxErr"]
        assert separation_arcsec(forced["ra"], forced["dec"], source["ra"], source["dec"]) < 0.1


def test_empty_text_is_null_and_text_is_kept(alerts):
    for packet, *_ in alerts:
        assert (packet["observation_reason"], packet["target_name"]) == (None, "field")


def test_headers_carry_where_it_comes_from(visits):
    for message in visits[1].messages:
        headers = dict(message.headers)
        assert headers["program_version"] == b"0.1.0"
        assert headers["config_hash"] == b"0123"
        assert headers["zero_point"] == b"measured"
        assert headers["producer_timestamp"] == b"1790000000000"


def test_a_bodys_coordinates_and_offsets_are_those_of_the_sky(alert_night):
    packet = alert_night.packets[-1]
    source, body = packet["diaSource"], packet["ssSource"]
    place = SkyCoord(source["ra"] * u.deg, source["dec"] * u.deg)
    # Definitions by way of Hipparcos and of FK5 differ by 0.03 arcsec.
    assert (body["galLon"], body["galLat"]) == pytest.approx((place.galactic.l.deg, place.galactic.b.deg), abs=2e-5)
    ecliptic = place.transform_to(BarycentricMeanEcliptic(equinox="J2000"))
    assert (body["eclLambda"], body["eclBeta"]) == pytest.approx((ecliptic.lon.deg, ecliptic.lat.deg), abs=1e-5)
    cos_dec = np.cos(np.radians(source["dec"]))
    east, north = 3600 * (source["ra"] - body["ephRa"]) * cos_dec, 3600 * (source["dec"] - body["ephDec"])
    assert (body["ephOffsetRa"], body["ephOffsetDec"]) == pytest.approx((east, north), abs=1e-6)
    assert body["ephOffset"] == pytest.approx(np.hypot(east, north), rel=1e-5)
    assert body["ephRate"] == pytest.approx(np.hypot(body["ephRateRa"], body["ephRateDec"]), rel=1e-6)
    along, cross = body["ephOffsetAlongTrack"], body["ephOffsetCrossTrack"]
    assert np.hypot(along, cross) == pytest.approx(body["ephOffset"], rel=1e-5)
    assert along == pytest.approx((east * body["ephRateRa"] + north * body["ephRateDec"]) / body["ephRate"], rel=1e-4)
    # Nobody said where the body is in space, and 0 au would be a place.
    assert all(body[field] is None for field in ("topoRange", "helioRange", "helio_x", "topo_vz", "phaseAngle"))
    assert packet["mpc_orbits"]["id"] == 0
