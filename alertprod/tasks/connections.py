"""What `ImageDifferenceTask` reads and writes in a middleware of datasets: names, dimensions, storage.

A connection is declared once, with its name as a template; an instance of the connections has those that a
configuration needs, with the names filled in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from lsst.pex.config import Config

from alertprod.errors import ConfigError

Kind = Literal["input", "initOutput", "output"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One dataset of a quantum.

    Parameters
    ----------
    kind
        Read, written once for all quanta, or written.
    name
        The dataset's, with ``{coaddName}`` and the like to be filled in.
    storageClass
        How it is stored.
    dimensions
        The keys of its data id.
    multiple
        A list of datasets.
    deferLoad
        Handed over as handles, which read when they are asked to.
    doc
        What it is.
    """

    kind: Kind
    name: str
    storageClass: str
    dimensions: frozenset[str] = frozenset()
    multiple: bool = False
    deferLoad: bool = False
    doc: str


_DETECTOR = frozenset({"instrument", "visit", "detector"})
_PATCH = frozenset({"tract", "patch", "skymap", "band"})

_DIFFERENCE = "{fakesType}{coaddName}Diff_"


class ImageDifferenceConnections:
    """The connections of `ImageDifferenceTask`.

    Parameters
    ----------
    config
        Decides which connections there are; its coaddName is that of the names.
    templates
        Other values of `defaultTemplates`.

    Raises
    ------
    ConfigError
        Raised if there is no such template.

    Attributes
    ----------
    allConnections
        The connections there are, by name; each is an attribute of that name too.
    inputs, initOutputs, outputs
        Their names by kind.
    """

    dimensions: ClassVar[frozenset[str]] = _DETECTOR | {"skymap"}

    defaultTemplates: ClassVar[Mapping[str, str]] = {
        "coaddName": "deep",
        "skyMapName": "deep",
        "warpTypeSuffix": "",
        "fakesType": "",
    }

    declared: ClassVar[Mapping[str, Connection]] = {
        "exposure": Connection(
            kind="input",
            name="{fakesType}calexp",
            storageClass="ExposureF",
            dimensions=_DETECTOR,
            doc="Science exposure to subtract from",
        ),
        "skyMap": Connection(
            kind="input",
            name="skyMap",
            storageClass="SkyMap",
            dimensions=frozenset({"skymap"}),
            doc="Where the tiles of the coadd lie",
        ),
        "coaddExposures": Connection(
            kind="input",
            name="{fakesType}{coaddName}Coadd{warpTypeSuffix}",
            storageClass="ExposureF",
            dimensions=_PATCH,
            multiple=True,
            deferLoad=True,
            doc="Tiles of the template",
        ),
        "dcrCoadds": Connection(
            kind="input",
            name="{fakesType}dcrCoadd{warpTypeSuffix}",
            storageClass="ExposureF",
            dimensions=_PATCH | {"subfilter"},
            multiple=True,
            deferLoad=True,
            doc="Tiles of the template, one for each part of the band",
        ),
        "finalizedPsfApCorrCatalog": Connection(
            kind="input",
            name="finalVisitSummary",
            storageClass="ExposureCatalog",
            dimensions=frozenset({"instrument", "visit"}),
            doc="Final PSF and aperture corrections of the visit's detectors",
        ),
        "outputSchema": Connection(
            kind="initOutput",
            name=f"{_DIFFERENCE}diaSrc_schema",
            storageClass="SourceCatalog",
            doc="Columns of the DiaSources",
        ),
        "subtractedExposure": Connection(
            kind="output",
            name=f"{_DIFFERENCE}differenceExp",
            storageClass="ExposureF",
            dimensions=_DETECTOR,
            doc="Science less template",
        ),
        "scoreExposure": Connection(
            kind="output",
            name=f"{_DIFFERENCE}scoreExp",
            storageClass="ExposureF",
            dimensions=_DETECTOR,
            doc="Significance of a point source at each pixel",
        ),
        "warpedExposure": Connection(
            kind="output",
            name=f"{_DIFFERENCE}warpedExp",
            storageClass="ExposureF",
            dimensions=_DETECTOR,
            doc="Template on the exposure's pixels",
        ),
        "matchedExposure": Connection(
            kind="output",
            name=f"{_DIFFERENCE}matchedExp",
            storageClass="ExposureF",
            dimensions=_DETECTOR,
            doc="The same with the exposure's PSF",
        ),
        "diaSources": Connection(
            kind="output",
            name=f"{_DIFFERENCE}diaSrc",
            storageClass="SourceCatalog",
            dimensions=_DETECTOR,
            doc="What was detected on the difference",
        ),
    }

    def __init__(self, *, config: Config, **templates: str) -> None:
        unknown = sorted(set(templates) - set(self.defaultTemplates))
        if unknown:
            known = ", ".join(self.defaultTemplates)
            raise ConfigError("connections", unknown[0], f"there is no such name to fill in; there are {known}")
        names = {**self.defaultTemplates, "coaddName": config.coaddName, **templates}
        dropped = self._listDropped(config)
        self.allConnections: dict[str, Connection] = {
            name: replace(connection, name=connection.name.format(**names))
            for name, connection in self.declared.items()
            if name not in dropped
        }
        self.inputs = self._listKind("input")
        self.initOutputs = self._listKind("initOutput")
        self.outputs = self._listKind("output")

    def __getattr__(self, name: str) -> Connection:
        connection = self.__dict__.get("allConnections", {}).get(name)
        if connection is None:
            raise AttributeError(f"{type(self).__name__} has no connection {name!r} with this configuration")
        return connection

    def _listDropped(self, config: Config) -> set[str]:
        """Return the connections that the configuration does without."""
        dropped = {"coaddExposures"} if config.coaddName == "dcr" else {"dcrCoadds"}
        dropped |= {output for output, field in _WRITTEN_IF.items() if not getattr(config, field)}
        if not config.doApplyFinalizedPsf:
            dropped.add("finalizedPsfApCorrCatalog")
        return dropped

    def _listKind(self, kind: Kind) -> frozenset[str]:
        return frozenset(name for name, connection in self.allConnections.items() if connection.kind == kind)


class ImageDifferenceFromTemplateConnections(ImageDifferenceConnections):
    """The connections where templates were built before: one of the exposure's own in place of the tiles."""

    declared: ClassVar[Mapping[str, Connection]] = {
        **ImageDifferenceConnections.declared,
        "inputTemplate": Connection(
            kind="input",
            name=f"{_DIFFERENCE}templateExp{{warpTypeSuffix}}",
            storageClass="ExposureF",
            dimensions=_DETECTOR,
            doc="Template on the exposure's pixels",
        ),
    }

    def _listDropped(self, config: Config) -> set[str]:
        return super()._listDropped(config) | {"coaddExposures", "dcrCoadds"}


_WRITTEN_IF = {
    "subtractedExposure": "doWriteSubtractedExp",
    "scoreExposure": "doWriteScoreExp",
    "warpedExposure": "doWriteWarpedExp",
    "matchedExposure": "doWriteMatchedExp",
    "diaSources": "doWriteSources",
}
"""The field without which an output is not written."""
