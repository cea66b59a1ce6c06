"""The events in and the summaries out: their fields, their bytes, their keys.

An event is Avro where its first byte is 0x00, JSON otherwise. Whatever the bytes, decoding returns a valid
event or raises `InvalidEvent` (`RegistryUnavailable` where the registry that must be asked is away).
"""

import hashlib
import io
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

import fastavro
import pydantic
import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from alertprod.errors import InvalidEvent
from alertprod.stream.schemas import MAX_EVENT_BYTES, SCHEMA_IDS, FixedSchemas, WriterSchemas, load_event_schema

AVRO_MARK: Final = 0
"""First byte of Confluent's framing; no JSON text starts with it."""

FRAME_BYTES: Final = 5
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_JSON_SPACE: Final = b" \t\r\n"
_FIXED_SCHEMAS: Final = FixedSchemas()

Instrument = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")]
"""ASCII without a slash: it is the first part of the key, and a label of metrics."""
Band = Annotated[str, StringConstraints(pattern=r"^[!-.0-~]{1,32}$")]
Uri = Annotated[str, StringConstraints(pattern=r"^\P{Cc}{1,4096}$")]
Text = Annotated[str, StringConstraints(pattern=r"^\P{Cc}{0,1024}$")]
Visit = Annotated[int, Field(ge=0, lt=1 << 63)]
Detector = Annotated[int, Field(ge=0, lt=1 << 31)]
Count = Annotated[int, Field(ge=0, lt=1 << 31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Mjd = Annotated[float, Field(gt=0.0, lt=100_000.0)]
"""MJD in days; the upper bound (the year 2132) catches Julian dates and Unix times."""
RightAscension = Annotated[float, Field(ge=0.0, le=360.0)]
Declination = Annotated[float, Field(ge=-90.0, le=90.0)]

Outcome = Literal["published", "skipped", "expired", "dead_lettered"]
"""The ledger's final states: what a summary can say of an exposure."""

WireFormat = Literal["json", "avro"]


class Event(BaseModel):
    """What all messages share: strict types, unknown fields ignored, nothing changes after validation."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)
    schema_name: ClassVar[str]

    @property
    def key(self) -> bytes:
        """The message's key."""
        raise NotImplementedError


class VisitReady(Event):
    """A calibrated exposure, one detector of one visit, is ready to be differenced."""

    schema_name: ClassVar[str] = "visit_ready"

    instrument: Instrument
    """Its name in the configuration."""
    visit: Visit
    """One pointing's exposure."""
    detector: Detector
    """Number of the detector."""
    band: Band
    """For example ``r``."""
    physical_filter: Text | None = None
    """Name of the filter in the wheel."""
    shutter_open_mjd_tai: Mjd
    """When the shutter opened."""
    shutter_close_mjd_tai: Mjd
    """When the shutter closed; latencies count from here."""
    exposure_time_s: Annotated[float, Field(gt=0.0, le=86_400.0)]
    """Exposure time, seconds."""
    ra_deg: RightAscension
    """Where the telescope pointed, as the image's header has it; ICRS."""
    dec_deg: Declination
    """Where the telescope pointed, as the image's header has it; ICRS."""
    rotation_deg: Finite | None = None
    """From the detector's y axis to north, east positive."""
    calexp_uri: Uri
    """Where the exposure is."""
    template_uris: Annotated[tuple[Annotated[Uri, Field(strict=True)], ...], Field(strict=False)] | None = None
    """Template tiles to use; without any the template index is asked."""
    background_uri: Uri | None = None
    """Where the background model is that was taken off the exposure."""
    ephemeris_uri: Uri | None = None
    """Where the ephemerides of known Solar System objects are."""
    observation_reason: Text | None = None
    """The scheduler's reason; copied into the alerts."""
    target_name: Text | None = None
    """The scheduler's target; copied into the alerts."""
    n_detectors: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    """How many events this visit has in all."""
    sent_at_mjd_tai: Mjd
    """When the event was sent."""
    replay: bool = False
    """No age limit; where the exposure is published already, its stored packets go to the replay topic."""

    @pydantic.field_validator("shutter_close_mjd_tai")
    @classmethod
    def _closes_after_it_opens(cls, value: float, info: pydantic.ValidationInfo) -> float:
        opened = info.data.get("shutter_open_mjd_tai")
        if opened is not None and value < opened:
            msg = f"the shutter closes at {value} before it opens at {opened}"
            raise ValueError(msg)
        return value

    @property
    def key(self) -> bytes:
        """``instrument/visit/detector``, ASCII."""
        return event_key(self.instrument, self.visit, self.detector)


class NextVisit(Event):
    """The telescope is about to take a visit: time to load its templates and history."""

    schema_name: ClassVar[str] = "next_visit"

    instrument: Instrument
    """Its name in the configuration."""
    visit: Visit
    """Number the visit will have."""
    band: Band
    """For example ``r``."""
    ra_deg: RightAscension
    """The boresight, ICRS."""
    dec_deg: Declination
    """The boresight, ICRS."""
    rotation_deg: Finite | None = None
    """From the focal plane's y axis to north, east positive."""
    detectors: Annotated[tuple[Annotated[Detector, Field(strict=True)], ...], Field(strict=False)] | None = None
    """Those that will be sent; None is all."""
    shutter_opens_at_mjd_tai: Mjd
    """When the shutter is to open."""

    @property
    def key(self) -> bytes:
        """``instrument/visit``, ASCII."""
        return f"{self.instrument}/{self.visit}".encode("ascii")


class VisitSummary(Event):
    """What became of one exposure; goes out in the transaction of its alerts."""

    schema_name: ClassVar[str] = "visit_summary"

    instrument: Instrument
    """As the event's."""
    visit: Visit
    """As the event's."""
    detector: Detector
    """As the event's."""
    band: Band
    """As the event's."""
    outcome: Outcome
    """The ledger's final state."""
    reason: Text | None = None
    """Why, where the outcome is not plain success: an error's name in snake_case."""
    n_alerts: Count
    """Alerts published with this summary."""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """`hash_bodies` of the alerts, in the order published."""
    counts: dict[str, Annotated[int, Field(ge=0, lt=1 << 63)]] = {}
    """Counts by kind: ``dia_sources``, ``dia_objects_new`` and others."""
    stage_seconds: dict[str, Finite] = {}
    """Wall time of each stage."""
    latency_s: Finite | None = None
    """From the shutter's closing to the publishing of this summary."""
    figures: dict[str, Finite] = {}
    """Figures of kernel and noise; what is None, NaN or infinite at construction is left out."""
    versions: dict[str, Text] = {}
    """Program version, configuration hash, schema version and others."""
    sent_at_mjd_tai: Mjd
    """When the summary was sent."""

    @pydantic.field_validator("figures", "stage_seconds", mode="before")
    @classmethod
    def _drop_what_is_not_known(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {
            name: number
            for name, number in value.items()
            if number is not None and not (isinstance(number, float) and not math.isfinite(number))
        }

    @property
    def key(self) -> bytes:
        """The key of the event: ``instrument/visit/detector``, ASCII."""
        return event_key(self.instrument, self.visit, self.detector)


EventT = TypeVar("EventT", bound=Event)


def event_key(instrument: str, visit: int, detector: int) -> bytes:
    """Return the key of an exposure's event and summary: ASCII ``instrument/visit/detector``."""
    return f"{instrument}/{visit}/{detector}".encode("ascii")


def hash_bodies(bodies: Iterable[bytes]) -> str:
    """Return the SHA-256, hexadecimal, of the alerts' values one after the other."""
    digest = hashlib.sha256()
    for body in bodies:
        digest.update(body)
    return digest.hexdigest()


def decode_visit_ready(value: bytes | None, *, schemas: WriterSchemas = _FIXED_SCHEMAS) -> VisitReady:
    """Decode a visit_ready event; see `decode_event`."""
    return decode_event(VisitReady, value, schemas=schemas)


def decode_next_visit(value: bytes | None, *, schemas: WriterSchemas = _FIXED_SCHEMAS) -> NextVisit:
    """Decode a next_visit event; see `decode_event`."""
    return decode_event(NextVisit, value, schemas=schemas)


def decode_visit_summary(value: bytes | None, *, schemas: WriterSchemas = _FIXED_SCHEMAS) -> VisitSummary:
    """Decode a visit summary; see `decode_event`."""
    return decode_event(VisitSummary, value, schemas=schemas)


def decode_event(
    event_type: type[EventT],
    value: bytes | None,
    *,
    schemas: WriterSchemas = _FIXED_SCHEMAS,
    max_bytes: int = MAX_EVENT_BYTES,
) -> EventT:
    """Decode and validate one message.

    Parameters
    ----------
    event_type
        `VisitReady`, `NextVisit` or `VisitSummary`.
    value
        The Kafka message's value: Avro in Confluent's framing where the first byte is 0x00, otherwise JSON in
        UTF-8, with white space or a byte order mark before it.
    schemas
        Where the writer's schema of an Avro message is.
    max_bytes
        Longer messages are not looked at.

    Raises
    ------
    InvalidEvent
        Raised if the bytes are not such an event, with the field and the problem.
    RegistryUnavailable
        Raised if the writer's schema must be asked for and the registry is away.

    Notes
    -----
    Avro is read by the writer's schema and then validated as JSON is, not resolved against ours: a writer may
    leave out what is optional, add fields, and name its record as it likes.
    """
    if not value:
        raise InvalidEvent("value", "the message is empty")
    if len(value) > max_bytes:
        raise InvalidEvent("value", f"{len(value)} bytes, the limit is {max_bytes}")
    record = _read_avro(value, schemas) if value[0] == AVRO_MARK else _read_json(value)
    if not isinstance(record, dict):
        raise InvalidEvent("value", f"an object with fields is needed, not {type(record).__name__}")
    try:
        return event_type.model_validate(record)
    except pydantic.ValidationError as error:
        raise _translate(error) from error
    except (OverflowError, RecursionError, ValueError) as error:  # numbers and nesting beyond what Python's types hold
        raise InvalidEvent("value", repr(error)) from error


def encode_event(event: Event, *, format: WireFormat = "json") -> bytes:  # noqa: A002 - the word everybody uses
    """Encode a message: JSON without the fields that are None, or framed Avro under our own fixed id."""
    if format == "json":
        return event.model_dump_json(exclude_none=True).encode()
    schema_id = next(number for number, name in SCHEMA_IDS.items() if name == event.schema_name)
    buffer = io.BytesIO()
    buffer.write(bytes([AVRO_MARK]) + schema_id.to_bytes(4, "big"))
    fastavro.schemaless_writer(buffer, load_event_schema(event.schema_name), event.model_dump(mode="json"))
    return buffer.getvalue()


def encode_visit_ready(event: VisitReady, *, format: WireFormat = "json") -> bytes:  # noqa: A002 - as `encode_event`
    """Encode a visit_ready event; see `encode_event`."""
    return encode_event(event, format=format)


def encode_next_visit(event: NextVisit, *, format: WireFormat = "json") -> bytes:  # noqa: A002 - as `encode_event`
    """Encode a next_visit event; see `encode_event`."""
    return encode_event(event, format=format)


def encode_visit_summary(summary: VisitSummary, *, format: WireFormat = "json") -> bytes:  # noqa: A002 - as `encode_event`
    """Encode a visit summary; see `encode_event`."""
    return encode_event(summary, format=format)


def _read_avro(value: bytes, schemas: WriterSchemas) -> Any:
    if len(value) < FRAME_BYTES:
        raise InvalidEvent("value", f"{len(value)} bytes are too few for the Avro framing")
    schema_id = int.from_bytes(value[1:FRAME_BYTES], "big", signed=True)
    if schema_id < 0:
        raise InvalidEvent("schema id", f"{schema_id} is no schema id")
    schema = schemas.get(schema_id)
    body = io.BytesIO(value)
    body.seek(FRAME_BYTES)
    try:
        record = fastavro.schemaless_reader(body, schema, None)
    except Exception as error:  # fastavro raises whatever malformed bytes make its code trip over
        raise InvalidEvent("value", f"not Avro of schema {schema_id}: {error!r}") from error
    left_over = len(value) - body.tell()
    if left_over:
        raise InvalidEvent("value", f"{left_over} bytes are left over after Avro of schema {schema_id}")
    return record


def _read_json(value: bytes) -> Any:
    text = value.lstrip(_JSON_SPACE).removeprefix(_BYTE_ORDER_MARK)
    try:
        return pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidEvent("value", f"neither Avro nor JSON: {error}") from error


def _translate(error: pydantic.ValidationError) -> InvalidEvent:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    first = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return InvalidEvent(".".join(str(part) for part in first["loc"]) or "value", first["msg"] + more)
