"""Trails drawn as rows of many stars, which knows nothing of the fit's quadrature."""

import numpy as np
import pytest

from alertprod.detection.detect import detect
from alertprod.detection.footprints import FootprintSet
from alertprod.errors import ConfigError
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement import _trail_loops
from alertprod.measurement.shape import measure_shapes
from alertprod.measurement.trail import TrailConfig, find_elongated, fit_trails
from alertprod.psf.analytic import GaussianPsf, MoffatPsf

SIGMA = 1.8
MOFFAT = MoffatPsf(fwhm=4.2, beta=3.0, ellipticity=0.15, position_angle_deg=40.0, size=41)


def row_of_stars(x, y, flux, length, angle, n=80):
    steps = (np.arange(n) + 0.5) / n - 0.5
    return [(x + t * length * np.cos(angle), y + t * length * np.sin(angle), flux / n) for t in steps]


def fit(image, psf, **kwargs):
    footprints = detect(image, psf)
    x, y = footprints.x.astype(float), footprints.y.astype(float)
    shapes = measure_shapes(image, psf, x=x, y=y, is_negative=footprints.is_negative)
    return footprints, fit_trails(footprints, image, psf, shapes, is_negative=footprints.is_negative, **kwargs)


def errors_along_and_across(trails, rows):
    """Return standard errors of length and angle (radians)."""
    a, b, v = trails.vector_x[rows], trails.vector_y[rows], trails.vector_covariance[rows]
    r2 = a * a + b * b
    along = (a * a * v[:, 0] + b * b * v[:, 1] + 2.0 * a * b * v[:, 2]) / r2
    across = (b * b * v[:, 0] + a * a * v[:, 1] - 2.0 * a * b * v[:, 2]) / r2
    return 2.0 * np.sqrt(along), np.sqrt(across / r2)


@pytest.mark.parametrize("profile", ["gaussian", "moffat"])
@pytest.mark.parametrize("length", [8.0, 30.0, 90.0])
def test_noise_free_trail_is_found_exactly(make_image, psf, profile, length):
    psf = MOFFAT if profile == "moffat" else psf
    image = make_image((170, 170), psf, row_of_stars(85.3, 80.8, 2000.0 * length, length, 0.7))
    footprints, trails = fit(image, psf)
    assert len(footprints) == 1
    assert not trails.flag[0]
    # A row of 80 stars is a line to a 6400th of its length.
    assert trails.length[0] == pytest.approx(length, rel=3e-4)
    assert (trails.x[0], trails.y[0]) == pytest.approx((85.3, 80.8), abs=1e-3)
    assert np.arctan2(trails.vector_y[0], trails.vector_x[0]) == pytest.approx(0.7, abs=1e-3)
    assert trails.flux[0] == pytest.approx(2000.0 * length, rel=3e-4)
    assert trails.n_data[0] > 500


@pytest.mark.parametrize("angle", [0.0, 0.5 * np.pi, 2.5])
def test_vector_leads_to_the_end_with_the_larger_x(make_image, psf, angle):
    _, trails = fit(make_image((80, 80), psf, row_of_stars(40.2, 39.7, 20000.0, 14.0, angle)), psf)
    assert trails.vector_x[0] >= -1e-4
    turned = abs(np.sin(np.arctan2(trails.vector_y[0], trails.vector_x[0]) - angle))
    assert turned < 1e-3


