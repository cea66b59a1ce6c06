"""What is remembered of the last exposures."""

from alertprod.service.lanes import Lanes, Step
from alertprod.service.publications import Publication
from alertprod.service.recent import REMEMBERED, Recent
from alertprod.store.ledger import ExposureKey
from alertprod.stream.records import Lane, Offset


def publication(visit, *, kind="published", **facts):
    return Publication(
        kind=kind, messages=lambda: iter(()), offset=Offset("visit-ready", 0, visit + 1),
        key=ExposureKey("Camera", visit, 0), band="r", **facts,
    )  # fmt: skip


def test_the_newest_come_first_and_the_oldest_are_forgotten():
    recent = Recent()
    for visit in range(REMEMBERED + 5):
        recent.add(publication(visit, n_alerts=3), latency_s=float(visit), at_unix_s=1000.0 + visit)

    last = recent.describe()["last_exposures"]
    assert [each["visit"] for each in last] == list(range(REMEMBERED + 4, 4, -1))
    assert last[0]["latency_s"] == REMEMBERED + 4
    assert last[0]["event"] == f"visit-ready[0]:{REMEMBERED + 4}"


def test_an_event_that_nobody_could_read_is_remembered_by_its_place():
    recent = Recent()
    recent.add(
        Publication(
            kind="dead_lettered", messages=lambda: iter(()), offset=Offset("visit-ready", 2, 8), reason="invalid_event"
        ),
        latency_s=None,
        at_unix_s=0.0,
    )

    (entry,) = recent.describe()["last_exposures"]
    assert (entry["visit"], entry["event"], entry["reason"]) == (None, "visit-ready[2]:7", "invalid_event")


def test_what_is_in_flight_says_its_step_and_age():
    recent, lanes = Recent(), Lanes()
    lane = Lane("visit-ready", 1)
    lanes.add(lane)
    job = lanes.begin(lanes.get(lane), step=Step.WORK, received=None, received_unix_s=0.0, now=100.0)
    job.key = ExposureKey("Camera", 7, 2)
    job.problem = "store_unavailable: database is locked"
    recent.set_inflight(lanes.jobs, now=104.5)

    (entry,) = recent.describe()["inflight_exposures"]
    assert (entry["visit"], entry["detector"], entry["age_s"]) == (7, 2, 4.5)
    assert entry["step"] == job.stage
    assert entry["problem"] == "store_unavailable: database is locked"
