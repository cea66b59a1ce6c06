import copy
import io

import numpy as np
import pytest
from astropy.io import fits

from alertprod.alerts.avro import decode_alert
from alertprod.alerts.packet import PacketInfo, make_messages
from alertprod.alerts.validation import left_out_of, validate_envelope, validate_packet


@pytest.fixture
def known(alert_night):
    """An alert with a history, complete."""
    return copy.deepcopy(alert_night.packets[16])


@pytest.fixture
def body(alert_night):
    return copy.deepcopy(alert_night.packets[-1])


def found(packet):
    return [(finding.level, finding.field) for finding in validate_packet(packet)]


def test_our_own_alerts_have_no_errors(alert_night):
    for packet in alert_night.packets:
        findings = validate_packet(packet)
        assert [finding for finding in findings if finding.level == "error"] == []
        # The first visit has no template; beside the edge everything is whole.
        assert {finding.field for finding in findings} <= {"cutoutTemplate"}


def test_our_own_messages_say_in_the_headers_what_they_say_inside(alert_night):
    for message, packet in zip(alert_night.messages, alert_night.packets, strict=True):
        assert validate_envelope(packet, key=message.key, headers=message.headers) == []


def assign(path, value):
    def change(packet):
        *parents, last = path
        for name in parents:
            packet = packet[name]
        packet[last] = value(packet[last]) if callable(value) else value

    return change


CHANGES = {
    "NaN for null": (assign(["diaSource", "trailFlux"], float("nan")), "diaSource.trailFlux"),
    "infinity in the history": (assign(["prvDiaSources", 0, "snr"], float("inf")), "prvDiaSources[0].snr"),
    "a negative error": (assign(["diaSource", "psfFluxErr"], -1.0), "diaSource.psfFluxErr"),
    "a negative spread": (assign(["diaObject", "r_psfFluxSigma"], -1.0), "diaObject.r_psfFluxSigma"),
    "another id": (assign(["diaSourceId"], 3), "diaSourceId"),
    "a negative id": (assign(["diaSourceId"], -3), "diaSourceId"),
    "0 for null": (assign(["diaSource", "ssObjectId"], 0), "diaSource.ssObjectId"),
    "of no object": (assign(["diaSource", "diaObjectId"], None), "diaSource.diaObjectId"),
    "an empty name": (assign(["target_name"], ""), "target_name"),
    "RA of 360": (assign(["diaSource", "ra"], 360.0), "diaSource.ra"),
    "dec beyond the pole": (assign(["diaObject", "dec"], -90.5), "diaObject.dec"),
    "a Julian date": (assign(["diaSource", "midpointMjdTai"], lambda t: t + 2_400_000.5), "diaSource.midpointMjdTai"),
    "seconds of another epoch": (
        assign(["prvDiaForcedSources", 1, "timeProcessedMjdTai"], 1.8e9),
        "prvDiaForcedSources[1].timeProcessedMjdTai",
    ),
    "withdrawn": (assign(["diaSource", "timeWithdrawnMjdTai"], 61100.0), "diaSource.timeWithdrawnMjdTai"),
    "fewer than no pixels": (assign(["diaSource", "psfNdata"], -1), "diaSource.psfNdata"),
    "a score above 1": (assign(["diaSource", "reliability"], 1.5), "diaSource.reliability"),
    "itself in its history": (
        lambda packet: packet["prvDiaSources"].append(packet["diaSource"]),
        "prvDiaSources",
    ),
    "twice in its history": (
        lambda packet: packet["prvDiaForcedSources"].append(packet["prvDiaForcedSources"][-1]),
        "prvDiaForcedSources",
    ),
    "a history in disorder": (lambda packet: packet["prvDiaSources"].reverse(), "prvDiaSources"),
    "an empty history": (assign(["prvDiaSources"], []), "prvDiaSources"),
    "of another object": (assign(["prvDiaSources", 1, "diaObjectId"], 7), "prvDiaSources[1].diaObjectId"),
    "from the future": (
        assign(["prvDiaForcedSources", -1, "midpointMjdTai"], lambda t: t + 1),
        "prvDiaForcedSources[3].midpointMjdTai",
    ),
    "no object": (assign(["diaObject"], None), "diaObject"),
    "the wrong object": (assign(["diaObject", "diaObjectId"], 7), "diaObject.diaObjectId"),
    "a count that is off": (assign(["diaObject", "nDiaSources"], 4), "diaObject.nDiaSources"),
    "last seen before": (assign(["diaObject", "lastDiaSourceMjdTai"], 61000.0), "diaObject.lastDiaSourceMjdTai"),
    "a mean out of range": (assign(["diaObject", "g_psfFluxMean"], 1e9), "diaObject.g_psfFluxMean"),
    "more covariance than error": (assign(["diaSource"], lambda s: s | {"raErr": 1e-5, "decErr": 1e-5, "ra_dec_Cov": 2e-10}), "diaSource.ra_dec_Cov"),
    "a body's orbit": (assign(["mpc_orbits"], {"id": 0}), "mpc_orbits"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_is_wrong_is_found_where_it_is(known, what):
    change, field = CHANGES[what]
    change(known)
    assert ("error", field) in found(known)


def test_a_bodys_alert_has_its_own_rules(body, known):
    assert not [finding for finding in found(body) if finding[0] == "error"]
    body["ssSource"]["diaSourceId"] = 5
    assert ("error", "ssSource.diaSourceId") in found(body)
    body["prvDiaForcedSources"] = []
    assert ("error", "prvDiaForcedSources") in found(body)
    body["ssSource"] = None
    assert ("error", "ssSource") in found(body)
    body["diaObject"] = known["diaObject"]
    assert ("error", "diaObject") in found(body)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (assign(["diaSource", "timeProcessedMjdTai"], 61000.0), "diaSource.timeProcessedMjdTai"),
        (assign(["diaSource", "reliability"], 0.5), "diaSource.reliabilityVersion"),
        (assign(["diaSource", "band"], None), "diaSource.band"),
        (assign(["diaSource", "snr"], -6.0), "diaSource.snr"),
        (assign(["prvDiaSources", 0, "midpointMjdTai"], 60700.0), "prvDiaSources[0].midpointMjdTai"),
        (assign(["cutoutScience"], None), "cutoutScience"),
    ],
)
def test_what_is_odd_is_a_warning(known, change, field):
    change(known)
    assert ("warning", field) in found(known)


