"""What goes to a worker process and what comes back: small, picklable facts; alerts stay in the outbox."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from alertprod.errors import AlertprodError

if TYPE_CHECKING:
    from alertprod.stream.messages import VisitReady

WorkOutcome = Literal["stored", "failed", "claim_lost"]
"""``stored``: the ledger row is `stored` and the outbox file is there. ``failed``: see `WorkResult.error`, or
`WorkResult.traceback` where it is no `AlertprodError`. ``claim_lost``: somebody else owns the row now, nothing was stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOrder:
    """One exposure to compute and store."""

    event: "VisitReady"
    """The validated event."""

    topic: str
    """Where the event came from; goes into the ledger row, so that a stored row can be proven published."""

    partition: int
    """Its partition: the lane."""

    offset: int
    """Its offset."""

    claim_token: str
    """What the ledger knows our claim by; the store compares and sets on it."""

    claims: int
    """How often this exposure has been claimed, this time included."""

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

    outbox_uri: str | None = None
    """Where the packets' bytes are, when stored."""

    outbox_sha256: str | None = None
    """Hash of the outbox file's contents, as its footer says."""

    n_alerts: int = 0
    """Packets in the outbox."""

    bodies_sha256: str | None = None
    """Hash of the packets' bodies in order: what a consumer can check the visit summary against."""

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


class Pipeline(Protocol):
    """What a worker process runs; built once in it, and fed one order at a time."""

    def warm_up(self) -> None:
        """Compile, connect and fill caches: after this the first order is as quick as the second."""
        ...

    def process(self, order: WorkOrder) -> WorkResult:
        """Compute and store one exposure; errors of the tree may be raised or returned."""
        ...


class PipelineFactory(Protocol):
    """Picklable; called without arguments in the worker process."""

    def __call__(self) -> Pipeline:
        """Build the pipeline."""
        ...
