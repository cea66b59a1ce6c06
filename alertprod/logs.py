"""Log lines: one JSON object each (or coloured text for a human), on standard error, in UTC.

What the levels mean:

========  ====================================================================================================
debug     What one would want while chasing a defect; nobody reads it otherwise.
info      An exposure moved on, the daemon started, stopped, or was given a partition. Nothing to do.
warning   Something went wrong that the daemon deals with itself: a retry, a dead letter, a killed worker.
          Many of them are somebody's business tomorrow.
error     A bug (the traceback is in the line), or something an operator has to mend now.
critical  The daemon stops because of it.
========  ====================================================================================================

Every line about an exposure has ``instrument``, ``visit`` and ``detector``, in worker processes too, whichever
library wrote it: `bind_exposure` puts them into the context that every line is made from.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

import structlog

_NOISY_LIBRARIES = ("alembic", "matplotlib", "numba", "fsspec", "asyncio", "botocore", "aiobotocore", "urllib3")
"""Their debug and info lines are about themselves."""


class LogSettings(Protocol):
    """What `alertprod.config.LogConfig` says."""

    @property
    def level(self) -> str:
        """``debug``, ``info``, ``warning`` or ``error``."""
        ...

    @property
    def format(self) -> str:
        """``json`` or ``console``."""
        ...


def configure_logs(config: LogSettings, *, stream: TextIO | None = None, **facts: str) -> None:
    """Send every line of structlog and of the standard library through one formatter.

    Parameters
    ----------
    config
        Level and format.
    stream
        Where lines go; None: standard error as it is at the time of each line.
    facts
        Put into every line of this process, for example ``process="worker-2"``.

    Notes
    -----
    Process-wide, and meant to be called once in each process; a second call replaces the first.
    """
    level = getattr(logging, config.level.upper())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _Facts(facts),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    rendering: list[structlog.typing.Processor]
    if config.format == "json":
        rendering = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        is_terminal = (stream or sys.stderr).isatty()
        rendering = [
            structlog.dev.ConsoleRenderer(
                colors=is_terminal,
                timestamp_key="time",
                exception_formatter=structlog.dev.plain_traceback,  # the other one prints locals: passwords, arrays
            )
        ]
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _LineHandler)]:
        root.removeHandler(handler)
    handler = _LineHandler(stream)
    handler.setFormatter(formatter)
    root.addHandler(handler)
    root.setLevel(level)
    for name in _NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # a module's logger must follow a later configure_logs
    )


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module."""
    return structlog.stdlib.get_logger(name)


@contextmanager
def bind_exposure(*, instrument: str, visit: int, detector: int, **facts: Any) -> Iterator[None]:
    """Put an exposure's name into every line written within, by this thread."""
    with structlog.contextvars.bound_contextvars(instrument=instrument, visit=visit, detector=detector, **facts):
        yield


class _Facts:
    """Adds the facts of a process to its lines; what the line says itself wins."""

    def __init__(self, facts: dict[str, str]) -> None:
        self._facts = facts

    def __call__(self, _logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        for key, value in self._facts.items():
            event.setdefault(key, value)
        return event


class _LineHandler(logging.StreamHandler[TextIO]):
    """Writes to a given stream, or to the `sys.stderr` of the moment: test runners and terminals exchange it."""

    def __init__(self, stream: TextIO | None) -> None:
        self._given = stream
        super().__init__(stream)

    @property
    def stream(self) -> TextIO:
        """Where the next line goes."""
        return self._given if self._given is not None else sys.stderr

    @stream.setter
    def stream(self, _value: TextIO) -> None:
        """Ignore what the base class sets: `stream` is looked up."""
