"""Alerts to files for other programs: Avro containers, Parquet, ECSV.

Containers and Parquet hold whole alerts, pictures included; ECSV is a table of their sources that people can read.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

from alertprod.alerts.avro import encode_alert, is_newest, whole_file, write_messages
from alertprod.alerts.registry import load_alert_schema
from alertprod.alerts.tables import make_alert_table
from alertprod.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["avro", "parquet", "ecsv"]

FORMATS: Final[tuple[Format, ...]] = get_args(Format)

_ROWS_PER_GROUP: Final = 256
"""Of a Parquet file: 25 MB of alerts, which a reader takes at once."""


class ExportItem(NamedTuple):
    """One alert to export."""

    packet: Mapping[str, Any]
    message: bytes | None = None
    """The bytes it came as, which a container takes as they are; None where there are none."""

    def encode(self) -> bytes:
        """Return the alert as a message of the newest schema."""
        if self.message is not None and is_newest(self.message):
            return self.message
        return encode_alert(self.packet)


def guess_format(path: Path) -> Format:
    """Return the format that a file's name says.

    Raises
    ------
    ConfigError
        Raised if it says none.
    """
    suffix = path.suffix.lower().lstrip(".")
    for name in FORMATS:
        if suffix == name:
            return name
    raise ConfigError("command line", "format", f"{path.name} does not end in one of .{', .'.join(FORMATS)}")


def export_alerts(items: Iterable[ExportItem], path: Path, file_format: Format) -> int:
    """Write alerts to one file, which appears when it is whole, and return their number.

    Raises
    ------
    ConfigError
        Raised if the format needs an extra that is not installed.
    """
    match file_format:
        case "avro":
            return write_messages(path, (item.encode() for item in items))
        case "parquet":
            return _write_parquet(items, path)
        case "ecsv":
            packets = [_without_pictures(item.packet) for item in items]
            with whole_file(path) as partial:
                make_alert_table(packets).write(partial, format="ascii.ecsv", overwrite=True)
            return len(packets)


def export_each(items: Iterable[ExportItem], folder: Path) -> int:
    """Write one Avro container an alert, called by its id, as ZTF's archive has them; return their number."""
    folder.mkdir(parents=True, exist_ok=True)
    n = 0
    for item in items:
        n += write_messages(folder / f"{item.packet['diaSourceId']}.avro", [item.encode()])
    return n


def _write_parquet(items: Iterable[ExportItem], path: Path) -> int:
    try:
        import pyarrow as pa  # late: an extra
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(
            "command line", "format", "Parquet needs the extra: pip install alertprod[parquet]"
        ) from error
    schema = arrow_schema()
    n = 0
    with whole_file(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for batch in _batched(items, _ROWS_PER_GROUP):
            writer.write_batch(pa.RecordBatch.from_pylist([item.packet for item in batch], schema=schema))
            n += len(batch)
    return n


@functools.cache
def arrow_schema() -> pa.Schema:
    """Return the alert's schema as Arrow has it: nested, nullable where the packet is, documented."""
    import pyarrow as pa

    return pa.schema(list(_arrow_type(load_alert_schema())))


def _arrow_type(declared: Any) -> Any:
    import pyarrow as pa

    if isinstance(declared, list):
        (declared,) = (branch for branch in declared if branch != "null")
    if isinstance(declared, str) and declared in _named_types():
        declared = _named_types()[declared]
    if isinstance(declared, dict):
        match declared["type"]:
            case "record":
                return pa.struct(
                    [
                        pa.field(
                            field["name"],
                            _arrow_type(field["type"]),
                            nullable=isinstance(field["type"], list),
                            metadata={"doc": field.get("doc", "")},
                        )
                        for field in declared["fields"]
                    ]
                )
            case "array":
                return pa.list_(_arrow_type(declared["items"]))
            case inner if declared.get("logicalType") == "timestamp-micros":
                assert inner == "long"
                return pa.timestamp("us", tz="UTC")
            case inner:
                return _arrow_type(inner)
    return {
        "boolean": pa.bool_(),
        "int": pa.int32(),
        "long": pa.int64(),
        "float": pa.float32(),
        "double": pa.float64(),
        "string": pa.string(),
        "bytes": pa.binary(),
    }[declared]


@functools.cache
def _named_types() -> Mapping[str, Any]:
    named: Mapping[str, Any] = load_alert_schema()["__named_schemas"]
    return named


def _without_pictures(packet: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a table needs of an alert: a night of pictures need not fit into memory."""
    return {name: value for name, value in packet.items() if not name.startswith("cutout")}


def _batched(items: Iterable[ExportItem], n: int) -> Iterator[list[ExportItem]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, n)):
        yield batch
