"""Writes the tables of ``ops/capacity.md`` from the measured costs: ``python ops/make_capacity_page.py``; a test compares them."""

import dataclasses
import re
from pathlib import Path

from alertprod.cli.simulate_plan import make_rows
from alertprod.sim.capacity import COSTS_PATH, AlertCosts, Camera, Costs, DaemonCosts, ExposureCosts, make_plan

PAGE = Path(__file__).parent / "capacity.md"

_DETECTORS = (1, 16, 64, 189)
_QUIET_ALERTS = 10.0
"""Of an exposure: a small survey's."""

_UNITS = {
    "wall_s": ("s", 1.0), "cpu_s": ("s", 1.0), "spread": ("", 1.0), "memory_bytes": ("MB", 1e-6),
    "image_bytes": ("MB", 1e-6), "tile_bytes": ("MB", 1e-6), "tile_file_bytes": ("MB", 1e-6),
    "cpu_s_per_exposure": ("ms", 1e3), "cpu_s_per_alert": ("ms", 1e3), "publish_s_per_exposure": ("ms", 1e3),
    "publish_s_per_alert": ("ms", 1e3), "transactions_per_exposure": ("", 1.0), "store_s_per_exposure": ("ms", 1e3),
    "store_s_per_alert": ("ms", 1e3), "database_bytes_per_alert": ("bytes", 1.0), "broker_cpu_s_per_byte": ("s/GB", 1e9),
    "bytes": ("kB", 1e-3), "wire_ratio": ("", 1.0),
}  # fmt: skip
_MEANINGS = {
    "wall_s": "an exposure in a warm worker of one thread, on a core of its own",
    "cpu_s": "of a core for it",
    "spread": "scatter of the logarithm of an exposure's time, over a small night",
    "memory_bytes": "private memory of the process that measured, at its peak: a worker's, and what it held besides",
    "image_bytes": "an exposure's file",
    "tile_bytes": "decoded tiles in the cache, of one detector",
    "tile_file_bytes": "their files",
    "cpu_s_per_exposure": "the daemon's share of an exposure without alerts, its polling included",
    "cpu_s_per_alert": "the daemon's share of an alert: read from the outbox, compressed, produced",
    "publish_s_per_exposure": "a publication without alerts: one transaction",
    "publish_s_per_alert": "each alert in it",
    "transactions_per_exposure": "of the database: claim, store, settle, and a renewal of the lease (counted in the code)",
    "store_s_per_exposure": "history stored without alerts",
    "store_s_per_alert": "each alert's object, source and forced source",
    "database_bytes_per_alert": "of SQLite's file, indexes included",
    "broker_cpu_s_per_byte": "the broker's, for what is produced",
    "bytes": "an alert with a history of 20 sources and 20 forced ones",
    "wire_ratio": "of it is left on the wire, compressed",
}


def make_costs_table() -> str:
    """Return the table of the measured costs, with the command and the machine from the file's head."""
    costs = Costs.load()
    head = [line.removeprefix("# ") for line in COSTS_PATH.read_text(encoding="utf-8").splitlines()[1:3]]
    lines = [f"`{head[0]}` ({head[1]}):", "", "| cost | | |", "|---|---|---|"]
    for kind, values in ((ExposureCosts, costs.exposure), (DaemonCosts, costs.daemon), (AlertCosts, costs.alert)):
        for field in dataclasses.fields(kind):
            unit, factor = _UNITS[field.name]
            meaning = (
                "memory of a daemon" if kind is DaemonCosts and field.name == "memory_bytes" else _MEANINGS[field.name]
            )
            value = factor * getattr(values, field.name)
            lines.append(f"| `{field.name}` | {value:.3g} {unit}".rstrip() + f" | {meaning} |")
    return "\n".join(lines)


def make_plan_table(alerts: float | None = None) -> str:
    """Return the table of plans, for Rubin's peak of alerts by default."""
    costs = Costs.load()
    more = {} if alerts is None else {"alerts": alerts}
    plans = [make_plan(Camera(detectors=n, **more), costs) for n in _DETECTORS]
    lines = [
        "| | " + " | ".join(f"{n} detector{'s' * (n > 1)}" for n in _DETECTORS) + " |",
        "|---" * (1 + len(plans)) + "|",
    ]
    lines += ["| " + " | ".join(row) + " |" for row in make_rows(plans)]
    return "\n".join(lines)


def make_page(text: str) -> str:
    """Return the page with its tables made anew."""
    tables = {"costs": make_costs_table(), "plan": make_plan_table(), "quiet plan": make_plan_table(_QUIET_ALERTS)}
    for name, table in tables.items():
        text, n = re.subn(rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>{table}\n\g<2>", text, flags=re.DOTALL)
        if n != 1:
            raise ValueError(f"{PAGE}: {n} places for the table {name!r}")
    return text


if __name__ == "__main__":
    PAGE.write_text(make_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
