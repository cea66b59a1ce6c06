import numpy as np
import pytest

from alertprod.errors import BadSubtraction, InsufficientKernelSources
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.subtraction.alard_lupton import choose_direction, match_images
from alertprod.subtraction.config import AlardLuptonConfig
from alertprod.subtraction.decorrelate import decorrelate
from alertprod.subtraction.spatial import spatial_terms


def match(science, template, science_psf, template_psf, field, **settings):
    convolve = settings.pop("convolve", "template")
    return match_images(
        science,
        template,
        science_psf=science_psf,
        template_psf=template_psf,
        star_x=field.x,
        star_y=field.y,
        config=AlardLuptonConfig(**settings),
        convolve=convolve,
    )


def inner(image, rim=12):
    return image[rim:-rim, rim:-rim]


def robust_std(values):
    return 1.4826 * np.median(np.abs(values - np.median(values)))


def mean_error(image, sigma):
    return sigma / np.sqrt(image.size)


# --- analytic --------------------------------------------------------------------------------------------------------


def test_kernel_between_two_gaussians_is_the_gaussian_of_the_difference_in_quadrature(rng, make_field, make_psf):
    field = make_field(rng, n=30, flux=(1e5, 2e5))
    science = field.observe(make_psf(2.8), noise=0.1, rng=rng, flux_scale=1.3)
    template = field.observe(make_psf(2.0), noise=0.1, rng=rng)
    result = match(science, template, make_psf(2.8), make_psf(2.0), field)
    half = result.kernel.size // 2
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    wanted = np.exp(-0.5 * (u**2 + v**2) / (2.8**2 - 2.0**2))
    wanted *= 1.3 / wanted.sum()
    for x, y in [(40, 50), (128, 128), (210, 200)]:
        # Signal to noise is 1e5 a star, but the kernel is a fourfold narrower detail than a star: 2 % of its peak.
        assert np.abs(result.kernel(x, y) - wanted).max() < 0.02 * wanted.max()
    assert result.mode == "convolution"


@pytest.mark.parametrize("convolve", ["template", "science"])
def test_kernel_sum_is_the_flux_ratio_of_the_two_images(rng, make_field, make_psf, convolve):
    field = make_field(rng, n=30, flux=(1e5, 2e5))
    sharp, broad = make_psf(2.0), make_psf(2.8)
    science_psf, template_psf = (broad, sharp) if convolve == "template" else (sharp, broad)
    science = field.observe(science_psf, noise=0.1, rng=rng, flux_scale=1.3)
    template = field.observe(template_psf, noise=0.1, rng=rng)
    result = match(science, template, science_psf, template_psf, field, convolve=convolve)
    expected = 1.3 if convolve == "template" else 1 / 1.3
    # Aperture photometry of 23 x 23 pixels: 0.1 * 23 / 1e5 a star; the model itself is good to a few 1e-4.
    assert result.kernel_sum == pytest.approx(expected, rel=5e-4)
    corner = result.kernel.kernel_sum(x=3.0, y=250.0)
    assert corner == pytest.approx(result.kernel_sum, rel=1e-9)


@pytest.mark.parametrize("convolve", ["template", "science"])
def test_background_is_recovered_within_its_errors_and_removed(rng, make_field, make_psf, convolve):
    field = make_field(rng, n=80, shape=(400, 400), flux=(3000.0, 6000.0))
    truth = np.array([1.0, 1.2, 1.4, 1.6, 1.8, 2.2])
    y, x = np.mgrid[0:400, 0:400]
    template = field.observe(make_psf(2.4), noise=0.1, rng=rng)
    terms = spatial_terms(2, template.box, x=x.ravel(), y=y.ravel())
    background = (terms @ truth).reshape(400, 400)
    science = field.observe(make_psf(2.4), noise=1.0, rng=rng, background=background)
    result = match(science, template, make_psf(2.4), make_psf(2.4), field, convolve=convolve)
    pulls = (result.background.coefficients - truth) / result.background.coefficient_errors
    assert np.abs(pulls).max() < 5
    assert result.background.coefficient_errors.max() < 0.2
    pulls = inner(result.difference.image / np.sqrt(result.difference.variance))
    assert pulls.std() == pytest.approx(1.0, rel=0.05)
    assert abs(pulls.mean()) < 0.1


