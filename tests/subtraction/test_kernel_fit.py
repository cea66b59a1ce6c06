from dataclasses import replace

import numpy as np
import pytest
from scipy.signal import convolve2d, fftconvolve

from alertprod.errors import InsufficientKernelSources
from alertprod.images.mask import plane_bits
from alertprod.psf.model import PointSpreadFunction
from alertprod.subtraction.alard_lupton import match_images
from alertprod.subtraction.cell_set import CandidateStatus
from alertprod.subtraction.config import AlardLuptonConfig, DeltaFunctionConfig
from alertprod.subtraction.kernel_fit import fit_kernel, solve_stars
from alertprod.subtraction.spatial import count_terms, spatial_terms

SMALL = {"scale_by_fwhm": False, "kernel_size": 13}
DELTAS = {"scale_by_fwhm": False, "kernel_size": 13}


def odd_kernel(half: int = 6) -> np.ndarray:
    """Return a kernel with a second lobe, of sum 1.2, that no few Gaussians about the origin add up to."""
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    kernel = np.exp(-0.5 * (((u - 1.0) / 0.9) ** 2 + ((v + 0.5) / 1.3) ** 2))
    kernel += 0.5 * np.exp(-0.5 * (((u + 2.5) / 0.9) ** 2 + ((v - 2.0) / 0.9) ** 2))
    return 1.2 * kernel / kernel.sum()


@pytest.fixture
def odd_pair(rng, make_field, make_psf, make_image):
    """A bright field whose science image is its template through `odd_kernel`."""
    field = make_field(rng, shape=(224, 224), n=22, flux=(2e4, 8e4))
    template = field.observe(make_psf(1.8), noise=1.0, rng=rng)
    drawn = fftconvolve(field.draw(make_psf(1.8)), odd_kernel(), mode="same")
    science = make_image(drawn + rng.normal(0.0, 3.0, field.shape), 9.0)
    return science, template, make_psf(2.4), make_psf(1.8), field


@pytest.fixture
def pair(rng, make_field, make_psf):
    field = make_field(rng, shape=(400, 400), n=40, flux=(3e3, 3e4))
    science = field.observe(make_psf(2.4), noise=1.0, rng=rng, background=3.0)
    template = field.observe(make_psf(1.9), noise=0.5, rng=rng)
    return science, template, make_psf(2.4), make_psf(1.9), field


def fit(pair, config):
    science, template, science_psf, template_psf, field = pair
    return fit_kernel(
        template,
        science,
        convolved_psf=template_psf,
        reference_psf=science_psf,
        star_x=field.x,
        star_y=field.y,
        star_flux=field.flux,
        config=config,
    )


def match(pair, config):
    science, template, science_psf, template_psf, field = pair
    return match_images(
        science,
        template,
        science_psf=science_psf,
        template_psf=template_psf,
        star_x=field.x,
        star_y=field.y,
        star_flux=field.flux,
        config=config,
    )


