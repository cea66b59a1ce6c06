import numpy as np
import pytest

from alertprod.sim.visit_queue import Fleet, compute_latencies

PLENTY = 100_000
"""Lanes, so that no two events of a test share one."""


def run(fleet, **settings):
    return compute_latencies(fleet, **({"detectors": 8, "visits": 1, "cadence_s": 40.0, "publish_s": 0.0} | settings))


def test_a_burst_is_worked_off_in_rounds():
    latencies = run(Fleet(daemons=1, workers=4, partitions=PLENTY), work_s=5.0)
    np.testing.assert_allclose(np.sort(latencies[0]), [5.0] * 4 + [10.0] * 4)


def test_one_lane_does_one_exposure_at_a_time_until_it_is_published():
    latencies = run(Fleet(daemons=1, workers=8, partitions=1), work_s=5.0, publish_s=1.0)
    np.testing.assert_allclose(np.sort(latencies[0]), 6.0 * np.arange(1, 9))


def test_a_daemon_publishes_one_exposure_after_the_other():
    latencies = run(Fleet(daemons=1, workers=8, partitions=PLENTY), work_s=5.0, publish_s=2.0)
    np.testing.assert_allclose(np.sort(latencies[0]), 5.0 + 2.0 * np.arange(1, 9))


def test_daemons_publish_side_by_side():
    latencies = run(Fleet(daemons=PLENTY, workers=1, partitions=PLENTY), work_s=5.0, publish_s=2.0, detectors=5)
    np.testing.assert_allclose(latencies, 7.0)


def test_a_visit_that_is_not_done_delays_the_next():
    latencies = run(Fleet(daemons=1, workers=1, partitions=1), work_s=6.0, visits=3, cadence_s=40.0)
    np.testing.assert_allclose(latencies.max(axis=1), [48.0, 56.0, 64.0])  # 48 s of work every 40 s


def test_times_scale():
    fleet = Fleet(daemons=2, workers=3, partitions=12)
    settings = {"visits": 5, "spread": 0.3}
    slow = run(fleet, work_s=10.0, publish_s=2.0, cadence_s=80.0, **settings)
    quick = run(fleet, work_s=5.0, publish_s=1.0, cadence_s=40.0, **settings)
    np.testing.assert_allclose(slow, 2.0 * quick)


def test_the_work_has_the_mean_and_the_scatter_that_it_was_given():
    n, spread = 4000, 0.2
    work = run(Fleet(daemons=1, workers=n, partitions=PLENTY * 100), work_s=5.0, spread=spread, detectors=n)[0]
    alone = work[work < 5.0 * np.exp(5.0 * spread)]  # the rare two of one lane left out
    assert alone.mean() == pytest.approx(5.0, abs=5.0 * 5.0 * spread / np.sqrt(n))
    assert np.log(alone).std() == pytest.approx(spread, abs=5.0 * spread / np.sqrt(2 * n))


def test_a_saturated_queue_serves_at_its_rate():
    """Little's law: of work for 120 s every 100 s, each visit is 20 s later than the one before."""
    latencies = run(
        Fleet(daemons=1, workers=2, partitions=PLENTY), work_s=3.0, detectors=80, visits=10, cadence_s=100.0
    )
    np.testing.assert_allclose(np.diff(latencies.max(axis=1)), 20.0)


@pytest.mark.parametrize("fleet", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_a_fleet_of_nothing_is_refused(fleet):
    daemons, workers, partitions = fleet
    with pytest.raises(ValueError, match="at least one of each"):
        Fleet(daemons=daemons, workers=workers, partitions=partitions)
