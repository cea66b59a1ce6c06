"""The process that worker processes are forked from: it has imported what they need, and done nothing else.

A fork of a process that has run compiled loops, FFTs or a Kafka client inherits locks and thread pools that do not work.
This one never does: it imports, single-threaded, and forks. So a worker is there in the time of a fork, its successor
after a crash too, and the import goes on beside the daemon's own start. Only what is light is imported here.
"""

import multiprocessing
from multiprocessing import forkserver
from typing import Final

from alertprod.config import limited_threads

CONTEXT: Final = multiprocessing.get_context("forkserver")
"""Where workers' processes and pipes come from."""

_UNDISTURBED: Final = "alertprod.service.undisturbed"
"""Imported there before everything else: the server goes with its parent, not when a whole group is told to stop."""

_PROGRAM: Final = ("__main__", "alertprod.factory")
"""The script that was started, which multiprocessing imports into every process, and all that a worker runs."""

CONTEXT.set_forkserver_preload([_UNDISTURBED])


def start_worker_server(*, threads: int) -> None:
    """Have the program imported from now on; without this the first worker starts a server that has imported nothing.

    Parameters
    ----------
    threads
        Of each worker: libraries read it where they are imported, which is in the server.
    """
    CONTEXT.set_forkserver_preload([_UNDISTURBED, *_PROGRAM])
    with limited_threads(threads):
        forkserver.ensure_running()
