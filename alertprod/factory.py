"""The only place that knows which concrete parts make a daemon, a worker or an offline difference."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alertprod import __version__
from alertprod.alerts.registry import ALERT_SCHEMA_ID, ALERT_SCHEMA_VERSION
from alertprod.association.config import AssociationConfig
from alertprod.association.reliability import SCORERS, load_scorer
from alertprod.association.solar_system import SolarSystemConfig
from alertprod.config import DaemonConfig, InstrumentConfig, config_hash, load_config
from alertprod.errors import ConfigError
from alertprod.geometry.sphere import ARCSEC_PER_DEG, SphericalPolygon
from alertprod.images.profile import InstrumentProfile, load_profile
from alertprod.logs import get_logger
from alertprod.metrics import Metrics
from alertprod.service.clock import Clock
from alertprod.service.daemon import AlertDaemon
from alertprod.service.health import Health, HealthServer
from alertprod.service.pipeline import ExposurePipeline, Instrument, Science
from alertprod.service.recent import Recent
from alertprod.service.reload import Reloaded, keep_what_is_fixed
from alertprod.service.start_checks import (
    Finding,
    StartRefused,
    check_database,
    check_disks,
    check_schemas,
    check_templates,
    check_topics,
    collect,
)
from alertprod.service.steps import Identity
from alertprod.service.warm_up import warm_up
from alertprod.service.work import PipelineFactory
from alertprod.service.worker import WorkerPool
from alertprod.store.apdb import Apdb
from alertprod.store.database import Database
from alertprod.store.ephemerides import EphemeridesStore
from alertprod.store.images import ImageStore
from alertprod.store.ledger import Ledger
from alertprod.store.outbox import clean_outbox
from alertprod.store.template_cache import TemplateCache
from alertprod.store.templates import TemplateStore
from alertprod.stream.consumer import EventConsumer, LanesCallback
from alertprod.stream.messages import NextVisit
from alertprod.stream.producer import AlertProducer
from alertprod.stream.schemas import FixedSchemas, RegistrySchemas, WriterSchemas
from alertprod.stream.topics import describe_brokers
from alertprod.tasks.characterize import CharacterizeTask
from alertprod.tasks.config_fields import apply_overrides
from alertprod.tasks.image_difference import ImageDifferenceConfig, ImageDifferenceTask
from alertprod.tasks.plugins import find_plugin

if TYPE_CHECKING:
    from alertprod.butler.images import ButlerImages

_SECONDS_PER_DAY = 86400.0
_ARCSEC_PER_S = 3600.0 / 86400.0
"""In a degree a day."""


def create_task(overrides: Mapping[str, Any], *, source: str, n_threads: int = 2) -> ImageDifferenceTask:
    """Create the task with dotted overrides of its configuration.

    Parameters
    ----------
    n_threads
        Of everything in it that has threads, where no override says otherwise.

    Raises
    ------
    ConfigError
        Raised if an override does not fit; `source` names the file.
    """
    config = ImageDifferenceConfig()
    for kind in ("AL", "DF"):
        config.subtract["al"].kernel[kind].nThreads = n_threads
    for subtask in (config.getTemplate, config.register, config.decorrelate, config.subtract["zogy"].zogyConfig):
        subtask.nThreads = n_threads
    apply_overrides(config, overrides, source=source)
    return ImageDifferenceTask(config)


def create_instruments(
    config: DaemonConfig, cache: TemplateCache, butler: "ButlerImages | None" = None
) -> dict[str, Instrument]:
    """Create every instrument of a configuration."""
    threads = config.workers.threads_per_worker
    return {
        name: Instrument(
            name=name,
            profile=load_profile(settings.profile),
            packer=load_profile(settings.profile).create_packer(),
            release=settings.release,
            task=create_task(settings.difference, source=f"[instruments.{name}]", n_threads=threads),
            templates=_create_templates(config, settings, cache, butler),
            template_bands=settings.template_bands,
        )
        for name, settings in config.instruments.items()
    }


def create_science(config: DaemonConfig) -> Science:
    """Create what association, scores and the match with the Solar System go by.

    Raises
    ------
    ConfigError
        Raised if a flag is none of a DiaSource's, or the scorer cannot be made.
    """
    alerts = config.alerts
    return Science(
        association=_create_association(config),
        solar_system=SolarSystemConfig(
            radius_arcsec=config.solar_system.radius_arcsec,
            systematic_err_arcsec=config.association.systematic_err_arcsec,
            max_propagation_s=config.solar_system.max_propagation_s,
        ),
        scorer=None if alerts.scorer is None else load_scorer(alerts.scorer, alerts.scorer_options),
    )


def _create_association(config: DaemonConfig) -> AssociationConfig:
    settings = config.association
    flags = {
        name: value for name in ("excluded_flags", "new_object_flags") if (value := getattr(settings, name)) is not None
    }
    return AssociationConfig(
        radius_arcsec=settings.radius_arcsec,
        systematic_err_arcsec=settings.systematic_err_arcsec,
        history_days=settings.history_days,
        min_science_snr=settings.min_science_snr,
        max_trail_rate_arcsec_per_s=settings.max_trail_deg_per_day * _ARCSEC_PER_S,
        min_reliability=config.alerts.min_reliability,
        min_new_object_reliability=settings.min_new_object_reliability,
        **flags,
    )


def _check_science(config: DaemonConfig, *, source: str) -> None:
    """Check flags and the scorer's name; the scorer itself, a model perhaps, is for the workers to make."""
    try:
        _create_association(config)
    except ConfigError as error:
        raise ConfigError(source, f"association.{error.field}", error.problem) from error
    if config.alerts.scorer is not None:
        try:
            find_plugin(SCORERS, config.alerts.scorer)
        except ConfigError as error:
            raise ConfigError(source, "alerts.scorer", str(error)) from error


