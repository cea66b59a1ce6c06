"""The daemon's four steps on an exposure: receive, claim, publish, settle.

The two between, compute and store, are a worker's (`alertprod.service.pipeline`). Each may block, so each runs at a
desk and never on the poll thread; each may be tried again after a `TransientError`, and after a crash at any point.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from alertprod.errors import InvalidEvent
from alertprod.service.publications import Publication
from alertprod.store.files import is_allowed
from alertprod.store.ledger import (
    Busy,
    Claimed,
    ClaimOutcome,
    EventPosition,
    ExposureKey,
    Finished,
    LedgerRow,
    LedgerState,
    Stored,
)
from alertprod.stream.messages import VisitReady, decode_visit_ready
from alertprod.stream.records import Lane, Offset, OutgoingMessage, Receipt, Received
from alertprod.stream.schemas import WriterSchemas


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this daemon is."""

    owner: str
    """Name in the ledger's claims. The same after a restart, different from any other daemon's: what an earlier
    process of this name had claimed is taken over at once, without waiting for its lease."""

    version: str
    """Of the program."""

    config_hash: str
    """Of the configuration."""

    schema: str = ""
    """Of the alerts, for build_info."""

    def versions(self) -> dict[str, str]:
        """Return what goes into every visit summary."""
        return {"alertprod": self.version, "config_hash": self.config_hash} | (
            {"schema": self.schema} if self.schema else {}
        )


class Offsets(Protocol):
    """What the steps need of the consumer; all of it may be called from any thread."""

    def group_metadata(self, offsets: Iterable[Offset] = ()) -> Any:
        """Return the group membership; `PartitionRevoked` where a lane is not ours."""
        ...

    def commit(self, offsets: Iterable[Offset]) -> None:
        """Commit without a transaction."""
        ...

    def committed(self, lanes: Iterable[Lane]) -> Mapping[Lane, int | None]:
        """Return the committed offset of each lane."""
        ...


class Producer(Protocol):
    """What the steps need of the producer; one thread's."""

    transactional: bool

    def start(self) -> None:
        """Fence whoever had our transactional id before."""
        ...

    @property
    def counts(self) -> Mapping[str, int]:
        """Since the start: messages ``delivered`` and ``undelivered``, transactions ``committed`` and ``aborted``."""
        ...

    @property
    def overdue_s(self) -> float:
        """For how long a call of the client has not returned beyond its time-out."""
        ...

    def publish(
        self, messages: Iterable[OutgoingMessage], offsets: Any = (), group_metadata: Any = None, *, n_bytes: int = 0
    ) -> Receipt:
        """Publish all or, where transactional, nothing."""
        ...

    def serve(self) -> None:
        """Serve the client's callbacks while there is nothing to publish."""
        ...

    def interrupt(self) -> None:
        """Abort the publication under way; from any thread."""
        ...

    def close(self, *, timeout_s: float) -> None:
        """End what is open."""
        ...


class LedgerPort(Protocol):
    """What the service needs of `alertprod.store.ledger.Ledger`."""

    def claim(
        self,
        key: ExposureKey,
        *,
        owner: str,
        lease_s: float,
        event: EventPosition | None = None,
        program_version: str = "",
        config_hash: str = "",
        reopen: bool = False,
    ) -> ClaimOutcome:
        """Claim an exposure, or hear why not."""
        ...

    def renew(self, claim: Claimed, *, lease_s: float) -> bool:
        """Prolong a lease."""
        ...

    def release_claim(self, claim: Claimed) -> bool:
        """End a lease now."""
        ...

    def count_worker_death(self, claim: Claimed) -> int:
        """Count a worker's death; return how many there were."""
        ...

    def mark_published(self, key: ExposureKey) -> bool:
        """Settle a stored exposure."""
        ...

    def mark_unpublishable(self, key: ExposureKey, *, outbox_uri: str, reason: str) -> bool:
        """Give up a stored exposure."""
        ...

    def mark_skipped(self, claim: Claimed, *, reason: str, summary: Mapping[str, Any] | None = None) -> bool:
        """End an exposure with nothing to do."""
        ...

    def mark_expired(self, claim: Claimed, *, reason: str, summary: Mapping[str, Any] | None = None) -> bool:
        """End an exposure that came too late."""
        ...

    def mark_dead_lettered(self, claim: Claimed, *, reason: str, summary: Mapping[str, Any] | None = None) -> bool:
        """End an exposure that was given up."""
        ...

    def get(self, key: ExposureKey) -> LedgerRow | None:
        """Return a row."""
        ...

    def rows_stored(self, topic: str, partition: int) -> list[LedgerRow]:
        """Return a partition's stored rows, by offset."""
        ...


