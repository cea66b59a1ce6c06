"""Tables for a terminal and a picture of how the cost grows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed.figures import PEERS, REACH, WHOLE, compute_ratio, describe_case
from benchmarks.speed.inputs import REFERENCE_SIDE
from benchmarks.speed.probes import GROUPS
from rich.table import Table

_SUMS = (*GROUPS, WHOLE, *PEERS)


def make_case_table(case: Mapping[str, Any]) -> Table:
    """Return the table of one case: seconds of each stage, and ratios to photutils of the same runs."""
    gib = case["peak_private_bytes"] / 2**30
    table = Table(
        title=f"{describe_case(case)}: {case['n_dia_sources']} DiaSources, {case['n_alerts']} alerts,"
        f" {gib:.2f} GiB private at most",
        title_justify="left",
    )
    table.add_column("stage")
    for name in ("CPU s", "median", "wall s", "median", "CPU/photutils", "reach", "wall/photutils", "reach"):
        table.add_column(name, justify="right")
    summary = case["stages"]
    for stage, costs in summary.items():
        cells = [f"{costs[key]:.3f}" for key in ("cpu_s", "cpu_s median", "wall_s", "wall_s median")]
        for clock in ("cpu_s", "wall_s"):
            ratio = compute_ratio(summary, stage, clock)
            reach = REACH.get((stage, clock)) if case["size"] == REFERENCE_SIDE else None
            cells += ["" if ratio is None else f"{ratio:.2f}", "" if reach is None else f"{reach:.2f}"]
        table.add_row(stage, *cells, style="bold" if stage in _SUMS else None)
    return table


def make_figures_table(title: str, figures: Mapping[str, float]) -> Table:
    """Return a table of figures by name."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.4g}")
    return table


def make_comparison_table(rows: list[tuple[str, float, float, float]], base: str) -> Table:
    """Return figures, those of the base and the ratios: below 1 what costs less now."""
    table = Table(title=f"beside {base}", title_justify="left")
    table.add_column("figure")
    for name in ("now", "then", "now/then"):
        table.add_column(name, justify="right")
    for name, value, stored, ratio in rows:
        table.add_row(name, f"{value:,.4g}", f"{stored:,.4g}", f"{ratio:.2f}")
    return table


def draw_growth(cases: list[Mapping[str, Any]], path: Path) -> None:
    """Draw CPU seconds against pixels and against DiaSources, with the straight line of proportional growth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2)
    panels = (
        (
            axes[0],
            "megapixels",
            [(case["size"] ** 2 / 1e6, case) for case in _vary(cases, "size")],
            (WHOLE, *GROUPS, *PEERS),
        ),
        (
            axes[1],
            "DiaSources",
            [(case["n_dia_sources"], case) for case in _vary(cases, "n_transients")],
            (WHOLE, "sources", "cutouts", "associate", "packets", "store"),
        ),
    )
    for axis, label, points, stages in panels:
        for stage in stages:
            drawn = sorted((x, case["stages"][stage]["cpu_s"]) for x, case in points if stage in case["stages"])
            if drawn:
                axis.plot(*zip(*drawn, strict=True), "o-", label=stage)
        if points:
            x = sorted(x for x, _ in points)
            first = min(points, key=lambda point: point[0])[1]["stages"][WHOLE]["cpu_s"]
            axis.plot([x[0], x[-1]], [first, first * x[-1] / max(x[0], 1e-9)], ":", color="gray", label="proportional")
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="CPU s")
        axis.grid(visible=True, alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _vary(cases: list[Mapping[str, Any]], what: str) -> list[Mapping[str, Any]]:
    """Return the cases that vary one thing and share the rest with the first case; sizes vary at one density."""
    first = cases[0]

    def others(case: Mapping[str, Any]) -> tuple[object, ...]:
        density = round(case["n_transients"] / case["size"] ** 2 * 1e9)
        return (case["threads"], density) if what == "size" else (case["threads"], case["size"])

    return [case for case in cases if others(case) == others(first)]
