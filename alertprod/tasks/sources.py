"""The table of stars and galaxies on a science image or template: what kernels are fitted on and DiaSources matched with.

Not DiaSources: those are in `alertprod.measurement.catalog`.
"""

import numpy as np

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.errors import TaskError
from alertprod.geometry.wcs import SkyWcs
from alertprod.measurement.catalog import Catalog, Column

SOURCE_COLUMNS: tuple[Column, ...] = (
    Column("source_id", "i8", "", "id, above 0; the row's number from 1 where nobody gave one"),
    Column("x", "f8", "pixel", "column of the centroid, first pixel's centre 0"),
    Column("y", "f8", "pixel", "row of the centroid"),
    Column("ra_deg", "f8", "deg", "right ascension, ICRS"),
    Column("dec_deg", "f8", "deg", "declination, ICRS"),
    Column("flux", "f8", "", "point-source flux in image units"),
    Column("flux_err", "f8", "", "its standard error"),
    Column("snr", "f8", "", "signal-to-noise ratio of the flux"),
    Column("fwhm", "f8", "pixel", "FWHM of the best circular Gaussian"),
    Column("contamination", "f8", "", "flux of near neighbours relative to its own; NaN where nobody looked"),
    Column("flag", "?", "", "spoiled: saturated, on bad pixels, cut by the border, or the measurement failed"),
    Column("g_minus_r", "f8", "mag", "colour; NaN where nobody knows it"),
    Column("is_variable", "?", "", "known to vary"),
)
"""Every column of a source. What nobody measured is NaN."""


def make_source_catalog(*, x: FloatArray, y: FloatArray, **columns: FloatArray | IntArray | BoolArray) -> Catalog:
    """Return a catalog of sources from arrays of one length, named as in `SOURCE_COLUMNS`; the others stay blank."""
    n = len(np.atleast_1d(x))
    sources = Catalog(SOURCE_COLUMNS, n)
    sources["source_id"] = np.arange(1, n + 1)
    for name, values in {"x": x, "y": y, **columns}.items():
        sources[name] = values
    return sources


def complete_sources(sources: Catalog) -> Catalog:
    """Return sources with all of `SOURCE_COLUMNS`: themselves where they have them, else a table of those that they have.

    Raises
    ------
    TaskError
        Raised if they have no positions in pixels.
    """
    if all(column.name in sources for column in SOURCE_COLUMNS):
        return sources
    missing = [name for name in ("x", "y") if name not in sources]
    if missing:
        raise TaskError(
            f"a table of {sources.n_rows} sources without {' and '.join(missing)}: positions in pixels are needed"
        )
    return make_source_catalog(
        **{column.name: sources[column.name] for column in SOURCE_COLUMNS if column.name in sources}
    )


def add_sky_positions(sources: Catalog, wcs: SkyWcs) -> Catalog:
    """Return a copy of sources whose `ra_deg` and `dec_deg` are filled from `x` and `y`, all of them."""
    placed = sources.select(np.arange(sources.n_rows))
    placed["ra_deg"], placed["dec_deg"] = wcs.pixel_to_sky(x=placed["x"], y=placed["y"])
    return placed
