"""The last exposures and those in flight, in memory, for whoever looks at this daemon now; history is in the ledger."""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

from alertprod.service.lanes import Job
from alertprod.service.publications import Publication

REMEMBERED: Final = 200
"""One visit of a large camera, or two hours of a small one; 100 kB."""


class Recent:
    """Written by the poll thread, read by any: what is read is replaced whole, never changed."""

    def __init__(self) -> None:
        self._inflight: tuple[Mapping[str, Any], ...] = ()
        self._last: deque[Mapping[str, Any]] = deque(maxlen=REMEMBERED)

    def set_inflight(self, jobs: Iterable[Job], *, now: float) -> None:
        """Say what is in flight; `now` is the clock of the jobs."""
        self._inflight = tuple(
            {
                **job.names(),
                "band": None if job.event is None else job.event.band,
                "step": job.stage,
                "age_s": round(now - job.since, 3),
                "attempts": job.attempts,
                "waits_s": round(max(0.0, job.not_before - now), 3),
                "problem": job.problem or None,
            }
            for job in jobs
        )

    def add(self, publication: Publication, *, latency_s: float | None, at_unix_s: float) -> None:
        """Say how an exposure ended."""
        key, offset, facts = publication.key, publication.offset, publication.facts or {}
        self._last.append(
            {
                "at_unix_s": at_unix_s,
                "instrument": None if key is None else key.instrument,
                "visit": None if key is None else key.visit,
                "detector": None if key is None else key.detector,
                "event": None if offset is None else f"{offset.topic}[{offset.partition}]:{offset.offset - 1}",
                "band": publication.band or None,
                "outcome": publication.kind,
                "reason": publication.reason or None,
                "n_alerts": publication.n_alerts,
                "latency_s": latency_s,
                "stage_seconds": facts.get("stage_seconds", {}),
                "figures": facts.get("figures", {}),
            }
        )

    def describe(self) -> dict[str, Any]:
        """Return ``inflight_exposures``, oldest first, and ``last_exposures``, newest first."""
        return {
            "inflight_exposures": [dict(each) for each in self._inflight],
            "last_exposures": [dict(each) for each in reversed(self._last.copy())],
        }
