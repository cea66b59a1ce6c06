"""``alertprod simulate``: a night of a small camera on disk, with the truth; the load of a large one; what it needs.

``alertprod simulate DIR`` is short for ``alertprod simulate night DIR``.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from alertprod.cli.config import JsonOption
from alertprod.cli.console import err, out, print_json, progress_bar
from alertprod.cli.simulate_load import load
from alertprod.cli.simulate_plan import plan


class _NightByDefault(TyperGroup):
    """Takes what is no command of its own for the folder of a night, or for its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["night", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_NightByDefault,
    help="Simulate a night of a small camera (`alertprod simulate DIR`), the load of a large one, or plan for it.",
    no_args_is_help=True,
)


@app.command("night")
def night(
    directory: Annotated[Path, typer.Argument(help="Folder to fill; made when absent.")],
    visits: Annotated[int, typer.Option(min=1, help="Number of visits.")] = 7,
    detectors: Annotated[int, typer.Option(min=1, help="Detectors of the camera, side by side.")] = 2,
    size: Annotated[int, typer.Option(min=128, help="Side of a detector, pixels.")] = 1024,
    seed: Annotated[int, typer.Option(help="Everything follows from it.")] = 1,
    cadence_s: Annotated[float, typer.Option(min=1.0, help="Seconds from visit to visit.")] = 40.0,
    processes: Annotated[int, typer.Option(min=1, help="Processes that render.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Simulate a night: exposures, overlapping template tiles on another pixel grid, events and the truth."""
    from alertprod.sim.night import NightConfig, make_night  # compiled loops: only where a sky is drawn

    config = NightConfig(seed=seed, n_visits=visits, n_detectors=detectors, size=size, cadence_s=cadence_s)
    with progress_bar() as progress:
        bar = progress.add_task("Simulating", total=None)

        def advance(done: int, total: int, what: str) -> None:
            progress.update(bar, completed=done, total=total, description=f"Simulating ({what})")

        made = make_night(directory, config, processes=processes, progress=advance)
    facts = {
        "directory": str(directory),
        "exposures": visits * detectors,
        "template_tiles": len(list(made.tiles())),
        "events": str(directory / "events.jsonl"),
        "truth": str(directory / "truth.ecsv"),
    }
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        out.print(f"{name.replace('_', ' ')}: {value}", markup=False)
    err.print(f"next: alertprod templates index {made.templates_directory}", markup=False)


app.command("load")(load)
app.command("plan")(plan)
