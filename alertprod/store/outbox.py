"""The outbox: the bytes to publish for one exposure, one file, written before the database names it.

A file is a msgpack stream: a head, one ``[key, value, headers]`` a message, a foot with count and digests. It is
whole or it is an error: written beside its place, fsynced, renamed, its folder fsynced. Its name carries
the number of the claim, so that a worker whose claim was lost cannot replace the file of the one that holds it.
"""

import contextlib
import errno
import hashlib
import os
import re
import time
import urllib.parse
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import fsspec
import msgpack
from fsspec.implementations.local import LocalFileSystem

from alertprod.errors import DiskFull, PartialWriteError, StoreUnavailable
from alertprod.store.ledger import Claimed, LedgerState

_FORMAT, _FORMAT_VERSION = "alertprod.outbox", 1

_SUFFIX = ".outbox"

_OURS = re.compile(r".*\.outbox(\.[0-9a-f]{32})?")
"""Names of outbox files, half-written ones too: whatever else somebody keeps in that folder is not touched."""

_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Far above the 10 MiB that a broker takes; a flipped length byte must not ask for 4 GiB of memory."""

_MAX_HEADERS, _MAX_HEADER_BYTES = 1024, 65536
"""The same for lists and names: a list is allocated at the length it claims."""

_ORPHAN_GRACE_S = 24 * 3600.0
"""A file that no ledger row names may be on its way into the ledger; after a day it is left over from a crash."""

_FOLDER_ATTEMPTS = 3
"""A clean-up that removes the new folder in the same microseconds three times in a row is none."""


class CorruptOutbox(PartialWriteError):
    """A stored exposure whose outbox file is gone, cut short or altered: its alerts cannot be published again."""

    def __init__(self, uri: str, problem: str) -> None:
        super().__init__(uri, problem)
        self.uri, self.problem = uri, problem

    def __str__(self) -> str:
        return f"outbox {self.uri}: {self.problem}"


@dataclass(frozen=True, slots=True)
class OutboxMessage:
    """One message: key and value as they go on the wire, headers in their order."""

    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class OutboxFile:
    """What SQL keeps of a file.

    Parameters
    ----------
    uri
        An absolute path, or a URI with its protocol, however the outbox is spelled in a configuration: `clean_outbox`
        knows by it what must stay.
    sha256
        Over the values in order, hexadecimal.
    """

    uri: str
    sha256: str
    n_messages: int
    n_bytes: int


@dataclass(slots=True)
class _Digests:
    """Count and checksums: SHA-256 of the values, CRC-32 of all the rest and of where values end."""

    count: int = 0
    values: Any = field(default_factory=hashlib.sha256)
    others: int = 0

    def add(self, key: bytes, value: bytes, headers: Iterable[tuple[str, bytes]]) -> None:
        self.count += 1
        self.values.update(value)
        self.others = zlib.crc32(msgpack.packb([key, len(value), list(headers)]), self.others)

    def foot(self) -> dict[str, Any]:
        return {"count": self.count, "sha256": self.values.hexdigest(), "crc32": self.others}


def outbox_uri(root: str, claim: Claimed) -> str:
    """Return where the outbox file of a claim belongs: ``ROOT/instrument/visit/detector.claims.outbox``."""
    instrument = urllib.parse.quote(claim.key.instrument, safe="") or "_"
    if set(instrument) == {"."}:
        instrument = instrument.replace(".", "%2E")
    return f"{root.rstrip('/')}/{instrument}/{claim.key.visit}/{claim.key.detector}.{claim.claims}{_SUFFIX}"


def write_outbox(uri: str, messages: Iterable[OutboxMessage]) -> OutboxFile:
    """Write messages to `uri`; when this returns, the file is whole and, on a local disk, survives a power cut.

    Parameters
    ----------
    uri
        A path or any fsspec URI. A file that is there is replaced.
    messages
        Taken one by one: an exposure's alerts need not fit into memory.

    Raises
    ------
    DiskFull
        Raised if there is no room.
    StoreUnavailable
        Raised if the place cannot be written to for another reason.
    """
    filesystem, path = fsspec.core.url_to_fs(uri)
    digests = _Digests()
    with _translated_errors(uri):
        if isinstance(filesystem, LocalFileSystem):
            n_bytes = _write_local(Path(path), messages, digests)
        else:
            filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            with filesystem.open(path, "wb") as file:  # object stores show a file when it is closed, and only whole
                n_bytes = _write_stream(file, messages, digests)
    return OutboxFile(
        uri=_one_spelling(filesystem, path),
        sha256=digests.values.hexdigest(),
        n_messages=digests.count,
        n_bytes=n_bytes,
    )


def read_outbox(uri: str, sha256: str | None) -> Iterator[OutboxMessage]:
    """Yield the messages of a file after all of it was verified.

    Parameters
    ----------
    sha256
        What the ledger says of the values in order; None: nobody was asked, and the file's own foot must do.

    Raises
    ------
    CorruptOutbox
        Raised, before the first message, if the file is gone, cut short, altered or another's.
    StoreUnavailable
        Raised if it cannot be read for another reason.

    Notes
    -----
    Read twice, so that nothing is published from a file whose end turns out to be wrong, at the memory of one message.
    """
    with _open(uri) as file:
        digests = _Digests()
        for message in _read_stream(uri, file, digests):
            digests.add(message.key, message.value, message.headers)
        found = digests.values.hexdigest()
        if sha256 is not None and found != sha256:
            raise CorruptOutbox(uri, f"the values have sha256 {found}, the ledger says {sha256}")
        file.seek(0)
        yield from _read_stream(uri, file, None)


def size_of_outbox(uri: str) -> int:
    """Return a file's bytes; 0 where it is gone, which whoever reads it will hear of.

    Raises
    ------
    StoreUnavailable
        Raised if the store does not answer.
    """
    with _translated_errors(uri):
        filesystem, path = fsspec.core.url_to_fs(uri)
        try:
            return int(filesystem.info(path).get("size") or 0)
        except FileNotFoundError:
            return 0


def remove_outbox(uri: str) -> None:
    """Remove a file that no ledger row names: one whose claim was lost. It need not be there.

    Raises
    ------
    StoreUnavailable
        Raised if it cannot be removed.
    """
    filesystem, path = fsspec.core.url_to_fs(uri)
    with _translated_errors(uri), contextlib.suppress(FileNotFoundError):
        filesystem.rm_file(path)


def clean_outbox(
    root: str,
    states_of: Callable[[list[str]], Mapping[str, LedgerState]],
    *,
    max_age_s: float,
    max_bytes: int,
    clock: Callable[[], float] = time.time,
) -> tuple[int, int]:
    """Remove files by age and size, oldest first, never one whose exposure is not settled.

    Parameters
    ----------
    root
        The folder that `outbox_uri` was given.
    states_of
        `Ledger.states_of_outboxes`.
    max_age_s
        Settled files older than this go.
    max_bytes
        Settled files go, oldest first, until all that is left takes no more than this.

    Returns
    -------
    tuple
        Number of files and of bytes removed.

    Notes
    -----
    A file that no row names is either being stored right now or left over from a lost claim or a crash: it goes
    after a day, and is spared until then. The ledger is asked after the files were listed, so that a file
    stored in between is seen as stored.
    """
    filesystem, path = fsspec.core.url_to_fs(root)
    now = clock()
    with _translated_errors(root):
        if not filesystem.exists(path):
            return 0, 0
        filesystem.invalidate_cache()
        found = filesystem.find(path, detail=True)
    files = sorted(
        (_modified_unix_s(info), name, int(info["size"]))
        for name, info in found.items()
        if _OURS.fullmatch(name.rpartition("/")[2])
    )
    uris = {name: _one_spelling(filesystem, name) for _, name, _ in files}
    states = states_of(list(uris.values()))
    total = sum(size for _, _, size in files)
    removed, removed_bytes = 0, 0
    for modified, name, size in files:
        state = states.get(uris[name])
        age_s = now - modified
        if state is None:
            goes = age_s > _ORPHAN_GRACE_S
        else:
            goes = state is LedgerState.PUBLISHED and (age_s > max_age_s or total - removed_bytes > max_bytes)
        if goes:
            with _translated_errors(uris[name]), contextlib.suppress(FileNotFoundError):  # another daemon was first
                filesystem.rm_file(name)
                removed, removed_bytes = removed + 1, removed_bytes + size
                if isinstance(filesystem, LocalFileSystem):
                    _remove_empty_folder(Path(name).parent, root=Path(path))
    return removed, removed_bytes


def _write_stream(file: IO[bytes], messages: Iterable[OutboxMessage], digests: _Digests) -> int:
    packer = msgpack.Packer(use_bin_type=True)
    n_bytes = file.write(packer.pack({"format": _FORMAT, "version": _FORMAT_VERSION}))
    for message in messages:
        if len(message.value) > _MAX_MESSAGE_BYTES:
            msg = f"a message of {len(message.value)} bytes; {_MAX_MESSAGE_BYTES} are allowed"
            raise ValueError(msg)
        digests.add(message.key, message.value, message.headers)
        n_bytes += file.write(packer.pack([message.key, message.value, list(message.headers)]))
    return n_bytes + file.write(packer.pack(digests.foot()))


def _create_file(path: Path) -> IO[bytes]:
    for _ in range(_FOLDER_ATTEMPTS):
        _make_folder(path.parent)
        with contextlib.suppress(FileNotFoundError):  # `clean_outbox` took the empty folder away again
            return path.open("xb")
    return path.open("xb")


def _write_local(path: Path, messages: Iterable[OutboxMessage], digests: _Digests) -> int:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with _create_file(temporary) as file:
            n_bytes = _write_stream(file, messages, digests)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return n_bytes


def _read_stream(uri: str, file: IO[bytes], expected: _Digests | None) -> Iterator[OutboxMessage]:
    """Yield the messages; check head, foot and end, and the foot against what the caller has put into `expected`."""
    unpacker = msgpack.Unpacker(
        file,
        raw=False,
        max_buffer_size=_MAX_MESSAGE_BYTES + 1024 * 1024,
        max_bin_len=_MAX_MESSAGE_BYTES,
        max_str_len=_MAX_HEADER_BYTES,
        max_array_len=_MAX_HEADERS,
        max_map_len=_MAX_HEADERS,
        max_ext_len=0,
    )
    try:
        head = unpacker.unpack()
        if not isinstance(head, dict) or head.get("format") != _FORMAT:
            raise CorruptOutbox(uri, "not an outbox file")
        if head.get("version") != _FORMAT_VERSION:
            raise CorruptOutbox(uri, f"format version {head.get('version')!r}; {_FORMAT_VERSION} is known")
        for item in unpacker:
            if isinstance(item, dict):
                foot, end = item, unpacker.tell()
                break
            yield _decode_message(uri, item)
        else:
            raise CorruptOutbox(uri, "cut short: the foot is missing")
        if end != file.seek(0, os.SEEK_END):
            raise CorruptOutbox(uri, "something follows the foot")
        if expected is not None and foot != expected.foot():
            raise CorruptOutbox(uri, f"altered: it holds {expected.foot()}, its foot says {foot}")
    except (msgpack.UnpackException, ValueError) as error:
        raise CorruptOutbox(uri, f"cut short or altered: {type(error).__name__}: {error}") from error
    except OSError as error:
        raise StoreUnavailable(f"{uri}: {error}") from error


def _decode_message(uri: str, item: Any) -> OutboxMessage:
    match item:
        case [bytes(key), bytes(value), list(headers)]:
            pairs = []
            for header in headers:
                match header:
                    case [str(name), bytes(content)]:
                        pairs.append((name, content))
                    case _:
                        raise CorruptOutbox(uri, "a header that is none")
            return OutboxMessage(key=key, value=value, headers=tuple(pairs))
        case _:
            raise CorruptOutbox(uri, "a message that is none")


@contextlib.contextmanager
def _open(uri: str) -> Iterator[IO[bytes]]:
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
        file = filesystem.open(path, "rb")
    except FileNotFoundError as error:
        raise CorruptOutbox(uri, "no such file") from error
    except OSError as error:
        raise StoreUnavailable(f"{uri}: {error}") from error
    with file:
        yield file


@contextlib.contextmanager
def _translated_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{uri}: {error}") from error
        raise StoreUnavailable(f"{uri}: {error}") from error


def _one_spelling(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    return path if isinstance(filesystem, LocalFileSystem) else str(filesystem.unstrip_protocol(path))


def _make_folder(folder: Path) -> None:
    """Make a folder so that it survives a power cut: the parent of each new one is synced too."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_empty_folder(folder: Path, *, root: Path) -> None:
    if folder != root and root in folder.parents:
        with contextlib.suppress(OSError):  # not empty, or in use again: it stays
            folder.rmdir()


def _modified_unix_s(info: Mapping[str, Any]) -> float:
    for name in ("mtime", "LastModified", "last_modified", "created"):
        value = info.get(name)
        if isinstance(value, int | float):
            return float(value)
        if value is not None and hasattr(value, "timestamp"):
            return float(value.timestamp())
    return time.time()  # a store that does not say: never old
