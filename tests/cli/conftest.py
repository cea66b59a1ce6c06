"""The command line in this process: arguments in, exit status and text out."""

import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alertprod.cli import main
from alertprod.cli.console import err, out


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """Standard error on one line, however the console wrapped it."""
        return " ".join(self.err.split())

    @property
    def json(self) -> Any:
        """The one value on standard output."""
        (value,) = self.json_lines
        return value

    @property
    def json_lines(self) -> list[Any]:
        """One value a line; what strict readers refuse (NaN, Infinity) is refused."""
        return [json.loads(line, parse_constant=_refuse) for line in self.out.splitlines()]


def _refuse(constant: str) -> Any:
    msg = f"{constant} is not JSON"
    raise ValueError(msg)


RunCommand = Callable[..., Ran]


def _run(*arguments: object) -> Ran:
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(sys, "argv", ["alertprod", *map(str, arguments)])
        for console in (out, err):
            patch.setattr(console, "width", 200)
        with pytest.raises(SystemExit) as exited:
            main()
    return Ran(exited.value.code, stdout.getvalue(), stderr.getvalue())


@pytest.fixture(scope="session")
def alertprod() -> RunCommand:
    """``alertprod("config", "show")`` runs it; `main` included, since it gives errors their exit status."""
    return _run


@pytest.fixture
def write_config(tmp_path) -> Callable[..., Path]:
    """Write a configuration with the instrument ``simcam`` and more lines, and return its path."""

    def write(more: str = "", *, profile: str | Path = "rubin", instrument: str = "") -> Path:
        path = tmp_path / "alertprod.toml"
        path.write_text(f"[instruments.simcam]\nprofile = '{profile}'\n{instrument}\n{more}\n")
        return path

    return write
