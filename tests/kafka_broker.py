"""A real Kafka broker for tests and benchmarks: one KRaft node on loopback, gathered from Maven, gone at the end.

``KafkaBroker`` starts and stops it; ``ExistingBroker`` stands for one that somebody else runs.
"""

import base64
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic
from maven_jars import ROOT, JarsMissing, find_java, gather_jars

SERVER_PROPERTIES = ROOT / "ops" / "kafka" / "server.properties"
READY_S = 60.0
STOP_S = 30.0


class BrokerMissing(Exception):
    """There is no broker, and none can be had; the text is the reason to skip."""


class ExistingBroker:
    """A broker that runs already; topics get names of their own."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers

    def create_topics(self, topics: Mapping[str, int], *, config: Mapping[str, str] | None = None) -> None:
        """Create topics with these numbers of partitions, and wait until they can be used."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        settings = {"max.message.bytes": "10485760", **(config or {})}
        new = [NewTopic(name, n, 1, config=settings) for name, n in topics.items()]
        for future in admin.create_topics(new, operation_timeout=20).values():
            future.result(30)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            known = admin.list_topics(timeout=10).topics
            if all(
                name in known
                and len(known[name].partitions) == n
                and all(p.leader >= 0 for p in known[name].partitions.values())
                for name, n in topics.items()
            ):
                return
            time.sleep(0.1)
        msg = f"topics {sorted(topics)} did not appear"
        raise TimeoutError(msg)

    def close(self) -> None:
        """Nothing of ours to end."""

    def unique_topic(self, stem: str, *, partitions: int = 1) -> str:
        """Create a topic nobody else uses and return its name."""
        name = f"{stem}-{uuid.uuid4().hex[:8]}"
        self.create_topics({name: partitions})
        return name


class KafkaBroker(ExistingBroker):
    """One broker of our own: `start`, `stop` (cleanly), `kill` (as a crash), `start` again with what it had.

    Raises
    ------
    BrokerMissing
        Raised if Java or the jars cannot be had.
    """

    def __init__(
        self,
        *,
        heap: str = "512m",
        properties: Mapping[str, str] | None = None,
        more_listeners: tuple[str, str] | None = None,
    ) -> None:
        try:
            self._java, self._libs = find_java(), gather_jars("kafka")
        except JarsMissing as missing:
            raise BrokerMissing(str(missing)) from missing
        self._heap = heap
        self.behind_port: int | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="alertprod-kafka-"))
        self._process: subprocess.Popen[bytes] | None = None
        port, controller_port = free_ports(2)
        super().__init__(f"127.0.0.1:{port}")
        (self._directory / "log4j2.properties").write_text(
            "rootLogger.level=WARN\nrootLogger.appenderRefs=out\nrootLogger.appenderRef.out.ref=out\n"
            "appender.out.type=Console\nappender.out.name=out\n"
            "appender.out.layout.type=PatternLayout\nappender.out.layout.pattern=%d %p %c{1}: %m%n\n"
        )
        self._settings = self._directory / "server.properties"
        own = {
            "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller_port}",
            "log.dirs": str(self._directory / "data"),
            **(properties or {}),
        }
        if more_listeners is not None:
            own["listeners"] += f",{more_listeners[0]}"
            own["advertised.listeners"] += f",{more_listeners[1]}"
        self._settings.write_text(_overridden(SERVER_PROPERTIES.read_text(), own))
        self._run_tool(
            "kafka.tools.StorageTool", "format", "--standalone", "-t", _cluster_id(), "-c", str(self._settings)
        )

    @classmethod
    def behind(cls, proxy_port: int) -> "KafkaBroker":
        """A broker with a second way in, `behind_port`, that it advertises as `proxy_port`: clients come by a proxy."""
        (port,) = free_ports(1)
        broker = cls(
            properties={
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT",
                "inter.broker.listener.name": "PLAINTEXT",
            },
            more_listeners=(f"PROXIED://127.0.0.1:{port}", f"PROXIED://127.0.0.1:{proxy_port}"),
        )
        broker.behind_port = port
        return broker

    @property
    def pid(self) -> int | None:
        """Of the running broker."""
        return None if self._process is None else self._process.pid

    @property
    def log(self) -> str:
        """What the broker wrote so far."""
        path = self._directory / "broker.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> Self:
        """Start the broker and wait until it answers; `TimeoutError` after a minute."""
        with (self._directory / "broker.log").open("ab") as out:
            self._process = subprocess.Popen(
                [*self._command(), "kafka.Kafka", str(self._settings)],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                if (
                    AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
                    .list_topics(timeout=1)
                    .brokers
                ):
                    return self
            except KafkaException:
                time.sleep(0.2)
        tail = self.log[-2000:]
        self.kill()
        msg = f"the broker was not ready within {READY_S} s:\n{tail}"
        raise TimeoutError(msg)

    def stop(self) -> None:
        """End the broker as an operator does; it keeps its data for another `start`."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the broker as a crash does."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """End the broker and delete its data."""
        self._end(signal.SIGTERM)
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _command(self) -> list[str]:
        return [
            self._java, f"-Xmx{self._heap}", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
            f"-Dlog4j2.configurationFile={self._directory / 'log4j2.properties'}", "-cp", f"{self._libs}/*",
        ]  # fmt: skip

    def _run_tool(self, *arguments: str) -> None:
        done = subprocess.run([*self._command(), *arguments], capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            shutil.rmtree(self._directory, ignore_errors=True)
            msg = f"{arguments[0]}: {done.stdout}{done.stderr}"
            raise RuntimeError(msg)


def find_broker() -> ExistingBroker:
    """Return the broker that ALERTPROD_TEST_KAFKA names, or one of our own, started.

    Raises
    ------
    BrokerMissing
        Raised if neither can be had; says why.
    """
    named = os.environ.get("ALERTPROD_TEST_KAFKA")
    if named:
        try:
            AdminClient({"bootstrap.servers": named}).list_topics(timeout=10)
        except KafkaException as error:
            raise BrokerMissing(f"ALERTPROD_TEST_KAFKA={named}: {error}") from error
        return ExistingBroker(named)
    return KafkaBroker().start()


def free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _overridden(text: str, settings: Mapping[str, str]) -> str:
    kept = [line for line in text.splitlines() if line.partition("=")[0] not in settings]
    return "\n".join([*kept, *(f"{key}={value}" for key, value in settings.items())]) + "\n"


def _cluster_id() -> str:
    # In the first six bits of a random UUID there may be a hyphen, which Kafka's tool takes for an option.
    return "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
