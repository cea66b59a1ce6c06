"""What must be right before a daemon starts, looked at all at once: one list says everything that is wrong.

A broker that is away is no reason not to start: the daemon waits for it. A topic that is not there is.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alertprod.config import DaemonConfig
from alertprod.errors import AlertprodError, BrokerUnavailable, ConfigError, TransientError
from alertprod.store.database import Database
from alertprod.store.files import local_path, stamp_file
from alertprod.store.template_index import TemplateIndex
from alertprod.stream.producer import MAX_MESSAGE_BYTES
from alertprod.stream.topics import BrokerFacts, TopicFacts

LANES_PER_WORKER: Final = 2
"""With fewer partitions a worker waits while the lanes of others publish."""

_TILES_LOOKED_AT: Final = 3
"""Of the index, the first and the last among them: a volume that is not mounted lacks them all."""

_MIN_EVENT_BYTES: Final = 1 << 20
"""As long as an event may be (`alertprod.stream.schemas.MAX_EVENT_BYTES`)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    part: str
    """Of the installation: topics, database, templates, disk, schemas."""
    problem: str
    """What is wrong, and what mends it."""
    weight: str = "fatal"
    """``fatal``; ``away``: it may be there when the daemon is started again; ``remark``: it works all the same."""

    def __str__(self) -> str:
        return f"{self.part}: {self.problem}"


class StartRefused(ConfigError):
    """The daemon cannot start; `findings` says all that is wrong."""

    def __init__(self, source: str, findings: tuple[Finding, ...]) -> None:
        self.findings = findings
        AlertprodError.__init__(self, source, findings)
        self.source, self.field = source, "start"
        self.problem = "".join(f"\n  - {finding}" for finding in findings)

    @property
    def is_away(self) -> bool:
        """Whether all that is wrong is that something does not answer now."""
        return all(finding.weight == "away" for finding in self.findings)

    def __str__(self) -> str:
        n = len(self.findings)
        return f"{self.source}: cannot start, {n} {'thing is' if n == 1 else 'things are'} wrong:{self.problem}"


def check_database(database: Database) -> Iterator[Finding]:
    """Look at the database's version; an empty one gets its tables."""
    folder = database.folder
    if folder is not None and not folder.is_dir():
        yield Finding("database", f"{database}: there is no folder {folder}; make it, or mount its disk")
        return
    try:
        if database.current_revision() is None:
            database.upgrade()
        database.check_schema()
    except ConfigError as error:
        yield Finding("database", error.problem)
    except TransientError as error:
        yield Finding("database", str(error), "away")


def check_topics(config: DaemonConfig, describe: Callable[[list[str]], BrokerFacts]) -> Iterator[Finding]:
    """Look at topics, their settings, and the brokers' limit on transactions.

    Parameters
    ----------
    describe
        `alertprod.stream.topics.describe_brokers` with the connection filled in.
    """
    topics = config.topics
    names = {field: name for field, name in topics.model_dump().items() if name is not None}
    try:
        facts = describe(list(names.values()))
    except BrokerUnavailable as error:
        yield Finding("topics", f"not looked at, the daemon will wait for the broker: {error}", "remark")
        return
    for field, name in names.items():
        topic = facts.topics[name]
        if topic.n_partitions == 0:
            yield Finding("topics", f"there is no topic {name} (topics.{field}); whoever runs the brokers makes it")
        else:
            yield from _check_topic(field, topic)
    kept_s = facts.topics[topics.visit_ready].retention_s
    if kept_s is not None and 0 <= kept_s < config.limits.max_event_age_s:
        problem = f"{topics.visit_ready} keeps events for {kept_s:g} s only, less than limits.max_event_age_s"
        yield Finding("topics", f"{problem}: what waits longer is lost", "remark")
    lanes, wanted = facts.topics[topics.visit_ready].n_partitions, LANES_PER_WORKER * config.workers.count
    if 0 < lanes < wanted:
        problem = f"{topics.visit_ready} has {lanes} partitions, {config.workers.count} workers can use {wanted}"
        yield Finding("topics", problem, "remark")
    longest = facts.transaction_max_timeout_s
    ours = config.kafka.transaction_max_timeout_s
    if config.kafka.delivery == "exactly-once" and longest is not None and longest < ours:
        problem = f"transaction.max.timeout.ms is {longest:g} s, kafka.transaction_max_timeout_s is {ours:g} s"
        yield Finding("brokers", f"{problem}: raise the one or lower the other")


