"""The daemon: one poll loop that moves exposures from step to step and never waits for any of them.

Each assigned partition is a lane with one exposure in flight. What may block is done at desks (threads: the clerk's
for the ledger, the publisher's with the one producer, the chores') and in worker processes; the loop takes their
reports, decides, and hands out the next step. All state belongs to the loop's thread.
"""

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any, Final, Protocol

from alertprod.config import DaemonConfig
from alertprod.errors import (
    AlertprodError,
    BrokerUnavailable,
    ConfigError,
    ImageNotYetAvailable,
    NoWorkFound,
    PartialWriteError,
    TransientError,
    WorkerDied,
)
from alertprod.logs import get_logger
from alertprod.metrics import Metrics
from alertprod.service import steps
from alertprod.service.chores import Chores, Prefetch
from alertprod.service.clock import Clock, unix_from_mjd_tai
from alertprod.service.desk import Desk, Inbox, Report
from alertprod.service.health import Health
from alertprod.service.lanes import Job, Lanes, LaneState, Step
from alertprod.service.publications import PublicationMaker
from alertprod.service.work import WorkOrder
from alertprod.service.worker import Died, Finished, StartFailed, WorkerPool
from alertprod.store.ledger import Busy, Claimed, EventPosition, ExposureKey, LedgerState, Stored
from alertprod.store.ledger import Finished as AlreadyFinished
from alertprod.stream.consumer import EventConsumer, LanesCallback
from alertprod.stream.dead_letter import make_dead_letter
from alertprod.stream.errors import BrokerFatal, PartitionRevoked
from alertprod.stream.records import Lane, Receipt, Received
from alertprod.stream.schemas import FixedSchemas, WriterSchemas

EXIT_OK: Final = 0
EXIT_CONFIG: Final = 2
EXIT_FATAL: Final = 70
"""EX_SOFTWARE of sysexits.h: restart me."""

REOPEN_HEADER: Final = "alertprod-reopen"
"""On an event that is the replay of a dead letter: an end without stored bytes is claimed again."""

_BUSY_POLL_S: Final = 0.02
"""While something is in flight: what a report waits at most before it is acted on."""

_IDLE_POLL_S: Final = 0.5
"""With nothing in flight only the broker can bring news, and it ends the poll; this is for signals."""

_CLAIMS_BEFORE_ALONE: Final = 3
"""An event that was claimed so often without an outcome may be what takes others down: it runs with nothing beside it."""

_ALIVE_EVERY_S: Final = 60.0
"""Between nights a line a minute tells an idle daemon from a wedged one."""

_CLOSE_S: Final = 5.0


class Connect(Protocol):
    """Makes the consumer; called once, when the daemon is ready for the callbacks."""

    def __call__(self, *, on_assign: LanesCallback, on_revoke: LanesCallback, on_lost: LanesCallback) -> EventConsumer:
        """Subscribe; newly assigned lanes are held (``hold_on_assign``)."""
        ...


class UnexpectedFailure(Exception):
    """A bug in a worker, as far as its process could tell; the cause carries the traceback's text."""


