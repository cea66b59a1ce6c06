"""What the cache keeps of a tile beside its planes, as bytes: a line of JSON, then the samples of the PSF.

Nothing but text and numbers, read by their names: whoever can write into the cache's folder may spoil a tile, and can
have nothing executed.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from astropy.io import fits

from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.photo_calib import PhotoCalib
from alertprod.psf.analytic import EllipticalPsf, GaussianPsf, MoffatPsf
from alertprod.psf.fits_cards import compute_polynomial_psf
from alertprod.psf.model import PointSpreadFunction
from alertprod.psf.psfex import PsfexPsf

_SAMPLES: Final = np.dtype("<f8")


@dataclass(frozen=True, slots=True, kw_only=True)
class TileFacts:
    """What describes a tile's planes; `Exposure` says what the fields mean."""

    wcs: SkyWcs | None
    psf: PointSpreadFunction | None
    photo_calib: PhotoCalib
    info: ExposureInfo


def encode_facts(tile: Exposure) -> bytes:
    """Return what describes a tile.

    Notes
    -----
    World coordinates are FITS cards, numbers have all their digits. A PSF that is neither analytic nor a `PsfexPsf` is
    approximated by one, as in a file.
    """
    psf, samples = _describe_psf(tile.psf)
    described = {
        "wcs": None if tile.wcs is None else tile.wcs.to_header().tostring(sep="\n", endcard=False, padding=False),
        "psf": psf,
        "photo_calib": asdict(tile.photo_calib),
        "info": asdict(tile.info),
    }
    return json.dumps(described, default=_plain).encode() + b"\n" + samples


def decode_facts(data: bytes) -> TileFacts:
    """Return what `encode_facts` was given.

    Raises
    ------
    ValueError, TypeError, LookupError
        Raised if the bytes are none of its own.
    """
    text, _, samples = data.partition(b"\n")
    described = json.loads(text)
    wcs = described["wcs"]
    return TileFacts(
        wcs=None if wcs is None else SkyWcs.from_header(fits.Header.fromstring(wcs, sep="\n")),
        psf=_make_psf(described["psf"], samples),
        photo_calib=PhotoCalib(**described["photo_calib"]),
        info=ExposureInfo(**described["info"]),
    )


def _describe_psf(psf: PointSpreadFunction | None) -> tuple[dict[str, Any] | None, bytes]:
    if psf is None:
        return None, b""
    if isinstance(psf, GaussianPsf | MoffatPsf):
        described = {
            "fwhm": psf.fwhm,
            "ellipticity": psf.ellipticity,
            "position_angle_deg": psf.position_angle_deg,
            "size": psf.size,
            "average_position": psf.average_position,
        }
        if isinstance(psf, MoffatPsf):
            return {"kind": "moffat", "beta": psf.beta, **described}, b""
        return {"kind": "gaussian", **described}, b""
    table = psf if isinstance(psf, PsfexPsf) else compute_polynomial_psf(psf)
    return {
        "kind": "psfex",
        "shape": table.components.shape,
        "degree": table.degree,
        "zero": table.average_position,
        "scale": table.scale,
        "sampling": table.sampling,
        "size": table.size,
    }, table.components.astype(_SAMPLES).tobytes()


def _make_psf(described: dict[str, Any] | None, samples: bytes) -> PointSpreadFunction | None:
    if described is None:
        return None
    kinds: dict[str, type[EllipticalPsf]] = {"gaussian": GaussianPsf, "moffat": MoffatPsf}
    parameters: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in described.items()
    }
    kind = parameters.pop("kind")
    if kind in kinds:
        return kinds[kind](**parameters)
    if kind != "psfex":
        msg = f"a PSF of the kind {kind!r}"
        raise ValueError(msg)
    components = np.frombuffer(samples, dtype=_SAMPLES).reshape(parameters.pop("shape"))
    return PsfexPsf(components, **parameters)


def _plain(value: Any) -> Any:
    """Return what JSON knows in place of a NumPy number."""
    if isinstance(value, np.generic):
        return value.item()
    msg = f"a {type(value).__name__} among the facts of a tile"
    raise TypeError(msg)
