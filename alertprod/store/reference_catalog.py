"""A reference catalogue in one table file, FITS, ECSV or Parquet, held in memory and asked for circles on the sky."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from astropy import units
from astropy.table import Table
from scipy.spatial import cKDTree

from alertprod._typing import BoolArray, FloatArray
from alertprod.errors import ConfigError
from alertprod.geometry.sphere import ARCSEC_PER_DEG, east_and_north, sky_positions, unit_vectors
from alertprod.measurement.catalog import Catalog
from alertprod.store.table_files import TableUnreadable, read_floats, read_table
from alertprod.tasks.reference_loader import REFERENCE_COLUMNS, magnitude_column

_PROPER_MOTIONS = ("pm_ra_mas_yr", "pm_dec_mas_yr")
_UNITS = {
    "ra_deg": units.deg,
    "dec_deg": units.deg,
    "pm_ra_mas_yr": units.mas / units.yr,
    "pm_dec_mas_yr": units.mas / units.yr,
}

_DAYS_PER_YEAR = 365.25
_MAS_PER_DEG = ARCSEC_PER_DEG * 1000.0


class ReferenceCatalog:
    """Objects of a table, by place; a `ReferenceLoader`.

    Parameters
    ----------
    objects
        `REFERENCE_COLUMNS` and magnitudes, at `epoch_mjd_tai`.
    pm_ra_mas_yr, pm_dec_mas_yr
        Proper motions, shape ``(n,)``, the first one times cos(dec); NaN counts as none. None where the catalogue
        has none at all.
    epoch_mjd_tai
        Epoch of the positions, of shape ``(n,)`` or one for all; needed for proper motions only.
    """

    def __init__(
        self,
        objects: Catalog,
        *,
        pm_ra_mas_yr: FloatArray | None = None,
        pm_dec_mas_yr: FloatArray | None = None,
        epoch_mjd_tai: FloatArray | float | None = None,
    ) -> None:
        self._objects = objects
        self._motion: FloatArray | None = None
        if pm_ra_mas_yr is not None and pm_dec_mas_yr is not None:
            if epoch_mjd_tai is None:
                msg = "proper motions without an epoch_mjd_tai of the positions"
                raise ValueError(msg)
            self._motion = np.nan_to_num(np.stack([pm_ra_mas_yr, pm_dec_mas_yr], axis=1), nan=0.0) / _MAS_PER_DEG
            self._epoch = np.broadcast_to(np.asarray(epoch_mjd_tai, dtype=float), (objects.n_rows,))
        self._tree = cKDTree(unit_vectors(objects["ra_deg"], objects["dec_deg"]))

    @classmethod
    def load(
        cls, uri: str, *, columns: Mapping[str, str] | None = None, epoch_mjd_tai: float | None = None
    ) -> "ReferenceCatalog":
        """Read a table.

        Parameters
        ----------
        uri
            A path or any fsspec URI; what it ends with says what it is.
        columns
            Names in the file of what is not called as it is here: {"ra_deg": "RAJ2000", "mag_g": "gmag"}.
            Here: ra_deg, dec_deg (both needed), reference_id, g_minus_r, is_variable, mag_<band>, pm_ra_mas_yr,
            pm_dec_mas_yr, epoch_mjd_tai. Columns with a unit are converted.
        epoch_mjd_tai
            Epoch of all positions, where the file has no column of it.

        Raises
        ------
        ConfigError
            Raised if the file is not there, cannot be read, or has no positions.
        StoreUnavailable
            Raised if its store does not answer.

        Notes
        -----
        Rows without a position are left out. The colour is made of mag_g and mag_r where no column has it.
        """
        try:
            table = read_table(uri)
        except FileNotFoundError as error:
            raise ConfigError(uri, "reference catalogue", "no such file") from error
        except TableUnreadable as error:
            raise ConfigError(uri, "reference catalogue", str(error)) from error
        return cls._from_table(table, uri, columns or {}, epoch_mjd_tai)

    @classmethod
    def _from_table(
        cls, table: Table, uri: str, columns: Mapping[str, str], epoch_mjd_tai: float | None
    ) -> "ReferenceCatalog":
        for ours, theirs in columns.items():
            if theirs not in table.colnames:
                raise ConfigError(uri, ours, f"there is no column {theirs!r}; there are {', '.join(table.colnames)}")
            if theirs != ours:
                table[ours] = table[theirs]
        for needed in ("ra_deg", "dec_deg"):
            if needed not in table.colnames:
                raise ConfigError(uri, needed, f"there is no such column; there are {', '.join(table.colnames)}")
        ra, dec = _floats(table, "ra_deg"), _floats(table, "dec_deg")
        table = table[np.isfinite(ra) & np.isfinite(dec)]
        bands = [name.removeprefix("mag_") for name in table.colnames if name.startswith("mag_")]
        objects = Catalog((*REFERENCE_COLUMNS, *map(magnitude_column, bands)), len(table))
        objects["reference_id"] = np.arange(1, len(table) + 1)
        for column in objects.columns:
            if column.name not in table.colnames:
                continue
            if column.dtype == "?":
                objects[column.name] = _flags(table, column.name)
            elif column.dtype == "i8":
                objects[column.name] = np.ma.filled(table[column.name], 0)
            else:
                objects[column.name] = _floats(table, column.name)
        if "g_minus_r" not in table.colnames and {"g", "r"} <= set(bands):
            objects["g_minus_r"] = objects["mag_g"] - objects["mag_r"]
        if not set(_PROPER_MOTIONS) <= set(table.colnames):
            return cls(objects)
        epoch: Any = _floats(table, "epoch_mjd_tai") if "epoch_mjd_tai" in table.colnames else epoch_mjd_tai
        if epoch is None:
            raise ConfigError(uri, "epoch_mjd_tai", "proper motions need the epoch of the positions")
        pm_ra, pm_dec = (_floats(table, name) for name in _PROPER_MOTIONS)
        return cls(objects, pm_ra_mas_yr=pm_ra, pm_dec_mas_yr=pm_dec, epoch_mjd_tai=epoch)

    @property
    def n_objects(self) -> int:
        """Number of objects of the whole catalogue."""
        return self._objects.n_rows

    def load_circle(
        self, *, ra_deg: float, dec_deg: float, radius_arcsec: float, epoch_mjd_tai: float | None = None
    ) -> Catalog:
        """Return the objects within a circle at an epoch; see `ReferenceLoader`."""
        center = unit_vectors(ra_deg, dec_deg)
        radius = np.radians(radius_arcsec / ARCSEC_PER_DEG)
        reach, years = radius, None
        if self._motion is not None and epoch_mjd_tai is not None and len(self._motion):
            years = (epoch_mjd_tai - self._epoch) / _DAYS_PER_YEAR
            # What moves into the circle must be looked at too.
            reach += np.radians(np.nanmax(np.hypot(*self._motion.T) * np.abs(years)))
        chord = 2.0 * np.sin(min(reach, np.pi) / 2.0)
        rows = np.sort(np.asarray(self._tree.query_ball_point(center, chord), dtype=np.int64))
        objects = self._objects.select(rows)
        if years is not None and self._motion is not None:
            objects["ra_deg"], objects["dec_deg"] = _move(
                objects["ra_deg"], objects["dec_deg"], self._motion[rows] * np.nan_to_num(years[rows])[:, None]
            )
            inside = np.linalg.norm(unit_vectors(objects["ra_deg"], objects["dec_deg"]) - center, axis=1)
            objects = objects.select(inside <= 2.0 * np.sin(min(radius, np.pi) / 2.0))
        return objects


def _move(ra_deg: FloatArray, dec_deg: FloatArray, step_deg: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return positions moved by small (east, north) steps, shape ``(n, 2)``; right at the poles too."""
    east, north = east_and_north(ra_deg, dec_deg)
    step = np.radians(step_deg)
    return sky_positions(unit_vectors(ra_deg, dec_deg) + step[:, :1] * east + step[:, 1:] * north)


def _flags(table: Table, name: str) -> BoolArray:
    """Return a column as flags; False where it is masked. In CSV they are words."""
    values = np.ma.filled(np.ma.asarray(table[name]), 0)
    if values.dtype.kind in "US":
        return np.isin(np.char.lower(values.astype(str)), ("true", "t", "1", "yes"))
    return values.astype(np.bool_)


def _floats(table: Table, name: str) -> FloatArray:
    """Return a column as floats in our unit; NaN where it is masked."""
    return read_floats(table, name, _UNITS.get(name))
