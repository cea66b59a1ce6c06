"""Kafka behind TLS and passwords: a real broker with a certificate of our own, and those that may not come in."""

import subprocess
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from kafka_broker import BrokerMissing, KafkaBroker, free_ports
from observatory import make_observatory

from alertprod.errors import AlertprodError, BrokerUnavailable
from alertprod.stream.producer import AlertProducer
from alertprod.stream.records import OutgoingMessage
from alertprod.stream.tail import AlertTail
from alertprod.stream.topics import describe_brokers

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.faults]

PASSWORD = "correct-horse-41"
LOGIN = "org.apache.kafka.common.security"


def openssl(folder: Path, *arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], cwd=folder, check=True, capture_output=True)


def make_certificates(folder: Path) -> None:
    """An authority; a broker's and a client's certificate signed by it; an authority that signed neither."""
    for name in ("authority", "stranger"):
        subject = ("-subj", f"/CN={name}", "-days", 2, "-nodes", "-newkey", "rsa:2048")
        openssl(folder, "req", "-x509", *subject, "-keyout", f"{name}.key", "-out", f"{name}.pem")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("broker", "client"):
        openssl(folder, "req", "-new", "-subj", f"/CN={name}", "-nodes", "-newkey", "rsa:2048", "-keyout", f"{name}.key",
                "-out", f"{name}.csr")  # fmt: skip
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "authority.pem", "-CAkey", "authority.key",
                "-CAcreateserial", "-days", 2, "-extfile", "names", "-out", f"{name}.crt")  # fmt: skip
    (folder / "broker.pem").write_text((folder / "broker.key").read_text() + (folder / "broker.crt").read_text())


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


@pytest.fixture(scope="module")
def broker(certificates):
    """Three ways in: plain for the test itself, TLS with a password, TLS with the client's own certificate."""
    with_password, with_certificate = free_ports(2)
    listeners = f"LOGIN://127.0.0.1:{with_password},MUTUAL://127.0.0.1:{with_certificate}"
    try:
        broker = KafkaBroker(
            properties={
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,LOGIN:SASL_SSL,MUTUAL:SSL",
                "inter.broker.listener.name": "PLAINTEXT",
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(certificates / "broker.pem"),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(certificates / "authority.pem"),
                "listener.name.mutual.ssl.client.auth": "required",
                "listener.name.login.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
                "listener.name.login.plain.sasl.jaas.config": f"{LOGIN}.plain.PlainLoginModule required "
                f'user_alertprod="{PASSWORD}";',
                "listener.name.login.scram-sha-512.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
            },
            more_listeners=(listeners, listeners),
        )
    except BrokerMissing as missing:
        pytest.skip(f"no Kafka: {missing}")
    with broker:
        admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        upsertion = UserScramCredentialUpsertion("alertprod", scram, PASSWORD.encode())
        for future in admin.alter_user_scram_credentials([upsertion]).values():
            future.result(30)
        broker.with_password, broker.with_certificate = f"127.0.0.1:{with_password}", f"127.0.0.1:{with_certificate}"
        yield broker


def login(certificates, mechanism, password=PASSWORD, authority="authority"):
    return {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": mechanism,
        "sasl.username": "alertprod",
        "sasl.password": password,
        "ssl.ca.location": str(certificates / f"{authority}.pem"),
    }


def exchange(broker, servers, options):
    """Publish in a transaction and read it back, both the secure way."""
    topic = broker.unique_topic("secure")
    with AlertProducer(servers, transactional_id=topic, options=options) as producer:
        producer.publish([OutgoingMessage(topic=topic, key=b"k", value=b"v")])
    with AlertTail(servers, [topic], options=options) as tail:
        (message,) = tail.messages(idle_s=20.0)
    assert message.value == b"v"
    assert describe_brokers(servers, [topic], options=options).topics[topic].n_partitions == 1


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_password_over_tls_lets_clients_in(broker, certificates, mechanism):
    exchange(broker, broker.with_password, login(certificates, mechanism))


def test_a_certificate_of_its_own_lets_a_client_in(broker, certificates):
    options = {
        "security.protocol": "SSL",
        "ssl.ca.location": str(certificates / "authority.pem"),
        "ssl.certificate.location": str(certificates / "client.crt"),
        "ssl.key.location": str(certificates / "client.key"),
    }
    exchange(broker, broker.with_certificate, options)
    without = {name: value for name, value in options.items() if "authority" in value or name == "security.protocol"}
    assert_refused(broker.with_certificate, without)


@pytest.mark.parametrize(
    "wrong",
    [{"password": "wrong-horse-17"}, {"authority": "stranger"}],
    ids=["a wrong password", "a broker that nobody vouches for"],
)
def test_what_is_not_right_is_refused_and_no_password_is_said(broker, certificates, wrong, capfd, caplog):
    options = login(certificates, "PLAIN", **wrong)
    assert_refused(broker.with_password, options)
    assert "-horse-" not in caplog.text + "".join(capfd.readouterr())


def test_nothing_goes_in_plain_text_where_tls_is_asked_for(broker):
    assert_refused(broker.with_password, {})


def assert_refused(servers: str, options: dict[str, str]) -> None:
    with pytest.raises(BrokerUnavailable) as refused:
        describe_brokers(servers, ["alerts"], options=options, timeout_s=6.0)
    assert "-horse-" not in str(refused.value)
    with AlertProducer(servers, transactional_id="refused", options=options) as producer, pytest.raises(AlertprodError):
        producer.start(timeout_s=6.0)


@pytest.mark.timeout(900)
def test_a_daemon_with_its_password_in_a_file_publishes_and_says_it_nowhere(
    tmp_path, broker, certificates, small_night
):
    night = small_night
    site = make_observatory(tmp_path / "site", broker, night, lanes=2)
    (tmp_path / "password").write_text(PASSWORD + "\n")
    plain = site.config_path.read_text()
    secured = plain.replace(broker.bootstrap_servers, broker.with_password)
    assert secured != plain
    tables = [
        f'"{name}" = "{value}"' for name, value in login(certificates, "SCRAM-SHA-512").items() if value != PASSWORD
    ]
    site.config_path.write_text(
        secured + "\n[kafka.security]\n" + "\n".join(tables)
        + f'\n[kafka.security_files]\n"sasl.password" = "{tmp_path / "password"}"\n'
    )  # fmt: skip
    with site.start() as daemon:
        daemon.wait_ready()
        sent = site.run("send", night.exposure_path(0, 0), timeout_s=200.0)
        assert sent.returncode == 0, sent.stderr
        daemon.wait_until(lambda: len(site.summaries()) == 1, timeout_s=200.0)
        pages = [daemon.ask(path)[1] for path in ("/metrics", "/livez", "/readyz")]
        environment = Path(f"/proc/{daemon.process.pid}/cmdline").read_text()
        assert daemon.terminate() == 0
    (summary,) = site.summaries()
    assert summary.outcome == "published"
    assert len(site.alerts()[night.visit_id(0), 0]) == summary.n_alerts > 0
    shown = site.run("config", "show", timeout_s=200.0)
    assert shown.returncode == 0
    said = [daemon.log_path.read_text(), shown.stdout, shown.stderr, sent.stdout, sent.stderr, environment, *pages]
    assert not [text for text in said if PASSWORD in text]