def test_a_kernel_that_varies_is_followed(rng, make_field, make_psf):
    field = make_field(rng, shape=(500, 500), n=120, flux=(1e4, 2e4))
    template = field.observe(make_psf(2.0), noise=0.1, rng=rng)
    left, right = field.draw(make_psf(2.4)), field.draw(make_psf(2.8))
    share = np.linspace(0, 1, 500)[None, :]
    science = MaskedImage(
        (left * (1 - share) + right * share + rng.normal(0, 1, left.shape)).astype(np.float32),
        template.mask.copy(),
        np.ones_like(template.variance),
    )
    followed = match(science, template, make_psf(2.6), make_psf(2.0), field)
    stiff = match(
        science, template, make_psf(2.6), make_psf(2.0), field, spatial_kernel_order=0, max_spatial_kernel_order=0
    )
    assert inner(followed.difference.image).std() < 1.05
    assert inner(stiff.difference.image).std() > 1.2


@pytest.mark.parametrize(("power", "order"), [(0, 0), (1, 1), (2, 2), (3, 3)])
def test_the_order_is_what_the_stars_show(rng, make_field, make_psf, power, order):
    field = make_field(rng, shape=(500, 500), n=120, flux=(1e4, 2e4))
    template = field.observe(make_psf(2.0), noise=0.1, rng=rng)
    narrow, wide = field.draw(make_psf(2.3)), field.draw(make_psf(2.9))
    share = np.linspace(-1, 1, 500)[None, :] ** power * (1.0 if power == 2 else 0.5) + (0.5 if power == 1 else 0.0)
    science = MaskedImage(
        (narrow * (1 - share) + wide * share + rng.normal(0, 1, narrow.shape)).astype(np.float32),
        template.mask.copy(),
        np.ones_like(template.variance),
    )
    result = match(science, template, make_psf(2.6), make_psf(2.0), field)
    assert result.kernel.order == order
    assert inner(result.difference.image).std() < 1.05


# --- the reference task's own tolerances (its test_subtractTask) ------------------------------------------------------


@pytest.mark.parametrize("sigma", [2.0, 2.4, 2.8])
def test_equal_psfs_leave_noise_of_the_two_images(rng, make_field, make_psf, sigma):
    field = make_field(rng)
    science = field.observe(make_psf(sigma), noise=1.0, rng=rng)
    template = field.observe(make_psf(sigma), noise=1.0, rng=rng)
    result = match(science, template, make_psf(sigma), make_psf(sigma), field, fit_for_background=False)
    image = result.difference.image
    assert np.isfinite(image).all()
    assert abs(inner(image).mean()) < 5 * mean_error(inner(image), np.sqrt(2))
    # Sharp kernels let nearly all of the template's noise through; 10 % is the reference's own margin.
    assert robust_std(inner(image)) == pytest.approx(np.sqrt(inner(result.difference.variance).mean()), rel=0.05)


@pytest.mark.parametrize(
    ("science_noise", "template_noise", "sigma_science", "sigma_template"),
    [(1.0, 1.0, 2.4, 2.0), (1.0, 0.1, 2.4, 2.0), (0.1, 0.1, 2.4, 2.0), (1.0, 0.1, 2.0, 2.4)],
)
def test_auto_mode_is_the_forced_direction_bit_by_bit(
    rng, make_field, make_psf, science_noise, template_noise, sigma_science, sigma_template
):
    field = make_field(rng)
    psfs = make_psf(sigma_science), make_psf(sigma_template)
    science = field.observe(psfs[0], noise=science_noise, rng=rng)
    template = field.observe(psfs[1], noise=template_noise, rng=rng)
    auto = match(science, template, *psfs, field, convolve="auto")
    forced = match(science, template, *psfs, field, convolve=auto.convolved)
    assert auto.convolved == ("template" if sigma_template < sigma_science else "science")
    assert np.array_equal(auto.difference.image, forced.difference.image)
    assert np.array_equal(auto.difference.variance, forced.difference.variance)


