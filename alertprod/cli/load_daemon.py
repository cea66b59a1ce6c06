"""A daemon whose pipeline is a model of costs, as a process of its own: ``python -m alertprod.cli.load_daemon CONFIG MODEL``.

All else is what `alertprod run` makes of the same configuration, but that it stops when its standard input ends, and so with
whoever started it. Workers are spawned and so import this module again: it brings nothing in until it runs.
"""

import json
import sys
import threading
from contextlib import nullcontext
from pathlib import Path


def main(config_path: Path, model_path: Path) -> int:
    """Run until SIGTERM; return the daemon's exit status."""
    from alertprod.config import load_config
    from alertprod.factory import create_daemon
    from alertprod.logs import configure_logs
    from alertprod.sim.load_pipeline import LoadPipelineFactory, StageModel

    config = load_config(config_path)
    configure_logs(config.log, process="daemon")
    pipeline = LoadPipelineFactory(
        config.store.open_url(), config.store.outbox_uri, StageModel(**json.loads(model_path.read_text()))
    )
    daemon, server = create_daemon(config, source=str(config_path), pipeline=pipeline)
    daemon.install_signal_handlers()

    def stop_with_parent() -> None:
        sys.stdin.read()
        daemon.stop()

    threading.Thread(target=stop_with_parent, name="parent-watch", daemon=True).start()
    with server or nullcontext():
        return daemon.run()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
