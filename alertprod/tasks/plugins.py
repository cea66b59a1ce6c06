"""Repositories and displays by entry point: tasks use what other packages, and higher layers of this one, announce.

Groups: `alertprod.repositories`, a callable ``(uri, *, output=None) -> Butler``; `alertprod.displays`, a callable
``(directory) -> Display``; `alertprod.reference_catalogs`, a callable ``(uri, *, columns, epoch_mjd_tai) ->
ReferenceLoader``.
"""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from alertprod.errors import ConfigError
from alertprod.tasks.protocols import Butler, Display
from alertprod.tasks.reference_loader import ReferenceLoader

REPOSITORIES = "alertprod.repositories"
DISPLAYS = "alertprod.displays"
REFERENCE_CATALOGS = "alertprod.reference_catalogs"

DEFAULT_REPOSITORY = "folder"
"""The kind of a repository whose name does not begin with one."""

DEFAULT_DISPLAY = "png"
"""Draws into files, which need no screen."""

DEFAULT_REFERENCE_CATALOG = "table"
"""Reads one table file."""


def open_repository(uri: str, *, output: str | None = None) -> Butler:
    """Open a repository.

    Parameters
    ----------
    uri
        "KIND:REST", where KIND is the name of an entry point; else a repository of `DEFAULT_REPOSITORY`.
    output
        Where datasets are put; in the repository itself by default.

    Raises
    ------
    ConfigError
        Raised if there is no such kind, or no repository.
    """
    kind, separator, rest = uri.partition(":")
    if not separator or kind not in entry_points(group=REPOSITORIES).names:
        kind, rest = DEFAULT_REPOSITORY, uri
    butler: Butler = load_plugin(REPOSITORIES, kind)(rest, output=output)
    return butler


def open_display(directory: str | Path) -> Display:
    """Open the display that draws into a folder.

    Raises
    ------
    ConfigError
        Raised if there is none.
    """
    display: Display = load_plugin(DISPLAYS, DEFAULT_DISPLAY)(Path(directory))
    return display


def open_reference_catalog(uri: str, *, columns: Mapping[str, str], epoch_mjd_tai: float | None) -> ReferenceLoader:
    """Open the reference catalogue that is one table file.

    Parameters
    ----------
    columns
        Names in the file of what is called otherwise there.
    epoch_mjd_tai
        Epoch of the positions, where the file has no column of it.

    Raises
    ------
    ConfigError
        Raised if there is none, or it cannot be read.
    """
    open_table = load_plugin(REFERENCE_CATALOGS, DEFAULT_REFERENCE_CATALOG)
    loader: ReferenceLoader = open_table(uri, columns=columns, epoch_mjd_tai=epoch_mjd_tai)
    return loader


def find_plugin(group: str, name: str) -> EntryPoint:
    """Return an entry point, which nothing is imported for.

    Raises
    ------
    ConfigError
        Raised if there is no such one.
    """
    found = entry_points(group=group)
    if name not in found.names:
        known = ", ".join(sorted(found.names)) or "none; is the package installed?"
        raise ConfigError(f"entry points {group}", name, f"there is no such one; there are: {known}")
    return found[name]


def load_plugin(group: str, name: str) -> Any:
    """Return what an entry point names.

    Raises
    ------
    ConfigError
        Raised if there is no such one, or it cannot be imported.
    """
    plugin = find_plugin(group, name)
    try:
        return plugin.load()
    except Exception as error:  # somebody else's module: whatever its import raises, it cannot be used
        raise ConfigError(f"entry points {group}", name, f"{type(error).__name__}: {error}") from error
