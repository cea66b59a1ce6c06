"""A Butler opened: datasets by type and data id, exposures whatever wrote them, tiles by their place on the sky.

An exposure of another storage class, Rubin's own ExposureF for one, is read from its file: nothing of the stack that
wrote it is needed.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler, CollectionType, DatasetRef, DatasetType
from lsst.pex.config import Config
from lsst.sphgeom import ConvexPolygon, UnitVector3d
from lsst.utils.packages import Packages

from alertprod.butler import CATALOG, EXPOSURE
from alertprod.butler._lock_wait import limit_lock_wait
from alertprod.butler.definitions import is_prepared
from alertprod.butler.errors import first_line, translated_errors
from alertprod.butler.exposures import complete, format_ref
from alertprod.errors import AlertprodError, ConfigError, DatasetExists, DatasetMismatch, ImageNotYetAvailable
from alertprod.geometry.sphere import SphericalPolygon
from alertprod.images.exposure import Exposure
from alertprod.images.profile import InstrumentProfile
from alertprod.measurement.catalog import Catalog
from alertprod.store.images import ImageStore
from alertprod.tasks.data_ids import format_data_id
from alertprod.tasks.protocols import DataId

_STORAGE_CLASSES: Sequence[tuple[type, str]] = (
    (Exposure, EXPOSURE),
    (Catalog, CATALOG),
    (Config, "Config"),
    (Packages, "Packages"),
    (dict, "StructuredDataDict"),
)
"""How each kind of object is kept."""

_PACKAGES = "packages"
"""The versions of a run's packages, as the middleware's own programs call and keep them: one repository serves both."""

_EXPOSURES_OF_RUBIN = frozenset({"Exposure", "ExposureF", "ExposureI", "ExposureU"})
"""Its storage classes of exposures, each one FITS file."""


class ButlerAccess:
    """One repository, opened by each thread that uses it.

    Parameters
    ----------
    root
        The repository's folder.
    collections
        Searched in this order.
    run
        The RUN collection that datasets are put into, made where it is not there; searched first. None: nothing is put.

    Raises
    ------
    ConfigError
        Raised if there is no repository, no collection to search, no such collection, or, with a run, the repository
        does not know our storage classes.
    """

    def __init__(self, root: str | Path, *, collections: Sequence[str], run: str | None = None) -> None:
        self.root = Path(root).resolve()
        self.run = run
        self.collections = (*([run] if run is not None else []), *(name for name in collections if name != run))
        self._local = threading.local()
        if not self.collections:
            raise ConfigError(str(self.root), "collections", "none is named to be searched")
        if run is not None and not is_prepared(self.root):
            problem = f"its configuration lacks our storage classes: run `python -m alertprod.butler {self.root}` once"
            raise ConfigError(str(self.root), "storageClasses", problem)
        limit_lock_wait(self.root)
        self._check_collections()

    @property
    def butler(self) -> Butler:
        """The butler of the thread that asks."""
        found: Butler | None = getattr(self._local, "butler", None)
        if found is None:
            self._local.butler = found = self._open()
        return found

    def close(self) -> None:
        """Let this thread's butler go."""
        found = self._local.__dict__.pop("butler", None)
        if found is not None:
            found.close()

    def find(self, dataset: str, data_id: DataId, *, collections: Sequence[str] | None = None) -> DatasetRef | None:
        """Return the first dataset of a data id, whose keys that the dataset type lacks do not count; None for none.

        Raises
        ------
        DatasetMismatch
            Raised if there is no such dataset type, or the data id lacks one of its dimensions.
        StoreUnavailable
            Raised if the database does not answer.
        """
        with self._translated(name_dataset(dataset, data_id)):
            kind = self.butler.get_dataset_type(dataset)
            return self.butler.find_dataset(
                kind,
                _require_keys(kind, data_id),
                collections=list(collections or self.collections),
                dimension_records=True,
            )

    def require(self, dataset: str, data_id: DataId) -> DatasetRef:
        """Return what `find` finds.

        Raises
        ------
        ImageNotYetAvailable
            Raised if there is none; and as by `find`.
        """
        ref = self.find(dataset, data_id)
        if ref is None:
            raise ImageNotYetAvailable(f"{self.root}: {name_dataset(dataset, data_id)}")
        return ref

    def load(self, ref: DatasetRef, profile: InstrumentProfile | None = None) -> Any:
        """Return a dataset; an exposure has the facts of its data id.

        Parameters
        ----------
        profile
            How to read exposures of another storage class than ours; the project's own layout by default.

        Raises
        ------
        ImageNotYetAvailable, StoreUnavailable, CorruptImage
            Raised if its file is gone or cannot be read.
        DatasetMismatch
            Raised if the file says another visit, detector or band, or is in parts.
        """
        name = format_ref(ref)
        with self._translated(name):
            if ref.datasetType.storageClass_name in _EXPOSURES_OF_RUBIN:
                found: Any = ImageStore().load(self._locate(ref), profile)
            else:
                found = self.butler.get(ref)
            return complete(found, ref.dataId, name=name)

    def put(self, obj: Any, dataset: str, data_id: DataId, *, replace: bool = False) -> DatasetRef:
        """Store a dataset in the run; its type is registered where nobody has yet.

        Parameters
        ----------
        replace
            Remove one that the run holds already.

        Raises
        ------
        ConfigError
            Raised if there is no run to put it into.
        TypeError
            Raised if it is of a kind that has no storage class.
        DatasetMismatch
            Raised if the dataset type is registered with another storage class, or with other dimensions.
        DatasetExists
            Raised if the run holds one already.
        StoreUnavailable
            Raised if the database is locked or the disk does not take it.
        """
        if self.run is None:
            raise ConfigError(str(self.root), "output", f"no collection is named to put {dataset} into")
        if dataset == _PACKAGES and isinstance(obj, dict):
            obj = Packages(obj)
        storage_class = next((each for kind, each in _STORAGE_CLASSES if isinstance(obj, kind)), None)
        if storage_class is None:
            raise TypeError(f"{dataset} is a {type(obj).__name__}, which has no storage class")
        dimensions = ("instrument", "visit", "detector") if data_id else ()
        with self._translated(name_dataset(dataset, data_id)):
            kind = DatasetType(dataset, dimensions, storage_class, universe=self.butler.dimensions)
            self._register(kind)
            keys = _require_keys(kind, data_id)
            stored = self.butler.find_dataset(kind, keys, collections=[self.run])
            if stored is not None:
                if not replace:
                    raise DatasetExists(name_dataset(dataset, keys), self.run)
                self.butler.pruneDatasets([stored], disassociate=True, unstore=True, purge=True)
            return self.butler.put(obj, kind, keys, run=self.run)

    def query(self, dataset: str, wanted: Sequence[DataId]) -> list[DatasetRef]:
        """Return the datasets that agree with any of the (partial) data ids, the first of each in the collections' order.

        Raises
        ------
        DatasetMismatch
            Raised if there is no such dataset type, or a key is none of its dimensions.
        """
        with self._translated(dataset):
            refs: dict[Any, DatasetRef] = {}
            for chunk in (wanted[n : n + _N_PER_QUERY] for n in range(0, len(wanted), _N_PER_QUERY)):
                where, bind = _make_where(chunk)
                for ref in self.butler.query_datasets(
                    dataset,
                    list(self.collections),
                    where=where,
                    bind=bind,
                    with_dimension_records=True,
                    limit=None,
                    explain=False,
                ):
                    refs.setdefault(ref.dataId, ref)
            return list(refs.values())

    def has_type(self, dataset: str) -> bool:
        """Say whether a dataset type is registered."""
        return self._registered(dataset) is not None

    def keys(self, dataset: str) -> dict[str, type]:
        """Return the keys of a dataset type's data ids, those that they imply too, and the types of their values.

        Raises
        ------
        DatasetMismatch
            Raised if there is no such dataset type.
        """
        with self._translated(dataset):
            dimensions = self.butler.get_dataset_type(dataset).dimensions
            known = dimensions.universe.dimensions
            return {name: known[name].primaryKey.getPythonType() for name in dimensions.data_coordinate_keys}

    def find_tiles(
        self, dataset: str, region: SphericalPolygon, band: str, *, skymap: str | None = None
    ) -> list[DatasetRef]:
        """Return the datasets of a band whose patches touch a region, in the order of tract and patch.

        Parameters
        ----------
        skymap
            Of the patches; any by default.

        Raises
        ------
        DatasetMismatch
            Raised if there is no such dataset type, or it is not of patches.
        """
        polygon = ConvexPolygon([UnitVector3d(*(float(value) for value in vertex)) for vertex in region.vertices])
        with self._translated(dataset):
            kind = self.butler.get_dataset_type(dataset)
            if not {"patch", "band"} <= set(kind.dimensions.required):
                raise DatasetMismatch(dataset, f"is of {_join(kind.dimensions.required)}, not of patches and bands")
            keys = {"band": band, **({} if skymap is None else {"skymap": skymap})}
            with self.butler.query() as query:
                place = query.expression_factory.patch.region.overlaps(polygon)
                refs = list(query.where(place, keys).datasets(kind, list(self.collections)).with_dimension_records())
        return sorted(refs, key=lambda ref: tuple(ref.dataId.required.values()))

    def _open(self) -> Butler:
        try:
            return Butler.from_config(
                str(self.root), collections=list(self.collections), run=self.run, writeable=self.run is not None
            )
        except AlertprodError:
            raise
        except (FileNotFoundError, KeyError, ValueError, TypeError, ImportError) as error:
            raise ConfigError(str(self.root), "repository", f"cannot be opened: {first_line(error)}") from error

    def _check_collections(self) -> None:
        """Look at the collections, and make the run."""
        is_prepared(self.root)  # says what is wrong with a folder that is no repository better than upstream
        with self._translated("collections"):
            known = self.butler.collections
            for name in self.collections:
                known.get_info(name)
            if self.run is not None and known.get_info(self.run).type is not CollectionType.RUN:
                raise ConfigError(str(self.root), "output", f"{self.run} is no RUN collection: datasets go into one")

    def _register(self, kind: DatasetType) -> None:
        try:
            self.butler.registry.registerDatasetType(kind)
        except Exception as error:
            registered = self._registered(kind.name)
            if registered is None or registered == kind:
                raise
            problem = (
                f"the repository has it as {registered.storageClass_name} of {_join(registered.dimensions.required)},"
                f" not as {kind.storageClass_name} of {_join(kind.dimensions.required) or 'the whole repository'}"
            )
            raise DatasetMismatch(kind.name, problem) from error

    def _registered(self, dataset: str) -> DatasetType | None:
        found = list(self.butler.registry.queryDatasetTypes(dataset))
        return found[0] if found else None

    def _locate(self, ref: DatasetRef) -> str:
        """Return the URI of a dataset's one file."""
        whole = self.butler.getURIs(ref).primaryURI
        if whole is None:
            raise DatasetMismatch(format_ref(ref), "is stored in parts, which only Rubin's own stack puts together")
        return str(whole.ospath if whole.isLocal else whole)

    def _translated(self, dataset: str) -> Any:
        return translated_errors(dataset, repository=str(self.root), collection=self.run or "")


