"""A daemon with a fake pipeline in real worker processes, against a broker in memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from daemon_bench import Bench, make_bench


@pytest.fixture(autouse=True, scope="session")
def _quiet_logs() -> Iterator[None]:
    """Errors only: a night has hundreds of lines."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    yield
    structlog.reset_defaults()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """One worker, two lanes."""
    made = make_bench(tmp_path)
    yield made
    if made.thread is not None and made.thread.is_alive():
        made.stop()
