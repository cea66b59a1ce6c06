"""A daemon with a fake pipeline in real worker processes, against a broker in memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_bench import Bench, make_bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """One worker, two lanes."""
    made = make_bench(tmp_path)
    yield made
    if made.thread is not None and made.thread.is_alive():
        made.stop()
