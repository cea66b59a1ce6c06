"""`CharacterizeTask`: sky, stars, PSF and cosmic rays of an exposure that says little."""

from dataclasses import replace

import numpy as np
import pytest
from made_skies import NOISE, SHAPE, make_pair

from alertprod.errors import InsufficientPsfStars
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.analytic import GaussianPsf
from alertprod.tasks.characterize import CharacterizeConfig, CharacterizeTask


def make_task(**fields):
    config = CharacterizeConfig()
    config.update(**fields)
    return CharacterizeTask(config)


def copy_planes(exposure):
    return [plane.copy() for plane in (exposure.image, exposure.mask, exposure.variance)]


def test_stars_are_found_where_they_are(pair):
    candidates = make_task().run(pair.science).selectSources
    assert candidates.n_rows > 10
    known = np.stack([np.append(pair.star_x, [70.3, 100.1]), np.append(pair.star_y, [90.2, 170.7])])
    for x, y in zip(candidates["x"], candidates["y"], strict=True):
        assert np.hypot(*(known - [[x], [y]])).min() < 0.5


def test_a_missing_psf_is_fitted_and_said_so(pair):
    unknown = pair.science.copy()
    unknown.psf = None
    task = make_task()
    exposure = task.run(unknown).exposure
    assert exposure.psf.compute_fwhm() == pytest.approx(4.4, rel=0.02)
    assert exposure.info.provenance["psf"] == f"fitted from {task.metadata['nPsfStars']} stars"
    assert unknown.psf is None
    assert "psf" not in unknown.info.provenance


def test_a_given_psf_is_kept(pair):
    task = make_task()
    exposure = task.run(pair.science).exposure
    assert exposure.psf is pair.science.psf
    assert "nPsfStars" not in task.metadata


def test_nothing_to_fit_a_psf_on_is_an_error_with_its_numbers(pair):
    rng = np.random.default_rng(3)
    empty = pair.science.copy()
    empty.masked_image = MaskedImage(
        (NOISE * rng.standard_normal(SHAPE)).astype(np.float32),
        np.zeros(SHAPE, np.int32),
        np.full(SHAPE, NOISE**2, np.float32),
    )
    empty.psf = None
    with pytest.raises(InsufficientPsfStars) as caught:
        make_task().run(empty)
    assert caught.value.n_stars < caught.value.n_required


