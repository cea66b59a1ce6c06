"""The daemon's configuration: a TOML file, overridden by ``ALERTPROD_`` variables of the environment.

``ALERTPROD_KAFKA__BOOTSTRAP_SERVERS`` overrides ``bootstrap_servers`` of ``[kafka]``; names are matched
without regard to case, values of maps are JSON. Relative paths, wherever they are written, are relative to
the TOML file's folder (without a file: to the working directory). This is the only module that reads or
writes the process's environment.
"""

import hashlib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import quote

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from alertprod.errors import ConfigError

ENVIRONMENT_PREFIX: Final = "ALERTPROD_"

OverrideValue = bool | int | float | str | list[Any] | None
"""What a field of a task's configuration can be set to."""

_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
_BLAS_THREAD_VARIABLES: Final = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Always one: the matrices here are small, and BLAS threads that wait for each other spin on the cores of others."""

_SECRET_WORDS: Final = ("password", "secret", "token", "key.pem", "oauthbearer.config", "username")


def _absolute(value: Any, info: ValidationInfo) -> Any:
    """Make a path absolute; URIs with a scheme stay as they are."""
    if not isinstance(value, str | Path) or "://" in str(value):
        return value
    return str(_folder(info) / Path(value).expanduser())


def _absolute_or_empty(value: Any, info: ValidationInfo) -> Any:
    return value if value == "" else _absolute(value, info)


def _read_secret(path: str, field: str) -> str:
    """Return the content of a file without the line's end that editors leave."""
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, field, f"cannot be read: {error}") from error


def _absolute_database(value: Any, info: ValidationInfo) -> Any:
    """Make the path in ``sqlite:///relative.db`` absolute."""
    scheme = "sqlite:///"
    if not isinstance(value, str) or not value.startswith(scheme) or value == f"{scheme}:memory:":
        return value
    return scheme + str(_folder(info) / value.removeprefix(scheme))


def _absolute_profile(value: Any, info: ValidationInfo) -> Any:
    """Make a profile that is a path absolute; a bare word names a packaged profile."""
    return _absolute(value, info) if isinstance(value, str) and ("/" in value or value.endswith(".toml")) else value


def _folder(info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("folder") or Path.cwd())


def _flatten(value: Any) -> Any:
    """Turn nested tables into dotted names: TOML reads ``detection.thresholdValue = 5`` as a table in a table."""
    if not isinstance(value, Mapping):
        return value
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            flat.update({f"{key}.{inner}": leaf for inner, leaf in _flatten(entry).items()})
        else:
            flat[str(key)] = entry
    return flat


PathText = Annotated[str, BeforeValidator(_absolute)]
"""A local path (made absolute) or any fsspec URI."""

_PathOrNone = Annotated[str, BeforeValidator(_absolute_or_empty)]
"""`PathText`, or empty where there is none."""

