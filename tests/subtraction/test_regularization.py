import numpy as np
import pytest

from alertprod.errors import ConfigError
from alertprod.subtraction.config import DeltaFunctionConfig
from alertprod.subtraction.delta_basis import make_delta_basis
from alertprod.subtraction.regularization import (
    Regularization,
    compute_risks,
    eliminate_background,
    make_central_roughness,
    make_forward_roughness,
    make_roughness,
    scan_strengths,
)

SIZE = 7
LAPLACIANS = {
    5: {(0, 0): -4, (0, 1): 1, (0, -1): 1, (1, 0): 1, (-1, 0): 1},
    9: {(j, i): {0: -20 / 6, 1: 4 / 6, 2: 1 / 6}[abs(j) + abs(i)] for j in (-1, 0, 1) for i in (-1, 0, 1)},
}


def roughness_of(kernel, matrix):
    return kernel.ravel() @ matrix @ kernel.ravel()


@pytest.mark.parametrize("stencil", [5, 9])
def test_central_roughness_is_the_sum_of_squared_laplacians(rng, stencil):
    kernel = rng.normal(size=(SIZE, SIZE))
    expected = 0.0
    for j in range(SIZE):
        for i in range(SIZE):
            if 0 < j < SIZE - 1 and 0 < i < SIZE - 1:
                expected += sum(w * kernel[j + dj, i + di] for (dj, di), w in LAPLACIANS[stencil].items()) ** 2
            else:
                expected += (3.0 * kernel[j, i]) ** 2
    assert roughness_of(kernel, make_central_roughness(SIZE, stencil, 3.0)) == pytest.approx(expected)


@pytest.mark.parametrize("stencil", [5, 9])
def test_a_slope_is_smooth_but_for_its_border(stencil):
    v, u = np.mgrid[:SIZE, :SIZE].astype(float)
    slope = 1.0 + 2.0 * u - v
    # Rounding alone: 1e-16 of the terms that cancel, some thousand.
    assert roughness_of(slope, make_central_roughness(SIZE, stencil, 0.0)) == pytest.approx(0.0, abs=1e-11)


@pytest.mark.parametrize("orders", [(1,), (2,), (3,), (1, 2)])
def test_forward_roughness_is_the_sum_of_squared_differences(rng, orders):
    kernel = rng.normal(size=(SIZE, SIZE))
    expected = 0.0
    for order in orders:
        for line in (*kernel, *kernel.T):
            for start in range(SIZE):
                reach = min(order, SIZE - 1 - start)
                expected += np.diff(line[start : start + reach + 1], n=reach)[0] ** 2
    assert roughness_of(kernel, make_forward_roughness(SIZE, orders)) == pytest.approx(expected)


def test_what_is_neither_a_stencil_nor_an_order_nor_a_penalty_is_refused():
    with pytest.raises(ConfigError, match="neither 5 nor 9"):
        make_central_roughness(SIZE, 7, 3.0)
    with pytest.raises(ConfigError, match="negative"):
        make_central_roughness(SIZE, 9, -0.1)
    with pytest.raises(ConfigError, match="orders"):
        make_forward_roughness(SIZE, (0, 1))


def test_the_configured_kind_of_roughness_is_made():
    central = DeltaFunctionConfig(central_regularization_stencil=5, regularization_border_penalty=2.0)
    np.testing.assert_array_equal(make_roughness(central, 5), make_central_roughness(5, 5, 2.0))
    forward = DeltaFunctionConfig(regularization_type="forwardDifference", forward_regularization_orders=(3,))
    np.testing.assert_array_equal(make_roughness(forward, 5), make_forward_roughness(5, (3,)))


def test_a_basis_has_the_roughness_of_its_kernels(rng):
    matrix = make_central_roughness(5, 9, 3.0)
    basis = make_delta_basis(5, lead=rng.uniform(size=(5, 5))).regularized(matrix, strength=1.0)
    coefficients = rng.normal(size=25)
    kernel = np.tensordot(coefficients, basis.images, axes=1)
    assert coefficients @ basis.regularization.matrix @ coefficients == pytest.approx(roughness_of(kernel, matrix))
    assert basis.recombined(np.eye(25)[:3]).regularization is None


def test_strengths_are_as_given_or_follow_each_stars_information(rng):
    matrices = np.stack([np.eye(4), 3.0 * np.eye(4)])
    np.testing.assert_array_equal(Regularization(np.eye(4), 0.2).compute_strengths(matrices), [0.2, 0.2])
    relative = Regularization(2.0 * np.eye(4), None, 1e-2).compute_strengths(matrices)
    np.testing.assert_allclose(relative, [0.5e-2, 1.5e-2])


def test_scans_run_over_powers_of_ten_or_over_values():
    log = scan_strengths(DeltaFunctionConfig())
    assert len(log) == 31
    np.testing.assert_allclose(log[[0, 10, 30]], [0.1, 1.0, 100.0])
    linear = DeltaFunctionConfig(lambda_step_type="linear", lambda_min=0.0, lambda_max=1.0, lambda_step=0.25)
    np.testing.assert_allclose(scan_strengths(linear), [0.0, 0.25, 0.5, 0.75, 1.0])


def test_background_is_eliminated_at_its_best(rng):
    design = rng.normal(size=(40, 6))
    data = rng.normal(size=40)
    matrix, vector = eliminate_background(design.T @ design, design.T @ data, 4)
    np.testing.assert_allclose(np.linalg.solve(matrix, vector), np.linalg.lstsq(design, data, rcond=None)[0][:4])
    np.testing.assert_array_equal(eliminate_background(np.eye(3), np.ones(3), 3)[0], np.eye(3))


def test_risk_is_the_error_that_kernels_have_on_average(rng):
    """Stein's estimate against the errors of many draws with a known truth."""
    n, n_draws = 6, 4000
    design = rng.normal(size=(30, n)) * np.array([3.0, 2.0, 1.0, 0.6, 0.4, 0.3])
    matrix, roughness = design.T @ design, np.diag(np.arange(1.0, n + 1))
    gram = np.eye(n) + 0.3
    truth = rng.normal(size=n)
    strengths = np.array([0.3, 3.0, 30.0])
    vectors = rng.multivariate_normal(matrix @ truth, matrix, size=n_draws)
    settings = {"roughness": roughness, "gram": gram, "strengths": strengths, "max_condition_number": np.inf}
    risks = np.array([compute_risks(matrix, vector, **settings) for vector in vectors]) + truth @ gram @ truth
    errors = np.empty((n_draws, 3))
    for k, strength in enumerate(strengths):
        off = np.linalg.solve(matrix + strength * roughness, vectors.T).T - truth
        errors[:, k] = np.einsum("ni,ij,nj->n", off, gram, off)
    deviation = (risks - errors).mean(axis=0)
    assert (np.abs(deviation) < 4 * (risks - errors).std(axis=0) / np.sqrt(n_draws)).all()


def test_risk_with_eigenvalues_cut_off_bears_a_matrix_without_information(rng):
    design = rng.normal(size=(30, 4))
    design[:, 3] = design[:, 2]
    matrix, vector = design.T @ design, design.T @ rng.normal(size=30)
    strengths = np.array([0.1, 1.0])
    risks = compute_risks(
        matrix, vector, roughness=np.eye(4), gram=np.eye(4), strengths=strengths, max_condition_number=1e6
    )
    assert np.isfinite(risks).all()
    assert np.abs(risks).max() < 1e3
