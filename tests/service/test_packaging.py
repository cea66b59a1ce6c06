"""`package_alerts`: association, forced fluxes and cutouts become packets, again and again from the same sources."""

import numpy as np
import pytest
from made_skies import TRANSIENTS, make_pair

from alertprod.alerts.avro import decode_alert, encode_alert
from alertprod.alerts.cutouts import CutoutConfig
from alertprod.alerts.packet import PacketInfo
from alertprod.association.config import AssociationConfig
from alertprod.association.forced import ExposureFacts
from alertprod.association.history import History
from alertprod.factory import create_task
from alertprod.service.differencing import difference_exposures
from alertprod.service.packaging import package_alerts, prepare_sources

NOW = 61234.5
ASSOCIATION, CUTOUTS = AssociationConfig(), CutoutConfig()


def make_differenced(visit):
    pair = make_pair(seed=visit, visit=visit)
    task = create_task({}, source="test", n_threads=1)
    return difference_exposures(task, pair.science, pair.template, id_factory=task.makeIdFactory(visit, 44))


@pytest.fixture(scope="module")
def first():
    return make_differenced(1)


@pytest.fixture(scope="module")
def second():
    return make_differenced(2)


def facts_of(differenced):
    info = differenced.difference.info
    return ExposureFacts(
        visit=info.visit,
        detector=info.detector,
        band=info.band,
        midpoint_mjd_tai=info.midpoint_mjd_tai,
        time_processed_mjd_tai=NOW,
        wcs=differenced.difference.wcs,
        shape=differenced.difference.shape,
    )


def prepare(differenced, *, cutouts=CUTOUTS, association=ASSOCIATION, **options):
    return prepare_sources(differenced, facts_of(differenced), association=association, cutouts=cutouts, **options)


def package(differenced, history, *, prepared=None, association=ASSOCIATION, **options):
    task = create_task({}, source="test")
    return package_alerts(
        prepared or prepare(differenced, association=association, **options),
        history,
        differenced,
        facts=facts_of(differenced),
        info=PacketInfo(observation_reason="survey", target_name="field", program_version="1"),
        forced_id_factory=task.makeIdFactory(differenced.difference.info.visit, 44),
        association=association,
    )


def history_after(packaged):
    made = packaged.association
    return History(objects=made.objects, sources=made.sources, forced=made.forced)


def test_the_first_exposure_makes_objects(first):
    packaged = package(first, History.empty())
    assert packaged.counts["dia_sources"] == packaged.counts["new_objects"] == len(TRANSIENTS)
    assert packaged.counts["matched_objects"] == packaged.counts["forced_sources"] == 0
    packets = list(packaged.packets())
    assert len(packets) == packaged.association.sources.n_rows == len(TRANSIENTS)
    for packet in packets:
        assert packet["diaObject"]["diaObjectId"] == packet["diaSource"]["diaSourceId"]
        assert packet["diaSource"]["timeProcessedMjdTai"] == NOW
        assert packet["cutoutDifference"]
        assert decode_alert(encode_alert(packet))["diaSource"]["diaSourceId"] == packet["diaSource"]["diaSourceId"]


def test_the_second_exposure_knows_them(first, second):
    packaged = package(second, history_after(package(first, History.empty())))
    assert packaged.counts["matched_objects"] == packaged.counts["forced_sources"] == len(TRANSIENTS)
    assert packaged.counts["new_objects"] == 0
    for packet in packaged.packets():
        (previous,) = packet["prvDiaSources"]
        assert previous["visit"] == 1
        assert packet["diaObject"]["nDiaSources"] == 2
        (forced,) = packet["prvDiaForcedSources"]
        assert forced["visit"] == 2


def test_sources_are_left_as_they_were_and_packaging_can_be_repeated(first, second):
    history = history_after(package(first, History.empty()))
    before = {name: second.sources[name].copy() for name in second.sources}
    alone = package(second, History.empty())
    prepared = prepare(second)
    once, twice = (package(second, history, prepared=prepared) for _ in range(2))
    for name, values in before.items():
        np.testing.assert_array_equal(second.sources[name], values, err_msg=name)
    assert [encode_alert(p) for p in once.packets()] == [encode_alert(p) for p in twice.packets()]
    # The pixels' part does not depend on the history.
    assert [p["diaSource"]["diaSourceId"] for p in alone.packets()] == [
        p["diaSource"]["diaSourceId"] for p in once.packets()
    ]
    assert alone.counts["new_objects"] == len(TRANSIENTS)


def test_dropped_sources_are_counted_by_their_reason(second):
    second.sources["centroid_flag"][0] = True
    try:
        packaged = package(second, History.empty())
    finally:
        second.sources["centroid_flag"][0] = False
    assert packaged.counts["dropped_centroid_flag"] == 1
    assert packaged.counts["dia_sources"] == len(TRANSIENTS)
    assert len(list(packaged.packets())) == len(TRANSIENTS) - 1


def test_cutouts_follow_their_configuration(first):
    small = next(package(first, History.empty(), cutouts=CutoutConfig(min_size=10, max_size=12)).packets())
    large = next(package(first, History.empty(), cutouts=CutoutConfig(min_size=60, max_size=60)).packets())
    assert len(large["cutoutDifference"]) > len(small["cutoutDifference"])
