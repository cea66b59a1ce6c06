"""What is known of a piece of sky before an exposure: objects, their sources and forced measurements."""

from dataclasses import dataclass

from alertprod.association.columns import DIA_FORCED_SOURCE_COLUMNS, KNOWN_OBJECT_COLUMNS
from alertprod.measurement.catalog import STORED_DIA_SOURCE_COLUMNS, Catalog


@dataclass(frozen=True, slots=True)
class History:
    """The latest version of each DiaObject in a region, and light curves over the past 12 months.

    Parameters
    ----------
    objects
        `KNOWN_OBJECT_COLUMNS` at least; one row an object. May reach beyond the exposure.
    sources
        `STORED_DIA_SOURCE_COLUMNS` at least, in any order; rows of other objects are ignored.
    forced
        `DIA_FORCED_SOURCE_COLUMNS`, in any order.
    """

    objects: Catalog
    sources: Catalog
    forced: Catalog

    @classmethod
    def empty(cls) -> "History":
        """Return the history of a sky nobody has looked at."""
        return cls(
            objects=Catalog(KNOWN_OBJECT_COLUMNS, 0),
            sources=Catalog(STORED_DIA_SOURCE_COLUMNS, 0),
            forced=Catalog(DIA_FORCED_SOURCE_COLUMNS, 0),
        )
