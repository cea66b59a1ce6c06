"""Alert packets: an exposure's alerts as messages, each with its key, its headers and its bytes.

Our tables mark what is missing with NaN and ids that do not apply with 0; a packet says null for both. A required
number that is missing is a bug and raises. The bytes are put together from encoded rows: no dictionary of a packet is
made on the way, `make_packets` decodes them for those who want one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from alertprod._typing import IntArray
from alertprod.alerts.avro import decode_alert, frame_alert
from alertprod.alerts.cutouts import CutoutTriplet
from alertprod.alerts.encoding import (
    encode_array,
    encode_bytes,
    encode_long,
    encode_optional,
    encode_rows,
)
from alertprod.alerts.registry import ALERT_SCHEMA_VERSION
from alertprod.alerts.wire_names import (
    DIA_FORCED_SOURCE_WIRE_NAMES,
    DIA_OBJECT_WIRE_NAMES,
    DIA_SOURCE_WIRE_NAMES,
    ORBIT_WIRE_NAMES,
    SS_SOURCE_WIRE_NAMES,
)
from alertprod.association.associate import Association
from alertprod.measurement.catalog import Catalog

LEFT_OUT_HEADER = "left_out"
"""Of an alert that would have been too large: what of it is missing."""

_FRAMING_BYTES = 128
"""More than the wire header, the lengths and the branches of a packet take together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketInfo:
    """What a packet and its headers say of the exposure and the program, beside the sources themselves."""

    observation_reason: str | None = None
    target_name: str | None = None
    program_version: str = ""
    config_hash: str = ""
    is_nominal: bool = False
    """Nobody measured the zero point: fluxes are in nJy by name only."""


class AlertMessage(NamedTuple):
    """One alert as it goes on its topic."""

    key: bytes
    """The object's id as ASCII decimal, so that one object's alerts stay in order; of a Solar System body its own."""
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    """What a consumer may want to know before it decodes the value: see `make_headers`."""


def make_messages(
    association: Association,
    cutouts: Sequence[CutoutTriplet],
    info: PacketInfo,
    *,
    producer_timestamp_ms: int | None = None,
    max_bytes: int | None = None,
) -> Iterator[AlertMessage]:
    """Yield the alert of each source of an association, in its order.

    Parameters
    ----------
    cutouts
        One triplet a source, in the order of ``association.sources``.
    producer_timestamp_ms
        For the headers: milliseconds since 1970 UTC, where known.
    max_bytes
        What a value may have at most, some kilobytes at least: a broker refuses larger ones. An alert that has more
        leaves out the oldest of its history, then, if its cutouts alone are too large, these. Its header ``left_out``
        says which: ``history``, ``cutouts`` or both, with a comma between.

    Raises
    ------
    ValueError
        Raised if a required number is not finite, or the lengths differ.

    Notes
    -----
    ``prvDiaSources`` holds the earlier sources of the object, oldest first, never the trigger, and is null where there
    are none: ``diaObject.nDiaSources`` is one more than its length. ``prvDiaForcedSources`` ends with this exposure's
    measurement and may be empty. Where history is left out the object is still that of all of it. Sources matched with a Solar System body carry what is known of that in place of object
    and history.
    """
    sources, history = association.sources, association.history
    known = association.packet_objects
    ids = known["dia_object_id"]
    objects = _by_id(ids, encode_rows(known, DIA_OBJECT_WIRE_NAMES, "diaObject").split())
    earlier = _group_by_object(history.sources, ids, "dia_source_id", DIA_SOURCE_WIRE_NAMES, "diaSource")
    forced = _group_by_object(
        Catalog.concatenate([history.forced, association.forced]),
        ids,
        "dia_forced_source_id",
        DIA_FORCED_SOURCE_WIRE_NAMES,
        "diaForcedSource",
    )
    matches = association.solar_system
    body_ids = matches.ss_sources["dia_source_id"]
    bodies = _by_id(body_ids, encode_rows(matches.ss_sources, SS_SOURCE_WIRE_NAMES, "ssSource").split())
    orbits = _by_id(body_ids, encode_rows(matches.orbits, ORBIT_WIRE_NAMES, "mpc_orbits").split())
    texts = [
        encode_optional(encode_bytes(text.encode()) if text else None)
        for text in (info.observation_reason, info.target_name)
    ]
    facts = zip(
        *(sources[name].tolist() for name in ("dia_source_id", "dia_object_id", "ss_object_id")),
        encode_rows(sources, DIA_SOURCE_WIRE_NAMES, "diaSource").split(),
        make_headers(sources, info, producer_timestamp_ms=producer_timestamp_ms),
        cutouts,
        strict=True,
    )
    for source_id, object_id, body_id, source, its_headers, triplet in facts:
        first = (encode_long(source_id), *texts, source)
        last = (
            encode_optional(objects[object_id] if object_id else None),
            encode_optional(bodies[source_id] if body_id else None),
            encode_optional(orbits[source_id] if body_id else None),
        )
        content = _Content(earlier.get(object_id, []), forced.get(object_id, []), triplet)
        if max_bytes is not None:
            content = _fit(content, max_bytes - sum(map(len, (*first, *last))) - _FRAMING_BYTES)
        value = (
            *first,
            encode_optional(encode_array(content.earlier) if object_id and content.earlier else None),
            encode_optional(encode_array(content.forced) if object_id else None),
            *last,
            *(encode_optional(None if cutout is None else encode_bytes(cutout)) for cutout in content.cutouts),
        )
        note = ((LEFT_OUT_HEADER, ",".join(content.left_out).encode()),) if content.left_out else ()
        yield AlertMessage(str(object_id or body_id).encode("ascii"), frame_alert(value), (*its_headers, *note))


