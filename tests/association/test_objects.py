import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alertprod.association.columns import DIA_FORCED_SOURCE_COLUMNS, DIA_OBJECT_COLUMNS
from alertprod.association.forced import ForcedConfig
from alertprod.association.objects import fill_forced_means, summarize_objects
from alertprod.measurement.catalog import Catalog

NONE_BEFORE = Catalog(DIA_OBJECT_COLUMNS, 0)


@pytest.fixture
def make_points(make_sources):
    """Sources of one object at the origin: rows of (mjd, band, flux, err)."""

    def make(rows, **columns):
        mjd, band, flux, err = zip(*rows, strict=True)
        zeros = np.zeros(len(rows))
        columns = {"dia_object_id": 5, **columns}
        return make_sources(zeros, zeros, mjd=mjd, band=band, psf_flux=flux, psf_flux_err=err, **columns)

    return make


def summarize(sources, previous=NONE_BEFORE):
    return summarize_objects(sources, previous, validity_start_mjd_tai=61001.0)


def test_statistics_of_a_light_curve_by_hand(make_points):
    sources = make_points([(1.0, "r", 10.0, 1.0), (3.0, "r", 20.0, 2.0), (4.0, "r", 15.0, 1.0), (2.0, "g", 7.0, 3.0)])
    (row,) = summarize(sources).rows()
    assert row["dia_object_id"] == 5
    assert row["n_dia_sources"] == 4
    assert row["r_psf_flux_ndata"] == 3
    assert row["r_psf_flux_mean"] == pytest.approx((10 + 20 / 4 + 15) / 2.25)
    assert row["r_psf_flux_mean_err"] == pytest.approx(2.25**-0.5)
    assert row["r_psf_flux_sigma"] == pytest.approx(5.0)
    assert (row["r_psf_flux_min"], row["r_psf_flux_max"]) == (10.0, 20.0)
    assert row["r_psf_flux_max_slope"] == pytest.approx(5.0)
    assert row["r_psf_flux_err_mean"] == pytest.approx(4 / 3)
    assert row["r_science_flux_mean"] == pytest.approx(1500.0)
    assert row["r_science_flux_mean_err"] == pytest.approx(60 / 3**0.5)
    assert (row["g_psf_flux_mean"], row["g_psf_flux_ndata"]) == (7.0, 1)
    assert np.isnan(row["g_psf_flux_sigma"])
    assert np.isnan(row["g_psf_flux_max_slope"])
    assert np.isnan(row["u_psf_flux_mean"])
    assert row["u_psf_flux_ndata"] == 0
    assert (row["first_dia_source_mjd_tai"], row["last_dia_source_mjd_tai"]) == (1.0, 4.0)
    assert row["validity_start_mjd_tai"] == 61001.0


def test_slope_is_signed_and_skips_pairs_of_one_epoch(make_points):
    falling = make_points([(1.0, "r", 10.0, 1.0), (2.0, "r", 4.0, 1.0), (2.0, "r", 9.0, 1.0), (4.0, "r", 1.0, 1.0)])
    # 10 -> 4 in a day, then 9 -> 1 in two days.
    assert summarize(falling)["r_psf_flux_max_slope"][0] == pytest.approx(-4.0)


def test_unusable_fluxes_do_not_count(make_points):
    sources = make_points(
        [(1.0, "r", 10.0, 1.0), (2.0, "r", np.nan, 1.0), (3.0, "r", 99.0, np.nan), (4.0, "r", 99.0, 0.0)]
    )
    (row,) = summarize(sources).rows()
    assert (row["r_psf_flux_ndata"], row["r_psf_flux_mean"], row["n_dia_sources"]) == (1, 10.0, 4)


def test_bands_without_columns_count_for_the_object_only(make_points):
    (row,) = summarize(make_points([(1.0, "clear", 10.0, 1.0), (2.0, None, 10.0, 1.0)])).rows()
    assert row["n_dia_sources"] == 2
    assert sum(value for name, value in row.items() if name.endswith("ndata")) == 0


