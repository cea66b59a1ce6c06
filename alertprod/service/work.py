"""What goes to a worker process and what comes back: small, picklable facts; alerts stay in the outbox."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from alertprod.errors import AlertprodError
from alertprod.store.ledger import Claimed, EventPosition
from alertprod.store.outbox import OutboxFile
from alertprod.stream.messages import VisitReady

WorkOutcome = Literal["stored", "failed", "claim_lost"]
"""``stored``: the ledger row is `stored` and the outbox file is there. ``failed``: see `WorkResult.error`, or
`WorkResult.traceback` where it is no `AlertprodError`. ``claim_lost``: somebody else owns the row now, nothing was stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOrder:
    """One exposure to compute and store."""

    event: VisitReady
    """The validated event."""

    position: EventPosition
    """Where the event came from."""

    claim: Claimed
    """Our claim; the store compares and sets on it."""

    received_unix_s: float
    """When the event left the broker, seconds UTC since 1970."""

    deadline_s: float
    """Seconds from the worker's start on this order until the daemon kills it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """What one exposure did to the template cache."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    size_bytes: int | None = None
    """Bytes in the cache afterwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkResult:
    """What became of a `WorkOrder`."""

    outcome: WorkOutcome
    """See `WorkOutcome`."""

    outbox: OutboxFile | None = None
    """Where the packets' bytes are, how many, and their hash; set when stored."""

    counts: dict[str, int] = field(default_factory=dict)
    """Counts by kind for the summary: dia_sources, new_objects, forced_sources, …"""

    stage_seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage; names from `alertprod.metrics.STAGES`."""

    figures: dict[str, float] = field(default_factory=dict)
    """Kernel and noise figures; those named in `alertprod.metrics.FIGURES` become metrics, all go into the summary."""

    versions: dict[str, str] = field(default_factory=dict)
    """Program version, configuration hash and what else produced the result."""

    cache: CacheUse = field(default_factory=CacheUse)
    """Template cache."""

    error: AlertprodError | None = None
    """Why it failed, where the failure is one of the tree's; its class is its fate."""

    traceback: str | None = None
    """The traceback's text, where the failure is a bug."""


def summary_facts(
    event: VisitReady,
    *,
    counts: Mapping[str, int] | None = None,
    stage_seconds: Mapping[str, float] | None = None,
    figures: Mapping[str, float] | None = None,
    versions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what the ledger keeps with a stored exposure.

    Notes
    -----
    The pipeline hands this to the store. A daemon that finds the row `stored` after a crash makes the visit summary
    from it alone: it has the bytes, and no event.
    """
    return {
        "band": event.band,
        "shutter_close_mjd_tai": event.shutter_close_mjd_tai,
        "counts": dict(counts or {}),
        "stage_seconds": dict(stage_seconds or {}),
        "figures": dict(figures or {}),
        "versions": dict(versions or {}),
    }


class Pipeline(Protocol):
    """What a worker process runs; built once in it, and fed one order at a time."""

    def warm_up(self) -> None:
        """Compile, connect and fill caches: after this the first order is as quick as the second."""
        ...

    def process(self, order: WorkOrder) -> WorkResult:
        """Compute and store one exposure.

        Raises
        ------
        AlertprodError
            Raised or returned in the result, with the same effect.
        ClaimLost
            Raised if the claim is not ours any more; the same as the outcome ``claim_lost``.
        """
        ...


class PipelineFactory(Protocol):
    """Picklable; called without arguments in the worker process."""

    def __call__(self) -> Pipeline:
        """Build the pipeline."""
        ...
