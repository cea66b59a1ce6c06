"""Trails with known places, and everything that looks like one and is none."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from alertprod.detection.streaks import StreakConfig, Streaks, find_streaks
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.analytic import MoffatPsf

SIDE = 512
SIGMA = 1.9
PSF = MoffatPsf(fwhm=4.4, beta=3.0)
NOISE = np.random.default_rng(77).normal(size=(SIDE, SIDE)).astype(np.float32)


def wrap(image) -> MaskedImage:
    image = np.asarray(image, dtype=np.float32)
    return MaskedImage(image, np.zeros(image.shape, dtype=np.int32), np.ones_like(image))


def draw_trail(ends, brightness, *, sigma=SIGMA, part=(-9.0, 9.0), shape=(SIDE, SIDE)):
    """Return a trail of Gaussian profile through two points, by default from edge to edge."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    x0, y0, x1, y1 = ends
    length = np.hypot(x1 - x0, y1 - y0)
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    across, along = (y - y0) * dx - (x - x0) * dy, ((x - x0) * dx + (y - y0) * dy) / length
    seen = (along >= part[0]) & (along <= part[1])
    return np.where(seen, brightness * np.exp(-0.5 * (across / sigma) ** 2), 0.0)


def add_source(image, x, y, flux):
    stamp, box = PSF.compute_stellar_image(x=x, y=y)
    rows, columns = box.slices
    image[rows, columns] += flux * stamp


def draw_sources(rng, n, *, dipoles=False):
    """Return stars of up to 1000 standard deviations, or what a registration half a pixel off leaves of them."""
    image = np.zeros((SIDE, SIDE))
    for _ in range(n):
        x, y = rng.uniform(20, SIDE - 21, 2)
        flux = 10 ** rng.uniform(1.5, 4.5)
        add_source(image, x, y, flux)
        if dipoles:
            add_source(image, *(np.array([x, y]) + rng.uniform(-0.5, 0.5, 2)), -flux)
    return image


def only_line(found: Streaks):
    assert len(found.lines) == 1
    return found.lines[0]


ENDS = [(0, 120, 511, 400), (200, 0, 260, 511), (511, 100, 0, 350), (0, 0, 511, 511), (0, 256.4, 511, 256.4)]


@pytest.mark.parametrize("ends", ENDS)
def test_a_faint_trail_in_any_direction_is_found_where_it_is(ends):
    trail = draw_trail(ends, 0.6)
    found = find_streaks(wrap(NOISE + trail))
    line = only_line(found)
    x0, y0, x1, y1 = ends
    dx, dy = np.array([x1 - x0, y1 - y0]) / np.hypot(x1 - x0, y1 - y0)
    # The centroid of a ridge is known to sigma / (its significance), an end twice as badly as the middle.
    tolerance = 5.0 * 2.0 * SIGMA / line.significance
    for x, y in ((line.x0, line.y0), (line.x1, line.y1)):
        assert abs((y - y0) * dx - (x - x0) * dy) < tolerance
    assert line.angle_deg % 180.0 == pytest.approx(np.degrees(np.arctan2(dy, dx)) % 180.0, abs=1.0)
    # The fit's own bins are a pixel wide.
    relative = 5.0 / line.significance
    assert line.sigma == pytest.approx(np.hypot(SIGMA, np.sqrt(1 / 12)), rel=relative)
    assert line.amplitude == pytest.approx(0.6, rel=relative)
    assert (line.begin, line.end) == (pytest.approx(0.0, abs=0.1), pytest.approx(1.0, abs=0.1))
    assert found.mask[trail > 0.6 * np.exp(-0.5 * 1.5**2)].mean() > 0.95
    # No more than the trail is masked: n_sigma_mask to either side.
    assert found.mask.mean() < 1.3 * 4.0 * SIGMA * np.sqrt(2.0) * SIDE / SIDE**2


def test_masked_is_the_whole_trail_and_nothing_else():
    trail = draw_trail((0, 120, 511, 400), 5.0)
    image = wrap(NOISE + trail)
    image.mask[5, 5] = plane_bits("SUSPECT", "STREAK")
    found = find_streaks(image, set_planes=True)
    assert found.mask[trail > 0.3].all()
    assert not found.mask[trail < 1e-4].any()
    streak = (image.mask & plane_bits("STREAK")) != 0
    assert streak[5, 5]
    streak[5, 5] = False
    np.testing.assert_array_equal(streak, found.mask)
    assert image.mask[5, 5] == plane_bits("SUSPECT", "STREAK")


def test_image_and_mask_are_untouched_unless_planes_are_asked_for():
    image = wrap(NOISE + draw_trail((0, 120, 511, 400), 5.0))
    before = image.copy()
    assert find_streaks(image).mask.any()
    for now, then in ((image.image, before.image), (image.mask, before.mask), (image.variance, before.variance)):
        np.testing.assert_array_equal(now, then)