def test_position_is_the_mean_and_its_error_that_of_a_mean(make_sources):
    sources = make_sources(
        [-1.0, 1.0, 3.0], [0.0, 0.0, 3.0], dia_object_id=5, ra_err_deg=3e-5, dec_err_deg=[3e-5, 6e-5, 6e-5],
        ra_dec_cov_deg2=9e-10,
    )  # fmt: skip
    (row,) = summarize(sources).rows()
    assert row["ra_deg"] * 3600 == pytest.approx(1.0)
    assert row["dec_deg"] * 3600 == pytest.approx(1.0)
    assert row["ra_err_deg"] == pytest.approx(3e-5 / 3**0.5)
    assert row["dec_err_deg"] == pytest.approx(3e-5)
    assert row["ra_dec_cov_deg2"] == pytest.approx(3e-10)


def test_position_error_is_unknown_where_one_source_has_none(make_sources):
    sources = make_sources([0.0, 0.0], [0.0, 0.0], dia_object_id=5, ra_err_deg=[3e-5, np.nan])
    assert np.isnan(summarize(sources)["ra_err_deg"][0])


def test_epochs_reach_beyond_the_loaded_history(make_points):
    previous = Catalog(DIA_OBJECT_COLUMNS, 2)
    previous["dia_object_id"] = [4, 5]
    previous["first_dia_source_mjd_tai"], previous["last_dia_source_mjd_tai"] = -500.0, [9000.0, 2.0]
    (row,) = summarize(make_points([(7.0, "r", 1.0, 1.0)]), previous).rows()
    assert (row["first_dia_source_mjd_tai"], row["last_dia_source_mjd_tai"]) == (-500.0, 7.0)


def test_mean_flux_is_unbiased_and_its_error_right(make_sources):
    rng = np.random.default_rng(11)
    n_objects, n_visits = 400, 10
    errors = rng.uniform(1.0, 5.0, n_objects * n_visits)
    sources = make_sources(
        np.zeros(len(errors)), np.zeros(len(errors)), mjd=np.tile(np.arange(n_visits), n_objects),
        dia_object_id=np.repeat(np.arange(1, n_objects + 1), n_visits),
        psf_flux=100.0 + rng.normal(0.0, errors), psf_flux_err=errors,
    )  # fmt: skip
    objects = summarize(sources)
    pulls = (objects["r_psf_flux_mean"] - 100.0) / objects["r_psf_flux_mean_err"]
    assert abs(pulls.mean()) < 5 / n_objects**0.5
    assert abs(pulls.std() - 1.0) < 5 / (2 * n_objects) ** 0.5


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False))
def test_not_one_bit_depends_on_the_order_of_rows(random):
    rng = np.random.default_rng(2)
    from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS

    sources = Catalog(DIA_SOURCE_COLUMNS, 30)
    sources["dia_source_id"], sources["dia_object_id"] = np.arange(30), np.arange(30) % 4
    sources["band"], sources["midpoint_mjd_tai"] = rng.choice(["g", "r"], 30), rng.integers(0, 5, 30)
    for name in ("ra_deg", "dec_deg", "psf_flux", "psf_flux_err", "science_flux", "science_flux_err", "ra_err_deg"):
        sources[name] = rng.uniform(1, 2, 30)
    order = list(range(30))
    random.shuffle(order)
    ours, theirs = summarize(sources), summarize(sources.select(np.array(order)))
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def make_forced(rows):
    """Forced sources of (object id, mjd, band, flux, err)."""
    forced = Catalog(DIA_FORCED_SOURCE_COLUMNS, len(rows))
    forced["dia_forced_source_id"] = np.arange(len(rows))
    names = ("dia_object_id", "midpoint_mjd_tai", "band", "psf_flux", "psf_flux_err")
    for name, values in zip(names, zip(*rows, strict=True), strict=True):
        forced[name] = values
    return forced


