"""What the tests run on Java, fetched by Maven once and kept in the project's cache."""

import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class JarsMissing(Exception):
    """They are not here and cannot be had; the text is the reason to skip."""


def find_java() -> str:
    """Return the path of Java."""
    java = shutil.which("java")
    if java is None:
        raise JarsMissing("no java on the PATH")
    return java


def gather_jars(name: str) -> Path:
    """Return the folder with what ``ops/NAME/pom.xml`` depends on; the first time Maven fetches it.

    The pom's first property is the version that the folder is called by.
    """
    pom = ROOT / "ops" / name / "pom.xml"
    properties = ET.parse(pom).getroot().find("{*}properties")
    assert properties is not None
    target = ROOT / ".cache" / name / str(properties[0].text) / "libs"
    if target.is_dir():
        return target
    maven = shutil.which("mvn")
    if maven is None:
        raise JarsMissing(f"no mvn on the PATH, and no jars in {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as unfinished:
        command = [
            maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies",
            "-DincludeScope=runtime", f"-DoutputDirectory={unfinished}/libs",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode:
            raise JarsMissing(f"mvn failed: {(done.stdout + done.stderr)[-500:]}")
        try:
            Path(unfinished, "libs").rename(target)
        except OSError:  # another run of the tests was quicker
            if not target.is_dir():
                raise
    return target