@pytest.mark.parametrize("sigma", [2.0, 2.4, 2.8])
def test_both_directions_give_the_plain_difference_where_psfs_are_equal(rng, make_field, make_psf, sigma):
    field = make_field(rng)
    psf = make_psf(sigma)
    science, template = field.observe(psf, noise=0.1, rng=rng), field.observe(psf, noise=0.1, rng=rng)
    plain = science.image - template.image
    by_template = match(science, template, psf, psf, field, convolve="template").difference
    by_science = match(science, template, psf, psf, field, convolve="science").difference
    assert np.abs(inner(by_template.image - plain)).max() < 5 * 0.1
    assert np.abs(inner(by_science.image - plain)).max() < 5 * 0.1
    assert np.abs(inner(by_template.image - by_science.image)).max() < 10 * 0.1
    assert np.abs(by_template.variance - by_science.variance).max() < 10 * 0.1
    assert np.array_equal(inner(by_template.mask, 20), inner(by_science.mask, 20))


@pytest.mark.parametrize(("sigma_science", "sigma_template"), [(2.4, 2.0), (2.0, 2.4)])
@pytest.mark.parametrize(("science_noise", "template_noise"), [(1.0, 1.0), (1.0, 0.1), (0.1, 0.1)])
def test_sharper_and_broader_templates_leave_the_noise_of_both_images(
    rng, make_field, make_psf, sigma_science, sigma_template, science_noise, template_noise
):
    """The template is convolved in either case: to broaden it, and to sharpen it."""
    field = make_field(rng)
    psfs = make_psf(sigma_science), make_psf(sigma_template)
    science = field.observe(psfs[0], noise=science_noise, rng=rng)
    template = field.observe(psfs[1], noise=template_noise, rng=rng)
    result = match(science, template, *psfs, field, fit_for_background=False)
    difference = decorrelate(
        result.difference,
        kernel=result.kernel,
        science_variance=science.variance,
        template_variance=template.variance,
        convolved=result.convolved,
        psf=result.psf,
    ).difference
    expected = np.hypot(science_noise, template_noise)
    image = inner(difference.image, 20)
    assert np.isfinite(difference.image).all()
    assert abs(image.mean()) < 5 * mean_error(image, expected)
    assert inner(difference.variance, 20).mean() == pytest.approx(expected**2, rel=0.1)
    assert robust_std(image) == pytest.approx(expected, rel=0.1)


def test_no_star_at_all_raises(make_image, make_psf):
    image = make_image(np.zeros((100, 100)), 1.0)
    with pytest.raises(InsufficientKernelSources):
        match_images(
            image,
            image,
            science_psf=make_psf(2.0),
            template_psf=make_psf(2.0),
            star_x=np.zeros(0),
            star_y=np.zeros(0),
        )


def test_stars_without_light_are_not_kernel_stars(make_image, make_psf, make_field, rng):
    image = make_image(np.zeros((256, 256)), 1.0)
    field = make_field(rng)
    with pytest.raises(InsufficientKernelSources):
        match(image, image, make_psf(2.0), make_psf(2.0), field)


def test_negative_kernel_sums_are_refused(pair):
    science, template, science_psf, template_psf, field = pair
    science.image *= -1
    with pytest.raises((BadSubtraction, InsufficientKernelSources)):
        match(science, template, science_psf, template_psf, field)


def test_too_few_stars_raise_with_their_numbers(rng, make_field, make_psf):
    field = make_field(rng, shape=(64, 64), n=10)
    image = field.observe(make_psf(2.4), noise=1.0, rng=rng)
    with pytest.raises(InsufficientKernelSources) as raised:
        match(image, image, make_psf(2.4), make_psf(2.4), field)
    assert raised.value.n_required == 3
    assert raised.value.n_sources < 3


