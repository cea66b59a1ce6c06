"""SIGHUP: which settings of a running daemon can change, and what a change of them brings along."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from alertprod.config import DaemonConfig
from alertprod.service.chores import Prefetch
from alertprod.service.steps import Identity
from alertprod.service.work import PipelineFactory

FIXED_SECTIONS: Final = ("kafka", "topics", "store", "http")
"""Connections, group membership, open files: a change of these needs a restart."""

FIXED_FIELDS: Final = {"workers": ("count",), "log": ("format",)}
"""The same within sections of which the rest can change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """A configuration that was read again and found good, with all that follows from it."""

    config: DaemonConfig
    """What holds from now on: what cannot change is as it was."""
    left_out: tuple[str, ...]
    """Settings that are different in the file and wait for a restart."""
    identity: Identity
    pipeline: PipelineFactory
    prefetch: Prefetch | None


Reload = Callable[[DaemonConfig], Reloaded]
"""Reads the configuration again, given the one that holds; raises `ConfigError` where it cannot be used."""


def keep_what_is_fixed(old: DaemonConfig, new: DaemonConfig) -> tuple[DaemonConfig, tuple[str, ...]]:
    """Return `new` with all that needs a restart as in `old`, and the names of what was therefore left out."""
    left_out = [name for name in FIXED_SECTIONS if getattr(old, name) != getattr(new, name)]
    changes = {name: getattr(old, name) for name in FIXED_SECTIONS}
    for section, fields in FIXED_FIELDS.items():
        before, after = getattr(old, section), getattr(new, section)
        kept = {field: getattr(before, field) for field in fields if getattr(before, field) != getattr(after, field)}
        left_out += [f"{section}.{field}" for field in kept]
        changes[section] = after.model_copy(update=kept)
    return new.model_copy(update=changes), tuple(left_out)
