"""One Gaussian pair and its difference, made once."""

import pytest
from made_skies import Pair, make_pair

from alertprod.measurement.catalog import Catalog
from alertprod.tasks.image_difference import ImageDifferenceConfig, ImageDifferenceTask
from alertprod.tasks.sources import make_source_catalog
from alertprod.tasks.task import Struct


def make_task(**fields) -> ImageDifferenceTask:
    config = ImageDifferenceConfig()
    for name, value in fields.items():
        setattr(config, name, value)
    return ImageDifferenceTask(config)


@pytest.fixture(scope="session")
def task():
    """Return a function that makes a task with some fields of its configuration set."""
    return make_task


@pytest.fixture(scope="session")
def pair() -> Pair:
    """Science sharper than nothing: FWHM 4.4 against a template of 3.6; three transients, one of them negative."""
    return make_pair()


@pytest.fixture(scope="session")
def stars(pair) -> Catalog:
    """Every star of the pair, none of the transients."""
    return make_source_catalog(x=pair.star_x, y=pair.star_y, flux=pair.star_flux)


@pytest.fixture(scope="session")
def result(pair, stars) -> Struct:
    """What the task makes of the pair with its defaults."""
    return make_task().run(exposure=pair.science, templateExposure=pair.template, selectSources=stars)
