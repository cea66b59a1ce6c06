"""The index of template tiles: where each one lies on the sky, so that a query opens no image."""

import fnmatch
import json
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from alertprod.errors import BadInputError, ConfigError, CorruptImage
from alertprod.geometry.sphere import ARCSEC_PER_DEG, SphericalPolygon, sky_positions
from alertprod.images.exposure import Exposure
from alertprod.images.profile import InstrumentProfile
from alertprod.store.files import local_path, read_bytes, translated_errors
from alertprod.store.images import ImageStore
from alertprod.store.sky import compute_footprint

INDEX_NAME = "templates.json"
"""Name of the index in the folder it describes."""

_FORMAT, _FORMAT_VERSION = "alertprod.template_index", 1

_DEPTH_SIGMA = 5.0
"""The depth is the magnitude of a point source measured at this many standard errors."""

_PATTERNS = (".fits", ".fit", ".fits.gz", ".fit.gz", ".fits.fz", ".fz")
"""What a tile's file name ends with."""


@dataclass(frozen=True, slots=True)
class TemplateTile:
    """One tile.

    Parameters
    ----------
    uri
        Where it is; absolute.
    band
        Its band; None where its header has none, and then no query finds it.
    footprint
        The convex polygon about its pixels.
    depth_mag
        AB magnitude of a point source at 5 sigma, of the median pixel; None where nobody measured it.
    psf_fwhm_arcsec
        FWHM in its middle; None where it has no PSF.
    """

    uri: str
    band: str | None
    footprint: SphericalPolygon
    depth_mag: float | None = None
    psf_fwhm_arcsec: float | None = None


