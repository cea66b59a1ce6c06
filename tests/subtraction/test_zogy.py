"""`subtract_zogy` against the paper's equations on whole transforms, against truth, and its statistics."""

import pickle

import numpy as np
import pytest
from scipy.ndimage import correlate

from alertprod.errors import BadSubtraction, ConfigError, UnusableExposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.analytic import GaussianPsf, MoffatPsf
from alertprod.psf.model import PointSpreadFunction
from alertprod.subtraction.zogy import subtract_zogy
from alertprod.subtraction.zogy_config import ZogyConfig

INNER = np.s_[30:-30, 30:-30]


class WideningPsf(PointSpreadFunction):
    """A Gaussian whose sigma grows from left to right."""

    def __init__(self, left: float, right: float, width: int):
        self.left, self.right, self.width = left, right, width

    @property
    def size(self):
        return 31

    @property
    def average_position(self):
        return self.width / 2, 100.0

    def compute_offset_image(self, *, x, y, dx, dy):
        sigma = self.left + (self.right - self.left) * x / self.width
        return GaussianPsf.from_sigma(sigma, size=31).compute_offset_image(x=x, y=y, dx=dx, dy=dy)


def draw(shape, psf, stars):
    image = np.zeros((shape[0] + 200, shape[1] + 200))
    for x, y, flux in stars:
        stamp, box = psf.compute_stellar_image(x=x, y=y)
        image[box.y_min + 100 : box.y_max + 100, box.x_min + 100 : box.x_max + 100] += flux * stamp
    return image[100:-100, 100:-100]


def observe(make_image, rng, psf, stars=(), *, variance=1.0, shape=(200, 220), gain=None):
    """Stars with white noise, and with their own where there is a gain."""
    model = draw(shape, psf, stars)
    plane = np.full(shape, variance) + (np.maximum(model, 0.0) / gain if gain else 0.0)
    return make_image(model + np.sqrt(plane) * rng.standard_normal(shape), plane)


def significance(score):
    return score.image / np.sqrt(score.variance)


