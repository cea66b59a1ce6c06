"""A working daemon, watched by a real Prometheus and Alertmanager; then two faults."""

import importlib.util
import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, BrowserMissing
from prometheus_servers import OPS, ServerMissing, Watch

from alertprod.cli.demo_night import EVENTS, TOPICS, DaemonProcess
from alertprod.config import load_config
from alertprod.stream.embedded import EmbeddedBroker
from alertprod.stream.messages import VisitReady, encode_visit_ready
from alertprod.stream.producer import AlertProducer
from alertprod.stream.records import OutgoingMessage

spec = importlib.util.spec_from_file_location("make_dashboards", OPS / "grafana" / "make_dashboards.py")
make_dashboards = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_dashboards)


@dataclass
class Story:
    """What was seen, in order."""

    fired_in_good_times: set[str] = field(default_factory=set)
    late: float = math.nan
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    nothing: list[dict[str, Any]] | None = None
    exemplars: list[dict[str, Any]] = field(default_factory=list)
    tickets: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    fired_with_a_bad_file: set[str] = field(default_factory=set)
    pages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    status: subprocess.CompletedProcess[str] | None = None
    report: Path | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


def send(bootstrap_servers, *events):
    with AlertProducer(bootstrap_servers) as producer:
        for event in events:
            ready = VisitReady(**event)
            producer.publish([OutgoingMessage(topic=EVENTS, key=ready.key, value=encode_visit_ready(ready))])


