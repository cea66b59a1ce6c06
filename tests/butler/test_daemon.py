"""``alertprod run`` on a Butler: an event over Kafka names a dataset, alerts go out, the difference is put back."""

import pytest

pytest.importorskip("lsst.daf.butler", reason="the extra lsst is not installed; `make butler` adds it")

import signal
import subprocess
import sys
import time

import numpy as np
from butler_repository import DETECTOR, INPUTS, INSTRUMENT, SKYMAP
from lsst.daf.butler import Butler
from made_skies import TRANSIENTS

from alertprod.config import TopicsConfig
from alertprod.service.clock import Clock
from alertprod.stream.embedded import EmbeddedBroker
from alertprod.stream.messages import VisitReady, VisitSummary, decode_visit_summary, encode_visit_ready
from alertprod.stream.producer import AlertProducer
from alertprod.stream.records import OutgoingMessage
from alertprod.stream.tail import AlertTail

TOPICS = TopicsConfig()
RUN = "alertprod/differences"
TIMEOUT_S = 240.0
"""A pass takes 20 s; machines are busy."""


def make_event(visit: int, dataset: str = "calexp") -> VisitReady:
    now = Clock().mjd_tai()
    return VisitReady(
        instrument=INSTRUMENT,
        visit=visit,
        detector=DETECTOR,
        band="r",
        shutter_open_mjd_tai=now - 40.0 / 86400.0,
        shutter_close_mjd_tai=now - 10.0 / 86400.0,
        exposure_time_s=30.0,
        ra_deg=150.0,
        dec_deg=2.0,
        calexp_uri=f"butler:{dataset}?instrument={INSTRUMENT}&visit={visit}&detector={DETECTOR}",
        sent_at_mjd_tai=now,
    )


def await_summaries(servers: str, n: int, daemon: subprocess.Popen[bytes]) -> dict[int, VisitSummary]:
    summaries: dict[int, VisitSummary] = {}
    until = time.monotonic() + TIMEOUT_S
    with AlertTail(servers, [TOPICS.visit_summary]) as tail:
        while len(summaries) < n:
            assert daemon.poll() is None, "the daemon has ended"
            assert time.monotonic() < until, f"only {sorted(summaries)} came back"
            for message in tail.messages(follow=True, idle_s=0.5):
                summary = decode_visit_summary(message.value)
                summaries[summary.visit] = summary
    return summaries


@pytest.mark.slow
def test_a_daemon_reads_from_a_butler_and_puts_its_differences_back(fresh, tmp_path):
    made = fresh()
    partitions = dict.fromkeys(TOPICS.model_dump().values(), 1)
    with EmbeddedBroker(partitions, own_process=True) as broker:
        servers = broker.bootstrap_servers
        path = tmp_path / "alertprod.toml"
        path.write_text(
            f"""[kafka]
bootstrap_servers = "{servers}"
delivery = "at-least-once"
[butler]
repository = "{made.root}"
collections = {list(INPUTS)}
template_dataset = "deepCoadd"
skymap = "{SKYMAP}"
difference_run = "{RUN}"
[instruments.{INSTRUMENT}]
[workers]
threads_per_worker = 1
[http]
enabled = false
"""
        )
        with AlertProducer(servers) as producer:
            producer.publish(
                OutgoingMessage(topic=TOPICS.visit_ready, key=event.key, value=encode_visit_ready(event))
                for event in (make_event(1), make_event(2, "calexps"))
            )
        with (tmp_path / "log").open("wb") as log:
            daemon = subprocess.Popen([sys.executable, "-m", "alertprod", "run", "-c", str(path)], stderr=log)
        try:
            summaries = await_summaries(servers, 2, daemon)
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(60.0) == 0, (tmp_path / "log").read_text()[-2000:]
        finally:
            daemon.kill()
            daemon.wait()
        with AlertTail(servers, [TOPICS.alerts]) as tail:
            n_alerts = len(list(tail.messages()))
    assert (summaries[1].outcome, summaries[1].n_alerts, n_alerts) == ("published", len(TRANSIENTS), len(TRANSIENTS))
    assert "difference_not_kept" not in summaries[1].counts
    assert (summaries[2].outcome, summaries[2].reason) == ("dead_lettered", "dataset_mismatch")
    with Butler.from_config(made.root, collections=RUN) as butler:
        difference = butler.get("deepDiff_differenceExp", instrument=INSTRUMENT, visit=1, detector=DETECTOR)
    for x, y, flux in TRANSIENTS:
        assert np.sign(difference.image[round(y), round(x)]) == np.sign(flux)
