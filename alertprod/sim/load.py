"""The events of a large camera, and what a fleet of daemons made of them: latencies, what was busy, what comes first.

Times are the camera's: with a speed-up of ten a second of the wall is ten of them, for what is modelled. What is real,
database and broker, is not quicker for it, and so counts tenfold: a speed-up can only make a fleet look worse.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from alertprod.service.clock import mjd_tai_from_unix
from alertprod.sim.load_pipeline import MAX_DETECTORS, SPACING_DEG, StageModel
from alertprod.stream.messages import VisitReady

INSTRUMENT: Final = "loadcam"
TARGET_S: Final = 60.0
TARGET_SHARE: Final = 0.98
"""Rubin's requirement: this share of the alerts within so long of the shutter's closing."""

_DAY_S: Final = 86400.0
_EXPOSURE_TIME_S: Final = 30.0
_RA_DEG, _DEC_DEG = 150.0, -30.0
_PERCENTILES: Final = (50, 90, 98, 100)

Exposure = tuple[int, int]
"""Visit and detector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """A camera and the fleet it is sent to.

    Parameters
    ----------
    cadence_s
        From shutter to shutter.
    event_delay_s
        From a shutter's closing to its events: what camera, transfer and calibration take.
    speed_up
        How many times quicker than the camera's the test's time is.
    daemons, workers, partitions
        The fleet: daemons, workers of each, partitions of the events' topic.
    model
        What an exposure costs, in the camera's time.
    """

    detectors: int = 189
    visits: int = 3
    cadence_s: float = 39.0
    event_delay_s: float = 10.0
    speed_up: float = 1.0
    daemons: int = 2
    workers: int = 4
    partitions: int = 32
    model: StageModel = field(default_factory=StageModel)

    def __post_init__(self) -> None:
        counts = (self.detectors, self.visits, self.daemons, self.workers, self.partitions)
        if min(counts) < 1 or self.detectors > MAX_DETECTORS or self.partitions < self.daemons:
            raise ValueError(f"nothing can be sent with {self}")
        if self.cadence_s <= 0 or self.speed_up <= 0 or self.event_delay_s < 0:
            raise ValueError(f"time does not pass with {self}")

    @property
    def n_exposures(self) -> int:
        """Of all visits."""
        return self.visits * self.detectors

    def worker_model(self) -> StageModel:
        """Return the model in the test's own time."""
        model = self.model
        return StageModel(
            stage_seconds={name: seconds / self.speed_up for name, seconds in model.stage_seconds.items()},
            spread=model.spread,
            burns=model.burns,
            n_alerts=model.n_alerts,
            alert_bytes=model.alert_bytes,
        )


