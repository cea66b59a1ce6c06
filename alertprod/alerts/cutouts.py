"""Cutouts: three small pictures of each source as FITS bytes that astropy's CCDData reads.

The bytes are put together by hand, because building headers card by card takes fifty times longer.
The primary HDU is the image in nJy; UNCERT holds the *variance*, MASK is 1 where a pixel must not be
used, PSFIMAGE is the point spread function centred on its middle pixel.
"""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alertprod._typing import FloatArray
from alertprod.errors import AlertprodError
from alertprod.geometry.box import Box
from alertprod.images.exposure import Exposure
from alertprod.images.mask import MASK_PLANES, plane_bits
from alertprod.measurement.catalog import Catalog
from alertprod.psf.model import PointSpreadFunction

if TYPE_CHECKING:
    from astropy.nddata import CCDData

_log = logging.getLogger(__name__)

_BLOCK_BYTES = 2880
_CARD_BYTES = 80

_PSFS_AT_ONCE = 256
"""PSFs that are drawn together: enough to be quick, few enough to take some megabytes."""

GOOD_PLANES = ("DETECTED", "DETECTED_NEGATIVE", "INJECTED", "INJECTED_TEMPLATE", "HIGH_VARIANCE")
"""Planes that say something about a pixel, but not that it must not be used; all others make MASK 1."""

_DO_NOT_USE = plane_bits(*(name for name in MASK_PLANES if name not in GOOD_PLANES))


@dataclass(frozen=True, slots=True, kw_only=True)
class CutoutConfig:
    """Size and contents of the cutouts."""

    min_size: int = 30
    """Side in pixels: enough sky about a point source to judge it."""

    max_size: int = 102
    """10 degrees a day over 30 s at 0.2 arcsec, and a PSF at both ends."""

    max_psf_size: int | None = None
    """Crop PSFIMAGE to this side (odd; pixel values stay as they are): 25 saves a sixth of a small alert."""

    with_mask_bits: bool = False
    """Add a MASKBITS HDU: all planes as int32, with the bit numbers in ``MP_*`` cards."""


class CutoutTriplet(NamedTuple):
    """The cutouts of one source; None where one could not be made."""

    difference: bytes | None
    science: bytes | None
    template: bytes | None


class Cutouts(NamedTuple):
    """The cutouts of an exposure's sources, in their order."""

    triplets: list[CutoutTriplet]
    n_missing: int
    """Cutouts that could not be made."""
    n_without_psf: int
    """Cutouts that lack PSFIMAGE, because the PSF could not be drawn there."""
    n_without_wcs: int
    """Cutouts that lack world coordinates: the exposure has some, but they fail there."""


def make_cutouts(
    sources: Catalog,
    *,
    difference: Exposure,
    science: Exposure,
    template: Exposure | None,
    config: CutoutConfig | None = None,
) -> Cutouts:
    """Cut the three images out around each source.

    Parameters
    ----------
    sources
        `DIA_SOURCE_COLUMNS`.
    difference, science, template
        On one pixel grid; the template is the matched one, or None. World coordinates and rotation are the
        difference's.

    Notes
    -----
    All three have the same pixels: a square of ``clamp(bbox_size, min_size, max_size)`` with the source in its middle.
    Pixels beyond the edge are NaN and masked. A source off the image, or of unknown position, has no cutouts. Whatever
    else goes wrong with one cutout costs that cutout: it is counted as missing, and said in the log.
    """
    config = config or CutoutConfig()
    places = _find_places(sources, difference, config)
    columns: list[list[bytes | None]] = []
    n_without_psf, problems = 0, 0
    for exposure in (difference, science, template):
        column: list[bytes | None] = []
        for place, draw in zip(places, _draw_psfs(exposure, places, max_size=config.max_psf_size), strict=True):
            cutout = None
            if place is not None and exposure is not None:
                try:
                    psf_image = draw()
                    cutout = _encode_cutout(exposure, place, psf_image, with_mask_bits=config.with_mask_bits)
                    n_without_psf += psf_image is None
                except Exception:  # noqa: BLE001 - the alert is worth more than its picture, whatever this is
                    problems += 1
                    if problems == 1:  # the next thousand have the same cause
                        _log.warning("a cutout at x %.1f, y %.1f cannot be made", place.x, place.y, exc_info=True)
            column.append(cutout)
        columns.append(column)
    triplets = [CutoutTriplet(*row) for row in zip(*columns, strict=True)]
    return Cutouts(
        triplets,
        n_missing=sum(cutout is None for row in triplets for cutout in row),
        n_without_psf=n_without_psf,
        n_without_wcs=sum(
            cutout is not None
            for place, row in zip(places, triplets, strict=True)
            if place is not None and not place.has_wcs and difference.wcs is not None
            for cutout in row
        ),
    )