Profile = Annotated[str, BeforeValidator(_absolute_profile)]
"""The name of a packaged profile, or the path of a TOML file."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class KafkaConfig(_Section):
    """``[kafka]``: how to reach the brokers, and what is promised to them."""

    bootstrap_servers: str = "127.0.0.1:9092"
    """Where a broker on this machine listens by default: a laptop needs no entry, an observatory names its own."""

    group_id: str = "alertprod"
    """Consumer group: the committed offsets, our proof of publication, belong to it. Change it and events are read again."""

    group_instance_id: str | None = None
    """Static membership, unique per daemon (the ordinal of a StatefulSet): a restart within the session moves no partition.
    None where one daemon runs, which has nobody to move partitions to."""

    transactional_id: str = "alertprod-0"
    """Unique per daemon and the same after its restart, so that a restarted daemon fences its own zombie."""

    delivery: Literal["exactly-once", "at-least-once"] = "exactly-once"
    """Transactions, because duplicates cost every consumer downstream; the in-process broker's are hollow, there it is at-least-once."""

    registry_url: str | None = None
    """Schema registry for Avro events; None: the project's own fixed ids, which need none."""

    registry_authorization_file: PathText | None = None
    """File with the value of the Authorization header that the registry wants (``Basic …``), never shown; None: it wants none."""

    transaction_timeout_s: float = Field(60.0, ge=10)
    """The broker ends a transaction that is open for longer: what readers of the alerts wait at most for a daemon that died.
    Exposures of more bytes get more time, see below."""

    transaction_min_bytes_per_s: float = Field(4e6, gt=0)
    """A transaction gets the time its bytes take at this rate, where that is more: a gigabyte of alerts has 250 s. A quarter
    of what one slow broker takes."""

    transaction_max_timeout_s: float = Field(900.0, ge=10)
    """No transaction gets more: the brokers' own ``transaction.max.timeout.ms``, whose default this is."""

    security: dict[str, str] = Field(default_factory=dict, repr=False)
    """librdkafka properties for every client (``security.protocol``, ``sasl.*``, ``ssl.*``); empty: a trusted network."""

    security_files: dict[str, PathText] = Field(default_factory=dict)
    """Properties whose value is the content of a file (``"sasl.password" = "/run/secrets/kafka"``): read at start, never shown."""

    @model_validator(mode="after")
    def _times_fit(self) -> Self:
        if self.transaction_max_timeout_s < self.transaction_timeout_s:
            msg = f"transaction_max_timeout_s = {self.transaction_max_timeout_s} is less than transaction_timeout_s"
            raise ValueError(msg)
        return self

    def client_options(self) -> dict[str, str]:
        """Return the properties for every client, those in files with their content.

        Raises
        ------
        ConfigError
            Raised if a file cannot be read.
        """
        contents = {
            name: _read_secret(path, f"kafka.security_files.{name}") for name, path in self.security_files.items()
        }
        return {**self.security, **contents}

    def registry_authorization(self) -> str | None:
        """Return the value of the Authorization header for the registry.

        Raises
        ------
        ConfigError
            Raised if its file cannot be read.
        """
        path = self.registry_authorization_file
        return None if path is None else _read_secret(path, "kafka.registry_authorization_file")


