"""What ``interoperability/java/ReadAvro.java`` says, as Python values."""

import json
import struct
from typing import Any


def from_java(line: str) -> Any:
    """Return the values of one line: bytes as (length, SHA-256)."""
    return _value(json.loads(line))


def _value(said: Any) -> Any:
    match said:
        case dict():
            return {name: _value(value) for name, value in said.items()}
        case list():
            return [_value(value) for value in said]
        case str():
            kind, _, text = said.partition(" ")
            match kind:
                case "float":
                    return struct.unpack(">f", bytes.fromhex(text))[0]
                case "double":
                    return struct.unpack(">d", bytes.fromhex(text))[0]
                case "whole":
                    return int(text)
                case "bytes":
                    length, digest = text.split()
                    return int(length), digest
            return text
    return said
