"""Container, compose, Kubernetes and systemd, each checked by a tool that knows it.

Tools that are Go programs are looked for in .cache/tools (`make deployment-tools` puts them there).
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from command_lines import assert_understood
from prometheus_servers import OPS

from alertprod.config import load_config

ROOT = OPS.parent
TOOLS = ROOT / ".cache" / "tools"


def find_tool(name):
    """Return the path of a program; skip with how to get it."""
    for place in (TOOLS / "bin" / name, Path(sys.executable).with_name(name)):
        if place.exists():
            return str(place)
    if (found := shutil.which(name)) is not None:
        return found
    pytest.skip(f"{name} is not here; `make deployment-tools` fetches what Go's proxy has, systemd is Debian's")


def run(*command, **options):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)


# The image.


def dockerfile_lines():
    text = (OPS / "container" / "Dockerfile").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_hadolint_finds_nothing_in_the_dockerfile():
    checked = run(find_tool("hadolint"), OPS / "container" / "Dockerfile")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_container_does_not_run_as_root_and_says_whether_it_is_alive():
    lines = dockerfile_lines()
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users
    assert not users[-1].startswith(("0", "root"))
    after_user = lines[[line.startswith("USER") for line in lines].index(True) :]
    assert any("fill_cache.py" in line for line in after_user)  # who runs it owns the cache
    assert any(line.startswith("HEALTHCHECK") for line in lines)


def test_what_the_dockerfile_copies_is_there_and_let_through():
    ignored = (OPS / "container" / "Dockerfile.dockerignore").read_text().splitlines()
    for line in dockerfile_lines():
        if line.startswith("COPY") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert any(Path(source).match(rule[1:]) for rule in ignored if rule.startswith("!")), source


def test_the_health_check_knows_a_living_daemon_from_a_wedged_one(monkeypatch):
    from alertprod.config import HttpConfig
    from alertprod.metrics import Metrics
    from alertprod.service.health import HEARTBEAT_LIMIT_S, Health, HealthServer

    now = [0.0]
    health = Health(clock=lambda: now[0])
    with HealthServer(HttpConfig(port=0), health, Metrics().render) as server:
        monkeypatch.setenv("ALERTPROD_HTTP__PORT", str(server.port))
        check = [sys.executable, OPS / "container" / "healthcheck.py"]
        assert run(*check).returncode == 0
        now[0] = HEARTBEAT_LIMIT_S + 1
        wedged = run(*check)
        assert (wedged.returncode, json.loads(wedged.stdout)["state"]) == (1, "wedged")
    assert run(*check).returncode == 1


# Compose.


def test_compose_go_accepts_the_composition(tmp_path):
    text = (OPS / "compose" / "compose.yaml").read_text()
    text = text.replace("${DATA:-./data}", "./data").replace("${GRAFANA_PASSWORD:?set it in .env}", "secret")
    assert "${" not in text
    path = tmp_path / "compose.yaml"
    path.write_text(text)

    checked = run(find_tool("compose-go"), path)
    assert checked.returncode == 0, checked.stderr
    assert set(yaml.safe_load(checked.stdout)["services"]) == {
        "kafka", "topics", "registry", "schemas", "alertprod", "prometheus", "alertmanager", "grafana",
    }  # fmt: skip


def test_alertprod_understands_what_the_composition_and_the_manifests_tell_it(manifests):
    services = yaml.safe_load((OPS / "compose" / "compose.yaml").read_text())["services"].values()
    commands = [service["command"] for service in services if service["image"] == "alertprod" and "command" in service]
    pod = kind_of(manifests, "StatefulSet")["spec"]["template"]["spec"]
    commands += [container["args"] for container in pod["containers"]]
    assert len(commands) == 2
    for words in commands:
        assert_understood(shlex.join(["alertprod", *words]))


def test_what_is_asked_for_within_the_composition_is_a_service_of_it():
    services = yaml.safe_load((OPS / "compose" / "compose.yaml").read_text())["services"]
    kafka = load_config(OPS / "compose" / "alertprod.toml").kafka
    source = yaml.safe_load((OPS / "grafana/provisioning/datasources/alertprod.yml").read_text())["datasources"][0]
    prometheus = yaml.safe_load((OPS / "prometheus" / "prometheus.yml").read_text())
    named = [kafka.bootstrap_servers, kafka.registry_url, source["url"]]
    for part in (*prometheus["scrape_configs"], *prometheus["alerting"]["alertmanagers"]):
        named += [target for each in part["static_configs"] for target in each["targets"]]
    assert len(named) == 5
    listens = {"kafka:9092", "registry:8081", "prometheus:9090", "alertmanager:9093", "alertprod:9117"}
    assert {name.removeprefix("http://") for name in named} == listens
    assert {name.partition(":")[0] for name in listens} <= set(services)


def test_files_that_the_composition_mounts_are_there():
    compose = yaml.safe_load((OPS / "compose" / "compose.yaml").read_text())
    mounts = [volume for service in compose["services"].values() for volume in service.get("volumes", ())]
    files = [mount.split(":")[0] for mount in mounts if mount.startswith("..")]
    files += [entry["file"] for entry in compose["configs"].values()]
    for file in files:
        assert (OPS / "compose" / file).exists(), file


def test_what_is_published_is_published_on_loopback():
    compose = yaml.safe_load((OPS / "compose" / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), (name, port)


def test_the_variables_of_the_composition_are_in_the_example():
    used = set(re.findall(r"\$\{(\w+)", (OPS / "compose" / "compose.yaml").read_text()))
    assert used == set(re.findall(r"^(\w+)=", (OPS / "compose" / ".env.example").read_text(), flags=re.MULTILINE))


# Kubernetes.


@pytest.fixture(scope="module")
def manifests():
    built = run(find_tool("kustomize"), "build", OPS / "kubernetes" / "base")
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


def kind_of(manifests, kind):
    (found,) = (each for each in manifests if each["kind"] == kind)
    return found


def test_manifests_fit_the_schemas_of_kubernetes(manifests):
    validator = pytest.importorskip("kubernetes_validate")
    kinds = {each["kind"] for each in manifests if not each["apiVersion"].startswith("keda.sh/")}
    for manifest in manifests:
        if manifest["kind"] in kinds:
            for version in ("1.28", "1.34"):
                validator.validate(manifest, version, strict=True)
    assert {"StatefulSet", "Service", "ConfigMap", "PodDisruptionBudget", "NetworkPolicy"} <= kinds


def forbid_unknown(schema):
    """Make a CRD's schema refuse fields it does not list, as the API server's strict mode does."""
    if isinstance(schema, dict):
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        for value in list(schema.values()):
            forbid_unknown(value)
    elif isinstance(schema, list):
        for value in schema:
            forbid_unknown(value)


@pytest.mark.parametrize("kind", ["ScaledObject", "TriggerAuthentication"])
def test_manifests_fit_kedas_own_definition(manifests, kind):
    jsonschema = pytest.importorskip("jsonschema")
    path = TOOLS / "keda" / f"keda.sh_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip("KEDA's definitions are not here; `make deployment-tools` fetches them")
    (version,) = yaml.safe_load(path.read_text())["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}
    forbid_unknown(schema)

    manifest = kind_of(manifests, kind)
    jsonschema.validate(manifest, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest | {"spec": manifest["spec"] | {"minReplicas": 2}}, schema)


def test_pods_are_locked_down_and_have_time_to_drain(manifests):
    config = load_config(OPS / "examples" / "camera-189" / "alertprod.toml")
    pod = kind_of(manifests, "StatefulSet")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["terminationGracePeriodSeconds"] > config.limits.drain_s + 15
    for container in pod["containers"] + pod["initContainers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert container["resources"]["limits"]["memory"]
    (container,) = pod["containers"]
    assert {name: probe["httpGet"]["path"] for name, probe in container.items() if name.endswith("Probe")} == {
        "startupProbe": "/startupz", "livenessProbe": "/livez", "readinessProbe": "/readyz",
    }  # fmt: skip


def test_keda_scales_on_the_group_that_the_daemons_are(manifests):
    config = load_config(OPS / "kubernetes" / "base" / "alertprod.toml")
    spec = kind_of(manifests, "ScaledObject")["spec"]
    (kafka,) = (trigger["metadata"] for trigger in spec["triggers"] if trigger["type"] == "kafka")
    assert kafka["consumerGroup"] == config.kafka.group_id
    assert kafka["topic"] == config.topics.visit_ready
    assert kafka["bootstrapServers"] == config.kafka.bootstrap_servers
    assert spec["minReplicaCount"] >= 1  # a warm minimum
    assert spec["scaleTargetRef"]["name"] == kind_of(manifests, "StatefulSet")["metadata"]["name"]


def test_the_configuration_of_the_manifests_is_the_example():
    ours = (OPS / "kubernetes" / "base" / "alertprod.toml").read_text()
    assert ours == (OPS / "examples" / "camera-189" / "alertprod.toml").read_text()


# systemd.


def test_systemd_accepts_the_unit_and_finds_it_locked_down(tmp_path):
    analyze = find_tool("systemd-analyze")
    unit = tmp_path / "alertprod.service"
    text = (OPS / "systemd" / "alertprod.service").read_text()
    unit.write_text(text.replace("/opt/alertprod/bin/alertprod", "/usr/bin/env"))  # a program that is there

    checked = run(analyze, "verify", "--man=no", unit)
    assert checked.returncode == 0, checked.stderr
    assert "alertprod.service" not in checked.stderr  # it warns and returns 0
    judged = run(analyze, "security", "--offline=true", "--threshold=20", unit)
    assert judged.returncode == 0, judged.stdout  # an exposure of 2.0 of 10 at most


def test_the_unit_waits_for_the_daemon_to_drain():
    text = (OPS / "systemd" / "alertprod.service").read_text()
    stop_s = int(re.search(r"TimeoutStopSec=(\d+)", text).group(1))
    assert stop_s > load_config(OPS / "examples" / "one-camera" / "alertprod.toml").limits.drain_s + 15


# Examples.


@pytest.mark.parametrize(
    "path", ["examples/one-camera/alertprod.toml", "examples/camera-189/alertprod.toml", "compose/alertprod.toml"]
)
def test_example_configurations_are_good(path, tmp_path):
    from alertprod.factory import check_config

    source = OPS / path
    if path.startswith("compose"):  # where the container has its profile
        text = source.read_text().replace("/etc/alertprod/mysite.toml", str(OPS / "examples/one-camera/mysite.toml"))
        source = tmp_path / "alertprod.toml"
        source.write_text(text)
    assert check_config(load_config(source), source=path)


def test_the_profile_of_the_example_is_the_readmes():
    in_readme = re.search(r"```toml\n(instrument = .*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    example = (OPS / "examples" / "one-camera" / "mysite.toml").read_text()
    assert tomllib.loads(in_readme.group(1)) == tomllib.loads(example)
