"""Tables that others made, from a file at any URI: FITS, ECSV, CSV or Parquet, told by what the name ends with."""

import gzip
import io
from typing import Final

import numpy as np
from astropy.table import Table
from astropy.units import Unit, UnitBase

from alertprod._typing import FloatArray
from alertprod.store.files import MAX_FILE_BYTES, read_bytes

_FORMATS = {
    ".ecsv": "ascii.ecsv",
    ".csv": "ascii.csv",
    ".fits": "fits",
    ".fit": "fits",
    ".fits.gz": "fits",
    ".parquet": "parquet",
}
"""How a file is read, by what its name ends with."""


_MAX_PARQUET_VALUES: Final = 1 << 27
"""A gigabyte of numbers. A Parquet file says how many there are, and may hold very many in very few bytes."""


class TableUnreadable(Exception):
    """A file that is no table, or not the one that is needed; what it means is for the caller to say."""


def read_table(uri: str, *, max_bytes: int = MAX_FILE_BYTES) -> Table:
    """Read a table into memory.

    Raises
    ------
    TableUnreadable
        Raised if its name or its contents are of no format that is known here, or it is more than `max_bytes` when it
        is decompressed.
    ImageNotYetAvailable, StoreUnavailable, CorruptImage
        Raised as by `read_bytes`.
    """
    kind = next((format_ for end, format_ in _FORMATS.items() if uri.lower().endswith(end)), None)
    if kind is None:
        raise TableUnreadable(f"a file that ends with {', '.join(_FORMATS)} is needed")
    data = read_bytes(uri, max_bytes=max_bytes)
    try:
        return _parse(_decompress(data, max_bytes) if uri.lower().endswith(".gz") else data, kind)
    except Exception as error:  # every format has errors of its own; all mean that the file is not one
        raise TableUnreadable(f"cannot be read as {kind}: {error}") from error


def read_floats(table: Table, name: str, unit: str | UnitBase | None = None) -> FloatArray:
    """Return a column as floats, NaN where it is masked; converted to `unit` where the file says in which it is.

    Raises
    ------
    ValueError
        Raised if the column holds no numbers, or has a unit of something else.
    """
    column = table[name]
    values = np.ma.filled(np.ma.asarray(column).astype(float), np.nan)
    if column.unit is None or unit is None:
        return values
    return np.asarray((values * Unit(column.unit)).to_value(unit))


def _decompress(data: bytes, max_bytes: int) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise TableUnreadable(f"more than {max_bytes} bytes, decompressed")
    return content


def _parse(data: bytes, kind: str) -> Table:
    if kind != "parquet":
        return Table.read(io.BytesIO(data), format=kind)
    from pyarrow import parquet  # an extra, and slow to import

    file = parquet.ParquetFile(io.BytesIO(data))
    facts = file.metadata
    if (n_values := facts.num_rows * facts.num_columns) > _MAX_PARQUET_VALUES:
        raise TableUnreadable(f"{n_values} values; {_MAX_PARQUET_VALUES} are accepted")
    columns = file.read()
    return Table({name: columns[name].to_numpy() for name in columns.column_names})
