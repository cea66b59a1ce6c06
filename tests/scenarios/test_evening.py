"""One evening of the real daemon: real pixels, real Kafka, and every kind of event there is."""

import json
import re
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from observatory import header_of, packets_of

from alertprod.alerts.avro import read_alerts
from alertprod.sim.score import Detections, score_detections
from alertprod.stream.dead_letter import parse_dead_letter
from alertprod.stream.messages import hash_bodies

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def summary_of(evening, exposure):
    (summary,) = (found for found in evening.summaries if (found.visit, found.detector) == exposure)
    return summary


def test_every_good_exposure_is_published_and_its_alerts_are_there_once(evening):
    assert set(evening.alerts) == set(evening.good)
    for exposure in evening.good:
        assert summary_of(evening, exposure).outcome == "published"
    ids = [header_of(message, "diaSourceId") for messages in evening.alerts.values() for message in messages]
    assert len(ids) == len(set(ids)) > 6 * 3


def test_count_and_hash_of_the_summary_are_those_of_the_alerts(evening):
    for exposure, messages in evening.alerts.items():
        summary = summary_of(evening, exposure)
        assert summary.n_alerts == len(messages)
        assert summary.sha256 == hash_bodies(message.value for message in messages)
        dropped = sum(n for name, n in summary.counts.items() if name.startswith("dropped_"))  # unfit for an object
        assert summary.counts["dia_sources"] - dropped == len(messages)
        assert dropped < 3


def test_framing_key_and_headers_say_what_the_packet_says(evening):
    for messages in evening.alerts.values():
        for message, packet in zip(messages, packets_of(messages), strict=True):
            source = packet["diaSource"]
            assert struct.unpack(">bI", message.value[:5]) == (0, 1101)
            assert message.key == str(source["diaObjectId"]).encode("ascii")
            for name in ("diaSourceId", "visit", "detector", "band"):
                assert header_of(message, name) == str(source[name])
            assert float(header_of(message, "midpointMjdTai")) == source["midpointMjdTai"]
            assert header_of(message, "schema_version") == "11.1"
            assert re.fullmatch(r"[0-9a-f]{64}", header_of(message, "config_hash"))
            assert int(header_of(message, "producer_timestamp")) > 1.7e12
            assert packet["cutoutDifference"].startswith(b"SIMPLE")


def test_alerts_of_one_object_are_on_one_partition(evening):
    partitions = {}
    for message in (message for messages in evening.alerts.values() for message in messages):
        assert partitions.setdefault(message.key, message.partition) == message.partition
    assert len(set(partitions.values())) > 1


def test_later_visits_carry_the_objects_history(evening):
    earlier = {packet["diaSourceId"] for packet in packets_of(_visit(evening, 0))}
    later = packets_of(_visit(evening, 1)) + packets_of(_visit(evening, 2))
    with_history = [packet for packet in later if packet["prvDiaSources"]]
    assert len(with_history) > 3
    for packet in with_history:
        past = packet["prvDiaSources"]
        assert packet["diaObject"]["nDiaSources"] == len(past) + 1
        assert all(source["diaObjectId"] == packet["diaSource"]["diaObjectId"] for source in past)
        times = [source["midpointMjdTai"] for source in past]
        assert times == sorted(times)
        assert packet["diaSource"]["midpointMjdTai"] not in times
    assert {source["diaSourceId"] for packet in with_history for source in packet["prvDiaSources"]} & earlier


def _visit(evening, number):
    return [message for detector in (0, 1) for message in evening.alerts[evening.night.visit_id(number), detector]]


def test_bright_changes_of_the_sky_are_in_the_alerts(evening):
    sources = [packet["diaSource"] for messages in evening.alerts.values() for packet in packets_of(messages)]
    columns = (np.array([source[name] for source in sources]) for name in ("visit", "detector", "ra", "dec"))
    score = score_detections(
        Detections(*columns), Table.read(evening.night.directory / "truth.ecsv"), radius_arcsec=0.6
    )
    assert score.n_injected[-1] >= 5
    assert score.n_found[-1] == score.n_injected[-1]


def test_each_partitions_committed_offset_is_its_end(evening):
    committed, ends = evening.positions
    assert committed == ends
    assert sum(ends.values()) == len(evening.good) + len(evening.bad) + 2
    assert all(ends.values())