class _Content(NamedTuple):
    """What of a packet may be large."""

    earlier: list[bytes]
    """Encoded DiaSources, oldest first."""
    forced: list[bytes]
    cutouts: CutoutTriplet
    left_out: tuple[str, ...] = ()


def _fit(content: _Content, max_bytes: int) -> _Content:
    """Return what fits: both histories from one time on, as their sizes allow; cutouts unless they alone are too large."""
    earlier, forced, cutouts, left_out = content
    n_cutouts = sum(len(cutout or b"") for cutout in cutouts)
    n_history = sum(map(len, earlier)) + sum(map(len, forced))
    if n_cutouts + n_history <= max_bytes:
        return content
    if n_cutouts > max_bytes:
        cutouts, n_cutouts, left_out = CutoutTriplet(None, None, None), 0, ("cutouts",)
    if n_cutouts + n_history > max_bytes:
        share = max(0, max_bytes - n_cutouts) / n_history
        earlier, forced, left_out = _newest(earlier, share), _newest(forced, share), ("history", *left_out)
    return _Content(earlier, forced, cutouts, left_out)


def _newest(rows: list[bytes], share: float) -> list[bytes]:
    """Return as many of the last rows as have this share of all bytes."""
    sizes = np.cumsum([len(row) for row in reversed(rows)])
    n_kept = int(np.searchsorted(sizes, share * sizes[-1], side="right")) if rows else 0
    return rows[len(rows) - n_kept :]


def make_packets(
    association: Association, cutouts: Sequence[CutoutTriplet], info: PacketInfo
) -> Iterator[dict[str, Any]]:
    """Yield what a reader of `make_messages` sees: one dictionary an alert, named and ordered as the schema has it."""
    for message in make_messages(association, cutouts, info):
        yield decode_alert(message.value)


def make_headers(
    sources: Catalog, info: PacketInfo, *, producer_timestamp_ms: int | None = None
) -> list[tuple[tuple[str, bytes], ...]]:
    """Return the headers of each source's message.

    Notes
    -----
    Text throughout; floats with all their digits. ``zero_point`` is ``nominal`` where nobody measured it.
    """
    first = (("schema_version", ALERT_SCHEMA_VERSION.encode()),)
    last = [
        ("program_version", info.program_version.encode()),
        ("config_hash", info.config_hash.encode()),
        ("zero_point", b"nominal" if info.is_nominal else b"measured"),
    ]
    if producer_timestamp_ms is not None:
        last.append(("producer_timestamp", str(producer_timestamp_ms).encode()))
    names = ("dia_source_id", "visit", "detector", "band", "midpoint_mjd_tai")
    return [
        (
            *first,
            ("diaSourceId", str(source_id).encode()),
            ("visit", str(visit).encode()),
            ("detector", str(detector).encode()),
            ("band", (band or "").encode()),
            ("midpointMjdTai", repr(midpoint).encode()),
            *last,
        )
        for source_id, visit, detector, band, midpoint in zip(*(sources[name].tolist() for name in names), strict=True)
    ]


def _by_id(ids: IntArray, rows: list[bytes]) -> dict[int, bytes]:
    return dict(zip(ids.tolist(), rows, strict=True))


def _group_by_object(
    catalog: Catalog, object_ids: IntArray, id_name: str, names: Mapping[str, str], record: str
) -> dict[int, list[bytes]]:
    """Return the records of each of the objects, oldest first; objects without any are left out."""
    catalog = catalog.select(np.isin(catalog["dia_object_id"], object_ids))
    owners = catalog["dia_object_id"]
    catalog = catalog.select(np.lexsort((catalog[id_name], catalog["midpoint_mjd_tai"], owners)))
    rows = encode_rows(catalog, names, record).split()
    groups: dict[int, list[bytes]] = {}
    for owner, row in zip(catalog["dia_object_id"].tolist(), rows, strict=True):
        groups.setdefault(owner, []).append(row)
    return groups
