"""Files of others as datasets of a folder repository: backgrounds, tables of stars, a visit's calibrations.

They are read as what their dataset must be, and kept in the project's own layout, so that what cannot be used is refused
when it is added, and not at night.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alertprod.errors import ConfigError
from alertprod.images.exposure import Exposure
from alertprod.images.fits_io import load_plane
from alertprod.images.masked_image import MaskedImage
from alertprod.images.visit_summary import load_visit_summary
from alertprod.store.catalog_files import load_catalog
from alertprod.store.repository import FolderRepository
from alertprod.tasks.data_ids import format_data_id
from alertprod.tasks.protocols import DataId
from alertprod.tasks.sources import complete_sources


def add_file(root: Path, dataset: str, path: Path, *, visit: int, detector: int | None = None) -> DataId:
    """Keep a file as a dataset of a visit or exposure, replacing an older one.

    Parameters
    ----------
    root
        The repository's folder.
    dataset
        One of `KINDS`.
    path
        A local file.
    visit, detector
        What it is of; `detector` is not asked for where it is of the whole visit.

    Returns
    -------
    DataId
        What it is kept under.

    Raises
    ------
    ConfigError
        Raised if there is no such dataset to add, or no such exposure.
    CorruptImage, ImageNotYetAvailable, TaskError
        Raised if the file is not what the dataset is, or is not there.
    DiskFull, StoreUnavailable
        Raised if it cannot be kept.
    """
    if dataset not in KINDS:
        raise ConfigError(str(root), dataset, f"is not added from a file; {', '.join(sorted(KINDS))} are")
    load, is_of_visit = KINDS[dataset]
    if not is_of_visit and detector is None:
        raise ConfigError(str(root), dataset, "is of one detector: say of which")
    repository = FolderRepository(root)
    data_id: dict[str, int | str] = {"visit": visit}
    if not is_of_visit and detector is not None:
        data_id["detector"] = detector
    if not repository.subset("calexp", [data_id]):
        raise ConfigError(str(root), dataset, f"there is no exposure of {format_data_id(data_id)}")
    repository.put(load(path), dataset, data_id)
    return data_id


def _load_background(path: Path) -> Exposure:
    """Load the first image of a FITS file; of a background nothing else counts."""
    image = load_plane(path)
    return Exposure(masked_image=MaskedImage(image, np.zeros(image.shape, np.int32), np.ones(image.shape, np.float32)))


KINDS: Mapping[str, tuple[Callable[[Path], Any], bool]] = {
    "calexpBackground": (_load_background, False),
    "src": (lambda path: complete_sources(load_catalog(path)), False),
    "finalVisitSummary": (load_visit_summary, True),
}
"""How a file of each dataset is read, and whether it is of a whole visit."""
