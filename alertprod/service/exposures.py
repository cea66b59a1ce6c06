"""Moves exposures from step to step: begins what is due, takes what came back, settles what is done.

Belongs to the poll thread; what it hands to the desks and the workers comes back through the inbox and the pool.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from alertprod.config import DaemonConfig
from alertprod.errors import AlertprodError, BadInputError, ConfigError, NoWorkFound, ProcessingError, WorkerDied
from alertprod.logs import get_logger
from alertprod.metrics import Metrics
from alertprod.service import steps
from alertprod.service.clock import Clock, unix_from_mjd_tai
from alertprod.service.desk import Desk, Report
from alertprod.service.fates import Fates, log_of
from alertprod.service.lanes import Job, Lanes, LaneState, Step
from alertprod.service.publications import Publication, PublicationMaker
from alertprod.service.recent import Recent
from alertprod.service.work import WorkOrder, WorkResult
from alertprod.service.worker import Died, Finished, StartFailed, WorkerPool, WorkerReport
from alertprod.store.ledger import Busy, Claimed, ClaimOutcome, EventPosition, ExposureKey, LedgerState, Stored
from alertprod.store.ledger import Finished as AlreadyFinished
from alertprod.stream.errors import BrokerFatal, PartitionRevoked
from alertprod.stream.messages import VisitReady
from alertprod.stream.records import Offset, Receipt, Received
from alertprod.stream.schemas import WriterSchemas

_CLAIMS_BEFORE_ALONE: Final = 3
"""An event that was claimed so often without an outcome may be what takes others down: it runs with nothing beside it."""

_TWIN_PAUSE_S: Final = 1.0

_log = get_logger(__name__)


class UnexpectedFailure(Exception):
    """A bug in a worker, as far as its process could tell; the cause carries the traceback's text."""


