import numpy as np
import pytest

from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement import _loops
from alertprod.measurement.flux import measure_aperture_flux, measure_peak_likelihood, measure_psf_flux
from alertprod.measurement.stamps import CHUNK, cut_stamps, draw_psfs
from alertprod.psf.analytic import MoffatPsf
from alertprod.psf.model import PointSpreadFunction

SIGMA = 1.8


def test_noise_free_star_has_its_flux(make_image, psf):
    image = make_image((64, 64), psf, [(30.3, 31.8, 1000.0)], noise=2.0)
    fluxes = measure_psf_flux(image, psf, x=np.array([30.3]), y=np.array([31.8]))
    assert fluxes.flux[0] == pytest.approx(1000.0, rel=1e-6)
    # The variance of the estimate is that of white noise over the sum of P squared: 4 pi sigma^2 for a Gaussian.
    assert fluxes.flux_err[0] == pytest.approx(2.0 * np.sqrt(4.0 * np.pi * SIGMA**2), rel=1e-3)
    assert fluxes.chi2[0] == pytest.approx(0.0, abs=1e-6)
    assert fluxes.n_data[0] == psf.size**2
    assert fluxes.area[0] == pytest.approx(4.0 * np.pi * SIGMA**2, rel=1e-3)
    assert not fluxes.flag[0]


def test_flux_pulls_and_chi_squared_are_those_of_the_noise(make_image, psf, scattered):
    n = 900
    points = scattered(n, spacing=32, seed=1)
    flux = np.random.default_rng(2).uniform(-500.0, 500.0, n)
    image = make_image((32 * 30, 32 * 30), psf, np.column_stack([points, flux]), noise=1.5, seed=3)
    fluxes = measure_psf_flux(image, psf, x=points[:, 0], y=points[:, 1])
    inner = ~fluxes.flag_edge
    pull = ((fluxes.flux - flux) / fluxes.flux_err)[inner]
    assert abs(pull.mean()) < 4.0 / np.sqrt(len(pull))
    assert pull.std() == pytest.approx(1.0, abs=4.0 / np.sqrt(2.0 * len(pull)))
    chi2 = fluxes.chi2[inner].mean()
    degrees = psf.size**2 - 1
    assert chi2 == pytest.approx(degrees, abs=4.0 * np.sqrt(2.0 * degrees / len(pull)))


def test_masked_pixels_do_not_bias_flux(make_image, psf):
    image = make_image((64, 64), psf, [(30.3, 31.8, 1000.0)])
    image.image[:, 31] = 1e6
    image.mask[:, 31] = plane_bits("BAD")
    image.image[29, 30] = np.nan
    image.variance[33, 28] = 0.0
    image.image[33, 28] = -1e5
    fluxes = measure_psf_flux(image, psf, x=np.array([30.3]), y=np.array([31.8]))
    assert fluxes.flux[0] == pytest.approx(1000.0, rel=1e-6)
    assert fluxes.n_data[0] == psf.size**2 - psf.size - 2
    whole = measure_psf_flux(make_image((64, 64), psf), psf, x=np.array([30.3]), y=np.array([31.8]))
    assert fluxes.flux_err[0] > whole.flux_err[0]


def test_planes_to_leave_out_are_the_callers_choice(make_image, psf):
    image = make_image((64, 64), psf, [(30.0, 30.0, 1000.0)])
    image.image[30, 30] += 50.0
    image.mask[30, 30] = plane_bits("SUSPECT")
    point = {"x": np.array([30.0]), "y": np.array([30.0])}
    assert measure_psf_flux(image, psf, **point).flux[0] > 1050.0
    left_out = measure_psf_flux(image, psf, **point, bad_planes=plane_bits("SUSPECT"))
    assert left_out.flux[0] == pytest.approx(1000.0, rel=1e-6)


def test_variance_made_from_the_data_does_not_bias_flux(make_image, psf, scattered):
    n = 400
    points = scattered(n, spacing=32, seed=4)
    model = make_image((640, 640), psf, np.column_stack([points, np.full(n, 300.0)])).image + 5.0
    counts = np.random.default_rng(5).poisson(model).astype(np.float32)
    image = MaskedImage(counts - np.float32(5.0), np.zeros(counts.shape, np.int32), np.maximum(counts, 1.0))
    fluxes = measure_psf_flux(image, psf, x=points[:, 0], y=points[:, 1])
    inner = ~fluxes.flag_edge
    error = fluxes.flux_err[inner].mean() / np.sqrt(inner.sum())
    assert abs(fluxes.flux[inner].mean() - 300.0) < 4.0 * error


