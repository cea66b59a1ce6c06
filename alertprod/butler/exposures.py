"""Exposures as a Butler gives them: what the data id knows and the file does not say is filled in, and they must agree."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from alertprod.errors import DatasetMismatch
from alertprod.images.exposure import Exposure

_IDENTIFYING = ("visit", "detector", "band")
_DESCRIBING = ("instrument", "physical_filter")
"""Names of these two are an observatory's own, and may be spelled otherwise in the file: the data id's are taken."""


def complete(dataset: Any, data_id: Any, *, name: str) -> Any:
    """Return an exposure with the facts of its data id; anything else as it is.

    Parameters
    ----------
    data_id
        Rubin's DataCoordinate.
    name
        The dataset's, for messages.

    Raises
    ------
    DatasetMismatch
        Raised if the file says another visit, detector or band.
    """
    if not isinstance(dataset, Exposure):
        return dataset
    facts: Mapping[str, Any] = data_id.mapping
    for key in _IDENTIFYING:
        found = getattr(dataset.info, key)
        if key in facts and found is not None and found != facts[key]:
            raise DatasetMismatch(name, f"its file says {key} {found}, the data id {facts[key]}")
    known = {key: facts[key] for key in (*_IDENTIFYING, *_DESCRIBING) if key in facts}
    return replace(dataset, info=replace(dataset.info, **known))


def format_ref(ref: Any) -> str:
    """Return "calexp visit=12 detector=3 instrument=Cam"."""
    keys = " ".join(f"{key}={value}" for key, value in ref.dataId.required.items())
    return f"{ref.datasetType.name} {keys}".rstrip()
