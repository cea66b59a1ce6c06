"""What alerts hold, made the slow and plain way: dictionaries, for comparison with the bytes of the real thing."""

from itertools import repeat

import numpy as np

from alertprod.alerts.registry import record_fields
from alertprod.alerts.wire_names import (
    DIA_FORCED_SOURCE_WIRE_NAMES,
    DIA_OBJECT_WIRE_NAMES,
    DIA_SOURCE_WIRE_NAMES,
    ORBIT_WIRE_NAMES,
    SS_SOURCE_WIRE_NAMES,
)
from alertprod.measurement.catalog import Catalog


def make_dictionaries(association, cutouts, info):
    """Yield the packet of each source of an association, in its order."""
    sources, history = association.sources, association.history
    objects = {
        row["diaObjectId"]: row for row in wire_rows(association.packet_objects, DIA_OBJECT_WIRE_NAMES, "diaObject")
    }
    bodies = _describe_bodies(association.solar_system)
    ids = list(objects)
    earlier = _group_by_object(history.sources, ids, "dia_source_id", DIA_SOURCE_WIRE_NAMES, "diaSource")
    forced = _group_by_object(
        Catalog.concatenate([history.forced, association.forced]),
        ids,
        "dia_forced_source_id",
        DIA_FORCED_SOURCE_WIRE_NAMES,
        "diaForcedSource",
    )
    rows = wire_rows(sources, DIA_SOURCE_WIRE_NAMES, "diaSource")
    for row, triplet in zip(rows, cutouts, strict=True):
        object_id = row["diaObjectId"]
        ss_source, orbit = (None, None) if row["ssObjectId"] is None else bodies[row["diaSourceId"]]
        yield {
            "diaSourceId": row["diaSourceId"],
            "observation_reason": info.observation_reason or None,
            "target_name": info.target_name or None,
            "diaSource": row,
            "prvDiaSources": earlier.get(object_id) or None,
            "prvDiaForcedSources": None if object_id is None else forced.get(object_id, []),
            "diaObject": None if object_id is None else objects[object_id],
            "ssSource": ss_source,
            "mpc_orbits": orbit,
            "cutoutDifference": triplet.difference,
            "cutoutScience": triplet.science,
            "cutoutTemplate": triplet.template,
        }


def wire_rows(catalog, names, record):
    column_of = {wire_name: name for name, wire_name in names.items()}
    fields = record_fields(record)
    values = [
        _wire_values(catalog, column_of[field], nullable=nullable) if field in column_of else repeat(None)
        for field, nullable in fields.items()
    ]
    return [dict(zip(fields, row, strict=True)) for _, *row in zip(range(catalog.n_rows), *values, strict=False)]


def _wire_values(catalog, name, *, nullable):
    column = catalog[name]
    if column.dtype.kind == "f":
        missing = ~np.isfinite(column)
        if missing.any() and not nullable:
            raise ValueError(name)
    elif column.dtype.kind == "i" and nullable:
        missing = column == 0
    else:
        return column.tolist()
    if not missing.any():
        return column.tolist()
    values = column.astype(object)
    values[missing] = None
    return values.tolist()


def _describe_bodies(matches):
    """Return the records (ssSource, mpc_orbits) of each source that is a known body, by its id."""
    ss_sources = wire_rows(matches.ss_sources, SS_SOURCE_WIRE_NAMES, "ssSource")
    orbits = wire_rows(matches.orbits, ORBIT_WIRE_NAMES, "mpc_orbits")
    return {row["diaSourceId"]: (row, orbit) for row, orbit in zip(ss_sources, orbits, strict=True)}


def _group_by_object(catalog, object_ids, id_name, names, record):
    """Return the records of each of the objects, oldest first."""
    catalog = catalog.select(np.isin(catalog["dia_object_id"], object_ids))
    catalog = catalog.select(np.lexsort((catalog[id_name], catalog["midpoint_mjd_tai"])))
    groups = {}
    for row in wire_rows(catalog, names, record):
        groups.setdefault(row["diaObjectId"], []).append(row)
    return groups
