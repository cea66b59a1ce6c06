"""The connections of `alertprod.tasks.connections` as Rubin's middleware declares them: one list, theirs made of ours.

Two are left out. The sky map is not needed, each tile's world coordinates say where it is; the visit's final
calibrations are a table that only Rubin's own stack can read.
"""

from collections.abc import Mapping
from typing import Any

from lsst.pex.config import Config
from lsst.pipe.base import PipelineTaskConnections, connectionTypes

from alertprod.butler import CATALOG, EXPOSURE
from alertprod.tasks import connections as ours_module

_STORAGE_CLASSES: Mapping[str, str] = {"ExposureF": EXPOSURE, "SourceCatalog": CATALOG}
"""Our storage classes by Rubin's."""

_LEFT_OUT = frozenset({"skyMap", "finalizedPsfApCorrCatalog"})


def _declare(connection: ours_module.Connection) -> Any:
    common = {
        "name": connection.name,
        "storageClass": _STORAGE_CLASSES[connection.storageClass],
        "doc": connection.doc,
        "multiple": connection.multiple,
    }
    if connection.kind == "initOutput":
        return connectionTypes.InitOutput(**common)
    placed = {**common, "dimensions": tuple(sorted(connection.dimensions))}
    if connection.kind == "output":
        return connectionTypes.Output(**placed)
    return connectionTypes.Input(**placed, deferLoad=connection.deferLoad)


def _declare_all(ours: type[ours_module.ImageDifferenceConnections]) -> dict[str, Any]:
    return {name: _declare(connection) for name, connection in ours.declared.items() if name not in _LEFT_OUT}


def _prune(connections: PipelineTaskConnections, ours: ours_module.ImageDifferenceConnections) -> None:
    """Drop what a configuration does without."""
    for name in set(connections.allConnections) - set(ours.allConnections):
        delattr(connections, name)


_TEMPLATES = {
    name: value
    for name, value in ours_module.ImageDifferenceConnections.defaultTemplates.items()
    if name != "skyMapName"
}


class ImageDifferenceConnections(  # type: ignore[call-arg]  # the middleware is untyped to us
    PipelineTaskConnections,
    dimensions=tuple(sorted(ours_module.ImageDifferenceConnections.dimensions)),
    defaultTemplates=_TEMPLATES,
):
    """What a quantum of `ImageDifferenceTask` reads and writes: an exposure, the tiles that lie on it, the products."""

    locals().update(_declare_all(ours_module.ImageDifferenceConnections))

    def __init__(self, *, config: Config | None = None) -> None:
        super().__init__(config=config)
        _prune(self, ours_module.ImageDifferenceConnections(config=config))


class ImageDifferenceFromTemplateConnections(  # type: ignore[call-arg]  # the middleware is untyped to us
    PipelineTaskConnections,
    dimensions=("instrument", "visit", "detector"),
    defaultTemplates={**_TEMPLATES, "coaddName": "goodSeeing"},
):
    """The same with a template that was built before."""

    locals().update(_declare_all(ours_module.ImageDifferenceFromTemplateConnections))

    def __init__(self, *, config: Config | None = None) -> None:
        super().__init__(config=config)
        _prune(self, ours_module.ImageDifferenceFromTemplateConnections(config=config))
