"""What a Butler repository must be told once: our storage classes, and the formatters that read and write them.

It lies in the repository's own ``butler.yaml``, so that every program that opens the repository knows, whoever runs it.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from alertprod.butler import CATALOG, EXPOSURE
from alertprod.errors import ConfigError

CONFIG_NAME = "butler.yaml"
"""The file that makes a folder a Butler repository."""

STORAGE_CLASSES = {
    EXPOSURE: {"pytype": "alertprod.images.exposure.Exposure"},
    CATALOG: {"pytype": "alertprod.measurement.catalog.Catalog"},
}

FORMATTERS = {
    EXPOSURE: "alertprod.butler.formatters.ExposureFormatter",
    CATALOG: "alertprod.butler.formatters.CatalogFormatter",
}


def prepare_repository(root: Path) -> bool:
    """Write our storage classes and formatters into a repository's configuration.

    Returns
    -------
    bool
        Whether anything was missing. The configuration as it was is kept beside it, as ``butler.yaml~``.

    Raises
    ------
    ConfigError
        Raised if the folder is no Butler repository, or its configuration cannot be read or written.
    """
    path = root / CONFIG_NAME
    settings = _load(path)
    before = yaml.safe_dump(settings)
    settings.setdefault("storageClasses", {}).update(STORAGE_CLASSES)
    datastore = settings.setdefault("datastore", {})
    links = [link["datastore"] for link in datastore.get("datastores", [])]  # of a chain, whose links are told each
    for part in links or [datastore]:
        part.setdefault("formatters", {}).update(FORMATTERS)
    after = yaml.safe_dump(settings, sort_keys=False)
    if yaml.safe_dump(settings) == before:
        return False
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        shutil.copy2(path, path.with_name(f"{path.name}~"))
        partial.write_text(after)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(str(path), "(file)", f"cannot be written: {error.strerror or error}") from error
    return True


def is_prepared(root: Path) -> bool:
    """Say whether a repository knows our storage classes.

    Raises
    ------
    ConfigError
        Raised if it is none.
    """
    known: Any = _load(root / CONFIG_NAME).get("storageClasses") or {}
    return all(name in known for name in STORAGE_CLASSES)


def _load(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        problem = "not a Butler repository: make one with `butler create`"
        raise ConfigError(str(path.parent), CONFIG_NAME, problem) from error
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(str(path), "(file)", f"cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(str(path), "(file)", "is no mapping")
    return settings
