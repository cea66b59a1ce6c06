"""FITS from strangers: every declared size is compared with the bytes that are there before anything is read.

Plain planes are read by a few lines of our own: astropy converts big-endian floats at a fifth of the speed,
and maps files into memory, which kills the process where a file shrinks under it. Headers, tables and tile
compression are astropy's.
"""

import io
import math
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from alertprod._bands import map_threads
from alertprod._typing import FloatArray, IntArray
from alertprod.errors import CorruptImage, ImageNotYetAvailable, StoreUnavailable

MAX_PIXELS = 1 << 27
"""11585 squared: beyond the largest single detectors; three planes of it are 1.5 GiB."""

MAX_BYTES = 1 << 30
"""Of a file that is decompressed, or read from a stream, into memory."""

MAX_HDUS = 4096
"""Rubin's coadds carry a few hundred tables; a file of nothing but headers must end somewhere."""

MAX_HEADER_BLOCKS = 1000
"""36 cards each: ten times what the fullest headers have."""

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 22
_BLOCK = 2880
_BYTES_AT_ONCE = 1 << 20
_DTYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}


class FitsFile:
    """An open FITS file; use as a context manager.

    Parameters
    ----------
    source
        A path, bytes, or an open binary file (read to its end).
    name
        For messages.

    Raises
    ------
    CorruptImage
        Raised if the bytes are not FITS, or an HDU reaches beyond their end.
    ImageNotYetAvailable, StoreUnavailable
        Raised if the path does not exist, or cannot be read.
    """

    def __init__(self, source: str | Path | bytes | BinaryIO, *, name: str) -> None:
        self.name = name
        self._headers: dict[int, fits.Header] = {}
        self._labels: list[str] = []
        self._stream = self._open(source)
        try:
            self._size = self._stream.seek(0, io.SEEK_END)
            self._stream.seek(0)
            with self.translated("PRIMARY"):
                self.hdus = self._scan()
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.hdus.close()
        self._stream.close()

    @contextmanager
    def translated(self, hdu: str) -> Iterator[None]:
        """Turn whatever astropy raises on broken content into `CorruptImage`."""
        try:
            with warnings.catch_warnings():
                # What astropy only warns of is either checked here, or harmless (cards it mends).
                warnings.simplefilter("ignore")
                yield
        except (CorruptImage, ImageNotYetAvailable, StoreUnavailable):
            raise
        except Exception as error:  # broken headers raise nearly everything, AttributeError included
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CorruptImage(self.name, hdu, problem) from error

    def find(self, names: Sequence[str | int]) -> int | None:
        """Return the number of the first of the named (or numbered) HDUs that is there."""
        labels = [label.upper() for label in self._labels]
        for name in names:
            if isinstance(name, int):
                if 0 <= name < len(labels):
                    return name
            elif name.upper() in labels:
                return labels.index(name.upper())
        return None

    def label(self, index: int) -> str:
        """Return an HDU's name, or its number where it has none."""
        return self._labels[index]

    def header(self, index: int) -> fits.Header:
        """Return the header of an HDU: the image's own where it is tile-compressed; cards mended that can be."""
        if index not in self._headers:
            with self.translated(self.label(index)):
                header: fits.Header = self.hdus[index].header
                for card in header.cards:
                    card.verify("silentfix")
                self._headers[index] = header
        return self._headers[index]

    def require_plane(self, index: int) -> tuple[int, int]:
        """Return the shape of a two-dimensional image; refuse all else, and what is too big."""
        hdu, label = self.hdus[index], self.label(index)
        if not hdu.is_image:
            raise CorruptImage(self.name, label, "a table, not an image")
        header = self.header(index)
        with self.translated(label):
            n_axes = int(header["NAXIS"])
            shape = [int(header[f"NAXIS{axis}"]) for axis in range(n_axes, 0, -1)] if n_axes <= 4 else []
        # Trailing axes of one pixel come from cameras that write cubes of a single plane.
        while len(shape) > 2 and shape[0] == 1:
            shape.pop(0)
        if n_axes == 0:
            raise CorruptImage(self.name, label, "no pixels")
        if len(shape) != 2:
            raise CorruptImage(self.name, label, f"{n_axes} axes; a plane of two is needed")
        if min(shape) < 1 or math.prod(shape) > MAX_PIXELS:
            raise CorruptImage(
                self.name, label, f"{shape[1]} x {shape[0]} pixels declared; 1 to {MAX_PIXELS} are accepted"
            )
        return shape[0], shape[1]

    def read_image(self, index: int, *, verify: bool) -> FloatArray:
        """Read a plane as native float32; BSCALE, BZERO and BLANK (as NaN) honoured."""
        values, header = self._read(index, verify=verify)
        scale, zero = float(header.get("BSCALE", 1.0)), float(header.get("BZERO", 0.0))
        if values.dtype == np.float32 and (scale, zero) == (1.0, 0.0):
            return values
        blank = header.get("BLANK") if values.dtype.kind in "iu" else None
        wide = np.dtype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
        with np.errstate(over="ignore"):  # a double too large for a float becomes infinite, and then no data
            image = (values * wide.type(scale) + wide.type(zero)).astype(np.float32, copy=False)
        if blank is not None:
            image[values == blank] = np.nan
        return image

    def read_mask(self, index: int, *, verify: bool) -> IntArray:
        """Read a plane of bits; BZERO honoured."""
        values, header = self._read(index, verify=verify)
        scale, zero = float(header.get("BSCALE", 1.0)), float(header.get("BZERO", 0.0))
        if (scale, zero) != (1.0, 0.0):
            values = values.astype(np.float64) * scale + zero
        if values.dtype.kind == "f":
            values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).astype(np.int64)
        return values

    def _open(self, source: str | Path | bytes | BinaryIO) -> BinaryIO:
        try:
            if isinstance(source, bytes | bytearray | memoryview):
                stream: BinaryIO = io.BytesIO(source)
            elif isinstance(source, str | Path):
                stream = Path(source).open("rb")  # noqa: SIM115  closed with this object
            else:
                stream = io.BytesIO(self._read_bounded(source))
            start = stream.read(len(_GZIP_MAGIC))
            stream.seek(0)
            if start != _GZIP_MAGIC:
                return stream
            with stream:
                return self._decompress(stream)
        except FileNotFoundError as error:
            raise ImageNotYetAvailable(self.name) from error
        except IsADirectoryError as error:
            raise CorruptImage(self.name, "file", "a folder") from error
        except OSError as error:
            raise StoreUnavailable(f"{self.name}: {error}") from error

    def _read_bounded(self, stream: BinaryIO) -> bytes:
        content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise CorruptImage(self.name, "file", f"more than {MAX_BYTES} bytes")
        return content

    def _decompress(self, stream: BinaryIO) -> BinaryIO:
        content = io.BytesIO()
        decompressor = zlib.decompressobj(wbits=31)
        try:
            while chunk := stream.read(_CHUNK):
                while chunk:
                    if decompressor.eof:
                        # Another member may follow, or the zeros that tapes and some archives pad with.
                        chunk = chunk.lstrip(b"\0")
                        if not chunk:
                            break
                        decompressor = zlib.decompressobj(wbits=31)
                    content.write(decompressor.decompress(chunk, _CHUNK))
                    if content.tell() > MAX_BYTES:
                        raise CorruptImage(self.name, "file", f"more than {MAX_BYTES} bytes, decompressed")
                    chunk = decompressor.unused_data if decompressor.eof else decompressor.unconsumed_tail
        except zlib.error as error:
            raise CorruptImage(self.name, "file", f"gzip: {error}") from error
        if not decompressor.eof:
            raise CorruptImage(self.name, "file", "gzip: the file ends early")
        content.seek(0)
        return content

    def _scan(self) -> fits.HDUList:
        if self._size == 0:
            raise CorruptImage(self.name, "file", "empty")
        if self._stream.read(9) != b"SIMPLE  =":
            raise CorruptImage(self.name, "file", "not FITS: it does not begin with SIMPLE")
        self._require_header(0, 0)
        self._stream.seek(0)
        source = fits.open(self._stream, mode="readonly", memmap=False, lazy_load_hdus=True)
        found = []
        index = end = 0
        # Asking one by one lets each be judged before the next is looked for beyond its declared end.
        while self._require_header(index, end):
            try:
                hdu = source[index]
            except IndexError:
                break
            found.append(hdu)
            self._labels.append(str(hdu.name) or str(index))
            where = hdu.fileinfo()
            end = where["datLoc"] + where["datSpan"]
            # The last block's padding may be missing; whether data are too is seen when they are read.
            if where["datSpan"] < 0 or end >= self._size + _BLOCK:
                raise CorruptImage(
                    self.name, self._labels[index], f"declares data up to byte {end}; the file has {self._size}"
                )
            index += 1
            if index > MAX_HDUS:
                raise CorruptImage(self.name, "file", f"more than {MAX_HDUS} HDUs")
        # Not the list that astropy would go on filling from whatever follows.
        return fits.HDUList(found)

    def _require_header(self, index: int, start: int) -> bool:
        """Say whether a header begins at byte `start`, and refuse one that does not end.

        astropy reads on to the file's end for it, in quadratic time, and passes over a last header without
        END in silence: a plane would be missing and nobody would know.
        """
        label = str(index) if index else "PRIMARY"
        position = self._stream.tell()
        self._stream.seek(start)
        try:
            block = self._stream.read(_BLOCK)
            if index > 0 and not block.startswith(b"XTENSION"):
                return False
            for _ in range(MAX_HEADER_BLOCKS):
                if len(block) < _BLOCK:
                    raise CorruptImage(self.name, label, "the file ends within this HDU's header")
                if any(block[card : card + 80].rstrip() == b"END" for card in range(0, _BLOCK, 80)):
                    return True
                block = self._stream.read(_BLOCK)
            raise CorruptImage(self.name, label, f"a header of more than {MAX_HEADER_BLOCKS * 36} cards")
        finally:
            self._stream.seek(position)

    def _read(self, index: int, *, verify: bool) -> tuple[Any, fits.Header]:
        """Return raw values in native order and the header whose scaling cards still apply to them."""
        shape = self.require_plane(index)
        with self.translated(self.label(index)):
            if isinstance(self.hdus[index], fits.CompImageHDU):
                # astropy applies the scaling cards itself.
                return self._read_tiles(index, shape, verify=verify), fits.Header()
            return self._read_plain(index, shape, verify=verify), self.header(index)

    def _read_plain(self, index: int, shape: tuple[int, int], *, verify: bool) -> Any:
        header, label = self.header(index), self.label(index)
        dtype = np.dtype(_DTYPES[int(header["BITPIX"])])
        values = np.empty(shape, dtype=dtype.newbyteorder("="))
        flat = values.reshape(-1)
        must_swap = dtype.itemsize > 1 and sys.byteorder == "little"
        location = self.hdus[index].fileinfo()["datLoc"]
        at_once = _BYTES_AT_ONCE // dtype.itemsize
        one_at_a_time = Lock()

        def take(start: int) -> int:
            # Summed and swapped while still in the processor's cache.
            part = flat[start : start + at_once]
            with one_at_a_time:
                self._stream.seek(location + start * dtype.itemsize)
                self._fill(part.view(np.uint8).data, label)
            total = _add_words(part.view(np.uint8)) if verify else 0
            if must_swap:
                part.byteswap(inplace=True)
            return total

        total = sum(map_threads(take, range(0, flat.size, at_once)))
        if verify:
            self._compare_sum(_fold(total), header, label)
        return values

    def _read_tiles(self, index: int, shape: tuple[int, int], *, verify: bool) -> Any:
        hdu, label = self.hdus[index], self.label(index)
        table = hdu._bintable.header  # noqa: SLF001 - no public way to the table's own cards
        tile = [int(table.get(f"ZTILE{axis}", 1 if axis > 1 else shape[1])) for axis in (1, 2)]
        if min(tile) < 1 or math.prod(tile) > MAX_PIXELS:
            raise CorruptImage(self.name, label, f"tiles of {tile[0]} x {tile[1]} pixels")
        n_tiles = math.prod(-(-n // size) for n, size in zip(shape[::-1], tile, strict=True))
        if int(table["NAXIS2"]) != n_tiles:
            raise CorruptImage(self.name, label, f"{table['NAXIS2']} tiles; {n_tiles} cover the image")
        if verify:
            where = hdu.fileinfo()
            self._stream.seek(where["datLoc"])
            self._compare_sum(compute_datasum(self._stream.read(where["datSpan"])), table, label)
        values = np.asarray(hdu.data).reshape(shape)
        return values.astype(values.dtype.newbyteorder("="), copy=False)

    def _fill(self, buffer: memoryview, label: str) -> None:
        filled = 0
        while filled < len(buffer):
            n = self._stream.readinto(buffer[filled:])  # type: ignore[attr-defined]  # binary streams have it, BinaryIO does not say so
            if not n:
                raise CorruptImage(self.name, label, "the file ends before the last pixel")
            filled += n

    def _compare_sum(self, computed: int, header: fits.Header, label: str) -> None:
        declared = str(header.get("DATASUM", computed)).strip()
        if declared != str(computed):
            raise CorruptImage(self.name, label, f"DATASUM is {declared}, the data's sum is {computed}")


def compute_datasum(data: bytes) -> int:
    """Return the FITS DATASUM of big-endian bytes (FITS 4.0, section 4.4.2.7): the ones' complement sum of words."""
    raw = np.frombuffer(data, dtype=np.uint8)
    return _fold(sum(_add_words(raw[start : start + _BYTES_AT_ONCE]) for start in range(0, raw.size, _BYTES_AT_ONCE)))


def _add_words(raw: NDArray[np.uint8]) -> int:
    """Return the plain sum of big-endian 32-bit words, padded with zeros to a whole one."""
    whole = raw.size // 4 * 4
    words = raw[:whole].view(np.uint32)
    # Swapping a piece that is in the cache and adding is faster than adding big-endian numbers.
    words = words.byteswap() if sys.byteorder == "little" else words
    return int(words.sum(dtype=np.uint64)) + int.from_bytes(raw[whole:].tobytes().ljust(4, b"\0"), "big")


def _fold(total: int) -> int:
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total
