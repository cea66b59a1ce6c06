"""A desk: one thread that does one thing after the other and reports into an inbox.

What may block (the database, the broker) is done at desks, so that the poll loop never does. A daemon thread: one
that hangs in a library does not keep the process from ending.
"""

import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a task: a value, or an error with its traceback."""

    subject: Any
    """What the task was given for: a job, a lane, a name."""

    value: Any = None
    error: Exception | None = None
    traceback: str = ""
    seconds: float = 0.0


Inbox = queue.SimpleQueue[Report]


class Desk:
    """One thread with a queue of tasks.

    Parameters
    ----------
    name
        Of the thread.
    inbox
        Where each task's report goes, once it is done.
    """

    def __init__(self, name: str, inbox: Inbox) -> None:
        self.name = name
        self._inbox = inbox
        self._busy_since: float | None = None
        self._tasks: queue.SimpleQueue[tuple[Any, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, subject: Any, task: Callable[[], Any]) -> None:
        """Do `task` after all that was submitted before."""
        self._tasks.put((subject, task))

    @property
    def busy_for_s(self) -> float:
        """Since when it is at its present task, seconds; 0 where it has none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self, *, timeout_s: float) -> bool:
        """Finish what was submitted and end; False where that takes longer than `timeout_s`."""
        self._tasks.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (entry := self._tasks.get()) is not None:
            subject, task = entry
            self._busy_since = started = time.monotonic()
            try:
                value = task()
            except Exception as error:  # noqa: BLE001 - handed over whole; the daemon's match decides
                seconds = time.monotonic() - started
                self._inbox.put(Report(subject, error=error, traceback=traceback.format_exc(), seconds=seconds))
            else:
                self._inbox.put(Report(subject, value=value, seconds=time.monotonic() - started))
            self._busy_since = None
