import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alertprod.association.columns import DIA_FORCED_SOURCE_COLUMNS
from alertprod.association.config import AssociationConfig
from alertprod.association.history import History
from alertprod.measurement.catalog import Catalog

VISIT_MJD = 61000.25


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
