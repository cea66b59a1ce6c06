"""JSON that strict readers take: NaN and infinity, which JSON has no word for, are null."""

import json
import math
from typing import Any


def encode_json(value: Any, *, indent: int | None = None) -> str:
    """Return JSON; NumPy scalars and arrays as the numbers they hold, what else JSON does not know as text."""
    return json.dumps(_without_nan(value), default=str, allow_nan=False, indent=indent)


def _without_nan(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return value
