"""Load tests and plans from the command line; the fleet is of real processes, the broker the embedded one."""

import pytest

from alertprod.stream.embedded import EmbeddedBroker

SMALL = ("--detectors", 4, "--visits", 2, "--cadence-s", 4, "--speed-up", 2, "--stage", "subtract=0.2", "--alerts", 3)
SMALL = (*SMALL, "--alert-bytes", 2000, "--event-delay-s", 0, "--daemons", 1, "--workers", 1, "--partitions", 4)


@pytest.mark.slow
def test_a_small_camera_is_worked_off_by_a_real_daemon(alertprod, tmp_path):
    ran = alertprod("simulate", "load", *SMALL, "--directory", tmp_path, "--json")
    assert ran.status in (0, 1), ran.err  # 1: on a busy machine it may be late
    report = ran.json
    assert (report["exposures"], report["published"], report["alerts"]) == (8, 8, 24)
    assert report["latency_s"]["p50"] >= 0.2
    assert report["latency_s"]["p100"] >= report["latency_s"]["p98"] >= report["latency_s"]["p50"]
    assert report["usage"].keys() >= {"workers", "lanes", "the database's one writer"}
    assert 0.0 < report["usage"]["workers"] <= 1.0
    assert report["saturates_first"] in report["usage"]
    assert (report["failures"], report["exit_statuses"]) == ({}, [0])
    assert report["good"] == (report["share_in_time"] >= 0.98) == (ran.status == 0)
    assert len(list(tmp_path.glob("outbox/loadcam/*/*.outbox"))) == 8


@pytest.mark.faults
def test_two_daemons_share_the_partitions_and_nothing_else(alertprod, tmp_path):
    ran = alertprod("simulate", "load", *SMALL, "--daemons", 2, "--partitions", 8, "-d", tmp_path, "--json")
    assert (ran.json["published"], ran.json["exit_statuses"]) == (8, [0, 0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--stage", "subtrakt=1"), "stages are"),
        (("--stage", "subtract=soon"), "NAME=SECONDS"),
        (("--stage", "subtract=-1"), "0 to 3600"),
        (("--detectors", 0), "--detectors"),
        (("--daemons", 4, "--partitions", 2), "without any"),
    ],
)
def test_what_cannot_be_simulated_is_wrong_usage(alertprod, options, says):
    ran = alertprod("simulate", "load", *options)
    assert ran.status == 2
    assert says in ran.words


def test_a_broker_that_is_away_is_named(alertprod, tmp_path):
    with EmbeddedBroker({"a": 1}) as gone:
        servers = gone.bootstrap_servers
    ran = alertprod("simulate", "load", *SMALL, "--bootstrap-servers", servers, "-d", tmp_path)
    assert ran.status == 1
    assert "broker" in ran.words


def test_a_plan_has_a_column_a_camera(alertprod):
    ran = alertprod("simulate", "plan", "--detectors", 1, "--detectors", 4, "--alerts", 10)
    assert ran.status == 0
    assert "1 detectors" in ran.out
    assert "4 detectors" in ran.out
    assert "fails first" in ran.out


def test_plans_for_a_program_are_one_line_each(alertprod):
    ran = alertprod("simulate", "plan", "--detectors", 1, "--detectors", 2, "--json")
    assert [line["camera"]["detectors"] for line in ran.json_lines] == [1, 2]
    assert all(line["latency_98_s"] <= 60.0 for line in ran.json_lines)


def test_costs_that_are_not_there_are_named(alertprod, tmp_path):
    ran = alertprod("simulate", "plan", "--costs", tmp_path / "costs.toml")
    assert ran.status != 0
    assert "cannot be read" in ran.words
