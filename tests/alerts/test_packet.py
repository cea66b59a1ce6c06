import numpy as np
import pytest
from dictionary_packets import make_dictionaries

from alertprod.alerts.avro import decode_alert, encode_alert
from alertprod.alerts.cutouts import CutoutTriplet
from alertprod.alerts.packet import PacketInfo, make_messages, make_packets
from alertprod.association.solar_system import Ephemerides, match_solar_system
from alertprod.association.solar_system_columns import ORBIT_COLUMNS, PREDICTION_COLUMNS
from alertprod.measurement.catalog import Catalog

INFO = PacketInfo(observation_reason="survey", target_name="", program_version="0.1.0", config_hash="abc")


def test_packet_of_a_known_object_holds_its_history_without_the_trigger(make_association, no_cutouts):
    association = make_association(n_visits=3)
    known, new = make_packets(association, no_cutouts(association), INFO)
    assert known["diaSourceId"] == known["diaSource"]["diaSourceId"] == 1001
    assert known["diaSource"]["diaObjectId"] == known["diaObject"]["diaObjectId"] == 100
    assert [row["diaSourceId"] for row in known["prvDiaSources"]] == [100, 101, 102]
    assert known["diaObject"]["nDiaSources"] == 1 + len(known["prvDiaSources"])
    assert [row["visit"] for row in known["prvDiaForcedSources"]] == [0, 1, 2, 7]
    assert {row["diaObjectId"] for row in known["prvDiaForcedSources"]} == {100}
    assert known["diaObject"]["r_psfFluxNdata"] == 4
    assert new["diaObject"]["diaObjectId"] == new["diaSourceId"] == 1002


def test_packet_of_a_new_object_has_null_sources_and_an_empty_list_of_forced_ones(make_association, no_cutouts):
    association = make_association(n_visits=0)
    for packet in make_packets(association, no_cutouts(association), INFO):
        assert packet["prvDiaSources"] is None
        assert packet["prvDiaForcedSources"] == []
        assert packet["diaObject"]["nDiaSources"] == 1
        assert packet["ssSource"] is None
        assert packet["mpc_orbits"] is None


def test_missing_numbers_ids_and_empty_text_become_null(make_association, no_cutouts):
    association = make_association(n_visits=0)
    packet = next(make_packets(association, no_cutouts(association), INFO))
    source = packet["diaSource"]
    for field in ("ssObjectId", "parentDiaSourceId", "trailFlux", "reliability", "reliabilityVersion", "apFlux"):
        assert source[field] is None
    assert source["psfNdata"] == 0
    assert source["isDipole"] is False
    assert packet["diaObject"]["u_psfFluxMean"] is None
    assert packet["diaObject"]["r_psfFluxSigma"] is None
    assert packet["diaObject"]["u_psfFluxNdata"] == 0
    assert (packet["observation_reason"], packet["target_name"]) == ("survey", None)


def test_infinite_values_become_null_too(make_association, make_sources, no_cutouts):
    sources = make_sources([50.0], [60.0])
    sources["psf_chi2"] = np.inf
    association = make_association(n_visits=0, sources=sources)
    packet = next(make_packets(association, no_cutouts(association), INFO))
    assert packet["diaSource"]["psfChi2"] is None


def test_a_required_number_that_is_missing_is_refused(make_association, make_sources, no_cutouts):
    sources = make_sources([50.0], [60.0])
    sources["time_processed_mjd_tai"] = np.nan
    association = make_association(n_visits=0, sources=sources)
    with pytest.raises(ValueError, match="time_processed_mjd_tai is required"):
        next(make_packets(association, no_cutouts(association), INFO))


def test_solar_system_source_has_its_prediction_and_orbit_and_neither_object_nor_history(
    make_association, make_sources, no_cutouts
):
    sources = make_sources([50.0], [60.0])
    table = Catalog(PREDICTION_COLUMNS, 1)
    table["designation"] = "2011 UN63"
    table["ra_deg"], table["dec_deg"] = sources["ra_deg"] + 1e-4, sources["dec_deg"]
    table["ra_rate_deg_d"], table["dec_rate_deg_d"], table["mjd_tai"] = 0.2, -0.1, 61000.25
    orbits = Catalog([column for column in ORBIT_COLUMNS if column.name in ("u_param", "a")], 1)
    orbits["u_param"], orbits["a"] = 0, 2.5
    sources, matches = match_solar_system(sources, Ephemerides(table, orbits))
    association = make_association(n_visits=3, sources=sources, solar_system=matches)
    (message,) = make_messages(association, no_cutouts(association), INFO)
    packet = decode_alert(message.value)
    for field in ("diaObject", "prvDiaSources", "prvDiaForcedSources"):
        assert packet[field] is None
    assert packet["diaSource"]["diaObjectId"] is None
    identity = int.from_bytes(b"K11U63N", "big")
    assert message.key == b"%d" % identity
    assert packet["ssSource"]["ssObjectId"] == packet["diaSource"]["ssObjectId"] == identity
    assert packet["ssSource"]["diaSourceId"] == packet["diaSourceId"]
    assert packet["ssSource"]["ephOffsetRa"] == pytest.approx(-1e-4 * 3600 * np.cos(np.radians(30)), rel=1e-3)
    assert packet["ssSource"]["topoRange"] is None
    orbit = packet["mpc_orbits"]
    assert orbit["packed_primary_provisional_designation"] == "K11U63N"
    assert (orbit["id"], orbit["designation"], orbit["u_param"], orbit["a"]) == (0, "2011 UN63", 0, 2.5)
    assert orbit["e"] is orbit["created_at"] is None
    assert decode_alert(encode_alert(packet)) == packet