# --- invariances ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(rng, make_field, make_psf):
    field = make_field(rng, n=40, flux=(2000.0, 4000.0))
    science = field.observe(make_psf(2.6), noise=1.0, rng=rng)
    template = field.observe(make_psf(2.0), noise=0.3, rng=rng)
    return science, template, make_psf(2.6), make_psf(2.0), field


def test_swapping_the_images_in_auto_mode_flips_the_sign(pair):
    science, template, science_psf, template_psf, field = pair
    straight = match(science, template, science_psf, template_psf, field, convolve="auto")
    swapped = match(template, science, template_psf, science_psf, field, convolve="auto")
    assert (straight.convolved, swapped.convolved) == ("template", "science")
    # Each difference is on the scale of its own science image.
    expected = -straight.difference.image / np.float32(straight.kernel_sum)
    np.testing.assert_allclose(swapped.difference.image, expected, atol=1e-3)


@pytest.mark.parametrize("factor", [0.01, 250.0])
def test_difference_follows_the_flux_scale_of_the_science_image_alone(pair, factor):
    science, template, science_psf, template_psf, field = pair
    plain = match(science, template, science_psf, template_psf, field).difference

    def scaled(image, by):
        return MaskedImage(image.image * np.float32(by), image.mask, image.variance * np.float32(by**2))

    by_science = match(scaled(science, factor), template, science_psf, template_psf, field).difference
    by_template = match(science, scaled(template, factor), science_psf, template_psf, field).difference
    np.testing.assert_allclose(by_science.image / factor, plain.image, atol=2e-3)
    np.testing.assert_allclose(by_template.image, plain.image, atol=2e-3)
    np.testing.assert_allclose(by_template.variance, plain.variance, rtol=1e-3)


def test_transposed_images_give_the_transposed_difference(pair, make_field):
    science, template, science_psf, template_psf, field = pair

    def transposed(image):
        return MaskedImage(image.image.T.copy(), image.mask.T.copy(), image.variance.T.copy())

    turned = type(field)(field.shape[::-1], field.y, field.x, field.flux)
    plain = match(science, template, science_psf, template_psf, field).difference
    other = match(transposed(science), transposed(template), science_psf, template_psf, turned).difference
    np.testing.assert_allclose(other.image.T, plain.image, atol=2e-3)


def test_a_shift_by_whole_pixels_is_taken_up_by_the_kernel(rng, make_field, make_psf):
    field = make_field(rng, n=40, flux=(2000.0, 4000.0))
    moved = type(field)(field.shape, field.x + 1.0, field.y, field.flux)
    science = field.observe(make_psf(2.6), noise=1.0, rng=rng)
    template = moved.observe(make_psf(2.0), noise=0.1, rng=rng)
    result = match(science, template, make_psf(2.6), make_psf(2.0), field)
    kernel = result.kernel(128, 128)
    half = kernel.shape[0] // 2
    offset = np.arange(-half, half + 1)
    assert (kernel.sum(axis=0) @ offset) / kernel.sum() == pytest.approx(-1.0, abs=0.03)
    assert inner(result.difference.image).std() == pytest.approx(1.0, rel=0.03)


