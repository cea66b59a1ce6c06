from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alertprod.association.associate import associate, find_known
from alertprod.association.columns import DIA_FORCED_SOURCE_COLUMNS
from alertprod.association.config import AssociationConfig
from alertprod.association.forced import ForcedFluxes
from alertprod.association.history import History
from alertprod.measurement.catalog import Catalog

VISIT_MJD = 61000.25
ERR = {"psf_flux_err": 1.0, "visit": 1}


def test_known_objects_keep_their_id_and_new_ones_take_their_sources(make_sources, make_history, run):
    result = run(make_sources([10.4, 50.0], [0.0, 0.0]), make_history([0.0, 10.0], [0.0, 0.0]))
    assert result.sources["dia_object_id"].tolist() == [101, 1002]
    assert result.objects["dia_object_id"].tolist() == [101, 1002]
    assert result.objects["n_dia_sources"].tolist() == [3, 1]
    assert (result.n_matched, result.n_new, result.dropped) == (1, 1, {})


def test_an_updated_object_moves_to_the_mean_of_its_sources(make_sources, make_history, run):
    result = run(make_sources([0.6], [0.0]), make_history([0.0], [0.0], nights=(2, 1)))
    assert result.objects["ra_deg"][0] * 3600 == pytest.approx(0.2)
    assert result.objects["first_dia_source_mjd_tai"][0] == pytest.approx(60998.25)


def test_forced_fluxes_are_measured_for_known_objects_seen_or_not(make_sources, make_history, run):
    history = make_history([0.0, 20.0, 900.0], [0.0, 0.0, 0.0])
    result = run(make_sources([0.0, 40.0], [0.0, 0.0]), history)
    # 100 is seen again, 101 is not, 102 is off the image, the new object has one source only.
    assert result.forced["dia_object_id"].tolist() == [100, 101]
    assert result.forced["psf_flux"].tolist() == pytest.approx([200.0, 160.0], abs=1e-3)
    assert result.objects["dia_object_id"].tolist() == [100, 1002]


def test_second_detection_starts_the_forced_history(make_sources, make_history, run):
    result = run(make_sources([0.0], [0.0]), make_history([0.0], [0.0], nights=(3,)))
    assert result.forced["dia_object_id"].tolist() == [100]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("pixel_flags_saturated_center", True),
        ("pixel_flags_interpolated_center", True),
        ("pixel_flags_nodata_center", True),
        ("pixel_flags_suspect_center", True),
        ("pixel_flags_streak_center", True),
        ("glint_trail", True),
        ("reliability", 0.05),
    ],
)
def test_doubtful_sources_join_objects_but_found_none(make_sources, make_history, run, column, value):
    sources = make_sources([0.0, 30.0], [0.0, 0.0], **{column: value})
    result = run(sources, make_history([0.0], [0.0]))
    assert result.sources["dia_source_id"].tolist() == [1001]
    assert result.dropped == {"unfit_for_new_object": 1}


def test_what_makes_no_object_follows_the_configuration(make_sources, run):
    sources = make_sources([0.0], [0.0], is_dipole=True)
    assert run(sources, History.empty()).n_new == 1
    config = AssociationConfig(new_object_flags=("is_dipole",))
    assert run(sources, History.empty(), config=config).dropped == {"unfit_for_new_object": 1}


def test_solar_system_sources_take_no_object(make_sources, make_history, run):
    result = run(make_sources([0.0], [0.0], ss_object_id=77), make_history([0.0], [0.0]))
    assert result.sources["dia_object_id"].tolist() == [0]
    assert result.objects.n_rows == 0
    assert (result.n_solar_system, result.n_matched, result.n_new) == (1, 0, 0)


def test_rows_that_this_exposure_wrote_before_are_ignored(make_sources, make_history, run):
    sources = make_sources([0.0], [0.0])
    history = make_history([0.0], [0.0])
    again = make_sources([0.0], [0.0], dia_object_id=100)
    forced = Catalog.from_rows(
        DIA_FORCED_SOURCE_COLUMNS,
        [
            {
                "dia_object_id": 100,
                "visit": visit,
                "detector": 3,
                "dia_forced_source_id": visit,
                "midpoint_mjd_tai": VISIT_MJD - 7 + visit,
            }
            for visit in (6, 7)
        ],
    )
    repeated = History(history.objects, Catalog.concatenate([history.sources, again]), forced)
    result = run(sources, repeated)
    assert result.objects["n_dia_sources"].tolist() == [3]
    assert result.history.sources.n_rows == 2
    assert result.history.forced["visit"].tolist() == [6]


