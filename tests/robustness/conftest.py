import time

import pytest
from made_skies import make_pair

from alertprod.tasks import ImageDifferenceTask

ENDLESS = 100
"""No run may cost so many plain ones: kernels of delta functions, the dearest there are, cost thirty."""


@pytest.fixture(scope="session")
def limit_s():
    """Processor seconds that a run may take on this machine: `ENDLESS` times a plain difference of 224 x 224 pixels."""
    pair = make_pair()
    task = ImageDifferenceTask()
    seconds = []
    # The first one compiles.
    for _ in range(4):
        started = time.process_time()
        task.run(exposure=pair.science, templateExposure=pair.template)
        seconds.append(time.process_time() - started)
    return ENDLESS * sorted(seconds[1:])[1]


@pytest.fixture
def in_time(limit_s):
    """Fail a test whose body takes longer."""
    started = time.process_time()
    yield
    assert time.process_time() - started < limit_s
