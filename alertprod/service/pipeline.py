"""A worker's two steps on an exposure: compute and store. No Kafka, no signals; one pipeline serves many exposures.

Compute has two halves. The pixels need no database; association needs the history of the sky under the exposure, and
is repeated alone where that history moved before it could be stored.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from alertprod import __version__
from alertprod.alerts.avro import encode_alert
from alertprod.alerts.cutouts import CutoutConfig
from alertprod.alerts.packet import PacketInfo, alert_headers, alert_key
from alertprod.association.associate import Association, AssociationConfig
from alertprod.association.forced import ExposureFacts
from alertprod.association.history import History
from alertprod.config import DaemonConfig, config_hash
from alertprod.errors import (
    CorruptImage,
    InvalidEvent,
    StoreUnavailable,
    TooManyDiaSources,
)
from alertprod.ids import COUNTER_BITS, ID_BITS, ExposurePacker, pack_release
from alertprod.images.exposure import Exposure
from alertprod.images.facts import check_facts
from alertprod.images.profile import InstrumentProfile
from alertprod.service.clock import Clock
from alertprod.service.differencing import Differenced, difference_exposures
from alertprod.service.packaging import package_alerts
from alertprod.service.work import CacheUse, WorkOrder, WorkResult, summary_facts
from alertprod.store.apdb import Apdb, CellsMoved
from alertprod.store.images import ImageStore
from alertprod.store.outbox import OutboxFile, OutboxMessage, outbox_uri, write_outbox
from alertprod.store.sky import compute_footprint
from alertprod.store.template_cache import TemplateCache
from alertprod.store.templates import TemplateStore
from alertprod.stream.messages import VisitReady
from alertprod.tasks.image_difference import ImageDifferenceTask

ID_EXPOSURE_BITS = ID_BITS - COUNTER_BITS
"""Release and packed exposure: the bits above the counter."""

_MAX_ASSOCIATIONS = 20
"""A cell that moved so often within one exposure is not a neighbour at work but a fault: retried later."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    """What a worker needs to process the exposures of one instrument."""

    name: str
    profile: InstrumentProfile
    packer: ExposurePacker
    release: int
    task: ImageDifferenceTask
    templates: TemplateStore
    template_bands: Mapping[str, str]


@dataclass(slots=True)
class Stopwatch:
    """Wall seconds by stage; a stage entered again adds up."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block as stage `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Alerts:
    """An exposure's alerts as they go on the wire, and the association they say."""

    association: Association
    messages: list[OutboxMessage]
    counts: dict[str, int]


