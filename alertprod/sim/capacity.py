"""How much a camera needs: cores, partitions, memory, network, database and disks, from measured costs.

The costs are in ``costs.toml`` beside this file, each with the command that measured it. Everything else is computed:
throughput from means, the latency of a burst by `alertprod.sim.visit_queue`.
"""

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import numpy as np

from alertprod.errors import ConfigError
from alertprod.sim.load import TARGET_S, TARGET_SHARE
from alertprod.sim.visit_queue import Fleet, compute_latencies

COSTS_PATH: Final = Path(__file__).parent / "costs.toml"

_LANES_PER_WORKER: Final = (2, 4, 8)
"""Events fall on lanes by chance: with more lanes fewer wait behind another of their own lane."""
_WORTH_MORE_LANES: Final = 0.95
"""More lanes are taken where they save a twentieth of the workers: partitions cost a broker little, but not nothing."""
_REST: Final = 0.8
"""Mean use of workers, publisher and database that a plan allows: above it, a slow exposure is not caught up with."""
_SIMULATED_EXPOSURES: Final = 2500
"""For the tail of 2 %: 50 exposures lie beyond it."""
_FIRST_VISITS_LEFT_OUT: Final = 2
"""The queue is empty when they come."""

_SECONDS_PER_HOUR: Final = 3600.0

_Section = TypeVar("_Section")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposureCosts:
    """One exposure of one detector, in a warm worker of one thread, its tiles in the cache."""

    wall_s: float
    """A worker's time on a core of its own."""
    cpu_s: float
    """Seconds of a core."""
    spread: float
    """Standard deviation of the logarithm of its time."""
    memory_bytes: float
    """Private memory of the worker at its peak."""
    image_bytes: float
    """The calibrated exposure as it is read."""
    tile_bytes: float
    """Decoded template tiles in the cache, for one detector."""
    tile_file_bytes: float
    """Their files, read once a field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonCosts:
    """The daemon's share, and what it leaves to database and broker."""

    cpu_s_per_exposure: float
    cpu_s_per_alert: float
    publish_s_per_exposure: float
    """Of the publisher's time, without alerts: one transaction."""
    publish_s_per_alert: float
    memory_bytes: float
    transactions_per_exposure: float
    """Of the database: claim, store, settle."""
    store_s_per_exposure: float
    """That one writer is held, without rows."""
    store_s_per_alert: float
    database_bytes_per_alert: float
    """A source, a forced source and their indexes."""
    broker_cpu_s_per_byte: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertCosts:
    """One alert."""

    bytes: float
    wire_ratio: float
    """Bytes on the wire and on the broker's disk for a byte of alert, compressed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """All that is measured."""

    exposure: ExposureCosts
    daemon: DaemonCosts
    alert: AlertCosts

    @classmethod
    def load(cls, path: Path = COSTS_PATH) -> Self:
        """Load a file of costs.

        Raises
        ------
        ConfigError
            Raised if it cannot be read, lacks a cost, has one too many, or one that is not positive.
        """
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(str(path), "(file)", f"cannot be read: {error}") from error
        return cls(
            exposure=_read_section(ExposureCosts, data, path, "exposure"),
            daemon=_read_section(DaemonCosts, data, path, "daemon"),
            alert=_read_section(AlertCosts, data, path, "alert"),
        )


def _read_section(kind: Callable[..., _Section], data: Mapping[str, Any], path: Path, name: str) -> _Section:
    values = data.get(name, {})
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ConfigError(str(path), f"{name}.{key}", f"{value!r} is no cost")
    try:
        return kind(**{key: float(value) for key, value in values.items()})
    except TypeError as error:
        raise ConfigError(str(path), name, str(error).partition("() ")[2] or str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """What is planned for.

    Parameters
    ----------
    event_delay_s
        From a shutter's closing to its events.
    alerts
        Of an exposure of one detector.
    night_hours, keep_days
        How long it observes, and how long the brokers keep alerts.
    replicas
        Copies of each message on the brokers.
    """

    detectors: int
    cadence_s: float = 39.0
    event_delay_s: float = 10.0
    alerts: float = 40_000 / 189
    night_hours: float = 10.0
    keep_days: float = 7.0
    replicas: int = 3

    def __post_init__(self) -> None:
        if self.detectors < 1 or self.cadence_s <= 0 or not 0 <= self.event_delay_s < TARGET_S or self.alerts < 0:
            raise ValueError(f"nothing can be planned for {self}")

    @property
    def exposures_per_s(self) -> float:
        """Mean rate."""
        return self.detectors / self.cadence_s

    @property
    def alerts_per_s(self) -> float:
        """Mean rate."""
        return self.exposures_per_s * self.alerts


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a camera needs; rates are means over the night unless they say otherwise."""

    camera: Camera
    fleet: Fleet
    latency_98_s: float
    """From the shutter's closing, computed for this fleet."""
    worker_cores: int
    other_cores: float
    """Of daemons and brokers."""
    memory_bytes: float
    """Workers, daemons, and the tiles of one field."""
    network_in_bytes_per_s: float
    """Exposures."""
    network_in_burst_bytes_per_s: float
    """While a visit's exposures are fetched: all workers read at once."""
    network_field_bytes: float
    """Template files of a field that no cache has."""
    network_out_bytes_per_s: float
    """Alerts, once; each consumer and each further replica takes as much."""
    kafka_disk_bytes: float
    outbox_disk_bytes_per_night: float
    database_rows_per_night: float
    """DiaSources and DiaForcedSources."""
    database_bytes_per_night: float
    transactions_per_s: float
    """Each one commit, one fsync."""
    use: Mapping[str, float]
    """Mean share in use by part, the busiest first."""
    most_detectors: Mapping[str, int]
    """Detectors that each part which more daemons do not widen could bear, the least first."""