def test_pulls_of_all_parameters_are_normal(make_image, psf):
    n, spacing, flux, length = 196, 52, 350.0, 13.0
    rng = np.random.default_rng(1)
    side = int(np.sqrt(n))
    grid = spacing * (0.5 + np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2))
    points, angle = grid + rng.uniform(-0.5, 0.5, grid.shape), rng.uniform(0.0, np.pi, n)
    stars = [s for (x, y), a in zip(points, angle, strict=True) for s in row_of_stars(x, y, flux, length, a, n=20)]
    _, trails = fit(make_image((side * spacing, side * spacing), psf, stars, seed=2), psf)
    found = np.flatnonzero(np.isfinite(trails.x))
    nearest = np.hypot(trails.x[found, None] - points[:, 0], trails.y[found, None] - points[:, 1]).argmin(axis=1)
    assert len(set(nearest.tolist())) > 0.97 * n
    length_err, angle_err = errors_along_and_across(trails, found)
    turn = np.arctan2(trails.vector_y, trails.vector_x)[found] - angle[nearest]
    pulls = {
        "flux": (trails.flux[found] - flux) / trails.flux_err[found],
        "x": (trails.x[found] - points[nearest, 0]) / np.sqrt(trails.position_covariance[found, 0]),
        "y": (trails.y[found] - points[nearest, 1]) / np.sqrt(trails.position_covariance[found, 1]),
        "length": (trails.length[found] - length) / length_err,
        "angle": ((turn + 0.5 * np.pi) % np.pi - 0.5 * np.pi) / angle_err,
    }
    for name, pull in pulls.items():
        assert abs(pull.mean()) < 4.0 / np.sqrt(len(pull)), name
        # Second order in 1 / snr (30 here) adds a few per cent to the widths of position and length.
        assert pull.std() == pytest.approx(1.0, abs=4.0 / np.sqrt(2.0 * len(pull)) + 0.03), name
    reduced = (trails.chi2 / (trails.n_data - 5.0))[found]
    assert reduced.mean() == pytest.approx(1.0, abs=0.02), "1 % below: footprints end where noise is low"


def test_variance_made_from_the_data_does_not_bias_the_trail(make_image, psf):
    points = [(30.0 + 60 * i, 30.0 + 60 * j) for i in range(8) for j in range(8)]
    stars = [s for x, y in points for s in row_of_stars(x, y, 600.0, 12.0, 0.4, n=20)]
    model = make_image((480, 480), psf, stars).image + 5.0
    counts = np.random.default_rng(3).poisson(model).astype(np.float32)
    image = MaskedImage(counts - np.float32(5.0), np.zeros(counts.shape, np.int32), np.maximum(counts, 1.0))
    _, trails = fit(image, psf)
    found = np.flatnonzero(np.isfinite(trails.flux))
    assert len(found) == 64
    # Weights from these variances would lose 5 % of the flux and 10 % of the length.
    assert abs(trails.flux[found].mean() - 600.0) < 4.0 * trails.flux_err[found].mean() / np.sqrt(64)
    length_err, _ = errors_along_and_across(trails, found)
    assert abs(trails.length[found].mean() - 12.0) < 4.0 * length_err.mean() / np.sqrt(64)


def test_point_sources_are_not_tried(make_image, scattered):
    n = 256
    points = scattered(n, spacing=48, seed=4)
    flux = 10.0 ** np.random.default_rng(5).uniform(1.9, 4.0, n)
    image = make_image((768, 768), MOFFAT, np.column_stack([points, flux]), seed=6)
    _, trails = fit(image, MOFFAT)
    # Three sigma of a two-dimensional ellipticity: 1.1 % of them by chance; binomial, and noise without a shape.
    assert (trails.n_data > 0).mean() < 0.011 + 4.0 * np.sqrt(0.011 / n)
    assert not np.isfinite(trails.x).any()
    np.testing.assert_array_equal(trails.flag, trails.n_data > 0)


def test_what_a_point_describes_as_well_is_no_trail(make_image, psf):
    image = make_image((80, 80), psf, [(40.2, 39.7, 100.0)], seed=7)
    _, trails = fit(image, psf, config=TrailConfig(min_elongation=1e-6, min_significance=0.0))
    assert trails.n_data[0] > 0
    assert trails.flag[0]
    assert trails.flag_point_like[0] or trails.flag_no_converge[0]
    assert np.isnan(trails.flux[0])
    assert np.isnan(trails.length[0])


