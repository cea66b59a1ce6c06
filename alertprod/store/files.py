"""Bytes at any fsspec URI, with errors of this package whatever the store behind the URI raises."""

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from alertprod.errors import AlertprodError, CorruptImage, DiskFull, ImageNotYetAvailable, StoreUnavailable

_LOCAL_SCHEMES = ("file", "local")

_CONFIGURED_SCHEMES = ("butler:",)
"""What these URIs name lies in a repository that the configuration names, and nowhere else."""

MAX_FILE_BYTES = 2 << 30
"""Of a remote file that is read into memory: four times an uncompressed 4096² exposure in double precision."""


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells one version of a file from another: its size and when (or as what) it was written."""

    size: int
    version: str


def local_path(uri: str) -> str | None:
    """Return the path where `uri` is on a local disk (``/a/b``, ``file:///a/b``), else None."""
    with translated_errors(uri):
        filesystem, path = fsspec.core.url_to_fs(uri)
    return path if isinstance(filesystem, LocalFileSystem) else None


def is_allowed(uri: str, roots: Sequence[str]) -> bool:
    """Tell whether an event may name a file: links and dots are followed before it is compared.

    Parameters
    ----------
    roots
        Folders, or URI prefixes. None at all: any local file.
    """
    if uri.startswith(_CONFIGURED_SCHEMES):
        return True
    if "::" in uri:  # fsspec's chains, by which one protocol is handed to another
        return False
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme in _LOCAL_SCHEMES:
        real = os.path.realpath(rest if separator else uri)
        folders = [os.path.realpath(root.removeprefix("file://")) for root in roots if _is_local(root)]
        return not roots or any(real.startswith(folder.rstrip("/") + "/") for folder in folders)
    prefixes = [root.rstrip("/") + "/" for root in roots if not _is_local(root)]
    return ".." not in rest.split("/") and uri.startswith(tuple(prefixes))


def _is_local(root: str) -> bool:
    return "://" not in root or root.startswith("file://")


def read_bytes(uri: str, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Read a file.

    Raises
    ------
    ImageNotYetAvailable
        Raised if there is no such file.
    StoreUnavailable
        Raised if it cannot be read for another reason.
    CorruptImage
        Raised if it is larger than `max_bytes`, no regular file, or `uri` is of a kind nobody knows.
    """
    with translated_errors(uri):
        filesystem, path = fsspec.core.url_to_fs(uri)
        if isinstance(filesystem, LocalFileSystem):
            require_regular_file(uri, path)
        with filesystem.open(path, "rb") as file:
            data = bytes(file.read(max_bytes + 1))
    if len(data) > max_bytes:
        raise CorruptImage(uri, "file", f"more than {max_bytes} bytes")
    return data


def require_regular_file(uri: str, path: str) -> None:
    """Refuse what is there and is no file of bytes: a pipe would be waited for, a device read without end.

    Raises
    ------
    CorruptImage
        Raised if it is something else; what is not there is let through.
    StoreUnavailable
        Raised if nobody may look.
    """
    with translated_errors(uri):
        kind = Path(path)
        if kind.is_dir():
            raise CorruptImage(uri, "file", "a folder")
        if kind.exists() and not kind.is_file():
            raise CorruptImage(uri, "file", "no regular file")


def stamp_file(uri: str) -> FileStamp:
    """Return the stamp of a file; errors as `read_bytes`."""
    with translated_errors(uri):
        filesystem, path = fsspec.core.url_to_fs(uri)
        if not isinstance(filesystem, LocalFileSystem):
            filesystem.invalidate_cache()
        info: Mapping[str, Any] = filesystem.info(path)
    version = next((info[name] for name in _VERSION_KEYS if info.get(name) is not None), "")
    return FileStamp(size=int(info.get("size") or 0), version=str(version))


_VERSION_KEYS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "created")
"""What the stores call it, the most telling first."""


@contextlib.contextmanager
def translated_errors(uri: str) -> Iterator[None]:
    """Turn whatever a store raises for `uri` into this package's errors; these pass through."""
    try:
        yield
    except AlertprodError:
        raise
    except FileNotFoundError as error:
        raise ImageNotYetAvailable(uri) from error
    except IsADirectoryError as error:
        raise CorruptImage(uri, "file", "a folder") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{uri}: {error}") from error
        raise StoreUnavailable(f"{uri}: {error}") from error
    except (ValueError, ImportError) as error:  # a protocol nobody knows, or whose package is not installed
        raise CorruptImage(uri, "uri", str(error)) from error
    except Exception as error:  # each backend has a tree of its own (botocore, aiohttp): all of them mean "away"
        raise StoreUnavailable(f"{uri}: {type(error).__name__}: {error}") from error