def test_scale_and_sign_carry_through(make_image, psf):
    image = make_image((64, 64), psf, [(30.3, 31.8, 100.0)], seed=6)
    scaled = MaskedImage(-7.0 * image.image, image.mask, 49.0 * image.variance)
    point = {"x": np.array([30.3]), "y": np.array([31.8])}
    a, b = measure_psf_flux(image, psf, **point), measure_psf_flux(scaled, psf, **point)
    assert b.flux[0] == pytest.approx(-7.0 * a.flux[0], rel=1e-6)
    assert b.flux_err[0] == pytest.approx(7.0 * a.flux_err[0], rel=1e-6)
    assert b.chi2[0] == pytest.approx(a.chi2[0], rel=1e-5)


@pytest.mark.parametrize(("x", "y"), [(-200.0, 10.0), (np.nan, 10.0), (10.0, np.inf), (1e30, 5.0)])
def test_positions_off_the_image_have_no_flux_and_say_so(make_image, psf, x, y):
    fluxes = measure_psf_flux(make_image((64, 64), psf), psf, x=np.array([x, 30.0]), y=np.array([y, 30.0]))
    assert np.isnan(fluxes.flux[0])
    assert np.isnan(fluxes.flux_err[0])
    assert fluxes.n_data[0] == 0
    assert fluxes.flag.tolist() == fluxes.flag_edge.tolist() == fluxes.flag_no_good_pixels.tolist() == [True, False]


def test_star_on_the_edge_keeps_its_flux_and_is_flagged(make_image, psf):
    image = make_image((64, 64), psf, [(1.2, 40.0, 1000.0)])
    fluxes = measure_psf_flux(image, psf, x=np.array([1.2]), y=np.array([40.0]))
    assert fluxes.flux[0] == pytest.approx(1000.0, rel=1e-5)
    assert fluxes.flag_edge[0]
    assert fluxes.flag[0]
    assert not fluxes.flag_no_good_pixels[0]


class HalfPlanePsf(MoffatPsf):
    """Defined at x >= 30 only."""

    def compute_offset_image(self, *, x, y, dx, dy):
        if x < 30:
            msg = "no tile here"
            raise ValueError(msg)
        return super().compute_offset_image(x=x, y=y, dx=dx, dy=dy)


def test_position_without_a_psf_is_flagged(make_image, psf):
    half = HalfPlanePsf(fwhm=4.0, beta=3.0, size=21)
    fluxes = measure_psf_flux(make_image((64, 64), psf, seed=7), half, x=np.array([20.0, 40.0]), y=np.array([30.0] * 2))
    assert fluxes.flag_no_good_pixels.tolist() == [True, False]


def test_more_sources_than_a_chunk_are_all_measured(make_image, psf: PointSpreadFunction):
    n = CHUNK + 3
    x, y = np.linspace(20.0, 40.0, n), np.full(n, 30.0)
    fluxes = measure_psf_flux(make_image((64, 64), psf, [(30.0, 30.0, 100.0)]), psf, x=x, y=y)
    single = [
        measure_psf_flux(make_image((64, 64), psf, [(30.0, 30.0, 100.0)]), psf, x=x[i], y=y[i]).flux[0]
        for i in (0, n - 1)
    ]
    assert fluxes.flux[[0, n - 1]].tolist() == single


def test_drawn_psfs_may_be_handed_in(make_image, psf):
    image = make_image((64, 64), psf, [(30.3, 31.8, 100.0)], seed=8)
    x, y = np.array([30.3]), np.array([31.8])
    drawn = measure_psf_flux(image, psf, x=x, y=y, psf_images=draw_psfs(psf, x=x, y=y))
    assert drawn.flux[0] == measure_psf_flux(image, psf, x=x, y=y).flux[0]


def test_a_place_whose_psf_is_not_finite_is_flagged_and_the_others_are_not(make_image, psf):
    class HalfKnown(MoffatPsf):
        def compute_offset_image(self, *, x, y, dx, dy):
            image = super().compute_offset_image(x=x, y=y, dx=dx, dy=dy)
            return image if x < 32.0 else np.nan * image

    image = make_image((64, 64), psf, [(20.0, 30.0, 100.0), (44.0, 30.0, 100.0)], seed=8)
    fluxes = measure_psf_flux(image, HalfKnown(fwhm=4.2), x=np.array([20.0, 44.0]), y=np.array([30.0, 30.0]))
    assert fluxes.flag.tolist() == [False, True]
    assert np.isfinite(fluxes.flux).tolist() == [True, False]


