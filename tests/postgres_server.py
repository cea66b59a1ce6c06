"""A real PostgreSQL for tests: a cluster of its own on a free loopback port, gone at the end."""

import contextlib
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

READY_S = 60.0
STOP_S = 30.0

_DEBIAN = Path("/usr/lib/postgresql")
"""Debian keeps the server's programs off the PATH, a folder a major version."""


class ServerMissing(Exception):
    """PostgreSQL's programs are not installed; the text is the reason to skip."""


def find_programs() -> Path:
    """Return the folder of initdb and postgres, of the newest version there is."""
    on_path = shutil.which("initdb")
    if on_path and shutil.which("postgres"):
        return Path(on_path).parent
    found = [folder for folder in _DEBIAN.glob("*/bin") if (folder / "initdb").exists()]
    if not found:
        raise ServerMissing("initdb is not on the PATH (Debian's package: postgresql)")
    return max(found, key=lambda folder: int(re.match(r"\d+", folder.parent.name).group()))


class PostgresServer:
    """Starts on construction; `kill` and `start` again with what it had; `url` is a superuser's on ``postgres``."""

    def __init__(self) -> None:
        programs = find_programs()
        self._directory = Path(tempfile.mkdtemp(prefix="alertprod-postgres-"))
        # The server refuses to be root's: there it runs as the user that the package made, or as nobody.
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            account = _find_account("postgres", "nobody")
            os.chown(self._directory, account.pw_uid, account.pw_gid)
            self._as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        data = self._directory / "data"
        self._run(programs / "initdb", "-D", data, "-U", "alertprod", "-A", "trust", "-E", "UTF8", "--no-sync")
        port = _free_port()
        self._log = (self._directory / "log").open("wb")
        self._command = [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", "", "-F"]
        self.url = f"postgresql://alertprod@127.0.0.1:{port}/postgres"
        self.start()

    def start(self) -> None:
        """Start the server, with what it had, and wait until it answers."""
        self._log_start = self._log.tell()
        self._process = subprocess.Popen(
            self._command,
            cwd=self._directory,
            env={**os.environ, "LC_MESSAGES": "C"},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            **self._as_user,
        )
        self._wait_until_ready()

    def kill(self) -> None:
        """End the server as a crash does, with all its connections."""
        family = self.family()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(STOP_S)
        psutil.wait_procs(family, STOP_S)

    def family(self) -> list[psutil.Process]:
        """Return its processes: the server's own, and one a connection."""
        main = psutil.Process(self._process.pid)
        return [main, *main.children(recursive=True)]

    def close(self) -> None:
        """Stop the server and remove its files."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        shutil.rmtree(self._directory)

    def _run(self, *command: str | Path) -> None:
        done = subprocess.run(
            command, cwd=self._directory, capture_output=True, text=True, check=False, **self._as_user
        )
        if done.returncode:
            shutil.rmtree(self._directory)
            raise RuntimeError(f"{command[0]} failed: {done.stderr}")

    def _wait_until_ready(self) -> None:
        # The port opens before the server answers on it; its log says when it does.
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if (
                b"database system is ready to accept connections"
                in Path(self._log.name).read_bytes()[self._log_start :]
            ):
                return
            time.sleep(0.05)
        log = Path(self._log.name).read_text(errors="replace")
        self.close()
        raise RuntimeError(f"PostgreSQL did not start:\n{log[-2000:]}")


def _find_account(*names: str) -> pwd.struct_passwd:
    accounts = {account.pw_name: account for account in pwd.getpwall()}
    return next(accounts[name] for name in names if name in accounts)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
