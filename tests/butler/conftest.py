"""Butler repositories on SQLite; only read by the tests that share one."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from butler_repository import Made


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Made]":
    """Visits 1 and 2 of one detector, and the template in three patches, one of them elsewhere."""
    from butler_repository import make_repository

    return make_repository(tmp_path_factory.mktemp("butler") / "repository", (1, 2))


@pytest.fixture(scope="session")
def fresh(made: "Made", tmp_path_factory: pytest.TempPathFactory):
    """Return a function that copies the repository, for tests that change it."""
    import shutil
    from dataclasses import replace

    def copy() -> "Made":
        root: Path = tmp_path_factory.mktemp("copy") / "repository"
        shutil.copytree(made.root, root)
        return replace(made, root=root)

    return copy