def test_aperture_of_a_flat_image_is_the_area_of_its_disk(make_image, psf):
    image = make_image((80, 80), psf, noise=2.0)
    image.image += 1.0
    rng = np.random.default_rng(9)
    x, y = rng.uniform(30.0, 50.0, 20), rng.uniform(30.0, 50.0, 20)
    for radius in (0.3, 1.0, 5.5, 12.0):
        aperture = measure_aperture_flux(image, psf, x=x, y=y, psf_flux=np.zeros(20), radius=radius)
        np.testing.assert_allclose(aperture.flux, np.pi * radius**2, rtol=1e-6)
    # Pixels on the rim count with the square of their overlap: a little less than the area.
    assert np.all(aperture.flux_err <= 2.0 * np.sqrt(np.pi * 12.0**2))
    assert np.all(aperture.flux_err > 0.97 * 2.0 * np.sqrt(np.pi * 12.0**2))


def test_pixel_overlap_equals_fine_sampling():
    steps = (np.arange(400) + 0.5) / 400 - 0.5
    u, v = np.meshgrid(steps, steps)
    rng = np.random.default_rng(10)
    for _ in range(40):
        x, y, r = rng.uniform(-4, 4), rng.uniform(-4, 4), rng.uniform(0.2, 4.0)
        sampled = ((x + u) ** 2 + (y + v) ** 2 <= r * r).mean()
        # The rim crosses at most about 2 * 400 of the 160000 samples' cells.
        assert _loops.pixel_overlap(x, y, r) == pytest.approx(sampled, abs=1.5 / 400)


def test_aperture_holds_the_enclosed_flux_of_a_gaussian(make_image, psf):
    image = make_image((80, 80), psf, [(40.2, 39.7, 1000.0)])
    point = {"x": np.array([40.2]), "y": np.array([39.7])}
    for radius in (3.0, 5.0, 12.0):
        aperture = measure_aperture_flux(image, psf, **point, psf_flux=np.array([1000.0]), radius=radius)
        # The pixels are samples, taken as flat across their area: second order in the profile, 2 % at 3 pixels.
        tolerance = 0.03 * np.exp(-0.5 * (radius / SIGMA) ** 2) * (radius / SIGMA) ** 2 + 1e-5
        expected = 1.0 - np.exp(-0.5 * (radius / SIGMA) ** 2)
        assert aperture.flux[0] / 1000.0 == pytest.approx(expected, abs=tolerance)


def test_masked_pixels_do_not_bias_the_aperture(make_image, psf):
    image = make_image((80, 80), psf, [(40.2, 39.7, 1000.0)])
    point = {"x": np.array([40.2]), "y": np.array([39.7])}
    whole = measure_aperture_flux(image, psf, **point, psf_flux=np.array([1000.0])).flux[0]
    image.image[:, 41] = np.nan
    image.mask[38, :] = plane_bits("SAT")
    aperture = measure_aperture_flux(image, psf, **point, psf_flux=np.array([1000.0]))
    assert aperture.flux[0] == pytest.approx(whole, rel=1e-5)
    assert not aperture.flag[0]


def test_aperture_off_the_image_is_flagged(make_image, psf):
    x, y = np.array([5.0, 40.0, -100.0, np.nan]), np.full(4, 40.0)
    aperture = measure_aperture_flux(make_image((80, 80), psf, seed=1), psf, x=x, y=y, psf_flux=np.zeros(4))
    assert aperture.flag.tolist() == aperture.flag_truncated.tolist() == [True, False, True, True]
    assert np.isfinite(aperture.flux).tolist() == [True, True, False, False]


def test_aperture_pulls_are_normal(make_image, psf, scattered):
    n = 400
    points = scattered(n, spacing=32, seed=11)
    image = make_image((640, 640), psf, seed=12)
    aperture = measure_aperture_flux(image, psf, x=points[:, 0], y=points[:, 1], psf_flux=np.zeros(n))
    pull = aperture.flux / aperture.flux_err
    assert abs(pull.mean()) < 4.0 / np.sqrt(n)
    assert pull.std() == pytest.approx(1.0, abs=4.0 / np.sqrt(2.0 * n))


