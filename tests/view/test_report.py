"""The nightly report: its numbers, and that the page says them."""

import math
import re

import pytest

from alertprod.service.clock import mjd_tai_from_unix
from alertprod.store.ledger import ExposureKey, LedgerRow, LedgerState
from alertprod.view.report import make_report
from alertprod.view.report_facts import Failure, NightFacts, collect_exposures, collect_versions

EVENING = 1_800_000_000.0


def row(visit, *, state="published", latency_s=20.0, n_alerts=10, reason=None, deaths=0, figures=None, **more):
    closed = EVENING + 40.0 * visit
    summary = {
        "band": "r", "shutter_close_mjd_tai": mjd_tai_from_unix(closed), "counts": {"new_objects": 2},
        "stage_seconds": {"load": 0.5, "match": 1.0, "compute": 2.0},
        "figures": {"pull_width": 1.0, "kernel_sum": 0.99} if figures is None else figures, "versions": {},
    }  # fmt: skip
    return LedgerRow(
        key=ExposureKey("Camera", visit, 0), state=LedgerState(state), claims=1, worker_deaths=deaths, owner="a",
        lease_until_unix_s=0.0, event=None, program_version="1.0", config_hash="ab" * 32, reason=reason,
        summary=summary, n_alerts=n_alerts if state == "published" else None, outbox_uri=None, outbox_sha256=None,
        first_claimed_unix_s=closed + 5.0, changed_unix_s=closed + latency_s, **more,
    )  # fmt: skip


def night_of(*rows, failures=()):
    return NightFacts(
        title="The night", since_unix_s=EVENING, until_unix_s=EVENING + 86400.0, exposures=collect_exposures(rows),
        failures=failures, versions=collect_versions(rows),
    )  # fmt: skip


def page_of(night, best=()):
    return make_report(night, best=best, made_at_unix_s=EVENING)


def test_failures_are_late_exposures_and_no_alerts():
    night = night_of(
        row(1, latency_s=20.0), row(2, latency_s=61.0, n_alerts=30), row(3, state="dead_lettered", reason="corrupt_image"),
        row(4, state="skipped", reason="no_template_coverage"), row(5, state="claimed"),
    )  # fmt: skip

    assert night.n_alerts == 40
    assert night.share_of_alerts_in_time() == 0.25
    assert night.share_of_exposures_in_time() == pytest.approx(1 / 3)
    assert night.outcomes() == {"published": 2, "dead_lettered": 1, "skipped": 1, "claimed": 1}
    assert night.count("new_objects") == 4


def test_latency_is_that_of_the_alerts_not_of_the_exposures():
    night = night_of(*(row(n, latency_s=10.0 + n, n_alerts=1) for n in range(9)), row(9, latency_s=90.0, n_alerts=91))

    half, most = night.latency_quantiles_s(0.5, 0.98)
    assert half == pytest.approx(90.0, abs=1e-3)
    assert most == pytest.approx(90.0, abs=1e-3)


def test_exposures_without_alerts_have_latencies_too():
    half, most = night_of(*(row(n, latency_s=float(n), n_alerts=0) for n in range(1, 101))).latency_quantiles_s(
        0.5, 0.98
    )
    assert half == pytest.approx(50.0, abs=1e-3)
    assert most == pytest.approx(98.0, abs=1e-3)


def test_a_night_without_exposures_has_a_page():
    night = night_of()

    assert math.isnan(night.share_of_alerts_in_time())
    assert "Nothing failed." in page_of(night)


def test_a_night_in_which_all_failed_has_a_page():
    page = page_of(night_of(row(1, state="dead_lettered", reason="unexpected", figures={})))
    assert "dead_lettered: unexpected" in page


def test_the_page_needs_nothing_from_outside():
    page = page_of(night_of(row(1), row(2, latency_s=80.0)))

    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,)[^"]*"', page) == []
    assert page.count("<img") == 4  # outcomes, latency, stages, quality; no alert, no triplet


def test_what_others_wrote_is_text_not_markup():
    letter = Failure(exposure="<b>x</b>", reason="<script>alert(1)</script>", stage="receive", message='"&<')
    page = page_of(night_of(row(1, state="dead_lettered", reason="<i>why</i>"), failures=[letter]))

    assert "<script>alert" not in page
    assert "<i>why" not in page
    assert "&lt;script&gt;" in page


def test_why_comes_from_the_dead_letters():
    letters = [
        Failure(exposure="Camera/1/0", reason="corrupt_image", stage="work", message="HDU 2 is truncated"),
        Failure(exposure="visit-ready[0]:7", reason="invalid_event", stage="receive", message="no JSON"),
    ]
    page = page_of(night_of(row(1, state="dead_lettered", reason="corrupt_image"), failures=letters))

    assert "HDU 2 is truncated" in page
    assert "Events that made no exposure" in page
    assert page.count("visit-ready[0]:7") == 1


def test_that_nobody_asked_for_dead_letters_is_said():
    assert "were not looked at" in page_of(night_of(row(1), failures=None))
    assert "were not looked at" not in page_of(night_of(row(1)))


def test_alerts_have_their_pictures(packets):
    page = page_of(night_of(row(1)), best=packets[:3])

    assert page.count("<img") == 6
    for packet in packets[:3]:
        assert str(packet["diaSourceId"]) in page


def test_an_archive_that_is_sent_again_is_not_late():
    night = night_of(row(1, latency_s=20.0), row(2, latency_s=4e8), row(3, latency_s=80.0))

    assert night.share_of_exposures_in_time() == 0.5
    assert night.share_of_alerts_in_time() == 0.5
    assert night.latency_quantiles_s(1.0) == [pytest.approx(80.0, abs=1e-3)]
    assert [each.name for each in night.slowest(10)] == ["Camera/3/0", "Camera/1/0"]
    # Made rows are claimed five seconds after their shutter closed, whatever came then.
    assert [each.waited_s for each in night.slowest(10)] == pytest.approx([5.0, 5.0], abs=1e-3)
    page = page_of(night)
    assert "1 sent again more than a day after they were taken have none" in page
    assert "400000000" not in page
    assert "The slowest" not in page_of(night_of(row(2, latency_s=4e8)))
