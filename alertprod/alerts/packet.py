"""Alert packets: one dictionary a source, its fields named and ordered as the schema has them.

Our tables mark what is missing with NaN and ids that do not apply with 0; a packet says null for
both. A required number that is missing is a bug and raises.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np

from alertprod.alerts.cutouts import CutoutTriplet
from alertprod.alerts.registry import ALERT_SCHEMA_VERSION, record_fields
from alertprod.alerts.wire_names import (
    DIA_FORCED_SOURCE_WIRE_NAMES,
    DIA_OBJECT_WIRE_NAMES,
    DIA_SOURCE_WIRE_NAMES,
    ORBIT_WIRE_NAMES,
    SS_SOURCE_WIRE_NAMES,
)
from alertprod.association.associate import Association
from alertprod.association.solar_system import SolarSystemMatches
from alertprod.measurement.catalog import Catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketInfo:
    """What a packet and its headers say of the exposure and the program, beside the sources themselves."""

    observation_reason: str | None = None
    target_name: str | None = None
    program_version: str = ""
    config_hash: str = ""
    is_nominal: bool = False
    """Nobody measured the zero point: fluxes are in nJy by name only."""


def make_packets(
    association: Association, cutouts: Sequence[CutoutTriplet], info: PacketInfo
) -> Iterator[dict[str, Any]]:
    """Yield the packet of each source of an association, in its order.

    Parameters
    ----------
    cutouts
        One triplet a source, in the order of ``association.sources``.

    Raises
    ------
    ValueError
        Raised if a required number is not finite, or the lengths differ.

    Notes
    -----
    ``prvDiaSources`` holds the earlier sources of the object, oldest first, never the trigger, and is null where there
    are none: ``diaObject.nDiaSources`` is one more than its length. ``prvDiaForcedSources`` ends with this exposure's
    measurement and may be empty. Sources matched with a Solar System body carry what is known of that in place of object
    and history.
    """
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


def alert_key(packet: Mapping[str, Any]) -> bytes:
    """Return the message's key: the object's id as ASCII decimal, so that one object's alerts stay in order."""
    source = packet["diaSource"]
    identity = source["diaObjectId"] if source["diaObjectId"] is not None else source["ssObjectId"]
    return str(identity).encode("ascii")


def alert_headers(
    packet: Mapping[str, Any], info: PacketInfo, *, producer_timestamp_ms: int | None = None
) -> list[tuple[str, bytes]]:
    """Return the message's headers: what a consumer may want to know before it decodes the body.

    Parameters
    ----------
    producer_timestamp_ms
        Milliseconds since 1970 UTC, where known.

    Notes
    -----
    Text throughout; floats with all their digits. ``zero_point`` is ``nominal`` where nobody measured it.
    """
    source = packet["diaSource"]
    facts = {
        "schema_version": ALERT_SCHEMA_VERSION,
        "diaSourceId": source["diaSourceId"],
        "visit": source["visit"],
        "detector": source["detector"],
        "band": source["band"] or "",
        "midpointMjdTai": repr(source["midpointMjdTai"]),
        "program_version": info.program_version,
        "config_hash": info.config_hash,
        "zero_point": "nominal" if info.is_nominal else "measured",
    }
    if producer_timestamp_ms is not None:
        facts["producer_timestamp"] = producer_timestamp_ms
    return [(name, str(value).encode()) for name, value in facts.items()]


def wire_rows(catalog: Catalog, names: Mapping[str, str], record: str) -> list[dict[str, Any]]:
    """Return a table's rows as records of the packet.

    Parameters
    ----------
    names
        Our column to the record's field; columns that are not in it are left out.
    record
        Name of the record in the schema; its fields that no column fills are null.

    Raises
    ------
    ValueError
        Raised if a required number is not finite.
    """
    column_of = {wire_name: name for name, wire_name in names.items()}
    fields = record_fields(record)
    values = [
        _wire_values(catalog, column_of[field], nullable=nullable) if field in column_of else repeat(None)
        for field, nullable in fields.items()
    ]
    return [dict(zip(fields, row, strict=True)) for _, *row in zip(range(catalog.n_rows), *values, strict=False)]


def _wire_values(catalog: Catalog, name: str, *, nullable: bool) -> list[Any]:
    column = catalog[name]
    if column.dtype.kind == "f":
        missing = ~np.isfinite(column)
        if missing.any() and not nullable:
            msg = f"{name} is required in an alert, but is not finite in {int(missing.sum())} rows"
            raise ValueError(msg)
    elif column.dtype.kind == "i" and nullable:
        missing = column == 0
    else:
        return column.tolist()
    if not missing.any():
        return column.tolist()
    values = column.astype(object)
    values[missing] = None
    return values.tolist()


def _describe_bodies(matches: SolarSystemMatches) -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
    """Return the records (ssSource, mpc_orbits) of each source that is a known body, by its id."""
    ss_sources = wire_rows(matches.ss_sources, SS_SOURCE_WIRE_NAMES, "ssSource")
    orbits = wire_rows(matches.orbits, ORBIT_WIRE_NAMES, "mpc_orbits")
    return {row["diaSourceId"]: (row, orbit) for row, orbit in zip(ss_sources, orbits, strict=True)}


def _group_by_object(
    catalog: Catalog, object_ids: Sequence[int], id_name: str, names: Mapping[str, str], record: str
) -> dict[int, list[dict[str, Any]]]:
    """Return the records of each of the objects, oldest first."""
    catalog = catalog.select(np.isin(catalog["dia_object_id"], object_ids))
    catalog = catalog.select(np.lexsort((catalog[id_name], catalog["midpoint_mjd_tai"])))
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in wire_rows(catalog, names, record):
        groups.setdefault(row["diaObjectId"], []).append(row)
    return groups
