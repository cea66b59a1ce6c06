"""Templates: the tiles under an exposure, found, loaded, warped onto its grid and merged."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alertprod.errors import (
    AlertprodError,
    ConfigError,
    CorruptImage,
    ImageNotYetAvailable,
    NoTemplateCoverage,
    StoreUnavailable,
    TemplateUnreadable,
)
from alertprod.geometry.sphere import SphericalPolygon
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure
from alertprod.images.mask import count_set, plane_bits
from alertprod.images.photo_calib import PhotoCalib
from alertprod.images.profile import InstrumentProfile
from alertprod.resample.merge import merge_tiles
from alertprod.resample.warp import WarpedTile, warp_tile
from alertprod.store.files import FileStamp, stamp_file
from alertprod.store.sky import compute_footprint
from alertprod.store.template_cache import TemplateCache
from alertprod.store.template_index import TemplateIndex


@dataclass(frozen=True, slots=True)
class TileUse:
    """One tile of a template: `coverage` is the share of the exposure's pixels it has data for, of every 16th pixel."""

    uri: str
    coverage: float
    psf_fwhm_pixels: float | None
    """In the tile's own pixels, in its middle."""


@dataclass(frozen=True, slots=True)
class BuiltTemplate:
    """A template on an exposure's grid.

    Parameters
    ----------
    exposure
        In nJy, fresh planes; NaN, NO_DATA and infinite variance where no tile has data.
    coverage
        Share of the pixels with data, above 0.
    tiles
        The tiles that contributed, in the order of their URIs.
    load_s, warp_s
        Seconds of wall time for finding and loading, and for warping and merging.
    """

    exposure: Exposure
    coverage: float
    tiles: tuple[TileUse, ...]
    load_s: float
    warp_s: float


