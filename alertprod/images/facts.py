"""Facts of an exposure from its headers and file name, and their comparison with an event's.

Times are converted from UTC to TAI with the leap seconds compiled into ERFA: no table is fetched.
"""

import re
import warnings
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import erfa
import numpy as np
from astropy.io import fits

from alertprod.errors import CorruptImage, HeaderMismatch
from alertprod.geometry.sphere import separation_arcsec
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import ExposureInfo
from alertprod.images.profile import Fact, InstrumentProfile, Moment, Times

_SECONDS_PER_DAY = 86400.0
_MJD_ZERO = 2400000.5
_VISIT_EPOCH_MJD_TAI = 51544.0
"""2000-01-01: visits made of times count from here; 63 years of seconds are below 2^31."""

_ISO_DATE = re.compile(r"\s*(\d{4})[-/](\d{1,2})[-/](\d{1,2})")
_TIME_OF_DAY = re.compile(r"(?:^|[T\s])(\d{1,2}):(\d{1,2})(?::(\d{1,2}(?:\.\d*)?))?")
_SEXAGESIMAL = re.compile(r"\s*([+-]?)\s*(\d{1,3})[\s:hd]+(\d{1,2})[\s:m']+(\d{1,2}(?:\.\d*)?)[s\"]?\s*$")
_PLAIN_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eEdD][+-]?\d+)?\s*$")