def test_nothing_seen_still_measures_the_known(make_sources, make_history, run):
    result = run(make_sources([], []), make_history([0.0], [0.0]))
    assert result.sources.n_rows == result.objects.n_rows == 0
    assert result.forced["dia_object_id"].tolist() == [100]


def test_empty_sky_gives_empty_tables(make_sources, run):
    result = run(make_sources([], []), History.empty())
    assert (result.sources.n_rows, result.objects.n_rows, result.forced.n_rows) == (0, 0, 0)


def test_input_is_left_as_it_is(make_sources, make_history, run):
    sources = make_sources([0.0, 30.0], [0.0, 0.0])
    run(sources, make_history([0.0], [0.0]))
    assert sources["dia_object_id"].tolist() == [0, 0]


def test_forced_means_cover_the_history_and_this_exposure(make_sources, make_history, run):
    history = make_history([0.0], [0.0])
    forced = Catalog.from_rows(
        DIA_FORCED_SOURCE_COLUMNS,
        [
            {"dia_object_id": 100, "midpoint_mjd_tai": VISIT_MJD - night, "band": "r", "psf_flux": flux, **ERR}
            for night, flux in ((2, 100.0), (1, 150.0))
        ],
    )
    result = run(make_sources([0.0], [0.0]), History(history.objects, history.sources, forced))
    # `run` measures the column as the flux: 200.
    assert result.objects["r_fp_flux_mean"][0] == pytest.approx(150.0)
    assert result.objects["r_fp_flux_mean_err"][0] == pytest.approx(3**-0.5)
    assert np.isnan(result.objects["g_fp_flux_mean"][0])


def test_an_object_not_seen_twice_within_the_history_is_not_followed(make_sources, make_history, run):
    history = make_history([0.0, 20.0], [0.0, 0.0], nights=(400, 1))
    assert run(make_sources([], []), history).forced.n_rows == 0
    assert run(make_sources([], []), history, config=AssociationConfig(history_days=401.0)).forced.n_rows == 2


def test_light_curves_are_needed_only_of_objects_a_source_may_be(make_sources, make_history, run):
    history = make_history([0.0, 0.8, 20.0], [0.0, 0.0, 0.0])
    sources = make_sources([0.5, 60.0], [0.0, 0.0])
    ids = find_known(sources, history.objects, radius_arcsec=1.0)
    assert ids.tolist() == [100, 101]
    known = History(
        history.objects, history.sources.select(np.isin(history.sources["dia_object_id"], ids)), history.forced
    )
    whole, needed = run(sources, history), run(sources, known)
    for table in ("sources", "objects", "packet_objects", "forced"):
        for name in getattr(whole, table):
            np.testing.assert_array_equal(getattr(whole, table)[name], getattr(needed, table)[name], err_msg=name)
    assert whole.forced["dia_object_id"].tolist() == [100, 101, 102]


# -- exposures that are processed late --


def test_a_packet_knows_nothing_of_the_future(make_sources, make_history, run):
    history = make_history([0.0], [0.0], nights=(2, -1, -3))
    forced = Catalog.from_rows(
        DIA_FORCED_SOURCE_COLUMNS,
        [
            {"dia_object_id": 100, "midpoint_mjd_tai": VISIT_MJD + night, "band": "r", "psf_flux": flux, **ERR}
            for night, flux in ((-2, 100.0), (3, 150.0))
        ],
    )
    result = run(make_sources([0.9], [0.0]), History(history.objects, history.sources, forced))
    (then,), (now,) = result.packet_objects.rows(), result.objects.rows()
    assert (then["n_dia_sources"], now["n_dia_sources"]) == (2, 4)
    assert (then["last_dia_source_mjd_tai"], now["last_dia_source_mjd_tai"]) == (VISIT_MJD, VISIT_MJD + 3)
    assert then["ra_deg"] * 3600 == pytest.approx(0.45)
    assert now["ra_deg"] * 3600 == pytest.approx(0.225)
    assert then["r_fp_flux_mean"] == pytest.approx((100 + result.forced["psf_flux"][0]) / 2)
    assert now["r_fp_flux_mean"] == pytest.approx((250 + result.forced["psf_flux"][0]) / 3)
    assert result.history.sources["midpoint_mjd_tai"].tolist() == [VISIT_MJD - 2]
    assert result.history.forced["midpoint_mjd_tai"].tolist() == [VISIT_MJD - 2]
    assert then["n_dia_sources"] == 1 + result.history.sources.n_rows


