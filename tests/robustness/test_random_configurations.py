"""Configurations drawn at random: refused by name, or a difference that ends in a sound catalogue or a named error."""

from dataclasses import replace

import numpy as np
import pytest
from made_skies import PairReference, make_pair
from random_configurations import draw_settings, list_fields, make_configuration
from soundness import run_soundly

from alertprod.images.ap_corr import ApertureCorrection, ChebyshevField
from alertprod.tasks import ImageDifferenceTask
from alertprod.tasks.image_difference import ImageDifferenceConfig
from alertprod.tasks.sources import make_source_catalog

N_QUICK, N_ALL = 100, 600


@pytest.fixture(scope="module")
def pair():
    made = make_pair()
    field = ChebyshevField(made.science.box, np.array([[1.1, 0.01]]))
    return replace(made, science=replace(made.science, ap_corr_map={"psf_flux": ApertureCorrection(field)}))


@pytest.fixture(scope="module")
def made_before(pair):
    """A difference to adopt."""
    return ImageDifferenceTask().run(exposure=pair.science, templateExposure=pair.template).subtractedExposure


def difference(seed: int, pair, made_before):
    """Run a random configuration on a pair with which nothing is wrong; None where it is refused."""
    rng = np.random.default_rng(seed)
    config = make_configuration(draw_settings(rng, seed))
    if config is None:
        return None
    stars = make_source_catalog(x=pair.star_x, y=pair.star_y, flux=pair.star_flux) if rng.random() < 0.3 else None
    reference = PairReference(pair) if rng.random() < 0.7 else None

    def run():
        task = ImageDifferenceTask(config, refObjLoader=reference)
        return task.run(
            exposure=pair.science,
            templateExposure=pair.template,
            selectSources=stars,
            subtractedExposure=None if config.doSubtract else made_before,
            calexpBackgroundExposure=made_before,
        ).diaSources

    inputs = (pair.science, pair.template, stars, made_before)
    return run_soundly(run, inputs, has_sky=True, forced=config.doForcedMeasurement)


@pytest.mark.parametrize("seed", range(N_QUICK))
def test_a_random_configuration_gives_a_sound_catalog_or_a_named_error(seed, pair, made_before, in_time):
    difference(seed, pair, made_before)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(N_QUICK, N_ALL))
def test_more_random_configurations_give_a_sound_catalog_or_a_named_error(seed, pair, made_before, in_time):
    difference(seed, pair, made_before)


def test_most_are_legal_and_every_field_is_drawn():
    drawn = [draw_settings(np.random.default_rng(seed), seed) for seed in range(N_ALL)]
    assert {path for path, _, _ in list_fields(ImageDifferenceConfig())} <= set().union(*drawn)
    n_legal = sum(make_configuration(settings) is not None for settings in drawn[:N_QUICK])
    assert n_legal > N_QUICK / 2
