"""Exposures with something wrong, drawn at random: a difference ends in a sound catalogue or in an error with a name."""

import pytest
from degraded_pairs import DEGRADATIONS, STARS, make_degraded_pair
from random_configurations import MODES
from soundness import run_soundly

from alertprod.tasks import ImageDifferenceTask
from alertprod.tasks.config_fields import apply_overrides

N_QUICK, N_ALL = 100, 600


def difference(seed: int):
    """Run one of the task's modes on a degraded pair."""
    pair = make_degraded_pair(seed)
    config = ImageDifferenceTask.ConfigClass()
    apply_overrides(config, MODES[seed % len(MODES)], source="test")
    task = ImageDifferenceTask(config)

    def run():
        science, template, stars = pair.science, pair.template, pair.stars
        if seed % 4 == 0:
            # As a command does with images of which it knows nothing.
            ready = task.characterizeInputs(science, template)
            science, template = ready.exposure, ready.templateExposure
            stars = ready.selectSources if stars is None else stars
        return task.run(
            exposure=science,
            templateExposure=template,
            selectSources=stars,
            subtractedExposure=None if config.doSubtract else pair.science,
            calexpBackgroundExposure=pair.template,
        ).diaSources

    return run_soundly(run, (pair.science, pair.template, pair.stars), has_sky=pair.science.wcs is not None)


@pytest.mark.parametrize("seed", range(N_QUICK))
def test_a_degraded_pair_gives_a_sound_catalog_or_a_named_error(seed, in_time):
    difference(seed)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(N_QUICK, N_ALL))
def test_more_degraded_pairs_give_a_sound_catalog_or_a_named_error(seed, in_time):
    difference(seed)


def test_every_way_to_degrade_an_exposure_is_among_them():
    drawn = {line.partition(": ")[2] for seed in range(N_QUICK) for line in make_degraded_pair(seed).history}
    assert set(DEGRADATIONS) | set(STARS) <= drawn


def test_a_seed_gives_the_same_pair_again():
    one, other = make_degraded_pair(3), make_degraded_pair(3)
    assert one.history == other.history
    assert one.science.image.tobytes() == other.science.image.tobytes()
