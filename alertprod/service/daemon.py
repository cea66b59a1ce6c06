"""The daemon: one poll loop that moves exposures from step to step and never waits for any of them.

Each assigned partition is a lane with one exposure in flight. What may block is done at desks (threads: the clerk's
for the ledger, the publisher's with the one producer, the chores') and in worker processes; the loop takes their
reports, decides, and hands out the next step. All state belongs to the loop's thread.
"""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Final, Protocol

from alertprod.config import DaemonConfig
from alertprod.errors import BrokerUnavailable, ConfigError, TransientError
from alertprod.logs import configure_logs, get_logger
from alertprod.metrics import Metrics
from alertprod.service import steps
from alertprod.service.chores import ChoreConsumer, Chores, Prefetch
from alertprod.service.clock import Clock
from alertprod.service.desk import Desk, Inbox, Report
from alertprod.service.exposures import Exposures
from alertprod.service.health import Health
from alertprod.service.lanes import Lanes, LaneState
from alertprod.service.recent import Recent
from alertprod.service.reload import Reload
from alertprod.service.worker import WorkerPool
from alertprod.stream.consumer import LanesCallback
from alertprod.stream.errors import BrokerFatal
from alertprod.stream.records import Lane, Received
from alertprod.stream.schemas import FixedSchemas, WriterSchemas

EXIT_OK: Final = 0
EXIT_CONFIG: Final = 2
"""The configuration, or what the start-up checks found: somebody must mend it."""
EXIT_AWAY: Final = 69
"""EX_UNAVAILABLE of sysexits.h: what is needed to start does not answer; start me again."""
EXIT_FATAL: Final = 70
"""EX_SOFTWARE of sysexits.h: restart me."""

_BUSY_POLL_S: Final = 0.02
"""While something is in flight: what a report waits at most before it is acted on."""

_IDLE_POLL_S: Final = 0.5
"""With nothing in flight only the broker can bring news, and it ends the poll; this is for signals."""

_ALIVE_EVERY_S: Final = 60.0
"""Between nights a line a minute tells an idle daemon from a wedged one."""

_SERVE_EVERY_S: Final = 5.0
"""An idle producer hears of its fencing, and of brokers gone, only when it is served."""

_OVERDUE_S: Final = 30.0
"""A call of the Kafka client that has not returned for so long after its time-out never will."""

_DESK_LIMIT_S: Final = 300.0
"""A desk's calls have time-outs of their own, of a minute or two; one that takes longer hangs in a library."""

_CLOSE_S: Final = 5.0
"""For each desk to finish what it is at; with the budget to drain well within a supervisor's patience."""

_log = get_logger(__name__)


