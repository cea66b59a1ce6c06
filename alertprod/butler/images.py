"""The daemon's images in a Butler: ``butler:calexp?instrument=Cam&visit=12&detector=3``, tiles alike.

A URI names a dataset by its type and data id; which repository, and which of its collections, the configuration says,
so that an event can name nothing outside of them.
"""

from urllib.parse import parse_qsl, urlencode

from lsst.daf.butler import DatasetRef

from alertprod.butler.access import ButlerAccess
from alertprod.errors import DatasetMismatch
from alertprod.geometry.sphere import SphericalPolygon
from alertprod.images.exposure import Exposure
from alertprod.images.profile import InstrumentProfile
from alertprod.store.files import FileStamp
from alertprod.tasks.protocols import DataId

SCHEME = "butler"


class ButlerImages:
    """Exposures and tiles of one repository by URI; see `alertprod.store.images.ImageSource`.

    Parameters
    ----------
    access
        The repository, to read.
    differences
        The same with a run, where differences are kept. Two, because a butler on SQLite that may write begins every
        transaction like a writer: its reading would wait for the writing of others.
    template_dataset
        The dataset type of the template tiles.
    skymap
        Of their patches; any by default.
    difference_dataset
        The dataset type that differences are kept as.
    """

    def __init__(
        self,
        access: ButlerAccess,
        *,
        differences: ButlerAccess | None = None,
        template_dataset: str | None = None,
        skymap: str | None = None,
        difference_dataset: str = "deepDiff_differenceExp",
    ) -> None:
        self._access, self._differences = access, differences
        self._template_dataset = template_dataset
        self._skymap = skymap
        self._difference_dataset = difference_dataset

    def load(self, uri: str, profile: InstrumentProfile | None = None) -> Exposure:
        """Load an exposure.

        Raises
        ------
        DatasetMismatch
            Raised if the URI is none, names no dataset type or lacks a dimension, or the dataset is no exposure.
        ImageNotYetAvailable
            Raised if there is no such dataset.
        CorruptImage, StoreUnavailable
            Raised if it cannot be read.
        """
        found = self._access.load(self._find(uri), profile)
        if not isinstance(found, Exposure):
            raise DatasetMismatch(uri, f"is a {type(found).__name__}, not an exposure")
        return found

    def stamp(self, uri: str) -> FileStamp:
        """Return the dataset's id: another one is another dataset. Errors as `load`."""
        return FileStamp(size=0, version=str(self._find(uri).id))

    def find_tiles(self, region: SphericalPolygon, band: str) -> list[str]:
        """Return the URIs of the template tiles of a band that touch a region of the sky.

        Raises
        ------
        DatasetMismatch
            Raised if there is no such dataset type, or it is not of patches.
        StoreUnavailable
            Raised if the database does not answer.
        """
        if self._template_dataset is None:
            return []
        refs = self._access.find_tiles(self._template_dataset, region, band, skymap=self._skymap)
        return [format_uri(ref) for ref in refs]

    def keep_difference(self, difference: Exposure, data_id: DataId) -> None:
        """Put a difference into the run, in place of one that an earlier try of this exposure has put there.

        Raises
        ------
        ConfigError
            Raised if they are not kept.
        DatasetMismatch
            Raised if the repository does not know the visit or detector, or has the dataset type as another.
        StoreUnavailable
            Raised if the database is locked or the disk does not take it.
        """
        access = self._differences or self._access
        access.put(difference, self._difference_dataset, data_id, replace=True)

    def _find(self, uri: str) -> DatasetRef:
        scheme, _, rest = uri.partition(":")
        dataset, _, query = rest.partition("?")
        if scheme != SCHEME or not dataset:
            raise DatasetMismatch(uri, "a Butler's URI is butler:DATASET_TYPE?KEY=VALUE&…")
        kinds = self._access.keys(dataset)
        data_id: dict[str, int | str] = {}
        for key, value in parse_qsl(query, keep_blank_values=True):
            kind = kinds.get(key)
            if kind is None:
                raise DatasetMismatch(uri, f"{key!r} is no key of its data ids; there are {', '.join(kinds)}")
            if kind is int and not value.isdecimal():
                raise DatasetMismatch(uri, f"{key} = {value!r} is no number")
            data_id[key] = int(value) if kind is int else value
        return self._access.require(dataset, data_id)


def format_uri(ref: DatasetRef) -> str:
    """Return the URI of a dataset."""
    return f"{SCHEME}:{ref.datasetType.name}?{urlencode(dict(ref.dataId.required))}"