def test_the_exposure_given_is_left_as_it_was(pair):
    sky = pair.science.copy()
    sky.image[...] += 200.0
    sky.image[100, 100] += 900.0
    before = copy_planes(sky)
    for plane in (sky.image, sky.mask, sky.variance):
        plane.flags.writeable = False
    made = make_task().run(sky).exposure
    for now, then in zip((sky.image, sky.mask, sky.variance), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert not np.shares_memory(made.mask, sky.mask)


def test_in_place_the_exposure_given_is_what_is_returned(pair):
    sky = pair.science.copy()
    sky.image[...] += 200.0
    sky.image[100, 100] += 900.0
    wanted = make_task().run(sky).exposure
    made = make_task().run(sky, inPlace=True).exposure
    for now, then, given in zip(
        copy_planes(made), copy_planes(wanted), (sky.image, sky.mask, sky.variance), strict=True
    ):
        np.testing.assert_array_equal(now, then)
        np.testing.assert_array_equal(now, given)


def sparse_sky(level):
    """Few stars, so that half of the pixels are sky."""
    sparse = make_pair(science_fwhm=3.0).science
    sparse.image[...] += level
    return sparse


def test_a_sky_that_is_there_is_taken_off():
    plain, sky = sparse_sky(0.0), sparse_sky(200.0)
    flat = make_task(doSubtractBackground=True).run(sky).exposure
    off_stars = plain.variance < 1.2 * NOISE**2
    # Stars' wings are in the sky's bins: they bias it by a fraction of the noise.
    assert np.median(flat.image[off_stars]) == pytest.approx(0.0, abs=0.5 * NOISE)
    assert np.median(sky.image[off_stars]) == pytest.approx(200.0, abs=0.5 * NOISE)


def test_by_default_only_a_sky_that_is_clearly_there_is_taken_off():
    task = make_task()
    assert task.subtractSky(sparse_sky(200.0)).image.mean() < 150.0
    near_zero = sparse_sky(0.0)
    level = task.metadata["skyLevel"]
    assert level == pytest.approx(200.0, abs=3 * NOISE)
    near_zero.image[...] -= level - 200.0
    assert task.subtractSky(near_zero) is near_zero


@pytest.mark.parametrize(("slope", "is_taken_off"), [(0.5, False), (4.0, True)])
def test_a_sky_of_zero_mean_is_taken_off_where_it_clearly_varies(slope, is_taken_off):
    rng = np.random.default_rng(4)
    shape = (384, 384)
    ramp = slope * NOISE * np.linspace(-1.0, 1.0, shape[1], dtype=np.float32)[None, :]
    planes = MaskedImage.empty(shape)
    planes.image[...] = (NOISE * rng.standard_normal(shape)).astype(np.float32) + ramp
    planes.mask[...], planes.variance[...] = 0, NOISE**2
    sky = replace(make_pair(science_fwhm=3.0).science, masked_image=planes)
    task = make_task(backgroundBinSize=64)
    flat = task.subtractSky(sky)
    assert (flat is not sky) == is_taken_off
    # Six columns of bins; the median absolute deviation of evenly spaced levels is a quarter of their range.
    assert task.metadata["skyVariation"] == pytest.approx(1.4826 * slope * NOISE / 2.0, rel=0.2)
    if is_taken_off:
        # A median of 1024 pixels is good to 0.04 of the noise, half a bin beyond the outer ones to twice as much.
        assert np.abs(flat.image.mean(axis=0)).max() < 0.3 * NOISE


def test_the_sky_can_be_left_alone():
    sky = sparse_sky(200.0)
    assert make_task(doSubtractBackground=False).subtractSky(sky) is sky


def test_cosmic_rays_are_marked_and_stars_are_not(pair):
    struck = pair.science.copy()
    struck.image[30, 100:104] += 400.0
    struck.image[150, 60] += 400.0
    task = make_task()
    mask = task.run(struck).exposure.mask & plane_bits("CR")
    assert mask[30, 100:104].all()
    assert mask[150, 60]
    for x, y in zip(np.round(pair.star_x).astype(int), np.round(pair.star_y).astype(int), strict=True):
        assert not mask[y, x]
    assert task.metadata["nCosmicRayPixels"] == np.count_nonzero(mask)
    untouched = make_task(doFindCosmicRays=False).run(struck).exposure
    assert not untouched.mask.any()


def test_a_tile_without_a_psf_gets_one_and_loses_its_cosmic_rays(pair):
    tile = replace(pair.template, psf=None)
    tile.masked_image = tile.masked_image.copy()
    tile.image[150, 60] += 900.0
    given = copy_planes(tile)
    task = make_task()
    prepared = task.prepareTemplate(tile)
    assert prepared.psf is not None
    assert prepared.mask[150, 60] & plane_bits("INTRP")
    # Among its neighbours again: within what is left of the particle's own noise in none.
    assert abs(prepared.image[150, 60] - pair.template.image[150, 60]) < 6.0 * np.sqrt(pair.template.variance[150, 60])
    assert task.metadata["nRepairedPixels"] >= 1
    for now, then in zip((tile.image, tile.mask, tile.variance), given, strict=True):
        np.testing.assert_array_equal(now, then)


def test_an_image_without_any_good_pixel_has_no_stars(pair):
    blind = pair.science.copy()
    blind.mask[...] = plane_bits("NO_DATA")
    assert make_task().run(blind).selectSources.n_rows == 0


def test_stars_of_an_image_whose_psf_has_no_width_are_found_by_their_own(pair):
    class Needle(GaussianPsf):
        def compute_offset_image(self, **at):
            image = np.zeros_like(super().compute_offset_image(**at))
            image[image.shape[0] // 2, image.shape[0] // 2] = 1.0
            return image

    spoiled = replace(pair.template, psf=Needle(fwhm=3.6))
    with pytest.raises(ValueError, match="adaptive moments"):
        spoiled.psf.compute_sigma()
    assert make_task().selectKernelSources(spoiled).n_rows > 10
