import dataclasses

import pytest

from alertprod.errors import ConfigError
from alertprod.sim.capacity import COSTS_PATH, Camera, Costs, make_plan

COSTS = Costs.load()


def with_exposure(**changes):
    return dataclasses.replace(COSTS, exposure=dataclasses.replace(COSTS.exposure, **changes))


def test_a_plan_keeps_its_promise_and_leaves_rest():
    plan = make_plan(Camera(detectors=16), COSTS)
    assert plan.latency_98_s <= 60.0
    assert all(plan.use[part] <= 0.8 for part in ("workers", "publishers"))
    assert plan.fleet.partitions >= 2 * plan.fleet.all_workers


def test_one_worker_fewer_would_not_do():
    camera, costs = Camera(detectors=16), with_exposure(spread=0.0)
    plan = make_plan(camera, costs)
    least = camera.exposures_per_s * costs.exposure.wall_s / 0.8  # for rest
    assert plan.fleet.all_workers <= least + 1 or plan.latency_98_s > 40.0


def test_means_grow_with_the_camera():
    small, large = (make_plan(Camera(detectors=n), COSTS) for n in (4, 40))
    for name in (
        "network_in_bytes_per_s", "network_out_bytes_per_s", "network_field_bytes", "kafka_disk_bytes",
        "outbox_disk_bytes_per_night", "database_rows_per_night", "database_bytes_per_night", "transactions_per_s",
        "other_cores",
    ):  # fmt: skip
        assert getattr(large, name) == pytest.approx(10.0 * getattr(small, name)), name
    assert large.most_detectors == small.most_detectors


def test_a_slower_pipeline_needs_more_workers():
    camera = Camera(detectors=16)
    assert (
        make_plan(camera, with_exposure(wall_s=12.0)).fleet.all_workers
        > make_plan(camera, with_exposure(wall_s=4.0)).fleet.all_workers
    )


def test_disks_hold_what_the_nights_leave():
    camera = Camera(detectors=10, cadence_s=40.0, alerts=100.0, night_hours=10.0, keep_days=7.0, replicas=3)
    plan = make_plan(camera, COSTS)
    n_alerts = 900 * 10 * 100  # 900 visits a night
    assert plan.outbox_disk_bytes_per_night == pytest.approx(n_alerts * COSTS.alert.bytes)
    assert plan.kafka_disk_bytes == pytest.approx(21 * n_alerts * COSTS.alert.bytes * COSTS.alert.wire_ratio)
    assert plan.database_rows_per_night == pytest.approx(2 * n_alerts)


def test_an_exposure_that_takes_too_long_is_nobodys_to_mend():
    with pytest.raises(ConfigError, match="cannot be in time"):
        make_plan(Camera(detectors=1), with_exposure(wall_s=70.0))


@pytest.mark.parametrize("changes", [{"detectors": 0}, {"event_delay_s": 60.0}, {"cadence_s": 0.0}])
def test_a_camera_that_is_none_is_refused(changes):
    with pytest.raises(ValueError, match="nothing can be planned"):
        Camera(**({"detectors": 1} | changes))


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("wall_s =", "wall_seconds =", "exposure"),
        ("[alert]", "[alerts]", "alert"),
        ("spread = ", "spread = -", "exposure.spread"),
        ("[daemon]", "[daemon", "(file)"),
    ],
)
def test_costs_that_cannot_be_used_are_named(tmp_path, old, new, field):
    path = tmp_path / "costs.toml"
    path.write_text(COSTS_PATH.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        Costs.load(path)
    assert (caught.value.source, caught.value.field) == (str(path), field)
