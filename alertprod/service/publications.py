"""What is published about an exposure, in one transaction with its event's offset, and what the ledger hears after.

Messages are made when they are sent, not before: an exposure's alerts need not fit into memory, and a summary's
latency is true.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from alertprod.config import TopicsConfig
from alertprod.service.clock import Clock, unix_from_mjd_tai
from alertprod.service.work import WorkResult, summary_facts
from alertprod.store.ledger import Claimed, ExposureKey, LedgerRow
from alertprod.store.outbox import CorruptOutbox, read_outbox, size_of_outbox
from alertprod.stream.messages import Outcome, VisitReady, VisitSummary, encode_visit_summary, event_key, hash_bodies
from alertprod.stream.records import Offset, OutgoingMessage
from alertprod.stream.replay import mark_replay

Kind = Literal["published", "skipped", "expired", "dead_lettered", "duplicate", "replayed"]
"""``duplicate`` carries the offset alone; ``replayed`` stored alerts on the replay topic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """One transaction to make."""

    kind: Kind
    """What becomes of the exposure."""

    messages: Callable[[], Iterator[OutgoingMessage]]
    """Makes the messages, alerts first; called anew for each attempt."""

    offset: Offset | None
    """What is committed with them."""

    n_alerts: int = 0
    """How many of the messages are alerts."""

    outbox_uri: str | None = None
    """The stored file that is published, or that could not be: then the ledger is told by this name."""

    key: ExposureKey | None = None
    """The exposure; None for an event that could not be read."""

    band: str = ""
    """Its band, for metrics."""

    shutter_close_unix_s: float | None = None
    """When its shutter closed."""

    claim: Claimed | None = None
    """Our claim, which the ledger wants for an end without stored bytes."""

    reason: str = ""
    """The error's name in snake_case, where it did not end well."""

    facts: Mapping[str, Any] | None = None
    """What the ledger keeps of it."""

    def count_bytes(self) -> int:
        """Return about how many bytes the messages have together.

        Raises
        ------
        StoreUnavailable
            Raised if the outbox does not answer.
        """
        return 0 if self.outbox_uri is None or self.kind == "dead_lettered" else size_of_outbox(self.outbox_uri)