@dataclass(frozen=True, slots=True)
class WorkerPipeline:
    """Builds the pipeline in a worker process; picklable."""

    config: DaemonConfig

    def __call__(self) -> ExposurePipeline:
        """Build it."""
        config = self.config
        butler = _open_butler(config)
        images = _create_images(butler)
        cache = _create_cache(config, images)
        instruments = create_instruments(config, cache, butler)
        database = Database(config.store.open_url())
        threads = config.workers.threads_per_worker
        task = create_task({}, source="warm-up", n_threads=threads)
        science = create_science(config)
        return ExposurePipeline(
            config,
            instruments=instruments,
            images=images,
            cache=cache,
            apdb=Apdb(database, Ledger(database)),
            ephemerides=EphemeridesStore(),
            science=science,
            clock=Clock(),
            warm_up=lambda: warm_up(task, n_threads=threads, scorer=science.scorer),
            differences=None if config.butler.difference_run is None else butler,
        )


def check_start(config: DaemonConfig, *, source: str) -> list[Finding]:
    """Check all that must be right before a daemon starts; an empty database gets its tables.

    Returns
    -------
    list
        Remarks: it can start all the same.

    Raises
    ------
    StartRefused
        Raised if it cannot, with everything that is wrong.
    ConfigError
        Raised if the configuration itself cannot be used.
    """
    check_config(config, source=source)
    _open_butler(config)
    kafka = config.kafka
    database = Database(config.store.open_url())
    describe = partial(describe_brokers, kafka.bootstrap_servers, options=kafka.client_options())
    checks = [check_database(database), check_topics(config, describe), check_templates(config), check_disks(config)]
    if kafka.registry_url is not None:
        registry = RegistrySchemas(kafka.registry_url, authorization=kafka.registry_authorization())
        checks.append(check_schemas(registry.knows, ALERT_SCHEMA_ID))
    found = collect(*checks)
    database.close()
    fatal = tuple(finding for finding in found if finding.weight != "remark")
    if fatal:
        raise StartRefused(source, fatal)
    return found


