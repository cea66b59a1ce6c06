"""Time scales."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alertprod.service.clock import Clock, mjd_tai_from_unix, unix_from_mjd_tai


@pytest.mark.parametrize(
    ("unix_s", "mjd_tai"),
    [
        (1577836800.0, 58849.0 + 37 / 86400),  # 2020-01-01 00:00:00 UTC
        (1435708800.0, 57204.0 + 36 / 86400),  # 2015-07-01, the second after a leap second
        (1341100800.0, 56109.0 + 35 / 86400),  # 2012-07-01
    ],
)
def test_tai_is_ahead_by_the_leap_seconds_of_the_day(unix_s, mjd_tai):
    assert mjd_tai_from_unix(unix_s) == pytest.approx(mjd_tai, abs=1e-10)
    assert unix_from_mjd_tai(mjd_tai) == pytest.approx(unix_s, abs=1e-5)


@given(st.floats(min_value=1e9, max_value=4e9))
def test_there_and_back(unix_s):
    assert unix_from_mjd_tai(mjd_tai_from_unix(unix_s)) == pytest.approx(unix_s, abs=1e-4)  # 1e5 days to 1e-9


def test_now_agrees_in_both_scales():
    clock = Clock()

    assert unix_from_mjd_tai(clock.mjd_tai()) == pytest.approx(clock.unix_s(), abs=1.0)
