"""What a reader with one Avro schema cannot read of data written with another.

A registry may check this, and Rubin's does not: its records carry the version in their names. Those are compared without
their namespace here, as the Avro specification has it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

_PROMOTIONS: Mapping[str, frozenset[str]] = {
    "int": frozenset({"long", "float", "double"}),
    "long": frozenset({"float", "double"}),
    "float": frozenset({"double"}),
    "string": frozenset({"bytes"}),
    "bytes": frozenset({"string"}),
}
"""What a reader may take a writer's type for: the specification's list."""


def find_breaks(writer: Any, reader: Any) -> list[str]:
    """Return everything that keeps `reader` from reading what was written with `writer`; empty where it reads all.

    Parameters
    ----------
    writer, reader
        Avro schemas as JSON has them, named types defined where they are first used.

    Notes
    -----
    Only what may fail counts: a union whose value *can* be one that the reader does not take is a break. Fields that
    the reader leaves out and orders that differ are none.
    """
    return list(_Comparison(writer, reader).compare(writer, reader, ""))


class _Comparison:
    def __init__(self, writer: Any, reader: Any) -> None:
        self._writers, self._readers = dict(_named_types(writer)), dict(_named_types(reader))
        self._under_way: set[tuple[str, str]] = set()

    def compare(self, writer: Any, reader: Any, path: str) -> Iterator[str]:
        writer, reader = _resolve(writer, self._writers), _resolve(reader, self._readers)
        if isinstance(writer, list):
            for branch in writer:
                yield from self.compare(branch, reader, path)
            return
        if isinstance(reader, list):
            answers = [list(self.compare(writer, branch, path)) for branch in reader]
            if not any(not answer for answer in answers):
                kinds = [_kind(_resolve(branch, self._readers)) for branch in reader]
                same_kind = [answer for answer, kind in zip(answers, kinds, strict=True) if kind == _kind(writer)]
                yield from same_kind[0] if same_kind else [f"{path or 'value'}: {_kind(writer)} is none of its types"]
            return
        ours, theirs = _kind(writer), _kind(reader)
        if ours != theirs:
            if theirs not in _PROMOTIONS.get(ours, ()):
                yield f"{path or 'value'}: {ours} where {theirs} is read"
            return
        match ours:
            case "record":
                yield from self._compare_records(writer, reader, path)
            case "array":
                yield from self.compare(writer["items"], reader["items"], f"{path}[]")
            case "map":
                yield from self.compare(writer["values"], reader["values"], f"{path}{{}}")
            case "enum" if "default" not in reader:
                for symbol in writer["symbols"]:
                    if symbol not in reader["symbols"]:
                        yield f"{path}: symbol {symbol} is not known"
            case "fixed" if writer["size"] != reader["size"]:
                yield f"{path}: {writer['size']} bytes where {reader['size']} are read"

    def _compare_records(self, writer: Any, reader: Any, path: str) -> Iterator[str]:
        ours, theirs = _plain_name(writer["name"]), _plain_name(reader["name"])
        if ours != theirs and ours not in {_plain_name(alias) for alias in reader.get("aliases", ())}:
            yield f"{path or 'value'}: record {ours} where {theirs} is read"
            return
        if (writer["name"], reader["name"]) in self._under_way:  # a record within itself
            return
        self._under_way.add((writer["name"], reader["name"]))
        written = {field["name"]: field for field in writer["fields"]}
        for field in reader["fields"]:
            where = f"{path}.{field['name']}" if path else field["name"]
            names = [field["name"], *field.get("aliases", ())]
            found = next((written[name] for name in names if name in written), None)
            if found is not None:
                yield from self.compare(found["type"], field["type"], where)
            elif "default" not in field:
                yield f"{where}: is not written, and has no default"
        self._under_way.discard((writer["name"], reader["name"]))


def _resolve(schema: Any, named: Mapping[str, Any]) -> Any:
    while True:
        if isinstance(schema, str) and schema in named:
            return named[schema]
        if isinstance(schema, dict) and isinstance(schema["type"], dict | list):
            schema = schema["type"]  # a type within a type says nothing more
            continue
        return schema


def _kind(schema: Any) -> str:
    if isinstance(schema, list):
        return "union"
    return str(schema["type"] if isinstance(schema, dict) else schema)


def _named_types(schema: Any, namespace: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every named type by the names it may be called: full, and short within its namespace."""
    if isinstance(schema, list):
        for branch in schema:
            yield from _named_types(branch, namespace)
    elif isinstance(schema, dict):
        if "name" in schema and schema["type"] in ("record", "error", "enum", "fixed"):
            name = schema["name"]
            namespace = name.rpartition(".")[0] if "." in name else schema.get("namespace", namespace)
            yield _plain_name(name), schema
            yield f"{namespace}.{_plain_name(name)}".lstrip("."), schema
            for field in schema.get("fields", ()):
                yield from _named_types(field["type"], namespace)
            return
        for key in ("type", "items", "values"):
            if isinstance(schema.get(key), dict | list):
                yield from _named_types(schema[key], namespace)


def _plain_name(name: str) -> str:
    return name.rpartition(".")[2]
