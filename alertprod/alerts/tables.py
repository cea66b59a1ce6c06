"""Records of alerts as astropy tables: with units, meanings and plain dtypes.

What is null is NaN in columns of floats, which every calculation understands, and masked in all others.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from alertprod.alerts.registry import load_record_schema, record_types
from alertprod.alerts.wire_names import (
    DIA_FORCED_SOURCE_WIRE_NAMES,
    DIA_OBJECT_WIRE_NAMES,
    DIA_SOURCE_WIRE_NAMES,
    ORBIT_WIRE_NAMES,
    SS_SOURCE_WIRE_NAMES,
)
from alertprod.association.columns import DIA_FORCED_SOURCE_COLUMNS, DIA_OBJECT_COLUMNS
from alertprod.association.solar_system_columns import ORBIT_COLUMNS, SS_SOURCE_COLUMNS
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Column

if TYPE_CHECKING:
    from astropy.table import Table

_COLUMNS: Mapping[str, tuple[Sequence[Column], Mapping[str, str]]] = {
    "diaSource": (DIA_SOURCE_COLUMNS, DIA_SOURCE_WIRE_NAMES),
    "diaObject": (DIA_OBJECT_COLUMNS, DIA_OBJECT_WIRE_NAMES),
    "diaForcedSource": (DIA_FORCED_SOURCE_COLUMNS, DIA_FORCED_SOURCE_WIRE_NAMES),
    "ssSource": (SS_SOURCE_COLUMNS, SS_SOURCE_WIRE_NAMES),
    "mpc_orbits": (ORBIT_COLUMNS, ORBIT_WIRE_NAMES),
}

_DTYPES: Mapping[str, type] = {
    "float": np.float32,
    "double": np.float64,
    "int": np.int32,
    "long": np.int64,
    "boolean": np.bool_,
}

_OBJECT_FACTS = ("nDiaSources", "firstDiaSourceMjdTai", "lastDiaSourceMjdTai")
"""What a table of alerts has of an object beside its latest source."""

_ALERT_FACTS = ("observation_reason", "target_name")


@functools.cache
def field_units(record: str) -> Mapping[str, str]:
    """Return the unit of each field of a record as astropy reads it, "" for none."""
    columns, names = _COLUMNS[record]
    known = {names[column.name]: column.unit for column in columns if column.name in names}
    return {field: known.get(field, "") for field in record_types(record)}


@functools.cache
def field_meanings(record: str) -> Mapping[str, str]:
    """Return what the schema says of each field of a record."""
    return {field["name"]: field["doc"] for field in load_record_schema(record)["fields"]}


def make_record_table(records: Iterable[Mapping[str, Any]], record: str) -> Table:
    """Return records of one kind as a table, a column for each of the record's fields.

    Parameters
    ----------
    records
        Decoded; fields that one lacks are null.
    record
        The record's name, for example ``diaSource``.
    """
    from astropy.table import Table  # late: a second that the service can do without

    rows = list(records)
    units, meanings = field_units(record), field_meanings(record)
    table = Table()
    for field, kind in record_types(record).items():
        _add_column(
            table,
            field,
            [row.get(field) for row in rows],
            avro_type=kind.avro_type,
            unit=units[field],
            meaning=meanings[field],
        )
    return table


def make_alert_table(packets: Iterable[Mapping[str, Any]]) -> Table:
    """Return one row an alert: its source, and a little of its object and its exposure.

    Notes
    -----
    ``nDiaSources`` and the times of the first and the last source are the object's, ``designation`` a Solar System
    body's; ``n_prvDiaSources`` and ``n_prvDiaForcedSources`` count the history in the packet.
    """
    packets = list(packets)
    table = make_record_table((packet["diaSource"] for packet in packets), "diaSource")
    types, units = record_types("diaObject"), field_units("diaObject")
    for field in _OBJECT_FACTS:
        _add_column(
            table,
            field,
            [(packet["diaObject"] or {}).get(field) for packet in packets],
            avro_type=types[field].avro_type,
            unit=units[field],
            meaning=field_meanings("diaObject")[field],
        )
    designations = [(packet["ssSource"] or {}).get("designation") for packet in packets]
    _add_column(table, "designation", designations, avro_type="string", meaning="Solar System body, unpacked.")
    for field in ("prvDiaSources", "prvDiaForcedSources"):
        counts = [len(packet[field] or ()) for packet in packets]
        _add_column(table, f"n_{field}", counts, avro_type="int", meaning=f"Records in {field}.")
    for field in _ALERT_FACTS:
        _add_column(table, field, [packet[field] for packet in packets], avro_type="string", meaning="Of the visit.")
    return table


def _add_column(
    table: Table, name: str, values: Sequence[Any], *, avro_type: str, unit: str = "", meaning: str = ""
) -> None:
    from astropy.table import Column as TableColumn
    from astropy.table import MaskedColumn

    options: dict[str, Any] = {"name": name, "description": meaning}
    if unit:
        options["unit"] = unit
    missing = np.array([value is None for value in values], dtype=bool)
    if avro_type in ("float", "double"):
        filled = [np.nan if value is None else value for value in values]
        table.add_column(TableColumn(np.array(filled, dtype=_DTYPES[avro_type]), **options))
        return
    if avro_type == "string":
        data = np.array(["" if value is None else value for value in values], dtype=str)
    else:
        filled = [0 if value is None else _as_number(value) for value in values]
        data = np.array(filled, dtype=_DTYPES[avro_type])
    if missing.any():
        table.add_column(MaskedColumn(data, mask=missing, **options))
    else:
        table.add_column(TableColumn(data, **options))


def _as_number(value: Any) -> Any:
    """Return a moment as microseconds since 1970, as the packet has it; whatever else as it is."""
    return value if not hasattr(value, "timestamp") else round(value.timestamp() * 1e6)