def make_visit(config: LoadConfig, visit: int, *, now_unix_s: float) -> tuple[list[VisitReady], float]:
    """Make the events of a visit, which are sent now.

    Returns
    -------
    tuple
        One event a detector, side by side on the sky; and when their shutter closed, Unix seconds.
    """
    closed_unix_s = now_unix_s - config.event_delay_s / config.speed_up
    closed = mjd_tai_from_unix(closed_unix_s)
    columns = int(np.ceil(np.sqrt(config.detectors)))
    events = []
    for detector in range(config.detectors):
        row, column = divmod(detector, columns)
        dec = _DEC_DEG + row * SPACING_DEG
        ra = _RA_DEG + column * SPACING_DEG / float(np.cos(np.radians(dec)))
        events.append(
            VisitReady(
                instrument=INSTRUMENT,
                visit=visit,
                detector=detector,
                band="r",
                shutter_open_mjd_tai=closed - _EXPOSURE_TIME_S / _DAY_S,
                shutter_close_mjd_tai=closed,
                exposure_time_s=_EXPOSURE_TIME_S,
                ra_deg=ra,
                dec_deg=dec,
                calexp_uri=f"file:///nowhere/{visit}/{detector}.fits",
                sent_at_mjd_tai=mjd_tai_from_unix(now_unix_s),
            )
        )
    return events, closed_unix_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a part of the fleet did, summed over the test, in seconds of the wall.

    Parameters
    ----------
    busy_s
        Seconds of use.
    capacity_s
        Seconds there were.
    """

    busy_s: float
    capacity_s: float

    @property
    def share(self) -> float:
        """Of what there was."""
        return self.busy_s / self.capacity_s if self.capacity_s > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What a test came to; seconds are the camera's."""

    n_exposures: int
    n_published: int
    n_alerts: int
    percentiles_s: Mapping[int, float]
    """Latency from the shutter's closing to the acknowledgement, by percentile; 100 is the slowest."""
    share_in_time: float
    """Of all alerts that were due, those that never came among them; of the exposures where none has any."""
    largest_backlog: int
    """Exposures sent and not yet acknowledged, at most."""
    left_over: Sequence[int]
    """Exposures not yet acknowledged when the next visit's shutter closed, by visit: growing, the fleet falls behind."""
    usage: Mapping[str, float]
    """Mean share of each part that was in use, the busiest first."""

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost and enough was in time."""
        return self.n_published == self.n_exposures and self.share_in_time >= TARGET_SHARE

    @property
    def saturates_first(self) -> str:
        """The part that a larger camera would exhaust first."""
        return next(iter(self.usage), "")

    @property
    def headroom(self) -> float:
        """By what factor the load could grow until that part has no rest, were the load spread evenly in time."""
        share = self.usage.get(self.saturates_first, 0.0)
        return 1.0 / share if share > 0 else float("inf")

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "good": self.is_good,
            "exposures": self.n_exposures,
            "published": self.n_published,
            "alerts": self.n_alerts,
            "latency_s": {f"p{rank}": round(value, 3) for rank, value in self.percentiles_s.items()},
            "share_in_time": self.share_in_time,
            "target_s": TARGET_S,
            "largest_backlog": self.largest_backlog,
            "left_over": list(self.left_over),
            "usage": {name: round(share, 4) for name, share in self.usage.items()},
            "saturates_first": self.saturates_first,
            "headroom": round(self.headroom, 3),
        }


def summarise(
    config: LoadConfig,
    *,
    closed_unix_s: Mapping[int, float],
    acked_unix_s: Mapping[Exposure, float],
    n_alerts: Mapping[Exposure, int],
    usage: Mapping[str, Usage],
) -> LoadReport:
    """Put together what was seen.

    Parameters
    ----------
    closed_unix_s
        When each visit's shutter closed.
    acked_unix_s
        When the summary of each exposure that was published was there to be read.
    n_alerts
        Alerts of those.
    usage
        By the part's name.
    """
    latencies = {key: (acked - closed_unix_s[key[0]]) * config.speed_up for key, acked in sorted(acked_unix_s.items())}
    values = np.array(list(latencies.values()))
    weights = np.array([n_alerts.get(key, 0) for key in latencies], dtype=float)
    due = float(config.model.n_alerts * config.n_exposures)
    if not due:
        weights, due = np.ones(len(values)), float(config.n_exposures)
    visits = sorted(closed_unix_s)
    delay_s = config.event_delay_s / config.speed_up
    changes = [(closed_unix_s[visit] + delay_s, config.detectors) for visit in visits]
    changes += [(acked, -1) for acked in acked_unix_s.values()]
    backlog = np.cumsum([change for _, change in sorted(changes)])
    left_over = [
        config.detectors - sum(key[0] == visit and acked < closed_unix_s[after] for key, acked in acked_unix_s.items())
        for visit, after in itertools.pairwise(visits)
    ]
    return LoadReport(
        n_exposures=config.n_exposures,
        n_published=len(values),
        n_alerts=sum(n_alerts.values()),
        percentiles_s={
            rank: float(np.percentile(values, rank)) if len(values) else float("nan") for rank in _PERCENTILES
        },
        share_in_time=float(weights[values <= TARGET_S].sum()) / due,
        largest_backlog=int(backlog.max()),
        left_over=left_over,
        usage={name: used.share for name, used in sorted(usage.items(), key=lambda item: item[1].share, reverse=True)},
    )