def receive(
    received: Received, *, schemas: WriterSchemas, instruments: Collection[str], allowed_roots: Sequence[str] = ()
) -> VisitReady:
    """Decode and validate an event.

    Raises
    ------
    InvalidEvent
        Raised if it is no event, of an instrument that is not configured, or names a file outside the allowed roots.
    RegistryUnavailable
        Raised if its schema must be asked for and nobody answers.
    """
    event = decode_visit_ready(received.value, schemas=schemas)
    if event.instrument not in instruments:
        known = ", ".join(sorted(instruments)) or "none"
        raise InvalidEvent("instrument", f"{event.instrument!r} is not configured; known: {known}")
    named = {"calexp_uri": [event.calexp_uri], "template_uris": event.template_uris or ()}
    named |= {name: [uri] for name in ("background_uri", "ephemeris_uri") if (uri := getattr(event, name)) is not None}
    for name, uris in named.items():
        for uri in uris:
            if not is_allowed(uri, allowed_roots):
                raise InvalidEvent(name, f"{uri!r} is not within store.allowed_roots")
    return event


def claim(
    ledger: LedgerPort,
    offsets: Offsets,
    event: VisitReady,
    received: Received,
    *,
    identity: Identity,
    lease_s: float,
    reopen: bool,
) -> ClaimOutcome:
    """Claim an exposure in the ledger, or learn what has become of it.

    1. ask the ledger;
    2. a lease that an earlier process of our own name left behind is ended, and the ledger asked again;
    3. what is stored and below its partition's committed offset was published: it is settled.

    Returns
    -------
    Claimed, Busy, Stored or Finished
        `Stored` is not published yet, for certain.
    """

    def ask() -> ClaimOutcome:
        return ledger.claim(
            ExposureKey(event.instrument, event.visit, event.detector),
            owner=identity.owner,
            lease_s=lease_s,
            event=EventPosition(received.topic, received.partition, received.offset),
            program_version=identity.version,
            config_hash=identity.config_hash,
            reopen=reopen,
        )

    outcome = ask()
    if isinstance(outcome, Busy) and outcome.owner == identity.owner:
        key = ExposureKey(event.instrument, event.visit, event.detector)
        row = ledger.get(key)
        if row is not None and row.state is LedgerState.CLAIMED and row.owner == identity.owner:
            ledger.release_claim(Claimed(key, row.claims, row.worker_deaths, row.owner))
        outcome = ask()
    if isinstance(outcome, Stored) and was_published(outcome.row, offsets):
        ledger.mark_published(outcome.row.key)
        return Finished(LedgerState.PUBLISHED, outcome.row)
    return outcome


def was_published(row: LedgerRow, offsets: Offsets) -> bool:
    """Tell whether a stored row was published: the committed offset, which moves with the alerts, is the proof."""
    if row.event is None:
        return False
    lane = Lane(row.event.topic, row.event.partition)
    committed = offsets.committed([lane]).get(lane)
    return committed is not None and row.event.offset < committed


def recover(ledger: LedgerPort, offsets: Offsets, lane: Lane) -> list[LedgerRow]:
    """Settle what of a lane was published, and return what is left to publish, by offset."""
    rows = ledger.rows_stored(*lane)
    if not rows:
        return []
    committed = offsets.committed([lane]).get(lane)
    left = []
    for row in rows:
        if committed is not None and row.event is not None and row.event.offset < committed:
            ledger.mark_published(row.key)
        else:
            left.append(row)
    return left


def publish(producer: Producer, offsets: Offsets, publication: Publication) -> Receipt:
    """Send the messages and commit the event's offset: in one transaction, or one after the other (at-least-once).

    Raises
    ------
    BrokerUnavailable
        Raised if nothing was published; publish again.
    PartitionRevoked
        Raised if the lane is somebody else's by now.
    PartialWriteError, StoreUnavailable
        Raised if the stored bytes cannot be read.
    MessageRefused
        Raised if the broker will never take one of the messages.
    """
    positions = [] if publication.offset is None else [publication.offset]
    n_bytes = publication.count_bytes()
    metadata = offsets.group_metadata(positions) if producer.transactional else None
    receipt = producer.publish(publication.messages(), positions, metadata, n_bytes=n_bytes)
    if positions and not receipt.offsets_committed:
        offsets.commit(positions)
    return receipt


def settle(ledger: LedgerPort, publication: Publication) -> None:
    """Tell the ledger how it ended.

    Notes
    -----
    Nothing depends on it: a row that stays ``stored`` is settled when its lane is next assigned, one that stays
    ``claimed`` has its offset committed and is asked for no more.
    """
    match publication.kind:
        case "published":
            assert publication.key is not None
            ledger.mark_published(publication.key)
        case "duplicate" | "replayed":
            return
        case "dead_lettered" if publication.outbox_uri is not None and publication.key is not None:
            ledger.mark_unpublishable(publication.key, outbox_uri=publication.outbox_uri, reason=publication.reason)
        case _ if publication.claim is None:  # given up before it was claimed
            return
        case "skipped":
            ledger.mark_skipped(publication.claim, reason=publication.reason, summary=publication.facts)
        case "expired":
            ledger.mark_expired(publication.claim, reason=publication.reason, summary=publication.facts)
        case "dead_lettered":
            ledger.mark_dead_lettered(publication.claim, reason=publication.reason, summary=publication.facts)