class ExposurePipeline:
    """Computes and stores exposures.

    Parameters
    ----------
    config
        The daemon's.
    instruments
        By name.
    images
        Where exposures come from.
    cache
        The template cache, for its counts.
    apdb
        The history.
    clock
        For times of processing.
    """

    def __init__(
        self,
        config: DaemonConfig,
        *,
        instruments: Mapping[str, Instrument],
        images: ImageStore,
        cache: TemplateCache,
        apdb: Apdb,
        clock: Clock,
        warm_up: Callable[[], object] = lambda: None,
    ) -> None:
        self._config = config
        self._config_hash = config_hash(config)
        self._instruments = instruments
        self._images = images
        self._cache = cache
        self._apdb = apdb
        self._clock = clock
        self._warm_up = warm_up

    def warm_up(self) -> None:
        """Compile what an exposure needs."""
        self._warm_up()

    def process(self, order: WorkOrder) -> WorkResult:
        """Compute and store one exposure; see `alertprod.service.work.Pipeline`."""
        watch = Stopwatch()
        with watch.stage("compute"):
            differenced = compute(self, order.event, watch)
            alerts, outbox = store(self, order, differenced, watch)
        log.info(
            "exposure stored",
            n_alerts=len(alerts.messages),
            compute_s=round(watch.seconds["compute"], 3),
            **alerts.counts,
        )
        return WorkResult(
            outcome="stored",
            outbox=outbox,
            counts=alerts.counts,
            stage_seconds=watch.seconds,
            figures=differenced.figures,
            versions=self._versions(),
            cache=self._cache_use(),
        )

    def difference(self, event: VisitReady, watch: Stopwatch) -> Differenced:
        """Load an exposure and its template; subtract, detect, measure.

        Raises
        ------
        AlertprodError
            Raised for each fault of event, file, template or match; its class is its fate.
        """
        instrument = self._instruments[event.instrument]
        exposure_id = self._exposure_id(event, instrument)
        with watch.stage("load"):
            science = self._load(event, instrument)
            background = None
            if event.background_uri is not None and instrument.task.config.doAddCalexpBackground:
                background = self._images.load(event.background_uri, instrument.profile)
        if science.wcs is None:
            raise CorruptImage(event.calexp_uri, "IMAGE", "no world coordinates")
        built = instrument.templates.build_template(
            science.wcs,
            science.shape,
            instrument.template_bands.get(event.band, event.band),
            tile_uris=event.template_uris,
            required_coverage=instrument.task.config.requiredTemplateFraction,
        )
        watch.add("templates", built.load_s)
        watch.add("warp", built.warp_s)
        differenced = difference_exposures(
            instrument.task,
            science,
            built.exposure,
            id_factory=instrument.task.makeIdFactory(exposure_id, ID_EXPOSURE_BITS),
            background=background,
        )
        for stage, seconds in differenced.stage_seconds.items():
            watch.add(stage, seconds)
        limit = self._config.alerts.max_per_exposure
        if differenced.sources.n_rows > limit:
            raise TooManyDiaSources(differenced.sources.n_rows, limit)
        return differenced

    def associate(self, event: VisitReady, differenced: Differenced, history: History, watch: Stopwatch) -> Alerts:
        """Associate sources with their history and make the alerts' bytes."""
        now_mjd_tai = self._clock.mjd_tai()
        difference = differenced.difference
        instrument = self._instruments[event.instrument]
        exposure_id = self._exposure_id(event, instrument)
        assert difference.wcs is not None  # `difference` has looked
        facts = ExposureFacts(
            visit=event.visit,
            detector=event.detector,
            band=event.band,
            midpoint_mjd_tai=difference.info.midpoint_mjd_tai or event.shutter_open_mjd_tai,
            time_processed_mjd_tai=now_mjd_tai,
            wcs=difference.wcs,
            shape=difference.shape,
        )
        alerts_config = self._config.alerts
        with watch.stage("associate"):
            packaged = package_alerts(
                differenced,
                history,
                facts=facts,
                info=PacketInfo(
                    observation_reason=event.observation_reason,
                    target_name=event.target_name,
                    program_version=__version__,
                    config_hash=self._config_hash,
                    is_nominal=differenced.science.photo_calib.is_nominal,
                ),
                forced_id_factory=instrument.task.makeIdFactory(exposure_id, ID_EXPOSURE_BITS),
                association=AssociationConfig(radius_arcsec=self._config.association.radius_arcsec),
                cutouts=CutoutConfig(
                    min_size=alerts_config.cutout_min_pixels,
                    max_size=alerts_config.cutout_max_pixels,
                    with_mask_bits=alerts_config.cutout_mask_bits,
                ),
            )
        with watch.stage("packets"):
            produced_ms = round(self._clock.unix_s() * 1000)
            messages = [
                OutboxMessage(
                    key=alert_key(packet),
                    value=encode_alert(packet),
                    headers=tuple(alert_headers(packet, packaged.info, producer_timestamp_ms=produced_ms)),
                )
                for packet in packaged.packets()
            ]
        return Alerts(association=packaged.association, messages=messages, counts=packaged.counts)

    def store_alerts(
        self, order: WorkOrder, alerts: Alerts, cell_versions: Mapping[int, int], summary: Mapping[str, Any]
    ) -> OutboxFile:
        """Write the outbox file, then everything else in one transaction."""
        outbox = write_outbox(outbox_uri(self._config.store.outbox_uri, order.claim), alerts.messages)
        self._apdb.store_exposure(
            order.claim,
            sources=alerts.association.sources,
            objects=alerts.association.objects,
            forced=alerts.association.forced,
            cell_versions=cell_versions,
            outbox=outbox,
            summary=summary,
        )
        return outbox

    def read_history(self, event: VisitReady, differenced: Differenced) -> tuple[History, Mapping[int, int]]:
        """Read what is known of the sky under an exposure, and how new it is."""
        difference = differenced.difference
        assert difference.wcs is not None  # `difference` has looked
        read = self._apdb.read_history(
            compute_footprint(difference.wcs, difference.shape),
            mjd_tai=event.shutter_open_mjd_tai,
            window_days=self._config.association.history_days,
        )
        return read.history, read.cell_versions

    def summary(self, event: VisitReady, differenced: Differenced, alerts: Alerts, watch: Stopwatch) -> dict[str, Any]:
        """Return what the ledger keeps for the visit summary."""
        return summary_facts(
            event,
            counts=alerts.counts,
            stage_seconds=watch.seconds,
            figures=differenced.figures,
            versions=self._versions(),
        )

    def _load(self, event: VisitReady, instrument: Instrument) -> Exposure:
        science = self._images.load(event.calexp_uri, instrument.profile)
        check_facts(
            science.info,
            visit=event.visit,
            detector=event.detector,
            band=event.band,
            ra_deg=event.ra_deg,
            dec_deg=event.dec_deg,
            max_offset_arcsec=self._config.limits.max_pointing_offset_arcsec,
            uri=event.calexp_uri,
            profile=instrument.profile,
        )
        # Where both speak, the event has the last word on times: the scheduler's clock, not the file's rounding.
        info = replace(
            science.info,
            instrument=event.instrument,
            visit=event.visit,
            detector=event.detector,
            band=event.band,
            shutter_open_mjd_tai=event.shutter_open_mjd_tai,
            shutter_close_mjd_tai=event.shutter_close_mjd_tai,
            exposure_time_s=event.exposure_time_s,
            rotation_deg=event.rotation_deg if event.rotation_deg is not None else science.info.rotation_deg,
        )
        return replace(science, info=info)

    def _exposure_id(self, event: VisitReady, instrument: Instrument) -> int:
        try:
            packed = instrument.packer.pack(visit=event.visit, detector=event.detector)
        except ValueError as error:
            raise InvalidEvent("visit", str(error)) from error
        return pack_release(packed, release=instrument.release)

    def _versions(self) -> dict[str, str]:
        return {"alertprod": __version__, "config_hash": self._config_hash}

    def _cache_use(self) -> CacheUse:
        counts = self._cache.take_counts()
        return CacheUse(
            hits=counts.hits,
            misses=counts.misses,
            evictions=counts.evictions,
            size_bytes=self._cache.compute_size_bytes(),
        )