def test_images_moved_over_the_grid_give_the_same_difference(rng, make_field, make_psf):
    field = make_field(rng, shape=(300, 300), n=40, flux=(2000.0, 4000.0))
    science = field.observe(make_psf(2.6), noise=1.0, rng=rng)
    template = field.observe(make_psf(2.0), noise=0.3, rng=rng)

    def moved(image):
        return MaskedImage(
            *(np.roll(plane, (30, 20), axis=(0, 1)) for plane in (image.image, image.mask, image.variance))
        )

    one_cell = {"size_cell_x": 1000, "size_cell_y": 1000, "n_star_per_cell": -1}
    away = (field.x > 60) & (field.x < 220) & (field.y > 60) & (field.y < 220)
    stars = type(field)(field.shape, field.x[away], field.y[away], field.flux[away])
    later = type(field)(field.shape, stars.x + 20, stars.y + 30, stars.flux)
    plain = match(science, template, make_psf(2.6), make_psf(2.0), stars, **one_cell).difference.image
    other = match(moved(science), moved(template), make_psf(2.6), make_psf(2.0), later, **one_cell).difference.image
    np.testing.assert_allclose(
        np.roll(other, (-30, -20), axis=(0, 1))[40:240, 40:240], plain[40:240, 40:240], atol=5e-3
    )


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convolve", ["template", "science"])
def test_pixels_show_the_variance_of_the_plane(rng, make_field, make_psf, convolve):
    field = make_field(rng, shape=(400, 400), n=60, flux=(2000.0, 4000.0))
    sharp, broad = make_psf(2.0), make_psf(2.8)
    psfs = (broad, sharp) if convolve == "template" else (sharp, broad)
    science = field.observe(psfs[0], noise=1.0, rng=rng, flux_scale=2.0)
    template = field.observe(psfs[1], noise=1.0, rng=rng)
    result = match(science, template, *psfs, field, convolve=convolve)
    pulls = inner(result.difference.image / np.sqrt(result.difference.variance))
    # Correlated over a kernel of sigma 2: a tenth of the pixels are independent; the fit takes a little.
    assert abs(pulls.mean()) < 0.05
    assert pulls.std() == pytest.approx(1.0, abs=0.02)


def test_residuals_on_stars_are_noise(rng, make_field, make_psf):
    field = make_field(rng, shape=(400, 400), n=60, flux=(5000.0, 50000.0))
    noise_free = field.draw(make_psf(2.6)), field.draw(make_psf(2.0))
    variances = 25.0 + noise_free[0], 2.5 + 0.1 * noise_free[1]
    science, template = (
        MaskedImage(
            rng.normal(image, np.sqrt(variance)).astype(np.float32),
            np.zeros(image.shape, np.int32),
            variance.astype(np.float32),
        )
        for image, variance in zip(noise_free, variances, strict=True)
    )
    result = match(science, template, make_psf(2.6), make_psf(2.0), field)
    pulls = result.difference.image / np.sqrt(result.difference.variance)
    on_stars = np.concatenate(
        [pulls[int(y) - 5 : int(y) + 7, int(x) - 5 : int(x) + 7].ravel() for x, y in zip(field.x, field.y, strict=True)]
    )
    assert np.sqrt((on_stars**2).mean()) == pytest.approx(1.0, abs=5 / np.sqrt(2 * on_stars.size) + 0.02)
    assert len(result.used) > 30
    assert np.sqrt((result.residual_rms**2).mean()) == pytest.approx(1.0, abs=0.05)


def test_variable_stars_are_thrown_out_and_keep_their_change(rng, make_field, make_psf):
    field = make_field(rng, shape=(400, 400), n=60, flux=(5000.0, 10000.0))
    changed = type(field)(field.shape, field.x, field.y, field.flux * np.where(np.arange(60) < 6, 1.5, 1.0))
    science = changed.observe(make_psf(2.6), noise=1.0, rng=rng)
    template = field.observe(make_psf(2.0), noise=0.3, rng=rng)
    result = match(science, template, make_psf(2.6), make_psf(2.0), field)
    assert not set(result.used) & set(range(6))
    assert result.kernel_sum == pytest.approx(1.0, abs=0.005)


def test_variance_planes_that_are_too_small_do_not_cost_all_stars(pair):
    science, template, science_psf, template_psf, field = pair
    for image in (science, template):
        image.variance /= 25.0
    result = match(science, template, science_psf, template_psf, field)
    usable = match(*(image.copy() for image in (science, template)), science_psf, template_psf, field)
    assert len(result.used) > 15
    assert len(result.rejected) == len(usable.rejected)


# --- bad pixels -------------------------------------------------------------------------------------------------------