class DaemonConsumer(steps.Offsets, ChoreConsumer, Protocol):
    """What the daemon needs of `alertprod.stream.consumer.EventConsumer`."""

    @property
    def assigned(self) -> frozenset[Lane]:
        """The lanes that are ours now."""
        ...

    def poll(self, timeout_s: float) -> Received | None:
        """Return the next event, having paused its lane; serve the group."""
        ...

    def serve(self) -> None:
        """Do what other threads wait for, within a callback."""
        ...

    def pause(self, *lanes: Lane) -> None:
        """Hand out nothing of these lanes."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


class Connect(Protocol):
    """Makes the consumer; called once, when the daemon is ready for the callbacks."""

    def __call__(self, *, on_assign: LanesCallback, on_revoke: LanesCallback, on_lost: LanesCallback) -> DaemonConsumer:
        """Subscribe; newly assigned lanes are held (``hold_on_assign``)."""
        ...


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
    reload
        What SIGHUP does; None: nothing.
    recent
        Where it says what is in flight and how exposures ended.

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
        reload: Reload | None = None,
        recent: Recent | None = None,
    ) -> None:
        self._config, self._identity, self._reload = config, identity, reload
        self._producer, self._ledger, self._workers, self._metrics = producer, ledger, workers, metrics
        self._clock = clock or Clock()
        self._health = health or Health(clock=self._clock.monotonic_s)
        self._recent = recent or Recent()
        self._lanes = Lanes()
        self._inbox = Inbox()
        self._clerk = Desk("clerk", self._inbox)
        self._publisher = Desk("publisher", self._inbox)
        self._consumer = connect(on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)
        schemas = schemas or FixedSchemas()
        self._exposures = Exposures(
            config,
            identity=identity,
            lanes=self._lanes,
            clerk=self._clerk,
            publisher=self._publisher,
            consumer=self._consumer,
            producer=producer,
            ledger=ledger,
            workers=workers,
            metrics=metrics,
            clock=self._clock,
            schemas=schemas,
            recent=self._recent,
        )
        self._chores = Chores(
            self._inbox,
            consumer=self._consumer,
            ledger=ledger,
            metrics=metrics,
            health=self._health,
            clock=self._clock,
            schemas=schemas,
            visit_ready_topic=config.topics.visit_ready,
            prefetch=prefetch,
            clean_outbox=clean_outbox,
        )
        self._health.watch("clerk", lambda: self._clerk.busy_for_s, limit_s=_DESK_LIMIT_S)
        longest_s = config.kafka.transaction_max_timeout_s + _DESK_LIMIT_S
        self._health.watch("publisher", lambda: self._publisher.busy_for_s, limit_s=longest_s)
        self._stop_requested = self._reload_requested = False
        self._event_at: float | None = None
        self._producer_started = False
        self._alive_at = self._serve_at = 0.0
        self._polled_at: float | None = None

    def stop(self) -> None:
        """Take nothing new, finish what is in flight, and let `run` return; safe in a signal handler."""
        self._stop_requested = True

    def request_reload(self) -> None:
        """Read the configuration again, soon; safe in a signal handler."""
        self._reload_requested = True

    def install_signal_handlers(self) -> None:
        """Let SIGTERM and SIGINT stop the daemon and SIGHUP reload its configuration; they only set flags."""

        def request_stop(_number: int, _frame: FrameType | None) -> None:
            self.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, request_stop)

        def request_reload(_number: int, _frame: FrameType | None) -> None:
            self.request_reload()

        signal.signal(signal.SIGHUP, request_reload)

    def run(self) -> int:
        """Work until stopped; return the process's exit status.

        Returns
        -------
        int
            0 when stopped and drained; `EXIT_FATAL` when a Kafka client is finished (fenced, for example) and a
            restart will help; `EXIT_CONFIG` when a worker cannot start with this configuration.
        """
        status = EXIT_OK
        try:
            self._start()
            while not self._stop_requested:
                self._turn(_BUSY_POLL_S if self._is_busy() else _IDLE_POLL_S)
            self._drain()
        except BrokerFatal as error:
            _log.critical("a Kafka client is finished; exiting to be restarted", problem=str(error))
            status = EXIT_FATAL
        except ConfigError as error:
            _log.critical("workers cannot start with this configuration", problem=str(error))
            status = EXIT_CONFIG
        finally:
            self._close()
        _log.info("stopped", status=status)
        return status

    def _start(self) -> None:
        identity, delivery = self._identity, self._config.kafka.delivery
        self._metrics.set_build_info(
            version=identity.version, schema=identity.schema, config_hash=identity.config_hash, delivery=delivery
        )
        _log.info("starting", **identity.versions(), owner=identity.owner, delivery=delivery)
        if not self._producer.transactional:
            _log.warning("at-least-once: after a crash alerts may be published twice; exactly-once needs transactions")
        self._workers.poll()
        self._publisher.submit(self._on_producer_started, self._producer.start)

    def _turn(self, poll_s: float) -> None:
        self._beat()
        self._poll_events(poll_s)
        self._advance()
        self._chores.turn()
        if self._reload_requested:
            self._reload_requested = False
            if self._reload is not None:
                self._clerk.submit(self._on_reloaded, partial(self._reload, self._config))

    def _beat(self) -> None:
        """Say that the broker is served now."""
        self._health.beat()
        now = self._clock.monotonic_s()
        if self._polled_at is not None:
            self._metrics.poll_interval_seconds.observe(now - self._polled_at)
        self._polled_at = now

    def _poll_events(self, poll_s: float) -> None:
        try:
            received = self._consumer.poll(poll_s)
            while received is not None:  # ends: each event pauses its lane
                self._take(received)
                received = self._consumer.poll(0.0)
        except BrokerUnavailable as error:
            self._metrics.count_retry(error.reason())
            _log.warning("poll failed", problem=str(error))

    def _take(self, received: Received) -> None:
        self._event_at = self._clock.monotonic_s()
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
        for state in self._lanes:
            self._advance_lane(state)
        self._exposures.advance()
        self._report_state()

    def _advance_lane(self, state: LaneState) -> None:
        if state.recovering:
            due = self._clock.monotonic_s() >= state.recover_at
            if self._producer_started and due and not state.recover_running:
                state.recover_running = True
                task = partial(steps.recover, self._ledger, self._consumer, state.lane)
                self._clerk.submit(partial(self._on_recovered, state), task)
        elif state.job is not None or state.is_closing or self._lanes.is_draining:
            return
        elif state.to_publish:
            self._exposures.begin_stored(state)
        elif state.backlog:
            self._exposures.begin(state, state.backlog.popleft())
        elif not state.is_open:
            state.is_open = True
            self._consumer.resume(state.lane)

    def _on_assign(self, lanes: frozenset[Lane]) -> None:
        for lane in lanes:
            if lane.topic == self._config.topics.visit_ready:
                self._lanes.add(lane)
            else:
                self._consumer.resume(lane)
        _log.info("assigned", partitions=self._partitions(lanes))

    def _on_revoke(self, lanes: frozenset[Lane]) -> None:
        """Finish or drop what is in flight on these lanes; polls nothing, but everything else goes on."""
        states = [state for lane in lanes if (state := self._lanes.get(lane)) is not None]
        until = self._clock.monotonic_s() + self._config.limits.revoke_s
        for state in states:
            state.is_closing = True
            if state.job is not None and not state.job.is_under_way:
                self._exposures.drop(state.job, "its partition is being revoked")
        while any(state.job is not None for state in states) and self._clock.monotonic_s() < until:
            self._beat()
            self._advance()
            self._consumer.serve()
            time.sleep(_BUSY_POLL_S)
        self._on_lost(lanes)

    def _on_lost(self, lanes: frozenset[Lane]) -> None:
        for lane in lanes:
            state = self._lanes.get(lane)
            if state is None:
                continue
            if state.job is not None:
                self._exposures.drop(state.job, "its partition is somebody else's")
            self._lanes.remove(lane)
        _log.info("no longer assigned", partitions=self._partitions(lanes))

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
        if isinstance(report.error, TransientError):
            _log.warning("recovery failed", partition=state.lane.partition, problem=str(report.error))
        else:  # a bug; the lane stays closed, since publishing past it could lose what is stored
            _log.error("recovery failed", partition=state.lane.partition, traceback=report.traceback)

    def _on_producer_started(self, report: Report) -> None:
        match report.error:
            case None:
                self._producer_started = True
                self._health.set_problem("start", None)
                _log.info("producer is ready", transactional=self._producer.transactional)
            case BrokerUnavailable() as error:
                self._health.set_problem("start", f"producer: {error}")
                _log.warning("the producer could not start; trying again", problem=str(error))
                self._publisher.submit(self._on_producer_started, self._producer.start)  # which waits by itself
            case error:
                raise error

    def _report_state(self) -> None:
        now, jobs, n_ready = self._clock.monotonic_s(), self._lanes.jobs, self._workers.n_ready
        self._metrics.inflight.set(len(jobs))
        self._metrics.count_deliveries(self._producer.counts)
        self._health.set_activity(inflight=len(jobs), event_at=self._event_at)
        self._recent.set_inflight(jobs, now=now)
        self._metrics.oldest_inflight_seconds.set(now - min((job.since for job in jobs), default=now))
        self._metrics.assigned_partitions.set(len(self._lanes))
        self._metrics.workers_ready.set(n_ready)
        self._health.set_problem("workers", None if n_ready else "no worker is warm")
        if now >= self._alive_at:
            self._alive_at = now + _ALIVE_EVERY_S
            _log.info("alive", partitions=len(self._lanes), inflight=len(jobs), workers=n_ready)

        if self._producer.overdue_s > _OVERDUE_S:
            raise BrokerFatal(f"a call of the producer is overdue by {self._producer.overdue_s:.0f} s")
        if now >= self._serve_at and self._producer_started:
            self._serve_at = now + _SERVE_EVERY_S
            self._publisher.submit(self._on_served, self._producer.serve)

    def _on_reloaded(self, report: Report) -> None:
        if report.error is not None:
            self._metrics.count_reload("refused")
            _log.error("configuration not reloaded, the old one holds", problem=str(report.error))
            return
        new = report.value
        self._config, self._identity = new.config, new.identity
        configure_logs(new.config.log, process="daemon")
        self._exposures.reconfigure(new.config, new.identity)
        self._workers.reconfigure(new.pipeline, new.config.workers)
        self._chores.reconfigure(new.prefetch)
        self._metrics.count_reload("done")
        _log.info("configuration reloaded", **new.identity.versions(), needs_a_restart=list(new.left_out))

    def _on_served(self, report: Report) -> None:
        if isinstance(report.error, BrokerUnavailable):
            _log.warning("the producer has a problem", problem=str(report.error))
        elif report.error is not None:
            raise report.error

    def _is_busy(self) -> bool:
        return bool(self._lanes.jobs) or not self._producer_started or any(state.recovering for state in self._lanes)

    def _partitions(self, lanes: frozenset[Lane]) -> list[str]:
        return [f"{lane.topic}[{lane.partition}]" for lane in sorted(lanes)]

    def _drain(self) -> None:
        """Finish what is in flight within the budget; what waits is dropped, its event comes again."""
        self._lanes.is_draining = True
        self._health.set_problem("start", "the daemon is stopping")
        budget_s = self._config.limits.drain_s
        until = self._clock.monotonic_s() + budget_s
        _log.info("draining", inflight=len(self._lanes.jobs), budget_s=budget_s)
        self._consumer.pause(*self._consumer.assigned)
        for job in self._lanes.jobs:
            if not job.is_under_way:
                self._exposures.drop(job, "stopping")
        while self._lanes.jobs and self._clock.monotonic_s() < until:
            self._turn(_BUSY_POLL_S)

    def _close(self) -> None:
        """Let go of everything, whatever state it is in."""
        for job in self._lanes.jobs:
            self._exposures.drop(job, "stopping")
        self._workers.stop()
        self._producer.interrupt()  # whatever is still being published had its time
        self._publisher.submit(_ignore, partial(self._producer.close, timeout_s=_CLOSE_S / 2))
        for desk in (self._publisher, self._clerk):
            if not desk.close(timeout_s=_CLOSE_S):
                _log.warning("a desk did not finish", desk=desk.name)
        self._chores.close()
        with suppress(BrokerUnavailable, BrokerFatal):  # the group finds out by itself
            self._consumer.close()


def _ignore(_report: Report) -> None:
    """Nobody reads the inbox any more."""
