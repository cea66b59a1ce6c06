"""What the daemon does beside exposures: tiles for announced pointings, consumer lag, readiness, the outbox's size.

At a desk of its own: a slow broker or a slow disk here holds up nothing else.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Protocol

from alertprod.errors import AlertprodError, InvalidEvent
from alertprod.logs import get_logger
from alertprod.metrics import Metrics
from alertprod.service.clock import Clock
from alertprod.service.desk import Desk, Inbox, Report
from alertprod.service.health import Health
from alertprod.service.steps import LedgerPort
from alertprod.store.ledger import ExposureKey
from alertprod.stream.messages import NextVisit, decode_next_visit
from alertprod.stream.records import Lane, Offset, Received
from alertprod.stream.schemas import WriterSchemas

CHECK_EVERY_S: Final = 10.0
"""Lag and readiness: often enough for a scrape every 15 s."""

CLEAN_EVERY_S: Final = 600.0
"""The outbox grows by gigabytes a night, not by the minute."""

_OUTDATED_S: Final = 300.0
"""A pointing announced for longer ago than this has been taken; its tiles were loaded with its exposures."""

_STUCK_S: Final = 60.0
"""Above each check's own patience with database and broker: what is known of them is old by then."""

_NOBODY: Final = ExposureKey("", 0, 0)

Prefetch = Callable[[NextVisit], None]


class ChoreConsumer(Protocol):
    """What chores need of the consumer."""

    def lag(self) -> dict[Lane, int]:
        """Return how many events wait in each lane."""
        ...

    def commit(self, offsets: Iterable[Offset]) -> None:
        """Commit without a transaction."""
        ...

    def resume(self, *lanes: Lane) -> None:
        """Open lanes again."""
        ...


class Chores:
    """The daemon's side work.

    Parameters
    ----------
    prefetch
        Fills the template cache for an announced pointing; None: announcements are read and left at that.
    clean_outbox
        Removes outbox files by age and size; None: nobody does.
    """

    def __init__(
        self,
        inbox: Inbox,
        *,
        consumer: ChoreConsumer,
        ledger: LedgerPort,
        metrics: Metrics,
        health: Health,
        clock: Clock,
        schemas: WriterSchemas,
        visit_ready_topic: str,
        prefetch: Prefetch | None,
        clean_outbox: Callable[[], object] | None,
    ) -> None:
        self._consumer, self._ledger, self._metrics, self._health = consumer, ledger, metrics, health
        self._clock, self._schemas, self._topic = clock, schemas, visit_ready_topic
        self._prefetch, self._clean_outbox = prefetch, clean_outbox
        self._desk = Desk("chores", inbox)
        self._prefetcher = Desk("prefetch", inbox)  # minutes, over a slow link
        self._check_at = self._clean_at = clock.monotonic_s()
        self._is_checking = self._is_cleaning = False
        self._log = get_logger(__name__)

    def turn(self) -> None:
        """Begin what is due."""
        now = self._clock.monotonic_s()
        stuck_s = self._desk.busy_for_s
        self._health.set_problem("checks", f"unanswered for {stuck_s:.0f} s" if stuck_s > _STUCK_S else None)
        if now >= self._check_at and not self._is_checking:
            self._is_checking = True
            self._desk.submit(self._on_checked, self._check)
        if self._clean_outbox is not None and now >= self._clean_at and not self._is_cleaning:
            self._is_cleaning = True
            self._desk.submit(self._on_cleaned, self._clean_outbox)

    def announce(self, received: Received) -> None:
        """Prefetch for a ``next_visit`` event; its lane opens again afterwards."""
        self._prefetcher.submit(partial(self._on_prefetched, received), partial(self._prefetch_one, received))

    def close(self) -> None:
        """End; what is under way is left to itself."""
        for desk in (self._desk, self._prefetcher):
            desk.close(timeout_s=1.0)

    def reconfigure(self, prefetch: Prefetch | None) -> None:
        """Fill the cache by another configuration from the next announcement on."""
        self._prefetch = prefetch

    def _check(self) -> None:
        try:
            self._ledger.get(_NOBODY)
        except AlertprodError as error:
            self._health.set_problem("store", str(error))
        else:
            self._health.set_problem("store", None)
        try:
            lag = self._consumer.lag()
        except AlertprodError as error:
            self._health.set_problem("broker", str(error))
        else:
            self._health.set_problem("broker", None)
            self._metrics.consumer_lag.set(sum(count for lane, count in lag.items() if lane.topic == self._topic))

    def _prefetch_one(self, received: Received) -> str:
        try:
            event = decode_next_visit(received.value, schemas=self._schemas)
        except InvalidEvent as error:
            self._log.warning("announcement cannot be read", error=str(error), offset=received.offset)
            outcome = "invalid"
        else:
            late_s = (self._clock.mjd_tai() - event.shutter_opens_at_mjd_tai) * 86400.0
            if late_s > _OUTDATED_S:
                outcome = "dropped"
            else:
                if self._prefetch is not None:
                    self._prefetch(event)
                outcome = "done"
        self._consumer.commit([received.next_offset])
        return outcome

    def _on_prefetched(self, received: Received, report: Report) -> None:
        self._consumer.resume(received.lane)
        if report.error is None:
            self._metrics.count_prefetch(report.value)
            self._log.debug("announcement", outcome=report.value, seconds=round(report.seconds, 3))
        else:  # a hint that came to nothing: the exposure itself will load its tiles
            self._metrics.count_prefetch("failed")
            self._log.warning("prefetch failed", error=str(report.error), traceback=report.traceback)

    def _on_checked(self, report: Report) -> None:
        self._is_checking = False
        self._check_at = self._clock.monotonic_s() + CHECK_EVERY_S
        if report.error is not None:
            self._log.error("check failed", error=str(report.error), traceback=report.traceback)

    def _on_cleaned(self, report: Report) -> None:
        self._is_cleaning = False
        self._clean_at = self._clock.monotonic_s() + CLEAN_EVERY_S
        if report.error is not None:
            self._log.warning("the outbox could not be cleaned", error=str(report.error))
