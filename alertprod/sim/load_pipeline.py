"""A pipeline whose pixels are a clock: stages take the time they are told, history and alerts go the real way.

Everything about the pixels is replaced. The history is read, rows are stored and the outbox is written as the real
pipeline does it, so that database, disk and broker see the load of a real camera.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from alertprod import __version__
from alertprod.association.columns import DIA_FORCED_SOURCE_COLUMNS, DIA_OBJECT_COLUMNS
from alertprod.geometry.wcs import SkyWcs
from alertprod.measurement.catalog import STORED_DIA_SOURCE_COLUMNS, Catalog, Column
from alertprod.service.stopwatch import Stopwatch
from alertprod.service.work import WorkOrder, WorkResult, summary_facts
from alertprod.store.apdb import Apdb, CellsMoved, CellVersions
from alertprod.store.database import Database
from alertprod.store.ledger import ClaimLost, Ledger
from alertprod.store.outbox import OutboxFile, OutboxMessage, outbox_uri, write_outbox
from alertprod.store.sky import compute_footprint
from alertprod.stream.messages import VisitReady

_SIDE: Final = 4096
_SCALE_ARCSEC: Final = 0.2
SPACING_DEG: Final = 0.24
"""From detector to detector: 4096 pixels of 0.2 arcsec, and a gap."""

_HISTORY_DAYS: Final = 360.0
_MAX_STORES: Final = 20
_COUNTER_BITS: Final = 16
_DETECTOR_BITS: Final = 10
"""Of an id: counter of the exposure's sources, detector, and above them the visit."""

MAX_DETECTORS: Final = 1 << _DETECTOR_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class StageModel:
    """What an exposure costs.

    Parameters
    ----------
    stage_seconds
        Mean seconds of each stage that is replaced.
    spread
        Standard deviation of the logarithm of an exposure's time: crowded fields take longer.
    burns
        Whether stages keep a core busy; otherwise they sleep, and one machine can play many.
    n_alerts
        Alerts of an exposure, each of an object that every visit sees again.
    alert_bytes
        Of an alert; nothing that compresses, as noise in cutouts hardly does.
    """

    stage_seconds: Mapping[str, float] = field(default_factory=lambda: {"load": 0.2, "subtract": 0.8})
    spread: float = 0.15
    burns: bool = False
    n_alerts: int = 10
    alert_bytes: int = 100_000

    def __post_init__(self) -> None:
        numbers = (*self.stage_seconds.values(), self.spread, self.n_alerts, self.alert_bytes)
        if any(number < 0 for number in numbers) or self.n_alerts >= 1 << _COUNTER_BITS:
            raise ValueError(f"no exposure costs {self}")

    def draw_factor(self, event: VisitReady) -> float:
        """Return how much longer than the mean an exposure takes: the same whoever computes it."""
        rng = np.random.default_rng([event.visit, event.detector])
        return float(np.exp(self.spread * rng.standard_normal() - 0.5 * self.spread**2))


@dataclass(frozen=True, slots=True)
class LoadPipelineFactory:
    """Builds the pipeline in a worker process; picklable."""

    database_url: str
    outbox: str
    model: StageModel

    def __call__(self) -> "LoadPipeline":
        """Build it."""
        return LoadPipeline(Database(self.database_url), self.outbox, self.model)


