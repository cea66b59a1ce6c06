"""Two cameras in one daemon: the same sky, the same visits' numbers, each its own pixels, templates and ids."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from astropy.table import Table
from observatory import Observatory, make_event, packets_of

from alertprod.ids import COUNTER_BITS, EXPOSURE_BITS
from alertprod.sim.night import NightConfig, make_night
from alertprod.sim.scene import SceneConfig
from alertprod.sim.score import Detections, score_detections
from alertprod.store.template_index import index_templates

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

VISITS = (0, 1)


@pytest.fixture(scope="module")
def wide_night(tmp_path_factory, small_night):
    """Another camera on the same telescope: coarser pixels, its own templates, and changes of its own."""
    config = NightConfig(
        seed=12, n_visits=len(VISITS), n_detectors=1, size=512, scale_arcsec=0.3, seeing_fwhm=3.2, instrument="widecam",
        start_mjd_tai=small_night.config.start_mjd_tai,
        scene=SceneConfig(transients_per_arcmin2=8.0, variables_per_arcmin2=2.0),
    )  # fmt: skip
    night = make_night(tmp_path_factory.mktemp("wide-night"), config)
    index_templates(str(night.templates_directory))
    profile = night.directory / "profile.toml"
    profile.write_text(profile.read_text() + "instrument_number = 1\n")
    return night


def test_each_cameras_exposures_are_subtracted_from_its_own_templates_and_ids_stay_apart(
    tmp_path, kafka_broker, small_night, wide_night
):
    nights = {night.config.instrument: night for night in (small_night, wide_night)}
    assert small_night.visit_id(0) == wide_night.visit_id(0)
    site = Observatory(
        tmp_path / "site",
        kafka_broker,
        instruments=f'[instruments.simcam]\nprofile = "{small_night.directory}/profile.toml"\n'
        f'[instruments.widecam]\nprofile = "{wide_night.directory}/profile.toml"\n'
        f'template_index = "{wide_night.templates_directory}/templates.json"\n',
        template_index=small_night.templates_directory / "templates.json",
        lanes=2,
        workers=2,
    )
    events = [make_event(night, visit, 0) for visit in VISITS for night in nights.values()]

    with site.start() as daemon:
        site.send(*events)
        daemon.wait_until(lambda: len(site.summaries()) == len(events), timeout_s=300.0)
        measured = daemon.measure()
        assert daemon.terminate() == 0

    found = Counter((summary.key, summary.outcome) for summary in site.summaries())
    assert found == Counter((event.key, "published") for event in events)
    sources = defaultdict(list)
    for packet in packets_of(site.read(site.topics.alerts)):
        exposure_id = packet["diaSourceId"] >> COUNTER_BITS
        sources["widecam" if exposure_id >> (EXPOSURE_BITS - 1) else "simcam"].append(packet["diaSource"])
    ids = [source["diaSourceId"] for of_one in sources.values() for source in of_one]
    assert len(ids) == len(set(ids))
    n_alerts = Counter()
    for summary in site.summaries():
        n_alerts[summary.instrument] += summary.n_alerts
    assert {name: len(of_one) for name, of_one in sources.items()} == n_alerts

    for name, night in nights.items():
        columns = (
            np.array([source[column] for source in sources[name]]) for column in ("visit", "detector", "ra", "dec")
        )
        truth = Table.read(night.directory / "truth.ecsv")
        truth = truth[(truth["detector"] == 0) & np.isin(truth["visit"], [night.visit_id(visit) for visit in VISITS])]
        score = score_detections(Detections(*columns), truth, radius_arcsec=0.6)
        assert score.n_found[-1] == score.n_injected[-1] >= 2, name
        assert measured.total("alertprod_exposures_total", instrument=name, outcome="published") == len(VISITS)
        assert measured.total("alertprod_alerts_total", instrument=name) == n_alerts[name]
