import numpy as np
import pytest

from alertprod.geometry.box import Box
from alertprod.subtraction.spatial import (
    SpatialBackground,
    SpatialKernel,
    chebyshev_from,
    count_terms,
    evaluate_polynomial,
    spatial_terms,
    term_degrees,
)

BOX = Box(x_min=0, y_min=0, x_max=61, y_max=41)


def test_terms_are_ordered_by_total_degree():
    assert term_degrees(2) == [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)]
    assert [count_terms(order) for order in range(4)] == [1, 3, 6, 10]


def test_terms_are_chebyshev_polynomials_of_the_box():
    at_corner = spatial_terms(2, BOX, x=np.array([60.0]), y=np.array([0.0]))[0]
    np.testing.assert_allclose(at_corner, [1, 1, -1, 1, -1, 1])
    at_centre = spatial_terms(2, BOX, x=np.array([30.0]), y=np.array([20.0]))[0]
    np.testing.assert_allclose(at_centre, [1, 0, 0, -1, 0, -1], atol=1e-15)


def test_kernel_is_refitted_from_its_own_samples(rng):
    kernel = SpatialKernel(rng.normal(size=(6, 5, 5)), 2, BOX)
    images, x, y = kernel.sample(3)
    again = SpatialKernel.fit(images, x=x, y=y, order=2, box=BOX)
    np.testing.assert_allclose(again.terms, kernel.terms, atol=1e-12)


def test_square_is_exact_everywhere(rng):
    kernel = SpatialKernel(rng.normal(size=(3, 5, 5)), 1, BOX)
    squared = kernel.squared()
    for x, y in [(0.0, 0.0), (13.0, 37.0), (60.0, 40.0)]:
        np.testing.assert_allclose(squared(x, y), kernel(x, y) ** 2, atol=1e-12)


def test_extent_is_where_the_kernel_falls_below_the_fraction():
    image = np.zeros((11, 11))
    image[5, 5] = 1.0
    image[5, 8] = 0.01
    kernel = SpatialKernel.constant(image, BOX)
    assert kernel.compute_extent(1e-3) == 3.0
    assert kernel.compute_extent(0.1) == 0.0


def test_background_image_agrees_with_its_values_at_points(rng):
    coefficients = rng.normal(size=6)
    background = SpatialBackground(coefficients, np.zeros(6), 2, BOX)
    image = background.compute_image()
    y, x = np.mgrid[0:41:7, 0:61:9]
    np.testing.assert_allclose(image[y, x], background.evaluate(x=x, y=y), atol=1e-5)
    np.testing.assert_allclose(evaluate_polynomial(coefficients, 2, BOX), image)


def test_kernel_sum_is_that_of_the_middle_by_default(rng):
    kernel = SpatialKernel(rng.normal(size=(3, 5, 5)), 1, BOX)
    assert kernel.kernel_sum() == pytest.approx(kernel.terms[0].sum())
    assert kernel.scaled(2.0).kernel_sum(x=1.0, y=2.0) == pytest.approx(2.0 * kernel(1.0, 2.0).sum())


@pytest.mark.parametrize("order", [0, 1, 3])
def test_coefficients_of_plain_powers_become_those_of_chebyshev_polynomials(rng, order):
    box = Box.from_shape((50, 80))
    x, y = rng.uniform(0, 79, 30), rng.uniform(0, 49, 30)
    coefficients = rng.normal(size=count_terms(order))
    powers = spatial_terms(order, box, x=x, y=y, model="polynomial") @ coefficients
    changed = spatial_terms(order, box, x=x, y=y) @ (chebyshev_from("polynomial", order) @ coefficients)
    np.testing.assert_allclose(changed, powers, atol=1e-12)
    np.testing.assert_array_equal(chebyshev_from("chebyshev1", order), np.eye(count_terms(order)))


def test_plain_powers_are_of_coordinates_from_minus_one_to_one():
    box = Box.from_shape((11, 21))
    terms = spatial_terms(2, box, x=np.array([15.0]), y=np.array([2.0]), model="polynomial")[0]
    np.testing.assert_allclose(terms, [1.0, 0.5, -0.6, 0.25, -0.3, 0.36])
