"""Decoded template tiles in a folder: mapped into memory read-only, shared by the workers of a host.

One file a tile, so that a reader has all of it or none of it: it is made under another name and renamed, and an
eviction only takes the name away; whoever has mapped it keeps his pages, and the disk its space, until he lets go.
"""

import contextlib
import fcntl
import hashlib
import os
import struct
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from alertprod import __version__
from alertprod._typing import FloatArray, IntArray
from alertprod.errors import ConfigError, DiskFull
from alertprod.images.exposure import Exposure
from alertprod.images.masked_image import MaskedImage
from alertprod.images.profile import InstrumentProfile
from alertprod.store.files import translated_errors
from alertprod.store.images import ImageStore
from alertprod.store.tile_facts import decode_facts, encode_facts

_MAGIC = b"alertprod tile 2"
_HEAD = struct.Struct("<16sQQQI")
"""Magic, rows, columns, bytes of what describes the planes and their CRC-32; image, mask and variance follow it, each at a whole page."""

_PAGE = 4096

_SUFFIX, _PARTIAL_SUFFIX = ".tile", ".part"

_ROOM_LOCK = "room"
"""The lock of whoever writes or evicts: so the bound holds whatever the others are about to write."""

_N_LOCKS = 64
"""Files that the fillers lock: a fixed number, so that none is left behind for each tile there ever was."""


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """What one process did to the cache since it was asked last."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0


class TemplateCache:
    """Tiles by URI, decoded once.

    Parameters
    ----------
    folder
        A folder of the cache's own on a local disk; made where it is not there.
    max_bytes
        What the files in it may take. The least recently used go first.
    images
        Where tiles come from.
    prepare
        What is done to a tile once, before it is kept: a PSF fitted where the file has none, its sky taken off.

    Raises
    ------
    ConfigError
        Raised if the folder cannot be made or written to.

    Notes
    -----
    Any number of processes may share a folder; a tile that several of them want at once is decoded by one. A tile is
    known by URI, size, time of writing, profile and program version: a changed file is another tile, and the old one
    goes by age. What describes a tile is always what its file here would say, kept or not, so that an exposure's bytes
    do not depend on the room in the folder.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        max_bytes: int,
        images: ImageStore | None = None,
        prepare: Callable[[Exposure], Exposure] = lambda tile: tile,
    ) -> None:
        self._folder = Path(folder)
        self._locks = self._folder / "locks"
        self._max_bytes = max_bytes
        self._images = images or ImageStore()
        self._prepare = prepare
        self._counts = CacheCounts()
        try:
            self._locks.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(str(folder), "templates.cache", f"cannot be made: {error}") from error
        if not os.access(self._folder, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError(str(folder), "templates.cache", "cannot be written to")

    def load(self, uri: str, profile: InstrumentProfile | None = None) -> Exposure:
        """Return a tile.

        Returns
        -------
        Exposure
            Its planes are read-only and shared: copy before changing them.

        Raises
        ------
        ImageNotYetAvailable, StoreUnavailable, CorruptImage
            Raised as by `ImageStore.load`.

        Notes
        -----
        Where there is no room for it, in the folder or on the disk, the tile is decoded into this process's memory
        and nothing is kept.
        """
        return self._load(uri, profile)[0]

    def prefetch(self, uri: str, profile: InstrumentProfile | None = None) -> bool:
        """Make sure that a tile is in the folder; True where it had to be decoded. Errors as `load`."""
        return not self._load(uri, profile)[1]

    def take_counts(self) -> CacheCounts:
        """Return what this process did since it was asked last, and start again at zero."""
        counts, self._counts = self._counts, CacheCounts()
        return counts

    def compute_size_bytes(self) -> int:
        """Return the bytes of all files in the folder, whoever made them."""
        return sum(size for _, size, _ in self._entries())

    def _load(self, uri: str, profile: InstrumentProfile | None) -> tuple[Exposure, bool]:
        path = self._folder / f"{self._key(uri, profile)}{_SUFFIX}"
        found = _read_tile(path)
        if found is None:
            with self._locked(f"{int(path.name[:4], 16) % _N_LOCKS:02d}"):
                found = _read_tile(path)  # somebody else decoded it while we waited
                if found is None:
                    self._count(misses=1)
                    return self._fill(path, uri, profile), False
        self._count(hits=1)
        with contextlib.suppress(FileNotFoundError):  # evicted since we opened it: ours all the same
            _stamp_use(path)
        return found, True

    def _fill(self, path: Path, uri: str, profile: InstrumentProfile | None) -> Exposure:
        exposure = self._prepare(self._images.load(uri, profile))
        facts = encode_facts(exposure)
        size = _compute_offsets(exposure.shape, len(facts))[-1]
        if size > self._max_bytes:
            return _make_tile(_planes(exposure), facts)
        temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex}{_PARTIAL_SUFFIX}")
        try:
            with self._locked(_ROOM_LOCK), translated_errors(str(path)):
                self._make_room(size)
                try:
                    with temporary.open("xb") as file:
                        _write_tile(file, exposure, facts)
                    _stamp_use(temporary)
                    temporary.replace(path)
                finally:
                    temporary.unlink(missing_ok=True)
        except DiskFull:
            return _make_tile(
                _planes(exposure), facts
            )  # slower from now on, not wrong, and counted as a miss each time
        return _read_tile(path) or _make_tile(_planes(exposure), facts)

    def _make_room(self, size: int) -> None:
        """Remove the least recently used until `size` more bytes fit; the caller holds the lock on the room."""
        entries = sorted(self._entries())
        total = sum(entry_size for _, entry_size, _ in entries)
        for _, entry_size, entry in entries:
            # Only the holder of the lock writes, so that a half-written file here was left by a process that died.
            is_left_over = entry.suffix == _PARTIAL_SUFFIX
            if is_left_over or total + size > self._max_bytes:
                entry.unlink(missing_ok=True)
                total -= entry_size
                if not is_left_over:
                    self._count(evictions=1)

    def _entries(self) -> Iterator[tuple[int, int, Path]]:
        """Yield time of last use in nanoseconds, size and path of each file of the cache."""
        with translated_errors(str(self._folder)), os.scandir(self._folder) as listing:
            entries = [entry for entry in listing if entry.name.endswith((_SUFFIX, _PARTIAL_SUFFIX))]
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another process evicted it meanwhile
                facts = entry.stat()
                yield facts.st_mtime_ns, facts.st_size, Path(entry.path)

    def _key(self, uri: str, profile: InstrumentProfile | None) -> str:
        stamp = self._images.stamp(uri)
        described = "" if profile is None else profile.model_dump_json()
        text = "\0".join((uri, str(stamp.size), stamp.version, described, __version__))
        return hashlib.sha256(text.encode()).hexdigest()[:40]

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold one of the folder's locks; the kernel takes it back from a process that dies."""
        with translated_errors(str(self._locks)):
            descriptor = os.open(self._locks / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _count(self, *, hits: int = 0, misses: int = 0, evictions: int = 0) -> None:
        counts = self._counts
        self._counts = CacheCounts(counts.hits + hits, counts.misses + misses, counts.evictions + evictions)


def _write_tile(file: IO[bytes], exposure: Exposure, facts: bytes) -> None:
    offsets = _compute_offsets(exposure.shape, len(facts))
    file.write(_HEAD.pack(_MAGIC, *exposure.shape, len(facts), zlib.crc32(facts)))
    file.write(facts)
    for plane, offset, dtype in zip(_planes(exposure), offsets, _DTYPES, strict=False):
        file.seek(offset)
        file.write(np.ascontiguousarray(plane, dtype=dtype).data)
    file.truncate(offsets[-1])
    file.flush()
    os.fsync(file.fileno())  # a power cut must not leave a whole-looking tile of zeros


def _read_tile(path: Path) -> Exposure | None:
    """Map a tile; None where there is none, or the file is none of ours."""
    with translated_errors(str(path)):
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        with file:
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                return None
            magic, n_rows, n_columns, n_facts, checksum = _HEAD.unpack(head)
            shape = (n_rows, n_columns)
            offsets = _compute_offsets(shape, n_facts)
            if magic != _MAGIC or os.fstat(file.fileno()).st_size != offsets[-1]:
                return None
            facts = file.read(n_facts)
            if zlib.crc32(facts) != checksum:
                return None
            planes = [
                np.asarray(np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape))
                for dtype, offset in zip(_DTYPES, offsets, strict=False)
            ]
    return _make_tile(planes, facts)


