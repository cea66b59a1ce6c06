"""Exposures in and out of FITS files.

`load_exposure` opens what its profile describes: the native format, Rubin's calexps, other observatories'
images. Whatever is wrong with a file's content is a `CorruptImage` that names file and HDU, within bounded
time and memory; pixels come back as native float32 and int32, whatever the file holds.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from astropy.io import fits

from alertprod._bands import map_bands
from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.errors import CorruptImage, DiskFull
from alertprod.geometry.wcs import SkyWcs
from alertprod.images import noise
from alertprod.images._calibration import read_photo_calib
from alertprod.images._fits_file import FitsFile
from alertprod.images.ap_corr import ApCorrMap
from alertprod.images.ap_corr_table import EXTENSION as APCORR
from alertprod.images.ap_corr_table import ap_corr_from_hdus, ap_corr_to_hdu
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.facts import HeaderCards, read_info, read_pointing
from alertprod.images.mask import MASK_PLANES, plane_bits, remap_planes
from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import PhotoCalib
from alertprod.images.profile import NATIVE_PROFILE, InstrumentProfile, load_profile
from alertprod.psf.fits_cards import psf_from_hdus, psf_to_hdus
from alertprod.psf.model import PointSpreadFunction

Source = str | Path | bytes | BinaryIO

_PROVENANCE_PREFIX = "AP "
_NO_SPACE = 28  # errno.ENOSPC


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposureHeader:
    """All of an exposure but its pixels; `Exposure` says what the fields mean."""

    shape: tuple[int, int]
    wcs: SkyWcs | None
    psf: PointSpreadFunction | None
    photo_calib: PhotoCalib
    info: ExposureInfo
    ap_corr_map: ApCorrMap | None


def load_exposure(source: Source, profile: InstrumentProfile | None = None, *, name: str | None = None) -> Exposure:
    """Load an exposure.

    Parameters
    ----------
    source
        A local path, the file's bytes, or an open binary file.
    profile
        How to read it; the native format by default.
    name
        What to call the file in messages, and where patterns look for facts; the path by default.

    Returns
    -------
    Exposure
        Pixels that are not finite are NaN with NO_DATA set. ``info.provenance["variance"]`` says where the
        variance comes from. `psf` and `ap_corr_map` are None where the file has none that is ours.

    Raises
    ------
    CorruptImage
        Raised if the content is not what the profile says, is damaged, or has no finite pixel.
    ImageNotYetAvailable, StoreUnavailable
        Raised if a path does not exist, or cannot be read.
    """
    profile = profile or load_profile(NATIVE_PROFILE)
    with FitsFile(source, name=name or name_source(source)) as file:
        header = _read_header(file, profile)
        masked_image = _read_planes(file, profile, header)
    return Exposure(
        masked_image=masked_image,
        wcs=header.wcs,
        psf=header.psf,
        photo_calib=header.photo_calib,
        info=header.info,
        ap_corr_map=header.ap_corr_map,
    )


def read_facts(source: Source, profile: InstrumentProfile | None = None, *, name: str | None = None) -> ExposureHeader:
    """Read headers only: what `load_exposure` returns, without the pixels, and at a fraction of the cost.

    Raises
    ------
    CorruptImage
        Raised as by `load_exposure`, for what headers show.
    """
    with FitsFile(source, name=name or name_source(source)) as file:
        return _read_header(file, profile or load_profile(NATIVE_PROFILE))


def load_plane(source: Source, *, name: str | None = None) -> FloatArray:
    """Load the first image of a FITS file as float32, whatever else is in it.

    Raises
    ------
    CorruptImage, ImageNotYetAvailable, StoreUnavailable
        Raised as by `load_exposure`.
    """
    with FitsFile(source, name=name or name_source(source)) as file:
        images = (i for i, hdu in enumerate(file.hdus) if hdu.is_image and file.header(i).get("NAXIS", 0) >= 2)
        return file.read_image(next(images, 0), verify=False)


def save_exposure(exposure: Exposure, path: str | Path, *, compress: bool = False) -> None:
    """Save an exposure in the native format.

    Parameters
    ----------
    path
        Local file; replaced if it is there. It appears whole or not at all.
    compress
        Tile-compressed without loss (GZIP_2, masks RICE_1): smaller, and many times slower to write.

    Raises
    ------
    DiskFull
        Raised if there is no room.
    """
    psf_cards, psf_hdus = psf_to_hdus(exposure.psf) if exposure.psf is not None else ({}, [])
    hdus = fits.HDUList([fits.PrimaryHDU(header=_make_primary_header(exposure))])
    wcs_cards = exposure.wcs.to_header() if exposure.wcs is not None else fits.Header()
    unit = "nJy" if exposure.photo_calib.njy_per_count == 1.0 and not exposure.photo_calib.is_nominal else "count"
    planes = {
        "IMAGE": np.asarray(exposure.image, dtype=np.float32),
        "MASK": np.asarray(exposure.mask, dtype=np.int32),
        "VARIANCE": np.asarray(exposure.variance, dtype=np.float32),
    }
    for plane, pixels in planes.items():
        cards = fits.Header()
        if plane == "IMAGE":
            cards.update(wcs_cards)
            cards.update(psf_cards)
        if plane == "MASK":
            for mask_plane, bit in MASK_PLANES.items():
                cards[f"HIERARCH MP_{mask_plane}"] = bit
        else:
            cards["BUNIT"] = unit if plane == "IMAGE" else f"{unit}**2"
        hdus.append(_make_hdu(pixels, cards, plane, compress=compress))
    hdus.extend(psf_hdus)
    if exposure.ap_corr_map is not None:
        hdus.append(ap_corr_to_hdu(exposure.ap_corr_map))
    write_hdus(hdus, path)


def write_hdus(hdus: fits.HDUList, path: str | Path) -> None:
    """Write a FITS file, replacing an older one, with sums of the data; it appears whole or not at all.

    Raises
    ------
    DiskFull
        Raised if there is no room.
    """
    path = Path(path)
    hdus[0].header["NEXTEND"] = (len(hdus) - 1, "extensions: fewer, and the file was cut short")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        hdus.writeto(partial, overwrite=True, checksum="datasum")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno == _NO_SPACE:
            raise DiskFull(f"{path}: {error}") from error
        raise


def name_source(source: Source) -> str:
    """Return what to call a file in messages: its path, where it has one."""
    if isinstance(source, str | Path):
        return str(source)
    return str(getattr(source, "name", "")) or "(bytes)"


def require_all_extensions(file: FitsFile) -> None:
    """Refuse a file that was cut short between two extensions."""
    declared, found = file.header(0).get("NEXTEND"), len(file.hdus) - 1
    if declared is not None and declared != found:
        raise CorruptImage(file.name, "file", f"{found} extensions; the header declares {declared}")


def _read_header(file: FitsFile, profile: InstrumentProfile) -> ExposureHeader:
    if profile.planes.checksums:
        require_all_extensions(file)
    index = _find_image(file, profile)
    shape = file.require_plane(index)
    image_header = file.header(index)
    cards = HeaderCards([image_header, file.header(0)], name=file.name, hdu=file.label(index))
    wcs = _read_wcs(cards, image_header, profile, shape)
    with file.translated("PSF"):
        psf = psf_from_hdus(file.hdus, image_header)
    with file.translated(APCORR):
        ap_corr_map = ap_corr_from_hdus(file.hdus)
    photo_calib, how = read_photo_calib(file, cards, profile)
    info = read_info(cards, profile, wcs=wcs, shape=shape)
    for card in file.header(0):
        if card.startswith(_PROVENANCE_PREFIX):
            info.provenance[card.removeprefix(_PROVENANCE_PREFIX).lower()] = str(file.header(0)[card])
    info.provenance.setdefault("photometry", how)
    return ExposureHeader(shape=shape, wcs=wcs, psf=psf, photo_calib=photo_calib, info=info, ap_corr_map=ap_corr_map)


def _find_image(file: FitsFile, profile: InstrumentProfile) -> int:
    index = file.find(profile.planes.image)
    if index is None:
        names = ", ".join(str(name) for name in profile.planes.image)
        there = ", ".join(file.label(index) for index in range(len(file.hdus)))
        raise CorruptImage(file.name, names, f"no such HDU; there are {there}")
    return index


def _read_wcs(
    cards: HeaderCards, header: fits.Header, profile: InstrumentProfile, shape: tuple[int, int]
) -> SkyWcs | None:
    world = profile.wcs
    if world.source == "nominal":
        ra, dec = read_pointing(cards, profile)
        if ra is None or dec is None or world.scale_arcsec is None:
            return None
        return SkyWcs.from_tangent(
            ra_deg=ra,
            dec_deg=dec,
            x=(shape[1] - 1) / 2,
            y=(shape[0] - 1) / 2,
            scale_arcsec=world.scale_arcsec,
            rotation_deg=world.rotation_deg,
            east_left=world.east_left,
        )
    if world.source == "none" or "CTYPE1" not in header:
        return None
    try:
        wcs = SkyWcs.from_header(header)
        corners = wcs.compute_corners(shape)
    except Exception as error:  # wcslib and astropy raise a dozen kinds
        raise cards.corrupt(f"WCS: {_first_line(error)}") from error
    if not np.isfinite(corners).all():
        raise cards.corrupt("WCS: the image's corners are not on the sky")
    return wcs


def _read_planes(file: FitsFile, profile: InstrumentProfile, header: ExposureHeader) -> MaskedImage:
    planes, info, shape = profile.planes, header.info, header.shape
    index = _find_image(file, profile)
    image = file.read_image(index, verify=planes.checksums)
    mask, knows_saturation = _read_mask(file, profile, info, shape)
    no_data, no_data_value = np.int32(plane_bits("NO_DATA")), profile.pixels.no_data_value
    empty = np.empty(shape, dtype=np.bool_)

    def find_empty(first: int, last: int) -> bool:
        rows = slice(first, last)
        np.logical_or(~np.isfinite(image[rows]), mask[rows] & no_data, out=empty[rows])
        if no_data_value is not None:
            empty[rows] |= image[rows] == np.float32(no_data_value)
        return bool(empty[rows].any())

    if any(map_bands(find_empty, shape[0])):
        if empty.all():
            raise CorruptImage(file.name, file.label(index), "no pixel has data")
        image[empty] = np.nan
        mask[empty] |= no_data
    if info.saturation is not None and not knows_saturation:
        noise.mask_saturated(image, mask, level=info.saturation, bit=plane_bits("SAT"), grow=profile.saturation.grow)
    if profile.pixels.edge:
        inside = np.zeros(shape, dtype=bool)
        inside[profile.pixels.edge : -profile.pixels.edge, profile.pixels.edge : -profile.pixels.edge] = True
        mask[~inside] |= plane_bits("EDGE")
    variance = _read_variance(file, profile, info, mask, shape)
    if variance is None:
        unusable = empty | ((mask & plane_bits("BAD", "SAT", "NO_DATA")) != 0)
        variance = _make_variance(file, profile, info, image, unusable, label=file.label(index))
    return MaskedImage(image=image, mask=mask, variance=variance)


def _read_mask(
    file: FitsFile, profile: InstrumentProfile, info: ExposureInfo, shape: tuple[int, int]
) -> tuple[IntArray, bool]:
    """Return the mask in our layout, and whether the file has a plane for saturation."""
    index = file.find(profile.planes.mask)
    if index is None:
        return np.zeros(shape, dtype=np.int32), False
    _require_shape(file, index, shape)
    bits = file.read_mask(index, verify=profile.planes.checksums)
    layouts: list[dict[str, int]] = []
    for plane, numbers in profile.planes.mask_bits.items():
        layouts.extend({plane: number} for number in numbers)
    if not layouts:
        cards = file.header(index)
        with file.translated(file.label(index)):
            declared = {card.removeprefix("MP_"): int(cards[card]) for card in cards if card.startswith("MP_")}
        layouts = [declared] if declared else []
    if not layouts:
        info.provenance["mask"] = "any non-zero value is BAD"
        return (bits != 0).astype(np.int32) * np.int32(plane_bits("BAD")), False
    n_bits = 8 * bits.dtype.itemsize
    wrong = [f"{name} {bit}" for layout in layouts for name, bit in layout.items() if not 0 <= bit < n_bits]
    if wrong:
        raise CorruptImage(file.name, file.label(index), f"mask plane outside of {n_bits} bits: {', '.join(wrong)}")
    mask, dropped = remap_planes(bits, layouts[0])
    for layout in layouts[1:]:
        more, _ = remap_planes(bits, layout)
        mask |= more
    if dropped:
        info.provenance["mask"] = f"planes without a meaning here: {', '.join(dropped)}"
    return mask, any("SAT" in layout for layout in layouts)


def _read_variance(
    file: FitsFile, profile: InstrumentProfile, info: ExposureInfo, mask: IntArray, shape: tuple[int, int]
) -> FloatArray | None:
    planes = profile.planes
    for kind, names in (("variance", planes.variance), ("weight", planes.weight), ("rms", planes.rms)):
        index = file.find(names)
        if index is None:
            continue
        _require_shape(file, index, shape)
        values = file.read_image(index, verify=planes.checksums)
        if kind == "weight":
            useless = ~(values > 0)
            mask[useless] |= plane_bits("BAD")
            with np.errstate(divide="ignore", over="ignore"):
                values = np.where(useless, np.float32(np.inf), np.float32(1.0) / values)
        elif kind == "rms":
            with np.errstate(over="ignore"):
                values = values * values
        if not _is_positive_somewhere(values):
            raise CorruptImage(file.name, file.label(index), "no pixel has a positive variance")
        info.provenance.setdefault("variance", f"{kind} plane {file.label(index)}")
        return values
    return None


def _is_positive_somewhere(plane: FloatArray) -> bool:
    return any(map_bands(lambda first, last: (plane[first:last] > 0).any(), len(plane)))


def _make_variance(
    file: FitsFile, profile: InstrumentProfile, info: ExposureInfo, image: FloatArray, bad: BoolArray, *, label: str
) -> FloatArray:
    settings = profile.noise
    if settings.source == "gain" and info.gain is None:
        raise CorruptImage(file.name, label, "no gain, and the profile makes the variance from it")
    gain = info.gain if settings.source != "pixels" else None
    try:
        sky = noise.measure_sky(image, bad, cell_size=settings.cell_size)
        if gain is not None and not settings.sky_subtracted:
            read_noise = info.read_noise or 0.0
            info.provenance["variance"] = f"gain {gain:g} e-/count, read noise {read_noise:g} e-"
            return noise.compute_variance_from_gain(
                image, bad, sky, gain=gain, read_noise=read_noise, pedestal=settings.pedestal or 0.0
            )
        slope, how = (1.0 / gain, f"gain {gain:g} e-/count") if gain else _choose_slope(profile, image, bad, sky)
        info.provenance["variance"] = f"sky scatter; photons: {how}"
        return noise.compute_variance_from_pixels(image, bad, sky, slope=slope)
    except ValueError as error:
        raise CorruptImage(file.name, label, str(error)) from error


def _choose_slope(profile: InstrumentProfile, image: FloatArray, bad: BoolArray, sky: noise.Sky) -> tuple[float, str]:
    estimated = noise.estimate_photon_slope(image, bad, sky)
    # All of the sky's scatter being photons is the most that photons can do, if the sky is still there and nothing else.
    pedestal = profile.noise.pedestal
    photons = float(np.median(sky.level)) - (pedestal or 0.0)
    has_sky = not profile.noise.sky_subtracted and photons > float(np.median(sky.rms))
    most = float(np.median(sky.rms)) ** 2 / photons if has_sky else None
    if estimated is not None and (most is None or pedestal is None or estimated.value <= most):
        return estimated.value, f"slope {estimated.value:.3g}+-{estimated.error:.2g} from the image"
    if most is not None:
        return most, f"slope {most:.3g}, if the sky's scatter is photons"
    return 0.0, "nothing: no gain"


def _require_shape(file: FitsFile, index: int, shape: tuple[int, int]) -> None:
    found = file.require_plane(index)
    if found != shape:
        problem = f"{found[1]} x {found[0]} pixels; the image has {shape[1]} x {shape[0]}"
        raise CorruptImage(file.name, file.label(index), problem)


def _make_hdu(pixels: Any, cards: fits.Header, plane: str, *, compress: bool) -> Any:
    if compress:
        if pixels.dtype.kind == "f":
            return fits.CompImageHDU(pixels, cards, name=plane, compression_type="GZIP_2", quantize_level=0.0)
        return fits.CompImageHDU(pixels, cards, name=plane, compression_type="RICE_1")
    return fits.ImageHDU(pixels, cards, name=plane)


def _make_primary_header(exposure: Exposure) -> fits.Header:
    """Return the native cards; ``profiles/alertprod.toml`` reads them back."""
    info, calib = exposure.info, exposure.photo_calib
    facts: list[tuple[str, Any, str]] = [
        ("INSTRUME", info.instrument or None, "instrument"),
        ("VISIT", info.visit, "number of the visit"),
        ("DETECTOR", info.detector, "number of the detector"),
        ("BAND", info.band, "passband, short"),
        ("FILTER", info.physical_filter, "physical filter"),
        ("MJD-BEG", info.shutter_open_mjd_tai, "shutter opens, MJD, TAI"),
        ("MJD-END", info.shutter_close_mjd_tai, "shutter closes, MJD, TAI"),
        ("EXPTIME", info.exposure_time_s, "exposure time, s"),
        ("RA", info.ra_deg, "pointing, ICRS, deg"),
        ("DEC", info.dec_deg, "pointing, ICRS, deg"),
        ("ROTANG", info.rotation_deg, "rotation, deg"),
        ("GAIN", info.gain, "electrons per image unit"),
        ("RDNOISE", info.read_noise, "electrons"),
        ("SATURATE", info.saturation, "image units"),
        ("OBSREASN", info.observation_reason, "why it was observed"),
        ("OBJECT", info.target_name, "target"),
        ("NJYCOUNT", calib.njy_per_count, "nJy per image unit"),
        ("MAGZERO", round(calib.zero_point_mag, 6), "AB magnitude of one image unit"),
        ("ZPNOMINL", calib.is_nominal, "zero point is nominal: nobody measured it"),
    ]
    header = fits.Header()
    header["TIMESYS"] = ("TAI", "of all times here")
    for card, value, comment in facts:
        if value is not None:
            header[card] = (_plain(value) if isinstance(value, str) else value, comment)
    for fact, text in info.provenance.items():
        card = f"HIERARCH {_PROVENANCE_PREFIX}{fact.upper()}"
        # A card of this kind cannot be continued: what does not fit is cut.
        header[card] = _plain(text).replace("'", "")[: 80 - len(f"{card} = ''")]
    return header


def _plain(text: str) -> str:
    """Return text that a card may hold."""
    return text.encode("ascii", "replace").decode().translate(dict.fromkeys(range(32), " "))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