def subtract_by_transforms(science, template, p_n, p_r, v_n, v_r):
    """Equations 12 to 17 of the paper on whole periodic images: D / F_D and S_corr without sources."""

    def transform(psf):
        padded = np.zeros(science.shape)
        padded[: psf.shape[0], : psf.shape[1]] = psf
        return np.fft.fft2(np.roll(padded, (-(psf.shape[0] // 2),) * 2, axis=(0, 1)))

    n, r, p_n, p_r = np.fft.fft2(science), np.fft.fft2(template), transform(p_n), transform(p_r)
    power = v_n * np.abs(p_r) ** 2 + v_r * np.abs(p_n) ** 2
    f_d = 1.0 / np.sqrt(v_n + v_r)
    d = (p_r * n - p_n * r) / np.sqrt(power)
    p_d = p_n * p_r / np.sqrt(power) / f_d
    s = f_d * d * np.conj(p_d)
    k_n = np.conj(p_n) * np.abs(p_r) ** 2 / power
    k_r = np.conj(p_r) * np.abs(p_n) ** 2 / power
    v_s = v_n * (np.abs(k_n) ** 2).mean() + v_r * (np.abs(k_r) ** 2).mean()
    return np.fft.ifft2(d).real / f_d, np.fft.ifft2(s).real / np.sqrt(v_s)


@pytest.mark.parametrize(
    ("science_psf", "template_psf", "v_n", "v_r"),
    [
        (GaussianPsf.from_sigma(1.9), GaussianPsf.from_sigma(1.4), 1.0, 1.0),
        (GaussianPsf.from_sigma(1.2), GaussianPsf.from_sigma(1.7), 4.0, 0.3),
        (
            MoffatPsf(fwhm=3.4, beta=3.0),
            MoffatPsf(fwhm=2.6, beta=3.0, ellipticity=0.2, position_angle_deg=30.0),
            1.0,
            0.5,
        ),
    ],
)
def test_difference_and_score_are_those_of_the_paper(rng, make_image, science_psf, template_psf, v_n, v_r):
    stars = [(*place, 3000.0) for place in rng.uniform(40, 160, (10, 2))]
    new = [(100.0, 120.0, 400.0)]
    science = observe(make_image, rng, science_psf, [*stars, *new], variance=v_n)
    template = observe(make_image, rng, template_psf, stars, variance=v_r)
    made = subtract_zogy(science, template, science_psf=science_psf, template_psf=template_psf)
    images = [psf.compute_kernel_image(x=0, y=0) for psf in (science_psf, template_psf)]
    difference, score = subtract_by_transforms(science.image, template.image, *images, v_n, v_r)
    sigma = np.sqrt(v_n + v_r)
    # What kernels cut short and faint frequencies set otherwise make of a unit of noise.
    assert (made.difference.image - difference)[INNER].std() < 0.03 * sigma
    assert (significance(made.score) - score)[INNER].std() < 0.01
    # A few parts in ten thousand of stars with a signal-to-noise ratio of up to 700.
    assert np.abs(significance(made.score) - score)[INNER].max() < 0.2


@pytest.mark.parametrize(
    ("science_sigma", "template_sigma", "v_n", "v_r"),
    [(2.4, 2.0, 1.0, 1.0), (2.0, 2.8, 1.0, 0.1), (1.8, 1.5, 1.0, 100.0), (2.2, 2.2, 0.3, 0.3)],
)
def test_noise_is_white_and_its_variance_the_planes(rng, make_image, science_sigma, template_sigma, v_n, v_r):
    psfs = {
        "science_psf": GaussianPsf.from_sigma(science_sigma),
        "template_psf": GaussianPsf.from_sigma(template_sigma),
    }
    science, template = (observe(make_image, rng, None, variance=variance, shape=(400, 400)) for variance in (v_n, v_r))
    made = subtract_zogy(science, template, **psfs)
    image = made.difference.image[INNER].astype(float)
    error = 1.0 / np.sqrt(image.size)
    np.testing.assert_allclose(made.difference.variance[INNER], v_n + v_r, rtol=2e-3)
    assert image.var() == pytest.approx(v_n + v_r, rel=5.0 * np.sqrt(2.0) * error + 2e-3)
    assert image.mean() == pytest.approx(0.0, abs=5.0 * np.sqrt(v_n + v_r) * error)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2), (3, 0)):
        lagged = (image[: image.shape[0] - dy, : image.shape[1] - dx] * image[dy:, dx:]).mean() / image.var()
        assert lagged == pytest.approx(0.0, abs=5.0 * error)
    # Independent values of the score: one per area of its filter.
    p_d = made.psf.compute_kernel_image(x=200, y=200)
    n_independent = image.size * (p_d**2).sum()
    scores = significance(made.score)
    assert scores[INNER].std() == pytest.approx(1.0, abs=5.0 / np.sqrt(2.0 * n_independent))
    # At the border as well, where part of the filter has nothing under it.
    rim = np.isfinite(scores)
    rim[INNER] = False
    assert scores[rim].std() == pytest.approx(1.0, abs=5.0 / np.sqrt(2.0 * rim.sum() * (p_d**2).sum()))


@pytest.mark.parametrize("side", ["science", "template"])
def test_a_source_is_its_flux_times_the_psf(make_image, side):
    science_psf, template_psf = GaussianPsf.from_sigma(1.6), MoffatPsf(fwhm=4.6, beta=3.5)
    shape = (160, 160)
    stars = {"science": [], "template": []}
    stars[side] = [(80.3, 77.8, 1000.0)]
    science = make_image(draw(shape, science_psf, stars["science"]), 1.0)
    template = make_image(draw(shape, template_psf, stars["template"]), 0.25)
    made = subtract_zogy(science, template, science_psf=science_psf, template_psf=template_psf)
    sign = 1.0 if side == "science" else -1.0
    for image, psf in ((made.difference, made.psf), (made.score, made.score_psf)):
        drawn, box = psf.compute_stellar_image(x=80.3, y=77.8)
        found = image.image[box.slices]
        np.testing.assert_allclose(found, sign * 1000.0 * drawn, atol=0.01 * 1000.0 * drawn.max())
        flux = (drawn * found).sum() / (drawn**2).sum()
        assert flux == pytest.approx(sign * 1000.0, rel=2e-3)


def test_fluxes_of_sources_on_noise_are_unbiased(rng, make_image):
    """Flux pulls of faint and bright sources of both signs, measured with P_D on the variance plane."""
    science_psf, template_psf = GaussianPsf.from_sigma(2.1), GaussianPsf.from_sigma(1.7)
    places = [
        (x + rng.uniform(-0.5, 0.5), y + rng.uniform(-0.5, 0.5)) for x in range(50, 360, 40) for y in range(50, 360, 40)
    ]
    fluxes = rng.uniform(50.0, 500.0, len(places)) * rng.choice([-1.0, 1.0], len(places))
    stars = [(x, y, flux) for (x, y), flux in zip(places, fluxes, strict=True)]
    settings = {"variance": 1.0, "shape": (400, 400)}
    science = observe(make_image, rng, science_psf, [star for star in stars if star[2] > 0], gain=5.0, **settings)
    gone = [(x, y, -flux) for x, y, flux in stars if flux < 0]
    template = observe(make_image, rng, template_psf, gone, gain=5.0, **settings)
    made = subtract_zogy(science, template, science_psf=science_psf, template_psf=template_psf)
    pulls = []
    for x, y, flux in stars:
        drawn, box = made.psf.compute_stellar_image(x=x, y=y)
        weight = drawn / (drawn**2).sum()
        error = np.sqrt((weight**2 * made.difference.variance[box.slices]).sum())
        pulls.append(((weight * made.difference.image[box.slices]).sum() - flux) / error)
    assert np.mean(pulls) == pytest.approx(0.0, abs=4.0 / np.sqrt(len(pulls)))
    assert np.std(pulls) == pytest.approx(1.0, abs=4.0 / np.sqrt(2.0 * len(pulls)))


def test_the_score_is_the_difference_correlated_with_its_psf(rng, make_image):
    science_psf, template_psf = GaussianPsf.from_sigma(2.1), GaussianPsf.from_sigma(1.7)
    stars = [(90.2, 100.7, 2000.0)]
    science = observe(make_image, rng, science_psf, stars)
    template = observe(make_image, rng, template_psf)
    made = subtract_zogy(science, template, science_psf=science_psf, template_psf=template_psf)
    wanted = correlate(made.difference.image.astype(float), made.psf.compute_kernel_image(x=110, y=100))
    np.testing.assert_allclose(made.score.image[INNER], wanted[INNER], atol=1e-3 * 2000.0 * 0.03)


def test_the_significance_of_a_source_is_that_of_the_optimal_filter(make_image):
    """flux sqrt(sum(P_D^2) / (v_n + v_r)), which no other filter of the two images reaches."""
    science_psf, template_psf = GaussianPsf.from_sigma(2.1), GaussianPsf.from_sigma(1.7)
    science = make_image(draw((161, 161), science_psf, [(80, 80, 300.0)]), 1.0)
    template = make_image(np.zeros((161, 161)), 0.5)
    made = subtract_zogy(science, template, science_psf=science_psf, template_psf=template_psf)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(1024), np.fft.fftfreq(1024)))
    p_n, p_r = (np.exp(-2.0 * (np.pi * sigma * frequency) ** 2) for sigma in (2.1, 1.7))
    # The paper's equation 16 for the noise-free template of the optimum, in closed form for Gaussians.
    wanted = 300.0 * np.sqrt((p_n**2 * p_r**2 / np.maximum(1.0 * p_r**2 + 0.5 * p_n**2, 1e-300)).mean())
    assert significance(made.score)[80, 80] == pytest.approx(wanted, rel=2e-3)
    p_d = made.psf.compute_kernel_image(x=80, y=80)
    assert wanted == pytest.approx(300.0 * np.sqrt((p_d**2).sum() / 1.5), rel=2e-3)