def test_history_that_was_left_out_for_its_size_is_no_error_where_the_message_says_so(make_association, no_cutouts):
    association = make_association(n_visits=60)
    info = PacketInfo(program_version="0.1.0", config_hash="abc")
    message = next(make_messages(association, no_cutouts(association), info, max_bytes=12_000))
    packet = decode_alert(message.value)
    assert 0 < len(packet["prvDiaSources"]) < 60
    left_out = left_out_of(message.headers)
    assert left_out == {"history"}

    def counted(left_out):
        findings = validate_packet(packet, left_out=left_out)
        return [finding.level for finding in findings if finding.field == "diaObject.nDiaSources"]

    assert counted(left_out) == []
    assert counted(left_out_of(())) == ["error"]  # a message that says nothing
    assert counted(left_out_of(None)) == ["warning"]  # a container, where nobody could say it
    packet["diaObject"]["nDiaSources"] = len(packet["prvDiaSources"])
    assert counted(left_out) == counted(None) == ["error"]  # fewer than there are is wrong whatever was left out
    assert validate_envelope(packet, key=message.key, headers=message.headers) == []


def test_a_header_that_says_what_is_not_so_is_an_error(alert_night):
    message, packet = alert_night.messages[16], alert_night.packets[16]
    for said in (b"cutouts", b"history,kitchen"):
        findings = validate_envelope(packet, key=message.key, headers=(*message.headers, ("left_out", said)))
        assert [(finding.level, finding.field) for finding in findings] == [("error", "header left_out")]


def edit_cutout(data, edit):
    with fits.open(io.BytesIO(data)) as hdus:
        whole = fits.HDUList([hdu.copy() for hdu in hdus])
        edit(whole)
        out = io.BytesIO()
        whole.writeto(out)
    return out.getvalue()


def cut_off(hdus):
    for hdu in hdus[:3]:
        hdu.data = hdu.data[:, :-2]


def remove(name):
    return lambda hdus: hdus.pop(name)


def move_source(hdus):
    hdus[0].header["CRPIX1"] += 3


def other_unit(hdus):
    hdus[0].header["BUNIT"] = "adu"


def forget_to_mask(hdus):
    hdus[0].data[3, 3] = np.nan


def vanishing_variance(hdus):
    hdus["UNCERT"].data[3, 3] = 0.0


def even_psf(hdus):
    hdus["PSFIMAGE"].data = hdus["PSFIMAGE"].data[1:, 1:]


def unnormalised_psf(hdus):
    hdus["PSFIMAGE"].data *= 40


@pytest.mark.parametrize(
    ("edit", "level", "problem"),
    [
        (cut_off, "warning", "28 x 30 pixels"),
        (remove("MASK"), "error", "has no mask"),
        (remove("UNCERT"), "error", "has no variance"),
        (remove("PSFIMAGE"), "warning", "has no PSF"),
        (move_source, "error", "put the source 2.50 pixels from the middle"),
        (other_unit, "error", "is in adu"),
        (forget_to_mask, "error", "has pixels without a value that are not masked"),
        (vanishing_variance, "error", "variance is not positive"),
        (even_psf, "error", "not that of an odd square"),
        (unnormalised_psf, "error", "has the sum 40"),
    ],
)
def test_bad_pictures_are_found(known, edit, level, problem):
    known["cutoutScience"] = edit_cutout(known["cutoutScience"], edit)
    findings = [finding for finding in validate_packet(known) if finding.field == "cutoutScience"]
    assert any(finding.level == level and problem in finding.problem for finding in findings), findings


def test_pictures_of_different_shapes_and_no_pictures_are_found(known):
    known["cutoutTemplate"] = edit_cutout(known["cutoutTemplate"], cut_off)
    assert ("error", "cutouts") in found(known)
    known["cutoutDifference"] = b"no FITS"
    assert ("error", "cutoutDifference") in found(known)


def test_headers_and_keys_that_say_something_else_are_found(alert_night):
    packet, message = alert_night.packets[16], alert_night.messages[16]
    headers = dict(message.headers)
    del headers["band"]
    headers |= {"visit": b"8", "config_hash": b""}
    findings = validate_envelope(packet, key=b"1", headers=list(headers.items()))
    assert [finding.field for finding in findings] == ["key", "header visit", "header band", "header config_hash"]
    assert str(findings[0]) == "error: key: b'1', the object is 1000001"


def test_any_bytes_for_a_picture_are_a_finding_and_no_crash(known):
    good = known["cutoutScience"]
    rng = np.random.default_rng(4)
    for _ in range(60):
        damaged = bytearray(good[: rng.integers(1, len(good) + 1)])
        for position in rng.integers(0, min(len(damaged), 6000), rng.integers(1, 20)):
            damaged[position] ^= 1 << rng.integers(8)
        known["cutoutScience"] = bytes(damaged)
        for finding in validate_packet(known):
            assert finding.level in ("error", "warning")
