"""Random configurations of `ImageDifferenceTask`: every field of it and of its subtasks is drawn, by what kind it is.

Nothing here knows a field by name but where its meaning cannot be seen from its type, so that new fields are drawn too.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from lsst.pex.config import (
    ChoiceField,
    Config,
    ConfigChoiceField,
    ConfigField,
    ConfigurableField,
    Field,
    ListField,
    RangeField,
)

from alertprod.errors import ConfigError
from alertprod.images.mask import MASK_PLANES
from alertprod.tasks.config_fields import apply_overrides
from alertprod.tasks.image_difference import ImageDifferenceConfig

MODES: tuple[dict[str, Any], ...] = (
    {},
    {"subtract.al.kernel": "DF"},
    {"subtract.al.kernel.AL.usePcaForSpatialKernel": True},
    {"subtract.al.mode": "auto"},
    {"subtract.al.mode": "convolveScience"},
    {"convolveTemplate": False},
    {"subtract.name": "zogy", "doDecorrelation": False},
    {"subtract.name": "zogy", "doDecorrelation": False, "subtract.zogy.zogyConfig.doSpatialGrid": True},
    {"subtract.name": "zogy", "doDecorrelation": False, "useScoreImageDetection": True, "doWriteScoreExp": True},
    {"useScoreImageDetection": True, "doWriteSubtractedExp": False},
    {"useScoreImageDetection": True, "doWriteSubtractedExp": False, "useGaussianForPreConvolution": True},
    {"doSelectSources": True},
    {"doSelectSources": True, "doUseRegister": True, "doDebugRegister": True},
    {"doSelectSources": True, "kernelSourcesFromRef": True, "doSelectDcrCatalog": True},
    {"doSpatiallyVarying": True},
    {"doScaleTemplateVariance": True, "doScaleDiffimVariance": False},
    {"doSkySources": True, "doFindCosmicRays": True, "doMatchSources": True},
    {"doAddMetrics": True, "doSelectSources": True},
    {"doSubtract": False},
    {"doAddCalexpBackground": True},
)
"""What has to be set together to be legal; a random configuration starts from one of them."""

_WORDS = {"coaddName": ("deep", "goodSeeing", "dcr", "nonsense"), "refObjLoader.uri": ("no/such/file.ecsv",)}
"""Values of free texts."""

_KEPT = ("nThreads",)
"""Fields that cost or are deprecated, and change no result."""


def list_fields(config: Config, prefix: str = "") -> Iterator[tuple[str, Field, Any]]:
    """Yield dotted name, field and value of every field of a configuration and of those below it."""
    for name, field in config._fields.items():
        value, path = getattr(config, name), f"{prefix}{name}"
        if isinstance(field, ConfigField):
            yield from list_fields(value, f"{path}.")
        elif isinstance(field, ConfigurableField):
            yield from list_fields(value.value, f"{path}.")
        elif isinstance(field, ConfigChoiceField):
            for choice in value.types:
                yield from list_fields(value[choice], f"{path}.{choice}.")
        elif not field.deprecated and name not in _KEPT:
            yield path, field, value


def draw_value(rng: np.random.Generator, path: str, field: Field, value: Any) -> Any:
    """Return another value for a field: mostly near what it is, sometimes at or beyond a limit."""
    if field.optional and rng.random() < 0.3:
        return None
    if path in _WORDS:
        return str(rng.choice(_WORDS[path]))
    if isinstance(field, ChoiceField):
        return str(rng.choice(sorted(str(key) for key in field.allowed)))
    if isinstance(field, ListField):
        return _draw_list(rng, path, field, list(value))
    kind = field.dtype
    if kind is bool:
        return not value
    if kind is int:
        return _draw_integer(rng, field, value)
    if kind is float:
        return _draw_float(rng, field, value)
    return str(rng.choice(("lanczos3", "lanczos5", "bilinear", "nonsense")))


def draw_settings(rng: np.random.Generator, number: int) -> dict[str, Any]:
    """Return settings by dotted names: one of `MODES`, one field in its turn by `number`, and some more at random."""
    fields = list(list_fields(ImageDifferenceConfig()))
    in_turn, field, value = fields[number % len(fields)]
    settings = {in_turn: draw_value(rng, in_turn, field, value)} | MODES[rng.integers(len(MODES))]
    if rng.random() < 0.5:
        # The subtask's many fields would leave the rest alone otherwise.
        fields = [one for one in fields if one[0].count(".") == 0]
    for index in rng.choice(len(fields), size=min(len(fields), 1 + int(rng.geometric(0.35))), replace=False):
        path, field, value = fields[index]
        settings.setdefault(path, draw_value(rng, path, field, value))
    return settings


def make_configuration(settings: dict[str, Any]) -> ImageDifferenceConfig | None:
    """Return the configuration, None where it is refused by name."""
    config = ImageDifferenceConfig()
    try:
        apply_overrides(config, settings, source="random")
    except ConfigError:
        return None
    return config


def _draw_integer(rng: np.random.Generator, field: Field, value: int | None) -> int:
    start = value or 1
    choices = [start - 1, start + 1, start // 2, start * 2, start + 2, 0, 1, -1, 3, 10 * start, 10**6]
    weights = np.array([4, 4, 3, 3, 4, 2, 2, 1, 2, 0.7, 0.3])
    drawn = int(choices[rng.choice(len(choices), p=weights / weights.sum())])
    return _within(rng, field, drawn)


def _draw_float(rng: np.random.Generator, field: Field, value: float | None) -> float:
    start = 1.0 if value is None else value
    if rng.random() < 0.8:
        drawn = float((start or 1.0) * 10.0 ** rng.normal(0.0, 0.5))
    else:
        drawn = float(rng.choice([0.0, -1.0, 1e-30, 1e30, np.inf, np.nan, 1.0, -start]))
    return _within(rng, field, drawn)


def _within(rng: np.random.Generator, field: Field, value: Any) -> Any:
    """Return a value that is mostly within a field's range."""
    if isinstance(field, RangeField) and rng.random() < 0.9:
        if field.min is not None and not value > field.min:
            return type(value)(field.min)
        if field.max is not None and not value < field.max:
            return type(value)(field.max)
    return value


def _draw_list(rng: np.random.Generator, path: str, field: ListField, value: list[Any]) -> list[Any]:
    if field.itemtype is str:
        pool = value if path.endswith("badFlags") else list(MASK_PLANES)
        if rng.random() < 0.05:
            return ["NO_SUCH_PLANE"]
        return [str(name) for name in rng.permutation(pool)[: rng.integers(0, len(pool) + 1)]] if pool else []
    drawn = [
        _draw_integer(rng, field, item) if field.itemtype is int else _draw_float(rng, field, item) for item in value
    ]
    return drawn if rng.random() < 0.8 else drawn[: rng.integers(0, len(drawn) + 1)]