def load_cutout(data: bytes) -> CCDData:
    """Read a cutout: `data` in nJy, `mask`, `uncertainty` (variance), `wcs` and `psf`."""
    from astropy.nddata import CCDData  # late: half a second that a worker can do without

    return CCDData.read(io.BytesIO(data), format="fits")


class _Place(NamedTuple):
    box: Box
    x: float
    y: float
    header: bytes
    """The primary HDU's cards but for those that depend on the exposure."""
    has_wcs: bool


def _find_places(sources: Catalog, difference: Exposure, config: CutoutConfig) -> list[_Place | None]:
    """Return where to cut and the cards all three cutouts share; None for sources that have no place."""
    # float64: a position's last digits matter in CRPIX as little as anywhere, but sums of float32 drift.
    x, y = sources["x"].astype(float), sources["y"].astype(float)
    ra, dec = sources["ra_deg"], sources["dec_deg"]
    usable = np.isfinite(x) & np.isfinite(y)
    jacobians = np.full((sources.n_rows, 2, 2), np.nan)
    if difference.wcs is not None:
        usable &= np.isfinite(ra) & np.isfinite(dec)
        jacobians[usable] = difference.wcs.compute_jacobian(x=x[usable], y=y[usable])
    sizes = np.clip(sources["bbox_size"], config.min_size, config.max_size).tolist()
    places: list[_Place | None] = []
    for k in range(sources.n_rows):
        if not (usable[k] and difference.box.contains(x=x[k], y=y[k])):
            places.append(None)
            continue
        box = Box.centered(x=x[k], y=y[k], size=sizes[k])
        cards = [_card("CUTMINX", box.x_min - 1), _card("CUTMINY", box.y_min - 1)]
        rotation = difference.info.rotation_deg
        if rotation is not None and np.isfinite(rotation):
            cards.append(_card("ROTPA", float(rotation)))
        # FITS has no word for NaN: a header with one would not be read at all.
        has_wcs = bool(np.isfinite(jacobians[k]).all())
        if has_wcs:
            cards += _wcs_cards(x[k] - box.x_min + 1.0, y[k] - box.y_min + 1.0, ra[k], dec[k], jacobians[k])
        places.append(_Place(box, float(x[k]), float(y[k]), b"".join(cards), has_wcs))
    return places


def _wcs_cards(x: float, y: float, ra_deg: float, dec_deg: float, jacobian: FloatArray) -> list[bytes]:
    (pc11, pc12), (pc21, pc22) = jacobian.tolist()
    return [
        _TANGENT_CARDS,
        _card("CRPIX1", float(x)),
        _card("CRPIX2", float(y)),
        _card("CRVAL1", float(ra_deg)),
        _card("CRVAL2", float(dec_deg)),
        _card("PC1_1", pc11),
        _card("PC1_2", pc12),
        _card("PC2_1", pc21),
        _card("PC2_2", pc22),
    ]


def _draw_psfs(
    exposure: Exposure | None, places: Sequence[_Place | None], *, max_size: int | None
) -> Iterator[Callable[[], FloatArray | None]]:
    """Yield what gives the PSF's image at each place; None where it cannot be drawn."""
    psf = None if exposure is None else exposure.psf
    for first in range(0, len(places), _PSFS_AT_ONCE):
        part = places[first : first + _PSFS_AT_ONCE]
        images: FloatArray | None = None
        if psf is not None:
            x, y = np.array([(np.nan, np.nan) if place is None else (place.x, place.y) for place in part]).T
            try:
                images = psf.compute_kernel_images(x=x, y=y)
            except Exception:  # noqa: BLE001 - each place is asked by itself then: it costs that one's cutout
                _log.warning("PSFs of cutouts cannot be drawn together: one by one", exc_info=True)
        for k, place in enumerate(part):
            if images is not None:
                yield partial(_trim_psf, images[k], max_size)
            else:
                yield partial(_draw_psf, psf, place, max_size)


def _draw_psf(psf: PointSpreadFunction | None, place: _Place | None, max_size: int | None) -> FloatArray | None:
    if psf is None or place is None:
        return None
    try:
        image = psf.compute_kernel_image(x=place.x, y=place.y)
    except (ValueError, ArithmeticError, AlertprodError):
        return None
    return _trim_psf(image, max_size)


def _trim_psf(image: FloatArray, max_size: int | None) -> FloatArray | None:
    """Return the middle of an image; None where it has a pixel that is not finite."""
    if not np.isfinite(image).all():
        return None
    if max_size is not None and image.shape[0] > max_size:
        margin = (image.shape[0] - max_size) // 2
        image = image[margin : margin + max_size, margin : margin + max_size]
    return image


