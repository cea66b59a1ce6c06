"""A worker's two steps on an exposure: compute and store. No Kafka, no signals; one pipeline serves many exposures.

Compute has two halves. The pixels need no database; association needs the history of the sky under the exposure, and
is repeated alone where that history moved before it could be stored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog

from alertprod import __version__
from alertprod.alerts.cutouts import CutoutConfig
from alertprod.alerts.packet import LEFT_OUT_HEADER, PacketInfo
from alertprod.association.associate import Association, find_known
from alertprod.association.config import AssociationConfig
from alertprod.association.forced import ExposureFacts
from alertprod.association.history import History
from alertprod.association.reliability import ReliabilityScorer
from alertprod.association.solar_system import Ephemerides, SolarSystemConfig, predict
from alertprod.config import DaemonConfig, config_hash
from alertprod.errors import (
    AlertprodError,
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
from alertprod.service.packaging import Prepared, package_alerts, prepare_sources
from alertprod.service.stopwatch import Stopwatch
from alertprod.service.work import CacheUse, WorkOrder, WorkResult, summary_facts
from alertprod.store.apdb import Apdb, CellsMoved
from alertprod.store.ephemerides import EphemeridesStore, EphemeridesUnavailable
from alertprod.store.images import ImageStore
from alertprod.store.ledger import ClaimLost
from alertprod.store.outbox import OutboxFile, OutboxMessage, outbox_uri, write_outbox
from alertprod.store.sky import compute_footprint
from alertprod.store.template_cache import TemplateCache
from alertprod.store.templates import TemplateStore
from alertprod.stream.messages import VisitReady
from alertprod.stream.producer import MAX_MESSAGE_BYTES
from alertprod.tasks.image_difference import ImageDifferenceTask

ID_EXPOSURE_BITS = ID_BITS - COUNTER_BITS
"""Release and packed exposure: the bits above the counter."""

_MAX_ASSOCIATIONS = 20
"""A cell that moved so often within one exposure is not a neighbour at work but a fault: retried later."""

_MAX_ALERT_BYTES = MAX_MESSAGE_BYTES - 65536
"""What the brokers take, less key, headers and Kafka's own."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Science:
    """What becomes of an exposure's sources: how they are associated, scored, and known for bodies."""

    association: AssociationConfig
    solar_system: SolarSystemConfig
    scorer: ReliabilityScorer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """What an exposure is without its history: the pixels' part, done once."""

    differenced: Differenced
    facts: ExposureFacts
    """As of the computing; `time_processed_mjd_tai` is that of the association later."""
    prepared: Prepared


@dataclass(frozen=True, slots=True, kw_only=True)
class Alerts:
    """An exposure's alerts as they go on the wire, and the association they say."""

    association: Association
    messages: list[OutboxMessage]
    counts: dict[str, int]


