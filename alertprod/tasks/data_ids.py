"""Data ids as a command line says them: ``visit=1..5^9 detector=0``."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from alertprod.tasks.protocols import DataId

MAX_DATA_IDS = 1_000_000
"""One argument may stand for: a range with a zero too many must not fill the memory."""

_RANGE = re.compile(r"(\d+)\.\.(\d+)(?::([1-9]\d*))?")


def read_data_ids(words: Iterable[str], keys: Mapping[str, type]) -> list[dict[str, int | str]]:
    """Read what one ``--id`` says: every combination of the values of its keys.

    Parameters
    ----------
    words
        "key=values": values are joined by "^"; of a number "1..5" is a range with both ends, "1..9:2" every second.
    keys
        The keys there are, and their types, int or str.

    Returns
    -------
    list
        Partial data ids in the order they are said; one without keys, which agrees with everything, for no words.

    Raises
    ------
    ValueError
        Raised if a word is not of this form, a key is not known or said twice, or there are too many combinations.
    """
    values: dict[str, Sequence[int | str]] = {}
    for word in words:
        key, separator, text = word.partition("=")
        if not separator or not text:
            raise ValueError(f"{word!r} is not KEY=VALUE")
        if key not in keys:
            raise ValueError(f"{key!r} is not a key of the data; there are {', '.join(keys)}")
        if key in values:
            raise ValueError(f"{key!r} is given twice; join values with ^")
        values[key] = _read_values(key, text, keys[key])
    n = math.prod(len(choices) for choices in values.values())
    if n > MAX_DATA_IDS:
        raise ValueError(f"{n} data ids; at most {MAX_DATA_IDS} are taken")
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


class DataIdFilter:
    """Partial data ids, asked in constant time whatever their number."""

    def __init__(self, wanted: Iterable[DataId]) -> None:
        self._values: dict[tuple[str, ...], set[tuple[int | str, ...]]] = {}
        for dataId in wanted:
            names = tuple(sorted(dataId))
            self._values.setdefault(names, set()).add(tuple(dataId[name] for name in names))

    def matches(self, dataId: DataId) -> bool:
        """Say whether a full data id agrees with one of them."""
        return any(
            tuple(dataId.get(name, _MISSING) for name in names) in values for names, values in self._values.items()
        )


_MISSING = ""
"""No value of a key that a data id does not have."""


def list_missing(wanted: Iterable[DataId], found: Iterable[DataId]) -> list[DataId]:
    """Return the partial data ids that none of the full ones agrees with, in order."""
    found = list(found)
    seen: dict[tuple[str, ...], set[tuple[int | str, ...]]] = {}
    missing = []
    for dataId in wanted:
        names = tuple(dataId)
        if names not in seen:
            seen[names] = {tuple(full.get(name, _MISSING) for name in names) for full in found}
        if tuple(dataId[name] for name in names) not in seen[names]:
            missing.append(dataId)
    return missing


def format_data_id(dataId: DataId) -> str:
    """Return "visit=12 detector=3"."""
    return " ".join(f"{key}={value}" for key, value in dataId.items())


def _read_values(key: str, text: str, kind: type) -> Sequence[int | str]:
    values: list[int | str] = []
    for part in text.split("^"):
        if kind is not int:
            values.append(part)
        elif found := _RANGE.fullmatch(part):
            first, last, step = int(found[1]), int(found[2]), int(found[3] or 1)
            numbers = range(first, last + 1, step)
            if not numbers:
                raise ValueError(f"{key}={part}: the range is empty")
            if len(numbers) > MAX_DATA_IDS:
                raise ValueError(f"{key}={part}: {len(numbers)} values; at most {MAX_DATA_IDS} are taken")
            values.extend(numbers)
        else:
            try:
                values.append(int(part))
            except ValueError:
                raise ValueError(f"{key}={part}: {key} is a whole number or a range FIRST..LAST[:STEP]") from None
    return list(dict.fromkeys(values))