def test_flux_loop_equals_its_numpy_twin(make_image, psf):
    image = make_image((64, 64), psf, [(30.3, 31.8, 100.0)], seed=13)
    image.variance[:] = np.random.default_rng(14).uniform(0.5, 2.0, image.shape)
    image.mask[28:31, 33] = plane_bits("BAD")
    x, y = np.array([30.3, 3.0]), np.array([31.8, 60.0])
    stamps = cut_stamps(image, x=x, y=y, size=psf.size, bad_planes=plane_bits("BAD"))
    p = np.where(stamps.usable, draw_psfs(psf, x=x, y=y), 0.0)
    power = (p * p).sum(axis=(1, 2))
    flux = (p * stamps.values).sum(axis=(1, 2)) / power
    residual = np.where(stamps.usable, stamps.values - flux[:, None, None] * p, 0.0)
    fluxes = measure_psf_flux(image, psf, x=x, y=y, bad_planes=plane_bits("BAD"))
    np.testing.assert_allclose(fluxes.flux, flux)
    np.testing.assert_allclose(fluxes.flux_err, np.sqrt((p * p * stamps.variances).sum(axis=(1, 2))) / power)
    np.testing.assert_allclose(fluxes.chi2, (residual**2 / stamps.variances).sum(axis=(1, 2)))


@pytest.mark.parametrize("point", [(30.0, 30.0), (30.49, 29.51), (30.2, 30.4)])
def test_peak_likelihood_of_a_star_is_its_flux(make_image, psf, point):
    image = make_image((64, 64), psf, [(*point, 1000.0)], noise=2.0)
    peak = measure_peak_likelihood(image, psf, x=np.array([point[0]]), y=np.array([point[1]]))
    # The parabola's error on a Gaussian of sqrt(2) sigma, half a pixel off along both axes.
    assert peak.flux[0] == pytest.approx(1000.0, rel=4e-3)
    assert peak.flux_err[0] == pytest.approx(2.0 * np.sqrt(4.0 * np.pi * SIGMA**2), rel=1e-3)
    assert not peak.flag[0]


def test_peak_likelihood_on_noise_has_no_bias(make_image, psf, scattered):
    n = 400
    points = scattered(n, spacing=32, seed=15)
    image = make_image((640, 640), psf, np.column_stack([points, np.full(n, 200.0)]), seed=16)
    peak = measure_peak_likelihood(image, psf, x=points[:, 0], y=points[:, 1])
    pull = (peak.flux - 200.0) / peak.flux_err
    assert abs(pull.mean()) < 4.0 / np.sqrt(n)
    assert pull.std() == pytest.approx(1.0, abs=4.0 / np.sqrt(2.0 * n))


def test_peak_likelihood_off_the_image_or_without_pixels_is_flagged(make_image, psf):
    image = make_image((64, 64), psf, [(30.0, 30.0, 100.0)])
    image.image[40:, 40:] = np.nan
    peak = measure_peak_likelihood(
        image, psf, x=np.array([-200.0, np.nan, 62.0, 30.0]), y=np.array([10.0, 10.0, 62.0, 30.0])
    )
    assert peak.flag.tolist() == [True, True, True, False]
    assert np.isnan(peak.flux[:3]).all()


def test_peak_likelihood_loop_equals_its_numpy_twin(make_image, psf):
    image = make_image((64, 64), psf, [(30.3, 31.8, 100.0)], seed=17)
    image.mask[28:31, 33] = plane_bits("BAD")
    peak = measure_peak_likelihood(image, psf, x=np.array([30.3]), y=np.array([31.8]), bad_planes=plane_bits("BAD"))
    kernel, half = psf.compute_kernel_image(x=30, y=32), psf.size // 2
    usable = (image.mask == 0).astype(float)
    estimate = np.empty((3, 3))
    for b in range(3):
        for a in range(3):
            # The stamp stays on the middle pixel; the kernel moves within it.
            p = np.zeros((psf.size, psf.size))
            p[max(0, b - 1) : psf.size + min(0, b - 1), max(0, a - 1) : psf.size + min(0, a - 1)] = kernel[
                max(0, 1 - b) : psf.size + min(0, 1 - b), max(0, 1 - a) : psf.size + min(0, 1 - a)
            ]
            stamp = (slice(32 - half, 33 + half), slice(30 - half, 31 + half))
            p *= usable[stamp]
            estimate[b, a] = (p * image.image[stamp]).sum() / (p * p).sum()

    def weights(t):
        return np.array([0.5 * t * (t - 1.0), 1.0 - t * t, 0.5 * t * (t + 1.0)])

    assert peak.flux[0] == pytest.approx(weights(-0.2) @ estimate @ weights(0.3), rel=1e-6)
