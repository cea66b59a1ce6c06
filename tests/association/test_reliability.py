import sys

import numpy as np
import pytest
from installed_scorers import FAILURES, install

from alertprod.association.reliability import ScorerFailed, cut_stamps, load_scorer, score_sources
from alertprod.errors import ConfigError
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import PhotoCalib

SHAPE = (60, 80)


@pytest.fixture(autouse=True)
def scorers(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch)
    monkeypatch.delitem(sys.modules, "example_scorers", raising=False)


@pytest.fixture
def exposure():
    image = np.arange(SHAPE[0] * SHAPE[1], dtype=np.float32).reshape(SHAPE)
    mask = np.zeros(SHAPE, dtype=np.int32)
    mask[30, 40] = plane_bits("SAT")
    return Exposure(masked_image=MaskedImage(image, mask, np.ones(SHAPE, np.float32)), photo_calib=PhotoCalib(2.0))


@pytest.fixture
def score(exposure, make_sources):
    def score(scorer, n=3):
        sources = make_sources(np.zeros(n), np.zeros(n), x=40.0, y=30.0)
        images = dict.fromkeys(("difference", "science", "template"), exposure)
        answer = score_sources(scorer, sources, **images)
        assert np.isfinite(sources["psf_flux"]).all()
        return answer

    return score


def test_a_scorer_is_found_by_the_name_it_was_installed_under(score):
    scorer = load_scorer("sharpness", {"stamp_size": 15, "name": "mine"})
    assert scorer.stamp_size == 15
    answer = score(scorer)
    assert answer.version == "mine 1.0"
    assert answer.scores.shape == (3,)
    assert (answer.scores > 0).all()


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("nobody", {}, "there is no such one; there are: broken, fixed, misspelt, sharpness, unusable"),
        ("unusable", {}, "OSError: the model's file is not there"),
        ("misspelt", {}, "AttributeError"),
        ("sharpness", {"no_such_option": 1}, "TypeError"),
        ("sharpness", {"stamp_size": 0}, "its stamp_size is 0"),
    ],
)
def test_a_scorer_that_cannot_be_made_is_a_mistake_of_the_configuration(name, options, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        load_scorer(name, options)
    assert caught.value.field == name


@pytest.mark.parametrize("how", FAILURES)
def test_whatever_a_scorer_does_wrong_is_one_failure(score, how):
    with pytest.raises(ScorerFailed, match=FAILURES[how]):
        score(load_scorer("broken", {"how": how}))


def test_scores_may_be_missing_one_by_one(score):
    answer = score(load_scorer("fixed", {"scores": [0.0, float("nan"), 1.0]}))
    np.testing.assert_array_equal(answer.scores, [0.0, np.nan, 1.0])


def test_stamps_hold_calibrated_pixels_with_the_source_in_the_middle(exposure):
    stamps = cut_stamps(exposure, x=np.array([40.2, 10.0]), y=np.array([29.8, 20.0]), side=5)
    np.testing.assert_array_equal(stamps.image[0], 2.0 * exposure.image[28:33, 38:43])
    np.testing.assert_array_equal(stamps.image[1], 2.0 * exposure.image[18:23, 8:13])
    assert (stamps.variance == 4.0).all()
    assert stamps.mask[0, 2, 2] == plane_bits("SAT")
    assert np.count_nonzero(stamps.mask) == 1


def test_stamps_beyond_the_edge_hold_nothing(exposure):
    x, y = np.array([0.0, -50.0, np.nan]), np.array([59.0, 10.0, 10.0])
    stamps = cut_stamps(exposure, x=x, y=y, side=3)
    assert stamps.image.shape == (3, 3, 3)
    np.testing.assert_array_equal(np.isfinite(stamps.image[0]), [[False, True, True]] * 2 + [[False] * 3])
    np.testing.assert_array_equal(stamps.mask == plane_bits("NO_DATA"), np.isnan(stamps.image))
    np.testing.assert_array_equal(np.isnan(stamps.variance), np.isnan(stamps.image))
    assert np.isnan(stamps.image[1:]).all()


def test_stamps_of_no_sources_are_empty(exposure):
    assert cut_stamps(exposure, x=np.zeros(0), y=np.zeros(0), side=7).image.shape == (0, 7, 7)
