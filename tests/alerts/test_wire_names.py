import pytest

from alertprod.alerts.registry import record_fields
from alertprod.alerts.wire_names import (
    DIA_FORCED_SOURCE_WIRE_NAMES,
    DIA_OBJECT_WIRE_NAMES,
    DIA_SOURCE_WIRE_NAMES,
    ORBIT_WIRE_NAMES,
    SS_SOURCE_WIRE_NAMES,
)
from alertprod.association.columns import DIA_FORCED_SOURCE_COLUMNS, DIA_OBJECT_COLUMNS
from alertprod.association.solar_system_columns import ORBIT_COLUMNS, SS_SOURCE_COLUMNS
from alertprod.measurement.catalog import STORED_DIA_SOURCE_COLUMNS

# Fields of the schema that no column fills.
UNFILLED = {
    "diaSource": {"trailAlgorithm", "timeWithdrawnMjdTai"},
    "diaObject": set(),
    "diaForcedSource": {"timeWithdrawnMjdTai"},
    "ssSource": set(),
    "mpc_orbits": set(),
}

TABLES = [
    ("diaSource", STORED_DIA_SOURCE_COLUMNS, DIA_SOURCE_WIRE_NAMES),
    ("diaObject", DIA_OBJECT_COLUMNS, DIA_OBJECT_WIRE_NAMES),
    ("diaForcedSource", DIA_FORCED_SOURCE_COLUMNS, DIA_FORCED_SOURCE_WIRE_NAMES),
    ("ssSource", SS_SOURCE_COLUMNS, SS_SOURCE_WIRE_NAMES),
    ("mpc_orbits", ORBIT_COLUMNS, ORBIT_WIRE_NAMES),
]


@pytest.mark.parametrize(("record", "columns", "names"), TABLES)
def test_every_column_has_a_field_and_every_field_a_column(record, columns, names):
    assert {column.name for column in columns} - set(names) <= {"x_y_cov", "repeated_mjd_tai"}
    assert set(names) <= {column.name for column in columns}
    assert set(names.values()) == set(record_fields(record)) - UNFILLED[record]


@pytest.mark.parametrize(("record", "columns", "names"), TABLES)
def test_columns_are_in_the_packets_order(record, columns, names):
    ours = [names[column.name] for column in columns if column.name in names]
    assert ours == [field for field in record_fields(record) if field in set(ours)]


@pytest.mark.parametrize(("record", "columns", "names"), TABLES)
def test_required_fields_are_never_unfilled(record, columns, names):
    required = {field for field, nullable in record_fields(record).items() if not nullable}
    assert required <= set(names.values())