def test_the_mask_of_a_bright_trail_goes_out_to_its_wings():
    faint = only_line(find_streaks(wrap(NOISE + draw_trail((0, 120, 511, 400), 0.6))))
    bright = only_line(find_streaks(wrap(NOISE + draw_trail((0, 120, 511, 400), 1000.0))))
    assert 2.0 * faint.sigma <= faint.half_width < 2.0 * faint.sigma + 1.0
    # A Gaussian of 1000 is at 0.1 at 4.3 sigma; the noise of the profile lets it be seen to a little less.
    assert 3.5 * SIGMA < bright.half_width < 5.5 * SIGMA


def test_sign_flip_changes_the_sign_alone():
    image = NOISE + draw_trail((0, 120, 511, 400), 1.0)
    bright, dark = only_line(find_streaks(wrap(image))), only_line(find_streaks(wrap(-image)))
    assert dark.amplitude == pytest.approx(-bright.amplitude, rel=1e-6)
    assert (dark.x0, dark.y0, dark.sigma) == pytest.approx((bright.x0, bright.y0, bright.sigma))
    assert not find_streaks(wrap(-image), config=StreakConfig(polarity="positive")).lines
    assert find_streaks(wrap(-image), config=StreakConfig(polarity="negative")).lines


def test_flux_scale_changes_nothing():
    image = NOISE + draw_trail((0, 120, 511, 400), 1.0)
    scaled = MaskedImage(
        (image * 1e4).astype(np.float32), np.zeros(image.shape, np.int32), np.full(image.shape, 1e8, np.float32)
    )
    np.testing.assert_array_equal(find_streaks(scaled).mask, find_streaks(wrap(image)).mask)


def test_transposed_image_has_the_transposed_mask():
    image = NOISE + draw_trail((0, 120, 511, 400), 2.0)
    mask = find_streaks(wrap(image)).mask
    turned = find_streaks(wrap(image.T.copy())).mask.T
    # The fits begin from other grids: they agree to a small part of a pixel.
    assert (mask != turned).sum() < 0.05 * mask.sum()


def test_several_trails_are_found_each_in_its_own_right():
    trails = [
        draw_trail((0, 100, 511, 380), 2.0),
        draw_trail((0, 140, 511, 420), 1.0),
        draw_trail((0, 480, 511, 40), -0.8),
        draw_trail((60, 0, 180, 511), 30.0, sigma=3.0),
    ]
    found = find_streaks(wrap(NOISE + sum(trails)))
    assert len(found.lines) == 4
    assert sorted(np.sign([line.amplitude for line in found.lines])) == [-1.0, 1.0, 1.0, 1.0]
    for trail in trails:
        assert found.mask[np.abs(trail) > 0.5 * np.abs(trail).max()].mean() > 0.99


def test_a_trail_that_ends_on_the_image_is_masked_all_the_way():
    trail = draw_trail((0, 120, 511, 400), 1.5, part=(0.1, 0.65))
    found = find_streaks(wrap(NOISE + trail))
    line = only_line(found)
    assert (line.begin, line.end) == (pytest.approx(0.1, abs=0.06), pytest.approx(0.65, abs=0.06))
    assert line.length == pytest.approx(0.55 * np.hypot(511, 280), rel=0.2)
    assert found.mask[draw_trail((0, 120, 511, 400), 1.0) > 0.5].all()


def test_a_short_way_across_a_corner_is_found_when_it_is_filled():
    trail = draw_trail((0, 100, 120, 0), 2.0)
    found = find_streaks(wrap(NOISE + trail))
    assert found.mask[trail > 1.0].all()


def test_a_wide_trail_is_found_up_to_the_widest_allowed():
    trail = draw_trail((0, 120, 511, 400), 0.5, sigma=12.0)
    assert only_line(find_streaks(wrap(NOISE + trail))).sigma == pytest.approx(12.0, rel=0.2)
    assert not find_streaks(wrap(NOISE + trail), config=StreakConfig(max_streak_width=20.0)).lines


def test_a_saturated_core_does_not_hide_the_trail():
    trail = draw_trail((0, 120, 511, 400), 500.0, sigma=3.0)
    image = wrap(NOISE + trail)
    image.mask[trail > 100.0] = plane_bits("SAT")
    found = find_streaks(image)
    assert len(found.lines) == 1
    assert found.mask[trail > 1.0].all()


def test_a_thick_line_along_the_rows_is_a_trail():
    image = NOISE[:256, :256].copy()
    image[20:23, 40:200] += 50.0
    found = find_streaks(wrap(image))
    assert found.mask[20:23, 40:200].all()
    assert not found.mask[40:].any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n", "dipoles"), [(0, False), (20, False), (200, False), (20, True), (200, True)])
