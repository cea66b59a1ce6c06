"""The queue that an exposure waits in, on paper: lanes, workers and publishers of a fleet, without a single process.

All detectors of a visit close their shutters at once, so that what counts is not the mean load but how fast a burst is
worked off. Events find their lanes by a hash of their key: some lanes get several, some none.
"""

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from alertprod._typing import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Daemons of one consumer group.

    Parameters
    ----------
    daemons
        How many; each has one publisher.
    workers
        Of each daemon.
    partitions
        Of the events' topic; each is a lane with one exposure in flight.
    """

    daemons: int
    workers: int
    partitions: int

    def __post_init__(self) -> None:
        if min(self.daemons, self.workers, self.partitions) < 1:
            raise ValueError(f"a fleet has at least one of each, not {self}")

    @property
    def all_workers(self) -> int:
        """Workers of all daemons."""
        return self.daemons * self.workers


def compute_latencies(
    fleet: Fleet,
    *,
    detectors: int,
    visits: int,
    cadence_s: float,
    work_s: float,
    publish_s: float,
    spread: float = 0.0,
    seed: int = 1,
) -> FloatArray:
    """Compute how long exposures take from their events to their acknowledged alerts.

    Parameters
    ----------
    work_s
        A worker's mean time on an exposure.
    publish_s
        The publisher's; it does one exposure at a time.
    spread
        Standard deviation of the logarithm of a worker's time.

    Returns
    -------
    FloatArray
        Seconds, shape ``(visits, detectors)``.

    Notes
    -----
    As the daemon does it: a lane's exposures in their order, one at a time until it is published; a free worker takes the
    exposure that has been at the head of its lane the longest; partitions are dealt out to the daemons in turn.
    """
    rng = np.random.default_rng(seed)
    lanes = rng.integers(fleet.partitions, size=(visits, detectors))
    work = work_s * np.exp(spread * rng.standard_normal((visits, detectors)) - 0.5 * spread**2)
    finished = np.empty((visits, detectors))
    jobs: dict[int, list[_Job]] = {}
    for visit, row in enumerate(zip(lanes.tolist(), work.tolist(), strict=True)):
        for detector, (lane, seconds) in enumerate(zip(*row, strict=True)):
            job = _Job(visit * cadence_s, lane, seconds, (visit, detector))
            jobs.setdefault(lane % fleet.daemons, []).append(job)
    for each in jobs.values():
        for job, end in _Daemon(fleet.workers, publish_s).run(each):
            finished[job.place] = end
    return finished - cadence_s * np.arange(visits)[:, np.newaxis]


@dataclass(frozen=True, slots=True)
class _Job:
    arrives: float
    lane: int
    work_s: float
    place: tuple[int, int]


@dataclass(slots=True)
class _Daemon:
    """One daemon's lanes, its workers, its publisher."""

    free_workers: int
    publish_s: float
    publisher_free_at: float = 0.0
    lanes: dict[int, deque[_Job]] = field(default_factory=dict)
    busy_lanes: set[int] = field(default_factory=set)
    waiting: deque[_Job] = field(default_factory=deque)

    def run(self, jobs: list[_Job]) -> list[tuple[_Job, float]]:
        """Work off jobs, which are in the order of their arrival; return when each was published."""
        ends: list[tuple[_Job, float]] = []
        numbers = itertools.count()
        events = [(job.arrives, next(numbers), "arrive", job) for job in jobs]
        heapq.heapify(events)
        while events:
            now, _, what, job = heapq.heappop(events)
            if what == "arrive":
                self.lanes.setdefault(job.lane, deque()).append(job)
                self._open(job.lane)
            elif what == "worked":
                self.free_workers += 1
                self.publisher_free_at = max(now, self.publisher_free_at) + self.publish_s
                heapq.heappush(events, (self.publisher_free_at, next(numbers), "published", job))
            else:
                ends.append((job, now))
                self.busy_lanes.remove(job.lane)
                self._open(job.lane)
            while self.waiting and self.free_workers:
                started = self.waiting.popleft()
                self.free_workers -= 1
                heapq.heappush(events, (now + started.work_s, next(numbers), "worked", started))
        return ends

    def _open(self, lane: int) -> None:
        """Let the next of a lane wait for a worker."""
        if lane not in self.busy_lanes and self.lanes[lane]:
            self.busy_lanes.add(lane)
            self.waiting.append(self.lanes[lane].popleft())
