"""The exposure ledger: who works on which exposure, how it ended, and what was stored for it.

A claim is written before any work. Its number (`Claimed.claims`) is what fences: every later write for the
exposure is one UPDATE that holds only while the row still carries that number, so that a worker whose lease
ran out and whose exposure somebody else took up cannot write over the newcomer.

::

    (no row) ──claim──► claimed ──store──► stored ──publish──► published
                          │ ▲
                          │ └── claim again: the lease is over, or a replay of one of
                          ▼
             skipped, expired, dead_lettered

Leases are compared with the clocks of the hosts: keep these within seconds of one another.
"""

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from alertprod.store.database import Database
from alertprod.store.tables import EXPOSURE_LEDGER


class LedgerState(StrEnum):
    """Where an exposure is on its way."""

    CLAIMED = "claimed"
    STORED = "stored"
    PUBLISHED = "published"
    SKIPPED = "skipped"
    EXPIRED = "expired"
    DEAD_LETTERED = "dead_lettered"


_REOPENED_BY_REPLAY = (LedgerState.SKIPPED, LedgerState.EXPIRED, LedgerState.DEAD_LETTERED)
"""Ends without stored bytes: a replay may try again."""


@dataclass(frozen=True, slots=True, order=True)
class ExposureKey:
    """What an exposure is called: one detector of one visit of one instrument."""

    instrument: str
    visit: int
    detector: int

    def __str__(self) -> str:
        return f"{self.instrument}/{self.visit}/{self.detector}"


@dataclass(frozen=True, slots=True)
class EventPosition:
    """Where on Kafka the event of an exposure stands."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One exposure's row; times are Unix seconds, UTC."""

    key: ExposureKey
    state: LedgerState
    claims: int
    worker_deaths: int
    owner: str
    lease_until_unix_s: float
    event: EventPosition | None
    program_version: str | None
    config_hash: str | None
    reason: str | None
    summary: Mapping[str, Any] | None
    n_alerts: int | None
    outbox_uri: str | None
    outbox_sha256: str | None
    first_claimed_unix_s: float
    changed_unix_s: float


@dataclass(frozen=True, slots=True)
class Claimed:
    """The exposure is ours; hand this to everything that writes for it.

    Parameters
    ----------
    claims
        Number of claims there have been, this one included; with `key` it is the fencing token.
    worker_deaths
        Workers that this exposure has hung, crashed or outgrown since it was last opened.
    first_claimed_unix_s
        When it was first claimed since it was last opened, whoever did; None where nobody asked the ledger.
    """

    key: ExposureKey
    claims: int
    worker_deaths: int
    owner: str
    first_claimed_unix_s: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Busy:
    """Somebody else's lease is alive."""

    owner: str
    until_unix_s: float


@dataclass(frozen=True, slots=True)
class Stored:
    """Stored, perhaps published, perhaps not: the committed offset of its partition decides."""

    row: LedgerRow


@dataclass(frozen=True, slots=True)
class Finished:
    """Nothing is left to do: published, skipped, expired or dead_lettered."""

    state: LedgerState
    row: LedgerRow


ClaimOutcome = Claimed | Busy | Stored | Finished


class ClaimLost(Exception):
    """The claim is not ours any more: somebody else took the exposure up, so the work is thrown away."""

    def __init__(self, key: ExposureKey, claims: int) -> None:
        super().__init__(key, claims)
        self.key, self.claims = key, claims

    def __str__(self) -> str:
        return f"{self.key}: claim {self.claims} is not ours any more"