class HeaderCards:
    """The cards of one exposure, looked up in the image's HDU first, then in the primary one.

    Parameters
    ----------
    headers
        In the order in which they are asked.
    name
        Path or URI of the file: for messages, and for patterns in its last part.
    hdu
        The image's HDU, for messages.
    """

    def __init__(self, headers: Sequence[fits.Header], *, name: str, hdu: str) -> None:
        self._headers = headers
        self.name = name
        self._hdu = hdu

    def corrupt(self, problem: str) -> CorruptImage:
        """Return the error that names this file and HDU."""
        return CorruptImage(self.name, self._hdu, problem)

    def find(self, cards: Sequence[str]) -> tuple[str, Any] | None:
        """Return name and value of the first card that is there and not blank."""
        for card in cards:
            for header in self._headers:
                try:
                    value = header.get(card)
                except (fits.VerifyError, ValueError) as error:
                    raise self.corrupt(f"card {card}: {str(error).splitlines()[0]}") from error
                if value is None or isinstance(value, fits.card.Undefined):
                    continue
                if isinstance(value, str) and not value.strip():
                    continue
                return card, value.strip() if isinstance(value, str) else value
        return None

    def read(self, fact: Fact | None) -> Any:
        """Return the fact's value as the file has it, mapped and scaled; None where it is not there.

        Raises
        ------
        CorruptImage
            Raised if the value is there and is not one the profile lists, or not a number where one is needed.
        """
        if fact is None:
            return None
        if fact.value is not None:
            return fact.value
        if fact.file_name is not None:
            found = re.search(fact.file_name, PurePosixPath(self.name).name)
            where, value = "file name", found.group(1) if found else None
        else:
            card = self.find(fact.card)
            where, value = card or ("", None)
        if value is None:
            return None
        if fact.pattern is not None:
            found = re.search(fact.pattern, str(value))
            if found is None:
                raise self.corrupt(f"{where} is {value!r}, which has no {fact.pattern!r} in it")
            value = found.group(1)
        if fact.values:
            if str(value) not in fact.values:
                raise self.corrupt(f"{where} is {value!r}; the profile knows {', '.join(fact.values)}")
            return fact.values[str(value)]
        return value if fact.factor == 1.0 else self._number(value, where) * fact.factor

    def read_number(self, fact: Fact | None) -> float | None:
        """Return the fact as a finite number, None where it is not there."""
        value = self.read(fact)
        return None if value is None else self._number(value, _place(fact))

    def read_integer(self, fact: Fact | None) -> int | None:
        """Return the fact as a whole number, None where it is not there."""
        value = self.read(fact)
        if value is None:
            return None
        try:
            # Not by way of a float: visits of 13 digits and more must keep them all.
            return int(value) if isinstance(value, int | str) else _whole(value)
        except ValueError as error:
            raise self.corrupt(f"{_place(fact)} is {value!r}, not a whole number") from error

    def read_text(self, fact: Fact | None) -> str | None:
        """Return the fact as text, None where it is not there."""
        value = self.read(fact)
        return None if value is None else str(value)

    def read_angle(self, fact: Fact | None, *, hours: bool, hours_if_sexagesimal: bool) -> float | None:
        """Return the fact in degrees; text like ``18:15:29`` is sexagesimal."""
        value = self.read(fact)
        if value is None:
            return None
        if isinstance(value, str) and not _PLAIN_NUMBER.match(value):
            found = _SEXAGESIMAL.match(value)
            if found is None or float(found[3]) >= 60 or float(found[4]) >= 60:
                raise self.corrupt(f"{_place(fact)} is {value!r}, neither degrees nor sexagesimal")
            angle = float(found[2]) + float(found[3]) / 60.0 + float(found[4]) / 3600.0
            return (-angle if found[1] == "-" else angle) * (15.0 if hours_if_sexagesimal else 1.0)
        return self._number(value, _place(fact)) * (15.0 if hours else 1.0)

    def read_mjd_tai(self, moment: Moment | None) -> float | None:
        """Return an instant as MJD in TAI, None where its cards are not there."""
        if moment is None:
            return None
        date = self.find(moment.card)
        if date is None:
            return None
        scale = moment.scale
        declared = self.find(["TIMESYS"])
        if declared is not None and str(declared[1]).strip().lower() in ("utc", "tai"):
            scale = "tai" if str(declared[1]).strip().lower() == "tai" else "utc"
        if moment.format == "iso":
            time_of_day = self.find([moment.time_card]) if moment.time_card else None
            days = self._read_iso(date, time_of_day, scale=scale)
        else:
            days = (_MJD_ZERO, self._number(date[1], date[0]) - (_MJD_ZERO if moment.format == "jd" else 0.0))
        if scale == "utc":
            days = _utc_to_tai(*days)
        mjd_tai = (days[0] - _MJD_ZERO) + days[1]
        if not 0 < mjd_tai < 200_000:
            raise self.corrupt(f"{date[0]} is {date[1]!r}, MJD {mjd_tai:g}: no date of an exposure")
        return mjd_tai

    def _read_iso(
        self, date: tuple[str, Any], time_of_day: tuple[str, Any] | None, *, scale: str
    ) -> tuple[float, float]:
        text = str(date[1])
        day = _ISO_DATE.match(text)
        clock = _TIME_OF_DAY.search(text[day.end() :] if time_of_day is None and day else str((time_of_day or date)[1]))
        if day is None or (clock is None and time_of_day is not None):
            raise self.corrupt(f"{date[0]} is {text!r}, not a date YYYY-MM-DDThh:mm:ss")
        hour, minute, second = (int(clock[1]), int(clock[2]), float(clock[3] or 0)) if clock else (0, 0, 0.0)
        try:
            with warnings.catch_warnings():
                # Years that ERFA calls dubious are off by a leap second at most.
                warnings.simplefilter("ignore", erfa.ErfaWarning)
                day_1, day_2 = erfa.dtf2d(scale.upper(), int(day[1]), int(day[2]), int(day[3]), hour, minute, second)
        except erfa.ErfaError as error:
            raise self.corrupt(f"{date[0]} is {text!r}: {error}") from error
        return float(day_1), float(day_2)

    def _number(self, value: Any, where: str) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise self.corrupt(f"{where} is {value!r}, not a number") from error
        if not np.isfinite(number):
            raise self.corrupt(f"{where} is {value!r}, not a finite number")
        return number


def read_info(
    cards: HeaderCards, profile: InstrumentProfile, *, wcs: SkyWcs | None, shape: tuple[int, int]
) -> ExposureInfo:
    """Read all facts the profile declares.

    Parameters
    ----------
    wcs, shape
        Where the profile declares no pointing, it is the middle of the image by its WCS.

    Returns
    -------
    ExposureInfo
        What is not in the file is None.

    Raises
    ------
    CorruptImage
        Raised if a card is there and cannot be what the profile says it is.
    """
    start, end, exposure_time = read_times(cards, profile.time)
    ra, dec = read_pointing(cards, profile)
    provenance = {}
    if (ra is None or dec is None) and wcs is not None:
        ra, dec = wcs.compute_center(shape)
        provenance["pointing"] = "middle of the image by its WCS"
    visit: int | None
    if profile.visit is not None and profile.visit.from_time:
        visit = None if start is None else int((start - _VISIT_EPOCH_MJD_TAI) * _SECONDS_PER_DAY + 0.5)
    else:
        visit = cards.read_integer(profile.visit)
    gain = cards.read_number(profile.noise.gain)
    return ExposureInfo(
        instrument=cards.read_text(profile.instrument) or "",
        visit=visit,
        detector=cards.read_integer(profile.detector),
        band=cards.read_text(profile.band),
        physical_filter=cards.read_text(profile.physical_filter),
        shutter_open_mjd_tai=start,
        shutter_close_mjd_tai=end,
        exposure_time_s=exposure_time,
        ra_deg=ra,
        dec_deg=dec,
        rotation_deg=cards.read_number(profile.pointing.rotation),
        # Some programs write GAIN = 0 for a gain that nobody knows.
        gain=gain if gain is not None and gain > 0 else None,
        read_noise=cards.read_number(profile.noise.read_noise),
        saturation=cards.read_number(profile.saturation.level),
        observation_reason=cards.read_text(profile.observation_reason),
        target_name=cards.read_text(profile.target_name),
        provenance=provenance,
    )


