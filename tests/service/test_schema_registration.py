import json
from copy import deepcopy
from dataclasses import replace

import pytest
from fastavro.schema import fingerprint, to_parsing_canonical_form
from schema_registry_server import Registry, RegistryServer

from alertprod.config import TopicsConfig
from alertprod.errors import ConfigError, RegistryUnavailable
from alertprod.service.schema_registration import (
    list_alert_registrations,
    list_event_registrations,
    register,
)
from alertprod.stream.schema_registry import RegistryRefused, SchemaRegistry
from alertprod.stream.schemas import RegistrySchemas


@pytest.fixture
def server():
    with RegistryServer() as server:
        yield server


@pytest.fixture
def registration():
    return list_alert_registrations("alerts")[1]


def rename_version(schema, version):
    """The same schema under another version's names."""
    return json.loads(json.dumps(schema).replace("lsst.v11_1", f"lsst.v{version}"))


def put(server, subject, version, schema_id, schema):
    server.registry.subjects.setdefault(subject, {})[version] = schema_id
    server.registry.schemas[schema_id] = json.dumps(schema)


def test_the_alert_schema_gets_its_own_id_and_readers_find_it_by_that(server, registration):
    registry = SchemaRegistry(server.url)
    assert register(registry, registration) == "registered"
    assert server.registry.subjects == {"alerts-value": {1101: 1101}}
    found = RegistrySchemas(server.url).get(1101)
    assert fingerprint(to_parsing_canonical_form(found), "CRC-64-AVRO") == "a960816bc1c3d70c"
    assert server.registry.modes == {}  # as it was before


def test_registering_twice_changes_nothing(server, registration):
    registry = SchemaRegistry(server.url)
    register(registry, registration)
    before = len(server.registry.requests)
    assert register(registry, registration) == "was there"
    assert {method for method, _ in server.registry.requests[before:]} == {"GET"}


def test_documentation_and_defaults_are_registered_too(server, registration):
    register(SchemaRegistry(server.url), registration)
    stored = json.loads(server.registry.schemas[1101])
    (flux,) = (f for f in stored["fields"][3]["type"]["fields"] if f["name"] == "psfFlux")
    assert flux["default"] is None
    assert "nJy" in flux["doc"]


def test_rubins_subject_and_the_topics_are_registered(server):
    for each in list_alert_registrations("night"):
        register(SchemaRegistry(server.url), each)
    assert server.registry.subjects == {"alert-packet": {1101: 1101}, "night-value": {1101: 1101}}


def test_events_are_registered_under_the_ids_that_encoding_uses(server):
    topics = TopicsConfig(next_visit=None)
    for each in list_event_registrations(topics):
        register(SchemaRegistry(server.url), each)
    assert server.registry.subjects == {"visit-ready-value": {1: 1}, "visit-summary-value": {1: 3}}
    assert RegistrySchemas(server.url).get(3)["name"] == "alertprod.v1.visit_summary"


def test_an_id_that_another_schema_has_is_left_alone(server, registration):
    put(server, "theirs", 1, 1101, {"type": "record", "name": "other.thing", "fields": []})
    with pytest.raises(RegistryRefused, match=r"another schema has the id 1101 there: other\.thing"):
        register(SchemaRegistry(server.url), registration)
    assert server.registry.subjects == {"theirs": {1: 1101}}


def test_what_readers_of_the_same_major_cannot_read_is_refused(server, registration):
    earlier = rename_version(registration.schema, "11_0")
    earlier["fields"].append({"name": "gone", "type": "int"})
    put(server, registration.subject, 1100, 1100, earlier)
    with pytest.raises(RegistryRefused, match="version 1100: gone: is not written, and has no default"):
        register(SchemaRegistry(server.url), registration)
    assert server.registry.subjects == {registration.subject: {1100: 1100}}
    assert register(SchemaRegistry(server.url), registration, force=True) == "registered"
    assert server.registry.subjects == {registration.subject: {1100: 1100, 1101: 1101}}


def test_readers_of_another_major_are_not_asked(server, registration):
    earlier = rename_version(registration.schema, "10_0")
    earlier["fields"].append({"name": "gone", "type": "int"})
    put(server, registration.subject, 1000, 1000, earlier)
    assert register(SchemaRegistry(server.url), registration) == "registered"


def test_the_registrys_own_rule_is_asked_since_imports_are_not_checked(registration):
    earlier = rename_version(registration.schema, "10_0")
    earlier["fields"].append({"name": "gone", "type": "int"})
    with RegistryServer(Registry(compatibility="FORWARD")) as server:
        put(server, registration.subject, 1000, 1000, earlier)
        with pytest.raises(RegistryRefused, match="gone: is not written"):
            register(SchemaRegistry(server.url), registration)


def test_a_registry_that_numbers_all_the_same_is_left_as_it_was(registration):
    with RegistryServer(Registry(numbers_anyway=True)) as server:
        with pytest.raises(RegistryRefused, match="it gave the id 1, not 1101"):
            register(SchemaRegistry(server.url), registration)
        assert (server.registry.subjects, server.registry.schemas, server.registry.modes) == ({}, {}, {})


def test_a_registry_without_modes_is_not_written_to(registration):
    with RegistryServer(Registry(has_modes=False)) as server:
        with pytest.raises(RegistryRefused, match="it has no modes"):
            register(SchemaRegistry(server.url), registration)
        assert server.registry.subjects == {}


def test_a_mode_that_was_set_is_put_back(server, registration):
    server.registry.modes[registration.subject] = "READONLY"
    register(SchemaRegistry(server.url), registration)
    assert server.registry.modes == {registration.subject: "READONLY"}


def test_the_mode_is_put_back_when_registering_fails(server, registration):
    broken = deepcopy(registration.schema)
    broken["fields"][0]["type"] = "nothing"
    server.registry.modes[registration.subject] = "READWRITE"
    with pytest.raises(RegistryRefused, match="Invalid schema"):
        SchemaRegistry(server.url).register("alerts-value", json.dumps(broken), schema_id=5, version=5)
    assert server.registry.modes == {registration.subject: "READWRITE"}


def test_subjects_may_have_any_name(server, registration):
    register(SchemaRegistry(server.url), replace(registration, subject="night 1/a:b-value"))
    assert list(server.registry.subjects) == ["night 1/a:b-value"]


def test_what_is_no_registry_says_so(server):
    with pytest.raises(ConfigError, match="neither http nor https"):
        SchemaRegistry("ftp://somewhere")
    with pytest.raises(RegistryUnavailable, match=r"GET /subjects: \[Errno \d+\] Connection refused"):
        SchemaRegistry("http://127.0.0.1:9").list_subjects()
    with pytest.raises(RegistryRefused, match="not a schema registry's root"):
        SchemaRegistry(f"{server.url}/deeper").list_subjects()