class LoadPipeline:
    """Spends the model's time, then reads, stores and writes what a real exposure does.

    Parameters
    ----------
    database
        At the program's revision.
    outbox
        Its folder.
    model
        What an exposure costs.
    """

    def __init__(self, database: Database, outbox: str, model: StageModel) -> None:
        self._apdb = Apdb(database, Ledger(database))
        self._outbox, self._model = outbox, model
        self._noise = np.random.default_rng(1).bytes(2 * model.alert_bytes)

    def warm_up(self) -> None:
        """Nothing is compiled here."""

    def process(self, order: WorkOrder) -> WorkResult:
        """Compute nothing, store as if; see `alertprod.service.work.Pipeline`."""
        watch = Stopwatch()
        with watch.stage("compute"):
            factor = self._model.draw_factor(order.event)
            for stage, seconds in self._model.stage_seconds.items():
                with watch.stage(stage):
                    spend(factor * seconds, burns=self._model.burns)
            outbox = self._store(order, watch)
        return WorkResult(
            outcome="stored",
            outbox=outbox,
            counts={"dia_sources": self._model.n_alerts},
            stage_seconds=watch.seconds,
            versions={"alertprod": __version__},
        )

    def _store(self, order: WorkOrder, watch: Stopwatch) -> OutboxFile:
        """Read the history and store: anew where a neighbour has stored meanwhile."""
        event = order.event
        objects = make_objects(event, self._model.n_alerts)
        wcs = SkyWcs.from_tangent(
            ra_deg=event.ra_deg, dec_deg=event.dec_deg, x=_SIDE / 2, y=_SIDE / 2, scale_arcsec=_SCALE_ARCSEC
        )
        footprint = compute_footprint(wcs, (_SIDE, _SIDE))
        with watch.stage("packets"):
            messages = self._make_messages(event)
        for _ in range(_MAX_STORES):
            with watch.stage("history"):
                _, cells = self._apdb.read_objects(footprint)
                self._apdb.read_light_curves(
                    objects["dia_object_id"], since_mjd_tai=event.shutter_close_mjd_tai - _HISTORY_DAYS
                )
            try:
                with watch.stage("store"):
                    return self._store_once(order, objects, cells, messages, watch)
            except CellsMoved:
                continue
        raise RuntimeError(f"the history under {event.key.decode()} moved {_MAX_STORES} times")

    def _store_once(
        self, order: WorkOrder, objects: Catalog, cells: CellVersions, messages: list[OutboxMessage], watch: Stopwatch
    ) -> OutboxFile:
        event = order.event
        outbox = write_outbox(outbox_uri(self._outbox, order.claim), messages)
        try:
            self._apdb.store_exposure(
                order.claim,
                sources=_make_rows(STORED_DIA_SOURCE_COLUMNS, "dia_source_id", event, objects),
                objects=objects,
                forced=_make_rows(DIA_FORCED_SOURCE_COLUMNS, "dia_forced_source_id", event, objects),
                cell_versions=cells,
                outbox=outbox,
                summary=summary_facts(
                    event, counts={"dia_sources": objects.n_rows}, stage_seconds=watch.seconds, versions={}
                ),
            )
        except ClaimLost:
            self._apdb.discard_outbox(outbox)
            raise
        return outbox

    def _make_messages(self, event: VisitReady) -> list[OutboxMessage]:
        size = self._model.alert_bytes
        starts = np.random.default_rng([1, event.visit, event.detector]).integers(size + 1, size=self._model.n_alerts)
        return [
            OutboxMessage(b"%d" % number, self._noise[start : start + size], ())
            for number, start in enumerate(starts.tolist())
        ]


def make_objects(event: VisitReady, n: int) -> Catalog:
    """Return new versions of the objects that every visit sees on a detector.

    Notes
    -----
    They keep clear of the detector's border, so that no cell's objects belong to two detectors alone; cells along the
    border are shared all the same, and move under a neighbour as they do in a real camera.
    """
    rng = np.random.default_rng([2, event.detector])
    half = 0.45 * SPACING_DEG
    objects = _fill(Catalog(DIA_OBJECT_COLUMNS, n), rng)
    objects["dia_object_id"] = 1 + (event.detector << _COUNTER_BITS) + np.arange(n)
    objects["ra_deg"] = (event.ra_deg + rng.uniform(-half, half, n) / np.cos(np.radians(event.dec_deg))) % 360.0
    objects["dec_deg"] = event.dec_deg + rng.uniform(-half, half, n)
    for name in ("validity_start_mjd_tai", "first_dia_source_mjd_tai", "last_dia_source_mjd_tai"):
        objects[name] = event.shutter_close_mjd_tai
    return objects


def _make_rows(columns: tuple[Column, ...], id_name: str, event: VisitReady, objects: Catalog) -> Catalog:
    """Return one source, or one forced source, of each object."""
    n = objects.n_rows
    rows = _fill(Catalog(columns, n), np.random.default_rng([3, event.visit, event.detector]))
    rows[id_name] = (((event.visit << _DETECTOR_BITS) + event.detector) << _COUNTER_BITS) + np.arange(n)
    for name in ("dia_object_id", "ra_deg", "dec_deg"):
        rows[name] = objects[name]
    rows["visit"], rows["detector"], rows["band"] = event.visit, event.detector, event.band
    rows["midpoint_mjd_tai"] = rows["time_processed_mjd_tai"] = event.shutter_close_mjd_tai
    return rows


def _fill(catalog: Catalog, rng: np.random.Generator) -> Catalog:
    """Give every number a value: a row of real width."""
    for column in catalog.columns:
        if column.dtype in ("f4", "f8"):
            catalog[column.name] = rng.uniform(1.0, 1000.0, catalog.n_rows)
    return catalog


def spend(seconds: float, *, burns: bool) -> None:
    """Let time pass, with or without a core.

    Notes
    -----
    Burnt seconds are seconds of CPU: with more workers than cores they take longer on the wall, as work does.
    """
    if not burns:
        time.sleep(seconds)
        return
    until = time.thread_time() + seconds
    values = np.linspace(0.0, 1.0, 4096)
    while time.thread_time() < until:
        values = np.sqrt(values * values + 1e-12)