def test_stars_that_do_not_vary_leave_nothing(make_image, rng):
    """Of a star less than 2e-4 of its light is left in any pixel; its score, of S/N 5000 in each, is below 3 sigma."""
    stars = [(*place, 5e4) for place in rng.uniform(50, 150, (6, 2))]
    for science_psf, template_psf in (
        (GaussianPsf.from_sigma(2.4), GaussianPsf.from_sigma(2.0)),
        (MoffatPsf(fwhm=4.4, beta=3.0), MoffatPsf(fwhm=3.6, beta=3.0)),
        (MoffatPsf(fwhm=3.6, beta=3.0), MoffatPsf(fwhm=5.0, beta=3.0, ellipticity=0.1)),
    ):
        science, template = (make_image(draw((200, 200), psf, stars), 1.0) for psf in (science_psf, template_psf))
        made = subtract_zogy(science, template, science_psf=science_psf, template_psf=template_psf)
        assert np.abs(made.difference.image[INNER]).max() < 2e-4 * 5e4
        assert np.nanmax(np.abs(significance(made.score)[INNER])) < 3.0


def test_the_noise_of_sources_is_in_the_score(rng, make_image):
    """Eighty-one bright stars, four times: S_corr in their cores is N(0, 1), and would be wide without their noise."""
    science_psf, template_psf = GaussianPsf.from_sigma(2.0), GaussianPsf.from_sigma(1.6)
    stars = [(x, y, 2e4) for x in range(40, 380, 40) for y in range(40, 380, 40)]
    columns, rows = ([int(star[axis]) for star in stars] for axis in (0, 1))
    scores = []
    for _ in range(4):
        science, template = (
            observe(make_image, rng, psf, stars, variance=20.0, shape=(401, 401), gain=1.0)
            for psf in (science_psf, template_psf)
        )
        made = subtract_zogy(science, template, science_psf=science_psf, template_psf=template_psf)
        scores.append(significance(made.score)[rows, columns])
    scores = np.ravel(scores)
    assert scores.std() == pytest.approx(1.0, abs=5.0 / np.sqrt(2.0 * scores.size))
    sky = made.score.variance[20 + np.array(rows[:8]), 20 + np.array(columns[:8])].mean()
    assert made.score.variance[rows, columns].mean() > 4.0 * sky


