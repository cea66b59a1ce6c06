"""Names of small bodies: the Minor Planet Center's packed form, and the 63-bit ids made from it."""

import hashlib
import re

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""Base 62 as the Minor Planet Center counts."""

_NUMBERED = re.compile(r"\((?P<in_brackets>\d+)\)(?: .*)?|(?P<bare>\d+)")
_NUMBERED_COMET = re.compile(r"(?P<number>\d{1,4})(?P<kind>[PDI])(?:/.*)?")
_PROVISIONAL = re.compile(r"(?P<year>(?:1[89]|20)\d\d) (?P<letters>[A-HJ-Y][A-HJ-Z])(?P<cycle>\d{0,6})")
_SURVEY = re.compile(r"(?P<number>\d{4}) (?P<survey>P-L|T-[123])")
_COMET = re.compile(
    r"(?P<kind>[PCDXAI])/(?P<year>(?:1[89]|20)\d\d) (?P<half_month>[A-HJ-Y])(?P<number>\d{1,3})(?:-(?P<fragment>[A-Z]))?"
    r"(?: \(.*\))?"
)
_COMET_LIKE_PLANET = re.compile(r"(?P<kind>[PCDXAI])/(?P<designation>\d{4} [A-HJ-Y][A-HJ-Z]\d{0,3})(?: \(.*\))?")
_PACKED = re.compile(
    r"[PCDXAI]?[I-K]\d\d[A-HJ-Y][0-9A-Za-z]\d[0-9A-HJ-Za-z]"  # provisional
    r"|_[0-9A-Za-z][A-HJ-Y][0-9A-Za-z]{4}|(?:PL|T[123])S\d{4}"
    r"|[A-Za-z]\d{4}|~[0-9A-Za-z]{4}|\d{4}[PDI]"  # permanent
)

_MAX_LETTERED = 620_000
"""From here on a number's packed form begins with a tilde, and a cycle's with an underscore (620 of them)."""

_LETTERS_OF_A_CYCLE = "ABCDEFGHJKLMNOPQRSTUVWXYZ"
"""Without I."""


def pack_designation(designation: str) -> str | None:
    """Return a designation in the Minor Planet Center's packed form.

    Parameters
    ----------
    designation
        "1995 XA", "2040 P-L", "C/2020 F3", "(433) Eros", "1P/Halley"; one that is packed stays as it is.

    Returns
    -------
    str or None
        At most 8 ASCII characters; None for what follows no rule of the Minor Planet Center's.

    Notes
    -----
    https://minorplanetcenter.net/iau/info/PackedDes.html, with its extensions for numbers from 620 000 on and for
    half months of more than 15 500 discoveries.
    """
    text = " ".join(designation.split())
    if _PACKED.fullmatch(text):
        return text
    if match := _NUMBERED.fullmatch(text):
        return _pack_number(int(match["in_brackets"] or match["bare"]))
    if match := _NUMBERED_COMET.fullmatch(text):
        return f"{int(match['number']):04d}{match['kind']}"
    if match := _PROVISIONAL.fullmatch(text):
        return _pack_provisional(int(match["year"]), match["letters"], int(match["cycle"] or 0))
    if match := _SURVEY.fullmatch(text):
        return f"{match['survey'].replace('-', '')}S{match['number']}"
    if match := _COMET.fullmatch(text):
        cycle, fragment = _pack_cycle(int(match["number"])), (match["fragment"] or "0").lower()
        return f"{match['kind']}{_pack_year(int(match['year']))}{match['half_month']}{cycle}{fragment}"
    if match := _COMET_LIKE_PLANET.fullmatch(text):
        packed = pack_designation(match["designation"])
        return None if packed is None or packed.startswith("_") else match["kind"] + packed
    return None


def compute_ss_object_id(designation: str) -> int:
    """Return the id of a Solar System body: 1 to 2^63 - 1, the same for a designation for ever.

    Notes
    -----
    Rubin's: the bytes of the packed designation, the first one the highest. A name that cannot be packed gets 63 bits
    of its hash (BLAKE2b).
    """
    packed = pack_designation(designation)
    if packed is not None:
        return int.from_bytes(packed.encode("ascii"), "big")
    text = " ".join(designation.split())
    return (int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1) or 1


def _pack_number(number: int) -> str | None:
    if number < _MAX_LETTERED:
        return f"{_DIGITS[number // 10_000]}{number % 10_000:04d}"
    beyond = number - _MAX_LETTERED
    return f"~{_base_62(beyond, 4)}" if beyond < 62**4 else None


def _pack_provisional(year: int, letters: str, cycle: int) -> str | None:
    half_month, second = letters[0], letters[1]
    if cycle < 620:
        return f"{_pack_year(year)}{half_month}{_pack_cycle(cycle)}{second}"
    beyond = (cycle - 620) * len(_LETTERS_OF_A_CYCLE) + _LETTERS_OF_A_CYCLE.index(second)
    if not 2000 <= year < 2062 or beyond >= 62**4:
        return None
    return f"_{_DIGITS[year - 2000]}{half_month}{_base_62(beyond, 4)}"


def _pack_year(year: int) -> str:
    return f"{_DIGITS[year // 100]}{year % 100:02d}"


def _pack_cycle(cycle: int) -> str:
    return f"{_DIGITS[cycle // 10]}{cycle % 10}"


def _base_62(value: int, width: int) -> str:
    digits = []
    for _ in range(width):
        value, digit = divmod(value, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