class Ledger:
    """The rows of `exposure_ledger`.

    Parameters
    ----------
    database
        Where they are.
    clock
        Unix seconds; a test's own.

    Notes
    -----
    Every method may raise `StoreUnavailable` or `DiskFull`.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

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
        """Claim an exposure, or hear why not.

        Parameters
        ----------
        owner
            Who claims: a name that a colleague can find in the logs.
        lease_s
            How long the claim keeps others off; `renew` prolongs it.
        event
            The event that asks for it; the row remembers the latest claim's.
        reopen
            A replay, of a dead letter or of an event: an end without stored bytes (skipped, expired, dead_lettered)
            is claimed again, its worker deaths forgotten. Alive leases and what is stored or published stay as they are, and so
            does what was stored and could not be published (`mark_unpublishable`): its sources have their ids already.

        Returns
        -------
        Claimed, Busy, Stored or Finished
            Of any number of concurrent claimers exactly one hears `Claimed`.
        """
        now = self._clock()
        new = {
            "state": LedgerState.CLAIMED.value,
            "owner": owner,
            "lease_until_unix_s": now + lease_s,
            "topic": event.topic if event else None,
            "partition": event.partition if event else None,
            "event_offset": event.offset if event else None,
            "program_version": program_version,
            "config_hash": config_hash,
            "changed_unix_s": now,
        }
        ledger = EXPOSURE_LEDGER.c
        lease_is_over = (ledger.state == LedgerState.CLAIMED.value) & (ledger.lease_until_unix_s <= now)
        reopened = ledger.state.in_([state.value for state in _REOPENED_BY_REPLAY]) & ledger.outbox_uri.is_(None)
        with self._database.write() as connection:
            row_key = {"instrument": key.instrument, "visit": key.visit, "detector": key.detector}
            inserted = connection.execute(
                self._database.insert(EXPOSURE_LEDGER)
                .values(**row_key, **new, claims=1, worker_deaths=0, first_claimed_unix_s=now)
                .on_conflict_do_nothing()
                .returning(ledger.claims)  # not the row count, which not every driver tells of an INSERT
            ).first()
            if inserted is not None:
                return Claimed(key=key, claims=1, worker_deaths=0, owner=owner, first_claimed_unix_s=now)
            claimed = connection.execute(
                sa.update(EXPOSURE_LEDGER)
                .where(_is(key), lease_is_over | reopened if reopen else lease_is_over)
                .values(
                    **new,
                    claims=ledger.claims + 1,
                    worker_deaths=sa.case((lease_is_over, ledger.worker_deaths), else_=0),
                    first_claimed_unix_s=sa.case((lease_is_over, ledger.first_claimed_unix_s), else_=now),
                    reason=None,
                    summary=None,
                )
                .returning(ledger.claims, ledger.worker_deaths, ledger.first_claimed_unix_s)
            ).first()
            if claimed is not None:
                return Claimed(
                    key=key,
                    claims=claimed.claims,
                    worker_deaths=claimed.worker_deaths,
                    owner=owner,
                    first_claimed_unix_s=claimed.first_claimed_unix_s,
                )
            row = _row(connection.execute(sa.select(EXPOSURE_LEDGER).where(_is(key))).one())
        match row.state:
            case LedgerState.CLAIMED:
                return Busy(owner=row.owner, until_unix_s=row.lease_until_unix_s)
            case LedgerState.STORED:
                return Stored(row)
            case _:
                return Finished(row.state, row)

    def renew(self, claim: Claimed, *, lease_s: float) -> bool:
        """Prolong the lease to `lease_s` from now; False where the claim is not ours any more."""
        return self._change(claim, lease_until_unix_s=self._clock() + lease_s)

    def release_claim(self, claim: Claimed) -> bool:
        """End the lease now, so that the next claimer need not wait; False where the claim was not ours."""
        return self._change(claim, lease_until_unix_s=0.0)

    def count_worker_death(self, claim: Claimed) -> int:
        """Count a worker that hung, crashed or outgrew its memory on this exposure; return how many there were.

        Notes
        -----
        Counted whoever holds the claim by now: the death happened.
        """
        with self._database.write() as connection:
            return connection.execute(
                sa.update(EXPOSURE_LEDGER)
                .where(_is(claim.key))
                .values(worker_deaths=EXPOSURE_LEDGER.c.worker_deaths + 1, changed_unix_s=self._clock())
                .returning(EXPOSURE_LEDGER.c.worker_deaths)
            ).scalar_one()

    def mark_stored(
        self,
        connection: sa.Connection,
        claim: Claimed,
        *,
        n_alerts: int,
        outbox_uri: str,
        outbox_sha256: str,
        summary: Mapping[str, Any],
    ) -> None:
        """Move ``claimed`` to ``stored`` within the transaction that writes the rows.

        Raises
        ------
        ClaimLost
            Raised if the claim is not ours any more; the transaction must not commit.
        """
        changed = connection.execute(
            _update_of_claim(claim).values(
                state=LedgerState.STORED.value,
                n_alerts=n_alerts,
                outbox_uri=outbox_uri,
                outbox_sha256=outbox_sha256,
                summary=_encode_summary(summary),
                changed_unix_s=self._clock(),
            )
        )
        if changed.rowcount != 1:
            raise ClaimLost(claim.key, claim.claims)

    def mark_published(self, key: ExposureKey) -> bool:
        """Settle a stored exposure; False where it was not ``stored`` (settled before, most likely)."""
        with self._database.write() as connection:
            changed = connection.execute(
                sa.update(EXPOSURE_LEDGER)
                .where(_is(key), EXPOSURE_LEDGER.c.state == LedgerState.STORED.value)
                .values(state=LedgerState.PUBLISHED.value, changed_unix_s=self._clock())
            )
        return changed.rowcount == 1

    def mark_unpublishable(self, key: ExposureKey, *, outbox_uri: str, reason: str) -> bool:
        """Give up a stored exposure whose alerts cannot be sent: its file is gone, or the broker refuses a message.

        Notes
        -----
        Its rows stay, and its DiaSources keep their ids; the state says that their alerts never went out. False where
        the row is not ``stored`` with this file any more.
        """
        ledger = EXPOSURE_LEDGER.c
        with self._database.write() as connection:
            changed = connection.execute(
                sa.update(EXPOSURE_LEDGER)
                .where(_is(key), ledger.state == LedgerState.STORED.value, ledger.outbox_uri == outbox_uri)
                .values(state=LedgerState.DEAD_LETTERED.value, reason=reason, changed_unix_s=self._clock())
            )
        return changed.rowcount == 1

    def mark_skipped(self, claim: Claimed, *, reason: str, summary: Mapping[str, Any] | None = None) -> bool:
        """End an exposure that had nothing to do; False where the claim was not ours any more."""
        return self._end(claim, LedgerState.SKIPPED, reason, summary)

    def mark_expired(self, claim: Claimed, *, reason: str, summary: Mapping[str, Any] | None = None) -> bool:
        """End an exposure whose event was too old; False where the claim was not ours any more."""
        return self._end(claim, LedgerState.EXPIRED, reason, summary)

    def mark_dead_lettered(self, claim: Claimed, *, reason: str, summary: Mapping[str, Any] | None = None) -> bool:
        """End an exposure that went to the dead letters; False where the claim was not ours any more."""
        return self._end(claim, LedgerState.DEAD_LETTERED, reason, summary)

    def get(self, key: ExposureKey) -> LedgerRow | None:
        """Return the row of an exposure; None where nobody ever claimed it."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(EXPOSURE_LEDGER).where(_is(key))).first()
        return None if row is None else _row(row)

    def rows_stored(self, topic: str, partition: int) -> list[LedgerRow]:
        """Return the rows of a partition that are stored and not settled, by offset."""
        ledger = EXPOSURE_LEDGER.c
        query = (
            sa.select(EXPOSURE_LEDGER)
            .where(
                ledger.state == LedgerState.STORED.value,
                ledger.topic == topic,
                ledger.partition == partition,
            )
            .order_by(ledger.event_offset)
        )
        with self._database.read() as connection:
            return [_row(row) for row in connection.execute(query)]

    def rows_published(
        self,
        *,
        instrument: str | None = None,
        visits: Collection[int] | None = None,
        detectors: Collection[int] | None = None,
    ) -> list[LedgerRow]:
        """Return the rows whose alerts were published and may still be kept, by instrument, visit and detector."""
        ledger = EXPOSURE_LEDGER.c
        query = sa.select(EXPOSURE_LEDGER).where(
            ledger.state == LedgerState.PUBLISHED.value, ledger.outbox_uri.is_not(None)
        )
        if instrument is not None:
            query = query.where(ledger.instrument == instrument)
        if visits:
            query = query.where(ledger.visit.in_(visits))
        if detectors:
            query = query.where(ledger.detector.in_(detectors))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(ledger.instrument, ledger.visit, ledger.detector))
            return [_row(row) for row in rows]

    def count_by_state(self) -> dict[LedgerState, int]:
        """Return how many exposures are in each state; states without any are left out."""
        query = sa.select(EXPOSURE_LEDGER.c.state, sa.func.count()).group_by(EXPOSURE_LEDGER.c.state)
        with self._database.read() as connection:
            return {LedgerState(state): count for state, count in connection.execute(query)}

    def states_of_outboxes(self, uris: Iterable[str]) -> dict[str, LedgerState]:
        """Return the state of the exposure each outbox file belongs to; files that no row names are left out."""
        uris = list(uris)
        ledger = EXPOSURE_LEDGER.c
        states: dict[str, LedgerState] = {}
        with self._database.read() as connection:
            for start in range(0, len(uris), _MAX_PARAMETERS):
                chunk = uris[start : start + _MAX_PARAMETERS]
                rows = connection.execute(
                    sa.select(ledger.outbox_uri, ledger.state).where(ledger.outbox_uri.in_(chunk))
                )
                states.update((uri, LedgerState(state)) for uri, state in rows)
        return states

    def _end(self, claim: Claimed, state: LedgerState, reason: str, summary: Mapping[str, Any] | None) -> bool:
        text = None if summary is None else _encode_summary(summary)
        return self._change(claim, state=state.value, reason=reason, summary=text)

    def _change(self, claim: Claimed, **values: Any) -> bool:
        with self._database.write() as connection:
            changed = connection.execute(_update_of_claim(claim).values(**values, changed_unix_s=self._clock()))
        return changed.rowcount == 1