def create_daemon(
    config: DaemonConfig, *, source: str, config_path: Path | None = None, pipeline: PipelineFactory | None = None
) -> tuple[AlertDaemon, HealthServer | None]:
    """Create a daemon and, where it is wanted, its HTTP server; nothing runs yet.

    Parameters
    ----------
    config_path
        What SIGHUP reads again; None: nothing.
    pipeline
        What workers run in place of the configured science: a model of its costs.

    Raises
    ------
    ConfigError
        Raised if anything in the configuration cannot be used, `StartRefused` if a check of the start fails.
    """
    for remark in check_start(config, source=source):
        get_logger(__name__).warning("start-up check", part=remark.part, problem=remark.problem)
    clock = Clock()
    database = Database(config.store.open_url())
    ledger = Ledger(database)
    metrics = Metrics({name: settings.bands for name, settings in config.instruments.items()})
    health, recent = Health(), Recent()
    transactional = config.kafka.delivery == "exactly-once"
    daemon = AlertDaemon(
        config,
        identity=_create_identity(config),
        connect=partial(_connect, config),
        producer=AlertProducer(
            config.kafka.bootstrap_servers,
            transactional_id=config.kafka.transactional_id if transactional else None,
            transaction_timeout_s=config.kafka.transaction_timeout_s,
            transaction_max_timeout_s=config.kafka.transaction_max_timeout_s,
            transaction_min_bytes_per_s=config.kafka.transaction_min_bytes_per_s,
            options=config.kafka.client_options(),
        ),
        ledger=ledger,
        workers=WorkerPool(pipeline or WorkerPipeline(config), config.workers, config.log),
        metrics=metrics,
        health=health,
        clock=clock,
        schemas=create_schemas(config),
        prefetch=_create_prefetch(config),
        clean_outbox=partial(
            clean_outbox,
            config.store.outbox_uri,
            ledger.states_of_outboxes,
            max_age_s=config.store.outbox_keep_days * _SECONDS_PER_DAY,
            max_bytes=config.store.outbox_max_bytes,
        ),
        reload=None if config_path is None else partial(_reload, config_path),
        recent=recent,
    )
    server = HealthServer(config.http, health, metrics.render, recent) if config.http.enabled else None
    return daemon, server


def _create_identity(config: DaemonConfig) -> Identity:
    return Identity(
        owner=config.kafka.group_instance_id or config.kafka.transactional_id,
        version=__version__,
        config_hash=config_hash(config),
        schema=ALERT_SCHEMA_VERSION,
    )


def _reload(path: Path, holds: DaemonConfig) -> Reloaded:
    config, left_out = keep_what_is_fixed(holds, load_config(path))
    check_config(config, source=str(path))
    return Reloaded(
        config=config,
        left_out=left_out,
        identity=_create_identity(config),
        pipeline=WorkerPipeline(config),
        prefetch=_create_prefetch(config),
    )


def create_schemas(config: DaemonConfig) -> WriterSchemas:
    """Create the source of the schemas that events were written with."""
    kafka = config.kafka
    if kafka.registry_url is None:
        return FixedSchemas()
    return RegistrySchemas(kafka.registry_url, authorization=kafka.registry_authorization())


def check_config(config: DaemonConfig, *, source: str) -> dict[str, Any]:
    """Check what `alertprod.config` cannot: profiles, task overrides, ids that would collide.

    Returns
    -------
    dict
        Facts for a person: instruments and what they use.

    Raises
    ------
    ConfigError
        Raised at the first thing that cannot be used.
    """
    if not config.instruments:
        raise ConfigError(source, "instruments", "none is configured: a table [instruments.NAME] is needed")
    ranges: list[tuple[int, int, str]] = []
    for name, settings in config.instruments.items():
        profile = _find_profile(settings.profile, source=source, field=f"instruments.{name}.profile")
        if settings.template_profile is not None:
            _find_profile(settings.template_profile, source=source, field=f"instruments.{name}.template_profile")
        create_task(settings.difference, source=f"{source}: [instruments.{name}]")
        low, high = profile.create_packer().bounds
        for other_low, other_high, other in ranges:
            if low < other_high and other_low < high:
                raise ConfigError(
                    source,
                    f"instruments.{name}",
                    f"its DiaSource ids overlap those of {other}: give their profiles different [ids] instrument_number, "
                    "and an n_detectors and n_visits that leave room for both",
                )
        ranges.append((low, high, name))
    _check_science(config, source=source)
    return {
        "instruments": ", ".join(config.instruments),
        "delivery": config.kafka.delivery,
        "database": str(Database(config.store.database_url)),
        "workers": f"{config.workers.count} x {config.workers.threads_per_worker} threads",
    }


def _find_profile(profile: str, *, source: str, field: str) -> InstrumentProfile:
    """Load a profile; one that is not there is a mistake of the configuration, one that is wrong its own."""
    try:
        return load_profile(profile)
    except ConfigError as error:
        if error.source == profile and error.field == "profile":
            raise ConfigError(source, field, str(error)) from error
        raise


