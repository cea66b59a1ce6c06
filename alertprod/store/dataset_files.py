"""Datasets as files: the kind of an object says the ending of its file, and the ending how to read it."""

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lsst.pex.config import Config

from alertprod._json import encode_json
from alertprod.errors import CorruptImage
from alertprod.images.exposure import Exposure
from alertprod.images.fits_io import save_exposure
from alertprod.images.visit_summary import VisitSummary, is_visit_summary, load_visit_summary, save_visit_summary
from alertprod.measurement.catalog import Catalog
from alertprod.store.catalog_files import load_catalog, save_catalog
from alertprod.store.files import translated_errors
from alertprod.store.images import ImageStore


def save_dataset(obj: Any, stem: Path, *, backup: bool = False) -> None:
    """Save an exposure, catalog, a visit's calibrations, configuration or dictionary, whole or not at all.

    Parameters
    ----------
    stem
        The path without its ending. Folders are made.
    backup
        Keep a file that is there, as NAME~1, NAME~2 and so on.

    Raises
    ------
    TypeError
        Raised if there are no files of this kind.
    DiskFull, StoreUnavailable
        Raised if it cannot be written.
    """
    suffix = next((suffix for kind, suffix in _SUFFIXES if isinstance(obj, kind)), None)
    if suffix is None:
        raise TypeError(f"{stem.name} is a {type(obj).__name__}, which is not kept in files")
    path = stem.with_name(stem.name + suffix)
    with _translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if backup and path.exists():
            _back_up(path)
        with written(path) as partial:
            _WRITERS[suffix](obj, partial)


def find_dataset(stem: Path) -> Path | None:
    """Return the file of a dataset, None where there is none."""
    paths = (stem.with_name(stem.name + suffix) for _, suffix in _SUFFIXES)
    return next((path for path in paths if path.exists()), None)


def load_dataset(path: Path) -> Any:
    """Load what `save_dataset` has saved.

    Raises
    ------
    ImageNotYetAvailable, StoreUnavailable, CorruptImage
        Raised if it is gone or cannot be read.
    """
    with _translated(path):
        return _READERS[path.suffix](path)


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Give a path to write to that becomes `path` when all is written; the ending is the same."""
    partial = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Translate what the disk raises; what else goes wrong is a bug and stays one."""
    try:
        yield
    except OSError:
        with translated_errors(str(path)):
            raise


def _back_up(path: Path) -> None:
    """Keep a copy of a file, as NAME~1, NAME~2 and so on."""
    n = 1
    while (kept := path.with_name(f"{path.name}~{n}")).exists():
        n += 1
    shutil.copy2(path, kept)


def _load_config(path: Path) -> Config:
    """Run what `Config.save` wrote, which names its own class: a program, as trustworthy as the folder it lies in."""
    try:
        return Config._fromPython(path.read_text())  # noqa: SLF001  upstream's own way back
    except Exception as error:  # a program can raise anything, an older one of ours names fields that are gone
        raise CorruptImage(str(path), "config", f"{type(error).__name__}: {str(error).splitlines()[0]}") from error


def _load_fits(path: Path) -> Exposure | VisitSummary:
    return load_visit_summary(path) if is_visit_summary(path) else ImageStore().load(str(path))


def _save_fits(obj: Exposure | VisitSummary, path: Path) -> None:
    if isinstance(obj, VisitSummary):
        save_visit_summary(obj, path)
    else:
        save_exposure(obj, path)


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptImage(str(path), "json", str(error)) from error


_SUFFIXES: tuple[tuple[type, str], ...] = (
    (Exposure, ".fits"),
    (VisitSummary, ".fits"),
    (Catalog, ".ecsv"),
    (Config, ".py"),
    (dict, ".json"),
)
"""The ending of the files of each kind of object."""

_READERS: Mapping[str, Any] = {
    ".fits": _load_fits,
    ".ecsv": load_catalog,
    ".py": _load_config,
    ".json": _load_json,
}

_WRITERS: Mapping[str, Any] = {
    ".fits": _save_fits,
    ".ecsv": save_catalog,
    ".py": lambda config, path: path.write_text(config.saveToString()),
    ".json": lambda value, path: path.write_text(encode_json(value, indent=1)),
}
