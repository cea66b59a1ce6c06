"""What is wrong with an alert, found one by one: against the schema, against itself, against the sky.

A finding is an *error* where a promise is broken that readers rely on, a *warning* where something is odd but may be
true. Nothing here stops at the first.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

from alertprod.alerts.alert import CUTOUT_FIELDS
from alertprod.alerts.cutouts import load_cutout
from alertprod.alerts.packet import LEFT_OUT_HEADER
from alertprod.alerts.registry import ALERT_SCHEMA_VERSION, record_types

if TYPE_CHECKING:
    from astropy.nddata import CCDData

Level = Literal["error", "warning"]

HISTORY_DAYS: Final = 366.0
"""Longer than any twelve months; what is older should not be in a packet."""

_MJD_RANGE: Final = (40_000.0, 100_000.0)
"""1968 to 2132: a Julian date, or seconds, or days of another epoch, is not in it."""

_CUTOUT_SIDES: Final = (30, 102)

_PSF_SUM_RANGE: Final = (0.5, 1.5)
"""A cropped PSF, or one with wide wings, does not sum to 1; one that was never normalised is far off."""

_MIDDLE_TOLERANCE: Final = 0.55
"""Half a pixel, which whole pixels allow, and the rounding of float32."""

_FLOAT32_ROUNDING: Final = 1e-6
"""Ten times what single precision rounds off."""

_BODY_RECORDS: Final = ("ssSource", "mpc_orbits")

_MAY_BE_LEFT_OUT: Final = frozenset({"history", "cutouts"})


class Finding(NamedTuple):
    """Something that is wrong, or odd."""

    level: Level
    field: str
    """Where: a path in the packet, or a header's name."""
    problem: str

    def __str__(self) -> str:
        return f"{self.level}: {self.field}: {self.problem}"


def validate_packet(packet: Mapping[str, Any], *, left_out: Collection[str] | None = ()) -> list[Finding]:
    """Return everything found about a decoded packet, in the order of its fields.

    Parameters
    ----------
    left_out
        What it does without since it was too large, as its message says (`left_out_of`); None: there is no message
        to say so.
    """
    return [
        *_check_numbers(packet),
        *_check_identity(packet),
        *_check_source(packet["diaSource"], "diaSource"),
        *_check_history(packet),
        *_check_object(packet, left_out),
        *_check_body(packet),
        *_check_cutouts(packet),
    ]


def left_out_of(headers: Sequence[tuple[str, bytes]] | None) -> frozenset[str] | None:
    """Return what a message's headers say its packet does without; None where there are no headers."""
    if headers is None:
        return None
    said = dict(headers).get(LEFT_OUT_HEADER, b"").decode("utf-8", "replace")
    return frozenset(said.split(",")) if said else frozenset()


def validate_envelope(
    packet: Mapping[str, Any], *, key: bytes | None, headers: Sequence[tuple[str, bytes]]
) -> list[Finding]:
    """Return everything found about a message's key and headers, which must say what the packet says."""
    source = packet["diaSource"]
    findings = []
    identity = source["diaObjectId"] or source["ssObjectId"]
    expected_key = b"" if identity is None else str(identity).encode()
    if key != expected_key:
        findings.append(Finding("error", "key", f"{key!r}, the object is {identity}"))
    given = dict(headers)
    expected = {
        "schema_version": ALERT_SCHEMA_VERSION,
        "diaSourceId": str(source["diaSourceId"]),
        "visit": str(source["visit"]),
        "detector": str(source["detector"]),
        "band": source["band"] or "",
        "midpointMjdTai": repr(source["midpointMjdTai"]),
    }
    for name, value in expected.items():
        if name not in given:
            findings.append(Finding("error", f"header {name}", "is missing"))
        elif given[name] != value.encode():
            findings.append(Finding("error", f"header {name}", f"{given[name]!r}, the packet says {value}"))
    findings += [
        Finding("error", f"header {name}", "is missing")
        for name in ("program_version", "config_hash")
        if not given.get(name)
    ]
    said = left_out_of(headers) or frozenset()
    if unknown := sorted(said - _MAY_BE_LEFT_OUT):
        problem = f"{', '.join(map(repr, unknown))}: only {' and '.join(sorted(_MAY_BE_LEFT_OUT))} are ever left out"
        findings.append(Finding("error", f"header {LEFT_OUT_HEADER}", problem))
    if "cutouts" in said and (there := [field for field in CUTOUT_FIELDS.values() if packet[field] is not None]):
        findings.append(Finding("error", f"header {LEFT_OUT_HEADER}", f"says cutouts, and {there[0]} is there"))
    return findings