_N_PER_QUERY = 200
"""Data ids in one query: SQLite takes a thousand variables, an id has three or four."""


def name_dataset(dataset: str, data_id: DataId) -> str:
    """Return what a dataset is called in messages."""
    return f"{dataset} {format_data_id(data_id)}".rstrip()


def _require_keys(kind: DatasetType, data_id: DataId) -> dict[str, int | str]:
    """Return what names a dataset; `DatasetMismatch` says which dimension is missing."""
    missing = [key for key in kind.dimensions.required if key not in data_id]
    if missing:
        raise DatasetMismatch(name_dataset(kind.name, data_id), f"its data id needs {_join(missing)} too")
    return {key: data_id[key] for key in kind.dimensions.required}


def _make_where(wanted: Sequence[DataId]) -> tuple[str, Mapping[str, Any]]:
    """Return the expression that data ids agree with any of the partial ones, and its values; none for everything."""
    if not all(wanted):
        return "", {}
    bind: dict[str, Any] = {}
    parts = []
    for n, data_id in enumerate(wanted):
        terms = []
        for key, value in data_id.items():
            bind[f"{key}_{n}"] = value
            terms.append(f"{key} = {key}_{n}")
        parts.append(f"({' AND '.join(terms)})")
    return " OR ".join(parts), bind


def _join(keys: Any) -> str:
    return ", ".join(keys)