def test_forced_means_are_those_of_the_objects_own_measurements(make_points):
    objects = summarize(make_points([(1.0, "r", 1.0, 1.0)] * 3, dia_object_id=[4, 5, 6], ids=[1, 2, 3]))
    forced = make_forced(
        [
            (5, 1.0, "r", 10.0, 1.0),
            (5, 2.0, "r", 20.0, 2.0),
            (5, 3.0, "g", 7.0, 3.0),
            (5, 4.0, "r", np.nan, 1.0),
            (5, 5.0, "r", 99.0, 0.0),
            (6, 5.0, "i", -4.0, 2.0),
            (9, 5.0, "r", 1e9, 1.0),
        ]
    )
    fill_forced_means(objects, forced)
    assert objects["r_fp_flux_mean"][1] == pytest.approx((10 + 20 / 4) / 1.25)
    assert objects["r_fp_flux_mean_err"][1] == pytest.approx(1.25**-0.5)
    assert (objects["g_fp_flux_mean"][1], objects["g_fp_flux_mean_err"][1]) == (7.0, 3.0)
    assert objects["i_fp_flux_mean"].tolist()[2] == -4.0
    assert np.isnan(objects["r_fp_flux_mean"][[0, 2]]).all()
    assert np.isnan(objects["u_fp_flux_mean"]).all()


def test_forced_means_do_not_depend_on_the_order_of_rows(make_points):
    rng = np.random.default_rng(8)
    rows = [(5, mjd, "r", flux, err) for mjd, flux, err in rng.uniform(1, 2, (40, 3))]
    answers = set()
    for _ in range(5):
        objects = summarize(make_points([(1.0, "r", 1.0, 1.0)]))
        forced = make_forced(rows)
        forced["dia_forced_source_id"] = [int(1e6 * row[1]) for row in rows]
        fill_forced_means(objects, forced)
        answers.add((objects["r_fp_flux_mean"].tobytes(), objects["r_fp_flux_mean_err"].tobytes()))
        rng.shuffle(rows)
    assert len(answers) == 1


def test_the_latest_good_source_but_one_is_remembered(make_points):
    def repeated(rows, **columns):
        return summarize(make_points(rows, **columns))["repeated_mjd_tai"].tolist()

    curve = [(3.0, "r", 1.0, 1.0), (1.0, "g", 1.0, 1.0), (7.0, "r", 1.0, 1.0), (5.0, "i", 1.0, 1.0)]
    assert repeated(curve) == [5.0]
    assert repeated(curve, is_dipole=[False, False, False, True]) == [3.0]
    assert repeated(curve, dia_object_id=[1, 2, 1, 2]) == [3.0, 1.0]
    assert np.isnan(repeated(curve, dia_object_id=[1, 2, 3, 4])).all()
    assert np.isnan(repeated(curve, reliability=[0.1, 0.9, 0.1, 0.1])).all()
    assert repeated(curve, reliability=[np.nan, 0.1, 0.9, 0.1]) == [3.0]


def test_what_counts_as_good_follows_the_configuration(make_points):
    sources = make_points([(1.0, "r", 1.0, 1.0), (2.0, "r", 1.0, 1.0)], reliability=0.3)
    strict = summarize_objects(sources, NONE_BEFORE, validity_start_mjd_tai=61001.0)
    lax = summarize_objects(
        sources, NONE_BEFORE, validity_start_mjd_tai=61001.0, config=ForcedConfig(min_reliability=0.2)
    )
    assert np.isnan(strict["repeated_mjd_tai"][0])
    assert lax["repeated_mjd_tai"][0] == 1.0


def test_errors_of_a_mean_are_right_beside_the_pole(make_sources):
    # Two sources on opposite sides of the pole, both with an error along one line through it only.
    sources = make_sources([0.0, 0.0], [0.0, 0.0], dia_object_id=5, ra_err_deg=4e-5, dec_err_deg=1e-5)
    sources["ra_dec_cov_deg2"] = 0.0
    sources["ra_deg"], sources["dec_deg"] = [0.0, 90.0], 90.0 - np.array([2e-9, 1e-9])
    (row,) = summarize(sources).rows()
    # Seen from the mean, which is nearly due 30 degrees, one ellipse is turned by a right angle against the other.
    axes = np.linalg.eigvalsh(
        [[row["ra_err_deg"] ** 2, row["ra_dec_cov_deg2"]], [row["ra_dec_cov_deg2"], row["dec_err_deg"] ** 2]]
    )
    assert np.sqrt(axes) == pytest.approx([17**0.5 * 1e-5 / 2] * 2, rel=1e-4)
