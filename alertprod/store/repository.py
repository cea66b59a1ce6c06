"""A folder as a repository: what is in it by data id, and datasets as files under their names.

The exposures stay where they are; ``repository.json`` lists them, so that opening a repository opens no image.
A dataset that a task puts is one file, ``DATASET/VISIT/DATASET-VISIT-DETECTOR.ext`` or ``DATASET.ext``, whole or not
there; what is of a whole visit, like finalVisitSummary, is ``DATASET/VISIT/DATASET-VISIT.ext``. Files that others put
there under such names are datasets too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alertprod.errors import ConfigError, ImageNotYetAvailable
from alertprod.geometry.wcs import SkyWcs
from alertprod.ids import EXPOSURE_BITS, RELEASE_BITS, pack_release
from alertprod.images.exposure import Exposure
from alertprod.images.profile import load_profile
from alertprod.store.dataset_files import find_dataset, load_dataset, save_dataset
from alertprod.store.images import ImageStore
from alertprod.store.repository_description import DESCRIPTION_NAME, Description, ExposureEntry, locate
from alertprod.store.sky import compute_footprint
from alertprod.store.template_index import TemplateIndex
from alertprod.tasks.data_ids import DataIdFilter, format_data_id
from alertprod.tasks.protocols import Butler, DataId

EXPOSURES = "calexp"
"""The dataset of the listed exposures."""

_OF_VISIT = ("finalVisitSummary",)
"""Datasets that are one for all detectors of a visit."""

_PACKED_ID, _PACKED_ID_BITS = "ccdExposureId", "ccdExposureId_bits"
"""What DiaSource ids begin with: a number, and its bits."""

_OF_ENTRIES = (EXPOSURES, _PACKED_ID)
"""Datasets that the list of exposures gives."""


class FolderRepository(Butler):
    """A repository in a folder; see `alertprod.tasks.protocols.Butler`.

    Parameters
    ----------
    root
        The folder. What is not in it is looked for in its parent, where it has one.

    Raises
    ------
    ConfigError
        Raised if it is none, or one of its parents is none.

    Notes
    -----
    Pickled as its path, and read again in the other process.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()
        self._roots = [self.root]
        description = Description.load(self.root)
        while description.parent is not None:
            parent = (self._roots[-1] / description.parent).resolve()
            if parent in self._roots:
                raise ConfigError(str(self.root), "parent", f"{parent} is its own ancestor")
            self._roots.append(parent)
            description = Description.load(parent)
        self._description = description
        self._entries = {(entry.visit, entry.detector): entry for entry in description.exposures}

    def __reduce__(self) -> "tuple[type[FolderRepository], tuple[Path]]":
        return FolderRepository, (self.root,)

    @classmethod
    def open(cls, root: str, *, output: str | None = None) -> "FolderRepository":
        """Open a repository, or the one in `output` that holds its results, which is made where it is not there.

        Raises
        ------
        ConfigError
            Raised if there is no repository, or `output` is another's.
        StoreUnavailable, DiskFull
            Raised if `output` cannot be made.
        """
        repository = cls(root)
        if output is None or Path(output).resolve() == repository.root:
            return repository
        folder = Path(output).resolve()
        if not (folder / DESCRIPTION_NAME).exists():
            Description(parent=str(repository.root)).save(folder)
        results = cls(folder)
        if results.parent != repository.root:
            found = "not results of another" if results.parent is None else f"results of {results.parent}"
            raise ConfigError(
                str(folder), "output", f"what is in it are {found}; those of {repository.root} are wanted"
            )
        return results

    @property
    def parent(self) -> Path | None:
        """The folder of the repository that this one holds results of."""
        return self._roots[1] if len(self._roots) > 1 else None

    @property
    def exposures(self) -> list[ExposureEntry]:
        """The exposures, ordered by visit and detector."""
        return list(self._entries.values())

    @property
    def templates(self) -> dict[str, int]:
        """Number of template tiles by kind of coadd."""
        kinds = self._description.templates
        return {kind: sum(len(self._load_index(entry.index).tiles) for entry in kinds[kind]) for kind in kinds}

    def get(self, dataset: str, data_id: DataId | None = None, /) -> Any:
        """Return a dataset; see `Butler.get`.

        Raises
        ------
        ImageNotYetAvailable
            Raised if there is none.
        CorruptImage, StoreUnavailable
            Raised if it cannot be read.
        """
        if dataset == _PACKED_ID_BITS:
            return RELEASE_BITS + EXPOSURE_BITS
        entry = self._find_entry(data_id) if dataset in _OF_ENTRIES and data_id is not None else None
        if entry is not None:
            if dataset == _PACKED_ID:
                return self._pack(entry)
            return ImageStore().load(locate(self._roots[-1], entry.uri), load_profile(self._description.profile))
        path = self._find_file(dataset, data_id)
        if path is None:
            raise ImageNotYetAvailable(str(self._stem(self.root, dataset, data_id)))
        return load_dataset(path)

    def put(self, obj: Any, dataset: str, data_id: DataId | None = None, /, *, backup: bool = False) -> None:
        """Store a dataset; see `Butler.put`.

        Raises
        ------
        TypeError
            Raised if it is of a kind that has no files.
        DiskFull, StoreUnavailable
            Raised if it cannot be written.
        """
        save_dataset(obj, self._stem(self.root, dataset, data_id), backup=backup)

    def exists(self, dataset: str, data_id: DataId | None = None, /) -> bool:
        """Say whether there is a dataset."""
        if dataset == _PACKED_ID_BITS:
            return True
        if dataset in _OF_ENTRIES and data_id is not None and self._find_entry(data_id) is not None:
            return True
        return self._find_file(dataset, data_id) is not None

    def keys(self, dataset: str, /) -> Mapping[str, type]:
        """Return the keys of data ids; every dataset is of an exposure."""
        del dataset
        return {"instrument": str, "visit": int, "detector": int, "band": str}

    def subset(self, dataset: str, data_ids: Iterable[DataId], /) -> "list[FolderDataRef]":
        """Return the exposures that have a dataset and agree with any of the data ids; see `Butler.subset`."""
        wanted = DataIdFilter(data_ids)
        refs = [FolderDataRef(self, entry.data_id) for entry in self.exposures if wanted.matches(entry.data_id)]
        return [ref for ref in refs if dataset == EXPOSURES or ref.datasetExists(dataset)]

    def find(self, wcs: SkyWcs, shape: tuple[int, int], band: str, coadd_name: str = "deep", /) -> "list[FolderTile]":
        """Return template tiles; see `TemplateSource.find`.

        Raises
        ------
        ConfigError
            Raised if there are no templates of this kind at all, or an index is gone.
        """
        entries = self._description.templates.get(coadd_name)
        if not entries:
            known = ", ".join(self._description.templates) or "none"
            raise ConfigError(str(self._roots[-1]), "templates", f"there are none of kind {coadd_name}; kinds: {known}")
        region = compute_footprint(wcs, shape)
        return [
            FolderTile(uri=tile.uri, band=band, profile=entry.profile, subfilter=entry.subfilter)
            for entry in entries
            for tile in self._load_index(entry.index).query(region, band)
        ]

    def _load_index(self, name: str) -> TemplateIndex:
        return TemplateIndex.load(locate(self._roots[-1], name))

    def _pack(self, entry: ExposureEntry) -> int:
        profile = self._description.profile
        packer = load_profile(profile).create_packer()
        try:
            packed = packer.pack(visit=entry.visit, detector=entry.detector)
            return pack_release(packed, release=self._description.release)
        except ValueError as error:
            raise ConfigError(profile, "ids", str(error)) from error

    def _find_entry(self, data_id: DataId) -> ExposureEntry | None:
        visit, detector = _name(data_id)
        return self._entries.get((int(visit), int(detector)))

    def _find_file(self, dataset: str, data_id: DataId | None) -> Path | None:
        """Return the file of a dataset, here or in a parent."""
        found = (find_dataset(self._stem(root, dataset, data_id)) for root in self._roots)
        return next((path for path in found if path is not None), None)

    @staticmethod
    def _stem(root: Path, dataset: str, data_id: DataId | None) -> Path:
        """Return the path of a dataset's file without its ending."""
        if data_id is None:
            return root / dataset
        if dataset in _OF_VISIT:
            visit = _require(data_id, "visit")
            return root / dataset / str(visit) / f"{dataset}-{visit}"
        visit, detector = _name(data_id)
        return root / dataset / str(visit) / f"{dataset}-{visit}-{detector}"


