"""Rubin's middleware has one owner: an installation without the extra imports everything else."""

import ast
from pathlib import Path

import pytest

import alertprod

PACKAGE = Path(alertprod.__file__).parent
MIDDLEWARE = ("lsst.daf", "lsst.pipe", "lsst.ctrl", "lsst.sphgeom", "lsst.resources")


@pytest.fixture(scope="module")
def imports() -> dict[Path, set[str]]:
    """What each file of the package imports, late imports among it."""
    return {path.relative_to(PACKAGE): imported_by(path) for path in PACKAGE.rglob("*.py")}


def imported_by(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_only_the_adapter_imports_the_middleware(imports):
    importers = {path.parts[0] for path, names in imports.items() if any(name.startswith(MIDDLEWARE) for name in names)}
    assert importers == {"butler"}


def test_only_entry_points_and_the_factory_lead_to_the_adapter(imports):
    importers = {
        str(path)
        for path, names in imports.items()
        if path.parts[0] != "butler" and any(name.startswith("alertprod.butler") for name in names)
    }
    assert importers == {"factory.py"}
