import pickle

import numpy as np
import pytest
from scipy.signal import fftconvolve

from alertprod.detection.matched_filter import compute_significance, make_filter_kernel
from alertprod.errors import UnusableExposure
from alertprod.geometry.box import Box
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.analytic import GaussianPsf
from alertprod.resample.mapping import PixelMapping
from alertprod.resample.noise import compute_noise_kernel
from alertprod.resample.warp import warp_masked_image
from alertprod.subtraction.alard_lupton import match_images
from alertprod.subtraction.config import AlardLuptonConfig
from alertprod.subtraction.convolve import convolve_image
from alertprod.subtraction.decorrelate import (
    DecorrelationConfig,
    compute_whitening_kernel,
    decorrelate,
    decorrelate_score,
)
from alertprod.subtraction.preconvolve import preconvolve
from alertprod.subtraction.spatial import SpatialKernel


def gaussian(sigma, size=21):
    half = size // 2
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    image = np.exp(-0.5 * (u**2 + v**2) / sigma**2)
    return image / image.sum()


def autocorrelation(image, dy, dx):
    ny, nx = image.shape
    first = image[: ny - dy, : nx - dx]
    second = image[dy:, dx:]
    return float(((first - image.mean()) * (second - image.mean())).mean() / image.var())


LAGS = [(0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (0, 3), (3, 0), (2, 2)]


def subtract_noise(rng, *, kernel, science_variance, template_variance, convolved="template"):
    """A difference of two images of pure noise, of which one is convolved with `kernel`."""
    shape = kernel.box.shape
    science = rng.normal(0, np.sqrt(science_variance), shape).astype(np.float32)
    template = rng.normal(0, np.sqrt(template_variance), shape).astype(np.float32)
    planes = [np.full(shape, v, dtype=np.float32) for v in (science_variance, template_variance)]
    if convolved == "template":
        image = science - convolve_image(template, kernel)
    else:
        image = (convolve_image(science, kernel) - template) / np.float32(kernel.kernel_sum())
    return MaskedImage(image, np.zeros(shape, np.int32), np.ones(shape, np.float32)), *planes


def whiten(difference, science_plane, template_plane, kernel, convolved="template", **settings):
    return decorrelate(
        difference,
        kernel=kernel,
        science_variance=science_plane,
        template_variance=template_plane,
        convolved=convolved,
        psf=GaussianPsf.from_sigma(2.5),
        **settings,
    )


def test_whitening_kernel_has_unit_sum_and_the_known_spectrum():
    kernel = gaussian(1.5) * 1.2
    psi = compute_whitening_kernel([np.ones((1, 1)), kernel], [1.0, 0.5])
    assert psi.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(psi, psi[::-1, ::-1], atol=1e-12)
    spectrum = np.abs(np.fft.rfft2(psi, s=(256, 256)))
    power = np.abs(np.fft.rfft2(kernel, s=(256, 256))) ** 2
    wanted = np.sqrt((1.0 + 0.5 * 1.44) / (1.0 + 0.5 * power))
    # A thousandth of its absolute sum is cut off.
    np.testing.assert_allclose(spectrum, wanted, atol=3e-3 * np.abs(psi).sum())


@pytest.mark.parametrize("convolved", ["template", "science"])
def test_noise_becomes_white_and_its_variance_the_sum_of_both(rng, convolved):
    kernel = SpatialKernel.constant(gaussian(1.8) * 1.3, Box.from_shape((512, 512)))
    difference, *planes = subtract_noise(
        rng,
        kernel=kernel,
        science_variance=1.0,
        template_variance=100.0 if convolved == "template" else 0.02,
        convolved=convolved,
    )
    before = difference.image[20:-20, 20:-20]
    assert all(autocorrelation(before, 0, lag) > 0.2 for lag in (1, 2, 3))
    result = whiten(difference, *planes, kernel, convolved)
    after = result.difference.image[30:-30, 30:-30]
    error = 1.0 / np.sqrt(after.size)
    for lag in LAGS:
        assert abs(autocorrelation(after, *lag)) < 0.01 + 4 * error
    scale = 1.3**2
    v_u, v_c = planes if convolved == "template" else planes[::-1]
    expected = (v_u.mean() + v_c.mean() * scale) / (1.0 if convolved == "template" else scale)
    plane = result.difference.variance[30:-30, 30:-30]
    assert plane.mean() == pytest.approx(expected, rel=0.01)
    assert after.var() == pytest.approx(plane.mean(), rel=5 * np.sqrt(2) * error + 0.01)


@pytest.mark.parametrize("convolved", ["template", "science"])
@pytest.mark.parametrize("grid", ["turned", "shifted"])
def test_noise_of_a_warped_template_becomes_white_and_a_point_source_s_error_right(rng, grid, convolved):
    side = 400
    angle, shift = (np.radians(28.0), 0.0) if grid == "turned" else (0.0, 0.5)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    mapping = PixelMapping.from_affine(matrix, x=250.0 + shift, y=50.0 + shift, shape=(side, side))
    template_variance = 10.0 if convolved == "template" else 0.5
    drawn = rng.normal(0, np.sqrt(template_variance), (700, 700)).astype(np.float32)
    tile = MaskedImage(drawn, np.zeros((700, 700), np.int32), np.full((700, 700), template_variance, dtype=np.float32))
    template = warp_masked_image(tile, mapping)
    assert np.isfinite(template.image).all()
    science = rng.normal(0, 1.0, (side, side)).astype(np.float32)
    kernel = SpatialKernel.constant(gaussian(1.2), Box.from_shape((side, side)))
    if convolved == "template":
        image = science - convolve_image(template.image, kernel)
    else:
        image = convolve_image(science, kernel) - template.image
    difference = MaskedImage(image, np.zeros_like(template.mask), np.ones_like(image))
    planes = np.ones_like(image), template.variance
    widths = {}
    for noise_kernel in (None, compute_noise_kernel(mapping, "lanczos3")):
        result = whiten(difference, *planes, kernel, convolved, template_noise_kernel=noise_kernel)
        significance = compute_significance(result.difference, make_filter_kernel(result.psf), bad_bits=0)
        widths[noise_kernel is not None] = float(significance[30:-30, 30:-30].std())
    pulls = (result.difference.image / np.sqrt(result.difference.variance))[30:-30, 30:-30]
    error = 1.0 / np.sqrt(pulls.size)
    for lag in LAGS:
        assert abs(autocorrelation(pulls, *lag)) < 0.005 + 4 * error
    assert pulls.std() == pytest.approx(1.0, abs=0.005 + 4 * error / np.sqrt(2.0))
    # Independent values of an image filtered with a Gaussian of sigma 2.5: one in 4 pi sigma^2 pixels, of its square.
    assert widths[True] == pytest.approx(1.0, abs=4 * np.sqrt(4 * np.pi * 2.5**2) * error / np.sqrt(2.0))
    assert widths[False] > widths[True] + 0.02


@pytest.mark.parametrize(("science_variance", "template_variance"), [(0.04, 0.04), (0.08, 0.04), (0.04, 0.08)])
def test_reference_tolerances_of_decorrelation(rng, make_field, make_psf, science_variance, template_variance):
    """Variances of a matched pair before and after: the reference task's test_imageDecorrelation."""
    field = make_field(rng, n=50, flux=(100.0, 1000.0))
    science_psf, template_psf = make_psf(3.3), make_psf(2.2)
    science = field.observe(science_psf, noise=np.sqrt(science_variance), rng=rng)
    template = field.observe(template_psf, noise=np.sqrt(template_variance), rng=rng)
    match = match_images(
        science, template, science_psf=science_psf, template_psf=template_psf, star_x=field.x, star_y=field.y
    )
    expected = science_variance + template_variance
    inner = np.s_[20:-20, 20:-20]

    def pixel_variance(image):
        return (1.4826 * np.median(np.abs(image[inner] - np.median(image[inner])))) ** 2

    assert pixel_variance(match.difference.image) < expected
    assert match.difference.variance[inner].mean() < expected
    results = [
        decorrelate(
            match.difference,
            kernel=match.kernel,
            science_variance=science.variance,
            template_variance=template.variance,
            convolved=match.convolved,
            psf=match.psf,
            spatially_varying=varying,
        ).difference
        for varying in (False, True)
    ]
    scaled = science_variance + template_variance * match.kernel_sum**2
    for result in results:
        assert pixel_variance(result.image) == pytest.approx(expected, rel=0.05)
        assert result.variance[inner].mean() == pytest.approx(scaled, rel=0.02)
        assert pixel_variance(result.image) == pytest.approx(result.variance[inner].mean(), rel=0.05)
    assert results[0].variance[inner].mean() == pytest.approx(results[1].variance[inner].mean(), rel=0.03)


def test_fluxes_are_kept_and_the_psf_is_that_of_the_image(rng):
    box = Box.from_shape((128, 128))
    kernel = SpatialKernel.constant(gaussian(1.8), box)
    psf = GaussianPsf.from_sigma(2.5)
    image, where = psf.compute_stellar_image(x=60.3, y=70.8)
    plane = np.zeros(box.shape, dtype=np.float32)
    plane[where.slices] = 1000.0 * image
    ones = np.ones(box.shape, dtype=np.float32)
    difference = MaskedImage(plane, np.zeros(box.shape, np.int32), ones.copy())
    result = decorrelate(
        difference, kernel=kernel, science_variance=ones, template_variance=2 * ones, convolved="template", psf=psf
    )
    assert result.difference.image.sum() == pytest.approx(1000.0, rel=1e-4)
    star, where = result.psf.compute_stellar_image(x=60.3, y=70.8)
    # The PSF's image ends where that of the input did: what the wings hold beyond is renormalised.
    np.testing.assert_allclose(1000.0 * star, result.difference.image[where.slices], atol=2e-3 * 1000.0 * star.max())
    assert result.psf.compute_sigma() < psf.compute_sigma()


def test_a_varying_kernel_is_whitened_everywhere_only_when_followed(rng):
    box = Box.from_shape((600, 900))
    narrow, wide = gaussian(1.0), gaussian(3.0)
    kernel = SpatialKernel(np.array([(narrow + wide) / 2, (wide - narrow) / 2, 0 * wide]), 1, box)
    difference, *planes = subtract_noise(rng, kernel=kernel, science_variance=1.0, template_variance=4.0)
    followed = whiten(difference, *planes, kernel, spatially_varying=True).difference
    fixed = whiten(difference, *planes, kernel).difference
    left, right = np.s_[30:-30, 30:230], np.s_[30:-30, 670:870]
    for window in (left, right):
        assert abs(autocorrelation(followed.image[window], 0, 1)) < 0.04
        assert followed.image[window].var() == pytest.approx(followed.variance[window].mean(), rel=0.04)
    assert max(abs(autocorrelation(fixed.image[window], 0, 1)) for window in (left, right)) > 0.06


def test_variance_plane_holds_on_bright_stars(rng, make_psf):
    """Noise that follows the stars: pulls in their cores are as wide as elsewhere."""
    box = Box.from_shape((400, 400))
    star, stamp = make_psf(2.0), np.zeros((400, 400))
    for x in range(40, 380, 40):
        for y in range(40, 380, 40):
            image, where = star.compute_stellar_image(x=x, y=y)
            stamp[where.slices] += image
    kernel = SpatialKernel.constant(gaussian(1.5), box)
    pulls = []
    for _ in range(4):
        science_plane, template_plane = ((100 + 1e5 * stamp).astype(np.float32) for _ in range(2))
        science = rng.normal(0, np.sqrt(science_plane)).astype(np.float32)
        template = rng.normal(0, np.sqrt(template_plane)).astype(np.float32)
        difference = MaskedImage(
            science - convolve_image(template, kernel), np.zeros((400, 400), np.int32), np.ones((400, 400), np.float32)
        )
        result = whiten(difference, science_plane, template_plane, kernel).difference
        pulls.append(result.image / np.sqrt(result.variance))
    cores = np.array(pulls)[:, stamp > 0.5 * stamp.max()]
    away = stamp < 1e-4
    away[:20] = away[-20:] = away[:, :20] = away[:, -20:] = False
    sky = np.array(pulls)[:, away]
    assert cores.std() == pytest.approx(1.0, abs=4 / np.sqrt(2 * cores.size / 2) + 0.02)
    assert sky.std() == pytest.approx(1.0, abs=0.01)


def test_bad_pixels_do_not_leak_and_keep_their_values(rng):
    kernel = SpatialKernel.constant(gaussian(1.8), Box.from_shape((200, 200)))
    difference, *planes = subtract_noise(rng, kernel=kernel, science_variance=1.0, template_variance=10.0)
    clean = whiten(difference, *planes, kernel).difference
    difference.image[100, 100] = 1e7
    difference.mask[100, 100] = plane_bits("SAT")
    difference.image[50, 60:70] = np.nan
    difference.mask[50, 60:70] = plane_bits("NO_DATA")
    difference.variance[50, 60:70] = np.inf
    found = whiten(difference, *planes, kernel).difference
    assert found.image[100, 100] == 1e7
    assert np.isnan(found.image[50, 60:70]).all()
    assert np.isinf(found.variance[50, 60:70]).all()
    ok = found.mask == 0
    assert np.abs(found.image[ok] - clean.image[ok]).max() < 10 * np.sqrt(11.0)
    assert np.array_equal(found.mask, difference.mask)


def test_noise_free_reference_is_bounded_and_missing_variance_is_refused(rng):
    kernel = SpatialKernel.constant(gaussian(1.8), Box.from_shape((100, 100)))
    difference, science_plane, template_plane = subtract_noise(
        rng, kernel=kernel, science_variance=1e-12, template_variance=1.0
    )
    result = whiten(difference, science_plane, template_plane, kernel)
    assert np.isfinite(result.difference.image).all()
    with pytest.raises(ValueError, match="variance"):
        whiten(difference, np.full((100, 100), np.nan, dtype=np.float32), template_plane, kernel)


def test_input_is_not_modified_and_the_psf_can_be_sent_to_another_process(rng):
    kernel = SpatialKernel.constant(gaussian(1.8), Box.from_shape((100, 100)))
    difference, *planes = subtract_noise(rng, kernel=kernel, science_variance=1.0, template_variance=1.0)
    before = difference.copy()
    result = whiten(difference, *planes, kernel)
    assert np.array_equal(before.image, difference.image)
    assert np.array_equal(before.variance, difference.variance)
    again = pickle.loads(pickle.dumps(result.psf))
    np.testing.assert_array_equal(again.compute_kernel_image(x=5, y=5), result.psf.compute_kernel_image(x=5, y=5))


def test_estimated_and_propagated_variances_agree_on_the_sky_only(rng):
    kernel = SpatialKernel.constant(gaussian(1.8), Box.from_shape((200, 200)))
    difference, science_plane, template_plane = subtract_noise(
        rng, kernel=kernel, science_variance=1.0, template_variance=2.0
    )
    template_plane[100, 100] = 1e4
    estimated, propagated = (
        whiten(
            difference,
            science_plane,
            template_plane,
            kernel,
            config=DecorrelationConfig(complete_var_plane_propagation=complete),
        ).difference.variance
        for complete in (False, True)
    )
    # The sum of the squares is the same; cutting off the kernels' rims costs a part in a thousand.
    np.testing.assert_allclose(estimated[:60], propagated[:60], rtol=3e-3)
    x, y = kernel.centre
    through = fftconvolve(
        compute_whitening_kernel([np.ones((1, 1)), kernel.compute_image(x=x, y=y)], [1.0, 2.0]),
        kernel.compute_image(x=x, y=y),
    )
    half = through.shape[0] // 2
    sky = propagated[:60].mean()
    assert propagated[100, 100] - sky == pytest.approx(1e4 * through[half, half] ** 2, rel=0.01)
    assert propagated[100, 103] - sky == pytest.approx(1e4 * through[half, half + 3] ** 2, rel=0.01)
    assert estimated[100, 100] - sky == pytest.approx(1e4 * (through**2).sum(), rel=0.01)


def make_score(field, rng, *, science_psf, template_psf, noise=(1.0, 1.0), extra=0.0, gaussian_filter=False):
    """A pair of one star field, pre-convolved, matched and made a score; `extra` is added to the science image."""
    science = field.observe(science_psf, noise=noise[0], rng=rng, background=extra)
    template = field.observe(template_psf, noise=noise[1], rng=rng)
    filtered = preconvolve(science, science_psf, gaussian=gaussian_filter)
    match = match_images(
        filtered.masked_image,
        template,
        science_psf=filtered.psf,
        template_psf=template_psf,
        star_x=field.x,
        star_y=field.y,
        # The two share their background; fitting it would add its own error to the mean.
        config=AlardLuptonConfig(fit_for_background=False),
    )
    return decorrelate_score(
        match.difference,
        kernel=match.kernel,
        preconvolution_kernel=filtered.kernel,
        science_variance=science.variance,
        template_variance=template.variance,
        psf=science_psf,
    )


@pytest.mark.parametrize("template_sigma", [2.0, 2.8])
def test_score_has_the_noise_of_the_optimal_filter(rng, make_field, make_psf, template_sigma):
    """The reference task's tolerances for a pre-convolved score, its significance N(0, 1)."""
    field = make_field(rng, shape=(400, 400), n=40, flux=(500.0, 1000.0))
    psf = make_psf(2.4)
    score = make_score(field, rng, science_psf=psf, template_psf=make_psf(template_sigma))
    good = score.difference.mask == 0
    assert np.isfinite(score.difference.image).all()
    area = 1.0 / (psf.compute_kernel_image(x=0, y=0) ** 2).sum()
    values = score.difference.image[good]
    # So many independent values: as many as PSF areas, fewer for the wider filter.
    n_independent = values.size / area
    assert values.mean() == pytest.approx(0.0, abs=5.0 * np.sqrt(2.0) / np.sqrt(values.size))
    assert values.std() == pytest.approx(np.sqrt(2.0 / area), rel=0.1)
    significance = values / np.sqrt(score.difference.variance[good])
    assert significance.std() == pytest.approx(1.0, abs=5.0 / np.sqrt(2.0 * n_independent))


def test_scores_of_sharp_and_wide_templates_are_the_same_but_for_noise(rng, make_field, make_psf):
    """The reference task's tolerance for the deviation of two scores that share no noise."""
    psf = make_psf(2.4)
    field = make_field(rng, shape=(400, 400), n=40, flux=(500.0, 1000.0))
    first, second = (
        make_score(field, rng, science_psf=psf, template_psf=make_psf(sigma), noise=(1e-3, 1.0)).difference
        for sigma in (2.8, 2.0)
    )
    good = (first.mask | second.mask) == 0
    area = 1.0 / (psf.compute_kernel_image(x=0, y=0) ** 2).sum()
    delta = (first.image - second.image)[good]
    assert delta.mean() == pytest.approx(0.0, abs=5.0 * np.sqrt(2.0 / delta.size * area))
    assert delta.std() == pytest.approx(np.sqrt(2.0 / area), rel=0.1)


@pytest.mark.parametrize("gaussian_filter", [False, True])
def test_score_of_a_source_is_that_of_the_optimal_filter(rng, make_field, make_psf, gaussian_filter):
    """Signal without noise: significance is flux sqrt(sum(P_D^2)) / sigma, of the whitened difference's PSF P_D."""
    psf, template_psf = make_psf(2.4), make_psf(2.0)
    field = make_field(rng, shape=(256, 256), n=25, flux=(2000.0, 5000.0))
    flux = 800.0
    source = np.zeros((256, 256))
    image, box = psf.compute_stellar_image(x=128, y=128)
    source[box.slices] = flux * image
    settings = {"science_psf": psf, "template_psf": template_psf, "gaussian_filter": gaussian_filter}
    state = rng.bit_generator.state
    score = make_score(field, rng, **settings)
    rng.bit_generator.state = state
    with_source = make_score(field, rng, extra=source, **settings)
    # The same noise in both: what differs is the source.
    found = (with_source.difference.image - score.difference.image)[128, 128]
    significance = found / np.sqrt(score.difference.variance[128, 128])
    # kappa, the template's kernel without the filter, from the widths that are known here.
    kappa = gaussian(np.sqrt(2.4**2 - 2.0**2))
    psi = compute_whitening_kernel([np.ones((1, 1)), kappa], [1.0, 1.0])
    p_d = fftconvolve(psi, psf.compute_kernel_image(x=0, y=0))
    wanted = flux * np.sqrt((p_d**2).sum() / 2.0)
    assert significance == pytest.approx(wanted, rel=0.01)
    peak = score.psf.compute_kernel_image(x=128, y=128).max()
    assert found / peak == pytest.approx(flux, rel=0.01)


def test_a_score_s_psf_is_that_of_its_stars(rng, make_psf):
    box = Box.from_shape((160, 160))
    psf = make_psf(2.0)
    filtered = psf.compute_kernel_image(x=0, y=0)
    kernel = SpatialKernel.constant(fftconvolve(filtered, gaussian(1.2)), box)
    plane = np.zeros(box.shape, dtype=np.float32)
    image, where = psf.compute_stellar_image(x=80.3, y=79.6)
    plane[where.slices] = 1000.0 * image
    ones = np.ones(box.shape, dtype=np.float32)
    score = MaskedImage(
        convolve_image(plane, SpatialKernel.constant(filtered, box)), np.zeros(box.shape, np.int32), ones
    )
    result = decorrelate_score(
        score,
        kernel=kernel,
        preconvolution_kernel=filtered,
        science_variance=ones,
        template_variance=3 * ones,
        psf=psf,
    )
    drawn, where = result.psf.compute_stellar_image(x=80.3, y=79.6)
    np.testing.assert_allclose(1000.0 * drawn, result.difference.image[where.slices], atol=2e-3 * 1000.0 * drawn.max())
    assert result.difference.image.sum() == pytest.approx(1000.0, rel=1e-3)


def test_score_where_the_kernel_varies_has_unit_significance_everywhere(rng, make_psf):
    box = Box.from_shape((500, 800))
    filtered = make_psf(2.0).compute_kernel_image(x=0, y=0)
    narrow, wide = (fftconvolve(filtered, gaussian(sigma)) for sigma in (0.8, 2.4))
    kernel = SpatialKernel(np.array([(narrow + wide) / 2, (wide - narrow) / 2, 0 * wide]), 1, box)
    science, template = (rng.normal(0.0, noise, box.shape).astype(np.float32) for noise in (1.0, 1.5))
    image = convolve_image(science, SpatialKernel.constant(filtered, box)) - convolve_image(template, kernel)
    score = MaskedImage(image, np.zeros(box.shape, np.int32), np.ones(box.shape, np.float32))
    result = decorrelate_score(
        score,
        kernel=kernel,
        preconvolution_kernel=filtered,
        science_variance=np.ones(box.shape, np.float32),
        template_variance=np.full(box.shape, 2.25, np.float32),
        psf=make_psf(2.0),
        spatially_varying=True,
    )
    significance = result.difference.image / np.sqrt(result.difference.variance)
    for window in (np.s_[30:-30, 30:230], np.s_[30:-30, 570:770]):
        # One independent value per filter area of about 8 pi sigma^2.
        n_independent = significance[window].size / (8 * np.pi * 2.0**2)
        assert significance[window].std() == pytest.approx(1.0, abs=5.0 / np.sqrt(2.0 * n_independent))


def test_a_variance_plane_without_a_usable_pixel_is_named(rng):
    kernel = SpatialKernel.constant(gaussian(1.8), Box.from_shape((100, 100)))
    difference, science_plane, template_plane = subtract_noise(
        rng, kernel=kernel, science_variance=1.0, template_variance=1.0
    )
    with pytest.raises(UnusableExposure) as caught:
        whiten(difference, science_plane, 0 * template_plane, kernel)
    assert caught.value.args[:2] == ("template", "variance")