FATES = {
    "not JSON": ("invalid_event", "receive", ["event field value", "neither Avro nor JSON"]),
    "unknown Avro": ("invalid_event", "receive", ["event field schema id", "99"]),
    "missing field": ("invalid_event", "receive", ["event field band", "Field required"]),
    "unknown instrument": ("invalid_event", "receive", ["event field instrument", "'nobodys-camera'", "known: simcam"]),
    "absent image": ("image_not_yet_available", "compute", ["absent.fits: no such file"]),
    "truncated image": ("corrupt_image", "compute", ["truncated.fits[", "150000"]),
    "header mismatch": ("header_mismatch", "compute", ["simcam_{visit0}_000.fits: visit", "{visit52}", "{visit0}"]),
    "pointing mismatch": ("header_mismatch", "compute", ["{visit53}.fits: pointing", "(120.0, 20.0)"]),
    "broken template": ("template_unreadable", "compute", ["tile.fits"]),
}
"""Reason, stage, and what the message names."""


@pytest.mark.parametrize("what", FATES)
def test_a_bad_event_is_a_dead_letter_with_its_bytes_and_the_reason(evening, what):
    reason, stage, named = FATES[what]
    key, value = evening.bad[what]
    (letter,) = (letter for letter in evening.dead_letters if (letter.key, letter.value) == (key, value))
    told = parse_dead_letter(letter)
    assert (told.reason, told.stage) == (reason, stage)
    visits = {f"visit{n}": evening.night.visit_id(n) for n in (0, 52, 53)}
    for text in named:
        assert text.format(**visits) in told.message
    assert told.topic == evening.observatory.topics.visit_ready
    assert told.attempts > 1 if what == "absent image" else told.attempts == 1
    assert told.worker_deaths == 0


def test_nothing_else_became_a_dead_letter(evening):
    assert len(evening.dead_letters) == len(FATES)


def test_dead_letters_of_known_exposures_have_summaries_and_others_do_not(evening):
    compute = [key for what, (key, _) in evening.bad.items() if FATES.get(what, ("", ""))[1] == "compute"]
    dead = [summary.key for summary in evening.summaries if summary.outcome == "dead_lettered"]
    assert Counter(dead) == Counter(compute)


@pytest.mark.parametrize(
    ("what", "outcome", "reason"),
    [("no template", "skipped", "no_template_coverage"), ("too old", "expired", "max_event_age")],
)
def test_what_needs_no_work_is_said_in_the_summary_alone(evening, what, outcome, reason):
    key, _ = evening.bad[what]
    (summary,) = (summary for summary in evening.summaries if summary.key == key)
    assert (summary.outcome, summary.reason, summary.n_alerts) == (outcome, reason, 0)
    assert key not in {letter.key for letter in evening.dead_letters}


def test_a_duplicate_costs_nothing(evening):
    first = evening.good[0]
    assert evening.measured.total("alertprod_exposures_total", outcome="duplicate") == 1
    assert evening.observatory.row(*first).claims == 1
    assert summary_of(evening, first).outcome == "published"  # and there is no second one


def test_a_replay_publishes_the_same_bytes_on_its_own_topic(evening):
    replayed = sorted(evening.replayed, key=lambda message: int(header_of(message, "diaSourceId")))
    originals = evening.alerts[evening.good[1]]
    assert [(message.key, message.value) for message in replayed] == [(m.key, m.value) for m in originals]


def test_health_says_alive_at_once_and_ready_when_it_is(evening):
    status, body = evening.pages["livez, starting"]
    assert (status, json.loads(body)["live"]) == (200, True)
    status, body = evening.pages["readyz, starting"]
    assert status == 503
    assert json.loads(body)["problems"]
    assert evening.pages["/livez"][0] == 200
    assert json.loads(evening.pages["/readyz"][1]) == {"ready": True, "problems": {}}