class Exposures:
    """The jobs on the lanes.

    Parameters
    ----------
    lanes
        Where they are.
    clerk
        The desk of the ledger.
    publisher
        The desk of the producer.
    consumer
        For offsets and membership.
    """

    def __init__(
        self,
        config: DaemonConfig,
        *,
        identity: steps.Identity,
        lanes: Lanes,
        clerk: Desk,
        publisher: Desk,
        consumer: steps.Offsets,
        producer: steps.Producer,
        ledger: steps.LedgerPort,
        workers: WorkerPool,
        metrics: Metrics,
        clock: Clock,
        schemas: WriterSchemas,
        recent: Recent,
    ) -> None:
        self._config, self._identity, self._lanes = config, identity, lanes
        self._clerk, self._publisher = clerk, publisher
        self._consumer, self._producer, self._ledger, self._workers = consumer, producer, ledger, workers
        self._metrics, self._clock, self._schemas, self._recent = metrics, clock, schemas, recent
        self._publications = PublicationMaker(config.topics, identity.versions(), clock)
        self._fates = Fates(
            config, identity=identity, lanes=lanes, publications=self._publications, metrics=metrics, clock=clock
        )
        self._renew_at = 0.0
        self._publishing: Job | None = None  # the publisher's desk sets it

    def reconfigure(self, config: DaemonConfig, identity: steps.Identity) -> None:
        """Go on by another configuration; what is in flight ends as it began."""
        self._config, self._identity = config, identity
        self._fates.reconfigure(config, identity)
        self._publications.reconfigure(identity.versions())

    def begin(self, state: LaneState, received: Received) -> None:
        """Put an event on a free lane."""
        self._lanes.begin(
            state,
            step=Step.RECEIVE,
            received=received,
            received_unix_s=self._clock.unix_s(),
            now=self._clock.monotonic_s(),
        )

    def begin_stored(self, state: LaneState) -> None:
        """Put the next row that is stored and not published on a free lane."""
        row = state.to_publish.popleft()
        assert row.event is not None
        job = self._lanes.begin(
            state,
            step=Step.PUBLISH,
            received=None,
            received_unix_s=row.first_claimed_unix_s,  # so that an unreadable file does not block the lane anew
            now=self._clock.monotonic_s(),
        )
        job.key = row.key
        log_of(job).info("found stored and not published: publishing the same bytes")
        offset = Offset(row.event.topic, row.event.partition, row.event.offset + 1)
        try:
            job.publication = self._publications.recovered(row, offset=offset)
        except AlertprodError as error:
            self._judge(job, error)

    def advance(self) -> None:
        """Take what workers sent, begin what is due, renew leases."""
        for report in self._workers.poll():
            self._on_worker(report)
        now = self._clock.monotonic_s()
        for job in self._lanes.jobs:
            if not job.running and job.not_before <= now:
                self._begin_step(job)
        if now >= self._renew_at:
            self._renew_at = now + self._config.limits.lease_s / 3
            self._renew_leases()

    def drop(self, job: Job, why: str) -> None:
        """Leave a job to whoever gets its event next.

        Notes
        -----
        That may be this daemon, with the same lane assigned anew and the offset not moved yet. So what waits at the
        publisher's desk is not begun any more, and what is under way there is given up: it names a membership that is
        over, which the brokers refuse, though not always at once.
        """
        log_of(job).info("dropped", why=why, stage=job.stage)
        job.is_dropped = True
        if self._publishing is job:
            self._producer.interrupt()
        self._lanes.end(job)
        if job.step is Step.WORK and job.running:
            self._workers.kill(job.ticket)
        if job.claim is not None and not (job.step is Step.PUBLISH and job.running):
            self._release(job.claim)

    # What is due.

    def _begin_step(self, job: Job) -> None:
        """Begin a job's step if nothing keeps it waiting."""
        take_report = partial(self._on_step, job)
        match job.step:
            case Step.RECEIVE:
                assert job.received is not None
                instruments = self._config.instruments.keys()
                receive = partial(
                    steps.receive,
                    job.received,
                    schemas=self._schemas,
                    instruments=instruments,
                    allowed_roots=self._config.store.allowed_roots,
                )
                self._clerk.submit(take_report, receive)
            case Step.CLAIM:
                if not self._has_room_to_claim(job):
                    return
                self._clerk.submit(take_report, self._claiming(job))
            case Step.WORK:
                if not self._has_room_to_work(job):
                    return
                self._workers.submit(job.ticket, self._order(job))
            case Step.COUNT_DEATH:
                assert job.claim is not None
                self._clerk.submit(take_report, partial(self._ledger.count_worker_death, job.claim))
            case Step.PUBLISH:
                assert job.publication is not None
                self._publisher.submit(take_report, partial(self._publish, job, job.publication))
        job.running = True

    def _publish(self, job: Job, publication: Publication) -> Receipt:
        """Publish; at the publisher's desk."""
        self._publishing = job
        try:
            if job.is_dropped:
                raise PartitionRevoked(*job.lane)
            return steps.publish(self._producer, self._consumer, publication)
        finally:
            self._publishing = None

    def _claiming(self, job: Job) -> Callable[[], ClaimOutcome]:
        assert job.event is not None
        assert job.received is not None
        return partial(
            steps.claim,
            self._ledger,
            self._consumer,
            job.event,
            job.received,
            identity=self._identity,
            lease_s=self._config.limits.lease_s,
            reopen=job.is_reopening or job.event.replay,
        )

    def _order(self, job: Job) -> WorkOrder:
        assert job.event is not None
        assert job.received is not None
        assert job.claim is not None
        return WorkOrder(
            event=job.event,
            position=EventPosition(job.received.topic, job.received.partition, job.received.offset),
            claim=job.claim,
            received_unix_s=job.received_unix_s,
            deadline_s=self._config.workers.deadline_s,
        )

    def _has_room_to_claim(self, job: Job) -> bool:
        """Claim only what a worker is free for: a claim says that work begins."""
        now = self._clock.monotonic_s()
        if self._lanes.has_twin(job):
            job.not_before = now + _TWIN_PAUSE_S
            return False
        promised = sum(
            other.step is (Step.CLAIM if other.running else Step.WORK) and other.not_before <= now
            for other in self._lanes.jobs
        )
        return self._workers.n_idle > promised and not self._is_somebody_alone(now)

    def _has_room_to_work(self, job: Job) -> bool:
        if self._workers.n_idle == 0:
            return False
        if job.alone:
            return self._workers.n_busy == 0
        return not self._is_somebody_alone(self._clock.monotonic_s())

    def _is_somebody_alone(self, now: float) -> bool:
        return any(
            job.alone and job.step is Step.WORK and (job.running or job.not_before <= now) for job in self._lanes.jobs
        )

    # What came back from the desks.

    def _on_step(self, job: Job, report: Report) -> None:
        if self._lanes.job(job.ticket) is not job:
            self._on_dropped_step(job, report)
            return
        job.running = False
        if report.error is not None:
            self._judge(job, report.error, report.traceback)
            return
        try:
            match job.step:
                case Step.RECEIVE:
                    event = job.event = report.value
                    job.key = ExposureKey(event.instrument, event.visit, event.detector)
                    job.begin_at(Step.CLAIM)
                case Step.CLAIM:
                    self._metrics.observe_stages({"claim": report.seconds})
                    self._on_claim(job, report.value)
                case Step.COUNT_DEATH:
                    self._on_death_counted(job, report.value)
                case Step.PUBLISH:
                    self._on_published(job, report.value, report.seconds)
        except AlertprodError as error:  # a stored row that names no file, for one
            self._judge(job, error)

    def _on_claim(self, job: Job, outcome: ClaimOutcome) -> None:
        assert job.event is not None
        assert job.received is not None
        event, offset = job.event, job.received.next_offset
        match outcome:
            case Claimed():
                self._on_claimed(job, event, outcome, offset)
            case Busy(owner) if job.is_reopening:
                self._refuse_replay(job, event, f"{owner} is at work on it")
            case Busy(owner, until_unix_s):
                wait_s = min(max(until_unix_s - self._clock.unix_s(), 0.2), self._config.limits.lease_s)
                job.not_before = self._clock.monotonic_s() + wait_s
                job.problem = f"{owner} is at work on it"
                log_of(job).info("somebody else's; waiting", owner=owner, wait_s=round(wait_s, 1))
            case Stored(row):
                log_of(job).info("stored already: publishing the same bytes")
                job.publication = self._publications.recovered(row, offset=offset)
                job.begin_at(Step.PUBLISH)
            case AlreadyFinished(LedgerState.PUBLISHED, row) if event.replay:
                job.publication = self._publications.replayed(event, row, offset=offset)
                job.begin_at(Step.PUBLISH)
            case AlreadyFinished(state) if job.is_reopening:
                self._refuse_replay(job, event, f"it is {state}")
            case AlreadyFinished():
                job.publication = self._publications.duplicate(event, offset=offset)
                job.begin_at(Step.PUBLISH)

    def _refuse_replay(self, job: Job, event: VisitReady, why: str) -> None:
        """Pass over the replay of a dead letter whose exposure needs none."""
        assert job.received is not None
        log_of(job).warning("replay of a dead letter refused", why=why)
        job.publication = self._publications.duplicate(event, offset=job.received.next_offset)
        job.begin_at(Step.PUBLISH)

    def _on_claimed(self, job: Job, event: VisitReady, claim: Claimed, offset: Offset) -> None:
        job.claim = claim
        if claim.claims == 1:
            self._metrics.count_expected(event.instrument, event.visit)
        if not job.claimed_here:
            job.claimed_here = True
            job.alone = claim.claims > _CLAIMS_BEFORE_ALONE
            if not (event.replay or job.is_reopening):
                age_s = job.received_unix_s - unix_from_mjd_tai(event.shutter_close_mjd_tai)
                self._metrics.observe_event(
                    event.instrument, waited_s=self._clock.monotonic_s() - job.since, age_s=age_s
                )
        log_of(job).info("claimed", claims=claim.claims, worker_deaths=claim.worker_deaths)
        if job.condemned_by is not None:
            job.begin_at(Step.WORK)  # where it failed: the stage of the dead letter
            self._judge(job, job.condemned_by, job.condemned_text)
        elif self._fates.is_expired(job):
            job.publication = self._publications.without_alerts(
                "expired", event, offset=offset, reason="max_event_age", claim=claim
            )
            job.begin_at(Step.PUBLISH)
        elif claim.worker_deaths >= self._config.workers.max_deaths:
            job.begin_at(Step.WORK)
            self._judge(job, WorkerDied("not known", claim.worker_deaths))
        else:
            job.step = Step.WORK  # failures in a row go on counting

    def _on_death_counted(self, job: Job, deaths: int) -> None:
        assert isinstance(job.condemned_by, WorkerDied)
        cause = job.condemned_by.cause
        if deaths >= self._config.workers.max_deaths:
            job.condemned_by = WorkerDied(cause, deaths)
            self._claim_anew(job)
        elif self._fates.retry(job, "worker_died", f"{cause}; {deaths} deaths so far"):
            job.condemned_by = None
            self._claim_anew(job)
        else:
            self.drop(job, "stopping")

    def _claim_anew(self, job: Job) -> None:
        """Claim again before an event is tried again or given up that a worker had.

        Notes
        -----
        The worker may have stored it before it died or lost touch with the database; the ledger alone knows, and to a
        claim it says so. A second worker under the same claim would write over the outbox file of what is stored.
        """
        if job.claim is not None:
            self._release(job.claim)
        job.claim, job.step = None, Step.CLAIM

    def _on_published(self, job: Job, receipt: Receipt, seconds: float) -> None:
        publication = job.publication
        assert publication is not None
        acked_unix_s = receipt.acked_at[-1] if receipt.acked_at else self._clock.unix_s()
        self._metrics.observe_stages({"publish": seconds})
        latency_s = self._observe_publication(job, publication, receipt, acked_unix_s)
        self._recent.add(publication, latency_s=latency_s, at_unix_s=acked_unix_s)
        log_of(job).info(
            publication.kind, n_alerts=publication.n_alerts, latency_s=latency_s, reason=publication.reason or None
        )
        state = self._lanes.get(job.lane)
        if state is not None and publication.offset is not None:
            state.next_offset = max(state.next_offset, publication.offset.offset)
        self._clerk.submit(self._on_settled, partial(steps.settle, self._ledger, publication))
        self._lanes.end(job)

    def _observe_publication(
        self, job: Job, publication: Publication, receipt: Receipt, acked_unix_s: float
    ) -> float | None:
        """Count what was published; return its latency in seconds where it has alerts to be late with."""
        if publication.kind == "dead_lettered":
            self._metrics.count_dead_letter(publication.reason)
        if publication.key is None:
            return None
        instrument = publication.key.instrument
        self._metrics.count_exposure(instrument, publication.kind)
        if publication.kind == "replayed":
            self._metrics.count_replayed_alerts(instrument, publication.n_alerts)
        if publication.kind != "published" or publication.shutter_close_unix_s is None:
            return None
        self._metrics.observe_published(
            instrument,
            publication.band,
            shutter_close_unix_s=publication.shutter_close_unix_s,
            now_unix_s=acked_unix_s,
            ack_unix_s=receipt.acked_at[: publication.n_alerts],
            exposure={"visit": str(publication.key.visit), "detector": str(publication.key.detector)},
            is_replay=job.is_reopening or (job.event is not None and job.event.replay),
        )
        return round(acked_unix_s - publication.shutter_close_unix_s, 3)

    def _on_settled(self, report: Report) -> None:
        if report.error is None:
            self._metrics.observe_stages({"settle": report.seconds})
        else:
            _log.warning("not settled; the committed offset will prove it later", problem=str(report.error))

    def _on_dropped_step(self, job: Job, report: Report) -> None:
        """Take the report of a job that was dropped while its step was under way."""
        if isinstance(report.error, BrokerFatal):
            raise report.error
        if report.error is not None:
            return
        if isinstance(report.value, Claimed):
            self._release(report.value)
        elif job.step is Step.PUBLISH:
            self._on_published(job, report.value, report.seconds)

    # What came back from the workers.

    def _on_worker(self, report: WorkerReport) -> None:
        match report:
            case StartFailed(error, text):
                if isinstance(error, ConfigError):
                    raise error
                _log.error("a worker could not start", traceback=text)
            case Died(ticket, cause):
                self._metrics.count_worker_death(cause)
                job = None if ticket is None else self._lanes.job(ticket)
                if job is not None:
                    job.condemned_by = WorkerDied(cause, 0)
                    job.step, job.running = Step.COUNT_DEATH, False  # failures in a row go on counting
            case Finished(ticket, result, seconds):
                job = self._lanes.job(ticket)
                if job is not None:
                    job.running = False
                    self._on_worked(job, result, seconds)

    def _on_worked(self, job: Job, result: WorkResult, seconds: float) -> None:
        assert job.event is not None
        assert job.received is not None
        job.result = result
        self._metrics.observe_stages({**result.stage_seconds, "compute": seconds})
        self._metrics.observe_figures(job.event.instrument, job.event.band, result.figures)
        cache = result.cache
        self._metrics.count_cache(
            hits=cache.hits, misses=cache.misses, evictions=cache.evictions, size_bytes=cache.size_bytes
        )
        match result.outcome:
            case "stored":
                self._metrics.count_sources(job.event.instrument, result.counts)
                log_of(job).info("stored", seconds=round(seconds, 3), **result.counts)
                job.publication = self._publications.stored(job.event, result, offset=job.received.next_offset)
                job.begin_at(Step.PUBLISH)
            case "claim_lost":
                log_of(job).warning("the claim was lost, its work discarded")
                self._metrics.count_retry("claim_lost")
                job.claim = None
                job.begin_at(Step.CLAIM)
            case "failed" if result.error is not None:
                self._judge(job, result.error)
            case "failed":
                text = result.traceback or "no traceback"
                bug = UnexpectedFailure(text.strip().splitlines()[-1])
                bug.__cause__ = Exception("\n" + text)
                self._judge(job, bug, text)

    # Claims.

    def _judge(self, job: Job, error: Exception, traceback_text: str = "") -> None:
        by_worker = job.step is Step.WORK and job.condemned_by is None
        stored_nothing = isinstance(error, BadInputError | ProcessingError | NoWorkFound)  # they come before storing
        if by_worker and not stored_nothing and not self._fates.may_retry(job, error):
            job.condemned_by, job.condemned_text = error, traceback_text
            self._claim_anew(job)
        elif not self._fates.judge(job, error, traceback_text):
            self.drop(job, str(error))
        elif job.step is Step.WORK:
            self._claim_anew(job)

    def _release(self, claim: Claimed) -> None:
        self._clerk.submit(_ignore, partial(self._ledger.release_claim, claim))

    def _renew_leases(self) -> None:
        lease_s = self._config.limits.lease_s
        claims = [job.claim for job in self._lanes.jobs if job.claim is not None]

        def renew() -> None:
            for claim in claims:
                self._ledger.renew(claim, lease_s=lease_s)

        if claims:
            self._clerk.submit(self._on_renewed, renew)

    def _on_renewed(self, report: Report) -> None:
        if report.error is not None:
            _log.warning("leases not renewed", problem=str(report.error))


def _ignore(_report: Report) -> None:
    """Take the report of something that need not succeed: a lease that is not released runs out."""
