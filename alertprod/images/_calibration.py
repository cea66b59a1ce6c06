"""The photometric calibration of a file: from the profile's cards, from Rubin's archive, or nominal."""

import numpy as np

from alertprod.errors import CorruptImage
from alertprod.images._fits_file import FitsFile
from alertprod.images.facts import HeaderCards
from alertprod.images.photo_calib import AB_ZERO_POINT_NJY, PhotoCalib
from alertprod.images.profile import InstrumentProfile


def read_photo_calib(file: FitsFile, cards: HeaderCards, profile: InstrumentProfile) -> tuple[PhotoCalib, str]:
    """Return the calibration and, for provenance, where it comes from."""
    photometry = profile.photometry
    is_nominal = bool(cards.read(photometry.is_nominal))
    try:
        scale = cards.read_number(photometry.njy_per_count)
        if scale is not None:
            return PhotoCalib(scale, is_nominal=is_nominal), "nominal zero point" if is_nominal else "header"
        zero_point = cards.read_number(photometry.zero_point)
        if zero_point is not None:
            if photometry.per_second:
                exposure_time = cards.read_number(profile.time.exposure_time)
                if not exposure_time:
                    raise cards.corrupt("a zero point per second, and no exposure time")
                zero_point += 2.5 * np.log10(exposure_time)
            how = "nominal zero point" if is_nominal else "header"
            return PhotoCalib.from_zero_point(float(zero_point), is_nominal=is_nominal), how
        rubin = _read_rubin_calibration(file, cards)
        if rubin is not None:
            return rubin
    except ValueError as error:
        if isinstance(error, CorruptImage):
            raise
        raise cards.corrupt(str(error)) from error
    unit = cards.find(["BUNIT"])
    if unit is not None and str(unit[1]).lower() == "njy":
        return PhotoCalib(1.0), "BUNIT"
    if photometry.nominal_zero_point is not None:
        return PhotoCalib.from_zero_point(photometry.nominal_zero_point, is_nominal=True), "nominal zero point"
    return PhotoCalib(1.0, is_nominal=True), "nominal zero point"


def _read_rubin_calibration(file: FitsFile, cards: HeaderCards) -> tuple[PhotoCalib, str] | None:
    """Read FLUXMAG0 (counts at AB magnitude 0), or the mean of the archived PhotoCalib (nJy per count)."""
    flux_mag0 = cards.find(["FLUXMAG0"])
    if flux_mag0 is not None:
        return PhotoCalib(10.0 ** (0.4 * AB_ZERO_POINT_NJY) / float(flux_mag0[1])), "FLUXMAG0"
    archive, archived_id = cards.find(["AR_HDU"]), cards.find(["PHOTOCALIB_ID"])
    if archive is None or archived_id is None:
        return None
    # The archive's first table says, for each id, which of the tables after it holds it, and from which row on.
    first = int(archive[1]) - 1
    if not 0 < first < len(file.hdus):
        raise cards.corrupt(f"AR_HDU is {archive[1]!r}; there are {len(file.hdus)} HDUs")
    with file.translated(file.label(first)):
        entries = file.hdus[first].data
        chosen = np.asarray(entries["id"] == int(archived_id[1])) & (np.asarray(entries["cat.archive"]) > 0)
        if "name" in entries.names:
            chosen &= np.char.strip(np.asarray(entries["name"]).astype(str)) == "PhotoCalib"
        entry = entries[int(np.flatnonzero(chosen)[0])]
        table = file.hdus[first + int(entry["cat.archive"])].data
        row = table[int(entry["row0"])]
        error = float(row["calibrationErr"]) if "calibrationErr" in table.names else None
        return PhotoCalib(float(row["calibrationMean"]), njy_per_count_err=error), "archived PhotoCalib, mean"
