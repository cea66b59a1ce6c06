"""Reference objects, stars and galaxies of a catalogue that others made: what they are, and who loads them."""

from typing import Protocol

from alertprod.measurement.catalog import Catalog, Column

REFERENCE_COLUMNS: tuple[Column, ...] = (
    Column("reference_id", "i8", "", "id in the catalogue, above 0; the row's number from 1 where it has none"),
    Column("ra_deg", "f8", "deg", "right ascension, ICRS, at the epoch that was asked for"),
    Column("dec_deg", "f8", "deg", "declination, ICRS, at that epoch"),
    Column("g_minus_r", "f8", "mag", "colour; NaN where it is not known"),
    Column("is_variable", "?", "", "known to vary"),
)
"""What every table of reference objects has; a magnitude column for each band of the catalogue comes after."""


def magnitude_column(band: str) -> Column:
    """Return the column of a band's AB magnitudes; NaN where not measured."""
    return Column(f"mag_{band}", "f8", "mag", f"magnitude in {band}; NaN where it is not known")


class ReferenceLoader(Protocol):
    """Knows a reference catalogue."""

    def load_circle(
        self, *, ra_deg: float, dec_deg: float, radius_arcsec: float, epoch_mjd_tai: float | None = None
    ) -> Catalog:
        """Return the objects within a circle on the sky, in the catalogue's order.

        Parameters
        ----------
        ra_deg, dec_deg
            Its centre, ICRS.
        epoch_mjd_tai
            When; where given, objects with a proper motion are where they are then.

        Returns
        -------
        Catalog
            `REFERENCE_COLUMNS` and a `magnitude_column` for each band. Empty where the circle has none.
        """
        ...
