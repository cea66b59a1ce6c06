"""The benchmark runs, and its arithmetic is right; it times nothing here."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from benchmarks.speed import command
from benchmarks.speed.figures import compare, compute_ratio, summarise
from benchmarks.speed.probes import GROUPS, STAGES
from benchmarks.speed.sheet import draw_growth
from benchmarks.speed.worker import Case, measure


@pytest.fixture
def in_this_process(monkeypatch):
    """What the benchmark does in processes of their own, done here: their start alone takes seconds."""

    def make_pool(max_workers, mp_context):
        return ThreadPoolExecutor(1)

    monkeypatch.setattr("alertprod.sim.night.ProcessPoolExecutor", make_pool)

    def measure_case(inputs_folder, size, n_transients, threads, options):
        directory = options.out / f"run-{size}-{n_transients}-{threads}"
        directory.mkdir()
        case = Case(
            inputs=str(inputs_folder), directory=str(directory), size=size, n_transients=n_transients, seed=1,
            threads=threads, repeat=options.repeat, peers=not options.no_peers,
        )  # fmt: skip
        return {
            "size": size, "n_transients": n_transients, "threads": threads, **(found := measure(case)),
            "stages": summarise(found.pop("runs")),
        }  # fmt: skip

    monkeypatch.setattr(command, "measure_case", measure_case)


def test_an_exposure_is_measured_stage_by_stage(tmp_path, in_this_process, capsys):
    arguments = ["--sizes", "256", "--sources", "6000", "--threads", "1", "--repeat", "1", "--parts", "exposure"]
    arguments += ["--no-peers", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    (path,) = tmp_path.glob("speed-*.json")
    stored = json.loads(path.read_text())
    (case,) = stored["cases"]
    assert set(case["stages"]) == {*STAGES, *GROUPS, "other", "exposure"}
    assert case["n_alerts"] > 0
    assert case["peak_private_bytes"] > 0
    whole = case["stages"]["exposure"]["cpu_s"]
    # No stage counts another's time too; the clock ticks in microseconds.
    assert sum(case["stages"][stage]["cpu_s"] for stage in (*STAGES, "other")) == pytest.approx(whole, abs=1e-4)
    assert case["stages"]["other"]["cpu_s"] > -1e-4
    assert "fit kernel" in capsys.readouterr().out
    assert command.main(["--only-compare", "--out", str(tmp_path), "--base", str(path)]) == 0
    assert {ratio for *_, ratio in compare(stored, stored)} == {1.0}


def make_runs(*subtract_s: float) -> list[dict[str, dict[str, float]]]:
    both = [{"wall_s": 2 * seconds, "cpu_s": seconds} for seconds in subtract_s]
    peer, rest = {"wall_s": 8.0, "cpu_s": 4.0}, {"wall_s": 1.0, "cpu_s": 0.5}
    return [
        {"subtract": one, "detect": rest, "exposure": {"wall_s": one["wall_s"] + 2.0, "cpu_s": one["cpu_s"] + 1.0}, "photutils": peer}
        for one in both
    ]  # fmt: skip


def test_least_and_median_ratios_and_what_no_stage_accounts_for():
    summary = summarise(make_runs(3.0, 1.0, 2.0))
    assert summary["subtract"] == {"wall_s": 2.0, "cpu_s": 1.0, "wall_s median": 4.0, "cpu_s median": 2.0}
    assert summary["other"]["cpu_s"] == pytest.approx(0.5)
    assert summary["subtraction"]["wall_s"] == 2.0
    assert compute_ratio(summary, "subtract", "cpu_s") == 0.25
    assert compute_ratio(summary, "subtract", "cpu_s", peer="hotpants") is None


def make_case(size: int, n: int, summary) -> dict[str, object]:
    return {
        "size": size, "n_transients": n, "threads": 2, "stages": summary, "n_dia_sources": n, "n_alerts": n,
        "peak_private_bytes": 1,
    }  # fmt: skip


def test_a_comparison_has_ratios_of_what_both_have_measured():
    now = {"cases": [make_case(64, 1, summarise(make_runs(1.0)))], "alerts": {"a second": 30.0, "new": 1.0}}
    then = {"cases": [make_case(64, 1, summarise(make_runs(4.0)))], "alerts": {"a second": 10.0}}
    ratios = {name: ratio for name, _, _, ratio in compare(now, then)}
    assert ratios["64², 1 transients, 2 threads, subtract, cpu_s"] == 0.25
    assert ratios["64², 1 transients, 2 threads, subtract, cpu_s / photutils"] == 0.25
    assert ratios["64², 1 transients, 2 threads, photutils, cpu_s"] == 1.0
    assert ratios["alerts: a second"] == 3.0
    assert "alerts: new" not in ratios


def test_sizes_keep_the_density_and_the_others_the_first_size():
    assert command.choose_cases([4096, 2048], [400, 4000], [2, 1]) == [
        (4096, 400, 2), (2048, 100, 2), (4096, 4000, 2), (4096, 400, 1),
    ]  # fmt: skip


def test_the_growth_is_drawn(tmp_path: Path):
    summary = summarise(make_runs(1.0))
    cases = [make_case(64, 4, summary), make_case(128, 16, summary), make_case(64, 40, summary)]
    draw_growth(cases, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_figures_that_are_not_there_are_missed_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="speed-"):
        command.load_figures("no-such-commit", tmp_path)