class TemplateIndex:
    """Tiles that can be asked for by place and band; immutable."""

    def __init__(self, tiles: Iterable[TemplateTile]) -> None:
        self.tiles = tuple(sorted(tiles, key=lambda tile: tile.uri))
        self._centers = np.array([tile.footprint.center for tile in self.tiles]).reshape(-1, 3)
        self._radii_arcsec = np.array([tile.footprint.radius_arcsec for tile in self.tiles])

    def query(self, region: SphericalPolygon, band: str) -> list[TemplateTile]:
        """Return the tiles of a band that have a point in common with a region, ordered by URI."""
        if not self.tiles:
            return []
        chord = np.linalg.norm(self._centers - region.center, axis=-1)
        separation = np.degrees(2.0 * np.arcsin(np.minimum(1.0, chord / 2.0))) * ARCSEC_PER_DEG
        near = np.flatnonzero(separation <= self._radii_arcsec + region.radius_arcsec + _ROUNDING_ARCSEC)
        return [tile for tile in (self.tiles[i] for i in near) if tile.band == band and tile.footprint.overlaps(region)]

    def save(self, uri: str) -> None:
        """Write the index as JSON, replacing an older one at once; tiles beside or below it are named relative to it."""
        folder = uri.rpartition("/")[0]
        document = {
            "format": _FORMAT,
            "version": _FORMAT_VERSION,
            "tiles": [_encode_tile(tile, folder) for tile in self.tiles],
        }
        text = json.dumps(document, indent=1).encode()
        path = local_path(uri)
        with translated_errors(uri):
            if path is None:
                filesystem, remote = fsspec.core.url_to_fs(uri)
                filesystem.pipe_file(remote, text)
                return
            temporary = Path(f"{path}.{uuid.uuid4().hex}")
            temporary.write_bytes(text)
            temporary.replace(path)

    @classmethod
    def load(cls, uri: str) -> "TemplateIndex":
        """Read an index.

        Raises
        ------
        ConfigError
            Raised if it is not there or is none.
        StoreUnavailable
            Raised if its store does not answer.
        """
        try:
            text = read_bytes(uri)
        except FileNotFoundError as error:
            problem = 'no such index: make one with `alertprod templates index`; template_index = "" where events name their tiles'
            raise ConfigError(uri, "templates", problem) from error
        folder = uri.rpartition("/")[0]
        try:
            document = json.loads(text)
            found = (document["format"], document["version"])
            tiles = [_decode_tile(tile, folder) for tile in document["tiles"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(uri, "templates", f"not a template index: {type(error).__name__}: {error}") from error
        if found != (_FORMAT, _FORMAT_VERSION):
            raise ConfigError(uri, "templates", f"a file of format {found}; {(_FORMAT, _FORMAT_VERSION)} is known")
        return cls(tiles)


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What `index_templates` found: the index, and the files that cannot be templates, with the reason."""

    index: TemplateIndex
    unusable: tuple[BadInputError, ...]


def index_templates(
    folder: str,
    profile: InstrumentProfile | None = None,
    *,
    band: str | None = None,
    pattern: str = "*",
    index_uri: str | None = None,
    on_tile: Callable[[int, int], None] | None = None,
) -> IndexReport:
    """Look at every FITS file in and below a folder and write the index of those that can be templates.

    Parameters
    ----------
    folder
        A path or any fsspec URI.
    profile
        How to read these files.
    band
        The band of all of them, where their headers do not say.
    pattern
        What the names of the files match, with ``*`` and ``?``, where others lie beside them.
    index_uri
        Where the index goes; ``templates.json`` in `folder` by default.
    on_tile
        Called with the number of files done and of all, for a progress bar.

    Raises
    ------
    StoreUnavailable, DiskFull
        Raised if the folder cannot be read or the index cannot be written.

    Notes
    -----
    Each file is read as a whole: what cannot be read is found by day, here, and not by night.
    """
    root = folder.rstrip("/")
    uris = [uri for uri in list_images(root) if fnmatch.fnmatchcase(uri.rpartition("/")[2], pattern)]
    images = ImageStore()
    tiles: list[TemplateTile] = []
    unusable: list[BadInputError] = []
    for n, uri in enumerate(uris):
        try:
            tiles.append(describe_tile(uri, images.load(uri, profile), band=band))
        except BadInputError as error:
            unusable.append(error)
        if on_tile is not None:
            on_tile(n + 1, len(uris))
    index = TemplateIndex(tiles)
    index.save(index_uri or f"{root}/{INDEX_NAME}")
    return IndexReport(index=index, unusable=tuple(unusable))


def describe_tile(uri: str, exposure: Exposure, *, band: str | None = None) -> TemplateTile:
    """Return the index's entry of a tile; `CorruptImage` where it has no place on the sky or no band."""
    if exposure.wcs is None:
        raise CorruptImage(uri, "IMAGE", "a template needs world coordinates")
    if exposure.info.band is None and band is None:
        raise CorruptImage(uri, "IMAGE", "a template needs a band: the header has none and none was given")
    try:
        footprint = compute_footprint(exposure.wcs, exposure.shape)
    except ValueError as error:
        raise CorruptImage(uri, "IMAGE", f"its border has no place on the sky: {error}") from error
    fwhm_pixels = None if exposure.psf is None else exposure.psf.compute_fwhm()
    ny, nx = exposure.shape
    scale = exposure.wcs.compute_pixel_scale_arcsec(x=(nx - 1) / 2, y=(ny - 1) / 2)
    return TemplateTile(
        uri=uri,
        band=exposure.info.band or band,
        footprint=footprint,
        depth_mag=None if fwhm_pixels is None else _compute_depth_mag(exposure, fwhm_pixels),
        psf_fwhm_arcsec=None if fwhm_pixels is None else fwhm_pixels * scale,
    )


_ROUNDING_ARCSEC = 1e-6

_DEPTH_STRIDE = 7
"""Every 49th pixel gives the median variance to a fraction of a percent; odd, so that no readout pattern is met in step."""


def _compute_depth_mag(exposure: Exposure, fwhm_pixels: float) -> float | None:
    """5 sigma in the flux of a Gaussian PSF: sigma_flux = sqrt(4 pi sigma_psf^2 variance), King (1983)."""
    variance = exposure.variance[::_DEPTH_STRIDE, ::_DEPTH_STRIDE]
    good = np.isfinite(variance) & (variance > 0)
    if not good.any():
        return None
    sigma = fwhm_pixels / (2.0 * np.sqrt(2.0 * np.log(2.0)))
    noise = np.sqrt(4.0 * np.pi * sigma**2 * float(np.median(variance[good])))
    return float(exposure.photo_calib.zero_point_mag - 2.5 * np.log10(_DEPTH_SIGMA * noise))


def list_images(folder: str) -> list[str]:
    """Return the URIs of the FITS files in and below a folder, in order.

    Raises
    ------
    ImageNotYetAvailable, StoreUnavailable
        Raised if there is no such folder, or it cannot be read.
    """
    folder = folder.rstrip("/")
    with translated_errors(folder):
        filesystem, path = fsspec.core.url_to_fs(folder)
        if not filesystem.isdir(path):
            raise FileNotFoundError(folder)
        base = path.rstrip("/") + "/"
        found: Sequence[str] = filesystem.find(path)
    return sorted(f"{folder}/{name.removeprefix(base)}" for name in found if name.lower().endswith(_PATTERNS))


def _encode_tile(tile: TemplateTile, folder: str) -> dict[str, Any]:
    ra, dec = sky_positions(tile.footprint.vertices)
    return {
        "uri": tile.uri.removeprefix(f"{folder}/") if folder else tile.uri,
        "band": tile.band,
        "ra_deg": ra.tolist(),
        "dec_deg": dec.tolist(),
        "depth_mag": tile.depth_mag,
        "psf_fwhm_arcsec": tile.psf_fwhm_arcsec,
    }


def _decode_tile(entry: dict[str, Any], folder: str) -> TemplateTile:
    uri = str(entry["uri"])
    is_absolute = "://" in uri or os.path.isabs(uri)  # noqa: PTH117 - a URI, not a path
    return TemplateTile(
        uri=uri if is_absolute or not folder else f"{folder}/{uri}",
        band=entry["band"],
        # The hull of rounded corners: three of them on one line may have become a dent.
        footprint=SphericalPolygon.hull(np.array(entry["ra_deg"]), np.array(entry["dec_deg"])),
        depth_mag=entry.get("depth_mag"),
        psf_fwhm_arcsec=entry.get("psf_fwhm_arcsec"),
    )
