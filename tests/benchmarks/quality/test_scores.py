"""Scores of planted catalogues and made noise, whose numbers are known, and what is judged of them."""

from dataclasses import replace

import numpy as np
import pytest
from benchmarks.peers import NotApplicable
from benchmarks.quality.command import choose_methods, choose_regimes, main, parse_seeds
from benchmarks.quality.methods import Outcome, compute_true_kernel, run_oracle
from benchmarks.quality.noise import MAX_LAG, Pulls, compute_correlation, compute_lags, compute_width
from benchmarks.quality.places import PLACES, make_regions
from benchmarks.quality.pool import Measure, pool
from benchmarks.quality.real import run_real, summarise_light_curves
from benchmarks.quality.render import make_field
from benchmarks.quality.scene import REGIMES, SceneParameters, make_scene
from benchmarks.quality.score import match_changes, score
from benchmarks.quality.targets import judge
from benchmarks.quality.truth import compute_truth
from rich.console import Console
from scipy.ndimage import gaussian_filter

from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog

FEW = SceneParameters(
    n_stars=3000, n_galaxies=1000, n_saturated=2, n_transients=300, least_transients=16, n_cosmic_rays=300,
    n_bad_columns=0, transient_snr=(12.0, 100.0), njy_per_count=5.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def made():
    return make_field(make_scene(8, 400, FEW))


@pytest.fixture(scope="module")
def truth(made):
    return compute_truth(made)


def plant(made, truth, *, which, scale=1.0, extra=()):
    """Return an outcome whose catalogue has the chosen changes, exactly, and further rows at (x, y)."""
    changes = made.scene.changes
    chosen = np.flatnonzero(which)
    sources = Catalog(DIA_SOURCE_COLUMNS, len(chosen) + len(extra))
    sources["x"] = np.append(changes.x[chosen], [x for x, _ in extra])
    sources["y"] = np.append(changes.y[chosen], [y for _, y in extra])
    sources["x_err"], sources["y_err"] = 0.1, 0.1
    sources["snr"] = 9.0
    njy = made.scene.parameters.njy_per_count * made.enclosed
    sources["psf_flux"] = np.append(changes.flux[chosen] * njy * scale, np.ones(len(extra)))
    sources["psf_flux_err"] = np.append(truth.noise[chosen] * njy, np.ones(len(extra)))
    difference = replace(made.science, masked_image=made.science.masked_image.copy())
    difference.masked_image.image -= made.model
    return Outcome(difference=difference, template=made.science, sources=sources, seconds=0.0, figures={})


def numbers(tally):
    return {m.name: m for m in pool([tally])}


def test_a_perfect_catalogue_is_complete_unbiased_and_has_nothing_false(made, truth):
    tally = score(made, truth, plant(made, truth, which=np.ones(len(truth.snr), dtype=bool)))
    got = numbers(tally)
    assert got["completeness > 20"].value == 1.0
    assert got["completeness 10-20"].value == 1.0
    assert got["false"].value == 0
    assert got["flux bias"].value == pytest.approx(0.0, abs=1e-6)
    assert got["centroid scatter / bound"].value == pytest.approx(0.0, abs=1e-4)


def test_missed_changes_and_wrong_fluxes_are_counted(made, truth):
    bright = np.flatnonzero((made.scene.changes.kind == "transient") & truth.measurable & (truth.snr > 20))
    which = np.ones(len(truth.snr), dtype=bool)
    which[bright[:2]] = False
    tally = score(made, truth, plant(made, truth, which=which, scale=1.03))
    n = int(tally.n_true[3])
    assert tally.n_found[3] == n - 2
    assert numbers(tally)["flux bias"].value == pytest.approx(0.03, abs=1e-6)
    assert sum(row.what == "missed" for row in tally.rows) == 2


def test_what_is_at_no_change_is_false_and_counted_where_it_lies(made, truth):
    regions = make_regions(made)
    changes = made.scene.changes
    extra = []
    for number in range(len(PLACES)):
        rows, columns = np.nonzero(regions.label == number)
        distance = np.hypot(columns[:, None] - changes.x, rows[:, None] - changes.y).min(axis=1)
        if (distance > 15).any():
            i = int(np.argmax(distance > 15))
            extra.append((float(columns[i]), float(rows[i])))
    assert len(extra) == len(PLACES)
    tally = score(made, truth, plant(made, truth, which=np.zeros(len(truth.snr), dtype=bool), extra=extra))
    assert tally.false == dict.fromkeys(PLACES, 1)
    assert sum(tally.place_area.values()) == pytest.approx(1.0)
    assert sum(row.what == "false" for row in tally.rows) == len(PLACES)


def test_a_second_source_at_a_change_is_a_fragment_and_not_false(made, truth):
    i = int(np.argmax(truth.snr))
    at = (float(made.scene.changes.x[i]) + 4.0, float(made.scene.changes.y[i]))
    tally = score(made, truth, plant(made, truth, which=np.ones(len(truth.snr), dtype=bool), extra=[at]))
    assert sum(tally.false.values()) == 0
    assert tally.n_duplicates == 1


def test_no_row_is_two_changes(made, truth):
    outcome = plant(made, truth, which=truth.snr > 30)
    match = match_changes(made, outcome.sources)
    rows = match[match >= 0]
    assert len(np.unique(rows)) == len(rows) == int((truth.snr > 30).sum())


def test_the_truth_subtracted_leaves_noise_as_claimed_and_every_bright_change(made, truth):
    outcome = run_oracle(made)
    tally = score(made, truth, outcome)
    got = numbers(tally)
    for name, expected in (("pull width, sky", 1.0), ("pull width, sources", 1.0), ("residual at bright stars", 1.0)):
        assert got[name].value == pytest.approx(expected, abs=5 * got[name].error)
    assert got["autocorrelation"].value < 6 * got["autocorrelation"].error
    assert got["completeness > 20"].value > 0.9
    assert got["flux bias"].value == pytest.approx(0.0, abs=5 * got["flux bias"].error)


def test_correlated_noise_is_seen_at_its_lags():
    noise = gaussian_filter(np.random.default_rng(1).normal(size=(400, 400)), 1.0)
    noise /= noise.std()
    lags = compute_lags(*compute_correlation(noise))
    # White noise through a Gaussian of sigma 1 correlates as exp(-lag^2 / 4).
    assert lags[0, MAX_LAG] == pytest.approx(1.0)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (2, -1)):
        assert lags[dy, dx + MAX_LAG] == pytest.approx(np.exp(-(dx * dx + dy * dy) / 4.0), abs=0.03)