class TemplateStore:
    """The templates of one instrument.

    Parameters
    ----------
    cache
        Decoded tiles; may be shared with other instruments.
    index_uri
        What `alertprod templates index` wrote; None where every event names its tiles. Read again when it changes.
    profile
        How to read the tiles; the project's own layout by default.
    n_threads
        Threads that share the warping of a tile.
    find_tiles
        Asked in place of an index: the URIs of the tiles of a band that touch a region.

    Raises
    ------
    ConfigError
        Raised if the index is not there or is none.
    """

    def __init__(
        self,
        cache: TemplateCache,
        *,
        index_uri: str | None = None,
        profile: InstrumentProfile | None = None,
        n_threads: int = 1,
        find_tiles: Callable[[SphericalPolygon, str], Sequence[str]] | None = None,
    ) -> None:
        self._cache = cache
        self._find_tiles = find_tiles
        self._index_uri = index_uri
        self._profile = profile
        self._n_threads = n_threads
        self._index = TemplateIndex([])
        self._index_stamp: FileStamp | None = None
        if index_uri is not None:
            self._index = TemplateIndex.load(index_uri)
            self._refresh_index()

    def find_tiles(self, region: SphericalPolygon, band: str) -> list[str]:
        """Return the URIs of the tiles of a band that touch a region of the sky.

        Raises
        ------
        StoreUnavailable
            Raised if the index has changed and cannot be read.
        """
        if self._find_tiles is not None:
            return list(self._find_tiles(region, band))
        self._refresh_index()
        return [tile.uri for tile in self._index.query(region, band)]

    def prefetch(self, region: SphericalPolygon, band: str) -> int:
        """Bring the tiles under a region into the cache; return how many had to be decoded.

        Raises
        ------
        StoreUnavailable
            Raised if a store does not answer.
        TemplateUnreadable
            Raised if a tile of the index is gone or cannot be read.
        """
        n_decoded = 0
        for uri in self.find_tiles(region, band):
            try:
                n_decoded += self._cache.prefetch(uri, self._profile)
            except (ImageNotYetAvailable, CorruptImage) as error:
                raise TemplateUnreadable(uri, str(error)) from error
        return n_decoded

    def build_template(
        self,
        wcs: SkyWcs,
        shape: tuple[int, int],
        band: str,
        *,
        tile_uris: Sequence[str] | None = None,
        required_coverage: float = 0.1,
    ) -> BuiltTemplate:
        """Build the template of an exposure.

        Parameters
        ----------
        wcs, shape
            World coordinates, rows and columns of the exposure.
        band
            Its band; tiles of another are never used.
        tile_uris
            Tiles that the event names; the index is asked where it names none.
        required_coverage
            For the error's message alone: judging a coverage above 0 is the task's.

        Raises
        ------
        NoTemplateCoverage
            Raised if no tile has data on the exposure.
        TemplateUnreadable
            Raised if a tile cannot be used: corrupt, of another band, without world coordinates, or gone
            although the index lists it.
        ImageNotYetAvailable
            Raised if a tile that the event names is not there (yet).
        StoreUnavailable
            Raised if a store does not answer.
        """
        started = time.perf_counter()
        region = compute_footprint(wcs, shape)
        uris = self.find_tiles(region, band) if tile_uris is None else sorted(set(tile_uris))
        uses: list[TileUse] = []
        load_s = time.perf_counter() - started

        def warped_tiles() -> Iterator[WarpedTile]:
            nonlocal load_s
            for uri in uris:
                loading = time.perf_counter()
                tile = self._load(uri, band, named_by_event=tile_uris is not None)
                load_s += time.perf_counter() - loading
                assert tile.wcs is not None, "_load has looked"
                try:
                    if not compute_footprint(tile.wcs, tile.shape).overlaps(region):
                        continue
                    warped = warp_tile(tile, wcs, shape, n_threads=self._n_threads)
                except ValueError as error:
                    raise TemplateUnreadable(uri, f"cannot be put on the exposure's grid: {error}") from error
                if warped is not None and _has_data(warped.exposure):
                    share = warped.box.area / (shape[0] * shape[1])
                    coverage = _compute_coverage(warped.exposure, every=_COVERAGE_STRIDE) * share
                    fwhm = None if tile.psf is None else tile.psf.compute_fwhm()
                    uses.append(TileUse(uri=uri, coverage=coverage, psf_fwhm_pixels=fwhm))
                    yield warped

        try:
            # It takes them one by one, so that the memory of one warped tile is enough.
            exposure = _in_nanojansky(merge_tiles(warped_tiles(), n_threads=self._n_threads))
        except ValueError as error:
            if uses or isinstance(error, AlertprodError):
                raise
            raise NoTemplateCoverage(0.0, required_coverage) from error
        coverage = _compute_coverage(exposure)
        if coverage == 0.0:
            raise NoTemplateCoverage(0.0, required_coverage)
        return BuiltTemplate(
            exposure=exposure,
            coverage=coverage,
            tiles=tuple(uses),
            load_s=load_s,
            warp_s=time.perf_counter() - started - load_s,
        )

    def _load(self, uri: str, band: str, *, named_by_event: bool) -> Exposure:
        try:
            tile = self._cache.load(uri, self._profile)
        except ImageNotYetAvailable as error:
            if named_by_event:
                raise
            raise TemplateUnreadable(uri, "the index lists it and it is gone") from error
        except CorruptImage as error:
            raise TemplateUnreadable(uri, str(error)) from error
        if tile.wcs is None:
            raise TemplateUnreadable(uri, "no world coordinates")
        if tile.info.band not in (None, band):
            raise TemplateUnreadable(uri, f"its band is {tile.info.band}, the exposure's is {band}")
        return replace(tile, info=replace(tile.info, band=band))

    def _refresh_index(self) -> None:
        if self._index_uri is None:
            return
        try:
            stamp = stamp_file(self._index_uri)
            if stamp != self._index_stamp:
                self._index, self._index_stamp = TemplateIndex.load(self._index_uri), stamp
        except (ConfigError, ImageNotYetAvailable) as error:  # it was good at start-up: somebody is at work on it
            raise StoreUnavailable(f"template index: {error}") from error


_COVERAGE_STRIDE = 4
"""A tile's share of the exposure is for people: every 16th pixel tells it well enough, at a 16th of the time."""


def _compute_coverage(exposure: Exposure, *, every: int = 1) -> float:
    sampled = exposure.mask[::every, ::every]
    return 1.0 - count_set(sampled, plane_bits("NO_DATA")) / sampled.size


def _has_data(exposure: Exposure) -> bool:
    """Say whether any pixel has data; a look at few of them settles it for all but slivers."""
    return _compute_coverage(exposure, every=_COVERAGE_STRIDE) > 0 or _compute_coverage(exposure) > 0


def _in_nanojansky(exposure: Exposure) -> Exposure:
    """Scale the planes, in place, and return the exposure that says so."""
    scale = exposure.photo_calib.njy_per_count
    if scale != 1.0:
        np.multiply(exposure.image, np.float32(scale), out=exposure.image)
        np.multiply(exposure.variance, np.float32(scale * scale), out=exposure.variance)
    return replace(exposure, photo_calib=PhotoCalib(is_nominal=exposure.photo_calib.is_nominal))
