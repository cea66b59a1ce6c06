"""Numbers of settings are held to their ranges, and the message says which limit is broken."""

import math
from dataclasses import dataclass

import pytest

from alertprod._ranges import require_ranges
from alertprod.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    width: float = 1.0
    orders: tuple[int, ...] = (1, 2)

    def __post_init__(self):
        require_ranges(self, width=(1e-3, 100.0), orders=(1, 3))


def test_both_limits_are_allowed():
    for width in (1e-3, 100.0):
        assert Settings(width=width).width == width
    assert Settings(orders=()).orders == ()


@pytest.mark.parametrize(
    ("values", "field", "problem"),
    [
        ({"width": 101.0}, "width", "101 is above 100"),
        ({"width": math.inf}, "width", "inf is above 100"),
        ({"width": 0.0}, "width", "0 is not above 0"),
        ({"width": 5e-4}, "width", "0.0005 is below 0.001"),
        ({"width": math.nan}, "width", "nan is not within 0.001 to 100"),
        ({"orders": (1, 0)}, "orders", "0 is below 1"),
    ],
)
def test_what_is_not_within_its_range_is_named_with_the_limit(values, field, problem):
    with pytest.raises(ConfigError) as caught:
        Settings(**values)
    assert (caught.value.source, caught.value.field, caught.value.problem) == ("Settings", field, problem)