def make_plan(camera: Camera, costs: Costs, *, workers_per_daemon: int = 16) -> Plan:
    """Plan a fleet for a camera.

    Parameters
    ----------
    workers_per_daemon
        At most; as many as a host has cores for.

    Raises
    ------
    ConfigError
        Raised if no number of workers brings 98 % of the alerts within 60 s: a single exposure takes too long.

    Notes
    -----
    Workers are of one thread: where there are always exposures that wait, a core does most that way.

    1. At least ``detectors * wall_s / cadence / 0.8`` workers, so that there is rest; at least ``detectors * publish_s /
       cadence / 0.8`` daemons, each of which publishes one exposure at a time.
    2. Then as many as the burst needs: the 98th percentile of the latencies of `compute_latencies` is at most 60 s less
       the delay of the events.
    """
    publish_s = costs.daemon.publish_s_per_exposure + camera.alerts * costs.daemon.publish_s_per_alert
    fleets = [_find_fleet(camera, costs, publish_s, lanes, workers_per_daemon) for lanes in _LANES_PER_WORKER]
    fleet, latency = fleets[0]
    for wider, wider_latency in fleets[1:]:
        if wider.all_workers < _WORTH_MORE_LANES * fleet.all_workers:
            fleet, latency = wider, wider_latency
    exposure, daemon = costs.exposure, costs.daemon
    alert_bytes_per_s = camera.alerts_per_s * costs.alert.bytes
    wire_bytes_per_s = alert_bytes_per_s * costs.alert.wire_ratio
    night_s = camera.night_hours * _SECONDS_PER_HOUR
    store_s = daemon.store_s_per_exposure + camera.alerts * daemon.store_s_per_alert
    rate = camera.exposures_per_s
    use = {
        "workers": rate * exposure.wall_s / fleet.all_workers,
        "publishers": rate * publish_s / fleet.daemons,
        "SQLite's one writer": rate * store_s,
        "a network of 10 Gbit/s": (rate * exposure.image_bytes + wire_bytes_per_s) / (10e9 / 8),
    }
    return Plan(
        camera=camera,
        fleet=fleet,
        latency_98_s=latency,
        worker_cores=math.ceil(fleet.all_workers * min(1.0, exposure.cpu_s / exposure.wall_s)),
        other_cores=rate * daemon.cpu_s_per_exposure
        + camera.alerts_per_s * daemon.cpu_s_per_alert
        + wire_bytes_per_s * camera.replicas * daemon.broker_cpu_s_per_byte,
        memory_bytes=fleet.all_workers * exposure.memory_bytes
        + fleet.daemons * daemon.memory_bytes
        + camera.detectors * exposure.tile_bytes,
        network_in_bytes_per_s=rate * exposure.image_bytes,
        network_in_burst_bytes_per_s=fleet.all_workers * exposure.image_bytes / exposure.wall_s,
        network_field_bytes=camera.detectors * exposure.tile_file_bytes,
        network_out_bytes_per_s=wire_bytes_per_s,
        kafka_disk_bytes=wire_bytes_per_s * night_s * camera.keep_days * camera.replicas,
        outbox_disk_bytes_per_night=alert_bytes_per_s * night_s,
        database_rows_per_night=2.0 * camera.alerts_per_s * night_s,
        database_bytes_per_night=camera.alerts_per_s * night_s * daemon.database_bytes_per_alert,
        transactions_per_s=rate * daemon.transactions_per_exposure,
        use=dict(sorted(use.items(), key=lambda item: item[1], reverse=True)),
        most_detectors=dict(
            sorted(
                (
                    (name, math.floor(_REST * camera.detectors / use[name]))
                    for name in ("SQLite's one writer", "a network of 10 Gbit/s")
                ),
                key=lambda item: item[1],
            )
        ),
    )