def _open_butler(config: DaemonConfig, *, read_only: bool = False) -> "ButlerImages | None":
    settings = config.butler
    if settings.repository is None:
        return None
    try:
        from alertprod.butler.access import ButlerAccess  # with the extra lsst, three seconds to import
        from alertprod.butler.images import ButlerImages
    except ImportError as error:
        problem = f"needs pip install 'alertprod[lsst]': {error}"
        raise ConfigError("configuration", "butler.repository", problem) from error
    run = None if read_only else settings.difference_run
    writer = None if run is None else ButlerAccess(settings.repository, collections=settings.collections, run=run)
    return ButlerImages(
        ButlerAccess(settings.repository, collections=settings.collections),
        differences=writer,
        template_dataset=settings.template_dataset,
        skymap=settings.skymap,
        difference_dataset=settings.difference_dataset,
    )


def _create_images(butler: "ButlerImages | None") -> ImageStore:
    return ImageStore({} if butler is None else {"butler": butler})


def _create_cache(config: DaemonConfig, images: ImageStore | None = None) -> TemplateCache:
    return TemplateCache(
        config.store.template_cache_directory,
        max_bytes=config.store.template_cache_bytes,
        images=images,
        prepare=CharacterizeTask().prepareTemplate,
    )


def _create_templates(
    config: DaemonConfig, settings: InstrumentConfig, cache: TemplateCache, butler: "ButlerImages | None"
) -> TemplateStore:
    asks_butler = butler is not None and config.butler.template_dataset is not None
    return TemplateStore(
        cache,
        index_uri=None if asks_butler else settings.template_index or config.store.template_index or None,
        find_tiles=butler.find_tiles if butler is not None and asks_butler else None,
        profile=load_profile(settings.template_profile or settings.profile),
        n_threads=config.workers.threads_per_worker,
    )


def _create_prefetch(config: DaemonConfig) -> "_Prefetch | None":
    if all(settings.field_radius_deg is None for settings in config.instruments.values()):
        return None
    return _Prefetch(config)


class _Prefetch:
    """Brings the tiles of an announced visit into the cache, and its history into the database's memory.

    Notes
    -----
    History is read from the database by whoever associates, since another daemon may have changed it; read ahead, its
    pages are in the memory of the server (of the operating system, for SQLite), and the read costs no disk.
    """

    def __init__(self, config: DaemonConfig) -> None:
        butler = _open_butler(config, read_only=True)
        cache = _create_cache(config, _create_images(butler))
        database = Database(config.store.open_url())
        self._apdb, self._history_days = Apdb(database, Ledger(database)), config.association.history_days
        self._instruments = {
            name: (settings, _create_templates(config, settings, cache, butler))
            for name, settings in config.instruments.items()
            if settings.field_radius_deg is not None
        }

    def __call__(self, visit: NextVisit) -> None:
        if visit.instrument not in self._instruments:
            return
        settings, templates = self._instruments[visit.instrument]
        radius_arcsec = (settings.field_radius_deg or 0.0) * ARCSEC_PER_DEG
        field = SphericalPolygon.cap(ra_deg=visit.ra_deg, dec_deg=visit.dec_deg, radius_arcsec=radius_arcsec)
        templates.prefetch(field, settings.template_bands.get(visit.band, visit.band))
        objects, _ = self._apdb.read_objects(field)
        since_mjd_tai = visit.shutter_opens_at_mjd_tai - self._history_days
        self._apdb.read_light_curves(objects["dia_object_id"], since_mjd_tai=since_mjd_tai)


def _connect(
    config: DaemonConfig, *, on_assign: LanesCallback, on_revoke: LanesCallback, on_lost: LanesCallback
) -> EventConsumer:
    kafka, topics = config.kafka, config.topics
    options = dict(kafka.client_options())
    if kafka.group_instance_id is not None:
        options["group.instance.id"] = kafka.group_instance_id
    return EventConsumer(
        kafka.bootstrap_servers,
        [topic for topic in (topics.visit_ready, topics.next_visit) if topic is not None],
        group_id=kafka.group_id,
        on_assign=on_assign,
        on_revoke=on_revoke,
        on_lost=on_lost,
        hold_on_assign=True,
        options=options,
    )
