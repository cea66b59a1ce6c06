"""A Butler as a repository of the tasks' command line: ``butler:/repo/main?collections=calexps,templates``.

A dataset that a task puts goes into one RUN collection, which keeps what it has: running a data id again into it is an
error, not a replacement.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from lsst.daf.butler import DatasetRef

from alertprod.butler.access import ButlerAccess, name_dataset
from alertprod.butler.exposures import format_ref
from alertprod.errors import ConfigError, DatasetExists, DatasetMismatch
from alertprod.geometry.wcs import SkyWcs
from alertprod.ids import EXPOSURE_BITS, RELEASE_BITS, pack_release
from alertprod.images.exposure import Exposure
from alertprod.images.profile import NATIVE_PROFILE, load_profile
from alertprod.store.sky import compute_footprint
from alertprod.tasks.protocols import Butler, DataId

_PACKED_ID, _PACKED_ID_BITS = "ccdExposureId", "ccdExposureId_bits"
"""What DiaSource ids begin with: a number, and its bits."""

_SETTINGS = ("collections", "profile", "release", "skymap")
"""What may follow the repository's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositorySettings:
    """What a command line says of a Butler repository.

    Parameters
    ----------
    root
        Its folder.
    collections
        Searched in this order.
    profile
        Packs visit and detector into DiaSource ids, and reads exposures that are not stored as ours.
    release
        Top bits of the ids.
    skymap
        Of the template's patches; any by default.
    """

    root: str
    collections: tuple[str, ...]
    profile: str = NATIVE_PROFILE
    release: int = 0
    skymap: str | None = None

    @classmethod
    def parse(cls, text: str) -> "RepositorySettings":
        """Read ``FOLDER?collections=A,B&profile=NAME&release=N&skymap=NAME``.

        Raises
        ------
        ConfigError
            Raised if a setting is not known, or does not fit.
        """
        root, _, query = text.partition("?")
        given = dict(parse_qsl(query, keep_blank_values=True))
        unknown = sorted(set(given) - set(_SETTINGS))
        if unknown:
            raise ConfigError(text, unknown[0], f"there is no such setting; there are {', '.join(_SETTINGS)}")
        collections = tuple(name for name in given.get("collections", "").split(",") if name)
        release = given.get("release", "0")
        if not release.isdecimal() or int(release) >= 1 << RELEASE_BITS:
            raise ConfigError(text, "release", f"{release!r} is no number from 0 to {(1 << RELEASE_BITS) - 1}")
        return cls(
            root=root,
            collections=collections,
            profile=given.get("profile", NATIVE_PROFILE),
            release=int(release),
            skymap=given.get("skymap"),
        )


