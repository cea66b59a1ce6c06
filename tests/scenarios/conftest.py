"""One evening at a small observatory, on a real Kafka: everything a daemon can be given, and what it makes of it."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from astropy.io import fits
from daemon_site import Site, make_site
from observatory import Exposure, Measured, Observatory, make_event, make_observatory

from alertprod.service.clock import Clock
from alertprod.sim.night import Night
from alertprod.stream.messages import NextVisit, VisitReady, VisitSummary, encode_next_visit, encode_visit_ready
from alertprod.stream.producer import AlertProducer
from alertprod.stream.records import OutgoingMessage, Received

Sent = tuple[bytes, bytes]
"""Key and value."""


@dataclass
class Evening:
    """What was sent, and what was left when the daemon had stopped."""

    night: Night
    observatory: Observatory
    good: list[Exposure] = field(default_factory=list)
    bad: dict[str, Sent] = field(default_factory=dict)
    pages: dict[str, tuple[int, str]] = field(default_factory=dict)
    measured: Measured | None = None
    log: list[dict] = field(default_factory=list)
    status: int | None = None
    alerts: dict[Exposure, list[Received]] = field(default_factory=dict)
    summaries: list[VisitSummary] = field(default_factory=list)
    dead_letters: list[Received] = field(default_factory=list)
    replayed: list[Received] = field(default_factory=list)
    positions: tuple[dict[int, int], dict[int, int]] = ({}, {})


def make_bad_events(night: Night, folder: Path) -> dict[str, Sent]:
    """One event of each kind that cannot be done; visits from 50 on exist for them alone."""
    folder.mkdir()
    whole = night.exposure_path(0, 0)

    def visit_id(n: int) -> int:
        return night.visit_id(50 + n)

    def encode(event: VisitReady) -> Sent:
        return event.key, encode_visit_ready(event)

    def copy(n: int, **cards: float) -> str:
        path = folder / f"{visit_id(n)}.fits"
        shutil.copy(whole, path)
        with fits.open(path, mode="update") as hdus:
            hdus[0].header["VISIT"] = visit_id(n)
            for name, value in cards.items():
                header = hdus[0].header if name in hdus[0].header else hdus["IMAGE"].header
                header[name] = value
        return str(path)

    def change(n: int, **changes: object) -> Sent:
        return encode(make_event(night, 0, 0, **{"visit": visit_id(n)} | changes))

    truncated, broken_tile = folder / "truncated.fits", folder / "tile.fits"
    truncated.write_bytes(whole.read_bytes()[:150_000])
    broken_tile.write_bytes(next(night.templates_directory.glob("*.fits")).read_bytes()[:-5000])
    without_band = {name: value for name, value in night.event(0, 0).items() if name != "band"}
    far = {"ra_deg": 120.0, "dec_deg": 20.0}
    far_away = copy(5, RA=120.0, DEC=20.0, CRVAL1=120.0, CRVAL2=20.0)
    long_ago = {"shutter_open_mjd_tai": 60000.0, "shutter_close_mjd_tai": 60000.01}
    return {
        "not JSON": (b"whatever", b"this is no event"),
        "unknown Avro": (b"simcam/1/1", b"\x00\x00\x00\x00\x63\x01\x02"),
        "missing field": (b"simcam/2/1", json.dumps(without_band).encode()),
        "unknown instrument": change(7, instrument="nobodys-camera"),
        "absent image": change(0, calexp_uri=str(folder / "absent.fits")),
        "truncated image": change(1, calexp_uri=str(truncated)),
        "header mismatch": change(2),
        "pointing mismatch": change(3, calexp_uri=copy(3), **far),
        "broken template": change(4, calexp_uri=copy(4), template_uris=[str(broken_tile)]),
        "no template": change(5, calexp_uri=far_away, **far),
        "too old": change(6, calexp_uri=str(folder / "never looked at.fits"), **long_ago),
    }


@pytest.fixture(scope="session")
def evening(tmp_path_factory, kafka_broker, small_night) -> Evening:
    """Two visits; then the third with all that is bad between; SIGTERM; and all that is left to see.

    The first visit goes by itself, so that the later ones find a history.
    """
    night, folder = small_night, tmp_path_factory.mktemp("evening")
    observatory = make_observatory(
        folder / "site", kafka_broker, night, lanes=4, workers=2,
        limits="image_wait_s = 3.0\nretry_first_s = 0.2\nretry_max_s = 0.5",
    )  # fmt: skip
    evening = Evening(night, observatory)
    with observatory.start() as daemon:
        evening.pages["livez, starting"] = daemon.ask("/livez")
        evening.pages["readyz, starting"] = daemon.ask("/readyz")
        daemon.wait_ready()
        announce(observatory, night)
        sent = observatory.run("send", *(night.exposure_path(0, detector) for detector in (0, 1)))
        assert sent.returncode == 0, sent.stderr
        evening.good = [(night.visit_id(0), 0), (night.visit_id(0), 1)]
        daemon.wait_until(lambda: len(observatory.summaries()) == 2)

        evening.bad = make_bad_events(night, folder / "bad")
        later = [make_event(night, visit, detector) for visit in (1, 2) for detector in (0, 1)]
        evening.good += [(event.visit, event.detector) for event in later]
        good = [event if n else (event.key, encode_visit_ready(event, format="avro")) for n, event in enumerate(later)]
        mixed: list[VisitReady | Sent] = []
        for n, sent in enumerate(evening.bad.values()):
            mixed += [sent, good.pop()] if n % 2 and good else [sent]
        mixed += [make_event(night, 0, 0), make_event(night, 0, 1, replay=True)]
        observatory.send(*mixed, lanes=[n % observatory.lanes for n in range(len(mixed))])
        # Each sent message has ended when its offset is committed.
        daemon.wait_until(lambda: len(set(map(str, observatory.positions()))) == 1, timeout_s=180.0)
        daemon.wait_until(lambda: all(observatory.state(exposure) == "published" for exposure in evening.good))

        evening.pages |= {path: daemon.ask(path) for path in ("/livez", "/readyz")}
        daemon.wait_until(lambda: daemon.measure().total("alertprod_prefetches_total") == 1)
        evening.measured = daemon.measure()
        evening.status = daemon.terminate()
        evening.log = daemon.lines
    evening.positions = observatory.positions()
    evening.alerts = observatory.alerts()
    evening.summaries = observatory.summaries()
    evening.dead_letters = observatory.read(observatory.topics.dead_letters)
    evening.replayed = observatory.read(observatory.topics.replay)
    return evening


def announce(observatory: Observatory, night: Night) -> None:
    """Say that a visit is about to be taken: in twenty seconds, however long ago the night was made."""
    event = night.event(0, 0)
    opens = Clock().mjd_tai() + 20.0 / 86400.0
    visit = NextVisit(
        instrument=event["instrument"], visit=event["visit"], band=event["band"], ra_deg=event["ra_deg"],
        dec_deg=event["dec_deg"], shutter_opens_at_mjd_tai=opens,
    )  # fmt: skip
    with AlertProducer(observatory.broker.bootstrap_servers) as producer:
        value = encode_next_visit(visit)
        producer.publish([OutgoingMessage(topic=observatory.topics.next_visit, key=visit.key, value=value)])


@pytest.fixture
def sqlite_site(tmp_path, kafka_broker) -> Site:
    """Topics and a folder for daemons with the fake pipeline."""
    return make_site(tmp_path, kafka_broker)