class DifferenceStore(Protocol):
    """Where difference images are kept."""

    def keep_difference(self, difference: Exposure, data_id: Mapping[str, int | str]) -> None:
        """Keep one, in place of an earlier one of the same data id."""
        ...


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
    ephemerides
        Where predicted positions come from.
    science
        How sources are judged.
    clock
        For times of processing.
    differences
        Where difference images are kept; None: they are not.
    """

    def __init__(
        self,
        config: DaemonConfig,
        *,
        instruments: Mapping[str, Instrument],
        images: ImageStore,
        cache: TemplateCache,
        apdb: Apdb,
        ephemerides: EphemeridesStore,
        science: Science,
        clock: Clock,
        warm_up: Callable[[], object] = lambda: None,
        differences: DifferenceStore | None = None,
    ) -> None:
        self._config = config
        self._config_hash = config_hash(config)
        self._instruments = instruments
        self._images = images
        self._cache = cache
        self._apdb = apdb
        self._ephemerides = ephemerides
        self._science = science
        self._clock = clock
        self._warm_up = warm_up
        self._differences = differences

    def warm_up(self) -> None:
        """Compile what an exposure needs."""
        self._warm_up()

    def process(self, order: WorkOrder) -> WorkResult:
        """Compute and store one exposure; see `alertprod.service.work.Pipeline`."""
        watch = Stopwatch()
        with watch.stage("compute"):
            computed = compute(self, order.event, watch)
            alerts, outbox = store(self, order, computed, watch)
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
            figures=computed.differenced.figures,
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
            owns_inputs=True,
        )
        for stage, seconds in differenced.stage_seconds.items():
            watch.add(stage, seconds)
        limit = self._config.alerts.max_per_exposure
        n_sources = int((~differenced.sources["sky_source"]).sum())
        if n_sources > limit:
            raise TooManyDiaSources(n_sources, limit)
        return differenced

    def prepare(self, event: VisitReady, differenced: Differenced, watch: Stopwatch) -> Computed:
        """Select and score the sources, name the known bodies, cut out the pictures: all that needs no history."""
        facts = self._facts(event, differenced)
        with watch.stage("ephemerides"):
            expected, failed = self._predict(event, facts)
        alerts = self._config.alerts
        prepared = prepare_sources(
            differenced,
            facts,
            association=self._science.association,
            cutouts=CutoutConfig(
                min_size=alerts.cutout_min_pixels,
                max_size=alerts.cutout_max_pixels,
                max_psf_size=alerts.cutout_max_psf_pixels,
                with_mask_bits=alerts.cutout_mask_bits,
            ),
            scorer=self._science.scorer,
            expected=expected,
            solar_system=self._science.solar_system,
            watch=watch,
        )
        if failed:
            prepared.counts["ephemerides_failed"] = 1
        return Computed(differenced=differenced, facts=facts, prepared=prepared)

    def keep_difference(self, event: VisitReady, computed: Computed, watch: Stopwatch) -> None:
        """Keep the difference image where that is wanted; alerts go out without one that cannot be kept."""
        if self._differences is None:
            return
        data_id: dict[str, int | str] = {
            "instrument": event.instrument,
            "visit": event.visit,
            "detector": event.detector,
        }
        try:
            with watch.stage("keep"):
                self._differences.keep_difference(computed.differenced.difference, data_id)
        except AlertprodError as error:
            log.warning("the difference image is not kept", reason=error.reason(), problem=str(error))
            computed.prepared.counts["difference_not_kept"] = 1

    def associate(self, event: VisitReady, computed: Computed, history: History, watch: Stopwatch) -> Alerts:
        """Associate sources with their history and make the alerts' bytes."""
        differenced = computed.differenced
        science_info = differenced.science.info
        instrument = self._instruments[event.instrument]
        exposure_id = self._exposure_id(event, instrument)
        with watch.stage("associate"):
            packaged = package_alerts(
                computed.prepared,
                history,
                differenced,
                facts=replace(computed.facts, time_processed_mjd_tai=self._clock.mjd_tai()),
                info=PacketInfo(
                    observation_reason=event.observation_reason or science_info.observation_reason,
                    target_name=event.target_name or science_info.target_name,
                    program_version=__version__,
                    config_hash=self._config_hash,
                    is_nominal=differenced.science.photo_calib.is_nominal,
                ),
                forced_id_factory=instrument.task.makeIdFactory(exposure_id, ID_EXPOSURE_BITS),
                association=self._science.association,
            )
        with watch.stage("packets"):
            produced_ms = round(self._clock.unix_s() * 1000)
            made = packaged.messages(producer_timestamp_ms=produced_ms, max_bytes=_MAX_ALERT_BYTES)
            messages = [OutboxMessage(*message) for message in made]
        counts = {**packaged.counts, "shortened_alerts": sum(map(_is_shortened, messages))}
        if counts["shortened_alerts"]:
            log.warning("alerts too large for the brokers leave out history or cutouts", n=counts["shortened_alerts"])
        return Alerts(association=packaged.association, messages=messages, counts=counts)

    def store_alerts(
        self, order: WorkOrder, alerts: Alerts, cell_versions: Mapping[int, int], summary: Mapping[str, Any]
    ) -> OutboxFile:
        """Write the outbox file, then everything else in one transaction."""
        outbox = write_outbox(outbox_uri(self._config.store.outbox_uri, order.claim), alerts.messages)
        try:
            self._apdb.store_exposure(
                order.claim,
                sources=alerts.association.sources,
                objects=alerts.association.objects,
                forced=alerts.association.forced,
                cell_versions=cell_versions,
                outbox=outbox,
                summary=summary,
            )
        except ClaimLost:
            self._apdb.discard_outbox(outbox)
            raise
        return outbox

    def read_history(self, computed: Computed) -> tuple[History, Mapping[int, int]]:
        """Read what is known of the sky under an exposure, and how new it is.

        Notes
        -----
        All objects of the region, and the light curves of those that a source may be. The light curves are read after
        the objects: they may know more, but then a cell has moved, and the store says so.
        """
        facts, association = computed.facts, self._science.association
        objects, cell_versions = self._apdb.read_objects(compute_footprint(facts.wcs, facts.shape))
        sources, forced = self._apdb.read_light_curves(
            find_known(computed.prepared.sources, objects, radius_arcsec=association.radius_arcsec),
            since_mjd_tai=facts.midpoint_mjd_tai - association.history_days,
        )
        return History(objects=objects, sources=sources, forced=forced), cell_versions

    def summary(self, event: VisitReady, differenced: Differenced, alerts: Alerts, watch: Stopwatch) -> dict[str, Any]:
        """Return what the ledger keeps for the visit summary."""
        return summary_facts(
            event,
            counts=alerts.counts,
            stage_seconds=watch.seconds,
            figures=differenced.figures,
            versions=self._versions(),
        )

    def _facts(self, event: VisitReady, differenced: Differenced) -> ExposureFacts:
        difference = differenced.difference
        assert difference.wcs is not None  # `difference` has looked
        return ExposureFacts(
            visit=event.visit,
            detector=event.detector,
            band=event.band,
            midpoint_mjd_tai=difference.info.midpoint_mjd_tai or event.shutter_open_mjd_tai,
            time_processed_mjd_tai=self._clock.mjd_tai(),
            wcs=difference.wcs,
            shape=difference.shape,
        )

    def _predict(self, event: VisitReady, facts: ExposureFacts) -> tuple[Ephemerides | None, bool]:
        """Return the known bodies on the exposure, None where nobody says; and whether that is a failure."""
        uri = event.ephemeris_uri or self._config.solar_system.ephemeris_uri
        if uri is None:
            return None, False
        try:
            ephemerides = self._ephemerides.load(uri)
        except EphemeridesUnavailable as error:
            log.warning("no predicted positions, known bodies are not told from others", problem=str(error))
            return None, True
        footprint = compute_footprint(facts.wcs, facts.shape)
        settings = self._science.solar_system
        return predict(ephemerides, footprint, mjd_tai=facts.midpoint_mjd_tai, config=settings), False

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


def _is_shortened(message: OutboxMessage) -> bool:
    return any(name == LEFT_OUT_HEADER for name, _ in message.headers)


def compute(pipeline: ExposurePipeline, event: VisitReady, watch: Stopwatch) -> Computed:
    """Compute the pixels (step 3a), once, whatever happens to the history afterwards."""
    computed = pipeline.prepare(event, pipeline.difference(event, watch), watch)
    pipeline.keep_difference(event, computed, watch)
    return computed


def store(
    pipeline: ExposurePipeline, order: WorkOrder, computed: Computed, watch: Stopwatch
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
            history, cell_versions = pipeline.read_history(computed)
        alerts = pipeline.associate(order.event, computed, history, watch)
        summary = pipeline.summary(order.event, computed.differenced, alerts, watch)
        try:
            with watch.stage("store"):
                outbox = pipeline.store_alerts(order, alerts, cell_versions, summary)
        except CellsMoved as moved:
            log.info("history moved, associating again", n_cells=len(moved.cells))
            continue
        return alerts, outbox
    raise StoreUnavailable(f"the history under the exposure moved {_MAX_ASSOCIATIONS} times while it was associated")