def test_scale_sign_and_transpose_carry_through(make_image, psf):
    image = make_image((80, 80), psf, row_of_stars(40.2, 36.7, 500.0, 12.0, 0.6), seed=8)
    _, base = fit(image, psf)
    _, scaled = fit(MaskedImage(-7.0 * image.image, image.mask, 49.0 * image.variance), psf)
    assert scaled.flux[0] == pytest.approx(-7.0 * base.flux[0], rel=1e-4)
    assert scaled.flux_err[0] == pytest.approx(7.0 * base.flux_err[0], rel=1e-4)
    assert scaled.length[0] == pytest.approx(base.length[0], rel=1e-3)
    turned = MaskedImage(*(np.ascontiguousarray(a.T) for a in (image.image, image.mask, image.variance)))
    _, swapped = fit(turned, psf)
    assert (swapped.y[0], swapped.x[0]) == pytest.approx((base.x[0], base.y[0]), abs=2e-3)
    assert (swapped.vector_y[0], swapped.vector_x[0]) == pytest.approx((base.vector_x[0], base.vector_y[0]), abs=5e-3)


def test_masked_pixels_do_not_bias_the_trail(make_image, psf):
    image = make_image((90, 90), psf, row_of_stars(45.2, 44.7, 5000.0, 20.0, 0.3))
    image.image[:, 47] = 1e5
    image.mask[:, 47] = plane_bits("BAD")
    image.image[44, 40] = np.nan
    _, trails = fit(image, psf)
    assert trails.length[0] == pytest.approx(20.0, rel=1e-3)
    assert trails.flux[0] == pytest.approx(5000.0, rel=1e-3)


def test_neighbours_footprint_does_not_count(make_image, psf):
    stars = row_of_stars(50.0, 50.0, 4000.0, 24.0, 0.78)
    alone, crowded = (make_image((100, 100), psf, stars + more) for more in ([], [(68.0, 41.0, 900.0)]))
    footprints, trails = fit(crowded, psf)
    assert len(footprints) == 2
    _, clean = fit(alone, psf)
    row = int(np.argmax(np.isfinite(trails.x)))
    assert trails.n_data[row] < clean.n_data[0]
    # Its wings beyond its own footprint stay: some per mille of the trail's light.
    assert trails.flux[row] == pytest.approx(4000.0, rel=0.02)
    assert trails.length[row] == pytest.approx(24.0, abs=0.5)


def test_trail_off_the_edge_says_so(make_image, psf):
    off = make_image((80, 80), psf, row_of_stars(75.0, 40.0, 8000.0, 30.0, 0.0))
    _, trails = fit(off, psf)
    assert trails.flag_off_image[0]
    assert trails.flag_edge[0]
    inside = make_image((80, 80), psf, row_of_stars(60.0, 40.0, 8000.0, 20.0, 0.0))
    _, trails = fit(inside, psf)
    assert not trails.flag_edge[0]
    inside.mask[40, 68] = plane_bits("NO_DATA")
    _, trails = fit(inside, psf)
    assert trails.flag_edge[0]
    assert not trails.flag_off_image[0]


def test_long_trail_is_suspect_and_a_longer_one_not_tried(make_image, psf):
    image = make_image((120, 120), psf, row_of_stars(60.0, 60.0, 9000.0, 40.0, 0.5))
    _, trails = fit(image, psf)
    assert trails.flag_suspect_long_trail[0]
    assert not trails.flag[0]
    _, trails = fit(image, psf, config=TrailConfig(max_side=30))
    assert trails.flag_suspect_long_trail[0]
    assert trails.flag[0]
    assert trails.n_data[0] == 0


def test_skipped_and_sky_sources_are_not_tried(make_image, psf):
    image = make_image((80, 80), psf, row_of_stars(40.2, 39.7, 5000.0, 14.0, 0.3))
    _, trails = fit(image, psf, skipped=np.array([True]))
    assert trails.n_data[0] == 0
    footprints = detect(image, psf)
    sky = FootprintSet(
        **{name: getattr(footprints, name) for name in footprints.__slots__ if name != "is_sky"},
        is_sky=np.array([True]),
    )
    x, y = footprints.x.astype(float), footprints.y.astype(float)
    shapes = measure_shapes(image, psf, x=x, y=y, is_negative=np.array([False]))
    assert fit_trails(sky, image, psf, shapes, is_negative=np.array([False])).n_data[0] == 0