def read_times(cards: HeaderCards, times: Times) -> tuple[float | None, float | None, float | None]:
    """Return shutter open and close (MJD, TAI) and the exposure time (s), each None where unknown."""
    start, middle, end = (cards.read_mjd_tai(moment) for moment in (times.start, times.middle, times.end))
    exposure_time = cards.read_number(times.exposure_time)
    if exposure_time is not None and exposure_time < 0:
        raise cards.corrupt(f"exposure time is {exposure_time} s")
    if exposure_time is not None:
        days = exposure_time / _SECONDS_PER_DAY
        if start is None and middle is not None:
            start = middle - days / 2
        if start is None and end is not None:
            start = end - days
        if end is None and start is not None:
            end = start + days
    elif start is not None and end is not None:
        exposure_time = (end - start) * _SECONDS_PER_DAY
    if start is not None and end is not None and end < start:
        raise cards.corrupt(f"the shutter closes (MJD {end}) before it opens (MJD {start})")
    return start, end, exposure_time


def read_pointing(cards: HeaderCards, profile: InstrumentProfile) -> tuple[float | None, float | None]:
    """Return (ra, dec) in degrees as the profile's cards say; (None, None) unless both are there."""
    pointing = profile.pointing
    ra = cards.read_angle(pointing.ra, hours=pointing.ra_in_hours, hours_if_sexagesimal=True)
    dec = cards.read_angle(pointing.dec, hours=False, hours_if_sexagesimal=False)
    if ra is None or dec is None:
        return None, None
    if not -90.0 <= dec <= 90.0:
        raise cards.corrupt(f"declination is {dec}")
    return ra % 360.0, dec


def check_facts(
    info: ExposureInfo,
    *,
    visit: int,
    detector: int,
    band: str,
    ra_deg: float,
    dec_deg: float,
    max_offset_arcsec: float,
    uri: str,
    profile: InstrumentProfile | None = None,
) -> None:
    """Compare what an event says of an exposure with what its file says.

    Parameters
    ----------
    info
        From the file. A None in it is not compared, unless `profile` declares the fact.
    max_offset_arcsec
        How far the pointings may be apart.
    profile
        With it, a fact that the profile finds in cards or file name and this file lacks is a mismatch too.

    Raises
    ------
    HeaderMismatch
        Raised if visit, detector, band or pointing disagree; names the first that does.
    """
    declared = (
        {"visit": profile.visit, "detector": profile.detector, "band": profile.band, "pointing": profile.pointing.ra}
        if profile is not None
        else {}
    )
    pairs = (("visit", visit, info.visit), ("detector", detector, info.detector), ("band", band, info.band))
    for field, event_value, header_value in pairs:
        if header_value is None and declared.get(field) is None:
            continue
        if header_value != event_value:
            raise HeaderMismatch(uri, field, event_value, header_value)
    if info.ra_deg is None or info.dec_deg is None:
        if declared.get("pointing") is not None:
            raise HeaderMismatch(uri, "pointing", (ra_deg, dec_deg), None)
        return
    offset = float(separation_arcsec(info.ra_deg, info.dec_deg, ra_deg, dec_deg))
    if not offset <= max_offset_arcsec:
        raise HeaderMismatch(uri, "pointing", (ra_deg, dec_deg), (info.ra_deg, info.dec_deg))


def _utc_to_tai(day_1: float, day_2: float) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", erfa.ErfaWarning)  # as above
        tai = erfa.utctai(day_1, day_2)
    return float(tai[0]), float(tai[1])


def _whole(value: Any) -> int:
    if isinstance(value, bool) or value != int(value):
        msg = "not whole"
        raise ValueError(msg)
    return int(value)


def _place(fact: Fact | None) -> str:
    return "/".join(fact.card) or "file name" if fact is not None else ""