class PublicationMaker:
    """Makes publications for one daemon.

    Parameters
    ----------
    topics
        Where messages go.
    versions
        Program version, configuration hash: into every summary.
    clock
        For latency and sending time.
    """

    def __init__(self, topics: TopicsConfig, versions: Mapping[str, str], clock: Clock) -> None:
        self._topics, self._versions, self._clock = topics, dict(versions), clock

    def reconfigure(self, versions: Mapping[str, str]) -> None:
        """Say other versions in summaries from now on."""
        self._versions = dict(versions)

    def stored(self, event: VisitReady, result: WorkResult, *, offset: Offset) -> Publication:
        """Publish what a worker has just stored."""
        assert result.outbox is not None
        facts = summary_facts(
            event,
            counts=result.counts,
            stage_seconds=result.stage_seconds,
            figures=result.figures,
            versions=result.versions,
        )
        outbox = result.outbox
        return self._alerts(_key_of(event), outbox.uri, outbox.sha256, outbox.n_messages, facts, offset)

    def recovered(self, row: LedgerRow, *, offset: Offset) -> Publication:
        """Publish what the ledger says is stored: the same bytes, whoever computed them."""
        if row.outbox_uri is None or row.outbox_sha256 is None or row.summary is None:
            raise CorruptOutbox(str(row.key), "the ledger's row is stored and names no outbox file")
        n_alerts = row.n_alerts or 0
        return self._alerts(row.key, row.outbox_uri, row.outbox_sha256, n_alerts, row.summary, offset)

    def replayed(self, event: VisitReady, row: LedgerRow, *, offset: Offset) -> Publication:
        """Publish stored alerts once more, on the replay topic; an exposure without any leaves only the offset."""

        def messages() -> Iterator[OutgoingMessage]:
            if row.outbox_uri is not None and row.outbox_sha256 is not None:
                yield from map(mark_replay, self._read(row.outbox_uri, row.outbox_sha256, self._topics.replay))

        return Publication(
            kind="replayed",
            messages=messages,
            offset=offset,
            n_alerts=row.n_alerts or 0,
            outbox_uri=row.outbox_uri,
            key=row.key,
            band=event.band,
        )

    def duplicate(self, event: VisitReady, *, offset: Offset) -> Publication:
        """Commit the offset of an event that needs nothing more."""
        return Publication(
            kind="duplicate", messages=lambda: iter(()), offset=offset, key=_key_of(event), band=event.band
        )

    def without_alerts(
        self,
        kind: Literal["skipped", "expired", "dead_lettered"],
        event: VisitReady | None,
        *,
        offset: Offset,
        reason: str,
        claim: Claimed | None,
        dead_letter: OutgoingMessage | None = None,
        result: WorkResult | None = None,
        outbox_uri: str | None = None,
    ) -> Publication:
        """Say in the summary that nothing was made of an exposure, with its dead letter where there is one.

        Parameters
        ----------
        outbox_uri
            Of an exposure that is stored and cannot be published.

        Notes
        -----
        An event that could not be read has no summary: its key may be anything.
        """
        facts = None
        if event is not None:
            facts = summary_facts(
                event,
                counts=result.counts if result else None,
                stage_seconds=result.stage_seconds if result else None,
                figures=result.figures if result else None,
                versions=result.versions if result else None,
            )

        def messages() -> Iterator[OutgoingMessage]:
            if dead_letter is not None:
                yield dead_letter
            if event is not None and facts is not None:
                yield self._summary(_key_of(event), kind, facts, reason=reason)

        return Publication(
            kind=kind,
            messages=messages,
            offset=offset,
            key=None if event is None else _key_of(event),
            band="" if event is None else event.band,
            shutter_close_unix_s=None if event is None else unix_from_mjd_tai(event.shutter_close_mjd_tai),
            outbox_uri=outbox_uri,
            claim=claim,
            reason=reason,
            facts=facts,
        )

    def _alerts(
        self, key: ExposureKey, uri: str, sha256: str, n_alerts: int, facts: Mapping[str, Any], offset: Offset
    ) -> Publication:
        def messages() -> Iterator[OutgoingMessage]:
            yield from self._read(uri, sha256, self._topics.alerts)
            yield self._summary(key, "published", facts, n_alerts=n_alerts, sha256=sha256)

        return Publication(
            kind="published",
            messages=messages,
            offset=offset,
            n_alerts=n_alerts,
            outbox_uri=uri,
            key=key,
            band=str(facts["band"]),
            shutter_close_unix_s=unix_from_mjd_tai(facts["shutter_close_mjd_tai"]),
            facts=facts,
        )

    def _read(self, uri: str, sha256: str, topic: str) -> Iterator[OutgoingMessage]:
        for message in read_outbox(uri, sha256):
            yield OutgoingMessage(topic=topic, key=message.key, value=message.value, headers=message.headers)

    def _summary(
        self,
        key: ExposureKey,
        outcome: Outcome,
        facts: Mapping[str, Any],
        *,
        n_alerts: int = 0,
        sha256: str | None = None,
        reason: str | None = None,
    ) -> OutgoingMessage:
        now = self._clock.unix_s()
        summary = VisitSummary(
            instrument=key.instrument,
            visit=key.visit,
            detector=key.detector,
            band=facts["band"],
            outcome=outcome,
            reason=reason,
            n_alerts=n_alerts,
            sha256=hash_bodies(()) if sha256 is None else sha256,
            counts=facts["counts"],
            stage_seconds=facts["stage_seconds"],
            latency_s=now - unix_from_mjd_tai(facts["shutter_close_mjd_tai"]),
            figures=facts["figures"],
            versions={**self._versions, **facts["versions"]},
            sent_at_mjd_tai=self._clock.mjd_tai(),
        )
        return OutgoingMessage(
            topic=self._topics.visit_summary,
            key=event_key(key.instrument, key.visit, key.detector),
            value=encode_visit_summary(summary),
        )


def _key_of(event: VisitReady) -> ExposureKey:
    return ExposureKey(event.instrument, event.visit, event.detector)