@dataclass(frozen=True, slots=True)
class FolderDataRef:
    """One exposure of a repository; see `alertprod.tasks.protocols.DataRef`."""

    butler: FolderRepository
    dataId: DataId  # noqa: N815  the protocol's name

    def get(self, dataset: str, /) -> Any:
        """Return a dataset of the exposure."""
        return self.butler.get(dataset, self.dataId)

    def put(self, obj: Any, dataset: str, /) -> None:
        """Store a dataset of the exposure."""
        self.butler.put(obj, dataset, self.dataId)

    def datasetExists(self, dataset: str, /) -> bool:  # noqa: N802  the protocol's name
        """Say whether there is a dataset of the exposure."""
        return self.butler.exists(dataset, self.dataId)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderTile:
    """A template tile that is read when it is asked for; see `alertprod.tasks.protocols.DatasetHandle`."""

    uri: str
    band: str
    profile: str
    subfilter: int | None = None

    @property
    def dataId(self) -> DataId:  # noqa: N802  the protocol's name
        """Its place, its band, and the part of the band it is of."""
        part: dict[str, int | str] = {} if self.subfilter is None else {"subfilter": self.subfilter}
        return {"tile": self.uri, "band": self.band, **part}

    def get(self) -> Exposure:
        """Return the tile."""
        return ImageStore().load(self.uri, load_profile(self.profile))


def _name(data_id: DataId) -> tuple[int | str, int | str]:
    """Return what names an exposure."""
    return _require(data_id, "visit"), _require(data_id, "detector")


def _require(data_id: DataId, key: str) -> int | str:
    if key not in data_id:
        raise KeyError(f"the data id {format_data_id(data_id)} has no {key}")
    return data_id[key]