def test_width_of_pulls_has_the_error_it_shows():
    rng = np.random.default_rng(2)
    widths = [compute_width(Pulls.of(rng.normal(size=4000))) for _ in range(200)]
    values, errors = np.array(widths).T
    assert values.mean() == pytest.approx(1.0, abs=0.005)
    assert errors.mean() == pytest.approx(values.std(), rel=0.2)


def test_a_kernel_that_does_not_exist_is_not_made_up():
    sharp = replace(REGIMES["sharper_science"], least_transients=5, n_stars=10, n_galaxies=10)
    with pytest.raises(NotApplicable, match="sharper"):
        compute_true_kernel(make_field(make_scene(1, 260, sharp)))


def make_measures(**values):
    return [Measure(name=name.replace("_", " "), value=v, error=e, n=n) for name, (v, e, n) in values.items()]


def test_targets_are_met_within_two_standard_errors_and_not_beyond():
    oracle = [
        Measure(name="completeness 7-10", value=1.0, error=0.01, n=400),
        Measure(name="false unflagged", value=6, error=2.4, n=6),
    ]
    ours = [
        Measure(name="completeness 7-10", value=0.96, error=0.01, n=400),
        Measure(name="false unflagged", value=60, error=7.7, n=60),
        Measure(name="pull width, sky", value=1.013, error=0.002, n=1e6),
        Measure(name="flux bias", value=0.003, error=0.001, n=300),
        Measure(name="autocorrelation", value=0.03, error=0.001, n=1e6),
        Measure(name="residual at bright stars", value=np.nan, error=np.nan, n=0),
    ]
    verdicts = judge(ours, oracle)
    assert {name: v.met for name, v in verdicts.items()} == {
        "completeness 7-10": False,
        "false unflagged": False,
        "pull width, sky": True,
        "flux bias": True,
        "autocorrelation": False,
        "residual at bright stars": None,
    }
    assert judge(ours, None)["completeness 7-10"].met is None


def test_one_transient_less_than_the_oracle_is_allowed():
    oracle = [Measure(name="completeness 5-7", value=20 / 27, error=0.1, n=27)]
    ours = [Measure(name="completeness 5-7", value=19 / 27, error=0.1, n=27)]
    assert judge(ours, oracle)["completeness 5-7"].met is True


def test_constant_stars_have_unit_chi_squared_and_variable_ones_more():
    rng = np.random.default_rng(4)
    errors = rng.uniform(1.0, 3.0, (300, 40))
    fluxes = rng.normal(size=errors.shape) * errors
    fluxes[:, 3] = np.nan
    for measure in summarise_light_curves(fluxes, errors, rng.uniform(10, 1000, 300)):
        assert measure.value == pytest.approx(1.0, abs=5 * measure.error)
    worse = summarise_light_curves(fluxes * 2.0, errors, rng.uniform(10, 1000, 300))
    assert min(m.value for m in worse) > 3.0


@pytest.mark.parametrize(
    ("text", "seeds"), [("7", [7]), ("1,2,5", [1, 2, 5]), ("11-13", [11, 12, 13]), ("1 4-5", [1, 4, 5])]
)
def test_seeds_are_read(text, seeds):
    assert parse_seeds(text) == seeds


def test_what_nobody_knows_is_refused_by_name():
    with pytest.raises(ValueError, match="no regime foggy"):
        choose_regimes("foggy", {})
    with pytest.raises(ValueError, match="no method magic"):
        choose_methods("magic", [])
    with pytest.raises(ValueError, match="NAME=JSON"):
        choose_methods("ours", ["half"])


def test_a_folder_that_is_absent_is_skipped_by_name(tmp_path, capsys):
    remarks = Console(stderr=True, width=500)
    assert run_real(tmp_path / "nothing", tmp_path, Console(), remarks) == 0
    assert "skipped" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run_real(tmp_path / "empty", tmp_path, Console(), remarks) == 0
    assert "eso085" in capsys.readouterr().err


def test_a_small_run_writes_table_pictures_and_numbers(tmp_path, capsys):
    arguments = [
        "--seeds", "3", "--size", "360", "--methods", "oracle", "--out", str(tmp_path),
        "--scene", '{"least_transients": 6}',
    ]  # fmt: skip
    assert main(arguments) == 0
    assert "completeness" in capsys.readouterr().out
    assert {"quality.json", "quality.html"} <= {path.name for path in tmp_path.iterdir()}
