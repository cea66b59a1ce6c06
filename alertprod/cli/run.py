"""``alertprod run``: the daemon."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from alertprod.config import load_config
from alertprod.logs import configure_logs


def run(
    config: Annotated[Path, typer.Option("--config", "-c", help="TOML file of the daemon.")],
) -> None:
    """Run the daemon until SIGTERM or SIGINT; then finish what is in flight and exit 0.

    Exit status: 0 stopped and drained, 2 the configuration cannot be used, 70 a Kafka client is finished for good
    (fenced by another daemon of the same identity, for example): restart it.
    """
    loaded = load_config(config)
    configure_logs(loaded.log, process="daemon")
    from alertprod.factory import create_daemon  # the science; `--help` can do without it

    daemon, server = create_daemon(loaded, source=str(config))
    daemon.install_signal_handlers()
    with server or nullcontext():
        status = daemon.run()
    raise typer.Exit(status)