def _find_fleet(
    camera: Camera, costs: Costs, publish_s: float, lanes_per_worker: int, workers_per_daemon: int
) -> tuple[Fleet, float]:
    """Return the smallest fleet that is quick enough, and its 98th percentile from the shutter's closing."""
    rate = camera.exposures_per_s
    n_workers = max(1, math.ceil(rate * costs.exposure.wall_s / _REST))
    least_daemons = max(1, math.ceil(rate * publish_s / _REST))
    most = max(2 * camera.detectors, n_workers)
    while True:
        fleet = _make_fleet(n_workers, least_daemons, lanes_per_worker, workers_per_daemon)
        latency = camera.event_delay_s + _compute_98(camera, costs, publish_s, fleet)
        if latency <= TARGET_S:
            return fleet, latency
        if n_workers > most:
            problem = f"an exposure of {costs.exposure.wall_s:g} s cannot be in time, whatever the number of workers"
            raise ConfigError("capacity plan", "exposure.wall_s", problem)
        n_workers = max(n_workers + 1, math.ceil(1.05 * n_workers))


def _make_fleet(n_workers: int, least_daemons: int, lanes_per_worker: int, workers_per_daemon: int) -> Fleet:
    daemons = max(least_daemons, math.ceil(n_workers / workers_per_daemon))
    workers = math.ceil(n_workers / daemons)
    return Fleet(daemons=daemons, workers=workers, partitions=lanes_per_worker * daemons * workers)


def _compute_98(camera: Camera, costs: Costs, publish_s: float, fleet: Fleet) -> float:
    visits = _FIRST_VISITS_LEFT_OUT + math.ceil(_SIMULATED_EXPOSURES / camera.detectors)
    latencies = compute_latencies(
        fleet,
        detectors=camera.detectors,
        visits=visits,
        cadence_s=camera.cadence_s,
        work_s=costs.exposure.wall_s,
        publish_s=publish_s,
        spread=costs.exposure.spread,
    )
    return float(np.percentile(latencies[_FIRST_VISITS_LEFT_OUT:], 100.0 * TARGET_SHARE))
