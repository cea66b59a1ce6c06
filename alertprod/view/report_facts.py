"""A night in numbers, from the ledger's rows: what the nightly report says, before it says it."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from alertprod.service.clock import unix_from_mjd_tai
from alertprod.store.ledger import LedgerRow, LedgerState

OBJECTIVE_S: Final = 60.0
"""Alerts are late after this."""

OBJECTIVE_SHARE: Final = 0.98

_SENT_AGAIN_S: Final = 86400.0
"""What was published so long after its shutter closed was sent again on purpose: an archive, not a late night."""

FAILED: Final = (LedgerState.DEAD_LETTERED, LedgerState.EXPIRED)

QUALITY: Final[Mapping[str, tuple[str, float | None]]] = {
    "pull_width": ("width of the pulls", 1.0),
    "residual_ratio": ("residual at bright stars", 1.0),
    "kernel_sum": ("kernel sum", 1.0),
    "limiting_magnitude": ("limiting magnitude", None),
    "n_sources": ("DiaSources", None),
    "science_fwhm_pixels": ("FWHM, pixels", None),
}
"""Figures that are shown: what they are called, and where they should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposureFacts:
    """One exposure of the night."""

    name: str
    band: str
    state: LedgerState
    reason: str
    claimed_unix_s: float
    ended_unix_s: float
    latency_s: float
    """Shutter close to the ledger's word that it was published, milliseconds after the commit; NaN where it was not, and
    where that was more than a day."""
    n_alerts: int
    claims: int
    worker_deaths: int
    stage_seconds: Mapping[str, float]
    figures: Mapping[str, float]
    counts: Mapping[str, int]

    @property
    def waited_s(self) -> float:
        """From shutter close to the first claim; NaN where there is no latency."""
        return self.latency_s - (self.ended_unix_s - self.claimed_unix_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What the dead letters say of one that failed."""

    exposure: str
    """Its name, or where its event stands."""
    reason: str
    stage: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NightFacts:
    """The whole night."""

    title: str
    since_unix_s: float
    until_unix_s: float
    exposures: Sequence[ExposureFacts]
    failures: Sequence[Failure] | None = None
    """From the dead letters' topic; None where nobody looked."""
    versions: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def outcomes(self) -> dict[str, int]:
        """Return how many exposures ended how, the unfinished by their state."""
        return dict(Counter(str(each.state) for each in self.exposures).most_common())

    @property
    def n_alerts(self) -> int:
        """Alerts that were published."""
        return sum(each.n_alerts for each in self.published())

    def published(self) -> list[ExposureFacts]:
        """Return the exposures that were published."""
        return [each for each in self.exposures if each.state is LedgerState.PUBLISHED]

    def timed(self) -> list[ExposureFacts]:
        """Return those of them that have a latency: all but what was sent again, long after it was taken."""
        return [each for each in self.published() if math.isfinite(each.latency_s)]

    def failed(self) -> list[ExposureFacts]:
        """Return those that were given up or came too late."""
        return [each for each in self.exposures if each.state in FAILED]

    def share_of_alerts_in_time(self) -> float:
        """Return which share of the alerts that have a latency took a minute at most; NaN without any."""
        n_alerts = sum(each.n_alerts for each in self.timed())
        in_time = sum(each.n_alerts for each in self.timed() if each.latency_s <= OBJECTIVE_S)
        return in_time / n_alerts if n_alerts else math.nan

    def share_of_exposures_in_time(self) -> float:
        """Return the same for exposures, where one that failed is late; NaN without any."""
        timed = self.timed()
        total = len(timed) + len(self.failed())
        return sum(each.latency_s <= OBJECTIVE_S for each in timed) / total if total else math.nan

    def latency_quantiles_s(self, *quantiles: float) -> list[float]:
        """Return latencies that such shares of the alerts did not exceed; of the exposures where there is no alert."""
        timed = self.timed()
        if not timed:
            return [math.nan] * len(quantiles)
        weights = np.array([each.n_alerts for each in timed], float)
        if not weights.sum():
            weights[:] = 1.0
        order = np.argsort(latencies := np.array([each.latency_s for each in timed]))
        reached = np.cumsum(weights[order]) / weights.sum()
        return [
            float(latencies[order][min(int(np.searchsorted(reached, q - 1e-12)), len(order) - 1)]) for q in quantiles
        ]

    def count(self, kind: str) -> int:
        """Return the sum of a count of the visit summaries."""
        return sum(int(each.counts.get(kind, 0)) for each in self.published())

    def slowest(self, most: int) -> list[ExposureFacts]:
        """Return the exposures that took longest, the slowest first."""
        return sorted(self.timed(), key=lambda each: -each.latency_s)[:most]

    def quality(self) -> dict[tuple[str, str], dict[str, tuple[float, float, float]]]:
        """Return median, least and greatest of each figure, by instrument and band."""
        values: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for each in self.published():
            for name in QUALITY:
                if (value := each.figures.get(name)) is not None and math.isfinite(value):
                    values[each.name.partition("/")[0], each.band][name].append(value)
        return {
            key: {name: (float(np.median(found)), min(found), max(found)) for name, found in figures.items()}
            for key, figures in sorted(values.items())
        }

    def reasons(self) -> dict[str, list[ExposureFacts]]:
        """Return the exposures that failed or were skipped, by why; the most frequent reason first."""
        found: dict[str, list[ExposureFacts]] = defaultdict(list)
        for each in self.exposures:
            if each.state in (*FAILED, LedgerState.SKIPPED):
                found[f"{each.state}: {each.reason or 'no reason given'}"].append(each)
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def collect_exposures(rows: Iterable[LedgerRow]) -> list[ExposureFacts]:
    """Return what the ledger's rows say."""
    return [_collect(row) for row in rows]


def collect_versions(rows: Iterable[LedgerRow]) -> dict[str, list[str]]:
    """Return the program versions and configurations the exposures were made with."""
    rows = list(rows)
    return {
        "program": sorted({row.program_version for row in rows if row.program_version}),
        "configuration": sorted({row.config_hash[:12] for row in rows if row.config_hash}),
    }


def _collect(row: LedgerRow) -> ExposureFacts:
    summary: Mapping[str, Any] = row.summary or {}
    closed = summary.get("shutter_close_mjd_tai")
    latency_s = math.nan
    if row.state is LedgerState.PUBLISHED and closed is not None:
        latency_s = row.changed_unix_s - unix_from_mjd_tai(closed)
    return ExposureFacts(
        name=str(row.key),
        band=str(summary.get("band", "")),
        state=row.state,
        reason=row.reason or "",
        claimed_unix_s=row.first_claimed_unix_s,
        ended_unix_s=row.changed_unix_s,
        latency_s=latency_s if latency_s <= _SENT_AGAIN_S else math.nan,
        n_alerts=row.n_alerts or 0,
        claims=row.claims,
        worker_deaths=row.worker_deaths,
        stage_seconds=summary.get("stage_seconds", {}),
        figures=summary.get("figures", {}),
        counts=summary.get("counts", {}),
    )
