"""Metrics."""

import math

import pytest

from alertprod.errors import AlertprodError
from alertprod.metrics import DEAD_LETTER_REASONS, LATENCY_EDGES_S, Metrics, parse_metrics


@pytest.fixture
def metrics():
    return Metrics({"Camera": ("g", "r")})


def sample(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"alertprod_{name}", labels)


def test_each_alert_is_observed_at_its_acknowledgement(metrics):
    metrics.observe_published(
        "Camera", "r", shutter_close_unix_s=1000.0, now_unix_s=1062.0, ack_unix_s=[1055.0, 1060.0, 1062.0]
    )

    labels = {"instrument": "Camera", "band": "r"}
    assert sample(metrics, "shutter_to_ack_seconds_count", **labels) == 3
    assert sample(metrics, "shutter_to_ack_seconds_bucket", le="60.0", **labels) == 2
    assert sample(metrics, "shutter_to_published_seconds_count", **labels) == 1
    assert sample(metrics, "alerts_total", instrument="Camera", outcome="acked") == 3
    assert sample(metrics, "last_success_timestamp_seconds", instrument="Camera") == 1062.0


def test_an_exposure_without_alerts_is_observed_too(metrics):
    metrics.observe_published("Camera", "g", shutter_close_unix_s=0.0, now_unix_s=9.0, ack_unix_s=[])

    labels = {"instrument": "Camera", "band": "g"}
    assert sample(metrics, "shutter_to_published_seconds_sum", **labels) == 9.0
    assert sample(metrics, "shutter_to_ack_seconds_count", **labels) == 0


def test_latencies_below_zero_are_counted_and_not_observed(metrics):
    metrics.observe_published("Camera", "r", shutter_close_unix_s=100.0, now_unix_s=63.0, ack_unix_s=[63.0])

    assert sample(metrics, "negative_latencies_total") == 2
    assert sample(metrics, "shutter_to_ack_seconds_count", instrument="Camera", band="r") == 0


def test_events_cannot_make_new_series(metrics):
    before = metrics.render()[0].count(b"\n")
    for visit in range(50):
        metrics.count_exposure("Camera", f"outcome {visit}")
        metrics.count_dead_letter(f"reason {visit}")
        metrics.count_expected(f"Instrument{visit}", 7)

    assert sample(metrics, "exposures_total", instrument="Camera", outcome="other") == 50
    assert sample(metrics, "dead_letters_total", reason="other") == 50
    assert sample(metrics, "exposures_expected_total", instrument="other") == 50
    assert metrics.render()[0].count(b"\n") <= before + 2  # the one series of `other` with its creation time

    for visit in range(50):
        metrics.observe_published(f"I{visit}", f"b{visit}", shutter_close_unix_s=0, now_unix_s=1, ack_unix_s=[1])
    assert sample(metrics, "shutter_to_published_seconds_count", instrument="other", band="other") == 50


def test_every_error_that_is_a_dead_letter_has_its_own_reason():
    def leaves(kind):
        return [kind] + [leaf for sub in kind.__subclasses__() for leaf in leaves(sub)]

    from alertprod import errors

    ours = [
        kind
        for kind in leaves(errors.BadInputError) + leaves(errors.ProcessingError)
        if kind.__module__ == errors.__name__
    ]
    assert issubclass(ours[0], AlertprodError)
    assert {kind.reason() for kind in ours} <= set(DEAD_LETTER_REASONS)


def test_counters_start_at_zero_so_that_the_first_count_shows_in_a_rate(metrics):
    assert sample(metrics, "dead_letters_total", reason="corrupt_image") == 0
    assert sample(metrics, "exposures_total", instrument="Camera", outcome="published") == 0


def test_science_figures_are_observed_and_nan_is_not(metrics):
    metrics.observe_figures("Camera", "r", {"kernel_sum": 0.97, "pull_width": math.nan, "unheard_of": 3.0})

    labels = {"instrument": "Camera", "band": "r"}
    assert sample(metrics, "kernel_sum_sum", **labels) == 0.97
    assert not sample(metrics, "pull_width_count", **labels)


def test_sources_are_counted_by_what_became_of_them(metrics):
    for _ in range(2):
        metrics.count_sources(
            "Camera",
            {
                "dia_sources": 20,
                "matched_objects": 5,
                "dropped_low_reliability": 3,
                "dropped_centroid_flag": 2,
                "dropped_long_trail": 1,
                "scorer_failed": 0,
                "ephemerides_failed": 1,
            },
        )
    labels = {"instrument": "Camera"}
    assert sample(metrics, "dia_sources_total", outcome="matched_objects", **labels) == 10
    assert sample(metrics, "dia_sources_total", outcome="dropped_low_reliability", **labels) == 6
    assert sample(metrics, "dia_sources_total", outcome="dropped_excluded", **labels) == 6
    assert sample(metrics, "dia_sources_total", outcome="new_objects", **labels) == 0
    assert sample(metrics, "shortcomings_total", what="scorer_failed", **labels) == 0
    assert sample(metrics, "shortcomings_total", what="ephemerides_failed", **labels) == 2


