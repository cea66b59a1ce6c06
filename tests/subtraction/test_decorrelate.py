import pickle

import numpy as np
import pytest

from alertprod.geometry.box import Box
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.analytic import GaussianPsf
from alertprod.subtraction.alard_lupton import match_images
from alertprod.subtraction.convolve import convolve_image
from alertprod.subtraction.decorrelate import compute_whitening_kernel, decorrelate
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
