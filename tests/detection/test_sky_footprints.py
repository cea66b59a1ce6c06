import numpy as np
import pytest

from alertprod.detection.sky_footprints import SkyFootprintConfig, _halton, place_sky_footprints
from alertprod.images.mask import plane_bits

SHAPE = (300, 400)
EMPTY = np.zeros(SHAPE, dtype=np.int32)


def test_as_many_as_wanted_lie_on_the_image_and_apart():
    footprints = place_sky_footprints(EMPTY, seed=7)
    assert len(footprints) == 100
    assert footprints.is_sky.all()
    assert not footprints.is_negative.any()
    assert (footprints.significance == 0.0).all()
    assert len(np.unique(footprints.pixels)) == len(footprints.pixels)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for i in range(len(footprints)):
        rows, columns = footprints.footprint_pixels(i)
        disk = (y - footprints.y[i]) ** 2 + (x - footprints.x[i]) ** 2 <= 64
        np.testing.assert_array_equal(np.argwhere(disk), np.stack([rows, columns], axis=1))


def test_places_stay_clear_of_what_is_detected_or_bad():
    rng = np.random.default_rng(1)
    mask = np.where(rng.random(SHAPE) < 2e-3, plane_bits("DETECTED"), 0).astype(np.int32)
    mask[:, 200:230] = plane_bits("NO_DATA")
    mask[100:110] |= plane_bits("SUSPECT")
    footprints = place_sky_footprints(mask, seed=3)
    assert len(footprints) > 10
    assert not (mask.reshape(-1)[footprints.pixels] & plane_bits("DETECTED", "NO_DATA")).any()


def test_the_same_seed_gives_the_same_places_and_another_others():
    a, b, c = (place_sky_footprints(EMPTY, seed=seed) for seed in (-5, -5, 2**62 + 1))
    np.testing.assert_array_equal(a.pixels, b.pixels)
    assert not np.array_equal(a.pixels, c.pixels)


def test_places_fill_the_image_evenly():
    footprints = place_sky_footprints(EMPTY, seed=11)
    counts, _, _ = np.histogram2d(footprints.y, footprints.x, bins=(3, 4), range=((8, 292), (8, 392)))
    # A random strewing would scatter by sqrt(100 / 12) = 2.9 about 8.3; this sequence is several times more even.
    assert np.abs(counts - 100 / 12).max() < 2 * 2.9


def test_with_little_room_there_are_fewer():
    mask = np.full(SHAPE, plane_bits("BAD"), dtype=np.int32)
    assert len(place_sky_footprints(mask, seed=1)) == 0
    mask[100:140, 100:140] = 0
    assert 1 <= len(place_sky_footprints(mask, seed=1, config=SkyFootprintConfig(trial_factor=100))) <= 4
    assert len(place_sky_footprints(np.zeros((12, 400), np.int32), seed=1)) == 0


def test_number_and_radius_are_configured():
    footprints = place_sky_footprints(
        EMPTY, seed=1, sigma=2.5, config=SkyFootprintConfig(n_sources=7, source_radius=3.5)
    )
    assert len(footprints) == 7
    assert footprints.sigma == 2.5
    assert set(footprints.area.tolist()) == {37}
    assert len(place_sky_footprints(EMPTY, seed=1, config=SkyFootprintConfig(n_sources=0))) == 0


@pytest.mark.parametrize("fields", [{"n_sources": -1}, {"source_radius": 0.0}, {"trial_factor": 0}])
def test_impossible_settings_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        SkyFootprintConfig(**fields)


def test_sequence_is_that_of_halton():
    expected = [[1 / 2, 1 / 3], [1 / 4, 2 / 3], [3 / 4, 1 / 9], [1 / 8, 4 / 9], [5 / 8, 7 / 9]]
    np.testing.assert_allclose(_halton(5), expected)
