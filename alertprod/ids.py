"""Ids: 63 bits, sign clear: release (6) | exposure (38) | counter (19, from 1). Overflow raises, nothing wraps.

The layout is Rubin's, so that an id of ours decodes with Rubin's rules where visits are numbered as
Rubin numbers them; other observatories name another packer in their profile. Ids of two instruments
collide unless the packers' ranges are disjoint: start-up checks that.
"""

import datetime
from dataclasses import dataclass
from typing import Protocol

COUNTER_BITS = 19
EXPOSURE_BITS = 38
RELEASE_BITS = 6
ID_BITS = 63
"""Signed 64-bit columns and Avro longs: the sign bit stays clear."""

_DAY_ZERO = datetime.date(2010, 1, 1).toordinal()
_N_DETECTORS = 256
_N_SEQUENCES = 32768
_N_DAYS = 16384
_N_RUBIN = _N_DETECTORS * _N_SEQUENCES * _N_DAYS
RUBIN_INSTRUMENTS = (1 << EXPOSURE_BITS) // _N_RUBIN
"""How many instruments that number their visits as Rubin does can share a database: two."""

_TWENTY_FIRST_CENTURY_DIGITS = 13


class ExposurePacker(Protocol):
    """Packs (visit, detector) into an integer below ``2 ** EXPOSURE_BITS``, one to one."""

    def pack(self, *, visit: int, detector: int) -> int:
        """Return the packed id; `ValueError` names what does not fit."""
        ...

    @property
    def bounds(self) -> tuple[int, int]:
        """The packed ids that there can be, half-open: instruments that share a database need disjoint ones."""
        ...


@dataclass(frozen=True, slots=True)
class RubinPacker:
    """13-digit visits, YYYYMMDDnnnnn: detector + 256 (sequence + 32768 day), days from 2010-01-01.

    Parameters
    ----------
    instrument_number
        0 gives Rubin's own ids, which leave the highest of the 38 bits clear; 1 sets it, for a second such camera.
    """

    instrument_number: int = 0

    @property
    def bounds(self) -> tuple[int, int]:
        """The packed ids that there can be; see `ExposurePacker`."""
        return self.instrument_number * _N_RUBIN, (self.instrument_number + 1) * _N_RUBIN

    def pack(self, *, visit: int, detector: int) -> int:
        """Return the packed id; see `ExposurePacker`."""
        if len(str(visit)) != _TWENTY_FIRST_CENTURY_DIGITS or visit < 0:
            msg = f"visit {visit} does not have the 13 digits YYYYMMDDnnnnn"
            raise ValueError(msg)
        day_text, sequence = divmod(visit, 100_000)
        try:
            day = datetime.date(day_text // 10_000, day_text // 100 % 100, day_text % 100).toordinal() - _DAY_ZERO
        except ValueError as error:
            msg = f"visit {visit} does not begin with a date YYYYMMDD: {error}"
            raise ValueError(msg) from error
        _require_range("detector", detector, _N_DETECTORS)
        _require_range("sequence number of the visit", sequence, _N_SEQUENCES)
        _require_range("days since 2010-01-01 of the visit", day, _N_DAYS)
        _require_range("instrument number", self.instrument_number, RUBIN_INSTRUMENTS)
        return self.bounds[0] + detector + _N_DETECTORS * (sequence + _N_SEQUENCES * day)


@dataclass(frozen=True, slots=True)
class SequencePacker:
    """Visits that count up from 0: detector + n_detectors * (visit + n_visits * instrument_number).

    Parameters
    ----------
    n_detectors
        Detectors of the camera.
    n_visits
        First visit number that no longer fits.
    instrument_number
        Set it apart for instruments that share one database and alert topic.
    """

    n_detectors: int = 1
    n_visits: int = 1 << 24
    instrument_number: int = 0

    @property
    def bounds(self) -> tuple[int, int]:
        """The packed ids that there can be; see `ExposurePacker`."""
        span = self.n_detectors * self.n_visits
        return self.instrument_number * span, (self.instrument_number + 1) * span

    def pack(self, *, visit: int, detector: int) -> int:
        """Return the packed id; see `ExposurePacker`."""
        _require_range("detector", detector, self.n_detectors)
        _require_range("visit", visit, self.n_visits)
        packed = self.bounds[0] + detector + self.n_detectors * visit
        _require_range("packed exposure id", packed, 1 << EXPOSURE_BITS)
        return packed


class IdFactory:
    """Counts ids from ``(exposure_id << reserved_bits) | 1`` upwards.

    Parameters
    ----------
    exposure_id
        The high bits.
    exposure_bits
        How many bits `exposure_id` may have; the counter gets the other ``63 - exposure_bits``.

    Raises
    ------
    ValueError
        Raised if `exposure_id` is negative or has more than `exposure_bits` bits.
    """

    def __init__(self, exposure_id: int, exposure_bits: int) -> None:
        if not 0 < exposure_bits < ID_BITS:
            msg = f"exposure_bits is {exposure_bits}; 1 to {ID_BITS - 1} leave room for a counter"
            raise ValueError(msg)
        _require_range("exposure id", exposure_id, 1 << exposure_bits)
        self._reserved = ID_BITS - exposure_bits
        self._upper = exposure_id << self._reserved
        self._counter = 0

    def __call__(self) -> int:
        """Return the next id; `OverflowError` when the counter's bits are used up, then and ever after."""
        following = self._counter + 1
        if following >> self._reserved:
            msg = f"id {following} of this exposure does not fit in the {self._reserved} bits of the counter"
            raise OverflowError(msg)
        self._counter = following
        return self._upper | following


def pack_release(packed_exposure: int, *, release: int) -> int:
    """Put the release above a packed exposure: the `exposure_id` of an `IdFactory` of 44 bits."""
    _require_range("release", release, 1 << RELEASE_BITS)
    _require_range("packed exposure id", packed_exposure, 1 << EXPOSURE_BITS)
    return release << EXPOSURE_BITS | packed_exposure


def _require_range(name: str, value: int, limit: int) -> None:
    if not 0 <= value < limit:
        msg = f"{name} is {value}; 0 to {limit - 1} fits"
        raise ValueError(msg)