def run(*arguments):
    command = [sys.executable, "-m", "alertprod", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def story(tmp_path_factory, small_night) -> Story:
    folder, story, config = tmp_path_factory.mktemp("watched"), Story(), small_night.config
    with EmbeddedBroker(TOPICS) as broker:
        daemon = DaemonProcess(
            folder,
            bootstrap_servers=broker.bootstrap_servers,
            night_directory=small_night.directory,
            instrument=config.instrument,
        )
        port = load_config(daemon.config_path).http.port
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("ALERTPROD_WORKERS__COUNT", "1")  # a second one costs more to start than it saves
            daemon.start()  # it warms up while Prometheus and Alertmanager start
        try:
            watch = Watch(folder / "watch", target=f"127.0.0.1:{port}")
        except ServerMissing as missing:
            daemon.stop()
            pytest.skip(str(missing))
        with watch:
            try:
                daemon.wait_ready()
                watch.wait_until(lambda: watch.value("up") == 1)
                exposures = [small_night.event(visit, 0) for visit in range(3)] + [small_night.event(0, 1)]
                send(broker.bootstrap_servers, *exposures)
                published = 'sum(alertprod_exposures_total{outcome="published"})'
                watch.wait_until(lambda: watch.value(published) == len(exposures), timeout_s=90.0)
                watch.wait_until(lambda: watch.value("alertprod:late:ratio_rate5m") >= 0)
                story.late = watch.value('alertprod:late:ratio_rate5m{sli="exposures"}')
                story.fired_in_good_times = watch.firing()
                story.nothing = watch.query('sum(rate(alertprod_stage_seconds_sum{stage="misspelt"}[5m]))')
                story.exemplars = watch.ask(
                    "query_exemplars", query="alertprod_shutter_to_published_seconds_bucket", start=0, end=4e9
                )

                broken = folder / "truncated.fits"
                broken.write_bytes(small_night.exposure_path(0, 0).read_bytes()[:100_000])
                good_times = time.time()
                send(
                    broker.bootstrap_servers,
                    exposures[0] | {"visit": small_night.visit_id(7), "calexp_uri": str(broken)},
                )
                # Asked while the fault makes its way to the webhook.
                story.answers = {
                    f"{panel.title}: {query.expr}": watch.query(make_dashboards.fill_in(query.expr), at=good_times)
                    for panel in make_dashboards.panels()
                    for query in panel.queries
                }
                watch.wait_until(lambda: watch.webhook.alerts("AlertprodDeadLetters"), timeout_s=60.0)
                story.tickets = watch.webhook.alerts("AlertprodDeadLetters")
                story.fired_with_a_bad_file = watch.firing()

                story.status = run("status", "--once", "--config", daemon.config_path)
                daemon.stop()
                # Written from database and topics, while it is noticed that the daemon is gone.
                story.report = folder / "report.html"
                reported = run("report", "--json", "--config", daemon.config_path, "--output", story.report)
                assert reported.returncode == 0, reported.stderr
                story.numbers = json.loads(reported.stdout)
                watch.wait_until(lambda: watch.webhook.alerts("AlertprodDown"), timeout_s=60.0)
                story.pages = watch.webhook.alerts("AlertprodDown")
            finally:
                daemon.stop()
    return story


def test_a_small_night_pages_nobody_though_its_visits_are_late(story):
    assert story.late == pytest.approx(1.0)  # taken three minutes before they were sent, but three are no trend
    assert story.fired_in_good_times == set()


def test_every_panel_is_answered(story):
    unanswered = [name for name, series in story.answers.items() if not series]
    assert unanswered == []
    numbers = {name: [float(each["value"][1]) for each in series] for name, series in story.answers.items()}
    assert [name for name, values in numbers.items() if not any(map(math.isfinite, values))] == []


def test_an_expression_without_data_is_seen(story):
    """The test above would be none if Prometheus answered whatever it is asked."""
    assert story.nothing == []


def test_the_slowest_exposures_are_named_by_exemplars(story, small_night):
    named = {exemplar["labels"]["visit"] for series in story.exemplars for exemplar in series["exemplars"]}
    assert named
    assert named <= {str(small_night.visit_id(visit)) for visit in range(3)}


def test_a_truncated_file_makes_the_right_ticket(story):
    (path, alert), *_ = story.tickets
    assert path == "/ticket"
    assert alert["labels"]["reason"] == "corrupt_image"
    assert alert["annotations"]["summary"] == "Events are given up: corrupt_image"
    assert alert["annotations"]["runbook"] == "ops/runbook.md#alertproddeadletters"
    assert story.fired_with_a_bad_file == {"AlertprodDeadLetters"}


def test_a_daemon_that_is_gone_pages(story):
    (path, alert), *_ = story.pages
    assert path == "/page"
    assert alert["labels"]["job"] == "alertprod"


def test_status_says_what_is_wrong(story):
    assert story.status.returncode == 0, story.status.stderr  # ready, whatever failed
    assert "1 of the last exposures failed: corrupt_image" in story.status.stdout
    assert "published" in story.status.stdout


def test_the_report_knows_the_night(story):
    assert story.numbers["outcomes"] == {"published": 4, "dead_lettered": 1}
    assert story.numbers["alerts"] > 10
    assert len(story.numbers["best"]) == 10
    assert story.numbers["remarks"] == []


def test_a_browser_shows_the_report_without_asking_for_anything(story, tmp_path):
    try:
        browser = Browser(tmp_path / "browser")
    except BrowserMissing as missing:
        pytest.skip(str(missing))
    with browser:
        for dark in (False, True):
            browser.open(story.report, dark=dark)
            assert browser.requests() == [story.report.resolve().as_uri()]
            assert browser.complaints() == []
        pictures = browser.run("[...document.images].map(each => each.complete && each.naturalWidth)")
        assert len(pictures) == 6  # outcomes, latency, stages, quality, triplets, light curves
        assert all(width > 400 for width in pictures)
        assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
        text = browser.run("document.body.innerText")
        assert "dead_lettered: corrupt_image" in text
        assert "truncated.fits" in text  # why, by the dead letter
        assert browser.run("document.querySelectorAll('details tbody tr').length") == 5
        browser.save_picture(tmp_path / "report.png")
        assert (tmp_path / "report.png").stat().st_size > 100_000