def relative_error(kernel, truth):
    side = max(len(kernel), len(truth))
    found, wanted = (np.pad(image, (side - len(image)) // 2) for image in (kernel, truth))
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


# --- what costs a star its place ---------------------------------------------------------------------------------------


def test_a_sky_that_no_polynomial_follows_costs_no_star_but_a_variable_one_goes(rng, make_field, make_psf):
    field = make_field(rng, shape=(400, 400), n=40, flux=(3e3, 3e4))
    waves = np.sin(np.arange(400) / 20.0)[None, :] * np.cos(np.arange(400) / 23.0)[:, None]
    config = AlardLuptonConfig(**SMALL, spatial_kernel_order=0)
    template = field.observe(make_psf(1.9), noise=0.5, rng=rng)
    flux = field.flux.copy()
    changed = int(np.argsort(flux)[len(flux) // 2 + 1])
    flux[changed] *= 1.3
    science = replace(field, flux=flux).observe(make_psf(2.4), noise=1.0, rng=rng, background=0.8 * waves)
    found = fit((science, template, make_psf(2.4), make_psf(1.9), field), config)
    reasons = found.cell_set.reason
    assert reasons[changed] == "kernel sum"
    # Judged about the polynomial alone, every star on a crest or in a trough would go: near half of them.
    assert "spatial residuals" not in reasons


def test_faint_stars_tell_that_most_of_the_brightest_vary(rng, make_field, make_psf):
    field = make_field(rng, shape=(400, 400), n=16, flux=(3e3, 3e4))
    bright = np.argsort(-field.flux)[:8]
    changed = bright[[0, 2, 3, 5, 6]]
    flux = field.flux.copy()
    flux[changed] *= [1.05, 1.09, 1.13, 1.15, 1.2]
    template = field.observe(make_psf(1.9), noise=0.5, rng=rng)
    science = replace(field, flux=flux).observe(make_psf(2.4), noise=1.0, rng=rng, background=3.0)
    found = fit((science, template, make_psf(2.4), make_psf(1.9), field), AlardLuptonConfig(**SMALL))
    odd = np.flatnonzero(np.asarray(found.cell_set.reason) == "kernel sum")
    assert set(odd) == set(changed)
    assert found.kernel.kernel_sum() == pytest.approx(1.0, abs=0.005)


def test_stars_that_each_have_a_psf_of_their_own_raise_no_order(rng, make_field, make_psf):
    field = make_field(rng, shape=(500, 500), n=50, flux=(1e4, 1.1e4))
    template = field.observe(make_psf(2.0), noise=0.1, rng=rng)
    widths = np.where(np.arange(50) % 2, 2.38, 2.42)
    drawn = sum(
        replace(field, x=field.x[own], y=field.y[own], flux=field.flux[own]).draw(make_psf(width))
        for width in (2.38, 2.42)
        if (own := widths == width).any()
    )
    science = template.copy()
    science.image[:] = drawn + rng.normal(0.0, 1.0, field.shape)
    science.variance[:] = 1.0
    config = AlardLuptonConfig(**SMALL, kernel_sum_clipping=False, spatial_kernel_clipping=False)
    found = fit((science, template, make_psf(2.4), make_psf(2.0), field), config)
    # Beyond the noise there is something to follow, were it smooth; ten terms follow a fifth of what 49 stars do by chance.
    assert np.mean(found.residual_rms) > 1.05
    assert found.kernel.order == 0


# --- plain least squares ---------------------------------------------------------------------------------------------


def test_without_prior_and_noise_correction_the_solution_is_that_of_dense_least_squares(pair):
    """The same model, its design matrix written out over all pixels of all stars, solved by another method."""
    config = AlardLuptonConfig(
        **SMALL,
        use_prior=False,
        max_spatial_kernel_order=0,
        correct_noise_bias=False,
        single_kernel_clipping=False,
        kernel_sum_clipping=False,
        spatial_kernel_clipping=False,
        spatial_bg_order=1,
        alard_deg_gauss=(2, 1, 0),
    )
    science, template, *_, field = pair
    found = fit(pair, config)
    images, box = found.cell_set.basis.images, template.box
    half, side = 13 // 2, 13 - 13 // 2
    rows, data = [], []
    for star in found.used:
        x, y = int(np.floor(field.x[star] + 0.5)), int(np.floor(field.y[star] + 0.5))
        stamp = template.image[y - side - half : y + side + half + 1, x - side - half : x + side + half + 1]
        kernel_terms = spatial_terms(1, box, x=np.array([float(x)]), y=np.array([float(y)]))[0]
        v, u = np.mgrid[y - side : y + side + 1, x - side : x + side + 1]
        columns = [convolve2d(stamp.astype(float), images[0], mode="valid")]
        for image in images[1:]:
            blurred = convolve2d(stamp.astype(float), image, mode="valid")
            columns += [blurred * term for term in kernel_terms]
        background = spatial_terms(1, box, x=u.ravel().astype(float), y=v.ravel().astype(float))
        rows.append(np.column_stack([*(c.ravel() for c in columns), background]))
        data.append(science.image[v, u].ravel())
    # One weight in the whole image, as the variance planes are constant: it changes nothing.
    solved = np.linalg.lstsq(np.concatenate(rows), np.concatenate(data).astype(float), rcond=None)[0]
    n_terms = count_terms(1)
    for x, y in [(50.0, 60.0), (300.0, 200.0)]:
        terms = spatial_terms(1, box, x=np.array([x]), y=np.array([y]))[0]
        coefficients = np.r_[solved[0], solved[1:-n_terms].reshape(len(images) - 1, n_terms) @ terms]
        wanted = np.tensordot(coefficients, images, axes=1)
        np.testing.assert_allclose(found.kernel(x, y), wanted, atol=1e-6 * wanted.max())
    np.testing.assert_allclose(found.background.coefficients, solved[-n_terms:], atol=1e-5)
    assert found.n_parameters == len(solved)


def test_plain_powers_span_the_same_kernels_and_backgrounds(pair):
    chebyshev, powers = (
        fit(pair, AlardLuptonConfig(**SMALL, spatial_model_type=m)) for m in ("chebyshev1", "polynomial")
    )
    # The priors are the same functions of the kernel; what is left is the rounding of an ill-conditioned matrix.
    peak = chebyshev.kernel(200, 200).max()
    np.testing.assert_allclose(powers.kernel.terms, chebyshev.kernel.terms, atol=1e-5 * peak)
    np.testing.assert_allclose(powers.background.coefficients, chebyshev.background.coefficients, atol=1e-4)
    np.testing.assert_allclose(powers.background.coefficient_errors, chebyshev.background.coefficient_errors, rtol=1e-4)
    assert chebyshev.background_coefficients == pytest.approx(chebyshev.background.coefficients)
    # x² is (1 + T2)/2: as a power it is twice the Chebyshev coefficient.
    assert powers.background_coefficients[3] == pytest.approx(2 * powers.background.coefficients[3], abs=1e-9)


# --- delta functions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lambda_type": "minimizeUnbiasedRisk"},
        {"lambda_type": "minimizeBiasedRisk"},
        {"lambda_type": "absolute", "lambda_value": 100.0},
        {"regularization_type": "forwardDifference"},
        {"subtract_mean_for_pca": False},
        {"use_pca_for_spatial_kernel": False, "spatial_kernel_order": 0},
    ],
)
def test_free_pixels_follow_a_kernel_that_gaussians_cannot(odd_pair, settings):
    result = match(odd_pair, DeltaFunctionConfig(**DELTAS, **settings))
    difference = result.difference
    inner = (slice(24, -24), slice(24, -24))
    pulls = difference.image[inner] / np.sqrt(difference.variance[inner])
    # White but for what little of the template's noise the kernel spreads: five standard errors of a width.
    assert pulls.std() == pytest.approx(1.0, abs=5 / np.sqrt(2 * pulls.size) + 0.005)
    assert relative_error(result.kernel(112, 112), odd_kernel()) < 0.35
    # What the noise of the kernel costs: a few per cent of what the true kernel lets through at most.
    assert difference.variance[112, 112] < 1.03 * (9.0 + (odd_kernel() ** 2).sum())
    gaussians = match(odd_pair, AlardLuptonConfig(**SMALL)).difference
    assert (gaussians.image[inner] / np.sqrt(gaussians.variance[inner])).std() > 1.3


def test_kernel_sum_of_free_pixels_is_the_flux_ratio(odd_pair):
    result = match(odd_pair, DeltaFunctionConfig(**DELTAS))
    good = result.fit.cell_set.is_good
    error = 1.0 / np.sqrt((1.0 / result.fit.cell_set.own_sum_error[good] ** 2).sum())
    # A kernel of free shape knows the wings less well than one of fixed shape, of which the error is.
    assert result.kernel_sum == pytest.approx(1.2, abs=5 * 3 * error)
    assert result.kernel.kernel_sum(x=3.0, y=220.0) == pytest.approx(result.kernel_sum)


def test_regularisation_makes_a_kernel_smoother_and_less_noisy(odd_pair):
    free, held = (
        fit(
            odd_pair,
            DeltaFunctionConfig(
                **DELTAS,
                lambda_type="absolute",
                lambda_value=strength,
                use_pca_for_spatial_kernel=False,
                spatial_kernel_order=0,
            ),
        )
        for strength in (0.01, 100.0)
    )
    truth = odd_kernel()
    assert relative_error(held.kernel(112, 112), truth) < relative_error(free.kernel(112, 112), truth) / 2


def test_strength_does_not_depend_on_the_images_units(odd_pair):
    science, template, *rest = odd_pair
    scaled = science.copy()
    scaled.image *= np.float32(1000.0)
    scaled.variance *= np.float32(1e6)
    config = DeltaFunctionConfig(**DELTAS, lambda_type="absolute", lambda_value=100.0)
    one, other = fit((science, template, *rest), config), fit((scaled, template, *rest), config)
    np.testing.assert_allclose(other.kernel.terms / 1000.0, one.kernel.terms, atol=1e-4 * one.kernel.terms.max())


# --- principal components --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [AlardLuptonConfig(), DeltaFunctionConfig(**DELTAS)], ids=["AL", "DF"])
def test_principal_components_follow_a_varying_kernel_with_few_unknowns(rng, make_field, make_psf, make_image, config):
    field = make_field(rng, shape=(300, 300), n=40, flux=(2e4, 6e4))
    template = field.observe(make_psf(2.0), noise=0.5, rng=rng)
    share = np.linspace(0, 1, 300)[None, :]
    drawn = field.draw(make_psf(2.3)) * (1 - share) + field.draw(make_psf(2.7)) * share
    science = make_image(drawn + rng.normal(0.0, 1.0, field.shape), 1.0)
    pair = science, template, make_psf(2.5), make_psf(2.0), field
    result = match(pair, replace(config, use_pca_for_spatial_kernel=True, num_principal_components=3))
    assert result.fit.n_basis == 4
    assert result.fit.n_parameters == 3 * 3 + 1 + 6
    inner = result.difference.image[20:-20, 20:-20] / np.sqrt(result.difference.variance[20:-20, 20:-20])
    stiff = match(
        pair, replace(config, use_pca_for_spatial_kernel=True, spatial_kernel_order=0, max_spatial_kernel_order=0)
    ).difference
    assert inner.std() < 1.1
    assert (stiff.image / np.sqrt(stiff.variance))[20:-20, 20:-20].std() > 1.3


# --- choices about single stars --------------------------------------------------------------------------------------


def test_fewer_degrees_are_chosen_where_stars_do_not_bear_more(pair):
    chosen = fit(pair, AlardLuptonConfig(use_bic_for_kernel_basis=True))
    whole = fit(pair, AlardLuptonConfig())
    assert whole.degrees == (4, 2, 2)
    assert whole.n_basis == 27
    assert chosen.n_basis < 27
    assert sum((d + 1) * (d + 2) // 2 for d in chosen.degrees) == chosen.n_basis
    assert np.median(chosen.residual_rms) < np.median(whole.residual_rms) + 0.05


@pytest.mark.parametrize("kind", ["EIGENVALUE", "SVD"])
def test_badly_conditioned_stars_are_thrown_out_only_where_asked(pair, kind):
    unasked = fit(pair, AlardLuptonConfig(max_condition_number=10.0))
    assert "condition number" not in unasked.cell_set.reason
    asked = {"check_condition_number": True, "condition_number_type": kind}
    generous = fit(pair, AlardLuptonConfig(**asked, max_condition_number=1e15))
    assert generous.used.tolist() == unasked.used.tolist()
    with pytest.raises(InsufficientKernelSources):
        fit(pair, AlardLuptonConfig(**asked, max_condition_number=10.0))


def test_core_statistics_forgive_what_is_in_the_wings(pair):
    science, template, *rest, field = pair
    spoiled = science.copy()
    index = int(fit(pair, AlardLuptonConfig()).used[0])
    x, y = round(field.x[index]), round(field.y[index])
    # As much above as below, so that the star's flux is as it was.
    spoiled.image[y + 7 : y + 10, x - 1 : x + 2] += 12.0
    spoiled.image[y + 7 : y + 10, x - 9 : x - 6] -= 6.0
    spoiled.image[y + 7 : y + 10, x + 7 : x + 10] -= 6.0
    spoiled_pair = spoiled, template, *rest, field
    assert index in fit(spoiled_pair, AlardLuptonConfig()).rejected
    assert index not in fit(spoiled_pair, AlardLuptonConfig(use_core_stats=True)).rejected


def test_uncertainty_of_own_kernels_is_that_of_many_draws(rng, make_field, make_psf):
    field = make_field(rng, shape=(128, 128), n=3, flux=(3e4, 4e4))
    config = AlardLuptonConfig(
        **SMALL, calculate_kernel_uncertainty=True, alard_deg_gauss=(2, 1, 1), min_kernel_sources=1
    )
    psfs = make_psf(2.4), make_psf(1.9)
    template = field.observe(psfs[1], noise=0.01, rng=rng)
    clean = field.draw(psfs[0])
    kernels, errors = [], []
    for _ in range(60):
        science = template.copy()
        science.image[:] = clean + rng.normal(0.0, 1.0, clean.shape)
        science.variance[:] = 1.0
        cell_set = fit((science, template, *psfs, field), config).cell_set
        star = int(np.flatnonzero(cell_set.is_good)[0])
        kernels.append(cell_set.compute_own_kernel(star))
        errors.append(cell_set.compute_own_kernel_error(star))
    scatter, expected = np.std(kernels, axis=0)[4:9, 4:9], np.mean(errors, axis=0)[4:9, 4:9]
    # A scatter of 60 draws is good to 1/sqrt(120) = 9 %; the prior, which counts as information, holds a little.
    assert np.median(scatter / expected) == pytest.approx(1.0, abs=0.2)
    assert (
        fit(
            (science, template, *psfs, field), replace(config, calculate_kernel_uncertainty=False)
        ).cell_set.own_covariance.size
        == 0
    )


# --- every star is accounted for -------------------------------------------------------------------------------------


def test_every_star_has_its_cell_its_fate_and_its_reason(pair):
    science, template, *rest, field = pair
    science = science.copy()
    first = fit(pair, AlardLuptonConfig()).used
    variable, masked = int(first[0]), int(first[1])
    for index, change in ((variable, 0.5), (masked, 0.0)):
        x, y = round(field.x[index]), round(field.y[index])
        box = (slice(y - 8, y + 9), slice(x - 8, x + 9))
        science.image[box] = 3.0 + (science.image[box] - 3.0) * (1.0 + change)
        if change == 0.0:
            science.mask[y, x] |= plane_bits("BAD")
    result = fit((science, template, *rest, field), AlardLuptonConfig())
    cells = result.cell_set
    assert len(cells) == len(field.x)
    np.testing.assert_array_equal(np.flatnonzero(cells.is_good), np.sort(result.used))
    np.testing.assert_array_equal(cells.cell[:, 1], np.floor(field.x + 0.5) // 128)
    assert cells.reason[variable] in {"own residuals", "kernel sum", "spatial residuals"}
    assert cells.reason[masked] == "masked"
    assert variable in result.rejected
    bad = cells.status == CandidateStatus.BAD
    assert [bool(reason) for reason in cells.reason] == bad.tolist()
    # Whoever was used or thrown out has a kernel of its own; the ratio of the star that changed is what it changed by.
    assert cells.is_solved[np.r_[result.used, result.rejected]].all()
    assert cells.own_sum[variable] / np.median(cells.own_sum[result.used]) == pytest.approx(1.5, rel=0.02)
    np.testing.assert_allclose(
        cells.compute_spatial_kernel(variable), result.kernel(field.x[variable], field.y[variable])
    )


def test_own_kernels_of_reduced_bases_are_kept_in_the_whole_basis(pair):
    result = fit(pair, AlardLuptonConfig(use_pca_for_spatial_kernel=True))
    cells = result.cell_set
    assert result.n_basis == 6
    assert cells.own_coefficients.shape[1] == len(cells.basis) == 27
    star = int(result.used[0])
    assert cells.compute_own_kernel(star).sum() == pytest.approx(cells.own_coefficients[star, 0])


def test_other_stars_are_solved_as_the_kernel_stars_were(pair):
    science, template, *_, field = pair
    config = AlardLuptonConfig()
    fitted = fit(pair, config).cell_set
    again = solve_stars(template, science, x=field.x, y=field.y, like=fitted, config=config)
    solved = fitted.is_solved
    np.testing.assert_allclose(again.own_coefficients[solved], fitted.own_coefficients[solved], atol=1e-7)
    np.testing.assert_allclose(again.own_rms[solved], fitted.own_rms[solved], rtol=1e-6)
    assert again.is_solved.sum() > solved.sum()
    nowhere = solve_stars(template, science, x=np.array([1.0]), y=np.array([2.0]), like=fitted, config=config)
    assert nowhere.reason == ("edge",)
    assert not nowhere.is_solved.any()


class HoledPsf(PointSpreadFunction):
    """A PSF without a width in the middle of the image."""

    def __init__(self, psf, hole):
        self._psf, self._hole = psf, hole

    size = property(lambda self: self._psf.size)
    average_position = property(lambda self: (self._hole, self._hole))

    def compute_offset_image(self, *, x, y, dx, dy):
        if x == self._hole:
            raise ValueError("no tile here")
        return self._psf.compute_offset_image(x=x, y=y, dx=dx, dy=dy)


def test_widths_come_from_elsewhere_where_a_psf_has_a_hole(pair):
    science, template, science_psf, template_psf, field = pair
    holed = HoledPsf(template_psf, 199.5)
    found = fit((science, template, science_psf, holed, field), AlardLuptonConfig())
    whole = fit((science, template, science_psf, template_psf, field), AlardLuptonConfig())
    assert found.mode == "convolution"
    np.testing.assert_allclose(found.sigmas, whole.sigmas, rtol=1e-6)
