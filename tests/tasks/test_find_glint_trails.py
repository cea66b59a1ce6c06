"""`FindGlintTrailsTask`: the shell about `find_glint_trails`."""

import numpy as np

from alertprod.tasks.find_glint_trails import FindGlintTrailsConfig, FindGlintTrailsTask


def test_a_row_is_flagged_and_counted():
    rng = np.random.default_rng(1)
    x, y = (
        np.append(1000.0 + 60.0 * np.arange(8), rng.uniform(0, 4096, 20)),
        np.append(500.0 + 20.0 * np.arange(8), rng.uniform(0, 4096, 20)),
    )
    task = FindGlintTrailsTask()
    found = task.run(x=x, y=y)
    assert found.isGlint[:8].all()
    assert found.isGlint.dtype == bool
    assert (len(found.trails), task.metadata["n_trails"]) == (1, 1)
    assert task.metadata["n_glint_sources"] == found.isGlint.sum()


def test_names_and_defaults_are_the_reference_s():
    config = FindGlintTrailsConfig()
    assert (config.radius, config.min_points, config.threshold, config.seed) == (500.0, 5, 15.0, 42)
    config.min_points = 9
    assert not FindGlintTrailsTask(config).run(x=60.0 * np.arange(8), y=20.0 * np.arange(8)).isGlint.any()
