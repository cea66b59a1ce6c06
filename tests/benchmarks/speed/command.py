"""The command line of the speed benchmark."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, find_commit
from benchmarks.speed.figures import compare, flatten, summarise
from benchmarks.speed.inputs import REFERENCE_SIDE
from benchmarks.speed.sheet import draw_growth, make_case_table, make_comparison_table, make_figures_table
from rich.console import Console

PARTS = ("exposure", "chain", "start", "alerts", "association", "history")

SEED = 1


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python tests/benchmarks/speed",
        description="Measure wall and CPU seconds of each stage of an exposure and of the whole way from event to committed "
        "alerts, memory, start-up, alerts a second, association and history, beside peers timed in the same run.",
        epilog="Writes speed-COMMIT.json and, where sizes or sources vary, growth.png into OUT. The first size is the one that "
        "sources and threads are varied at.",
    )
    parser.add_argument("--sizes", default="4096", metavar="N,…", help="sides of the exposure, pixels (default 4096)")
    parser.add_argument(
        "--sources",
        default="400",
        metavar="N,…",
        help=f"transients in {REFERENCE_SIDE}²; sizes keep the density (default 400)",
    )
    parser.add_argument("--threads", default="2", metavar="N,…", help="threads of the worker (default 2)")
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="measured runs, after one to warm up (default 3)"
    )
    parser.add_argument("--parts", default="all", metavar="NAMES", help=f"all, or of: {', '.join(PARTS)}")
    parser.add_argument("--no-peers", action="store_true", help="leave photutils and HOTPANTS out")
    parser.add_argument(
        "--alerts", type=int, default=1000, metavar="N", help="alerts of the part alerts (default 1000)"
    )
    parser.add_argument("--kafka", action="store_true", help="the part alerts produces to a real Kafka")
    parser.add_argument("--objects", type=int, default=50_000, metavar="N", help="of the part history (default 50000)")
    parser.add_argument("--database", metavar="URL", help="of the part history; a SQLite file of its own by default")
    parser.add_argument("--postgres", action="store_true", help="the part history has a PostgreSQL of its own")
    parser.add_argument(
        "--out", type=Path, default=Path(".cache/speed"), metavar="OUT", help="folder (default .cache/speed)"
    )
    parser.add_argument("--base", metavar="FILE|COMMIT", help="print ratios to the figures stored there")
    parser.add_argument(
        "--only-compare", action="store_true", help="measure nothing: compare the newest figures in OUT with --base"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = parse_arguments(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=160)
    remarks = Console(stderr=True)
    options.out.mkdir(parents=True, exist_ok=True)
    # Read before anything is written: the base may be of this very commit.
    base = None if options.base is None else load_figures(options.base, options.out)
    if options.only_compare:
        results = json.loads(max(options.out.glob("speed-*.json"), key=lambda path: path.stat().st_mtime).read_text())
    else:
        results = {"machine": describe_machine()}
        path = options.out / f"speed-{results['machine']['commit']}.json"
        console.print(make_machine_line(results["machine"]), markup=False)
        for part, figures in measure(options, remarks):
            if part == "case":
                results.setdefault("cases", []).append(figures)
                console.print(make_case_table(figures))
            else:
                results[part] = figures
                console.print(make_figures_table(part, figures))
            # After each part: a long run that is stopped has what it had.
            path.write_text(json.dumps(results, indent=2), encoding="utf-8")
        if len(results.get("cases", ())) > 1:
            draw_growth(results["cases"], options.out / "growth.png")
        remarks.print(f"written to {path}", markup=False)
    if base is not None:
        console.print(make_comparison_table(compare(results, base), options.base))
    return 0


def measure(options: argparse.Namespace, remarks: Console) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure the parts that are asked for, one after the other; yields names and figures."""
    parts = list(PARTS) if options.parts == "all" else parse_list(options.parts)
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        msg = f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}"
        raise ValueError(msg)
    sizes, sources, threads = (
        [int(value) for value in parse_list(text)] for text in (options.sizes, options.sources, options.threads)
    )
    inputs_folder = options.out / "inputs"
    if "exposure" in parts:
        for size, n_transients, n_threads in choose_cases(sizes, sources, threads):
            remarks.print(f"{size}², {n_transients} transients, {n_threads} threads", markup=False)
            yield "case", measure_case(inputs_folder, size, n_transients, n_threads, options)
    if {"chain", "start"} & set(parts):
        from benchmarks.speed.chain import measure_chain, measure_start
        from benchmarks.speed.inputs import make_inputs

        size, n_transients, n_threads = choose_cases(sizes, sources, threads)[0]
        inputs = make_inputs(inputs_folder, size=size, n_transients=n_transients, seed=SEED)
        if "chain" in parts:
            found = measure_chain(inputs, threads=n_threads, repeat=options.repeat)
            costs = summarise([{"exposure": run} for run in found["runs"]])["exposure"]
            n_alerts = found["runs"][-1]["n_alerts"]
            yield (
                "chain",
                {
                    **costs,
                    "alerts": n_alerts,
                    "alerts a CPU second": n_alerts / costs["cpu_s"],
                    "peak_private_bytes": found["peak_private_bytes"],
                },
            )
        if "start" in parts:
            for kind, runs in measure_start(inputs, threads=n_threads, repeat=options.repeat).items():
                yield f"start {kind}", summarise([{"exposure": run} for run in runs])["exposure"]
    if "alerts" in parts:
        from benchmarks.measure_alerts import measure_alerts

        yield "alerts", measure_alerts(options.alerts, 20, kafka=options.kafka)
    if "association" in parts:
        from benchmarks.speed.association import measure_association

        yield "association", measure_association(5000, 20_000, 10)
    if "history" in parts:
        yield "history", measure_stored_history(options)


