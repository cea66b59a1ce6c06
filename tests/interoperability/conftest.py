"""Other people's software reads our alerts."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from maven_jars import JarsMissing, find_java, gather_jars

PROGRAM = Path(__file__).parent / "java" / "ReadAvro.java"


@pytest.fixture(scope="session")
def read_with_java() -> Callable[..., list[str]]:
    """Apache's Avro for Java: ``read_with_java("container", path)`` gives the lines that it says."""
    try:
        java, jars = find_java(), gather_jars("avro")
    except JarsMissing as missing:
        pytest.skip(f"no Avro for Java: {missing}")

    def run(*arguments: object) -> list[str]:
        command = [java, "-Xmx256m", "-XX:TieredStopAtLevel=1", "-cp", f"{jars}/*", str(PROGRAM), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run