def compute(pipeline: ExposurePipeline, event: VisitReady, watch: Stopwatch) -> Differenced:
    """Compute the pixels (step 3a), once, whatever happens to the history afterwards."""
    return pipeline.difference(event, watch)


def store(
    pipeline: ExposurePipeline, order: WorkOrder, differenced: Differenced, watch: Stopwatch
) -> tuple[Alerts, OutboxFile]:
    """Associate and store: steps 3b and 4.

    1. read the history and note how new it is;
    2. associate, measure forced fluxes, make the packets;
    3. write the outbox file;
    4. store everything in one transaction, where the claim is ours and the history is what was read;
    5. where the history moved, begin again at 1: the pixels are kept.

    Raises
    ------
    ClaimLost
        Raised if somebody else holds the exposure by now.
    StoreUnavailable
        Raised if the history keeps moving, or the store does not answer.
    """
    for _ in range(_MAX_ASSOCIATIONS):
        with watch.stage("history"):
            history, cell_versions = pipeline.read_history(order.event, differenced)
        alerts = pipeline.associate(order.event, differenced, history, watch)
        summary = pipeline.summary(order.event, differenced, alerts, watch)
        try:
            with watch.stage("store"):
                outbox = pipeline.store_alerts(order, alerts, cell_versions, summary)
        except CellsMoved as moved:
            log.info("history moved, associating again", n_cells=len(moved.cells))
            continue
        return alerts, outbox
    raise StoreUnavailable(f"the history under the exposure moved {_MAX_ASSOCIATIONS} times while it was associated")