def choose_cases(sizes: list[int], sources: list[int], threads: list[int]) -> list[tuple[int, int, int]]:
    """Return (size, transients, threads): all sizes, then other numbers of sources and of threads at the first size."""

    def count(n: int, size: int) -> int:
        return max(1, round(n * (size / REFERENCE_SIDE) ** 2))

    cases = [(size, count(sources[0], size), threads[0]) for size in sizes]
    cases += [(sizes[0], count(n, sizes[0]), threads[0]) for n in sources[1:]]
    cases += [(sizes[0], count(sources[0], sizes[0]), n) for n in threads[1:]]
    return list(dict.fromkeys(cases))


def measure_case(
    inputs_folder: Path, size: int, n_transients: int, threads: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure one case in a process of its own, whose libraries have as many threads as it says."""
    from benchmarks.speed.worker import Case

    from alertprod.config import limited_threads

    with tempfile.TemporaryDirectory(prefix="alertprod-bench-") as folder:
        case = Case(
            inputs=str(inputs_folder.resolve()), directory=folder, size=size, n_transients=n_transients, seed=SEED,
            threads=threads, repeat=options.repeat, peers=not options.no_peers,
        )  # fmt: skip
        with limited_threads(threads):
            environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.speed.worker", json.dumps(asdict(case))],
                env=environment, stdout=subprocess.PIPE, check=True,
            )  # fmt: skip
    # Warnings of the log go before the last line, which is the result.
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        "size": size,
        "n_transients": n_transients,
        "threads": threads,
        "stages": summarise(found["runs"]),
        **{name: found[name] for name in ("n_dia_sources", "n_alerts", "peak_private_bytes")},
    }


def measure_stored_history(options: argparse.Namespace) -> dict[str, float]:
    """Measure reading and associating from a store that is full."""
    from benchmarks.speed.history import measure_history, postgres

    with tempfile.TemporaryDirectory(prefix="alertprod-bench-") as folder:
        url = options.database or f"sqlite:///{folder}/history.db"
        with postgres() if options.postgres else nullcontext(url) as where:
            return measure_history(where, n_objects=options.objects, sources_each=10)


def load_figures(base: str, out: Path) -> dict[str, Any]:
    """Return stored figures: of a file, or of a commit whose file is in `out`.

    Raises
    ------
    FileNotFoundError
        Raised if there are none.
    """
    path = Path(base)
    if not path.is_file():
        path = out / f"speed-{find_commit(base)}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if not dict(flatten(found)):
        msg = f"{path} has no figures"
        raise ValueError(msg)
    return found


def make_machine_line(machine: Mapping[str, Any]) -> str:
    """Return what figures are worth nothing without."""
    return ", ".join(f"{name} {value}" for name, value in machine.items())


def parse_list(text: str) -> list[str]:
    """Split at commas and blanks."""
    return text.replace(",", " ").split()