def test_masked_pixels_do_not_bias(pair):
    science, template, science_psf, template_psf, field = pair
    clean = match(science, template, science_psf, template_psf, field)
    science.image[:, 100] = 1e6
    science.mask[:, 100] |= plane_bits("BAD")
    template.image[60, :] = np.nan
    template.mask[60, :] |= plane_bits("NO_DATA")
    result = match(science, template, science_psf, template_psf, field)
    difference = result.difference
    good = (difference.mask & plane_bits("BAD", "NO_DATA", "EDGE")) == 0
    change = (difference.image - clean.difference.image)[good]
    # Fewer stars make another kernel; what must not be seen is the column or the hole.
    assert np.abs(change).max() < 1.0
    assert abs(change.mean()) < 0.05
    assert result.kernel_sum == pytest.approx(clean.kernel_sum, abs=0.01)


def test_mask_bits_of_the_convolved_image_spread_and_the_others_do_not(pair):
    science, template, science_psf, template_psf, field = pair
    science.mask[128, 128] |= plane_bits("CR")
    template.mask[140, 60] |= plane_bits("BAD")
    result = match(science, template, science_psf, template_psf, field)
    mask = result.difference.mask
    assert ((mask & plane_bits("CR")) != 0).sum() == 1
    spread = np.argwhere(mask & plane_bits("BAD"))
    reach = np.hypot(*(spread - [140, 60]).T).max()
    assert reach == pytest.approx(result.kernel.compute_extent(1e-3), abs=1e-9)
    assert 3 < reach <= np.hypot(1, 1) * (result.kernel.size // 2)


def test_rim_made_up_by_the_convolution_is_edge_and_detections_are_not_inherited(pair):
    science, template, science_psf, template_psf, field = pair
    science.mask |= plane_bits("DETECTED")
    result = match(science, template, science_psf, template_psf, field)
    edge = (result.difference.mask & plane_bits("EDGE")) != 0
    width = int(np.ceil(result.kernel.compute_extent(1e-3)))
    assert edge[:width].all()
    assert edge[:, -width:].all()
    assert not edge[width:-width, width:-width].any()
    assert not (result.difference.mask & plane_bits("DETECTED")).any()


def test_pixels_without_data_stay_without(pair):
    science, template, science_psf, template_psf, field = pair
    science.image[100:110, 30:40] = np.nan
    template.image[150:160, 30:40] = np.nan
    difference = match(science, template, science_psf, template_psf, field).difference
    for window in (np.s_[100:110, 30:40], np.s_[150:160, 30:40]):
        assert np.isnan(difference.image[window]).all()
        assert np.isinf(difference.variance[window]).all()
        assert (difference.mask[window] & plane_bits("NO_DATA")).all()
    assert np.isnan(difference.image).sum() == 200


def test_inputs_are_not_modified(pair):
    science, template, science_psf, template_psf, field = pair
    before = [image.copy() for image in (science, template)]
    for convolve in ("template", "science"):
        match(science, template, science_psf, template_psf, field, convolve=convolve)
    for image, copy in zip((science, template), before, strict=True):
        assert np.array_equal(image.image, copy.image)
        assert np.array_equal(image.mask, copy.mask)
        assert np.array_equal(image.variance, copy.variance)


def test_images_of_different_shapes_are_refused(pair):
    science, template, science_psf, template_psf, field = pair
    with pytest.raises(ValueError, match="shape"):
        match(science.cutout(science.box.grown(-1)), template, science_psf, template_psf, field)


def test_few_stars_lower_the_orders(rng, make_field, make_psf):
    field = make_field(rng, n=5, flux=(2e4, 4e4))
    science = field.observe(make_psf(2.6), noise=1.0, rng=rng)
    template = field.observe(make_psf(2.0), noise=0.3, rng=rng)
    result = match(science, template, make_psf(2.6), make_psf(2.0), field)
    assert result.kernel.order == 0
    assert result.background.order == 0


@pytest.mark.parametrize(
    ("science_sigma", "template_sigma", "expected"),
    [(2.0, 2.4, "science"), (2.4, 2.0, "template"), (2.0, 2.0, "template")],
)
def test_auto_mode_convolves_the_sharper_image(make_psf, science_sigma, template_sigma, expected):
    direction = choose_direction("auto", science_psf=make_psf(science_sigma), template_psf=make_psf(template_sigma))
    assert direction == expected
