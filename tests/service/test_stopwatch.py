"""Wall time by stage."""

import copy

import pytest

from alertprod.service.stopwatch import Stopwatch


def test_stages_that_are_entered_again_add_up():
    watch = Stopwatch()
    watch.add("store", 1.0)
    with watch.stage("store"):
        pass
    assert 1.0 <= watch.seconds["store"] < 1.5
    with pytest.raises(ArithmeticError), watch.stage("load"):
        raise ArithmeticError
    assert "load" in copy.copy(watch.seconds)
