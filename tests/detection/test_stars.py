import numpy as np
import pytest

from alertprod.detection import _star_loops
from alertprod.detection.stars import StarConfig, _half_sample_mode, find_stars
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.analytic import GaussianPsf, MoffatPsf
from alertprod.psf.model import FWHM_PER_SIGMA


def grid_of_stars(shape, spacing, *, seed, flux=(3e3, 5e4)):
    """Stars on a jittered grid, so that they are isolated by construction."""
    rng = np.random.default_rng(seed)
    columns = np.arange(spacing // 2, shape[1], spacing, dtype=float)
    rows = np.arange(spacing // 2, shape[0], spacing, dtype=float)
    x, y = (a.ravel() + rng.uniform(-3, 3, a.size) for a in np.meshgrid(columns, rows))
    return list(zip(x, y, rng.uniform(*flux, len(x)), strict=True))


def match(stars, truth, radius=1.0):
    """Return the index of the true star of each found one; -1 for none."""
    truth = np.array(truth)[:, :2]
    distance = np.hypot(stars.x[:, None] - truth[:, 0], stars.y[:, None] - truth[:, 1])
    nearest = distance.argmin(axis=1)
    return np.where(distance.min(axis=1) < radius, nearest, -1)


@pytest.mark.parametrize("fwhm", [1.9, 3.0, 4.4, 8.0, 12.0])
def test_width_is_found_without_a_guess(make_image, fwhm):
    truth = grid_of_stars((400, 400), 66, seed=1, flux=(2e4, 2e5))
    image = make_image((400, 400), GaussianPsf(fwhm=fwhm), truth, noise=5.0, seed=2)
    image.image += 300.0
    stars = find_stars(image)
    assert len(stars) >= 0.9 * len(truth)
    assert (match(stars, truth) >= 0).all()
    assert stars.median_fwhm == pytest.approx(fwhm, rel=0.02)


def test_flux_and_position_of_gaussian_stars_are_exact_to_the_noise(make_image):
    truth = grid_of_stars((300, 300), 50, seed=3)
    stars = find_stars(make_image((300, 300), GaussianPsf(fwhm=4.0), truth, noise=1.0, seed=4))
    true = np.array(truth)[match(stars, truth)]
    sigma = 4.0 / FWHM_PER_SIGMA
    snr = true[:, 2] / np.sqrt(4.0 * np.pi * sigma**2)
    assert np.abs((stars.flux / true[:, 2] - 1.0) * snr).max() < 6.0
    # The Cramér-Rao bound of a position is sigma / snr times sqrt(2).
    assert np.abs((stars.x - true[:, 0]) * snr / sigma).max() < 6.0 * np.sqrt(2.0)
    np.testing.assert_allclose(stars.snr, snr, rtol=0.02)


def test_brightest_come_first(make_image):
    stars = find_stars(make_image((300, 300), GaussianPsf(fwhm=4.0), grid_of_stars((300, 300), 50, seed=3), seed=4))
    assert (np.diff(stars.flux) <= 0).all()


def test_galaxies_saturated_stars_blends_and_cosmic_rays_are_left_out(make_image):
    shape = (400, 400)
    psf, galaxy = MoffatPsf(fwhm=3.5, beta=3.0, size=41), MoffatPsf(fwhm=6.0, beta=3.0, ellipticity=0.4, size=61)
    objects = grid_of_stars(shape, 50, seed=5, flux=(5e3, 5e4))
    single, galaxies, blends = objects[:40], objects[40:50], objects[50:60]
    saturated = [(x, y, 2e6) for x, y, _ in objects[60:]]
    image = make_image(shape, psf, single + saturated, noise=4.0, seed=6)
    image.image += make_image(shape, galaxy, galaxies).image
    pairs = [(x + d, y + d, f) for x, y, f in blends for d in (-1.6, 1.6)]
    image.image += make_image(shape, psf, pairs).image
    image.mask[image.image > 3e4] = plane_bits("SAT")
    rng = np.random.default_rng(7)
    image.image[rng.integers(0, 400, 60), rng.integers(0, 400, 60)] += 5000.0
    stars = find_stars(image)
    assert (match(stars, single) >= 0).all()
    assert len(stars) >= 0.75 * len(single)


def test_saturation_level_stands_in_for_a_missing_plane(make_image):
    truth = grid_of_stars((300, 300), 50, seed=8, flux=(5e3, 2e4))
    truth[0] = (*truth[0][:2], 5e6)
    image = make_image((300, 300), GaussianPsf(fwhm=4.0), truth, seed=9)
    image.image[:] = np.minimum(image.image, 60000.0)
    stars = find_stars(image, config=StarConfig(saturation=59999.0))
    assert len(stars) >= len(truth) - 2
    assert 0 not in match(stars, truth, radius=8.0)


def test_five_stars_are_enough(make_image):
    truth = [(40.0, 41.3, 4e3), (120.2, 30.0, 2e3), (200.0, 150.6, 9e3), (60.4, 190.0, 3e3), (150.0, 100.0, 5e3)]
    stars = find_stars(make_image((240, 240), GaussianPsf(fwhm=3.5), truth, seed=10))
    assert sorted(match(stars, truth).tolist()) == [0, 1, 2, 3, 4]


def test_crowded_field_gives_the_least_contaminated(make_image):
    rng = np.random.default_rng(11)
    shape = (300, 300)
    flux = 300.0 * rng.pareto(1.2, 4000).clip(0, 500)
    truth = list(zip(rng.uniform(0, 300, 4000), rng.uniform(0, 300, 4000), flux, strict=True))
    image = make_image(shape, GaussianPsf(fwhm=4.5), truth, noise=5.0, seed=12)
    stars = find_stars(image)
    assert len(stars) >= 20
    assert stars.contamination.max() <= 0.5
    # Unresolved neighbours widen a star; they must not take over.
    assert stars.median_fwhm == pytest.approx(4.5, rel=0.06)


def test_neighbours_are_counted_in_the_contamination(make_image):
    truth = [(40.0, 40.0, 2e4), (47.0, 40.0, 5e3), (100.0, 40.0, 2e4), (40.0, 100.0, 2e4), (100.0, 100.0, 2e4)]
    stars = find_stars(make_image((140, 140), GaussianPsf(fwhm=3.0), truth, seed=13))
    index = match(stars, truth).tolist()
    # Wings of one under the peak of the other add a little.
    assert stars.contamination[index.index(0)] == pytest.approx(0.25, abs=0.03)
    assert stars.contamination[index.index(2)] < 0.01
    assert 1 not in index, "four times its flux lies beside it"


def test_width_may_vary_over_the_field(make_image):
    shape = (500, 500)
    truth = grid_of_stars(shape, 45, seed=14)
    image = make_image(shape, GaussianPsf(fwhm=4.0), [], seed=15)
    for x, y, flux in truth:
        fwhm = 3.6 + 1.0 * x / 500.0
        image.image += make_image(shape, GaussianPsf(fwhm=fwhm), [(x, y, flux)]).image
    stars = find_stars(image)
    assert len(stars) >= 0.9 * len(truth)
    np.testing.assert_allclose(stars.fwhm, 3.6 + 1.0 * stars.x / 500.0, rtol=0.05)


def test_wrong_variance_plane_finds_the_same_stars(make_image):
    image = make_image((300, 300), GaussianPsf(fwhm=4.0), grid_of_stars((300, 300), 50, seed=3), seed=4)
    right = find_stars(image)
    image.variance *= 30.0
    wrong = find_stars(image, config=StarConfig(min_snr=4.0))
    np.testing.assert_allclose(wrong.x, right.x, atol=1e-6)


def test_transposed_image_gives_the_transposed_stars(make_image):
    image = make_image((300, 260), GaussianPsf(fwhm=4.0), grid_of_stars((300, 260), 50, seed=3), seed=4)
    transposed = MaskedImage(*(np.ascontiguousarray(a.T) for a in (image.image, image.mask, image.variance)))
    a, b = find_stars(image), find_stars(transposed)
    np.testing.assert_allclose(a.x, b.y, atol=0.01)
    np.testing.assert_allclose(a.fwhm, b.fwhm, rtol=1e-3)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_image_without_stars_gives_none(value):
    shape = (64, 64)
    image = MaskedImage(np.full(shape, value, np.float32), np.zeros(shape, np.int32), np.ones(shape, np.float32))
    assert len(find_stars(image)) == 0


def test_pure_noise_gives_none(make_image):
    assert len(find_stars(make_image((256, 256), GaussianPsf(fwhm=4.0), seed=16))) == 0


def test_input_is_not_changed(make_image):
    image = make_image((300, 300), GaussianPsf(fwhm=4.0), grid_of_stars((300, 300), 50, seed=3), seed=4)
    before = image.copy()
    find_stars(image)
    np.testing.assert_array_equal(image.image, before.image)


def test_half_sample_mode_sits_where_values_are_densest():
    rng = np.random.default_rng(17)
    values = np.concatenate([rng.normal(1.0, 0.02, 60), rng.uniform(0.0, 5.0, 100)])
    assert _half_sample_mode(values) == pytest.approx(1.0, abs=0.05)


def test_star_loop_equals_its_numpy_twin(make_image):
    image = make_image((50, 50), GaussianPsf(fwhm=5.0), [(24.3, 25.1, 1000.0)], noise=1.0, seed=18)
    bad = np.zeros(image.shape, dtype=bool)
    x, y, sigma, out = np.array([24.0]), np.array([25.0]), np.array([2.0]), np.zeros((1, 5))
    _star_loops.measure_stars(image.image, image.variance, bad, x, y, sigma, 50, out)
    cx, cy, s, reach = 24.0, 25.0, 2.0, None
    v, u = np.mgrid[:50, :50].astype(float)
    for _ in range(50):
        reach = 3.5 * s + 1.0
        r2 = (u - cx) ** 2 + (v - cy) ** 2
        g = np.where(r2 <= reach**2, np.exp(-0.5 * r2 / s**2), 0.0)
        gd = g * image.image
        mx, my = (gd * (u - cx)).sum() / gd.sum(), (gd * (v - cy)).sum() / gd.sum()
        s2 = (gd * r2).sum() / gd.sum() - mx**2 - my**2
        amplitude = gd.sum() / (g * g).sum()
        cx, cy, change, s = cx + 2 * mx, cy + 2 * my, abs(np.sqrt(s2) - s) + abs(mx) + abs(my), np.sqrt(s2)
        if change < 1e-3 * s:
            break
    np.testing.assert_allclose([x[0], y[0], sigma[0], out[0, 0]], [cx, cy, s, amplitude], rtol=1e-6)


def test_a_sky_of_faint_peaks_alone_has_no_stars():
    # Peaks that count as neighbours are there, none is bright enough for a star; with the width known, nothing else
    # tells that there is no star.
    rng = np.random.default_rng(23)
    shape = (200, 200)
    sky = MaskedImage(rng.normal(size=shape).astype(np.float32), np.zeros(shape, np.int32), np.ones(shape, np.float32))
    assert len(find_stars(sky, sigma=1.9)) == 0


def test_maxima_are_the_largest_within_the_radius():
    significance = np.random.default_rng(19).normal(size=(40, 45)).astype(np.float32)
    x, y = _star_loops.find_maxima(significance, 1.0, 3, 0, len(significance))
    expected = []
    for row in range(40):
        for column in range(45):
            v, u = np.mgrid[max(0, row - 3) : min(40, row + 4), max(0, column - 3) : min(45, column + 4)]
            inside = (v - row) ** 2 + (u - column) ** 2 <= 9
            if significance[row, column] >= 1.0 and significance[row, column] == significance[v, u][inside].max():
                expected.append((column, row))
    assert list(zip(x.tolist(), y.tolist(), strict=True)) == expected
