"""Scorers and tables of known bodies, and what is left of an exposure where they fail."""

import numpy as np
import pytest
import sqlalchemy as sa
from astropy.table import Table
from installed_scorers import install
from pipeline_bench import source_facts

from alertprod.store.outbox import read_outbox
from alertprod.store.tables import DIA_SOURCE


def test_a_scorer_by_its_name_gives_scores_that_are_stored_and_sent(
    make_bench, night, undisturbed, tmp_path, monkeypatch
):
    install(tmp_path, monkeypatch)
    bench = make_bench(alerts={"scorer": "sharpness", "scorer_options": {"name": "mine"}})
    first, second = bench.process(bench.event(night, 0)), bench.process(bench.event(night, 1))
    alerts = bench.alerts(first)
    assert [source_facts(alert) for alert in alerts] == undisturbed
    scored = {alert["diaSourceId"]: alert["diaSource"]["reliability"] for alert in alerts}
    assert all(0.0 <= score <= 1.0 for score in scored.values())
    assert {alert["diaSource"]["reliabilityVersion"] for alert in alerts} == {"mine 1.0"}
    assert first.counts["scorer_failed"] == 0
    assert first.stage_seconds["score"] > 0
    # The next visit finds them in the history.
    earlier = [row for alert in bench.alerts(second) for row in alert["prvDiaSources"] or ()]
    assert len(earlier) > 2
    for row in earlier:
        assert row["reliability"] == scored[row["diaSourceId"]]
        assert row["reliabilityVersion"] == "mine 1.0"


def test_sources_below_the_limit_are_neither_stored_nor_sent(make_bench, night, undisturbed, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch)
    options = {"scores": [0.6, 0.2]}
    bench = make_bench(alerts={"scorer": "fixed", "scorer_options": options, "min_reliability": 0.5})
    result = bench.process(bench.event(night))
    n_kept = len(range(0, len(undisturbed), 2))
    assert result.counts["dropped_low_reliability"] == len(undisturbed) - n_kept
    assert result.outbox.n_messages == bench.count_rows()["dia_source"] == n_kept
    assert bench.row(bench.event(night)).summary["counts"] == result.counts


def test_a_scorer_that_fails_degrades_the_alerts_and_loses_none(make_bench, night, undisturbed, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch)
    bench = make_bench(alerts={"scorer": "broken", "scorer_options": {"how": "raises"}, "min_reliability": 0.5})
    result = bench.process(bench.event(night))
    alerts = bench.alerts(result)
    assert [source_facts(alert) for alert in alerts] == undisturbed
    assert {alert["diaSource"]["reliability"] for alert in alerts} == {None}
    assert result.counts["scorer_failed"] == 1


def write_ephemerides(path, alerts, *, rate=0.3, hours=0.25, **columns):
    """Predict the sources of some alerts, for a while before they were seen."""
    sources = [alert["diaSource"] for alert in alerts]
    dec = np.array([source["dec"] for source in sources])
    step = rate * hours / 24.0
    Table(
        {
            "designation": [f"2020 A{'ABCDEFGH'[k]}" for k in range(len(sources))],
            "mjd_tai": [source["midpointMjdTai"] - hours / 24.0 for source in sources],
            "ra_deg": np.array([source["ra"] for source in sources]) - step / np.cos(np.radians(dec)),
            "dec_deg": dec,
            "ra_rate_deg_d": np.full(len(sources), rate),
            "dec_rate_deg_d": np.zeros(len(sources)),
            **columns,
        }
    ).write(path, overwrite=True)
    return str(path)


def test_known_bodies_are_told_from_others_by_the_events_table(bench, make_bench, night):
    plain = bench.alerts(bench.process(bench.event(night)))
    table = write_ephemerides(bench.folder / "bodies.ecsv", plain[:2], h=[18.5, 19.5], u_param=[0, 3])
    other = make_bench()
    result = other.process(other.event(night, ephemeris_uri=table))
    alerts = other.alerts(result)
    bodies = {alert["ssSource"]["designation"]: alert for alert in alerts if alert["ssSource"] is not None}
    assert set(bodies) == {"2020 AA", "2020 AB"}
    assert [alert["diaSourceId"] for alert in bodies.values()] == [alert["diaSourceId"] for alert in plain[:2]]
    assert result.counts["solar_system"] == result.counts["solar_system_expected"] == 2
    assert "ephemerides_failed" not in result.counts
    body = bodies["2020 AA"]
    assert body["ssSource"]["ephOffset"] < 0.05
    assert body["ssSource"]["ephRateRa"] == pytest.approx(0.3)
    assert (body["mpc_orbits"]["h"], body["mpc_orbits"]["u_param"], body["mpc_orbits"]["e"]) == (18.5, 0, None)
    assert body["diaObject"] is body["prvDiaSources"] is body["prvDiaForcedSources"] is None
    keys = [message.key for message in read_outbox(result.outbox.uri, result.outbox.sha256)]
    assert b"%d" % int.from_bytes(b"K20A00A", "big") in keys
    # They are stored as what they are, and found no object.
    rows = other.count_rows()
    assert (rows["dia_source"], rows["dia_object"]) == (len(plain), len(plain) - 2)
    with other.database.read() as connection:
        stored = connection.execute(sa.select(DIA_SOURCE.c.ss_object_id).where(DIA_SOURCE.c.ss_object_id != 0))
        assert set(stored.scalars()) == {alert["ssSource"]["ssObjectId"] for alert in bodies.values()}


def test_the_configurations_table_serves_events_that_name_none(bench, make_bench, night):
    plain = bench.alerts(bench.process(bench.event(night)))
    table = write_ephemerides(bench.folder / "bodies.ecsv", plain[:1])
    other = make_bench(solar_system={"ephemeris_uri": table})
    assert other.process(other.event(night)).counts["solar_system"] == 1
    # The event's own goes before it.
    empty = write_ephemerides(bench.folder / "empty.ecsv", [])
    another = make_bench(solar_system={"ephemeris_uri": table})
    assert another.process(another.event(night, ephemeris_uri=empty)).counts["solar_system"] == 0


@pytest.mark.parametrize("trouble", ["missing", "broken", "of something else"])
def test_a_table_that_cannot_be_used_costs_the_names_of_bodies_and_nothing_else(bench, night, undisturbed, trouble):
    path = bench.folder / "bodies.ecsv"
    if trouble == "broken":
        path.write_bytes(b"\x89PNG")
    elif trouble == "of something else":
        Table({"star": ["Vega"]}).write(path)
    result = bench.process(bench.event(night, ephemeris_uri=str(path)))
    assert result.outcome == "stored"
    assert [source_facts(alert) for alert in bench.alerts(result)] == undisturbed
    assert result.counts["ephemerides_failed"] == 1
    assert result.counts["solar_system"] == 0
