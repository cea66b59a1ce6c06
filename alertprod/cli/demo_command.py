"""``alertprod demo``: its options; the demonstration itself brings in most of the package and is loaded when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from alertprod.cli.config import JsonOption


def demo(
    directory: Annotated[Path, typer.Option("--directory", "-d", help="Folder for everything it makes.")] = Path(
        "demo-night"
    ),
    visits: Annotated[int, typer.Option(min=1, help="Visits of the night.")] = 7,
    detectors: Annotated[int, typer.Option(min=1, help="Detectors of the camera.")] = 2,
    size: Annotated[int, typer.Option(min=512, help="Side of a detector, pixels.")] = 1024,
    seed: Annotated[int, typer.Option(help="The night follows from it.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Run a small simulated night: events through Kafka and the daemon, alerts back, held against the truth.

    Needs no service: the broker is librdkafka's in-process one, the database SQLite. Exit status 1, with the reason,
    where an exposure was not published, an alert was lost, or the daemon did not stop cleanly.
    """
    from alertprod.cli.demo import run_demo
    from alertprod.service.clock import Clock
    from alertprod.sim.night import NightConfig

    config = NightConfig(seed=seed, n_visits=visits, n_detectors=detectors, size=size, start_mjd_tai=Clock().mjd_tai())
    raise typer.Exit(run_demo(directory, config, as_json=as_json))