def test_noise_stars_and_residuals_have_no_trail(seed, n, dipoles):
    rng = np.random.default_rng([seed, n])
    image = rng.normal(size=(SIDE, SIDE)) + draw_sources(rng, n, dipoles=dipoles)
    assert find_streaks(wrap(image)).lines == ()


def test_galaxies_gradients_and_amplifiers_have_no_trail():
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:SIDE, :SIDE]
    image = NOISE + 2.0 * ((x - 256) / 256.0) ** 3 + 0.5 * (x > 300) + 0.3 * (y > 210)
    for _ in range(25):
        cx, cy, angle, ratio, scale = (*rng.uniform(0, SIDE, 2), *rng.uniform((0, 0.15, 3), (np.pi, 1, 20)))
        u, v = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle), (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        image += 10 ** rng.uniform(0, 2) * np.exp(-np.hypot(u, v / ratio) / scale)
    assert find_streaks(wrap(image)).lines == ()


@pytest.mark.parametrize("tilt", [0.0, 3.0])
def test_defects_of_rows_and_columns_are_no_trails(tilt):
    image = NOISE.copy()
    rows = np.arange(SIDE)
    for column, level in ((100, 5.0), (300, -3.0), (400, 40.0)):
        image[rows, np.rint(column + tilt * rows / SIDE).astype(int)] += level
    image[250] += 1.0
    assert find_streaks(wrap(image)).lines == ()


def test_noise_of_rows_and_columns_has_no_trail():
    rng = np.random.default_rng(8)
    banding = gaussian_filter(rng.normal(size=SIDE), 3.0) * 1.0 + rng.normal(size=SIDE) * 0.2
    assert find_streaks(wrap(NOISE + banding[:, None])).lines == ()


def test_correlated_noise_has_no_trail():
    noise = gaussian_filter(np.random.default_rng(9).normal(size=(SIDE, SIDE)), 1.5)
    assert find_streaks(wrap(noise / noise.std())).lines == ()


def test_spikes_and_bleeding_columns_of_stars_are_no_trails():
    y, x = np.mgrid[:SIDE, :SIDE]
    image = NOISE.copy().astype(float)
    for cx, cy, angle in ((180, 200, 0.3), (350, 330, 1.0)):
        for turn in (0.0, np.pi / 2):
            u = (x - cx) * np.cos(angle + turn) + (y - cy) * np.sin(angle + turn)
            v = (y - cy) * np.cos(angle + turn) - (x - cx) * np.sin(angle + turn)
            image += 200.0 * np.exp(-0.5 * (v / 1.5) ** 2 - np.abs(u) / 15.0)
        image[cy - 60 : cy + 60, cx - 1 : cx + 2] += 300.0
    assert find_streaks(wrap(image)).lines == ()


def test_pixels_without_weight_hide_what_is_on_them():
    image = wrap(NOISE + draw_trail((0, 120, 511, 400), 5.0))
    around = draw_trail((0, 120, 511, 400), 1.0, sigma=10.0) > 0.1
    image.mask[around] = plane_bits("NO_DATA")
    image.image[around] = np.nan
    assert find_streaks(image).lines == ()
    image.mask[:] = plane_bits("NO_DATA")
    assert find_streaks(image).lines == ()


def test_number_of_trails_is_limited():
    trails = sum(draw_trail((0, y, 511, y + 60), 3.0) for y in (50, 150, 250, 350))
    assert len(find_streaks(wrap(NOISE + trails), config=StreakConfig(max_streaks=2)).lines) == 2


def test_images_too_small_to_tell_have_none():
    assert find_streaks(wrap(np.full((40, 40), 10.0))).lines == ()


@pytest.mark.parametrize(
    "fields",
    [{"bin_size": 0}, {"threshold": 0.0}, {"min_length": 0.0}, {"min_length": 1.1}, {"n_sigma_mask": -1.0}],
)
def test_impossible_settings_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        StreakConfig(**fields)
    with pytest.raises(KeyError, match="NONE"):
        StreakConfig(excluded_planes=("NONE",))


def test_completeness_at_the_stated_limit():
    # 0.8 b sqrt(w L) with w = 2.36 sigma: b of significance 10, the limit being 6, over a trail of 512 pixels.
    brightness = 10.0 / (0.8 * np.sqrt(2.36 * SIGMA * SIDE))
    rng = np.random.default_rng(10)
    n, found = 20, 0
    for _ in range(n):
        angle = rng.uniform(0.0, np.pi)
        dx, dy = 2.0 * SIDE * np.cos(angle), 2.0 * SIDE * np.sin(angle)
        trail = draw_trail((256 - dx, 256 - dy, 256 + dx, 256 + dy), brightness)
        streaks = find_streaks(wrap(rng.normal(size=(SIDE, SIDE)) + trail))
        found += bool(streaks.mask[trail > 0.5 * brightness].mean() > 0.9)
    # Four standard deviations beyond the noise's limit, less what is lost to the comparison with the sides.
    assert found >= 0.9 * n