def test_an_object_that_was_found_later_is_new_in_the_packet(make_sources, make_history, run):
    result = run(make_sources([0.0], [0.0]), make_history([0.0], [0.0], nights=(-5,)))
    (then,) = result.packet_objects.rows()
    assert (then["dia_object_id"], then["n_dia_sources"]) == (100, 1)
    assert then["first_dia_source_mjd_tai"] == then["last_dia_source_mjd_tai"] == VISIT_MJD
    assert result.history.sources.n_rows == 0
    assert result.objects["first_dia_source_mjd_tai"].tolist() == [VISIT_MJD]


def test_sources_of_the_same_moment_are_known_to_each_other(make_sources, make_history, run):
    # Another detector saw the same place in the same visit.
    history = make_history([0.0], [0.0], nights=(0,), detector=4)
    history.sources["detector"] = 4
    result = run(make_sources([0.0], [0.0]), history)
    assert result.packet_objects["n_dia_sources"].tolist() == [2]
    assert result.history.sources.n_rows == 1


def test_another_cameras_rows_of_the_same_numbers_stay(make_sources, make_history, run):
    history = make_history([0.0], [0.0])
    history.sources["visit"], history.sources["detector"] = 7, 3
    result = run(make_sources([0.0], [0.0]), history)
    assert result.objects["n_dia_sources"].tolist() == [3]


def test_the_history_reaches_back_from_the_latest_source(make_sources, make_history, run):
    # Seen 300 days before and 100 days after this exposure: 400 days apart.
    result = run(make_sources([0.0], [0.0]), make_history([0.0], [0.0], nights=(300, -100)))
    assert result.objects["n_dia_sources"].tolist() == [2]
    assert result.packet_objects["n_dia_sources"].tolist() == [2]
    assert result.history.sources["midpoint_mjd_tai"].tolist() == [VISIT_MJD - 300]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(5)))
def test_what_is_stored_in_the_end_does_not_depend_on_the_order_of_exposures(make_sources, facts, order):
    """Five exposures of one star, processed in any order."""

    def measure(*, x, y):
        return ForcedFluxes(x, np.full(len(x), 1.0), y, np.full(len(x), 2.0))

    objects, history = History.empty().objects, History.empty()
    for visit in order:
        sources = make_sources(
            [0.01 * visit], [0.0], ids=[10 * (visit + 1)], mjd=VISIT_MJD + 100 * visit, visit=visit, psf_flux=visit
        )
        exposure = replace(facts, visit=visit, midpoint_mjd_tai=VISIT_MJD + 100 * visit)
        result = associate(
            sources, history, exposure, measure_forced=measure, forced_id_factory=iter([10 * visit]).__next__
        )
        packet_sees = result.history.sources["visit"].tolist()
        assert sorted(packet_sees) == [earlier for earlier in sorted(order[: order.index(visit)]) if earlier < visit
                                       and earlier >= visit - 3]  # fmt: skip
        objects = result.objects
        assert objects.n_rows == 1
        history = History(
            objects,
            Catalog.concatenate([history.sources, result.sources]),
            Catalog.concatenate([history.forced, result.forced]),
        )
    (row,) = objects.rows()
    assert row["n_dia_sources"] == 4  # the last 360 days
    assert (row["first_dia_source_mjd_tai"], row["last_dia_source_mjd_tai"]) == (VISIT_MJD, VISIT_MJD + 400)
    assert row["ra_deg"] * 3600 == pytest.approx(0.025)
    assert row["r_psf_flux_mean"] == pytest.approx(2.5)
    assert (row["r_psf_flux_min"], row["r_psf_flux_max"]) == (1.0, 4.0)
    assert row["repeated_mjd_tai"] == VISIT_MJD + 300


def test_order_of_rows_does_not_matter(make_sources, make_history, run):
    rng = np.random.default_rng(4)
    east, north = rng.uniform(-8, 8, (2, 40))
    sources = make_sources(east, north, psf_flux=rng.normal(1000, 50, 40))
    history = make_history(*rng.uniform(-8, 8, (2, 30)))
    expected = run(sources, history)
    assert expected.n_matched > 5
    assert expected.n_new > 5

    @settings(max_examples=30, deadline=None)
    @given(st.randoms(use_true_random=False))
    def check(random):
        def shuffled(catalog):
            return catalog.select(np.array(random.sample(range(catalog.n_rows), catalog.n_rows), dtype=int))

        result = run(
            shuffled(sources),
            History(shuffled(history.objects), shuffled(history.sources), history.forced),
        )
        for table in ("sources", "objects", "forced"):
            ours, theirs = getattr(expected, table), getattr(result, table)
            for name in ours:
                np.testing.assert_array_equal(ours[name], theirs[name], err_msg=f"{table} {name}")

    check()
