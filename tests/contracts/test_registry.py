"""A real schema registry: what it answers is what our client expects, and the one in ``schema_registry_server`` too."""

import copy
import json
import os
import urllib.request
import uuid

import pytest
from registry_process import ApicurioRegistry, RegistryMissing
from schema_registry_server import Registry, RegistryServer

from alertprod.alerts.registry import load_alert_schema, plain_schema
from alertprod.errors import InvalidEvent
from alertprod.service.schema_registration import list_alert_registrations, register
from alertprod.stream.schema_registry import RegistryRefused, SchemaRegistry
from alertprod.stream.schemas import RegistrySchemas


@pytest.fixture(scope="module")
def real_registry():
    """ALERTPROD_TEST_REGISTRY's, or one of our own for the time of the run."""
    named = os.environ.get("ALERTPROD_TEST_REGISTRY")
    if named:
        yield named
        return
    try:
        process = ApicurioRegistry()
    except RegistryMissing as missing:
        pytest.skip(f"no schema registry: {missing}")
    yield process.url
    process.close()


@pytest.fixture(params=["ours", pytest.param("real", marks=pytest.mark.slow)])
def url(request):
    if request.param == "real":
        yield request.getfixturevalue("real_registry")
        return
    with RegistryServer() as server:
        yield server.url


@pytest.fixture
def subject():
    return f"alerts-{uuid.uuid4().hex[:8]}-value"


def ask(url, method, path, body):
    request = urllib.request.Request(
        url + path, data=json.dumps(body).encode(), method=method, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def add(url, subject, schema):
    """Register as everybody does: the registry gives the number."""
    return ask(url, "POST", f"/subjects/{subject}/versions", {"schema": json.dumps(schema)})["id"]


def test_the_whole_alert_schema_survives_a_registry(url, subject):
    registry, schema = SchemaRegistry(url), plain_schema(load_alert_schema())
    schema_id = add(url, subject, schema)
    assert subject in registry.list_subjects()
    (version,) = registry.get_versions(subject)
    assert version.schema_id == schema_id
    assert json.loads(version.schema) == schema
    assert json.loads(registry.get_schema(schema_id).schema) == schema
    assert RegistrySchemas(url).get(schema_id)["name"] == "lsst.v11_1.alert"


def test_versions_come_in_their_order(url, subject):
    schema = {"type": "record", "name": "a.v1.r", "fields": [{"name": "x", "type": "int"}]}
    ids = [add(url, subject, schema)]
    for name in ("y", "z"):
        schema = copy.deepcopy(schema)
        schema["fields"].append({"name": name, "type": ["null", "int"], "default": None})
        ids.append(add(url, subject, schema))
    versions = SchemaRegistry(url).get_versions(subject)
    assert [version.schema_id for version in versions] == ids
    assert [version.version for version in versions] == [1, 2, 3]


def test_what_is_not_there_is_none(url, subject):
    registry = SchemaRegistry(url)
    assert registry.get_versions(subject) == []
    assert registry.get_schema(987654) is None
    assert registry.find_incompatibilities(subject, '{"type": "string"}') == []
    with pytest.raises(InvalidEvent, match="does not know 987654"):
        RegistrySchemas(url).get(987654)


@pytest.mark.slow
def test_a_registrys_own_rule_is_heard(real_registry, subject):
    schema = {"type": "record", "name": "a.v1.r", "fields": [{"name": "x", "type": "int"}]}
    add(real_registry, subject, schema)
    ask(real_registry, "PUT", f"/config/{subject}", {"compatibility": "BACKWARD"})
    registry = SchemaRegistry(real_registry)
    wider = copy.deepcopy(schema)
    wider["fields"].append({"name": "y", "type": ["null", "int"], "default": None})
    assert registry.find_incompatibilities(subject, json.dumps(wider)) == []
    broken = copy.deepcopy(schema)
    broken["fields"].append({"name": "y", "type": "int"})
    assert registry.find_incompatibilities(subject, json.dumps(broken)) != []


@pytest.mark.slow
def test_a_real_registry_either_keeps_our_id_or_is_left_as_it_was(real_registry, subject):
    registry = SchemaRegistry(real_registry)
    registration = list_alert_registrations(subject.removesuffix("-value"))[1]
    before = registry.list_subjects()
    problem = ""
    try:
        register(registry, registration)
    except RegistryRefused as refused:
        problem = str(refused)
    if not problem:
        assert RegistrySchemas(real_registry).get(1101)["name"] == "lsst.v11_1.alert"
        return
    assert "fixed ids" in problem or "import ids" in problem
    assert registry.list_subjects() == before
    assert registry.get_versions(subject) == []


def test_our_own_registry_for_tests_takes_ids_only_where_they_are_imported(subject):
    with RegistryServer(Registry()) as server:
        registry = SchemaRegistry(server.url)
        with pytest.raises(RegistryRefused, match="not in import mode"):
            registry._ask("POST", f"/subjects/{subject}/versions", {"schema": '"string"', "id": 5, "version": 1})
        registry.register(subject, '"string"', schema_id=5, version=1)
        assert registry.get_versions(subject)[0].schema_id == 5
