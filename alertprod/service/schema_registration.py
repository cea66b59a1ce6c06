"""Registers our schemas, under the ids that our messages carry, after looking at what that would break."""

import json
import re
from dataclasses import dataclass
from typing import Any, Final, Literal

from fastavro.schema import to_parsing_canonical_form

from alertprod.alerts.evolution import find_breaks
from alertprod.alerts.registry import ALERT_SCHEMA_ID, load_alert_schema, plain_schema
from alertprod.config import TopicsConfig
from alertprod.stream.schema_registry import RegistryRefused, SchemaRegistry
from alertprod.stream.schemas import SCHEMA_IDS, load_event_schema

Outcome = Literal["registered", "was there"]

RUBIN_SUBJECT: Final = "alert-packet"
"""Where Rubin's registry has every version of its alerts, and its readers look for them."""

_CONFLICT: Final = 409
_MAJOR: Final = re.compile(r"\bv(\d+)(?:_\d+)?\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A schema to register."""

    subject: str
    schema_id: int
    version: int
    """Of the subject; Rubin's are equal to the ids."""
    schema: Any
    """As JSON has it, documentation and defaults included: without defaults it is of no use to a reader of older alerts."""


def list_alert_registrations(topic: str) -> list[Registration]:
    """Return the newest alert schema for Rubin's subject and for that of a topic's values."""
    schema = plain_schema(load_alert_schema())
    return [
        Registration(subject=subject, schema_id=ALERT_SCHEMA_ID, version=ALERT_SCHEMA_ID, schema=schema)
        for subject in (RUBIN_SUBJECT, f"{topic}-value")
    ]


def list_event_registrations(topics: TopicsConfig) -> list[Registration]:
    """Return the schemas of what else is on our topics, for the subjects of their values."""
    ids = {name: schema_id for schema_id, name in SCHEMA_IDS.items()}
    by_topic = {
        topics.visit_ready: "visit_ready",
        topics.next_visit: "next_visit",
        topics.visit_summary: "visit_summary",
    }
    return [
        Registration(
            subject=f"{topic}-value", schema_id=ids[name], version=1, schema=plain_schema(load_event_schema(name))
        )
        for topic, name in by_topic.items()
        if topic is not None
    ]


def register(registry: SchemaRegistry, registration: Registration, *, force: bool = False) -> Outcome:
    """Register a schema, where it is not there already.

    1. nothing else has its id;
    2. those who read with an earlier version of its major can read what is written with it;
    3. the registry's own rule for the subject has nothing against it;
    4. it is registered, and asked for again.

    Parameters
    ----------
    force
        Register in spite of 2 and 3.

    Raises
    ------
    RegistryRefused
        Raised with the reason; nothing is registered then.
    RegistryUnavailable
        Raised if nobody answers.
    """
    subject, schema_id = registration.subject, registration.schema_id
    text = json.dumps(registration.schema)
    ours = to_parsing_canonical_form(registration.schema)
    holder = registry.get_schema(schema_id)
    if holder is not None and _canonical(holder.schema) != ours:
        problem = f"another schema has the id {schema_id} there: {_name(holder.schema)}"
        raise RegistryRefused(registry.url, f"register {subject}", _CONFLICT, problem)
    versions = registry.get_versions(subject)
    if any(each.schema_id == schema_id for each in versions):
        return "was there"
    if not force:
        name = registration.schema["name"]
        broken = [
            f"version {each.version}: {problem}"
            for each in versions
            if _major(_name(each.schema)) == _major(name)
            for problem in find_breaks(registration.schema, json.loads(each.schema))
        ]
        broken += registry.find_incompatibilities(subject, text)
        if broken:
            problem = "readers would break (--force registers all the same): " + "; ".join(broken)
            raise RegistryRefused(registry.url, f"register {subject}", _CONFLICT, problem)
    registry.register(subject, text, schema_id=schema_id, version=registration.version)
    stored = registry.get_schema(schema_id)
    if stored is None or _canonical(stored.schema) != ours:
        problem = f"what it gives for id {schema_id} is not what was registered"
        raise RegistryRefused(registry.url, f"register {subject}", _CONFLICT, problem)
    return "registered"


def _canonical(text: str) -> str:
    return to_parsing_canonical_form(json.loads(text))


def _name(text: str) -> str:
    declared = json.loads(text)
    if not isinstance(declared, dict) or "name" not in declared:
        return str(text)[:80]
    name = str(declared["name"])
    return name if "." in name or "namespace" not in declared else f"{declared['namespace']}.{name}"


def _major(name: str) -> str:
    """Return what a record's name says of its major version: ``lsst.v11`` of ``lsst.v11_1.alert``."""
    found = _MAJOR.search(name)
    return name[: found.end(1)] if found else name
