"""What one daemon is at."""

import pytest
from rich.console import Console

from alertprod.metrics import Metrics, parse_metrics
from alertprod.view.status import DaemonStatus, make_status_page

NOW = 1_800_000_000.0


def exposure(visit, *, outcome="published", reason=None, latency_s=20.0, n_alerts=3, **facts):
    return {
        "at_unix_s": NOW - 10, "instrument": "Camera", "visit": visit, "detector": 0, "event": f"visit-ready[0]:{visit}",
        "band": "r", "outcome": outcome, "reason": reason, "n_alerts": n_alerts, "latency_s": latency_s,
        "stage_seconds": {"load": 0.5, "match": 1.25, "compute": 2.0}, "figures": {},
    } | facts  # fmt: skip


@pytest.fixture
def metrics():
    metrics = Metrics({"Camera": ("r",)})
    for close, acked in ((0.0, 20.0), (0.0, 70.0)):
        metrics.observe_published(
            "Camera", "r", shutter_close_unix_s=NOW + close, now_unix_s=NOW + acked, ack_unix_s=[NOW + acked] * 3
        )
    for _ in range(2):
        metrics.count_exposure("Camera", "published")
    metrics.consumer_lag.set(4)
    return metrics


def status_of(metrics, *, last=(), inflight=(), problems=None, state="working"):
    facts = {
        "live": True, "state": state, "loop": "the loop turned 31.0 s ago", "inflight": len(inflight),
        "problems": problems or {}, "inflight_exposures": list(inflight), "last_exposures": list(last),
    }  # fmt: skip
    return DaemonStatus(url="http://here", facts=facts, samples=parse_metrics(metrics.render()[0].decode()))


def text_of(status, width=120):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123 - as long as the console
    with console.file:
        console.print(make_status_page(status, now_unix_s=NOW))
    return console.export_text()


def test_numbers_come_from_the_metrics(metrics):
    status = status_of(metrics, last=[exposure(1, latency_s=20.0), exposure(2, latency_s=70.0)])

    assert status.share_in_time() == 0.5
    assert status.outcomes() == {"published": 2}
    assert status.as_json()["lag"] == 4
    text = text_of(status)
    assert "waiting 4" in text
    assert "in time 50.0%" in text
    assert "match 1.25 s" in text  # the longest stage; compute is all of them


def test_what_is_wrong_is_said(metrics):
    slow = {
        "instrument": "Camera",
        "visit": 9,
        "detector": 1,
        "band": "r",
        "step": "work",
        "age_s": 80.0,
        "attempts": 2,
        "waits_s": 0.0,
        "problem": "image_not_yet_available: /data/9.fits: no such file (yet)",
    }
    failed = exposure(3, outcome="dead_lettered", reason="corrupt_image", latency_s=None, n_alerts=0)
    status = status_of(
        metrics, last=[failed], inflight=[slow], problems={"store": "database is locked"}, state="wedged"
    )

    assert status.problems() == [
        "the loop turned 31.0 s ago",
        "store: database is locked",
        "1 of the last exposures failed: corrupt_image",
        "Camera/9/1 r has been in flight for 80 s: image_not_yet_available: /data/9.fits: no such file (yet)",
        "only 50.0% of the alerts were in time since the daemon started",
    ]
    text = text_of(status)
    assert "corrupt_image" in text
    assert "alertprod dead-letters ls" in text
    assert "wedged" in text


def test_what_waits_says_why_within_eighty_columns(metrics):
    waiting = {
        "instrument": "Camera", "visit": 2026112200017, "detector": 0, "band": "r", "step": "work", "age_s": 5.0,
        "attempts": 2, "waits_s": 3.0, "problem": "image_not_yet_available: /data/9.fits: no such file (yet)",
    }  # fmt: skip
    text = text_of(status_of(metrics, inflight=[waiting]), width=80)
    assert max(map(len, text.splitlines())) <= 80
    (line,) = (line for line in text.splitlines() if "Camera/2026112200017/0 r" in line)
    assert "image_not" in line
    assert "has been in flight" not in text  # it is not late yet
    assert "alertprod dead-letters ls" not in text


def test_a_daemon_without_work_is_fine():
    status = status_of(Metrics({"Camera": ("r",)}), state="idle")

    assert status.problems() == []
    assert status.share_in_time() is None
    assert "nothing" in text_of(status)


def test_a_daemon_that_is_away_says_so():
    status = DaemonStatus(url="http://here", facts={}, samples={}, error="no daemon answers: refused")

    assert status.problems() == ["no daemon answers: refused"]
    assert "refused" in text_of(status)


def test_an_event_that_nobody_could_read_is_named_by_its_place(metrics):
    unread = exposure(None, outcome="dead_lettered", reason="invalid_event", event="visit-ready[1]:8", latency_s=None)
    assert "visit-ready[1]:8" in text_of(status_of(metrics, last=[unread]))


def test_eighty_columns_cut_no_name_short(metrics):
    text = text_of(status_of(metrics, last=[exposure(2026112200017)]), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "Camera/2026112200017/0 r" in text
    assert "published" in text


def test_eighty_columns_hold_a_long_reason_beside_the_longest_name(metrics):
    failed = exposure(
        2026112200017, outcome="dead_lettered", reason="insufficient_kernel_sources", latency_s=None, n_alerts=0
    )
    text = text_of(status_of(metrics, last=[failed, exposure(2026112200018)]), width=80)
    assert max(map(len, text.splitlines())) <= 80
    (line,) = (line for line in text.splitlines() if "Camera/2026112200017/0 r" in line)
    assert "dead_lettered" in line
    assert "insuffi" in line


def test_a_low_terminal_shows_what_is_wrong(metrics):
    failed = [exposure(n, outcome="dead_lettered", reason="corrupt_image", latency_s=None) for n in range(15)]
    lines = text_of(status_of(metrics, last=failed), width=80).splitlines()
    (row,) = (n for n, line in enumerate(lines) if "15 of the last exposures failed: corrupt_image" in line)
    assert row < 24
