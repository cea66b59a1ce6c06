"""Real images of the Galactic bulge in the order they were taken, through a running daemon and a real Kafka."""

from pathlib import Path

import pytest
from observatory import Observatory, packets_of

from alertprod.images.profile import load_profile
from alertprod.store.template_index import index_templates
from alertprod.stream.dead_letter import parse_dead_letter

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

IMAGES = Path(__file__).resolve().parents[3] / "shared" / "data" / "saao_kb13475"
EPOCHS = (1, 5, 9, 13, 70, 119, 176)
"""The first four, and three later ones."""


@pytest.fixture(scope="module")
def series(tmp_path_factory, kafka_broker):
    """What the epochs came to."""
    if not IMAGES.is_dir():
        pytest.skip(f"no {IMAGES}")
    folder = tmp_path_factory.mktemp("saao")
    site = Observatory(
        folder / "site", kafka_broker, lanes=1, template_index=folder / "templates.json",
        instruments='[instruments.SAAO-STE3]\nprofile = "saao"\nbands = ["I"]\n'
        'difference = { "subtract.al.mode" = "auto" }\n',
        limits="max_event_age_s = 1e9",
    )  # fmt: skip
    files = [IMAGES / f"AKB13475I{epoch:04d}.fits.fz" for epoch in EPOCHS]
    index_templates(str(IMAGES), load_profile("saao"), pattern="template*", index_uri=str(folder / "templates.json"))
    with site.start() as daemon:
        sent = site.run("send", *files)
        assert sent.returncode == 0, sent.stderr
        daemon.wait_until(lambda: len(site.summaries()) == len(EPOCHS), timeout_s=150.0)
        assert daemon.terminate() == 0
    letters = [parse_dead_letter(letter) for letter in site.read(site.topics.dead_letters)]
    return site, site.summaries(), site.alerts(), letters


def test_every_epoch_ends_in_the_order_it_was_taken_and_most_are_published(series):
    _, summaries, alerts, letters = series
    assert [summary.visit for summary in summaries] == list(EPOCHS)
    published = [summary for summary in summaries if summary.outcome == "published"]
    assert len(published) >= 5
    assert {(summary.visit, 0) for summary in published if summary.n_alerts} == set(alerts)
    for summary in summaries:
        assert summary.outcome in ("published", "skipped", "dead_lettered")
        assert (summary.reason is None) == (summary.outcome == "published")
    assert len(letters) == sum(summary.outcome == "dead_lettered" for summary in summaries)
    assert "unexpected" not in {letter.reason for letter in letters}


def test_alerts_decode_and_say_whose_they_are(series):
    _, summaries, alerts, _ = series
    counts = {summary.visit: summary.n_alerts for summary in summaries}
    for (visit, detector), messages in alerts.items():
        assert (len(messages), detector) == (counts[visit], 0)
        for packet in packets_of(messages):
            source = packet["diaSource"]
            assert (source["visit"], source["band"]) == (visit, "I")
            assert 273.0 < source["ra"] < 275.0
            assert -26.0 < source["dec"] < -25.0


def test_objects_carry_their_history(series):
    _, _, alerts, _ = series
    last = packets_of(alerts[max(alerts)])
    with_history = [packet for packet in last if packet["prvDiaSources"]]
    assert with_history
    for packet in with_history:
        past = packet["prvDiaSources"]
        assert packet["diaObject"]["nDiaSources"] == len(past) + 1
        times = [source["midpointMjdTai"] for source in past]
        assert times == sorted(times)
        assert times[-1] < packet["diaSource"]["midpointMjdTai"]
    assert max(len(packet["prvDiaSources"]) for packet in with_history) >= 2
