"""What every command shares: where text goes, progress bars, JSON lines."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from alertprod._json import encode_json

out = Console(highlight=False, soft_wrap=True)
"""Results: standard output. Lines are left to the terminal to wrap: a path broken in two is no path for a program."""

err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress and remarks: standard error, so that results can be piped."""


def print_json(value: Any) -> None:
    """Write one JSON value on one line of standard output; NaN and infinity, which JSON has no word for, are null.

    At once: who follows alerts through a pipe is to see each as it comes, and not some hundred when a buffer is full.
    """
    print(encode_json(value), flush=True)


def count(n: int, noun: str) -> str:
    """Return a number of things as people say it: 1 alert, 2 alerts."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def print_beside(progress: Progress, text: str) -> None:
    """Print a line of results while a progress bar is shown; on a terminal that shows both, above the bar."""
    (progress.console if out.is_terminal and err.is_terminal else out).print(text, markup=False)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show progress on a terminal; say nothing where standard error is a file or a pipe."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=False, disable=not err.is_terminal) as progress:
        yield progress
