"""Real images of the Galactic bulge in the order they were taken, through a running daemon and a real Kafka."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from observatory import Observatory, packets_of
from scipy.ndimage import shift

from alertprod.alerts.cutouts import GOOD_PLANES, load_cutout
from alertprod.images.profile import load_profile
from alertprod.store.template_index import index_templates
from alertprod.stream.dead_letter import parse_dead_letter

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

IMAGES = Path(__file__).resolve().parents[3] / "shared" / "data" / "saao_kb13475"
EPOCHS = (1, 5, 9, 13, 70, 119, 176)
"""The first four, and three later ones."""


def image_of(epoch):
    return IMAGES / f"AKB13475I{epoch:04d}.fits.fz"


@pytest.fixture(scope="module")
def series(tmp_path_factory, kafka_broker):
    """What the epochs came to."""
    if not IMAGES.is_dir():
        pytest.skip(f"no {IMAGES}")
    folder = tmp_path_factory.mktemp("saao")
    site = Observatory(
        folder / "site", kafka_broker, lanes=1, template_index=folder / "templates.json",
        instruments='[instruments.SAAO-STE3]\nprofile = "saao"\nbands = ["I"]\n'
        'difference = { "subtract.al.mode" = "auto" }\n',
        limits="max_event_age_s = 1e9",
    )  # fmt: skip
    files = [image_of(epoch) for epoch in EPOCHS]
    index_templates(str(IMAGES), load_profile("saao"), pattern="template*", index_uri=str(folder / "templates.json"))
    with site.start() as daemon:
        sent = site.run("send", *files)
        assert sent.returncode == 0, sent.stderr
        daemon.wait_until(lambda: len(site.summaries()) == len(EPOCHS), timeout_s=150.0)
        assert daemon.terminate() == 0
    letters = [parse_dead_letter(letter) for letter in site.read(site.topics.dead_letters)]
    return site, site.summaries(), site.alerts(), letters


def test_every_epoch_ends_in_the_order_it_was_taken_and_most_are_published(series):
    _, summaries, alerts, letters = series
    assert [summary.visit for summary in summaries] == list(EPOCHS)
    published = [summary for summary in summaries if summary.outcome == "published"]
    assert len(published) >= 5
    assert {(summary.visit, 0) for summary in published if summary.n_alerts} == set(alerts)
    for summary in summaries:
        assert summary.outcome in ("published", "skipped", "dead_lettered")
        assert (summary.reason is None) == (summary.outcome == "published")
    assert len(letters) == sum(summary.outcome == "dead_lettered" for summary in summaries)
    assert "unexpected" not in {letter.reason for letter in letters}


def test_alerts_decode_and_say_whose_they_are(series):
    _, summaries, alerts, _ = series
    counts = {summary.visit: summary.n_alerts for summary in summaries}
    for (visit, detector), messages in alerts.items():
        assert (len(messages), detector) == (counts[visit], 0)
        for packet in packets_of(messages):
            source = packet["diaSource"]
            assert (source["visit"], source["band"]) == (visit, "I")
            assert 273.0 < source["ra"] < 275.0
            assert -26.0 < source["dec"] < -25.0


def test_objects_carry_their_history(series):
    _, _, alerts, _ = series
    last = packets_of(alerts[max(alerts)])
    with_history = [packet for packet in last if packet["prvDiaSources"]]
    assert with_history
    for packet in with_history:
        past = packet["prvDiaSources"]
        assert packet["diaObject"]["nDiaSources"] == len(past) + 1
        times = [source["midpointMjdTai"] for source in past]
        assert times == sorted(times)
        assert times[-1] < packet["diaSource"]["midpointMjdTai"]
    assert max(len(packet["prvDiaSources"]) for packet in with_history) >= 2


@pytest.fixture(scope="module")
def strongest_variable(series):
    """All packets of the object with the most significant detection in the last epoch that has alerts, by visit."""
    _, _, alerts, _ = series
    last = max(packets_of(alerts[max(alerts)]), key=lambda packet: packet["diaSource"]["snr"])
    object_id = last["diaSource"]["diaObjectId"]
    of_object = (
        packet
        for messages in alerts.values()
        for packet in packets_of(messages)
        if packet["diaSource"]["diaObjectId"] == object_id
    )
    packets = {packet["diaSource"]["visit"]: packet for packet in of_object}
    assert len(packets) >= 5
    return packets


def measure_optimally(image, variance, usable, psf, *, x, y):
    """Flux and error of a star at a place: Horne's (1986) sums with the PSF as profile, pixels weighted by variance.

    ``psf`` is drawn with the star in the middle of its middle pixel.
    """
    half, column, row = psf.shape[0] // 2, round(x), round(y)
    profile = shift(psf, (y - row, x - column), order=5, mode="constant")
    first_column, first_row = max(column - half, 0), max(row - half, 0)
    window = np.s_[first_row : row + half + 1, first_column : column + half + 1]
    within = image[window].shape
    profile = profile[first_row - row + half :, first_column - column + half :][: within[0], : within[1]]
    good = usable[window] & np.isfinite(image[window]) & (variance[window] > 0)
    profile, data, weight = profile[good], image[window][good], 1.0 / variance[window][good]
    information = (weight * profile**2).sum()
    return (weight * profile * data).sum() / information, information**-0.5


def check_light_curve(packet, measured):
    """Hold a packet's forced fluxes against others by visit: within their errors, and of the same errors."""
    forced = {source["visit"]: source for source in packet["prvDiaForcedSources"] if source["visit"] in measured}
    assert len(forced) >= 4
    fluxes = np.array([forced[visit]["psfFlux"] for visit in forced])
    errors = np.array([forced[visit]["psfFluxErr"] for visit in forced])
    theirs, their_errors = np.array([measured[visit] for visit in forced]).T
    # Ours weights the PSF's pixels alike: a little less precise, and never more than the best weights are.
    assert np.all((their_errors <= 1.01 * errors) & (their_errors >= 0.9 * errors)), (their_errors / errors).tolist()
    pulls = (fluxes - theirs) / errors
    assert np.sqrt(np.mean(pulls**2)) < 1.0, pulls.tolist()
    # It varies by far more than that: else the comparison says little.
    assert np.ptp(fluxes) > 20 * errors.max()


