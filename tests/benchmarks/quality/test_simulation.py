"""Scenes, fields and truths: what is drawn is what the tables say, and what they say is what a matched filter sees."""

from dataclasses import replace

import numpy as np
import pytest
from benchmarks.quality.optics import Optics
from benchmarks.quality.render import make_field
from benchmarks.quality.scene import REGIMES, SEPARATION, SceneParameters, compute_point_noise, make_scene
from benchmarks.quality.truth import compute_truth

from alertprod.images.mask import plane_bits

SIDE = 400

FEW = SceneParameters(
    n_stars=6000, n_galaxies=1500, n_saturated=0, n_transients=300, least_transients=8, n_variables=80,
    n_proper_motion=80, n_trails=80, n_cosmic_rays=0, n_bad_columns=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def scene():
    return make_scene(5, SIDE, FEW)


@pytest.fixture(scope="module")
def made(scene):
    return make_field(scene)


def test_the_same_seed_makes_the_same_scene_and_another_another():
    first, again, other = (make_scene(seed, SIDE, FEW) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.stars.flux, again.stars.flux)
    np.testing.assert_array_equal(first.changes.x, again.changes.x)
    assert not np.array_equal(first.changes.x, other.changes.x)


def test_changes_keep_apart_and_are_of_every_kind(scene):
    changes = scene.changes
    distance = np.hypot(changes.x[:, None] - changes.x, changes.y[:, None] - changes.y)
    assert (distance + 1e9 * np.eye(len(changes))).min() >= SEPARATION
    assert set(changes.kind) == {"transient", "variable", "proper_motion", "trail"}
    transient = changes.kind == "transient"
    assert (transient & (changes.flux > 0)).any()
    assert (transient & (changes.flux < 0)).any()


def test_too_many_changes_are_refused():
    with pytest.raises(ValueError, match="no room for another change"):
        make_scene(1, 200, replace(FEW, least_transients=40))


def test_every_regime_makes_a_scene():
    for name, parameters in REGIMES.items():
        made = make_scene(1, 700, parameters)
        assert len(made.changes) >= 60, name


def test_science_less_model_is_the_changes_and_noise_that_is_as_claimed(scene, made):
    residual = made.science.image - made.model
    sky = np.ones(residual.shape, dtype=bool)
    changes = scene.changes
    for x, y in zip(changes.x, changes.y, strict=True):
        sky[max(0, int(y) - 30) : int(y) + 30, max(0, int(x) - 30) : int(x) + 30] = False
    pulls = residual[sky] / np.sqrt(made.science.variance[sky])
    n = pulls.size
    assert n > 5000
    assert pulls.mean() == pytest.approx(0.0, abs=5 / np.sqrt(n))
    assert pulls.std() == pytest.approx(1.0, abs=5 / np.sqrt(2 * n))


def test_the_light_of_a_transient_is_its_flux(scene, made):
    changes = scene.changes
    i = int(np.argmax(np.where(changes.kind == "transient", np.abs(changes.flux), 0)))
    column, row = round(changes.x[i]), round(changes.y[i])
    box = (slice(row - 20, row + 21), slice(column - 20, column + 21))
    total = float((made.science.image[box] - made.model[box]).sum())
    error = np.sqrt(made.science_variance[box].sum())
    assert total == pytest.approx(changes.flux[i] * made.enclosed, abs=5 * float(error))


def test_drawn_light_is_accurate_to_a_ten_thousandth():
    alone = replace(
        FEW, n_stars=0, n_galaxies=0, least_transients=1, n_transients=0, n_variables=0, n_proper_motion=0, n_trails=0,
        transient_snr=(500.0, 501.0), sky_residual=0.0,
    )  # fmt: skip
    for seed in range(4):
        scene = make_scene(seed, 200, alone)
        made = make_field(scene)
        # A negative transient is in the model; a positive one would be in the science image with its noise.
        if scene.changes.flux[0] < 0:
            assert made.model.sum() == pytest.approx(scene.changes.flux_template[0], rel=1e-4)
            return
    pytest.fail("no negative transient among four seeds")


def test_template_lies_where_its_coordinates_say(made, scene):
    stars = scene.stars
    inside = (stars.x > 40) & (stars.x < SIDE - 40) & (stars.y > 40) & (stars.y < SIDE - 40)
    distance = np.hypot(stars.x[:, None] - stars.x, stars.y[:, None] - stars.y) + 1e9 * np.eye(len(stars))
    weight = (stars.flux[None, :] / distance**2).sum(axis=1)
    chosen = np.flatnonzero(inside)[np.argsort(-(stars.flux / weight)[inside])[:5]]
    offsets = []
    for i in chosen:
        column, row = round(stars.x[i]), round(stars.y[i])
        v, u = np.mgrid[row - 6 : row + 7, column - 6 : column + 7]
        window = np.exp(-0.5 * ((u - stars.x[i]) ** 2 + (v - stars.y[i]) ** 2) / 2.0**2)
        light = made.template.image[row - 6 : row + 7, column - 6 : column + 7] * window
        offsets.append(((light * (u - stars.x[i])).sum() / light.sum(), (light * (v - stars.y[i])).sum() / light.sum()))
    # Coma shifts the core against the mean of all light by a few hundredths.
    np.testing.assert_allclose(np.median(offsets, axis=0), 0.0, atol=0.06)


def test_a_missing_template_is_missing_where_it_should():
    made = make_field(make_scene(3, 240, replace(FEW, least_transients=1, n_transients=300, template_coverage=0.8)))
    missing = ((made.template.mask & plane_bits("NO_DATA")) != 0).mean()
    assert missing == pytest.approx(0.2, abs=0.02)


def test_true_significance_is_that_of_the_matched_filter_where_the_template_has_no_noise():
    deep = replace(FEW, n_stars=0, n_galaxies=0, template_depth=1e8, sky_residual=0.0, n_saturated=0)
    scene = make_scene(2, SIDE, deep)
    truth = compute_truth(make_field(scene))
    faint = (scene.changes.kind == "transient") & (np.abs(scene.changes.flux) < 10 * scene.point_noise)
    # The width varies by 8 % over the field, and a faint source's own photons add up to 2 % of the sky's.
    np.testing.assert_allclose(truth.noise[faint], scene.point_noise, rtol=0.06)
    np.testing.assert_allclose((truth.snr * truth.noise)[faint], np.abs(scene.changes.flux[faint]), rtol=1e-9)


def test_position_bound_is_that_of_a_gaussian_where_the_psf_is_nearly_one():
    round_psf = Optics(
        fwhm=5.0, wing_fraction=0.0, e1=0.0, e2=0.0, variation=0.0, defocus=0, astigmatism=0, coma=0, trefoil=0
    )
    parameters = replace(FEW, n_stars=0, n_galaxies=0, template_depth=1e8, science=round_psf, template=round_psf)
    truth = compute_truth(make_field(make_scene(2, SIDE, parameters)))
    # For a Gaussian on a flat sky it is sqrt(2) sigma / SNR; a Moffat's wings make its core no
    # sharper but its sum less certain.
    sigma = 5.0 / 2.355
    ratio = truth.bound_x * truth.snr / (np.sqrt(2.0) * sigma)
    assert np.all((ratio > 0.85) & (ratio < 1.15))


def test_point_noise_grows_with_the_width_of_the_psf():
    narrow, wide = (compute_point_noise(replace(FEW, science=Optics(fwhm=w))) for w in (3.0, 6.0))
    assert wide / narrow == pytest.approx(2.0, rel=0.1)