def test_stage_names_are_a_closed_set(metrics):
    metrics.observe_stages({"match": 1.5, "something new": 2.0})

    assert sample(metrics, "stage_seconds_sum", stage="match") == 1.5
    assert sample(metrics, "stage_seconds_sum", stage="other") == 2.0


def test_two_sets_of_metrics_do_not_meet():
    one, two = Metrics(), Metrics()
    one.inflight.set(5)

    assert sample(two, "inflight") == 0


def test_latency_edges_lie_on_the_requirement_and_the_first_years_number():
    assert {60, 120} <= set(LATENCY_EDGES_S)


def test_what_the_design_names_is_there(metrics):
    metrics.set_build_info(version="1", schema="lsst.v11_1", config_hash="abc", delivery="exactly-once")
    text = metrics.render()[0].decode()

    for name in (
        "shutter_to_ack_seconds", "shutter_to_published_seconds", "event_wait_seconds", "stage_seconds",
        "exposures_total", "exposures_expected_total", "alerts_total", "template_cache_hits_total",
        "template_cache_misses_total", "template_cache_evictions_total", "template_cache_bytes", "consumer_lag",
        "inflight", "oldest_inflight_seconds", "last_success_timestamp_seconds", "dead_letters_total", "build_info",
        "kernel_sum", "residual_ratio", "pull_width", "n_sources", "limiting_magnitude",
    ):  # fmt: skip
        assert f"# TYPE alertprod_{name.removesuffix('_total')}" in text, name
    assert 'version="1"' in text


def test_a_visit_is_counted_once_however_many_detectors_it_has(metrics):
    for visit in (1, 1, 2, 1, 2):
        metrics.count_expected("Camera", visit)

    assert sample(metrics, "exposures_expected_total", instrument="Camera") == 5
    assert sample(metrics, "visits_expected_total", instrument="Camera") == 2


def test_a_slow_exposure_is_named_where_the_scraper_understands_it(metrics):
    metrics.observe_published(
        "Camera",
        "r",
        shutter_close_unix_s=0.0,
        now_unix_s=70.0,
        ack_unix_s=[],
        exposure={"visit": "42", "detector": "3"},
    )

    openmetrics, content_type = metrics.render("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert content_type.startswith("application/openmetrics-text")
    (line,) = (line for line in openmetrics.decode().splitlines() if " # " in line)
    assert line.startswith(
        'alertprod_shutter_to_published_seconds_bucket{band="r",instrument="Camera",le="75.0"} 1.0 # '
    )
    assert 'visit="42"' in line
    assert 'detector="3"' in line
    text, content_type = metrics.render("text/plain")
    assert content_type.startswith("text/plain")
    assert b"visit=" not in text  # never a label


def test_latencies_of_each_band_begin_at_zero(metrics):
    assert sample(metrics, "shutter_to_ack_seconds_bucket", instrument="Camera", band="g", le="60.0") == 0
    assert sample(metrics, "shutter_to_published_seconds_count", instrument="Camera", band="r") == 0


def test_how_old_an_exposure_was_when_its_event_came(metrics):
    metrics.observe_event("Camera", waited_s=0.5, age_s=12.0)
    metrics.observe_event("Camera", waited_s=0.5, age_s=-3.0)

    assert sample(metrics, "shutter_to_event_seconds_sum", instrument="Camera") == 12.0
    assert sample(metrics, "event_wait_seconds_sum", instrument="Camera") == 1.0
    assert sample(metrics, "negative_latencies_total") == 1


def test_what_is_declared_is_what_is_rendered(metrics):
    text = metrics.render()[0].decode()

    rendered = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE alertprod_")}
    declared = {facts.name for facts in metrics.declared}
    assert {name for name in rendered if not name.endswith("_created")} == declared
    assert all(facts.meaning for facts in metrics.declared)


def test_rendered_text_is_read_back(metrics):
    metrics.consumer_lag.set(4)

    assert parse_metrics(metrics.render()[0].decode())["alertprod_consumer_lag"] == [({}, 4.0)]


def test_what_is_sent_again_on_purpose_is_counted_and_its_latency_is_not(metrics):
    metrics.observe_published(
        "Camera", "r", shutter_close_unix_s=0.0, now_unix_s=9e6, ack_unix_s=[9e6, 9e6], is_replay=True
    )

    labels = {"instrument": "Camera", "band": "r"}
    assert sample(metrics, "alerts_total", instrument="Camera", outcome="acked") == 2
    assert sample(metrics, "shutter_to_ack_seconds_count", **labels) == 0
    assert sample(metrics, "shutter_to_published_seconds_count", **labels) == 0