_DTYPES = ("<f4", "<i4", "<f4")
"""Of image, mask and variance in a tile's file."""


def _planes(exposure: Exposure) -> tuple[FloatArray, IntArray, FloatArray]:
    return exposure.image, exposure.mask, exposure.variance


def _compute_offsets(shape: tuple[int, int], n_facts: int) -> list[int]:
    """Return where each plane begins, and last the size of the file."""
    offsets = [-(-(_HEAD.size + n_facts) // _PAGE) * _PAGE]
    for dtype in _DTYPES:
        n_bytes = shape[0] * shape[1] * np.dtype(dtype).itemsize
        offsets.append(offsets[-1] + -(-n_bytes // _PAGE) * _PAGE)
    return offsets


def _stamp_use(path: Path) -> None:
    """Note that a file is in use now: by our clock, since the kernel's own stamps move every few milliseconds only."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _make_tile(planes: Sequence[NDArray[Any]], facts: bytes) -> Exposure:
    """Return an exposure of these planes, which cannot be written to any more."""
    for plane in planes:
        plane.flags.writeable = False
    image, mask, variance = planes
    described = decode_facts(facts)
    return Exposure(
        masked_image=MaskedImage(image, mask, variance),
        wcs=described.wcs,
        psf=described.psf,
        photo_calib=described.photo_calib,
        info=described.info,
    )