class ButlerRepository(Butler):
    """A Butler repository; see `alertprod.tasks.protocols.Butler`.

    Parameters
    ----------
    settings
        Which one, and how to read it.
    run
        The RUN collection that results are put into; None to read only.

    Raises
    ------
    ConfigError
        Raised as by `ButlerAccess`, or if there is no such profile.

    Notes
    -----
    Pickled as its settings, and opened again in the other process.
    """

    def __init__(self, settings: RepositorySettings, *, run: str | None = None) -> None:
        self._settings, self._run = settings, run
        self._profile = load_profile(settings.profile)
        self._access = ButlerAccess(settings.root, collections=settings.collections, run=run)

    def __reduce__(self) -> "tuple[Any, tuple[RepositorySettings, str | None]]":
        return _open_again, (self._settings, self._run)

    @classmethod
    def open(cls, uri: str, *, output: str | None = None) -> "ButlerRepository":
        """Open what follows ``butler:``; `output` is the RUN collection of the results.

        Raises
        ------
        ConfigError
            Raised if there is no such repository or collection, or a setting is not known.
        """
        return cls(RepositorySettings.parse(uri), run=output)

    def get(self, dataset: str, data_id: DataId | None = None, /) -> Any:
        """Return a dataset; see `Butler.get`.

        Raises
        ------
        ImageNotYetAvailable
            Raised if there is none.
        DatasetMismatch
            Raised if there is no such dataset type, or it is of other dimensions.
        CorruptImage, StoreUnavailable
            Raised if it cannot be read.
        """
        if dataset == _PACKED_ID_BITS:
            return RELEASE_BITS + EXPOSURE_BITS
        if dataset == _PACKED_ID and data_id is not None:
            return self._pack(data_id)
        return self._access.load(self._access.require(dataset, data_id or {}), self._profile)

    def put(self, obj: Any, dataset: str, data_id: DataId | None = None, /, *, backup: bool = False) -> None:
        """Store a dataset; see `Butler.put`. One of an exposure is never replaced, one of the whole run is.

        Raises
        ------
        DatasetExists
            Raised if the collection holds one of this exposure already, or a backup of it is asked for: there is no
            place in a collection for a second one.
        ConfigError, DatasetMismatch, StoreUnavailable, TypeError
            Raised as by `ButlerAccess.put`.
        """
        if backup and self._run is not None and self._stored(dataset, data_id or {}):
            raise DatasetExists(name_dataset(dataset, data_id or {}), self._run)
        self._access.put(obj, dataset, data_id or {}, replace=data_id is None)

    def exists(self, dataset: str, data_id: DataId | None = None, /) -> bool:
        """Say whether there is a dataset."""
        if dataset == _PACKED_ID_BITS or (dataset == _PACKED_ID and data_id is not None):
            return True
        return self._find(dataset, data_id or {}) is not None

    def keys(self, dataset: str, /) -> Mapping[str, type]:
        """Return the keys of a dataset's data ids, and the keys that these imply."""
        return self._access.keys(dataset)

    def subset(self, dataset: str, data_ids: Iterable[DataId], /) -> "list[ButlerDataRef]":
        """Return the exposures that have a dataset and agree with any of the data ids; see `Butler.subset`."""
        refs = self._access.query(dataset, list(data_ids))
        return sorted((ButlerDataRef(self, _plain(ref)) for ref in refs), key=lambda ref: tuple(ref.dataId.values()))

    def find(self, wcs: SkyWcs, shape: tuple[int, int], band: str, coadd_name: str = "deep", /) -> "list[ButlerTile]":
        """Return template tiles, datasets of ``{coadd_name}Coadd``; see `TemplateSource.find`.

        Raises
        ------
        DatasetMismatch
            Raised if there is no such dataset type, or it is not of patches.
        """
        region = compute_footprint(wcs, shape)
        refs = self._access.find_tiles(f"{coadd_name}Coadd", region, band, skymap=self._settings.skymap)
        return [ButlerTile(self, ref) for ref in refs]

    def load_tile(self, ref: DatasetRef) -> Exposure:
        """Return a tile."""
        tile: Exposure = self._access.load(ref, self._profile)
        return tile

    def _pack(self, data_id: DataId) -> int:
        packer = self._profile.create_packer()
        try:
            packed = packer.pack(visit=int(data_id["visit"]), detector=int(data_id["detector"]))
            return pack_release(packed, release=self._settings.release)
        except ValueError as error:
            raise ConfigError(self._settings.profile, "ids", str(error)) from error

    def _find(self, dataset: str, data_id: DataId) -> DatasetRef | None:
        """Return a dataset; None where there is none, or nothing is called so."""
        try:
            return self._access.find(dataset, data_id)
        except DatasetMismatch:
            if self._access.has_type(dataset):
                raise
            return None

    def _stored(self, dataset: str, data_id: DataId) -> bool:
        ref = self._find(dataset, data_id)
        return ref is not None and ref.run == self._run


@dataclass(frozen=True, slots=True)
class ButlerDataRef:
    """One exposure of a repository; see `alertprod.tasks.protocols.DataRef`."""

    butler: ButlerRepository
    dataId: DataId

    def get(self, dataset: str, /) -> Any:
        """Return a dataset of the exposure."""
        return self.butler.get(dataset, self.dataId)

    def put(self, obj: Any, dataset: str, /) -> None:
        """Store a dataset of the exposure."""
        self.butler.put(obj, dataset, self.dataId)

    def datasetExists(self, dataset: str, /) -> bool:
        """Say whether there is a dataset of the exposure."""
        return self.butler.exists(dataset, self.dataId)


@dataclass(frozen=True, slots=True)
class ButlerTile:
    """A template tile that is read when it is asked for; see `alertprod.tasks.protocols.DatasetHandle`."""

    butler: ButlerRepository
    ref: DatasetRef

    @property
    def dataId(self) -> DataId:
        """Its name, its patch, its band, and the part of the band it is of."""
        data_id: DataId = {"tile": format_ref(self.ref), **self.ref.dataId.required}
        return data_id

    def get(self) -> Exposure:
        """Return the tile."""
        return self.butler.load_tile(self.ref)


def _open_again(settings: RepositorySettings, run: str | None) -> ButlerRepository:
    return ButlerRepository(settings, run=run)


def _plain(ref: DatasetRef) -> dict[str, int | str]:
    """Return the data id with what it implies (band, physical_filter)."""
    return dict(ref.dataId.mapping)
