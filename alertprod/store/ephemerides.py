"""Predicted positions of Solar System bodies from a table file at any URI.

A table that is not there or cannot be used is never the end of an exposure: its known bodies are then unknown.
"""

from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from alertprod.association.solar_system import Ephemerides
from alertprod.association.solar_system_columns import (
    N_NEEDED_PREDICTION_COLUMNS,
    ORBIT_COLUMNS,
    ORBIT_INTEGERS,
    ORBIT_TIMES,
    PREDICTION_COLUMNS,
)
from alertprod.errors import AlertprodError
from alertprod.measurement.catalog import Catalog, Column
from alertprod.store.files import FileStamp, stamp_file
from alertprod.store.table_files import TableUnreadable, read_floats, read_table

_MAX_BYTES = 512 << 20
"""A million rows with orbits; a worker's memory must bear it."""

_MADE_HERE = ("id", "designation", "packed_primary_provisional_designation", "unpacked_primary_provisional_designation")
"""Fields of an orbit that follow from the designation."""

_INT32_MAX = 2**31 - 1


class EphemeridesUnavailable(Exception):
    """Why there are no predictions to be had from a URI."""


class EphemeridesStore:
    """Reads tables of predictions, and keeps the one read last: a table of the night serves all its exposures."""

    def __init__(self) -> None:
        self._last: tuple[str, FileStamp, Ephemerides] | None = None

    def load(self, uri: str) -> Ephemerides:
        """Load a table, anew where the file has changed.

        Raises
        ------
        EphemeridesUnavailable
            Raised if there is no such file, or no table of predictions in it, or its store does not answer.
        """
        try:
            stamp = stamp_file(uri)
            if self._last is not None and self._last[:2] == (uri, stamp):
                return self._last[2]
            ephemerides = load_ephemerides(uri)
        except AlertprodError as error:
            raise EphemeridesUnavailable(str(error)) from error
        self._last = (uri, stamp, ephemerides)
        return ephemerides


def load_ephemerides(uri: str) -> Ephemerides:
    """Read a table of `PREDICTION_COLUMNS` and `ORBIT_COLUMNS`, under these names.

    Raises
    ------
    EphemeridesUnavailable
        Raised if it is no such table.
    ImageNotYetAvailable, StoreUnavailable, CorruptImage
        Raised as by `alertprod.store.files.read_bytes`.

    Notes
    -----
    Columns with a unit are converted, those without are in ours; other columns are ignored. Rows that lack a
    designation, a time, a place or a rate are left out.
    """
    try:
        table = read_table(uri, max_bytes=_MAX_BYTES)
        return _from_table(table)
    except (TableUnreadable, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, AlertprodError):
            raise
        raise EphemeridesUnavailable(f"{uri}: {error}") from error


def _from_table(table: Table) -> Ephemerides:
    needed = [column.name for column in PREDICTION_COLUMNS[:N_NEEDED_PREDICTION_COLUMNS]]
    missing = [name for name in needed if name not in table.colnames]
    if missing:
        raise TableUnreadable(f"there is no column {', '.join(missing)}; there are {', '.join(table.colnames)}")
    predictions = Catalog(PREDICTION_COLUMNS, len(table))
    usable = np.ones(len(table), dtype=np.bool_)
    for column in PREDICTION_COLUMNS:
        if column.name not in table.colnames:
            continue
        if column.name == "designation":
            predictions[column.name] = names = _texts(table, column.name)
            usable &= np.array([name is not None for name in names], dtype=np.bool_)
            continue
        predictions[column.name] = read_floats(table, column.name, column.unit)
        if column.name in needed:
            usable &= np.isfinite(predictions[column.name])
    usable &= np.abs(predictions["dec_deg"]) <= 90.0
    present = [column for column in ORBIT_COLUMNS if column.name in table.colnames and column.name not in _MADE_HERE]
    orbits = Catalog(present, len(table))
    for column in present:
        orbits[column.name] = _orbit_values(table, column)
    return Ephemerides(predictions.select(usable), orbits.select(usable))


def _orbit_values(table: Table, column: Column) -> Any:
    if column.name in ORBIT_INTEGERS:
        return _integers(read_floats(table, column.name), _INT32_MAX)
    if column.name in ORBIT_TIMES:
        return _microseconds(table, column.name)
    if column.dtype == "O":
        return _texts(table, column.name)
    return read_floats(table, column.name, column.unit or None)


def _integers(values: NDArray[Any], limit: int) -> NDArray[np.object_]:
    whole = np.full(len(values), None, dtype=object)
    for row in np.flatnonzero(np.isfinite(values) & (np.abs(values) <= limit)).tolist():
        whole[row] = int(values[row])
    return whole


def _microseconds(table: Table, name: str) -> NDArray[np.object_]:
    """Return times as microseconds since 1970, UTC: whole numbers, ISO 8601 text, or the file's own kind of time."""
    column = table[name]
    if column.dtype.kind in "iuf":
        return _integers(read_floats(table, name), 2**53)
    times = column if column.dtype.kind == "M" else np.array([text or "NaT" for text in _texts(table, name)])
    as_numbers = np.ma.filled(np.ma.asarray(times.astype("datetime64[us]")), np.datetime64("NaT"))
    out = np.full(len(as_numbers), None, dtype=object)
    known = ~np.isnat(as_numbers)
    out[known] = as_numbers[known].astype(np.int64).tolist()
    return out


def _texts(table: Table, name: str) -> NDArray[np.object_]:
    """Return a column as text without space about it; None where it is masked or empty."""
    column = table[name]
    masked = np.ma.getmaskarray(np.ma.asarray(column))
    texts = np.full(len(column), None, dtype=object)
    for row, value in enumerate(column.tolist()):
        if masked[row] or value is None:
            continue
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        texts[row] = text.strip() or None
    return texts