class TopicsConfig(_Section):
    """``[topics]``: names; the topics are made by whoever runs the brokers, never by us."""

    visit_ready: str = "visit-ready"
    """Events in: one per exposure; at least twice as many partitions as workers, each partition is a lane."""

    next_visit: str | None = "next-visit"
    """Pointings announced ahead, to fill the template cache; absent topics are not subscribed when this is empty."""

    alerts: str = "alerts"
    """Alerts out; one id space is one database and one alert topic."""

    visit_summary: str = "visit-summary"
    """One record per exposure whatever became of it: the denominator of everything."""

    dead_letters: str = "visit-ready-dead-letters"
    """Events given up, with the reason in headers; apart from visit-ready, so that nobody reads them twice by accident."""

    replay: str = "alerts-replay"
    """Stored packets published again on request: never on the live topic, where brokers would take them for new."""

    @model_validator(mode="before")
    @classmethod
    def _empty_is_off(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("next_visit") == "":
            return {**data, "next_visit": None}
        return data

    @model_validator(mode="after")
    def _are_distinct(self) -> Self:
        names = [name for name in self.model_dump().values() if name is not None]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            msg = f"two topics are both called {', '.join(twice)}"
            raise ValueError(msg)
        return self


class StoreConfig(_Section):
    """``[store]``: where results, packets and templates are kept."""

    database_url: Annotated[str, BeforeValidator(_absolute_database)] = Field(
        "sqlite:///alertprod.sqlite", validate_default=True
    )
    """SQLAlchemy URL. SQLite serves one host with a local disk, which most observatories are; more hosts need PostgreSQL."""

    database_password_file: PathText | None = None
    """File with the password of the URL's user, which then stays out of configuration and environment; None: none is needed."""

    outbox_uri: PathText = Field("outbox", validate_default=True)
    """Folder (any fsspec URI) of the packets' bytes; more than one host needs a shared one."""

    outbox_keep_days: float = Field(7.0, gt=0)
    """How long published packets stay for replay: as long as Rubin's alert topic keeps its messages."""

    outbox_max_bytes: int = Field(50 << 30, gt=0)
    """Oldest published files go first beyond this: about half a million alerts of 100 kB."""

    allowed_roots: tuple[PathText, ...] = ()
    """Folders, or URI prefixes such as ``s3://night/``, that events may name files in. Empty: any local file, and nothing
    that is fetched over a network."""

    min_free_bytes: int = Field(1 << 30, ge=0)
    """Free space without which the daemon does not start, on each disk it writes to: an hour of a busy camera."""

    template_index: _PathOrNone = Field("templates/templates.json", validate_default=True)
    """What ``alertprod templates index`` wrote; asked when an event names no tiles and its instrument has no index of its own.
    Empty: every event names its tiles."""

    template_cache_directory: PathText = Field("template-cache", validate_default=True)
    """Decoded tiles, shared by the workers of a host; must be a local disk, tiles are memory-mapped."""

    template_cache_bytes: int = Field(16 << 30, ge=0)
    """About eighty decoded tiles of 4096²: several pointings ahead, and no burden on a laptop's disk."""

    def open_url(self) -> str:
        """Return the database's URL with its password, for whoever connects.

        Raises
        ------
        ConfigError
            Raised if the password's file cannot be read, or the URL names no user for it.
        """
        if self.database_password_file is None:
            return self.database_url
        scheme, separator, rest = self.database_url.partition("://")
        user, at, host = rest.rpartition("@")
        if not at or ":" in user:
            problem = "store.database_url must name a user, and no password"
            raise ConfigError("configuration", "store.database_password_file", problem)
        password = quote(_read_secret(self.database_password_file, "store.database_password_file"), safe="")
        return f"{scheme}{separator}{user}:{password}@{host}"


class ButlerConfig(_Section):
    """``[butler]``: a repository of Rubin's middleware, for events whose URIs begin with ``butler:``; needs the extra ``lsst``."""

    repository: PathText | None = None
    """Its folder; None: there is none."""

    collections: tuple[str, ...] = ()
    """Searched in this order for what events name, and for templates."""

    template_dataset: str | None = None
    """Dataset type of template tiles by patch (``deepCoadd``), asked in place of store.template_index when an event names no
    tiles; None: the index is asked."""

    skymap: str | None = None
    """Sky map of those patches; None: any, right where the collections have one."""

    difference_run: str | None = None
    """RUN collection that difference images are put into, made where it is not there; None: they are not kept."""

    difference_dataset: str = "deepDiff_differenceExp"
    """What they are kept as: the name that the reference task gives them."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.repository is None and (self.template_dataset or self.difference_run):
            msg = "template_dataset and difference_run need a repository"
            raise ValueError(msg)
        if self.repository is not None and not self.collections:
            msg = "collections must name what is searched in the repository"
            raise ValueError(msg)
        return self


class InstrumentConfig(_Section):
    """``[instruments.NAME]``: how the files of one instrument are read and subtracted; NAME is what events say."""

    profile: Profile = "alertprod"
    """How its science files are read; the default is the package's own multi-extension FITS."""

    template_profile: Profile | None = None
    """How its template tiles are read; None: as the science files."""

    release: int = Field(0, ge=0, lt=64)
    """Top six bits of every DiaSource id; raise it when a night is reprocessed, together with the alert topic."""

    bands: tuple[str, ...] = ("u", "g", "r", "i", "z", "y")
    """Bands that get their own label in metrics; events in another band are processed all the same and counted as ``other``."""

    template_index: PathText | None = None
    """Its own templates, where cameras of one daemon look at the same sky; None: ``store.template_index``."""

    template_bands: dict[str, str] = Field(default_factory=dict)
    """Science band to the band of the templates to subtract, where they differ (an unfiltered camera against r); else the same."""

    field_radius_deg: float | None = Field(None, gt=0, le=10)
    """Radius of the circle about the boresight that holds the camera: tiles within it are prefetched when a visit is
    announced. None: announcements are read and left at that."""

    difference: Annotated[dict[str, OverrideValue], BeforeValidator(_flatten)] = Field(default_factory=dict)
    """Dotted fields of ``ImageDifferenceTask``'s configuration, e.g. ``"detection.thresholdValue" = 5.0``; empty: its defaults."""


class AssociationConfig(_Section):
    """``[association]``: DiaSources to DiaObjects."""

    radius_arcsec: float = Field(1.0, gt=0, le=60)
    """Rubin's: several sigma of the faintest centroids, well below the distance of neighbours."""

    systematic_err_arcsec: float = Field(0.05, gt=0)
    """Error of two exposures against each other, per axis, beside what centroids say: Rubin's floor. Cameras with coarse pixels need more."""

    history_days: float = Field(360.0, gt=0)
    """Rubin's twelve months of thirty days: what a packet carries of an object's past."""

    excluded_flags: tuple[str, ...] | None = None
    """DiaSources with one of these flags (columns of the DiaSource table) are neither stored nor sent; None: a failed centroid,
    a cosmic ray or a template of high variance in the middle. Say [] to keep all."""

    new_object_flags: tuple[str, ...] | None = None
    """DiaSources with one of these make no new DiaObject; None: those of `alertprod.association.config`."""

    min_science_snr: float = -2.0
    """A forced flux on the science image below this many sigma is an artefact of the subtraction."""

    max_trail_deg_per_day: float = Field(10.0, gt=0)
    """Rubin's: a longer trail is a satellite's."""

    min_new_object_reliability: float = Field(0.1, ge=0, le=1)
    """DiaSources scored below make no new DiaObject; without a scorer it means nothing."""


class SolarSystemConfig(_Section):
    """``[solar_system]``: known bodies by their predicted positions."""

    ephemeris_uri: PathText | None = None
    """Table of predicted positions (ECSV, FITS or Parquet) for events that name none; None: such events know no bodies."""

    radius_arcsec: float = Field(1.0, gt=0, le=60)
    """Rubin's: good predictions are off by a tenth of it."""

    max_propagation_s: float = Field(3600.0, ge=0)
    """Predictions farther from mid-exposure are not used: the Earth's rotation bends the path of a body at 1 au by 0.3 arcsec in an hour."""


class AlertsConfig(_Section):
    """``[alerts]``: what goes out."""

    max_per_exposure: int = Field(5000, gt=0)
    """More DiaSources are a failed subtraction, not sky (`TooManyDiaSources`): 20 times Rubin's peak of 40 000 per 189 detectors."""

    cutout_min_pixels: int = Field(30, ge=1)
    """Rubin's smallest cutout."""

    cutout_max_pixels: int = Field(102, ge=1)
    """Rubin's largest: a packet stays below 400 kB."""

    cutout_max_psf_pixels: int | None = Field(None, ge=3)
    """Crop the PSF in each cutout to this side, an odd number; 25 makes a small alert a sixth smaller. None: whole."""

    cutout_mask_bits: bool = False
    """Add a MASKBITS extension with the full mask planes: useful for debugging, 4 bytes a pixel more for everybody."""

    scorer: str | None = None
    """Name of the plugged-in scorer (entry point of `alertprod.reliability_scorers`) that gives ``reliability``; None: null in every packet."""

    scorer_options: dict[str, Any] = Field(default_factory=dict)
    """What the scorer is made with, as its documentation says; the place of its model, for one: an absolute path."""

    min_reliability: float | None = Field(None, ge=0, le=1)
    """DiaSources scored below are neither stored nor sent; None: all are. Means nothing without a scorer."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.cutout_min_pixels > self.cutout_max_pixels:
            msg = f"cutout_min_pixels = {self.cutout_min_pixels} is more than cutout_max_pixels = {self.cutout_max_pixels}"
            raise ValueError(msg)
        if self.cutout_max_psf_pixels is not None and self.cutout_max_psf_pixels % 2 == 0:
            msg = f"cutout_max_psf_pixels = {self.cutout_max_psf_pixels} is even: the PSF would have no middle pixel"
            raise ValueError(msg)
        if self.min_reliability is not None and self.scorer is None:
            msg = "min_reliability needs a scorer: without one it would drop nothing"
            raise ValueError(msg)
        return self


class WorkersConfig(_Section):
    """``[workers]``: the processes that compute."""

    count: int = Field(1, ge=1)
    """One is safe on any machine; set it to cores / threads_per_worker where memory_limit_bytes times count fits."""

    threads_per_worker: int = Field(2, ge=1)
    """Threads of FFTs and compiled loops; beyond two the pixels of one exposure gain little."""

    deadline_s: float = Field(300.0, gt=0)
    """An exposure still in a worker after this is killed: far above three times the slowest honest one."""

    memory_limit_bytes: int = Field(4 << 30, ge=64 << 20)
    """Private resident memory (mapped tiles apart) at which a worker is killed: an honest 4096² exposure needs 1.5 GiB."""

    warm_up_timeout_s: float = Field(300.0, gt=0)
    """A worker that is not warm by then is started again; compiling every loop from nothing takes about a minute."""

    max_deaths: int = Field(3, ge=1)
    """Dead letter after so many worker deaths on one event: once is an accident, twice bad luck."""


class LimitsConfig(_Section):
    """``[limits]``: how long and how far."""

    max_event_age_s: float = Field(14_400.0, gt=0)
    """Since shutter close: older events are summarised as expired, and transient failures become dead letters. Four hours:
    a broken link is repaired within them, and a backlog from last night does not eat tonight."""

    max_pointing_offset_arcsec: float = Field(120.0, gt=0)
    """Event against header: a dither is less, the wrong field is far more."""

    retry_first_s: float = Field(1.0, gt=0)
    """First pause after a transient failure; doubled each time, with jitter of a half either way."""

    retry_max_s: float = Field(60.0, gt=0)
    """Longest pause: a repaired dependency is noticed within a minute."""

    image_wait_s: float = Field(600.0, ge=0)
    """An image that is still not there so long after its event was first claimed never will be: dead letter, to be replayed
    by hand. Restarts of the daemon do not begin the wait anew."""

    outbox_wait_s: float = Field(600.0, ge=0)
    """A stored exposure whose outbox file cannot be read for so long is given up; a volume that was not mounted is back by
    then, and its lane should not wait for the age limit."""

    lease_s: float = Field(30.0, gt=1)
    """A claim not renewed for so long may be taken over; renewed every third of it. Short, since it is what a killed daemon's
    successor waits for; well above a pause of the database."""

    revoke_s: float = Field(20.0, ge=0)
    """How long a rebalance may be held up to finish what is in flight; below the 30 s after which /livez calls the loop stuck."""

    drain_s: float = Field(40.0, ge=0)
    """After SIGTERM: time for what is in flight; with what follows (close, leave the group) below a grace period of 60 s."""


class HttpConfig(_Section):
    """``[http]``: /livez, /readyz and /metrics."""

    enabled: bool = True
    """Off for one-shot runs that nobody watches."""

    host: str = "127.0.0.1"
    """Loopback: metrics name instruments and rates; open it deliberately, where a scraper is elsewhere."""

    port: int = Field(9117, ge=0, le=65535)
    """Free of the well-known exporters; 0 takes any free port (the log says which)."""


class LogConfig(_Section):
    """``[log]``: what is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """About five lines an exposure; see `alertprod.logs` for what each level means."""

    format: Literal["json", "console"] = "json"
    """JSON for collectors; console for a human at a terminal."""


class DaemonConfig(_Section):
    """Everything the daemon is told; immutable, picklable, and safe to hand to worker processes."""

    kafka: KafkaConfig = Field(default_factory=KafkaConfig)
    """Brokers and delivery."""

    topics: TopicsConfig = Field(default_factory=TopicsConfig)
    """Topic names."""

    store: StoreConfig = Field(default_factory=StoreConfig)
    """Database, outbox, templates."""

    butler: ButlerConfig = Field(default_factory=ButlerConfig)
    """Rubin's middleware."""

    instruments: dict[str, InstrumentConfig] = Field(default_factory=dict)
    """By the name events use; at least one is needed to run, which the factory checks (offline commands need none)."""

    association: AssociationConfig = Field(default_factory=AssociationConfig)
    """Matching."""

    solar_system: SolarSystemConfig = Field(default_factory=SolarSystemConfig)
    """Known bodies."""

    alerts: AlertsConfig = Field(default_factory=AlertsConfig)
    """Packets."""

    workers: WorkersConfig = Field(default_factory=WorkersConfig)
    """Processes."""

    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    """Times and distances."""

    http: HttpConfig = Field(default_factory=HttpConfig)
    """Health and metrics."""

    log: LogConfig = Field(default_factory=LogConfig)
    """Log lines."""


class _EnvironmentView(DaemonConfig, BaseSettings):
    """The same fields for pydantic-settings' reader of the environment; only its field list is used."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)


def load_config(path: str | Path | None = None) -> DaemonConfig:
    """Load a TOML file and lay the environment over it.

    Parameters
    ----------
    path
        The file; None for defaults and environment alone.

    Raises
    ------
    ConfigError
        Raised if the file cannot be read, a key is unknown, or a value does not fit; names the file (or the variable
        of the environment) and the field.
    """
    source = "environment" if path is None else str(path)
    data = {} if path is None else _read_toml(Path(path))
    folder = Path.cwd() if path is None else Path(path).resolve().parent
    environment = _environment()
    merged = {"store": {}, **_overlay(data, environment)}  # its default paths are relative to the file, too
    try:
        return DaemonConfig.model_validate(merged, context={"folder": folder})
    except ValidationError as error:
        raise _config_error(error, source, environment) from error


def config_hash(config: DaemonConfig) -> str:
    """Return the sha256 (hex) of everything that changes results: instruments, association, Solar System, alerts.

    Notes
    -----
    Hosts, topics, paths, limits and log settings leave it alone. A profile given as a file counts with its contents,
    a packaged one with its name (the program's version stands for its contents).
    """
    facts = config.model_dump(mode="json", include={"instruments", "association", "solar_system", "alerts"})
    facts["solar_system"].pop("ephemeris_uri")  # a path, and another table each night
    for instrument in facts["instruments"].values():
        instrument.pop("bands")  # labels of metrics
        instrument.pop("field_radius_deg")  # what is prefetched
        for key in ("profile", "template_profile"):
            name = instrument[key]
            if name is not None and Path(name).is_file():
                instrument[key] = hashlib.sha256(Path(name).read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def redacted(config: DaemonConfig) -> dict[str, Any]:
    """Return the configuration as plain data with passwords and keys starred out, for ``config show``."""
    data = config.model_dump(mode="json")
    for name in data["kafka"]["security"]:
        if any(word in name for word in _SECRET_WORDS):
            data["kafka"]["security"][name] = "***"
    for name in data["alerts"]["scorer_options"]:
        if any(word in name.lower() for word in _SECRET_WORDS):
            data["alerts"]["scorer_options"][name] = "***"
    scheme, separator, rest = data["store"]["database_url"].partition("://")
    credentials, at, host = rest.rpartition("@")
    if at:
        data["store"]["database_url"] = f"{scheme}{separator}{credentials.partition(':')[0]}:***@{host}"
    return data


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Let processes started within use at most `count` threads for FFTs, BLAS and compiled loops.

    Notes
    -----
    Those libraries read the environment when they are loaded, which in a spawned process may be before the first
    line of ours runs: so it is set here, in the parent, and put back.
    """
    before = {name: os.environ.get(name) for name in (*_THREAD_VARIABLES, *_BLAS_THREAD_VARIABLES)}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(count)) | dict.fromkeys(_BLAS_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigError(str(path), "(file)", error.strerror or str(error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "(file)", f"is not TOML: {error}") from error


def _environment() -> dict[str, Any]:
    """Return the overrides as nested maps; names are lower case."""
    for name in os.environ:
        section, nested, _ = name.removeprefix(ENVIRONMENT_PREFIX).partition("__")
        if name.startswith(ENVIRONMENT_PREFIX) and nested and section.lower() not in DaemonConfig.model_fields:
            raise ConfigError("environment", name, f"there is no section [{section.lower()}]")
    try:
        return EnvSettingsSource(_EnvironmentView, env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__")()
    except ValueError as error:
        raise ConfigError("environment", f"{ENVIRONMENT_PREFIX}*", f"{error} ({error.__cause__})") from error


def _overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `over` on `base`; keys match without regard to case, since variables have none."""
    merged = dict(base)
    spelled = {key.lower(): key for key in merged}
    for key, value in over.items():
        name = spelled.get(key.lower(), key)
        below = merged.get(name)
        merged[name] = _overlay(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _config_error(error: ValidationError, source: str, environment: Mapping[str, Any]) -> ConfigError:
    """Name the first field that does not fit, and say which others do not."""
    problems = [(".".join(str(part) for part in entry["loc"]) or "(file)", entry) for entry in error.errors()]
    field, first = problems[0]
    node: Any = environment
    for part in first["loc"]:
        node = node.get(str(part).lower()) if isinstance(node, Mapping) else None
    if node is not None and not isinstance(node, Mapping):
        source = "environment variable " + ENVIRONMENT_PREFIX + field.replace(".", "__").upper()
    problem = "no such setting" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    others = list(dict.fromkeys(name for name, _ in problems[1:] if name != field))
    return ConfigError(source, field, problem + (f" (and also: {', '.join(others)})" if others else ""))