def _check_numbers(packet: Mapping[str, Any]) -> Iterator[Finding]:
    """Check that what is not known is null, and that errors are errors."""
    for path, record, row in _walk(packet):
        for field in record_types(record):
            value = row.get(field)
            if isinstance(value, float):
                if not math.isfinite(value):
                    yield Finding("error", f"{path}.{field}", f"{value}: what is not known must be null")
                elif value < 0 and _is_spread(field):
                    yield Finding("error", f"{path}.{field}", f"{value:.6g} is negative")


def _is_spread(field: str) -> bool:
    return field.endswith(("Err", "ErrMean", "Sigma", "Chi2")) or field in ("trailLength", "dipoleLength")


def _walk(packet: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield every record of a packet: its path, its name, itself."""
    yield "diaSource", "diaSource", packet["diaSource"]
    for field, record in (("prvDiaSources", "diaSource"), ("prvDiaForcedSources", "diaForcedSource")):
        for number, row in enumerate(packet[field] or ()):
            yield f"{field}[{number}]", record, row
    for field in ("diaObject", *_BODY_RECORDS):
        if packet[field] is not None:
            yield field, field, packet[field]


def _check_identity(packet: Mapping[str, Any]) -> Iterator[Finding]:
    source = packet["diaSource"]
    if packet["diaSourceId"] != source["diaSourceId"]:
        yield Finding("error", "diaSourceId", f"{packet['diaSourceId']}, the source's is {source['diaSourceId']}")
    if packet["diaSourceId"] <= 0:
        yield Finding("error", "diaSourceId", f"{packet['diaSourceId']} is no id")
    has_object, is_body = source["diaObjectId"] is not None, source["ssObjectId"] is not None
    for field, value in (("diaObjectId", source["diaObjectId"]), ("ssObjectId", source["ssObjectId"])):
        if value is not None and value <= 0:
            yield Finding("error", f"diaSource.{field}", f"{value}: what does not apply must be null")
    if has_object and is_body:
        yield Finding("error", "diaSource.ssObjectId", "it is a Solar System body, and of a DiaObject too")
    if not has_object and not is_body:
        yield Finding("error", "diaSource.diaObjectId", "it is of no object")
    for field in ("observation_reason", "target_name"):
        if packet[field] == "":
            yield Finding("error", field, "is empty: what is not known must be null")


def _check_source(source: Mapping[str, Any], path: str) -> Iterator[Finding]:
    yield from _check_place(source, path)
    yield from _check_time(source, path, "midpointMjdTai")
    yield from _check_time(source, path, "timeProcessedMjdTai")
    if source["timeProcessedMjdTai"] < source["midpointMjdTai"]:
        yield Finding("warning", f"{path}.timeProcessedMjdTai", "is before the exposure")
    if source["timeWithdrawnMjdTai"] is not None:
        yield Finding("error", f"{path}.timeWithdrawnMjdTai", "a live alert is not withdrawn")
    for field in ("psfNdata", "trailNdata", "dipoleNdata", "bboxSize"):
        if source[field] < 0:
            yield Finding("error", f"{path}.{field}", f"{source[field]} is negative")
    for field in ("extendedness", "reliability"):
        if source[field] is not None and not 0 <= source[field] <= 1:
            yield Finding("error", f"{path}.{field}", f"{source[field]:.6g} is not within 0 and 1")
    if source["snr"] is not None and source["snr"] < 0:
        yield Finding(
            "warning", f"{path}.snr", f"{source['snr']:.3g}: significances are positive, isNegative has the sign"
        )
    if (source["reliability"] is None) != (source["reliabilityVersion"] is None):
        yield Finding("warning", f"{path}.reliabilityVersion", "a score and its version come together")
    if source["band"] is None:
        yield Finding("warning", f"{path}.band", "is null")
    covariance, a, b = source["ra_dec_Cov"], source["raErr"], source["decErr"]
    if None not in (covariance, a, b) and abs(covariance) > a * b * (1 + _FLOAT32_ROUNDING):
        yield Finding("error", f"{path}.ra_dec_Cov", "is larger than the errors allow")


def _check_place(row: Mapping[str, Any], path: str) -> Iterator[Finding]:
    if not 0 <= row["ra"] < 360:
        yield Finding("error", f"{path}.ra", f"{row['ra']} is not within 0 and 360 degrees")
    if not -90 <= row["dec"] <= 90:
        yield Finding("error", f"{path}.dec", f"{row['dec']} is not within -90 and 90 degrees")


def _check_time(row: Mapping[str, Any], path: str, field: str) -> Iterator[Finding]:
    value = row[field]
    if value is not None and not _MJD_RANGE[0] < value < _MJD_RANGE[1]:
        yield Finding("error", f"{path}.{field}", f"{value} is no modified Julian date")


def _check_history(packet: Mapping[str, Any]) -> Iterator[Finding]:
    source = packet["diaSource"]
    for field, id_name, check in (
        ("prvDiaSources", "diaSourceId", _check_source),
        ("prvDiaForcedSources", "diaForcedSourceId", _check_forced_source),
    ):
        rows = packet[field]
        if rows is None:
            continue
        if source["ssObjectId"] is not None:
            yield Finding("error", field, "a Solar System body has none: it must be null")
        if field == "prvDiaSources" and not rows:
            yield Finding("error", field, "is empty: where there are none it must be null")
        ids = [row[id_name] for row in rows]
        if len(set(ids)) != len(ids):
            yield Finding("error", field, f"a {id_name} occurs twice")
        if field == "prvDiaSources" and source["diaSourceId"] in ids:
            yield Finding("error", field, "the alert's own source is in its history")
        times = [row["midpointMjdTai"] for row in rows]
        if times != sorted(times):
            yield Finding("error", field, "is not ordered by time")
        for number, row in enumerate(rows):
            path = f"{field}[{number}]"
            if row["diaObjectId"] != source["diaObjectId"]:
                yield Finding("error", f"{path}.diaObjectId", f"{row['diaObjectId']}, not {source['diaObjectId']}")
            age = source["midpointMjdTai"] - row["midpointMjdTai"]
            if age < 0:
                yield Finding("error", f"{path}.midpointMjdTai", "is after the alert's own")
            elif age > HISTORY_DAYS:
                yield Finding("warning", f"{path}.midpointMjdTai", f"is {age:.0f} days before the alert's own")
            yield from check(row, path)


def _check_forced_source(row: Mapping[str, Any], path: str) -> Iterator[Finding]:
    yield from _check_place(row, path)
    yield from _check_time(row, path, "midpointMjdTai")
    yield from _check_time(row, path, "timeProcessedMjdTai")
    if row["timeWithdrawnMjdTai"] is not None:
        yield Finding("error", f"{path}.timeWithdrawnMjdTai", "a live alert is not withdrawn")


def _check_object(packet: Mapping[str, Any], left_out: Collection[str] | None) -> Iterator[Finding]:
    source, parent = packet["diaSource"], packet["diaObject"]
    if (parent is None) != (source["diaObjectId"] is None):
        yield Finding("error", "diaObject", "is null" if parent is None else "the source is of no object")
        return
    if parent is None:
        return
    if parent["diaObjectId"] != source["diaObjectId"]:
        yield Finding(
            "error", "diaObject.diaObjectId", f"{parent['diaObjectId']}, the source's is {source['diaObjectId']}"
        )
    yield from _check_place(parent, "diaObject")
    for field in ("validityStartMjdTai", "firstDiaSourceMjdTai", "lastDiaSourceMjdTai"):
        yield from _check_time(parent, "diaObject", field)
    yield from _check_count(parent["nDiaSources"], 1 + len(packet["prvDiaSources"] or ()), left_out)
    last = parent["lastDiaSourceMjdTai"]
    if last is not None and last < source["midpointMjdTai"]:
        yield Finding("error", "diaObject.lastDiaSourceMjdTai", "is before the alert's own source")
    for band in "ugrizy":
        low, mean, high = (parent[f"{band}_psfFlux{name}"] for name in ("Min", "Mean", "Max"))
        if None in (low, mean, high):
            continue
        rounding = _FLOAT32_ROUNDING * max(abs(low), abs(high))
        if not low - rounding <= mean <= high + rounding:
            yield Finding(
                "error", f"diaObject.{band}_psfFluxMean", f"{mean:.6g} is not within {low:.6g} and {high:.6g}"
            )


def _check_count(n_sources: int, n_in_packet: int, left_out: Collection[str] | None) -> Iterator[Finding]:
    """Check that the object counts the packet's sources, and more only where history was left out."""
    problem = f"{n_sources}, the packet has {n_in_packet}"
    if n_sources < n_in_packet or (n_sources > n_in_packet and left_out is not None and "history" not in left_out):
        yield Finding("error", "diaObject.nDiaSources", problem)
    elif n_sources > n_in_packet and left_out is None:
        yield Finding(
            "warning", "diaObject.nDiaSources", f"{problem}: right where the oldest were left out for its size"
        )


def _check_body(packet: Mapping[str, Any]) -> Iterator[Finding]:
    source = packet["diaSource"]
    for field in _BODY_RECORDS:
        if (packet[field] is None) != (source["ssObjectId"] is None):
            yield Finding("error", field, "is null" if packet[field] is None else "the source is no Solar System body")
    body = packet["ssSource"]
    if body is not None:
        for field in ("diaSourceId", "ssObjectId"):
            if body[field] != source[field]:
                yield Finding("error", f"ssSource.{field}", f"{body[field]}, the source's is {source[field]}")


def _check_cutouts(packet: Mapping[str, Any]) -> Iterator[Finding]:
    shapes = {}
    for field in CUTOUT_FIELDS.values():
        data = packet[field]
        if data is None:
            yield Finding("warning", field, "is null")
            continue
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always")
            try:
                cutout = load_cutout(data)
                findings = list(_check_cutout(cutout, field, packet["diaSource"]))
            except Exception as error:  # noqa: BLE001 - these may be any bytes, and readers of FITS fail in any way
                yield Finding("error", field, f"astropy does not read it: {type(error).__name__}: {error}")
                continue
        shapes[field] = cutout.shape
        yield from findings
        yield from (Finding("warning", field, f"astropy remarks: {remark.message}") for remark in remarks)
    if len(set(shapes.values())) > 1:
        text = ", ".join(f"{field} {shape}" for field, shape in shapes.items())
        yield Finding("error", "cutouts", f"have different shapes: {text}")


def _check_cutout(cutout: CCDData, field: str, source: Mapping[str, Any]) -> Iterator[Finding]:
    image = np.asarray(cutout.data)
    if image.ndim != 2:
        yield Finding("error", field, f"is no image: its shape is {image.shape}")
        return
    ny, nx = image.shape
    if nx != ny or not _CUTOUT_SIDES[0] <= nx <= _CUTOUT_SIDES[1]:
        yield Finding(
            "warning", field, f"{nx} x {ny} pixels; squares of {_CUTOUT_SIDES[0]} to {_CUTOUT_SIDES[1]} are usual"
        )
    if str(cutout.unit) != "nJy":
        yield Finding("error", field, f"is in {cutout.unit}, not in nJy")
    if cutout.mask is None:
        yield Finding("error", field, "has no mask")
    elif (np.isnan(image) & ~np.asarray(cutout.mask, dtype=bool)).any():
        yield Finding("error", field, "has pixels without a value that are not masked")
    if cutout.uncertainty is None or cutout.uncertainty.uncertainty_type != "var":
        yield Finding("error", field, "has no variance")
    elif cutout.mask is not None:
        variance = np.asarray(cutout.uncertainty.array)[~np.asarray(cutout.mask, dtype=bool)]
        if not (variance > 0).all():
            yield Finding("error", field, "has usable pixels whose variance is not positive")
    yield from _check_psf(cutout.psf, field)
    if cutout.wcs is None:
        yield Finding("warning", field, "has no world coordinates")
        return
    x, y = (float(value) for value in cutout.wcs.world_to_pixel_values(source["ra"], source["dec"]))
    off = max(abs(x - (nx - 1) / 2), abs(y - (ny - 1) / 2))
    if not off <= _MIDDLE_TOLERANCE:
        yield Finding("error", field, f"its world coordinates put the source {off:.2f} pixels from the middle")


def _check_psf(psf: Any, field: str) -> Iterator[Finding]:
    if psf is None:
        yield Finding("warning", field, "has no PSF")
        return
    side = psf.shape[0]
    if psf.ndim != 2 or psf.shape != (side, side) or side % 2 == 0:
        yield Finding("error", field, f"its PSF has the shape {psf.shape}, not that of an odd square")
    total = float(np.sum(psf))
    if not _PSF_SUM_RANGE[0] <= total <= _PSF_SUM_RANGE[1]:
        yield Finding("error", field, f"its PSF has the sum {total:.3g}, not 1")