@pytest.mark.parametrize("axis", ["x", "y"])
def test_the_noise_of_the_registration_is_in_the_score(make_image, axis):
    """A shift by sigma leaves sigma times the slope: its square is the variance of a scatter of sigma."""
    science_psf, template_psf = GaussianPsf.from_sigma(2.0), GaussianPsf.from_sigma(1.6)
    shift = {"x": (0.1, 0.0), "y": (0.0, 0.1)}[axis]
    template = make_image(draw((121, 121), template_psf, [(60, 60, 1e4)]), 1.0)
    still, moved = (
        make_image(draw((121, 121), science_psf, [(60 + dx, 60 + dy, 1e4)]), 1.0) for dx, dy in ((0.0, 0.0), shift)
    )
    settings = {"science_psf": science_psf, "template_psf": template_psf}
    plain = subtract_zogy(still, template, **settings).score
    expected = subtract_zogy(still, template, registration_sigma=shift, **settings).score
    residual = subtract_zogy(moved, template, **settings).score.image - plain.image
    added = expected.variance[INNER] - plain.variance[INNER]
    # First order in the shift: the second is sigma / 2 of the PSF's curvature, 3 % at the greatest slope.
    np.testing.assert_allclose(np.sqrt(added), np.abs(residual[INNER]), atol=0.05 * np.abs(residual[INNER]).max())
    by_config = subtract_zogy(
        still, template, config=ZogyConfig(registration_sigma_x=shift[0], registration_sigma_y=shift[1]), **settings
    )
    np.testing.assert_array_equal(by_config.score.variance, expected.variance)


def test_swapping_the_images_turns_the_sign_and_scaling_them_scales(rng, make_image):
    psfs = GaussianPsf.from_sigma(2.0), GaussianPsf.from_sigma(1.6)
    stars = [(100.0, 90.0, 2000.0)]
    science, template = observe(make_image, rng, psfs[0], stars), observe(make_image, rng, psfs[1], variance=0.5)
    made = subtract_zogy(science, template, science_psf=psfs[0], template_psf=psfs[1])
    swapped = subtract_zogy(template, science, science_psf=psfs[1], template_psf=psfs[0])
    np.testing.assert_allclose(swapped.difference.image, -made.difference.image, atol=1e-4)
    np.testing.assert_allclose(swapped.score.variance[INNER], made.score.variance[INNER], rtol=1e-4)
    scaled = subtract_zogy(
        science.scaled(3.0), template.scaled(7.0), science_psf=psfs[0], template_psf=psfs[1], flux_ratio=3.0 / 7.0
    )
    np.testing.assert_allclose(scaled.difference.image, 3.0 * made.difference.image, atol=1e-3)
    np.testing.assert_allclose(significance(scaled.score)[INNER], significance(made.score)[INNER], atol=1e-3)
    turned = [
        MaskedImage(image.image.T.copy(), image.mask.T.copy(), image.variance.T.copy()) for image in (science, template)
    ]
    transposed = subtract_zogy(*turned, science_psf=psfs[0], template_psf=psfs[1])
    np.testing.assert_allclose(transposed.difference.image.T, made.difference.image, atol=1e-4)