def _check_topic(field: str, topic: TopicFacts) -> Iterator[Finding]:
    least = _MIN_EVENT_BYTES if field in ("visit_ready", "next_visit", "visit_summary") else MAX_MESSAGE_BYTES
    if topic.max_message_bytes is not None and topic.max_message_bytes < least:
        weight = "remark" if least == _MIN_EVENT_BYTES else "fatal"
        yield Finding(
            "topics", f"{topic.name}: max.message.bytes = {topic.max_message_bytes}, {least} is needed", weight
        )
    if topic.cleanup_policy is not None and "compact" in topic.cleanup_policy:
        problem = (
            f"{topic.name}: cleanup.policy = {topic.cleanup_policy} removes all but the newest of a key; use delete"
        )
        yield Finding("topics", problem)
    if topic.min_insync_replicas is not None and topic.min_insync_replicas > topic.replicas:
        problem = f"{topic.name}: min.insync.replicas = {topic.min_insync_replicas}, but there are {topic.replicas}"
        yield Finding("topics", f"{problem} replicas: nothing can be written")
    elif topic.replicas > 1 and topic.min_insync_replicas == 1:
        problem = (
            f"{topic.name}: {topic.replicas} replicas and min.insync.replicas = 1: one broker's loss can lose messages"
        )
        yield Finding("topics", problem, "remark")


def check_schemas(knows: Callable[[int], bool], schema_id: int) -> Iterator[Finding]:
    """Look whether the registry can tell readers of the alerts what they are.

    Parameters
    ----------
    knows
        `alertprod.stream.schemas.RegistrySchemas.knows`.
    schema_id
        What every alert names.
    """
    try:
        if not knows(schema_id):
            problem = (
                f"the registry has no schema {schema_id}, which every alert names: run `alertprod schemas register`"
            )
            yield Finding("schemas", problem)
    except TransientError as error:
        yield Finding("schemas", str(error), "away")
    except AlertprodError as error:
        yield Finding("schemas", str(error))


def check_templates(config: DaemonConfig) -> Iterator[Finding]:
    """Look at the template indices, and whether their tiles are where they say."""
    if config.butler.template_dataset is not None:
        return  # the repository is asked, and opening it has looked
    indices = (settings.template_index or config.store.template_index for settings in config.instruments.values())
    for uri in dict.fromkeys(uri for uri in indices if uri):
        yield from _check_template_index(uri)


def _check_template_index(uri: str) -> Iterator[Finding]:
    try:
        tiles = TemplateIndex.load(uri).tiles
        last = len(tiles) - 1
        for n in sorted({last * n // (_TILES_LOOKED_AT - 1) for n in range(_TILES_LOOKED_AT)} if tiles else ()):
            stamp_file(tiles[n].uri)
    except TransientError as error:
        yield Finding("templates", f"{uri}: {error}", "away")
    except AlertprodError as error:
        yield Finding("templates", str(error))


def check_disks(config: DaemonConfig) -> Iterator[Finding]:
    """Look whether the folders that are written to can be, and have room."""
    store = config.store
    database = store.database_url.removeprefix("sqlite:///")
    folders = {
        "store.outbox_uri": local_path(store.outbox_uri),
        "store.template_cache_directory": store.template_cache_directory,
        "store.database_url": None if database == store.database_url else str(Path(database).parent),
    }
    for field, folder in folders.items():
        if folder is None:
            continue
        place = next(each for each in (Path(folder), *Path(folder).absolute().parents) if each.exists())
        if not place.is_dir():
            yield Finding("disk", f"{field}: {place} is no folder")
        elif not os.access(place, os.R_OK | os.W_OK | os.X_OK):
            yield Finding("disk", f"{field}: {place} cannot be written to by this user")
        elif (free := shutil.disk_usage(place).free) < store.min_free_bytes:
            needed = f"store.min_free_bytes = {store.min_free_bytes}"
            yield Finding("disk", f"{field}: {free} bytes are free on the disk of {place}, {needed}")


def collect(*checks: Iterable[Finding]) -> list[Finding]:
    """Run all checks, whatever the others found."""
    return [finding for check in checks for finding in check]
