"""`warm_up`: everything a first exposure would compile is compiled, and the made-up exposure leaves nothing."""

import numpy as np

from alertprod.association.reliability import Reliability
from alertprod.factory import create_task
from alertprod.service.warm_up import warm_up


def test_the_made_up_exposure_gives_the_alerts_it_was_made_with():
    assert (
        warm_up(create_task({}, source="test"), n_threads=1) == 4
    )  # one that appeared, one that moved, a trail, a patch


def test_warming_up_again_gives_the_same():
    task = create_task({}, source="test")
    assert warm_up(task) == warm_up(task) == 4


def test_every_step_of_an_exposure_ran():
    task = create_task({}, source="test")
    warm_up(task)
    ran = {timer.rpartition(":")[2] for timer in task.durations()}
    assert {"run", "subtractExposures", "detect", "measure"} <= ran
    # The science exposure came without a PSF, so that the fit of one is compiled too.
    assert task.subtract.metadata["nKernelSources"] > 10
    assert task.measurement.metadata["nTrails"] == 1
    assert task.maskStreaks.metadata["nStreaks"] == 1


class CountingScorer:
    """Counts the sources it is shown."""

    stamp_size = 15

    def __init__(self):
        self.shown = []

    def score(self, sources, stamps):
        self.shown.append((sources.n_rows, stamps.science.image.shape))
        return Reliability(np.full(sources.n_rows, 0.5), "1")


def test_the_scorer_is_asked_too():
    scorer = CountingScorer()
    assert warm_up(create_task({}, source="test"), scorer=scorer) == 4
    assert scorer.shown == [(4, (4, 15, 15))]
