"""`package_alerts`: association, forced fluxes and cutouts become packets, again and again from the same sources."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from installed_scorers import FAILURES, install
from made_skies import TRANSIENTS, make_pair

from alertprod.alerts.avro import decode_alert, encode_alert
from alertprod.alerts.cutouts import CutoutConfig
from alertprod.alerts.packet import PacketInfo
from alertprod.association.config import AssociationConfig
from alertprod.association.forced import ExposureFacts, ForcedFluxes
from alertprod.association.history import History
from alertprod.association.reliability import load_scorer
from alertprod.association.solar_system import Ephemerides
from alertprod.association.solar_system_columns import PREDICTION_COLUMNS
from alertprod.factory import create_task
from alertprod.measurement.catalog import Catalog
from alertprod.service.differencing import Differenced, difference_exposures
from alertprod.service.packaging import package_alerts, prepare_sources

NOW = 61234.5
ASSOCIATION, CUTOUTS = AssociationConfig(), CutoutConfig()


def make_differenced(visit):
    pair = make_pair(seed=visit, visit=visit)
    task = create_task({}, source="test", n_threads=1)
    made = difference_exposures(task, pair.science, pair.template, id_factory=task.makeIdFactory(visit, 44))
    # A peak of the noise is a source too, now and then; what becomes of sources is the matter here.
    x, y, _ = np.array(TRANSIENTS).T
    apart = np.hypot(made.sources["x"][:, None] - x, made.sources["y"][:, None] - y).min(axis=1)
    return replace(made, sources=made.sources.select(apart < 2.0))


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


def test_what_cutouts_lack_is_counted(first):
    whole = prepare(first).counts
    assert (whole["missing_cutouts"], whole["cutouts_without_psf"], whole["cutouts_without_wcs"]) == (0, 0, 0)
    template = replace(first.template, psf=None)
    assert prepare(replace(first, template=template)).counts["cutouts_without_psf"] == len(TRANSIENTS)


# -- forced photometry --


def test_forced_photometry_that_fails_costs_the_fluxes_and_nothing_else(first, second, monkeypatch):
    history = history_after(package(first, History.empty()))
    whole = package(second, history)
    assert (whole.counts["forced_failed"], whole.counts["forced_without_pixels"]) == (0, 0)
    assert whole.counts["forced_sources"] > 0

    def fail(*, x, y):
        raise FloatingPointError(f"no PSF at {x[0]}, {y[0]}")

    monkeypatch.setattr(Differenced, "photometer", staticmethod(fail))
    broken = package(second, history)
    assert broken.counts["forced_failed"] == whole.counts["forced_sources"]
    assert broken.counts["forced_sources"] == 0
    assert [p["diaSourceId"] for p in broken.packets()] == [p["diaSourceId"] for p in whole.packets()]


def test_objects_on_pixels_that_tell_nothing_are_counted(first, second, monkeypatch):
    history = history_after(package(first, History.empty()))
    expected = package(second, history).counts["forced_sources"]

    def find_no_pixel(*, x, y):
        return ForcedFluxes(*np.full((4, len(x)), np.nan))

    monkeypatch.setattr(Differenced, "photometer", staticmethod(find_no_pixel))
    counts = package(second, history).counts
    assert (counts["forced_without_pixels"], counts["forced_failed"]) == (expected, 0)


# -- scores --


@pytest.fixture
def scorer(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch)
    monkeypatch.delitem(sys.modules, "example_scorers", raising=False)
    return load_scorer


def test_without_a_scorer_reliability_is_null(first):
    packets = list(package(first, History.empty()).packets())
    assert {packet["diaSource"]["reliability"] for packet in packets} == {None}
    assert {packet["diaSource"]["reliabilityVersion"] for packet in packets} == {None}


def test_scores_and_their_version_are_in_the_packets(first, scorer):
    packaged = package(first, History.empty(), scorer=scorer("sharpness", {}))
    sources = [packet["diaSource"] for packet in packaged.packets()]
    assert all(0.3 < source["reliability"] <= 1.0 for source in sources)  # transients are sharp
    assert {source["reliabilityVersion"] for source in sources} == {"sharpness 1.0"}
    assert packaged.counts["scorer_failed"] == 0


def test_sources_below_the_limit_make_no_alert_and_are_counted(first, scorer):
    config = AssociationConfig(min_reliability=0.5)
    scores = scorer("fixed", {"scores": [0.2, 0.9, float("nan")]})
    packaged = package(first, History.empty(), scorer=scores, association=config)
    reliabilities = [packet["diaSource"]["reliability"] for packet in packaged.packets()]
    n = len(TRANSIENTS)
    assert packaged.counts["dropped_low_reliability"] == len(range(0, n, 3))
    assert len(reliabilities) == n - len(range(0, n, 3))
    assert {score if score is None else round(score, 5) for score in reliabilities} == {0.9, None}
    assert packaged.association.objects.n_rows == len(reliabilities)


@pytest.mark.parametrize("how", FAILURES)
def test_a_scorer_that_fails_costs_the_scores_and_nothing_else(first, scorer, how):
    config = AssociationConfig(min_reliability=0.5)
    expected = package(first, History.empty())
    packaged = package(first, History.empty(), scorer=scorer("broken", {"how": how}), association=config)
    assert packaged.counts == {**expected.counts, "scorer_failed": 1}
    assert [encode_alert(p) for p in packaged.packets()] == [encode_alert(p) for p in expected.packets()]


def test_a_scorer_is_not_asked_about_nothing(first, scorer):
    nobody = replace(first, sources=first.sources.select(np.zeros(first.sources.n_rows, dtype=bool)))
    prepared = prepare(nobody, scorer=scorer("broken", {"how": "raises"}))
    assert (prepared.sources.n_rows, prepared.counts["scorer_failed"]) == (0, 0)


# -- known bodies --


def expect_bodies(differenced, rows, *, offset_arcsec=0.2):
    """Predictions a little beside the sources in some rows."""
    table = Catalog(PREDICTION_COLUMNS, len(rows))
    table["designation"] = [f"2020 A{'ABCDEFGH'[k]}" for k in range(len(rows))]
    table["mjd_tai"] = differenced.difference.info.midpoint_mjd_tai
    table["ra_deg"] = differenced.sources["ra_deg"][rows]
    table["dec_deg"] = differenced.sources["dec_deg"][rows] + offset_arcsec / 3600
    table["ra_rate_deg_d"], table["dec_rate_deg_d"] = 0.2, 0.1
    return Ephemerides(table, Catalog((), 0))


def test_known_bodies_have_packets_of_their_own_kind(first):
    packaged = package(first, History.empty(), expected=expect_bodies(first, [1]))
    packets = {message.key: decode_alert(message.value) for message in packaged.messages()}
    body = packets[b"%d" % int.from_bytes(b"K20A00A", "big")]
    assert sum(packet["ssSource"] is not None for packet in packets.values()) == 1
    assert body["diaSourceId"] == first.sources["dia_source_id"][1]
    assert body["diaObject"] is body["prvDiaSources"] is body["prvDiaForcedSources"] is None
    assert body["diaSource"]["diaObjectId"] is None
    assert body["ssSource"]["ephOffsetDec"] == pytest.approx(-0.2, abs=1e-4)
    assert body["mpc_orbits"]["packed_primary_provisional_designation"] == "K20A00A"
    assert packaged.counts["solar_system"] == packaged.counts["solar_system_expected"] == 1
    assert packaged.counts["new_objects"] == len(TRANSIENTS) - 1


def test_a_known_body_on_top_of_a_known_object_takes_nothing_from_it(first, second):
    history = history_after(package(first, History.empty()))
    packaged = package(second, history, expected=expect_bodies(second, [0]))
    assert packaged.counts["matched_objects"] == len(TRANSIENTS) - 1
    (row,) = np.flatnonzero(packaged.association.sources["ss_object_id"])
    assert packaged.association.sources["dia_object_id"][row] == 0
    assert packaged.association.objects.n_rows == len(TRANSIENTS) - 1


def test_bodies_that_were_not_detected_are_counted(first):
    packaged = package(first, History.empty(), expected=expect_bodies(first, [0, 1], offset_arcsec=1.5))
    assert (packaged.counts["solar_system"], packaged.counts["solar_system_expected"]) == (0, 2)
    assert packaged.counts["new_objects"] == len(TRANSIENTS)
