"""A night of two visits, and pipelines that have not seen it."""

import pytest
from astropy.table import Table
from made_skies import render_night
from pipeline_bench import Bench, set_up, source_facts

from alertprod.store.database import upgrade
from alertprod.store.template_index import index_templates


@pytest.fixture(scope="package")
def night(tmp_path_factory):
    """Two visits of one detector, and an index of the tiles under them."""
    made = render_night(tmp_path_factory.mktemp("night"))
    index_templates(str(made.templates_directory))
    return made


@pytest.fixture(scope="package")
def empty_database(tmp_path_factory):
    path = tmp_path_factory.mktemp("database") / "empty.sqlite"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def make_bench(night, empty_database, tmp_path):
    made = []

    def make(**settings) -> Bench:
        folder = tmp_path / f"bench{len(made)}"
        folder.mkdir()
        made.append(set_up(folder, night, empty_database, **settings))
        return made[-1]

    yield make
    for bench in made:
        bench.database.close()


@pytest.fixture
def bench(make_bench):
    return make_bench()


@pytest.fixture
def truth(night):
    return Table.read(night.directory / "truth.ecsv")


@pytest.fixture(scope="package")
def undisturbed(night, empty_database, tmp_path_factory):
    """What a fresh pipeline makes of the first visit."""
    fresh = set_up(tmp_path_factory.mktemp("fresh"), night, empty_database)
    facts = [source_facts(alert) for alert in fresh.alerts(fresh.process(fresh.event(night)))]
    fresh.database.close()
    return facts
