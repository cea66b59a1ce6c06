import io
import itertools

import fastavro
import numpy as np
import pytest
from dictionary_packets import wire_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from alertprod.alerts.encoding import (
    encode_array,
    encode_bytes,
    encode_long,
    encode_optional,
    encode_rows,
)
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
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog

TABLES = {
    "diaSource": (DIA_SOURCE_COLUMNS, DIA_SOURCE_WIRE_NAMES),
    "diaObject": (DIA_OBJECT_COLUMNS, DIA_OBJECT_WIRE_NAMES),
    "diaForcedSource": (DIA_FORCED_SOURCE_COLUMNS, DIA_FORCED_SOURCE_WIRE_NAMES),
    "ssSource": (SS_SOURCE_COLUMNS, SS_SOURCE_WIRE_NAMES),
    "mpc_orbits": (ORBIT_COLUMNS, ORBIT_WIRE_NAMES),
}
OBJECTS = {
    "string": ["", "r", "é" * 70, "a name of more than 63 bytes, so that its length itself takes two of them"],
    "int": [0, -1, 300, 2**31 - 1],
    "long": [0, -(2**63), 1_800_000_000_000_000, 2**63 - 1],
}


def encode_with_fastavro(value, schema):
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, value)
    return out.getvalue()


def make_table(record, n, rng):
    """Every kind of value that a column may hold, missing ones and extremes among them."""
    columns, names = TABLES[record]
    catalog, types = Catalog(columns, n), record_types(record)
    for column in columns:
        values, kind = catalog[column.name], types.get(names.get(column.name))
        missing = rng.random(n) < 0.3 * (kind is None or kind.nullable)
        match values.dtype.kind:
            case "f":
                values[:] = rng.normal(size=n) * 10.0 ** rng.integers(-20, 20, n)
                values[missing] = rng.choice([np.nan, np.inf, -np.inf], missing.sum())
            case "i":
                limits = np.iinfo(values.dtype)
                values[:] = rng.integers(limits.min, limits.max, n, endpoint=True) >> rng.integers(0, 31, n)
                values[:2] = limits.min, limits.max
                values[missing] = 0
            case "b":
                values[:] = rng.random(n) < 0.5
            case _ if kind is not None:
                values[:] = [OBJECTS[kind.avro_type][k] for k in rng.integers(0, 4, n)]
                values[missing] = None
    return catalog


@pytest.mark.parametrize("record", TABLES)
@pytest.mark.parametrize("n", [0, 1, 150])
def test_bytes_are_those_of_the_general_encoder(record, n):
    catalog = make_table(record, max(n, 2), np.random.default_rng(5)).select(np.arange(n))
    names, schema = TABLES[record][1], load_record_schema(record)
    expected = [encode_with_fastavro(row, schema) for row in wire_rows(catalog, names, record)]
    assert encode_rows(catalog, names, record).split() == expected


def test_tables_longer_than_a_block_come_out_whole():
    catalog = make_table("diaForcedSource", 5000, np.random.default_rng(6))
    rows = encode_rows(catalog, DIA_FORCED_SOURCE_WIRE_NAMES, "diaForcedSource")
    assert rows.ends[-1] == len(rows.data)
    schema = load_record_schema("diaForcedSource")
    for k in (0, 2047, 2048, 4999):
        one = encode_rows(catalog.select(np.array([k])), DIA_FORCED_SOURCE_WIRE_NAMES, "diaForcedSource")
        assert rows.split()[k] == one.data
        assert fastavro.schemaless_reader(io.BytesIO(one.data), schema, None)["visit"] == catalog["visit"][k]


@settings(max_examples=300, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1))
def test_any_whole_number(value):
    assert encode_long(value) == encode_with_fastavro(value, "long")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_any_column_of_whole_numbers(values):
    catalog = make_table("diaForcedSource", 20, np.random.default_rng(0)).select(np.arange(len(values)))
    catalog["visit"] = np.array(values)
    rows = encode_rows(catalog, DIA_FORCED_SOURCE_WIRE_NAMES, "diaForcedSource").split()
    schema = load_record_schema("diaForcedSource")
    assert [fastavro.schemaless_reader(io.BytesIO(row), schema, None)["visit"] for row in rows] == values


@pytest.mark.parametrize("n", [0, 1, 3, 200])
def test_arrays_bytes_and_optional_values(n):
    values = list(range(n))
    assert encode_array([encode_long(k) for k in values]) == encode_with_fastavro(
        values, {"type": "array", "items": "long"}
    )
    assert encode_optional(encode_bytes(b"x" * n)) == encode_with_fastavro(b"x" * n, ["null", "bytes"])
    assert encode_optional(None) == encode_with_fastavro(None, ["null", "bytes"])


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("ra_deg", np.nan, "ra_deg is required in an alert, but is not finite in 1 rows"),
        ("time_processed_mjd_tai", np.inf, "time_processed_mjd_tai is required"),
        ("band", 7, "band = 7 is no string"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(column, value, problem):
    catalog = make_table("diaForcedSource", 4, np.random.default_rng(0))
    catalog[column][2] = value
    with pytest.raises(ValueError, match=problem):
        encode_rows(catalog, DIA_FORCED_SOURCE_WIRE_NAMES, "diaForcedSource")


def test_an_orbit_number_that_is_too_large_is_refused():
    catalog = make_table("mpc_orbits", 2, np.random.default_rng(0))
    catalog["nopp"][1] = 2**31
    with pytest.raises(ValueError, match="nopp does not fit an int"):
        encode_rows(catalog, ORBIT_WIRE_NAMES, "mpc_orbits")


def test_a_field_that_must_not_be_null_needs_a_column():
    names = {ours: theirs for ours, theirs in DIA_FORCED_SOURCE_WIRE_NAMES.items() if theirs != "visit"}
    with pytest.raises(ValueError, match="visit"):
        encode_rows(make_table("diaForcedSource", 2, np.random.default_rng(0)), names, "diaForcedSource")


def test_ends_are_where_rows_end():
    rows = encode_rows(make_table("diaObject", 9, np.random.default_rng(1)), DIA_OBJECT_WIRE_NAMES, "diaObject")
    assert b"".join(rows.split()) == rows.data
    assert [len(row) for row in rows.split()] == [b - a for a, b in itertools.pairwise([0, *rows.ends])]