_MAX_PARAMETERS = 5000
"""Below the 32766 of SQLite and the 65535 of PostgreSQL."""


def _is(key: ExposureKey) -> sa.ColumnElement[bool]:
    ledger = EXPOSURE_LEDGER.c
    return sa.and_(ledger.instrument == key.instrument, ledger.visit == key.visit, ledger.detector == key.detector)


def _update_of_claim(claim: Claimed) -> sa.Update:
    ledger = EXPOSURE_LEDGER.c
    return sa.update(EXPOSURE_LEDGER).where(
        _is(claim.key), ledger.state == LedgerState.CLAIMED.value, ledger.claims == claim.claims
    )


def _encode_summary(summary: Mapping[str, Any]) -> str:
    return json.dumps(summary, sort_keys=True, separators=(",", ":"))


def _row(row: sa.Row[Any]) -> LedgerRow:
    event = None if row.topic is None else EventPosition(row.topic, row.partition, row.event_offset)
    return LedgerRow(
        key=ExposureKey(row.instrument, row.visit, row.detector),
        state=LedgerState(row.state),
        claims=row.claims,
        worker_deaths=row.worker_deaths,
        owner=row.owner,
        lease_until_unix_s=row.lease_until_unix_s,
        event=event,
        program_version=row.program_version,
        config_hash=row.config_hash,
        reason=row.reason,
        summary=None if row.summary is None else json.loads(row.summary),
        n_alerts=row.n_alerts,
        outbox_uri=row.outbox_uri,
        outbox_sha256=row.outbox_sha256,
        first_claimed_unix_s=row.first_claimed_unix_s,
        changed_unix_s=row.changed_unix_s,
    )
