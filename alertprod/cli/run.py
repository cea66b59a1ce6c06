"""``alertprod run``: the daemon."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from alertprod.cli.console import err
from alertprod.cli.settings import load_config


def run(
    config: Annotated[Path, typer.Option("--config", "-c", help="TOML file of the daemon.")],
    check: Annotated[
        bool, typer.Option("--check", help="Do the start-up checks, say what is wrong or worth knowing, and exit.")
    ] = False,
) -> None:
    """Run the daemon until SIGTERM or SIGINT; then finish what is in flight and exit 0. SIGHUP reads the file again.

    Before it starts it looks at everything it needs: topics and their settings, the database's version, schemas in the
    registry, template tiles, disk space. All that is wrong is said at once.

    Exit status: 0 stopped and drained; 2 the configuration cannot be used, or a start-up check failed, somebody must mend
    something; 69 something needed to start (the database, for example) does not answer, start it again later; 70 a Kafka
    client is finished for good (fenced by another daemon of the same identity, for example), start it again.
    """
    from alertprod.logs import configure_logs  # what follows is for who runs it: `--help` can do without
    from alertprod.service.worker_server import start_worker_server

    loaded = load_config(config)
    configure_logs(loaded.log, process="daemon")
    if not check:
        # It imports the science for the workers beside our own import of it.
        start_worker_server(threads=loaded.workers.threads_per_worker)
    from alertprod.factory import check_start, create_daemon
    from alertprod.service.daemon import EXIT_AWAY
    from alertprod.service.start_checks import StartRefused

    try:
        if check:
            for remark in check_start(loaded, source=str(config)):
                err.print(f"{remark}", markup=False)
            err.print(f"{config}: ready to start", markup=False)
            return
        daemon, server = create_daemon(loaded, source=str(config), config_path=config)
    except StartRefused as refused:
        if not refused.is_away:
            raise
        err.print(f"alertprod: {refused}", markup=False, style="red")
        raise typer.Exit(EXIT_AWAY) from refused
    daemon.install_signal_handlers()
    with server or nullcontext():
        status = daemon.run()
    raise typer.Exit(status)
