import numpy as np
import pytest

from alertprod.errors import BadSubtraction
from alertprod.subtraction.basis import make_alard_lupton_basis
from alertprod.subtraction.pca import find_principal_kernels


@pytest.fixture
def basis():
    return make_alard_lupton_basis((0.7, 1.4, 2.8), (2, 1, 1), 13)


@pytest.fixture
def kernels(basis, rng):
    """Kernels that vary in two ways, the first nine times as strongly as the second, each of a sum of its own."""
    mean = np.r_[1.0, rng.normal(size=len(basis) - 1) * 0.1]
    ways = np.linalg.qr(rng.normal(size=(len(basis) - 1, 2)))[0].T
    amounts = rng.normal(size=(40, 2)) * [0.09, 0.01]
    amounts -= amounts.mean(axis=0)
    shapes = mean + np.column_stack([np.zeros(40), amounts @ ways])
    return shapes * rng.uniform(0.5, 2.0, size=(40, 1)), mean


def find(basis, coefficients, **settings):
    settings = {"weights": np.ones(len(coefficients)), "n_components": 5, "subtract_mean": True} | settings
    return find_principal_kernels(basis, coefficients, **settings)


@pytest.mark.parametrize("subtract_mean", [True, False])
def test_first_kernel_alone_has_a_sum_and_the_others_have_unit_norm(basis, kernels, subtract_mean):
    principal = basis.recombined(find(basis, kernels[0], subtract_mean=subtract_mean))
    sums = principal.images.sum(axis=(1, 2))
    np.testing.assert_allclose(sums, np.eye(len(principal))[0], atol=1e-9)
    np.testing.assert_allclose((principal.images[1:] ** 2).sum(axis=(1, 2)), 1.0, atol=1e-9)


def test_the_mean_leads_and_there_are_as_many_components_as_kernels_vary_in(basis, kernels):
    coefficients, mean = kernels
    principal = find(basis, coefficients)
    assert len(principal) == 3
    np.testing.assert_allclose(principal[0], mean, atol=1e-10)


def test_components_come_by_their_share_of_the_variation(basis, kernels):
    principal = basis.recombined(find(basis, kernels[0]))
    flat = principal.images.reshape(3, -1)
    shapes = (kernels[0] / kernels[0][:, :1]) @ basis.images.reshape(len(basis), -1)
    # The two components are orthogonal in pixels, and describe the kernels wholly.
    assert flat[1] @ flat[2] == pytest.approx(0.0, abs=1e-9)
    amounts = (shapes - flat[0]) @ flat[1:].T
    np.testing.assert_allclose(flat[0] + amounts @ flat[1:], shapes, atol=1e-9)
    assert amounts[:, 0].std() > 2 * amounts[:, 1].std()


def test_only_as_many_components_are_given_as_asked_for(basis, kernels, rng):
    noisy = kernels[0] + rng.normal(size=kernels[0].shape) * 1e-3
    assert len(find(basis, noisy, n_components=4)) == 5
    assert len(find(basis, noisy, n_components=4, subtract_mean=False)) == 5


def test_a_kernel_without_weight_does_not_count(basis, kernels):
    coefficients = kernels[0].copy()
    coefficients[7, 3] += 50.0
    weights = np.ones(40)
    weights[7] = 0.0
    without = find(basis, np.delete(kernels[0], 7, axis=0))
    with_it = find(basis, coefficients, weights=weights)
    np.testing.assert_allclose(np.abs(with_it), np.abs(without), atol=1e-8)


def test_equal_kernels_leave_the_mean_alone(basis, kernels):
    assert len(find(basis, np.tile(kernels[1], (5, 1)))) == 1


def test_a_first_component_without_a_sum_is_refused(basis):
    coefficients = np.tile(np.eye(len(basis))[0], (4, 1))
    coefficients[:, 1] = [1e9, -1e9, 1e9, -1e9]
    with pytest.raises(BadSubtraction):
        find(basis, coefficients, subtract_mean=False)