def test_bad_pixels_do_not_leak_and_cost_the_score_little(rng, make_image):
    psfs = {"science_psf": GaussianPsf.from_sigma(2.0), "template_psf": GaussianPsf.from_sigma(1.6)}
    science, template = (observe(make_image, rng, None, variance=1.0) for _ in range(2))
    clean = subtract_zogy(science, template, **psfs)
    science.image[100, 110], science.mask[100, 110] = 1e6, plane_bits("BAD")
    template.image[40:80, 150:190], template.mask[40:80, 150:190] = np.nan, plane_bits("NO_DATA")
    template.variance[140, 60] = 0.0
    science.mask[150, 150] = plane_bits("DETECTED")
    made = subtract_zogy(science, template, **psfs)
    assert np.isnan(made.difference.image[40:80, 150:190]).all()
    assert np.isinf(made.difference.variance[40:80, 150:190]).all()
    assert (made.difference.mask[40:80, 150:190] & plane_bits("NO_DATA")).all()
    assert np.isnan(made.difference.image[140, 60])
    assert not (made.difference.mask & plane_bits("DETECTED")).any()
    bad = (made.difference.mask & plane_bits("BAD", "NO_DATA")) != 0
    delta = (made.difference.image - clean.difference.image)[~bad]
    # A filled pixel is off by a unit of noise: beyond the flagged pixels at most a tenth of the kernel's peak is left.
    assert np.abs(delta).max() < 5.0 * 0.1 * np.sqrt(1.0 + 1.0 / 8.0)
    # The score goes on over a single bad pixel, and stops within the hole.
    assert made.score.mask[100, 110] == 0
    assert significance(made.score)[100, 110] == pytest.approx(significance(clean.score)[100, 110], abs=3.0)
    assert np.isnan(made.score.image[50:70, 160:180]).all()
    assert (made.score.mask[50:70, 160:180] & plane_bits("NO_DATA")).all()
    stray = np.isnan(made.score.image) & (made.score.mask == 0)
    assert not stray.any()
    found = np.isfinite(made.score.image)
    assert np.abs(significance(made.score)[found]).max() < 5.5


@pytest.mark.parametrize("levels", [(5000.0, 8000.0), (1e9, 8000.0), (5000.0, 1e9)])
def test_a_saturated_star_does_not_show_in_the_score(rng, make_image, levels):
    psfs = {"science_psf": GaussianPsf.from_sigma(2.0), "template_psf": GaussianPsf.from_sigma(1.7)}
    stars = [(110.3, 99.6, 1e6)]
    science, template = (observe(make_image, rng, psf, stars, gain=1.0) for psf in psfs.values())
    for image, level, plane in ((science, levels[0], "SAT"), (template, levels[1], "SAT_TEMPLATE")):
        image.mask[image.image > level] |= plane_bits(plane)
        image.image[image.image > level] = level
    made = subtract_zogy(science, template, **psfs)
    found = np.isfinite(made.score.image)
    assert not found[100, 110]
    assert np.abs(significance(made.score)[found]).max() < 5.5


def test_cells_follow_a_psf_that_varies_without_a_seam(rng, make_image):
    shape = (200, 900)
    science_psf, template_psf = WideningPsf(2.2, 2.4, 900), WideningPsf(1.6, 1.65, 900)
    stars = [(x, 100.0 + rng.uniform(-30, 30), 2e4) for x in range(40, 880, 60)]
    science, template = (make_image(draw(shape, psf, stars), 1.0) for psf in (science_psf, template_psf))
    psfs = {"science_psf": science_psf, "template_psf": template_psf}
    # Borders of 31 pixels and cells of 155.
    config = ZogyConfig(do_spatial_grid=True, grid_inner_size=5.0)
    made = subtract_zogy(science, template, config=config, **psfs)
    assert len(made.science_kernel.x) == 7
    fixed = subtract_zogy(science, template, **psfs)
    left = np.abs(made.difference.image[INNER]).max()
    assert left < 0.05 * np.abs(fixed.difference.image[INNER]).max()
    # Between two corners the kernel's width is wrong to second order of what it changes by: 2e-3 of the stars' peaks.
    assert left < 2e-3 * science.image.max()
    # A source's image is the PSF at its place, at the corner of a cell and between two.
    for x in (225, 300, 330):
        blank = make_image(draw(shape, science_psf, [(x, 100, 1000.0)]), 1.0)
        alone = subtract_zogy(blank, make_image(np.zeros(shape), 1.0), config=config, **psfs)
        drawn, box = alone.psf.compute_stellar_image(x=x, y=100)
        np.testing.assert_allclose(alone.difference.image[box.slices], 1000.0 * drawn, atol=0.01 * 1000.0 * drawn.max())
    # Noise: as wide and as white at the seams as elsewhere.
    science, template = (observe(make_image, rng, None, shape=shape) for _ in range(2))
    noise = subtract_zogy(science, template, config=config, **psfs)
    pulls = noise.difference.image / np.sqrt(noise.difference.variance)
    scores = significance(noise.score)
    edges = np.arange(150, 900, 150)
    for at in (edges, edges - 75):
        window = (slice(30, -30), np.concatenate([np.arange(x - 15, x + 15) for x in at]))
        n = pulls[window].size
        assert pulls[window].std() == pytest.approx(1.0, abs=5.0 / np.sqrt(2.0 * n) + 0.003)
        assert scores[window].std() == pytest.approx(1.0, abs=5.0 / np.sqrt(2.0 * n * 0.02))


