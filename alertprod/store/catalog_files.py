"""Catalogs in table files: ECSV, which people read and this package too, and Parquet, for the programs of others.

In ECSV the list of columns lies beside the data, so that what comes back is what went in.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from alertprod.errors import CorruptImage
from alertprod.measurement.catalog import Catalog, Column

_COLUMNS = "columns"
"""The entry of the table's metadata that holds our list of columns: a unit goes through astropy under another name."""

_FORMATS = {".ecsv": "ascii.ecsv", ".parquet": "parquet"}


def save_catalog(catalog: Catalog, path: Path) -> None:
    """Save a catalog, replacing an older file; the name's ending, .ecsv or .parquet, says how.

    Text that nobody set is empty in the file.
    """
    table = Table()
    for column in catalog.columns:
        values = catalog[column.name]
        if values.dtype == object:
            values = np.array(["" if value is None else str(value) for value in values], dtype=str)
        table[column.name] = values
        table[column.name].description = column.meaning
        if column.unit:
            table[column.name].unit = column.unit
    table.meta[_COLUMNS] = [dataclasses.asdict(column) for column in catalog.columns]
    table.write(path, format=_FORMATS[path.suffix], overwrite=True)


def load_catalog(path: Path) -> Catalog:
    """Load a catalog that `save_catalog` has saved as ECSV, or any such table: its own columns are the columns then.

    Raises
    ------
    CorruptImage
        Raised if the file cannot be read as a table, or is not what its list of columns says.
    """
    try:
        table = Table.read(path, format="ascii.ecsv")
        columns = _read_columns(table)
        catalog = Catalog(columns, len(table))
        for column in columns:
            catalog[column.name] = _read_values(table[column.name], column)
    except FileNotFoundError:
        raise
    except Exception as error:  # readers of tables raise whatever they stumble over
        problem = f"not a table: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise CorruptImage(str(path), "table", problem) from error
    return catalog


def _read_columns(table: Table) -> list[Column]:
    listed = table.meta.get(_COLUMNS)
    if listed is None:
        return [
            Column(
                name,
                "O" if table[name].dtype.kind in "USO" else table[name].dtype.newbyteorder("=").str.lstrip("=<>|"),
                str(table[name].unit or ""),
                table[name].description or name,
            )
            for name in table.colnames
        ]
    known = {field.name for field in dataclasses.fields(Column)}
    return [Column(**{key: value for key, value in entry.items() if key in known}) for entry in listed]


def _read_values(values: Any, column: Column) -> Any:
    if column.dtype == "O":
        texts = [None if value is np.ma.masked or value == "" else str(value) for value in values]
        return np.array([*texts, None], dtype=object)[:-1]
    if np.ma.isMaskedArray(values):  # blank cells
        blank = Catalog([column], len(values))[column.name]
        return np.where(np.ma.getmaskarray(values), blank, np.ma.getdata(values))
    return values
