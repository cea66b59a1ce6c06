"""Lanes and the jobs on them: of each assigned partition one exposure is in flight at a time.

Plain state without threads; the daemon's poll thread is the only one that touches it.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from alertprod.service.publications import Publication
from alertprod.service.work import WorkOrder, WorkResult
from alertprod.store.ledger import Claimed, ExposureKey, LedgerRow
from alertprod.stream.dead_letter import is_dead_letter_replay
from alertprod.stream.messages import VisitReady
from alertprod.stream.records import Lane, Received


class Step(StrEnum):
    """What a job is at."""

    RECEIVE = "receive"
    CLAIM = "claim"
    WORK = "work"
    COUNT_DEATH = "count_death"
    PUBLISH = "publish"


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One exposure in flight."""

    ticket: int
    lane: Lane
    received: Received | None
    """The event; None for a stored row found on assignment."""
    received_unix_s: float
    since: float
    """When it was taken, monotonic seconds."""

    step: Step
    running: bool = False
    """Whether `step` is under way somewhere; otherwise it begins at `not_before`."""
    not_before: float = 0.0

    event: VisitReady | None = None
    key: ExposureKey | None = None
    claim: Claimed | None = None
    order: WorkOrder | None = None
    result: WorkResult | None = None
    publication: Publication | None = None
    attempts: int = 1
    """Of the job as a whole: what a dead letter says."""
    failures: int = 0
    """In a row, of this step: what back-off counts."""
    problem: str = ""
    """Why a step was put off the last time that one was: what a person who sees it wait asks."""
    condemned_by: Exception | None = None
    """What to give it up with, should the ledger say that nothing was stored."""
    condemned_text: str = ""
    """Its traceback, where it came from a worker."""
    given_up_for: Exception | None = None
    """What its dead letter says, once it has one."""
    is_shortened: bool = False
    """The dead letter with the whole event was refused by the broker."""
    is_dropped: bool = False
    """Whoever gets its event next does it: what still waits to be published for it must not be."""
    claimed_here: bool = False
    """Whether this job has been claimed before: then its claims say nothing of earlier daemons."""
    alone: bool = False
    """It was claimed three times without an outcome: nothing may run beside it."""

    @property
    def stage(self) -> str:
        """What the step is called in logs and dead letters."""
        return "compute" if self.step in (Step.WORK, Step.COUNT_DEATH) else self.step.value

    @property
    def is_reopening(self) -> bool:
        """Whether its event is the replay of a dead letter."""
        return self.received is not None and is_dead_letter_replay(self.received)

    @property
    def is_under_way(self) -> bool:
        """Whether it is being claimed, computed or published, and not merely waiting."""
        return self.step is Step.PUBLISH or (self.running and self.step in (Step.CLAIM, Step.WORK))

    def begin_at(self, step: Step) -> None:
        """Go on with `step`, at once."""
        self.step, self.running, self.failures, self.not_before = step, False, 0, 0.0

    def names(self) -> dict[str, Any]:
        """Return what a log line about it is found by."""
        if self.key is not None:
            return {"instrument": self.key.instrument, "visit": self.key.visit, "detector": self.key.detector}
        offset = None if self.received is None else self.received.offset
        return {"topic": self.lane.topic, "partition": self.lane.partition, "offset": offset}


@dataclass(slots=True, kw_only=True, eq=False)
class LaneState:
    """One assigned partition."""

    lane: Lane
    recovering: bool = True
    """What an earlier owner left is being looked up; nothing new is taken."""
    recover_at: float = 0.0
    recover_running: bool = False
    recover_failures: int = 0
    to_publish: deque[LedgerRow] = field(default_factory=deque)
    """Stored rows to publish before anything new is taken."""
    backlog: deque[Received] = field(default_factory=deque)
    """Events that came although the lane was paused: the client had them in hand already."""
    next_offset: int = 0
    """Events below this are done with, here, by us."""
    job: Job | None = None
    is_open: bool = False
    """Whether the consumer hands out its events."""
    is_closing: bool = False
    """It is about to be taken away: what is in flight may finish, nothing begins."""


class Lanes:
    """The assigned lanes and their jobs."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, LaneState] = {}
        self._jobs: dict[int, Job] = {}
        self._tickets = itertools.count(1)
        self.is_draining = False
        """Whether the daemon is stopping: nothing begins, nothing is tried again."""

    def __iter__(self) -> Iterator[LaneState]:
        return iter(list(self._lanes.values()))

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def jobs(self) -> list[Job]:
        """Exposures in flight, oldest first."""
        return list(self._jobs.values())

    def get(self, lane: Lane) -> LaneState | None:
        """Return a lane's state; None where it is not ours."""
        return self._lanes.get(lane)

    def job(self, ticket: int) -> Job | None:
        """Return a job; None where it was dropped or is done."""
        return self._jobs.get(ticket)

    def add(self, lane: Lane) -> None:
        """Take over a newly assigned lane."""
        self._lanes[lane] = LaneState(lane=lane)

    def remove(self, lane: Lane) -> None:
        """Forget a lane; its job must have been dropped."""
        self._lanes.pop(lane, None)

    def begin(
        self, state: LaneState, *, step: Step, received: Received | None, received_unix_s: float, now: float
    ) -> Job:
        """Put a job on a free lane."""
        assert state.job is None
        job = Job(
            ticket=next(self._tickets),
            lane=state.lane,
            received=received,
            received_unix_s=received_unix_s,
            since=now,
            step=step,
        )
        state.job = job
        self._jobs[job.ticket] = job
        return job

    def end(self, job: Job) -> None:
        """Take a job off its lane."""
        self._jobs.pop(job.ticket, None)
        state = self._lanes.get(job.lane)
        if state is not None and state.job is job:
            state.job = None

    def has_twin(self, job: Job) -> bool:
        """Tell whether another lane is at the same exposure: an event sent twice under different keys."""
        return any(
            other is not job and other.key == job.key and (other.running or other.claim is not None)
            for other in self._jobs.values()
            if other.key is not None
        )
