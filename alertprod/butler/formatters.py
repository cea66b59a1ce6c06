"""How a Butler's datastore keeps exposures and catalogs: as FITS in the native layout, and as ECSV.

An exposure that was ingested instead of put may be of another observatory: a subclass that names its profile reads it.
"""

from pathlib import Path
from typing import Any, ClassVar

from lsst.daf.butler import FormatterV2
from lsst.resources import ResourcePath

from alertprod.errors import DatasetMismatch
from alertprod.images.exposure import Exposure
from alertprod.images.fits_io import load_exposure, save_exposure
from alertprod.images.profile import NATIVE_PROFILE, load_profile
from alertprod.measurement.catalog import Catalog
from alertprod.store.catalog_files import load_catalog, save_catalog

_COMPRESS = "compress"


class ExposureFormatter(FormatterV2):
    """Reads and writes exposures.

    Notes
    -----
    The write parameter ``compress: true``, in the repository's configuration, makes tile-compressed files: smaller
    without loss, and many times slower to write.
    """

    default_extension = ".fits"
    supported_extensions = frozenset({".fits", ".fits.fz", ".fits.gz", ".fit", ".fz"})
    supported_write_parameters = frozenset({_COMPRESS})
    can_read_from_local_file = True

    profile: ClassVar[str] = NATIVE_PROFILE
    """Name or path of the profile that files are read with."""

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Exposure:
        """Load an exposure.

        Raises
        ------
        CorruptImage
            Raised if the file cannot be read as one.
        DatasetMismatch
            Raised if a component is asked for: an exposure is stored as a whole.
        """
        del expected_size
        _require_whole(self, component)
        return load_exposure(path, load_profile(self.profile), name=str(self.file_descriptor.location.uri))

    def write_local_file(self, in_memory_dataset: Exposure, uri: ResourcePath) -> None:
        """Save an exposure in the native layout."""
        save_exposure(in_memory_dataset, uri.ospath, compress=bool(self.write_parameters.get(_COMPRESS, False)))


class RubinExposureFormatter(ExposureFormatter):
    """Reads the calexps and visit images that the Science Pipelines wrote, ingested as they are."""

    profile = "rubin"


class CatalogFormatter(FormatterV2):
    """Reads and writes catalogs."""

    default_extension = ".ecsv"
    can_read_from_local_file = True

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Catalog:
        """Load a catalog.

        Raises
        ------
        CorruptImage
            Raised if the file is no table of ours.
        DatasetMismatch
            Raised if a component is asked for.
        """
        del expected_size
        _require_whole(self, component)
        return load_catalog(Path(path))

    def write_local_file(self, in_memory_dataset: Catalog, uri: ResourcePath) -> None:
        """Save a catalog."""
        save_catalog(in_memory_dataset, Path(uri.ospath))


def _require_whole(formatter: Any, component: str | None) -> None:
    if component is not None:
        raise DatasetMismatch(str(formatter.dataset_ref), f"there is no component {component!r}: it is stored whole")
