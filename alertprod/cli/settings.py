"""The configuration, read when a command runs: its models take longer to import than all else that `--help` needs."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alertprod.config import DaemonConfig


def load_config(path: Path | None) -> "DaemonConfig":
    """Return the configuration of a file, or of defaults and the environment; see `alertprod.config.load_config`."""
    from alertprod.config import load_config as load

    return load(path)
