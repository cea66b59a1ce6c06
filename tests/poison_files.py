"""Image files with something wrong: cut, flipped, of wrong types, of gigantic sizes, bombs.

``python poison_files.py FOLDER BYTES`` loads each file of a folder with no more memory than that, and prints a line of
JSON for each: what it came to, and in how many seconds.
"""

import gzip
import json
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_CARD, _BLOCK = 80, 2880


def poison(whole: bytes, n: int, *, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of `n` spoilt copies of a FITS file; the first ones are of the worst kinds."""
    rng = random.Random(seed)
    yield from _worst(whole)
    kinds = [_truncate, _flip_bits, _flip_header, _change_card, _drop_block, _double_block]
    for number in range(n - len(list(_worst(whole)))):
        kind = kinds[number % len(kinds)]
        yield f"{number:03d}{kind.__name__}.fits", kind(whole, rng)


def _worst(whole: bytes) -> Iterator[tuple[str, bytes]]:
    yield "empty.fits", b""
    yield "text.fits", b"this is no image\n" * 1000
    yield "zeros.fits", bytes(1 << 16)
    yield "gigantic.fits", _set_cards(whole, {"NAXIS1": 2_000_000, "NAXIS2": 2_000_000})
    yield "gigantic64.fits", _set_cards(whole, {"NAXIS1": 2**62, "NAXIS2": 2**62})
    yield "negative.fits", _set_cards(whole, {"NAXIS1": -1024})
    yield "axes.fits", _set_cards(whole, {"NAXIS": 999})
    yield "bitpix.fits", _set_cards(whole, {"BITPIX": 7})
    yield "types.fits", _set_cards(whole, {"BITPIX": -64})
    yield "pcount.fits", _set_cards(whole, {"PCOUNT": 2**60, "GCOUNT": 2**40})
    yield "nan.fits", _set_cards(whole, {"CRVAL1": "NaN", "CRVAL2": "NaN", "CD1_1": "NaN"})
    yield "infinite.fits", _set_cards(whole, {"CRPIX1": "1E999", "CD1_1": "0.0", "CD2_2": "0.0"})
    yield "strings.fits", _set_cards(whole, {"VISIT": "'many    '", "EXPTIME": "'long    '", "CRVAL1": "'there   '"})
    yield "bomb.fits.gz", gzip.compress(_set_cards(whole, {"NAXIS1": 60_000, "NAXIS2": 60_000}) + bytes(1 << 28), 1)
    yield "nested.fits.gz", gzip.compress(gzip.compress(whole))
    yield "cut.fits.gz", gzip.compress(whole)[: len(whole) // 10]


def _cards(data: bytes) -> Iterator[int]:
    """Yield the offsets of cards, as far as the first megabytes' headers go."""
    for start in range(0, len(data) - _CARD, _BLOCK):
        if data[start : start + 8] in (b"SIMPLE  ", b"XTENSION"):
            at = start
            while at + _CARD <= len(data) and data[at : at + 8] != b"END     ":
                yield at
                at += _CARD


def _set_cards(whole: bytes, values: dict[str, object]) -> bytes:
    data = bytearray(whole)
    for at in _cards(whole):
        name = whole[at : at + 8].decode(errors="replace").strip()
        if name in values and not (name.startswith("NAXIS") and whole[at + 10 : at + 30].strip() in (b"0", b"")):
            data[at : at + _CARD] = f"{name:8}= {values[name]!s:>20}".ljust(_CARD).encode()[:_CARD]
    return bytes(data)


def _truncate(whole: bytes, rng: random.Random) -> bytes:
    return whole[: rng.randrange(len(whole))]


def _flip_bits(whole: bytes, rng: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.randint(1, 2000)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _flip_header(whole: bytes, rng: random.Random) -> bytes:
    data, places = bytearray(whole), list(_cards(whole))
    for _ in range(rng.randint(1, 8)):
        data[rng.choice(places) + rng.randrange(_CARD)] ^= 1 << rng.randrange(8)
    return bytes(data)


def _change_card(whole: bytes, rng: random.Random) -> bytes:
    data, places = bytearray(whole), list(_cards(whole))
    for _ in range(rng.randint(1, 3)):
        at = rng.choice(places)
        value = rng.choice(["-1", "1E308", "NaN", "T", "'x       '", str(2**63), "(1, 2)", "", "0"])
        data[at + 8 : at + _CARD] = f"= {value:>20}".ljust(_CARD - 8).encode()
    return bytes(data)


def _drop_block(whole: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(whole) // _BLOCK) * _BLOCK
    return whole[:at] + whole[at + _BLOCK * rng.randint(1, 20) :]


def _double_block(whole: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(whole) // _BLOCK) * _BLOCK
    return whole[: at + _BLOCK] + whole[at:]


def load_all(folder: Path, max_bytes: int) -> None:
    from alertprod.errors import AlertprodError
    from alertprod.store.images import ImageStore

    store = ImageStore()
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    for path in sorted(folder.iterdir()):
        began = time.monotonic()
        try:
            store.load(str(path))
            outcome = "loaded"
        except AlertprodError as error:
            outcome = error.reason()
        except BaseException as error:  # noqa: BLE001 - what must not come is told to the test
            outcome = f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - began
        sys.stdout.write(json.dumps({"file": path.name, "outcome": outcome, "seconds": round(seconds, 3)}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    load_all(Path(sys.argv[1]), int(sys.argv[2]))