def test_elongation_is_against_the_psf(make_image):
    stretched = GaussianPsf(fwhm=4.0, ellipticity=0.5, position_angle_deg=30.0, size=41)
    point = make_image((80, 80), stretched, [(40.0, 40.0, 5000.0)], noise=1.0)
    place = {"x": np.array([40.0]), "y": np.array([40.0]), "is_negative": np.array([False])}
    config = TrailConfig()
    assert not find_elongated(measure_shapes(point, stretched, **place), config)[0]
    across = make_image((80, 80), stretched, row_of_stars(40.0, 40.0, 5000.0, 10.0, np.radians(120.0)))
    assert find_elongated(measure_shapes(across, stretched, **place), config)[0]


def test_configuration_is_checked():
    with pytest.raises(ConfigError, match="min_elongation"):
        TrailConfig(min_elongation=1.5)


def test_derivatives_of_the_drawn_trail_are_numerical_ones(psf):
    kernel = psf.compute_kernel_image(x=0, y=0)
    nodes, weights = np.polynomial.legendre.leggauss(16)

    def draw(p):
        images = np.zeros((5, 41, 45))
        _trail_loops.draw_trail(kernel, p, nodes, 0.5 * weights, images, np.zeros((41, 45)), np.zeros((31, 45)))
        return images

    p = np.array([1.0, 22.3, 19.6, 5.1, -2.4])
    images = draw(p)
    assert images[0].sum() == pytest.approx(1.0, abs=1e-3)
    for m in range(1, 5):
        step = np.zeros(5)
        step[m] = 1e-3
        slope = (draw(p + step)[0] - draw(p - step)[0]) / 2e-3
        np.testing.assert_allclose(images[m], slope, atol=5e-3 * np.abs(slope).max())


def test_drawn_trail_equals_its_numpy_twin():
    v, u = np.mgrid[-15:16, -15:16]
    kernel = np.exp(-0.5 * (u * u + v * v) / SIGMA**2) / (2.0 * np.pi * SIGMA**2)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    p, images = np.array([1.0, 20.4, 18.7, 3.0, 4.0]), np.zeros((5, 39, 41))
    _trail_loops.draw_trail(kernel, p, nodes, 0.5 * weights, images, np.zeros((39, 41)), np.zeros((31, 41)))
    y, x = np.mgrid[:39, :41]
    expected = sum(
        0.5 * w * np.exp(-0.5 * ((x - p[1] - s * p[3]) ** 2 + (y - p[2] - s * p[4]) ** 2) / SIGMA**2)
        for s, w in zip(nodes, weights, strict=True)
    ) / (2.0 * np.pi * SIGMA**2)
    np.testing.assert_allclose(images[0], expected, atol=4e-4 * expected.max())


def test_footprint_moments_equal_their_numpy_twin():
    rng = np.random.default_rng(9)
    values, usable = rng.normal(0.0, 1.0, (20, 30)), rng.random((20, 30)) < 0.9
    w = np.where(usable & (values < 0.0), -values, 0.0)
    y, x = np.mgrid[:20, :30]
    mx, my = (w * x).sum() / w.sum(), (w * y).sum() / w.sum()
    moments = [(w * a * b).sum() / w.sum() for a, b in ((x - mx, x - mx), (y - my, y - my), (x - mx, y - my))]
    found = _trail_loops.footprint_moments(values, usable, -1.0)
    np.testing.assert_allclose(found, [w.sum(), mx, my, *moments], rtol=1e-9, atol=1e-9)
    assert np.isnan(_trail_loops.footprint_moments(values, np.zeros_like(usable), 1.0)).all()
