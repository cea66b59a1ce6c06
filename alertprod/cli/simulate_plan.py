"""``alertprod simulate plan``: what cameras need, from measured costs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from alertprod.cli.config import JsonOption
from alertprod.cli.console import out, print_json

if TYPE_CHECKING:
    from alertprod.sim.capacity import Plan

_DETECTORS = (1, 16, 64, 189)


def plan(
    detectors: Annotated[
        list[int] | None, typer.Option(min=1, max=10_000, help="Detectors of a camera; repeat for more.")
    ] = None,
    cadence_s: Annotated[float, typer.Option(min=1.0, help="Seconds from shutter to shutter.")] = 39.0,
    event_delay_s: Annotated[
        float, typer.Option(min=0.0, max=59.0, help="From a shutter's closing to its events.")
    ] = 10.0,
    alerts: Annotated[
        float, typer.Option(min=0.0, help="Alerts of an exposure. Default: Rubin's peak, 40 000 over 189 detectors.")
    ] = 40_000 / 189,
    workers_per_daemon: Annotated[int, typer.Option(min=1, help="At most: the cores of a host.")] = 16,
    costs: Annotated[
        Path | None, typer.Option(help="TOML file of costs, as measure_capacity.py of the tests' benchmarks writes it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Plan a fleet: cores, partitions, memory, network, database and disks that bring 98 % of the alerts within 60 s.

    The costs were measured on a machine that the file of costs names; measure yours. Exit status 1 where no fleet is
    quick enough.
    """
    from alertprod.sim.capacity import COSTS_PATH, Camera, Costs, make_plan

    loaded = Costs.load(costs or COSTS_PATH)
    plans = [
        make_plan(
            Camera(detectors=each, cadence_s=cadence_s, event_delay_s=event_delay_s, alerts=alerts),
            loaded,
            workers_per_daemon=workers_per_daemon,
        )
        for each in detectors or _DETECTORS
    ]
    if as_json:
        for each in plans:
            print_json(as_data(each))
        return
    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    for each in plans:
        table.add_column(f"{each.camera.detectors} detectors", justify="right")
    for name, *cells in make_rows(plans):
        table.add_row(name, *cells)
    out.print(table)


def make_rows(plans: "list[Plan]") -> list[tuple[str, ...]]:
    """Return the table of plans: a name and a cell a plan in each row."""
    rows = {
        "workers of one thread": [f"{each.fleet.all_workers}" for each in plans],
        "daemons x workers": [f"{each.fleet.daemons} x {each.fleet.workers}" for each in plans],
        "partitions of the events' topic": [f"{each.fleet.partitions}" for each in plans],
        "98 % acknowledged within, s": [f"{each.latency_98_s:.0f}" for each in plans],
        "cores: workers": [f"{each.worker_cores}" for each in plans],
        "cores: daemons and brokers": [f"{each.other_cores:.1f}" for each in plans],
        "memory, GB": [f"{each.memory_bytes / 1e9:.0f}" for each in plans],
        "exposures in, MB/s mean (burst)": [
            f"{each.network_in_bytes_per_s / 1e6:.0f} ({each.network_in_burst_bytes_per_s / 1e6:.0f})" for each in plans
        ],
        "templates of a new field, GB": [f"{each.network_field_bytes / 1e9:.1f}" for each in plans],
        "alerts out, MB/s, one copy": [f"{each.network_out_bytes_per_s / 1e6:.1f}" for each in plans],
        "Kafka's disks, TB": [f"{each.kafka_disk_bytes / 1e12:.2f}" for each in plans],
        "outbox, GB a night": [f"{each.outbox_disk_bytes_per_night / 1e9:.0f}" for each in plans],
        "database, million rows a night": [f"{each.database_rows_per_night / 1e6:.2f}" for each in plans],
        "database, GB a night": [f"{each.database_bytes_per_night / 1e9:.1f}" for each in plans],
        "database, transactions/s": [f"{each.transactions_per_s:.1f}" for each in plans],
        "use of workers": [f"{each.use['workers']:.0%}" for each in plans],
        "use of publishers": [f"{each.use['publishers']:.0%}" for each in plans],
        "use of SQLite's one writer": [f"{each.use[_SQLITE]:.0%}" for each in plans],
        "use of 10 Gbit/s": [f"{each.use[_NETWORK]:.0%}" for each in plans],
        "fails first as the camera grows": [_describe_first(each) for each in plans],
    }
    return [(name, *cells) for name, cells in rows.items()]


_SQLITE, _NETWORK = "SQLite's one writer", "a network of 10 Gbit/s"


def _describe_first(plan: "Plan") -> str:
    name, most = next(iter(plan.most_detectors.items()))
    return f"{name}, at {most}"


def as_data(plan: "Plan") -> dict[str, object]:
    """Return a plan as plain data."""
    from dataclasses import asdict

    return asdict(plan)