def test_every_metric_of_the_design_is_there(evening):
    assert evening.measured.names >= {
        "alertprod_shutter_to_ack_seconds_bucket", "alertprod_shutter_to_published_seconds_bucket",
        "alertprod_event_wait_seconds_bucket", "alertprod_stage_seconds_bucket", "alertprod_exposures_total",
        "alertprod_exposures_expected_total", "alertprod_alerts_total", "alertprod_template_cache_hits_total",
        "alertprod_template_cache_misses_total", "alertprod_template_cache_evictions_total",
        "alertprod_template_cache_bytes", "alertprod_consumer_lag", "alertprod_inflight",
        "alertprod_oldest_inflight_seconds", "alertprod_last_success_timestamp_seconds",
        "alertprod_dead_letters_total", "alertprod_build_info", "alertprod_kernel_sum_bucket",
        "alertprod_residual_ratio_bucket", "alertprod_pull_width_bucket", "alertprod_n_sources_bucket",
        "alertprod_limiting_magnitude_bucket",
    }  # fmt: skip


def test_metrics_count_what_the_topics_hold(evening):
    total = evening.measured.total
    outcomes = Counter(summary.outcome for summary in evening.summaries)
    for outcome in ("published", "skipped", "expired", "dead_lettered"):
        assert total("alertprod_exposures_total", instrument="simcam", outcome=outcome) == outcomes[outcome], outcome
    assert total("alertprod_exposures_total", outcome="replayed") == 1
    assert total("alertprod_exposures_expected_total") == len(evening.summaries)
    reasons = Counter(parse_dead_letter(letter).reason for letter in evening.dead_letters)
    for reason, count in reasons.items():
        assert total("alertprod_dead_letters_total", reason=reason) == count, reason
    assert total("alertprod_dead_letters_total") == len(evening.dead_letters)
    n_alerts = sum(map(len, evening.alerts.values()))
    assert total("alertprod_alerts_total", outcome="acked") == n_alerts
    assert total("alertprod_alerts_total", outcome="replayed") == len(evening.replayed)
    assert total("alertprod_shutter_to_ack_seconds_count", band="r") == n_alerts
    assert total("alertprod_shutter_to_published_seconds_count") == len(evening.good)
    for figure in ("kernel_sum", "residual_ratio", "pull_width", "n_sources", "limiting_magnitude"):
        assert total(f"alertprod_{figure}_count", instrument="simcam", band="r") == len(evening.good), figure
    assert total("alertprod_n_sources_sum") == sum(found.counts.get("dia_sources", 0) for found in evening.summaries)
    assert total("alertprod_inflight") == 0
    assert total("alertprod_template_cache_hits_total") > total("alertprod_template_cache_misses_total")
    assert total("alertprod_prefetches_total", outcome="done") == 1


def test_the_noise_of_every_exposure_is_what_its_variance_says(evening):
    for exposure in evening.good:
        figures = summary_of(evening, exposure).figures
        assert figures["pull_width"] == pytest.approx(1.0, abs=0.03)
        assert figures["kernel_sum"] == pytest.approx(1.0, abs=0.05)


def test_sigterm_ends_it_well(evening):
    assert evening.status == 0
    assert evening.log[-1]["event"] == "stopped"
    assert not [line for line in evening.log if line["level"] in ("error", "critical")]


def test_every_line_about_an_exposure_names_it(evening):
    about = ("claimed", "stored", "published", "exposure stored", "given up", "nothing to do", "trying again")
    lines = [line for line in evening.log if line["event"] in about]
    named = {(line["instrument"], line["visit"], line["detector"]) for line in lines if line["event"] == "published"}
    assert named == {("simcam", *exposure) for exposure in evening.good}
    unreadable = [line for line in lines if line.get("stage") == "receive"]  # there is no exposure to name
    for line in lines:
        assert line in unreadable or {"instrument", "visit", "detector"} <= line.keys(), line
        assert {"time", "level", "process"} <= line.keys(), line
    assert {line["process"] for line in lines} > {"daemon"}


def test_alerts_tail_shows_what_was_published(evening, tmp_path):
    output = tmp_path / "alerts.avro"
    done = evening.observatory.run("alerts", "tail", "--from-beginning", "--no-follow", "--json", "-o", output)
    assert done.returncode == 0, done.stderr
    shown = {json.loads(line)["diaSourceId"] for line in done.stdout.splitlines()}
    everything = {packet["diaSourceId"] for messages in evening.alerts.values() for packet in packets_of(messages)}
    assert shown == {packet["diaSourceId"] for packet in read_alerts(Path(output))} == everything
