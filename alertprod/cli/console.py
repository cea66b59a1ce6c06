"""What every command shares: where text goes, progress bars, JSON lines."""

import json
import math
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

out = Console(highlight=False, soft_wrap=True)
"""Results: standard output. Lines are left to the terminal to wrap: a path broken in two is no path for a program."""

err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress and remarks: standard error, so that results can be piped."""


def print_json(value: Any) -> None:
    """Write one JSON value on one line of standard output; NaN and infinity, which JSON has no word for, are null."""
    print(json.dumps(_without_nan(value), default=str, allow_nan=False))


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return value


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
