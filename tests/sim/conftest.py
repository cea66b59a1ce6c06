"""A night, rendered once in this process."""

import pytest
from made_skies import render_night


@pytest.fixture(scope="session")
def night(tmp_path_factory):
    return render_night(tmp_path_factory.mktemp("night"))