def _encode_cutout(exposure: Exposure, place: _Place, psf_image: FloatArray | None, *, with_mask_bits: bool) -> bytes:
    size = place.box.shape[0]
    inside = place.box.intersection(exposure.box)
    here = (
        slice(inside.y_min - place.box.y_min, inside.y_max - place.box.y_min),
        slice(inside.x_min - place.box.x_min, inside.x_max - place.box.x_min),
    )
    scale = np.float32(exposure.photo_calib.njy_per_count)
    image = np.full((size, size), np.nan, dtype=">f4")
    variance = np.full((size, size), np.nan, dtype=">f4")
    bits = np.full((size, size), plane_bits("NO_DATA"), dtype=">i4")
    pixels = exposure.masked_image.cutout(inside)
    image[here] = pixels.image * scale
    variance[here] = pixels.variance * (scale * scale)
    bits[here] = pixels.mask
    mask = ((bits & _DO_NOT_USE) != 0) | ~np.isfinite(image) | ~np.isfinite(variance)
    nominal = _NOMINAL_CARD if exposure.photo_calib.is_nominal else b""
    parts = [
        _pad(_primary_start(size) + place.header + nominal + _END, b" "),
        _pad(image.tobytes(), b"\0"),
        _extension_header("UNCERT", -32, variance.shape),
        _pad(variance.tobytes(), b"\0"),
        _extension_header("MASK", 8, mask.shape),
        _pad(mask.tobytes(), b"\0"),
    ]
    if psf_image is not None:
        parts += [
            _extension_header("PSFIMAGE", -32, psf_image.shape),
            _pad(psf_image.astype(">f4").tobytes(), b"\0"),
        ]
    if with_mask_bits:
        parts += [_extension_header("MASKBITS", 32, bits.shape), _pad(bits.tobytes(), b"\0")]
    return b"".join(parts)


def _pad(data: bytes, filling: bytes) -> bytes:
    return data + filling * (-len(data) % _BLOCK_BYTES)


def _card(keyword: str, value: bool | float | str) -> bytes:  # noqa: FBT001 - a logical card's value is a boolean
    """Return one FITS card of 80 bytes in fixed format (long floats in free format)."""
    if isinstance(value, bool):
        text = f"{'T' if value else 'F':>20}"
    elif isinstance(value, str):
        text = f"'{value:<8}'"
    else:
        # Exponents must be an upper-case E in FITS.
        text = f"{value!r:>20}".upper()
    # Rubin's mask planes have long names: the HIERARCH convention holds them, as in its own files.
    name = f"{keyword:<8}" if len(keyword) <= 8 else f"HIERARCH {keyword} "
    return f"{name}= {text}".ljust(_CARD_BYTES).encode("ascii")


_END = b"END".ljust(_CARD_BYTES)

_NOMINAL_CARD = _card("ZPNOMINL", True)
"""Present where nobody measured the zero point: nJy by name only."""

_TANGENT_CARDS = b"".join(
    _card(keyword, value)
    for keyword, value in (
        ("WCSAXES", 2),
        ("CTYPE1", "RA---TAN"),
        ("CTYPE2", "DEC--TAN"),
        ("CUNIT1", "deg"),
        ("CUNIT2", "deg"),
        ("CDELT1", 1.0),
        ("CDELT2", 1.0),
        ("RADESYS", "ICRS"),
    )
)


@functools.lru_cache(maxsize=256)
def _primary_start(size: int) -> bytes:
    return b"".join(
        _card(keyword, value)
        for keyword, value in (
            ("SIMPLE", True),
            ("BITPIX", -32),
            ("NAXIS", 2),
            ("NAXIS1", size),
            ("NAXIS2", size),
            ("EXTEND", True),
            ("BUNIT", "nJy"),
        )
    )


@functools.lru_cache(maxsize=1024)
def _extension_header(name: str, bits_per_pixel: int, shape: tuple[int, int]) -> bytes:
    cards = [
        _card("XTENSION", "IMAGE"),
        _card("BITPIX", bits_per_pixel),
        _card("NAXIS", 2),
        _card("NAXIS1", shape[1]),
        _card("NAXIS2", shape[0]),
        _card("PCOUNT", 0),
        _card("GCOUNT", 1),
    ]
    if name == "UNCERT":
        cards += [_card("UTYPE", "VarianceUncertainty"), _card("BUNIT", "nJy2")]
    if name == "MASKBITS":
        cards += [_card(f"MP_{plane}", bit) for plane, bit in MASK_PLANES.items()]
    cards.append(_card("EXTNAME", name))
    return _pad(b"".join(cards) + _END, b" ")