class AlertDaemon:
    """Hears of exposures, has them computed, publishes their alerts.

    Parameters
    ----------
    config
        The configuration.
    identity
        Who this daemon is.
    connect
        Makes the consumer.
    producer
        The one producer; only the publishing thread touches it.
    ledger
        The ledger; only desks touch it.
    workers
        The pool; not started yet.
    metrics, health, clock
        Where it reports, and its time.
    schemas
        Writers' schemas of Avro events.
    prefetch, clean_outbox
        See `Chores`.

    Notes
    -----
    Steps of an exposure, each of which may be repeated after a crash without harm: receive, claim (ledger row before
    any work), compute and store (a worker; from here on the bytes are fixed), publish (alerts, summary and offset in
    one transaction), settle.
    """

    def __init__(
        self,
        config: DaemonConfig,
        *,
        identity: steps.Identity,
        connect: Connect,
        producer: steps.Producer,
        ledger: steps.LedgerPort,
        workers: WorkerPool,
        metrics: Metrics,
        health: Health | None = None,
        clock: Clock | None = None,
        schemas: WriterSchemas | None = None,
        prefetch: Prefetch | None = None,
        clean_outbox: Callable[[], object] | None = None,
    ) -> None:
        self._config, self._identity, self._connect = config, identity, connect
        self._producer, self._ledger, self._workers, self._metrics = producer, ledger, workers, metrics
        self._clock = clock or Clock()
        self._health = health or Health(clock=self._clock.monotonic_s)
        self._schemas = schemas or FixedSchemas()
        self._prefetch, self._clean_outbox = prefetch, clean_outbox
        self._publications = PublicationMaker(config.topics, identity.versions(), self._clock)
        self._lanes = Lanes()
        self._inbox = Inbox()
        self._stop_requested = False
        self._is_draining = False
        self._producer_started = False
        self._start_failures = 0
        self._renew_at = self._alive_at = 0.0
        self._log = get_logger(__name__)

    def stop(self) -> None:
        """Take nothing new, finish what is in flight, and let `run` return; safe in a signal handler."""
        self._stop_requested = True

    def install_signal_handlers(self) -> None:
        """Let SIGTERM and SIGINT stop the daemon; they only set a flag."""

        def request_stop(_number: int, _frame: FrameType | None) -> None:
            self.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, request_stop)

    def run(self) -> int:
        """Work until stopped; return the process's exit status.

        Returns
        -------
        int
            0 when stopped and drained; `EXIT_FATAL` when a Kafka client is finished (fenced, for example) and a
            restart will help; `EXIT_CONFIG` when a worker cannot start with this configuration.
        """
        self._clerk = Desk("clerk", self._inbox)
        self._publisher = Desk("publisher", self._inbox)
        status = EXIT_OK
        try:
            self._start()
            while not self._stop_requested:
                self._turn(_BUSY_POLL_S if self._is_busy() else _IDLE_POLL_S)
            self._drain()
        except BrokerFatal as error:
            self._log.critical("a Kafka client is finished; exiting to be restarted", error=str(error))
            status = EXIT_FATAL
        except ConfigError as error:
            self._log.critical("workers cannot start with this configuration", error=str(error))
            status = EXIT_CONFIG
        finally:
            self._close()
        self._log.info("stopped", status=status)
        return status

    # The loop.

    def _start(self) -> None:
        config = self._config
        self._metrics.set_build_info(
            version=self._identity.version,
            schema=self._identity.schema,
            config_hash=self._identity.config_hash,
            delivery=config.kafka.delivery,
        )
        self._log.info(
            "starting", **self._identity.versions(), owner=self._identity.owner, delivery=config.kafka.delivery
        )
        if not self._producer.transactional:
            self._log.warning(
                "at-least-once: alerts may be published twice after a crash; exactly-once needs a broker with transactions"
            )
        self._workers.poll()
        self._start_producer()
        self._consumer = self._connect(on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)
        self._chores = Chores(
            self._inbox,
            consumer=self._consumer,
            ledger=self._ledger,
            metrics=self._metrics,
            health=self._health,
            clock=self._clock,
            schemas=self._schemas,
            visit_ready_topic=config.topics.visit_ready,
            prefetch=self._prefetch,
            clean_outbox=self._clean_outbox,
        )

    def _turn(self, poll_s: float) -> None:
        self._health.beat()
        self._poll_events(poll_s)
        self._advance()
        self._chores.turn()

    def _poll_events(self, poll_s: float) -> None:
        try:
            received = self._consumer.poll(poll_s)
            while received is not None:  # ends: each event pauses its lane
                self._take(received)
                received = self._consumer.poll(0.0)
        except BrokerUnavailable as error:
            self._metrics.count_retry(error.reason())
            self._log.warning("poll failed", error=str(error))

    def _take(self, received: Received) -> None:
        if received.topic != self._config.topics.visit_ready:
            self._chores.announce(received)
            return
        state = self._lanes.get(received.lane)
        if state is None:
            return
        state.is_open = False
        if received.offset >= state.next_offset:  # otherwise done with already, by recovery
            state.backlog.append(received)

    def _advance(self) -> None:
        """Everything but polling: take reports, begin what is due."""
        while not self._inbox.empty():
            report = self._inbox.get()
            report.subject(report)
        for worker_report in self._workers.poll():
            self._on_worker(worker_report)
        for state in self._lanes:
            self._advance_lane(state)
        now = self._clock.monotonic_s()
        for job in self._lanes.jobs:
            if not job.running and job.not_before <= now:
                self._begin(job)
        if now >= self._renew_at:
            self._renew_at = now + self._config.limits.lease_s / 3
            self._renew_leases()
        self._report_state(now)

    def _advance_lane(self, state: LaneState) -> None:
        now = self._clock.monotonic_s()
        if state.recovering:
            if self._producer_started and not state.recover_running and now >= state.recover_at:
                state.recover_running = True
                task = partial(steps.recover, self._ledger, self._consumer, state.lane)
                self._clerk.submit(partial(self._on_recovered, state), task)
            return
        if state.job is not None or state.is_closing or self._is_draining:
            return
        if state.to_publish:
            self._begin_recovered(state)
        elif state.backlog:
            received = state.backlog.popleft()
            self._lanes.begin(
                state, step=Step.RECEIVE, received=received, received_unix_s=self._clock.unix_s(), now=now
            )
        elif not state.is_open:
            state.is_open = True
            self._consumer.resume(state.lane)

    def _begin(self, job: Job) -> None:
        """Begin a job's step if nothing keeps it waiting."""
        match job.step:
            case Step.RECEIVE:
                assert job.received is not None
                task: Callable[[], Any] = partial(
                    steps.receive, job.received, schemas=self._schemas, instruments=self._config.instruments.keys()
                )
                self._clerk.submit(partial(self._on_step, job), task)
            case Step.CLAIM:
                if not self._has_room_to_claim(job):
                    return
                assert job.event is not None
                assert job.received is not None
                task = partial(
                    steps.claim,
                    self._ledger,
                    self._consumer,
                    job.event,
                    job.received,
                    identity=self._identity,
                    lease_s=self._config.limits.lease_s,
                    reopen=_is_reopening(job),
                )
                self._clerk.submit(partial(self._on_step, job), task)
            case Step.WORK:
                if not self._has_room_to_work(job):
                    return
                self._workers.submit(job.ticket, self._order(job))
            case Step.COUNT_DEATH:
                assert job.claim is not None
                self._clerk.submit(partial(self._on_step, job), partial(self._ledger.count_worker_death, job.claim))
            case Step.PUBLISH:
                assert job.publication is not None
                task = partial(steps.publish, self._producer, self._consumer, job.publication)
                self._publisher.submit(partial(self._on_step, job), task)
        job.running = True

    def _has_room_to_claim(self, job: Job) -> bool:
        """Claim only what a worker is free for: a claim says that work begins."""
        if self._lanes.has_twin(job):
            job.not_before = self._clock.monotonic_s() + 1.0
            return False
        due = self._clock.monotonic_s()
        promised = sum(
            (other.step is Step.CLAIM and other.running)
            or (other.step is Step.WORK and not other.running and other.not_before <= due)
            for other in self._lanes.jobs
        )
        return self._workers.n_idle > promised and not self._somebody_is_alone()

    def _has_room_to_work(self, job: Job) -> bool:
        if job.alone:
            return self._workers.n_busy == 0 and self._workers.n_idle > 0
        return self._workers.n_idle > 0 and not self._somebody_is_alone()

    def _somebody_is_alone(self) -> bool:
        now = self._clock.monotonic_s()
        return any(
            job.alone and job.step is Step.WORK and (job.running or job.not_before <= now) for job in self._lanes.jobs
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

    # What came of a step.

    def _on_step(self, job: Job, report: Report) -> None:
        if self._lanes.job(job.ticket) is not job:
            self._on_dropped_step(job, report)
            return
        job.running = False
        if report.error is not None:
            self._judge(job, report.error, report.traceback)
            return
        if job.step is not Step.COUNT_DEATH:
            job.failures = 0
        try:
            match job.step:
                case Step.RECEIVE:
                    job.event = report.value
                    job.key = ExposureKey(job.event.instrument, job.event.visit, job.event.detector)
                    job.step = Step.CLAIM
                case Step.CLAIM:
                    self._metrics.observe_stages({"claim": report.seconds})
                    self._on_claim(job, report.value)
                case Step.COUNT_DEATH:
                    self._on_death_counted(job, report.value)
                case Step.PUBLISH:
                    self._on_published(job, report.value, report.seconds)
        except AlertprodError as error:  # a stored row that cannot be published, for one
            self._judge(job, error, "")

    def _on_claim(self, job: Job, outcome: Claimed | Busy | Stored | AlreadyFinished) -> None:
        assert job.event is not None
        assert job.received is not None
        event, offset = job.event, job.received.next_offset
        match outcome:
            case Claimed():
                job.claim = outcome
                if outcome.claims == 1:
                    self._metrics.count_expected(event.instrument)
                self._metrics.observe_event_wait(event.instrument, self._clock.monotonic_s() - job.since)
                self._log_of(job).info("claimed", claims=outcome.claims, worker_deaths=outcome.worker_deaths)
                if self._is_expired(job):
                    job.publication = self._publications.without_alerts(
                        "expired", event, offset=offset, reason="max_event_age", claim=outcome
                    )
                    job.step = Step.PUBLISH
                elif outcome.worker_deaths >= self._config.workers.max_deaths:
                    self._judge(job, WorkerDied("unknown", outcome.worker_deaths), "")
                else:
                    job.alone = outcome.claims > _CLAIMS_BEFORE_ALONE
                    job.step = Step.WORK
            case Busy(owner, until_unix_s):
                wait_s = min(max(until_unix_s - self._clock.unix_s(), 0.2), self._config.limits.lease_s)
                job.not_before = self._clock.monotonic_s() + wait_s
                self._log_of(job).info("somebody else's; waiting", owner=owner, wait_s=round(wait_s, 1))
            case Stored(row):
                self._log_of(job).info("stored already: publishing the same bytes")
                job.publication = self._publications.recovered(row, offset=offset)
                job.step = Step.PUBLISH
            case AlreadyFinished(state, row):
                if event.replay and state is LedgerState.PUBLISHED:
                    job.publication = self._publications.replayed(event, row, offset=offset)
                else:
                    job.publication = self._publications.duplicate(event, offset=offset)
                job.step = Step.PUBLISH

    def _on_worker(self, report: Finished | Died | StartFailed) -> None:
        match report:
            case StartFailed(error, text):
                if isinstance(error, ConfigError):
                    raise error
                self._log.error("a worker could not start", traceback=text)
            case Died(ticket, cause, _):
                self._metrics.count_worker_death(cause)
                job = None if ticket is None else self._lanes.job(ticket)
                if job is not None:
                    job.running, job.step, job.death_cause = False, Step.COUNT_DEATH, cause
            case Finished(ticket, _, _):
                job = self._lanes.job(ticket)
                if job is not None:
                    job.running = False
                    self._on_worked(job, report)

    def _on_worked(self, job: Job, report: Finished) -> None:
        assert job.event is not None
        assert job.received is not None
        job.result = result = report.result
        self._metrics.observe_stages({**result.stage_seconds, "compute": report.seconds})
        self._metrics.observe_figures(job.event.instrument, job.event.band, result.figures)
        cache = result.cache
        self._metrics.count_cache(
            hits=cache.hits, misses=cache.misses, evictions=cache.evictions, size_bytes=cache.size_bytes
        )
        match result.outcome:
            case "stored":
                job.failures = 0
                job.publication = self._publications.stored(job.event, result, offset=job.received.next_offset)
                job.step = Step.PUBLISH
            case "claim_lost":
                self._log_of(job).warning("the claim was lost, its work discarded")
                self._metrics.count_retry("claim_lost")
                job.claim, job.step = None, Step.CLAIM
            case "failed" if result.error is not None:
                self._judge(job, result.error, "")
            case "failed":
                text = result.traceback or "no traceback"
                bug = UnexpectedFailure(text.strip().splitlines()[-1])
                bug.__cause__ = Exception("\n" + text)
                self._judge(job, bug, text)

    def _on_death_counted(self, job: Job, deaths: int) -> None:
        assert job.claim is not None
        job.claim = replace(job.claim, worker_deaths=deaths)
        job.step = Step.WORK
        if deaths >= self._config.workers.max_deaths:
            self._judge(job, WorkerDied(job.death_cause, deaths), "")
        else:
            self._retry(job, "worker_died", f"worker died: {job.death_cause}, {deaths} so far")

    def _on_published(self, job: Job, receipt: Receipt, seconds: float) -> None:
        publication = job.publication
        assert publication is not None
        now = receipt.acked_at[-1] if receipt.acked_at else self._clock.unix_s()
        self._metrics.observe_stages({"publish": seconds})
        if publication.key is not None:
            self._metrics.count_exposure(publication.key.instrument, publication.kind)
        if publication.kind == "dead_lettered":
            self._metrics.count_dead_letter(publication.reason)
        if publication.kind == "replayed" and publication.key is not None:
            self._metrics.count_replayed_alerts(publication.key.instrument, publication.n_alerts)
        latency_s = None
        if publication.kind == "published" and publication.key is not None and publication.shutter_close_unix_s:
            latency_s = round(now - publication.shutter_close_unix_s, 3)
            self._metrics.observe_published(
                publication.key.instrument,
                publication.band,
                shutter_close_unix_s=publication.shutter_close_unix_s,
                now_unix_s=now,
                ack_unix_s=receipt.acked_at[: publication.n_alerts],
            )
        self._log_of(job).info(
            publication.kind, n_alerts=publication.n_alerts, latency_s=latency_s, reason=publication.reason or None
        )
        state = self._lanes.get(job.lane)
        if state is not None and publication.offset is not None:
            state.next_offset = max(state.next_offset, publication.offset.offset)
        self._clerk.submit(self._on_settled, partial(steps.settle, self._ledger, publication))
        self._lanes.end(job)

    def _on_settled(self, report: Report) -> None:
        if report.error is None:
            self._metrics.observe_stages({"settle": report.seconds})
        else:
            self._log.warning("not settled; the committed offset will prove it later", error=str(report.error))

    # Fates.

    def _judge(self, job: Job, error: Exception, traceback_text: str) -> None:
        """Act on an error by its place in the tree."""
        match error:
            case BrokerFatal():
                raise error
            case PartitionRevoked():
                self._drop(job, "its partition was revoked")
            case BrokerUnavailable():
                self._retry(job, error.reason(), str(error))
            case TransientError() | PartialWriteError() if not self._is_too_late_to_retry(job, error):
                self._retry(job, error.reason(), str(error))
            case NoWorkFound():
                self._skip(job, error)
            case AlertprodError():
                self._log_of(job).warning("given up", reason=error.reason(), error=str(error), stage=job.step)
                self._give_up(job, error)
            case _:
                self._log_of(job).error("unexpected", error=repr(error), traceback=traceback_text, stage=job.step)
                self._give_up(job, error)

    def _retry(self, job: Job, reason: str, problem: str) -> None:
        if self._is_draining:
            self._drop(job, "stopping")
            return
        limits = self._config.limits
        job.failures += 1
        job.attempts += 1
        pause_s = min(limits.retry_max_s, limits.retry_first_s * 2.0 ** min(job.failures - 1, 30))
        pause_s *= random.uniform(0.5, 1.5)  # daemons that failed together must not come back together
        job.not_before = self._clock.monotonic_s() + pause_s
        self._metrics.count_retry(reason)
        self._log_of(job).warning(
            "trying again",
            reason=reason,
            problem=problem,
            stage=job.step,
            attempt=job.attempts,
            pause_s=round(pause_s, 2),
        )

    def _skip(self, job: Job, error: NoWorkFound) -> None:
        assert job.received is not None
        self._log_of(job).info("nothing to do", reason=error.reason(), problem=str(error))
        job.publication = self._publications.without_alerts(
            "skipped",
            job.event,
            offset=job.received.next_offset,
            reason=error.reason(),
            claim=job.claim,
            result=job.result,
        )
        job.step, job.failures = Step.PUBLISH, 0

    def _give_up(self, job: Job, error: Exception) -> None:
        """Send the event to the dead letters, with the summary and the offset."""
        if job.received is None:  # a stored row found on assignment: its event will come, and be judged then
            self._lanes.end(job)
            return
        if job.publication is not None and job.publication.kind == "dead_lettered":
            self._retry(job, "other", f"the dead letter itself is refused: {error}")
            return
        reason = error.reason() if isinstance(error, AlertprodError) else "unexpected"
        event = job.event
        letter = make_dead_letter(
            job.received,
            error,
            topic=self._config.topics.dead_letters,
            stage="compute" if job.step is Step.WORK else job.step.value,
            attempts=job.attempts,
            version=self._identity.version,
            config_hash=self._identity.config_hash,
            worker_deaths=job.claim.worker_deaths if job.claim else 0,
            exposure=None if event is None else (event.instrument, event.visit, event.detector),
            clock=self._clock.unix_s,
        )
        job.publication = self._publications.without_alerts(
            "dead_lettered",
            event,
            offset=job.received.next_offset,
            reason=reason,
            claim=job.claim,
            dead_letter=letter,
            result=job.result,
        )
        job.step, job.failures, job.not_before = Step.PUBLISH, 0, 0.0

    def _drop(self, job: Job, why: str) -> None:
        """Leave a job to whoever gets its event next."""
        self._log_of(job).info("dropped", why=why, stage=job.step)
        self._lanes.end(job)
        if job.step is Step.WORK and job.running:
            self._workers.kill(job.ticket)
        if job.claim is not None and not (job.step is Step.PUBLISH and job.running):
            self._release(job.claim)

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

    def _release(self, claim: Claimed) -> None:
        self._clerk.submit(_ignore, partial(self._ledger.release_claim, claim))

    def _is_expired(self, job: Job) -> bool:
        assert job.event is not None
        if job.event.replay or _is_reopening(job):
            return False
        age_s = self._clock.unix_s() - unix_from_mjd_tai(job.event.shutter_close_mjd_tai)
        return age_s > self._config.limits.max_event_age_s

    def _is_too_late_to_retry(self, job: Job, error: Exception) -> bool:
        now, limits = self._clock.unix_s(), self._config.limits
        if isinstance(error, ImageNotYetAvailable) and now - job.received_unix_s > limits.image_wait_s:
            return True
        born = job.received_unix_s
        if job.event is not None and not job.event.replay and not _is_reopening(job):
            born = unix_from_mjd_tai(job.event.shutter_close_mjd_tai)
        return now - born > limits.max_event_age_s

    # Assignment.

    def _on_assign(self, lanes: frozenset[Lane]) -> None:
        self._log.info("assigned", partitions=sorted(lane.partition for lane in lanes))
        for lane in lanes:
            if lane.topic == self._config.topics.visit_ready:
                self._lanes.add(lane)
            else:
                self._consumer.resume(lane)

    def _on_revoke(self, lanes: frozenset[Lane]) -> None:
        """Finish or drop what is in flight on these lanes; polls nothing, but everything else goes on."""
        states = [state for lane in lanes if (state := self._lanes.get(lane)) is not None]
        until = self._clock.monotonic_s() + self._config.limits.revoke_s
        for state in states:
            state.is_closing = True
            if state.job is not None and not _is_worth_waiting_for(state.job):
                self._drop(state.job, "its partition is being revoked")
        while any(state.job is not None for state in states) and self._clock.monotonic_s() < until:
            self._health.beat()
            self._advance()
            time.sleep(_BUSY_POLL_S)
        self._on_lost(lanes)

    def _on_lost(self, lanes: frozenset[Lane]) -> None:
        self._log.info("no longer assigned", partitions=sorted(lane.partition for lane in lanes))
        for lane in lanes:
            state = self._lanes.get(lane)
            if state is None:
                continue
            if state.job is not None:
                self._drop(state.job, "its partition is somebody else's")
            self._lanes.remove(lane)

    def _on_recovered(self, state: LaneState, report: Report) -> None:
        state.recover_running = False
        if report.error is None:
            state.recovering = False
            state.to_publish.extend(report.value)
            return
        if isinstance(report.error, BrokerFatal):
            raise report.error
        limits = self._config.limits
        pause_s = min(limits.retry_max_s, limits.retry_first_s * 2.0 ** min(state.recover_failures, 30))
        state.recover_failures += 1
        state.recover_at = self._clock.monotonic_s() + pause_s
        level = self._log.warning if isinstance(report.error, TransientError) else self._log.error
        level("recovery failed", partition=state.lane.partition, error=str(report.error), traceback=report.traceback)

    def _begin_recovered(self, state: LaneState) -> None:
        row = state.to_publish.popleft()
        assert row.event is not None
        now = self._clock.monotonic_s()
        job = self._lanes.begin(state, step=Step.PUBLISH, received=None, received_unix_s=self._clock.unix_s(), now=now)
        job.key = row.key
        offset = Received(
            topic=row.event.topic, partition=row.event.partition, offset=row.event.offset, key=None, value=None
        ).next_offset
        self._log_of(job).info("found stored and not published: publishing the same bytes")
        try:
            job.publication = self._publications.recovered(row, offset=offset)
        except AlertprodError as error:
            self._judge(job, error, "")

    # Life and chores.

    def _start_producer(self) -> None:
        self._publisher.submit(self._on_producer_started, self._producer.start)

    def _on_producer_started(self, report: Report) -> None:
        match report.error:
            case None:
                self._producer_started = True
                self._health.set_problem("start", None)
                self._log.info("producer is ready", transactional=self._producer.transactional)
            case BrokerUnavailable() as error:
                self._log.warning("the producer could not start; trying again", error=str(error))
                self._health.set_problem("start", f"producer: {error}")
                self._start_producer()  # the call itself waits long enough between attempts
            case error:
                raise error

    def _renew_leases(self) -> None:
        lease_s = self._config.limits.lease_s
        claims = [job.claim for job in self._lanes.jobs if job.claim is not None]
        if not claims:
            return

        def renew() -> None:
            for claim in claims:
                self._ledger.renew(claim, lease_s=lease_s)

        self._clerk.submit(self._on_renewed, renew)

    def _on_renewed(self, report: Report) -> None:
        if report.error is not None:
            self._log.warning("leases not renewed", error=str(report.error))

    def _report_state(self, now: float) -> None:
        jobs = self._lanes.jobs
        self._metrics.inflight.set(len(jobs))
        self._metrics.oldest_inflight_seconds.set(now - min((job.since for job in jobs), default=now))
        self._metrics.assigned_partitions.set(len(self._lanes))
        n_ready = self._workers.n_ready
        self._metrics.workers_ready.set(n_ready)
        self._health.set_problem("workers", None if n_ready else "no worker is warm")
        if now >= self._alive_at:
            self._alive_at = now + _ALIVE_EVERY_S
            self._log.info("alive", partitions=len(self._lanes), inflight=len(jobs), workers=n_ready)

    def _is_busy(self) -> bool:
        return bool(self._lanes.jobs) or not self._producer_started or any(state.recovering for state in self._lanes)

    def _log_of(self, job: Job) -> Any:
        if job.key is not None:
            return self._log.bind(instrument=job.key.instrument, visit=job.key.visit, detector=job.key.detector)
        offset = None if job.received is None else job.received.offset
        return self._log.bind(topic=job.lane.topic, partition=job.lane.partition, offset=offset)

    def _drain(self) -> None:
        """Finish what is in flight within the budget; what waits is dropped, its event comes again."""
        self._is_draining = True
        self._health.set_problem("start", "the daemon is stopping")
        until = self._clock.monotonic_s() + self._config.limits.drain_s
        self._log.info("draining", inflight=len(self._lanes.jobs), budget_s=self._config.limits.drain_s)
        self._consumer.pause(*self._consumer.assigned)
        for job in self._lanes.jobs:
            if not _is_worth_waiting_for(job):
                self._drop(job, "stopping")
        while self._lanes.jobs and self._clock.monotonic_s() < until:
            self._turn(_BUSY_POLL_S)

    def _close(self) -> None:
        """Let go of everything, whatever state it is in."""
        for job in self._lanes.jobs:
            self._drop(job, "stopping")
        self._workers.stop()
        self._publisher.close(timeout_s=_CLOSE_S)
        self._clerk.close(timeout_s=_CLOSE_S)
        if hasattr(self, "_chores"):
            self._chores.close()
        if hasattr(self, "_consumer"):
            with suppress(BrokerUnavailable, BrokerFatal):  # the group finds out by itself
                self._consumer.close()


def _is_reopening(job: Job) -> bool:
    return job.received is not None and any(name == REOPEN_HEADER for name, _ in job.received.headers)


def _is_worth_waiting_for(job: Job) -> bool:
    """Tell whether a job is being computed or published, not merely waiting."""
    return job.step is Step.PUBLISH or (job.running and job.step in (Step.WORK, Step.CLAIM))


def _ignore(_report: Report) -> None:
    """Take the report of something that need not succeed: a lease that is not released runs out."""