def test_a_source_of_one_object_with_a_known_future_is_described_as_it_was_then(make_association, no_cutouts):
    association = make_association(n_visits=3, later=2)
    known, _ = make_packets(association, no_cutouts(association), INFO)
    assert [row["diaSourceId"] for row in known["prvDiaSources"]] == [100]
    assert known["diaObject"]["nDiaSources"] == 2
    assert known["diaObject"]["lastDiaSourceMjdTai"] == known["diaSource"]["midpointMjdTai"]
    assert [row["visit"] for row in known["prvDiaForcedSources"]] == [0, 7]


def test_bytes_are_those_of_a_general_encoder_of_dictionaries(make_association):
    association = make_association(n_visits=3)
    triplets = [CutoutTriplet(b"difference", None, b"template"), CutoutTriplet(None, b"science" * 50, None)]
    messages = list(make_messages(association, triplets, INFO))
    assert [message.value for message in messages] == [
        encode_alert(packet) for packet in make_dictionaries(association, triplets, INFO)
    ]
    packets = list(make_packets(association, triplets, INFO))
    assert [decode_alert(encode_alert(packet)) for packet in packets] == packets
    assert packets[0]["cutoutDifference"] == b"difference"
    assert packets[1]["cutoutScience"] == b"science" * 50


def test_an_alert_that_is_too_large_leaves_out_the_oldest_of_its_history_and_says_so(make_association):
    association = make_association(n_visits=60)
    triplets = [CutoutTriplet(b"d" * 300, None, b"t" * 300)] * 2
    whole = [message.value for message in make_messages(association, triplets, INFO)]
    limit = len(whole[0]) // 2
    assert len(whole[1]) < limit
    known, new = make_messages(association, triplets, INFO, max_bytes=limit)
    assert (new.value, dict(known.headers)["left_out"]) == (whole[1], b"history")
    assert "left_out" not in dict(new.headers)
    assert 0.9 * limit < len(known.value) <= limit
    packet, complete = decode_alert(known.value), decode_alert(whole[0])
    sources, forced = packet["prvDiaSources"], packet["prvDiaForcedSources"]
    assert sources == complete["prvDiaSources"][-len(sources) :]
    assert forced == complete["prvDiaForcedSources"][-len(forced) :]
    assert abs(len(sources) / 60 - len(forced) / 61) < 0.05
    assert packet["diaObject"] == complete["diaObject"]
    assert packet["cutoutDifference"] == b"d" * 300


def test_cutouts_go_only_where_they_alone_are_too_large(make_association):
    association = make_association(n_visits=60)
    triplets = [CutoutTriplet(b"d" * 20_000, b"s" * 20_000, None), CutoutTriplet(b"d", None, None)]
    for limit, left_out in ((50_000, b"history"), (35_000, b"cutouts"), (12_000, b"history,cutouts")):
        known, new = make_messages(association, triplets, INFO, max_bytes=limit)
        packet = decode_alert(known.value)
        assert len(known.value) <= limit
        assert dict(known.headers)["left_out"] == left_out
        assert (packet["cutoutDifference"] is None) == (b"cutouts" in left_out)
        assert (len(packet["prvDiaSources"]) < 60) == (b"history" in left_out)
        assert decode_alert(new.value)["cutoutDifference"] == b"d"


def test_one_triplet_a_source_is_required(make_association):
    with pytest.raises(ValueError, match="zip"):
        list(make_packets(make_association(), [CutoutTriplet(None, None, None)], INFO))


def test_key_is_the_objects_id_and_headers_tell_the_rest(make_association, no_cutouts):
    association = make_association()
    message = next(make_messages(association, no_cutouts(association), INFO))
    assert message.key == b"100"
    assert dict(message.headers) == {
        "schema_version": b"11.1",
        "diaSourceId": b"1001",
        "visit": b"7",
        "detector": b"3",
        "band": b"r",
        "midpointMjdTai": b"61000.25",
        "program_version": b"0.1.0",
        "config_hash": b"abc",
        "zero_point": b"measured",
    }


def test_headers_name_a_nominal_zero_point_and_the_producers_time(make_association, no_cutouts):
    association = make_association()
    info = PacketInfo(is_nominal=True)
    message = next(make_messages(association, no_cutouts(association), info, producer_timestamp_ms=1_800_000_000_123))
    headers = dict(message.headers)
    assert headers["zero_point"] == b"nominal"
    assert headers["producer_timestamp"] == b"1800000000123"
