"""A real schema registry for tests: Apicurio's, which speaks Confluent's interface, on loopback and in memory."""

import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

from maven_jars import JarsMissing, find_java, gather_jars

READY_S = 90.0


class RegistryMissing(Exception):
    """There is none, and none can be had; the text is the reason to skip."""


class ApicurioRegistry:
    """One registry of our own; `url` is the root of Confluent's interface."""

    def __init__(self) -> None:
        try:
            java, folder = find_java(), gather_jars("registry")
        except JarsMissing as missing:
            raise RegistryMissing(str(missing)) from missing
        self._directory = TemporaryDirectory(prefix="alertprod-registry-")
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            # Debian's Python 3.11 does not know filters yet; the archive's checksum has been compared.
            packed.extractall(self._directory.name, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        (program,) = Path(self._directory.name).glob("*-runner.jar")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/apis/ccompat/v7"
        self._log = Path(self._directory.name, "log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    java, "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
                    f"-Dquarkus.http.port={port}", "-Dquarkus.http.host=127.0.0.1", "-jar", program.name,
                ],
                cwd=self._directory.name,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        deadline = time.monotonic() + READY_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = self._log.read_text(errors="replace")[-2000:]
                self.close()
                msg = f"the registry was not ready within {READY_S} s:\n{tail}"
                raise TimeoutError(msg)
            time.sleep(0.3)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._directory.cleanup()