def test_a_background_may_be_taken_off_first(rng, make_image):
    psfs = {"science_psf": GaussianPsf.from_sigma(2.0), "template_psf": GaussianPsf.from_sigma(1.6)}
    science, template = (observe(make_image, rng, psf, [(100, 100, 1e4)]) for psf in psfs.values())
    science.image += np.float32(50.0)
    made = subtract_zogy(science, template, **psfs)
    assert np.median(made.difference.image) == pytest.approx(50.0, abs=0.1)
    made = subtract_zogy(science, template, config=ZogyConfig(correct_background=True), **psfs)
    # The means of 44000 pixels, and the light of a star that clipping leaves in both.
    assert np.median(made.difference.image) == pytest.approx(0.0, abs=5.0 * np.sqrt(2.0 / 44000) * 2)


def test_what_cannot_be_subtracted_is_named(rng, make_image):
    psf = GaussianPsf.from_sigma(2.0)
    image = observe(make_image, rng, None)

    class BrokenPsf(GaussianPsf):
        def compute_offset_image(self, *, x, y, dx, dy):
            return np.nan * super().compute_offset_image(x=x, y=y, dx=dx, dy=dy)

    class MovedPsf(GaussianPsf):
        def compute_offset_image(self, *, x, y, dx, dy):
            return super().compute_offset_image(x=x, y=y, dx=dx, dy=dy - 0.5)

    with pytest.raises(UnusableExposure, match="template exposure: psf"):
        subtract_zogy(image, image, science_psf=psf, template_psf=BrokenPsf(fwhm=4.0))
    with pytest.raises(BadSubtraction, match="centroids"):
        subtract_zogy(image, image, science_psf=psf, template_psf=MovedPsf(fwhm=4.0))
    silent = MaskedImage(image.image, image.mask, 0 * image.variance)
    with pytest.raises(UnusableExposure, match="science exposure: variance"):
        subtract_zogy(silent, image, science_psf=psf, template_psf=psf)
    with pytest.raises(ValueError, match="shape"):
        subtract_zogy(image, make_image(np.zeros((10, 10)), 1.0), science_psf=psf, template_psf=psf)
    for ratio in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="flux ratio"):
            subtract_zogy(image, image, science_psf=psf, template_psf=psf, flux_ratio=ratio)
    for setting in (
        {"registration_sigma_x": -1.0},
        {"fill_mask_planes": ("NONE",)},
        {"n_threads": 0},
        {"grid_inner_size": 0.0},
    ):
        with pytest.raises(ConfigError) as caught:
            ZogyConfig(**setting)
        assert caught.value.field == next(iter(setting))


def test_the_psf_can_be_sent_to_another_process(rng, make_image):
    psfs = {"science_psf": GaussianPsf.from_sigma(2.0), "template_psf": GaussianPsf.from_sigma(1.6)}
    made = subtract_zogy(observe(make_image, rng, None), observe(make_image, rng, None), **psfs)
    for psf in (made.psf, made.score_psf):
        again = pickle.loads(pickle.dumps(psf))
        np.testing.assert_array_equal(again.compute_kernel_image(x=5, y=5), psf.compute_kernel_image(x=5, y=5))
