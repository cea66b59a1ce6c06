"""What many runs come to: least and median, ratios to a peer of the same run, and to figures that were stored before."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.speed.probes import GROUPS, STAGES

CLOCKS = ("wall_s", "cpu_s")

PEERS = ("photutils", "hotpants")

WHOLE = "exposure"
"""All that a worker does for an exposure."""

REACH: Mapping[tuple[str, str], float] = {
    ("subtraction", "wall_s"): 2.5 / 6.7,
    ("subtraction", "cpu_s"): 4.5 / 5.7,
    ("sources", "wall_s"): 1.0 / 6.7,
    ("sources", "cpu_s"): 1.0 / 5.7,
    # Of an event to its commit; the daemon's own share of it is small.
    (WHOLE, "wall_s"): 5.0 / 6.7,
    (WHOLE, "cpu_s"): 8.0 / 5.7,
}
"""What is to be reached at 4096 x 4096 with 300 DiaSources, as ratio to photutils' constant kernel in the same run: seconds
over the peer's 6.7 s (5.7 s of CPU), all of one quiet machine."""

Summary = dict[str, dict[str, float]]
"""By stage, then ``wall_s``, ``cpu_s`` (each the least), ``wall_s median`` and ``cpu_s median``."""


def summarise(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> Summary:
    """Return least and median of each stage, of the groups that targets are set for, and of what no stage accounts for."""
    complete = [_with_groups(run) for run in runs]
    stages = list(dict.fromkeys(stage for run in complete for stage in run))
    result = {}
    for stage in stages:
        # A stage that was not gone through cost nothing.
        costs = {clock: [run.get(stage, {}).get(clock, 0.0) for run in complete] for clock in CLOCKS}
        result[stage] = {clock: min(costs[clock]) for clock in CLOCKS}
        result[stage] |= {f"{clock} median": median(costs[clock]) for clock in CLOCKS}
    return result


def _with_groups(run: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    def total(stages: Sequence[str]) -> dict[str, float]:
        return {clock: sum(run[stage][clock] for stage in stages if stage in run) for clock in CLOCKS}

    ordered: dict[str, Mapping[str, float]] = {stage: run[stage] for stage in STAGES if stage in run}
    if WHOLE in run:
        known = total(list(STAGES))
        ordered["other"] = {clock: run[WHOLE][clock] - known[clock] for clock in CLOCKS}
    ordered |= {group: total(stages) for group, stages in GROUPS.items()}
    return ordered | {name: run[name] for name in (WHOLE, *PEERS) if name in run}


def compute_ratio(summary: Summary, stage: str, clock: str, *, peer: str = "photutils") -> float | None:
    """Return a stage's least cost over a peer's of the same runs; None where the peer was not timed."""
    if peer not in summary or not summary[peer][clock] > 0:
        return None
    return summary[stage][clock] / summary[peer][clock]


def flatten(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield every figure that a comparison is made of, with its name; costs as ratio to photutils where it was timed."""
    for case in results.get("cases", ()):
        name, summary = describe_case(case), case["stages"]
        for stage in summary:
            for clock in CLOCKS:
                yield f"{name}, {stage}, {clock}", summary[stage][clock]
                ratio = compute_ratio(summary, stage, clock)
                if ratio is not None and stage not in PEERS:
                    yield f"{name}, {stage}, {clock} / photutils", ratio
        yield f"{name}, peak private bytes", case["peak_private_bytes"]
    for part in ("chain", "start cold", "start warm"):
        for clock in CLOCKS if part in results else ():
            yield f"{part}, {clock}", results[part][clock]
    for part in ("alerts", "association", "history"):
        for name, value in results.get(part, {}).items():
            yield f"{part}: {name}", value


def compare(results: Mapping[str, Any], base: Mapping[str, Any]) -> list[tuple[str, float, float, float]]:
    """Return name, figure, stored figure and their ratio, of every figure that both have."""
    stored = dict(flatten(base))
    return [(name, value, stored[name], value / stored[name]) for name, value in flatten(results) if stored.get(name)]


def describe_case(case: Mapping[str, Any]) -> str:
    """Return a case's name: the same for the same inputs, whatever comes of them."""
    return f"{case['size']}², {case['n_transients']} transients, {case['threads']} threads"
