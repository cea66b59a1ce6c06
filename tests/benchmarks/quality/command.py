"""The command line of the quality benchmark."""

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from benchmarks.machine import find_commit
from benchmarks.peers import NotApplicable
from benchmarks.quality.methods import METHODS, Method, make_method
from benchmarks.quality.pool import pool
from benchmarks.quality.real import run_real
from benchmarks.quality.render import make_field
from benchmarks.quality.scene import REGIMES, SceneParameters, make_scene
from benchmarks.quality.score import Tally, score
from benchmarks.quality.sheet import Section, cut_pictures, make_table, save_contact_sheets, to_html, to_json
from benchmarks.quality.targets import judge
from benchmarks.quality.truth import compute_truth
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from alertprod import __version__
from alertprod.errors import AlertprodError

_DEFAULT_METHODS = ("ours", "oracle", "perfect", "photutils", "hotpants")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python tests/benchmarks/quality",
        description="Measure completeness, false detections, noise, fluxes and positions on simulated fields of fresh seeds, "
        "side by side with what is best possible and with other programs; or, with --real, on real images.",
        epilog="Writes quality.json, quality.html and pictures of every false and every missed source into OUT. Exit status 1 "
        "where a target of ours is missed by more than two standard errors.",
    )
    parser.add_argument(
        "--seeds", default="1", metavar="SEEDS", help="seeds of the fields: 7 or 1,2,5 or 11-15 (default 1)"
    )
    parser.add_argument("--size", type=int, default=1024, metavar="N", help="side of the images, pixels (default 1024)")
    parser.add_argument(
        "--regimes", default="ordinary", metavar="NAMES", help=f"all, or of: {', '.join(REGIMES)} (default ordinary)"
    )
    parser.add_argument(
        "--methods",
        default=",".join(_DEFAULT_METHODS),
        metavar="NAMES",
        help=f"of: {', '.join(METHODS)} (default {','.join(_DEFAULT_METHODS)}; what is not installed is left out and named)",
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help='a further method: ours with settings of the task, as name={"detection.thresholdValue": 6}; can be repeated',
    )
    parser.add_argument(
        "--scene",
        default="{}",
        metavar="JSON",
        help='changes of the scene\'s parameters in every regime, as {"n_stars": 8000}',
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(".cache/quality"),
        metavar="OUT",
        help="folder of the results (default .cache/quality)",
    )
    parser.add_argument(
        "--all", action="store_true", dest="everything", help="show the methods' own figures in the table too"
    )
    parser.add_argument("--real", type=Path, metavar="DATA", help="measure on the real images of this folder instead")
    return parser.parse_args(arguments)


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of ``7``, ``1,2,5`` or ``11-15``."""
    seeds: list[int] = []
    for part in text.replace(" ", ",").split(","):
        if not part:
            continue
        first, separator, last = part.partition("-")
        seeds += range(int(first), int(last) + 1) if separator else [int(first)]
    if not seeds:
        msg = f"no seeds in {text!r}"
        raise ValueError(msg)
    return seeds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 where a target of ours is not met."""
    options = parse_arguments(arguments)
    remarks = Console(stderr=True)
    # A pipe has no width: nothing is cut off there.
    console = Console() if sys.stdout.isatty() else Console(width=220)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.real is not None:
        return run_real(options.real, options.out, console, remarks)
    seeds = parse_seeds(options.seeds)
    regimes = choose_regimes(options.regimes, json.loads(options.scene))
    methods = choose_methods(options.methods, options.variant)
    meta = describe_run(seeds, options.size)
    sections, pictures = [], []
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=remarks, disable=not remarks.is_terminal,
    ) as progress:  # fmt: skip
        bar = progress.add_task("", total=len(regimes) * len(seeds) * (len(methods) + 1))
        for regime, parameters in regimes.items():
            tallies: dict[str, list[Tally]] = {name: [] for name in methods}
            for seed in seeds:
                progress.update(bar, description=f"{regime}, seed {seed}: drawing")
                made = make_field(make_scene(seed, options.size, parameters))
                truth = compute_truth(made)
                progress.advance(bar)
                for name, method in methods.items():
                    progress.update(bar, description=f"{regime}, seed {seed}: {name}")
                    try:
                        outcome = method(made)
                    except (NotApplicable, AlertprodError) as error:
                        remarks.print(f"{regime}, seed {seed}, {name}: {error}", markup=False)
                        progress.advance(bar)
                        continue
                    tally = score(made, truth, outcome)
                    tallies[name].append(tally)
                    pictures += cut_pictures(made, outcome, tally.rows, regime=regime, method=name)
                    progress.advance(bar)
            sections += judge_regime(regime, tallies)
            console.print(
                make_table(regime, [s for s in sections if s.regime == regime], everything=options.everything)
            )
            # After each regime: a long run that is stopped has what it had.
            (options.out / "quality.json").write_text(to_json(sections, meta), encoding="utf-8")
    (options.out / "quality.html").write_text(to_html(sections, pictures, meta), encoding="utf-8")
    save_contact_sheets(pictures, options.out)
    remarks.print(f"written to {options.out}/quality.html and quality.json", markup=False)
    missed = [v for s in sections if s.method == "ours" for v in s.verdicts.values() if v.met is False]
    return 1 if missed else 0


def choose_regimes(text: str, changes: dict[str, object]) -> dict[str, SceneParameters]:
    """Return the regimes of a comma-separated list with changed parameters.

    Raises
    ------
    ValueError
        Raised if there is no such regime.
    """
    names = list(REGIMES) if text == "all" else [name for name in text.replace(" ", ",").split(",") if name]
    unknown = sorted(set(names) - set(REGIMES))
    if unknown or not names:
        msg = f"there is no regime {', '.join(unknown) or 'in an empty list'}; there are {', '.join(REGIMES)}"
        raise ValueError(msg)
    return {name: replace(REGIMES[name], **changes) for name in names}


def choose_methods(text: str, variants: Sequence[str]) -> dict[str, Method]:
    """Return methods by name: those listed and the variants of ours."""
    methods = {name: make_method(name) for name in text.replace(" ", ",").split(",") if name}
    for variant in variants:
        name, separator, overrides = variant.partition("=")
        if not separator:
            msg = f"--variant {variant}: NAME=JSON is needed"
            raise ValueError(msg)
        methods[name] = make_method(name, json.loads(overrides))
    return methods


def judge_regime(regime: str, tallies: dict[str, list[Tally]]) -> list[Section]:
    """Pool each method's fields and compare with the targets; ours and its variants are judged, the others shown."""
    measures = {name: pool(mine) for name, mine in tallies.items() if mine}
    return [
        Section(
            regime=regime,
            method=name,
            measures=mine,
            verdicts=judge(mine, measures.get("oracle")) if name != "oracle" else {},
            n_fields=len(tallies[name]),
        )
        for name, mine in measures.items()
    ]


def describe_run(seeds: Sequence[int], size: int) -> dict[str, object]:
    """Return what one must know to run it again."""
    return {
        "alertprod": __version__,
        "commit": find_commit(),
        "numpy": np.__version__,
        "machine": platform.processor() or platform.machine(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seeds": ",".join(map(str, seeds)),
        "size": size,
    }
