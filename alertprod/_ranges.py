"""Ranges of settings: what a number may be, checked where a dataclass of settings is made."""

from typing import Any

from alertprod.errors import ConfigError

_ANY = 0.01
"""A least value below this stands for "above zero", and is not told."""


def require_ranges(settings: Any, **ranges: tuple[float, float]) -> None:
    """Refuse a number that is not within its range; NaN never is.

    Parameters
    ----------
    settings
        A dataclass instance.
    ranges
        Least and most by field, both allowed; of a tuple every element counts.

    Raises
    ------
    ConfigError
        Raised with the field, the number and the limit that it breaks.
    """
    for name, (least, most) in ranges.items():
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not least <= number <= most:
                raise ConfigError(type(settings).__name__, name, f"{number:g} is {_describe(number, least, most)}")


def _describe(number: float, least: float, most: float) -> str:
    if number > most:
        return f"above {most:g}"
    if number < least:
        return "not above 0" if number <= 0.0 < least < _ANY else f"below {least:g}"
    return f"not within {least:g} to {most:g}"
