import numpy as np
import pytest

from alertprod.service.clock import unix_from_mjd_tai
from alertprod.sim.load import LoadConfig, Usage, make_visit, summarise
from alertprod.sim.load_pipeline import SPACING_DEG, StageModel

NOW = 1.8e9


def test_a_visit_is_one_event_a_detector_each_at_its_place():
    config = LoadConfig(detectors=189, event_delay_s=10.0, speed_up=2.0)
    events, closed = make_visit(config, 7, now_unix_s=NOW)
    assert [event.detector for event in events] == list(range(189))
    assert {event.visit for event in events} == {7}
    assert closed == NOW - 5.0
    assert unix_from_mjd_tai(events[0].shutter_close_mjd_tai) == pytest.approx(closed, abs=1e-3)
    places = np.array([(event.ra_deg * np.cos(np.radians(event.dec_deg)), event.dec_deg) for event in events])
    distances = np.hypot(*(places[:, np.newaxis] - places[np.newaxis]).transpose(2, 0, 1))
    assert distances[~np.eye(189, dtype=bool)].min() > 0.9 * SPACING_DEG


def summary(acked, *, detectors=4, visits=2, alerts=10, usage=None, **settings):
    config = LoadConfig(detectors=detectors, visits=visits, model=StageModel(n_alerts=alerts), **settings)
    closed = {visit + 1: NOW + visit * config.cadence_s / config.speed_up for visit in range(visits)}
    times = {(v, d): closed[v] + latency for (v, d), latency in acked.items()}
    return summarise(
        config,
        closed_unix_s=closed,
        acked_unix_s=times,
        n_alerts=dict.fromkeys(times, alerts),
        usage=usage or {},
    )


ALL_IN_20_S = {(visit, detector): 20.0 for visit in (1, 2) for detector in range(4)}


def test_a_fleet_that_keeps_up_is_good():
    report = summary(ALL_IN_20_S, event_delay_s=10.0)
    assert report.is_good
    assert report.share_in_time == 1.0
    assert report.percentiles_s[98] == pytest.approx(20.0, abs=1e-6)
    assert (report.largest_backlog, list(report.left_over)) == (4, [0])


def test_latencies_are_the_cameras_time():
    report = summary(dict.fromkeys(ALL_IN_20_S, 2.0), speed_up=10.0)
    assert report.percentiles_s[50] == pytest.approx(20.0, abs=1e-5)


def test_what_never_came_was_not_in_time():
    report = summary(dict.fromkeys(list(ALL_IN_20_S)[:7], 20.0))
    assert report.share_in_time == 7 / 8
    assert not report.is_good


def test_one_exposure_lost_is_not_good_however_many_came():
    acked = {(1, detector): 20.0 for detector in range(99)}
    report = summary(acked, detectors=100, visits=1)
    assert report.share_in_time == 0.99
    assert not report.is_good


def test_what_is_late_counts_by_its_alerts_and_is_left_over():
    report = summary({**ALL_IN_20_S, (1, 3): 61.0})
    assert report.share_in_time == 7 / 8
    assert list(report.left_over) == [1]
    assert report.largest_backlog == 5  # the late one, and the next visit


def test_nothing_at_all_is_a_report_too():
    report = summary({})
    assert (report.n_published, report.share_in_time, report.is_good) == (0, 0.0, False)
    assert np.isnan(report.percentiles_s[50])
    assert report.largest_backlog == 8


def test_the_busiest_part_saturates_first():
    usage = {"workers": Usage(busy_s=30.0, capacity_s=120.0), "publisher": Usage(busy_s=50.0, capacity_s=100.0)}
    report = summary(ALL_IN_20_S, usage=usage)
    assert (report.saturates_first, report.headroom) == ("publisher", 2.0)
    assert list(report.as_json()["usage"].items()) == [("publisher", 0.5), ("workers", 0.25)]


@pytest.mark.parametrize(
    "settings", [{"detectors": 0}, {"detectors": 1025}, {"partitions": 1, "daemons": 2}, {"speed_up": 0.0}]
)
def test_what_cannot_be_sent_is_refused(settings):
    with pytest.raises(ValueError, match=r"nothing can be sent|time does not pass"):
        LoadConfig(**settings)
