"""Time as the daemon needs it: Unix seconds (UTC) for clocks and leases, MJD in TAI for exposures.

Read TAI as UTC and every latency is 37 s wrong: the two scales meet here and nowhere else in the service.
"""

import bisect
import calendar
import time
from typing import Final

import erfa

_UNIX_EPOCH_MJD: Final = 40587.0
_DAY_S: Final = 86400.0
_INTEGRAL_SINCE: Final = 1972
"""Before, TAI - UTC was no whole number; no exposure is that old."""

_STEPS: Final = [
    (float(calendar.timegm((int(year), int(month), 1, 0, 0, 0))), float(tai_minus_utc))
    for year, month, tai_minus_utc in erfa.leap_seconds.get()
    if year >= _INTEGRAL_SINCE
]
"""(Unix time from which it holds, TAI - UTC in seconds), from astropy's own table; nothing is fetched."""


class Clock:
    """The host's clocks; tests hand in one that they move."""

    def unix_s(self) -> float:
        """Seconds UTC since 1970."""
        return time.time()

    def monotonic_s(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def mjd_tai(self) -> float:
        """Now, MJD in TAI."""
        return mjd_tai_from_unix(self.unix_s())


def unix_from_mjd_tai(mjd_tai: float) -> float:
    """Return Unix seconds (UTC) of an MJD in TAI."""
    tai_s = (mjd_tai - _UNIX_EPOCH_MJD) * _DAY_S
    return tai_s - _tai_minus_utc(tai_s - _tai_minus_utc(tai_s))


def mjd_tai_from_unix(unix_s: float) -> float:
    """Return the MJD in TAI of Unix seconds (UTC)."""
    return _UNIX_EPOCH_MJD + (unix_s + _tai_minus_utc(unix_s)) / _DAY_S


def _tai_minus_utc(unix_s: float) -> float:
    index = bisect.bisect_right(_STEPS, unix_s, key=lambda step: step[0])
    return _STEPS[max(index - 1, 0)][1]
