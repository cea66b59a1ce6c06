"""What a visit's last calibration says of its detectors: point spread functions and aperture corrections, in one FITS file.

The primary header has ``APKIND = VISIT_SUMMARY``. For each detector follows an extension without pixels, with its number
and the cards of an analytic PSF, and after it the detector's tables PSF_DATA and APCORR where there are any.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from astropy.io import fits

from alertprod.images._fits_file import FitsFile
from alertprod.images.ap_corr import ApCorrMap
from alertprod.images.ap_corr_table import ap_corr_from_hdus, ap_corr_to_hdu
from alertprod.images.fits_io import Source, name_source, require_all_extensions, write_hdus
from alertprod.psf.fits_cards import psf_from_hdus, psf_to_hdus
from alertprod.psf.model import PointSpreadFunction

_KIND_CARD, _KIND = "APKIND", "VISIT_SUMMARY"
_DETECTOR_CARD = "DETECTOR"
_POSITION_CARDS = ("PSFX", "PSFY")


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorCalibration:
    """What is known of one detector; None where nothing is."""

    psf: PointSpreadFunction | None = None
    ap_corr_map: ApCorrMap | None = None


class VisitSummary(Mapping[int, DetectorCalibration]):
    """The calibrations of a visit by detector; immutable.

    Parameters
    ----------
    detectors
        By number.
    """

    def __init__(self, detectors: Mapping[int, DetectorCalibration]) -> None:
        self._detectors = dict(detectors)

    def __getitem__(self, detector: int) -> DetectorCalibration:
        return self._detectors[detector]

    def __iter__(self) -> Iterator[int]:
        return iter(self._detectors)

    def __len__(self) -> int:
        return len(self._detectors)


def save_visit_summary(summary: VisitSummary, path: str | Path) -> None:
    """Save a visit's calibrations, replacing an older file; it appears whole or not at all.

    Raises
    ------
    DiskFull
        Raised if there is no room.

    Notes
    -----
    A PSF that is neither analytic nor a PSFEx model is approximated, as in an exposure's file.
    """
    primary = fits.PrimaryHDU()
    primary.header[_KIND_CARD] = (_KIND, "calibrations of a visit, by detector")
    hdus = fits.HDUList([primary])
    for detector, calibration in sorted(summary.items()):
        cards = fits.Header()
        tables: list[fits.BinTableHDU] = []
        if calibration.psf is not None:
            cards, tables = psf_to_hdus(calibration.psf)
            for card, coordinate in zip(_POSITION_CARDS, calibration.psf.average_position, strict=True):
                cards[card] = (float(coordinate), "[pixel] where the PSF is the average one")
        if calibration.ap_corr_map is not None:
            tables.append(ap_corr_to_hdu(calibration.ap_corr_map))
        cards[_DETECTOR_CARD] = (detector, "number of the detector")
        hdus.extend([fits.ImageHDU(header=cards, name=f"DETECTOR_{detector}"), *tables])
    write_hdus(hdus, path)


def load_visit_summary(source: Source, *, name: str | None = None) -> VisitSummary:
    """Load what `save_visit_summary` has saved.

    Raises
    ------
    CorruptImage
        Raised if the content is damaged or no visit's calibrations.
    ImageNotYetAvailable, StoreUnavailable
        Raised if a path does not exist, or cannot be read.
    """
    with FitsFile(source, name=name or name_source(source)) as file, file.translated("PRIMARY"):
        if file.header(0).get(_KIND_CARD) != _KIND:
            msg = f"{_KIND_CARD} is not {_KIND}: no calibrations of a visit"
            raise ValueError(msg)
        require_all_extensions(file)
        starts = [index for index in range(1, len(file.hdus)) if _DETECTOR_CARD in file.header(index)]
        detectors = {}
        for start, end in itertools.pairwise([*starts, len(file.hdus)]):
            header = file.header(start)
            with file.translated(file.label(start)):
                detectors[int(header[_DETECTOR_CARD])] = _read_detector(header, list(file.hdus[start + 1 : end]))
    return VisitSummary(detectors)


def is_visit_summary(path: str | Path) -> bool:
    """Say whether a FITS file holds a visit's calibrations; errors as `load_visit_summary`."""
    with FitsFile(path, name=str(path)) as file:
        return bool(file.header(0).get(_KIND_CARD) == _KIND)


def _read_detector(header: fits.Header, tables: list[fits.BinTableHDU]) -> DetectorCalibration:
    cards = header.copy()
    for axis, card in enumerate(_POSITION_CARDS, start=1):
        # The middle of an exposure's image is where its PSF is the average one: as many pixels as make it so.
        cards[f"NAXIS{axis}"] = 2.0 * header.get(card, 0.0) + 1.0
    return DetectorCalibration(psf=psf_from_hdus(tables, cards), ap_corr_map=ap_corr_from_hdus(tables))