def test_the_strongest_variables_light_curve_is_what_its_cutouts_show(strongest_variable):
    last = strongest_variable[max(strongest_variable)]
    places = {source["visit"]: (source["ra"], source["dec"]) for source in last["prvDiaForcedSources"]}
    measured = {}
    for visit in places.keys() & strongest_variable.keys():
        cutout = load_cutout(strongest_variable[visit]["cutoutDifference"])
        x, y = map(float, cutout.wcs.world_to_pixel_values(*places[visit]))
        measured[visit] = measure_optimally(
            np.asarray(cutout.data), np.asarray(cutout.uncertainty.array), ~cutout.mask, cutout.psf, x=x, y=y
        )
    check_light_curve(last, measured)


def draw_psfex(table, *, x, y):
    """A PSFEx model at a pixel, as its manual has it: polynomials of the position in FITS pixels."""
    header, components = table.header, table.data["PSF_MASK"][0]
    u = (x + 1 - header["POLZERO1"]) / header["POLSCAL1"]
    v = (y + 1 - header["POLZERO2"]) / header["POLSCAL2"]
    degree = header["POLDEG1"]
    terms = [u**i * v**j for j in range(degree + 1) for i in range(degree + 1 - j)]
    drawn = np.tensordot(terms, components, axes=1)
    assert math.isclose(header["PSF_SAMP"], 1.0)
    return drawn / drawn.sum()


def measure_on_file(path, *, ra, dec):
    """Force a star's flux on a difference image that was written to disk, nJy."""
    with fits.open(path) as hdus:
        image, variance = (hdus[name].data.astype(float) for name in ("IMAGE", "VARIANCE"))
        planes = {card[3:]: bit for card, bit in hdus["MASK"].header["MP_*"].items()}
        bad = sum(1 << bit for plane, bit in planes.items() if plane not in GOOD_PLANES)
        x, y = map(float, WCS(hdus["IMAGE"].header).world_to_pixel_values(ra, dec))
        psf = draw_psfex(hdus["PSF_DATA"], x=x, y=y)
        flux, error = measure_optimally(image, variance, (hdus["MASK"].data & bad) == 0, psf, x=x, y=y)
        scale = hdus[0].header["NJYCOUNT"]
    return flux * scale, error * scale


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_the_strongest_variables_light_curve_is_forced_photometry_done_offline(strongest_variable, tmp_path):
    last = strongest_variable[max(strongest_variable)]
    measured = {}
    for source in last["prvDiaForcedSources"]:
        folder = tmp_path / str(source["visit"])
        command = ["difference", image_of(source["visit"]), IMAGES / "template.fits", "--profile", "saao", "-o", folder]
        subprocess.run([sys.executable, "-m", "alertprod", *map(str, command)], check=True, capture_output=True)
        measured[source["visit"]] = measure_on_file(folder / "difference.fits", ra=source["ra"], dec=source["dec"])
    check_light_curve(last, measured)
