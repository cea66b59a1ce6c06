import numpy as np
import pytest

from alertprod.geometry.box import Box
from alertprod.images.ap_corr import ChebyshevField

BOX = Box(x_min=10, y_min=20, x_max=110, y_max=70)


def test_constant_is_the_same_everywhere_on_its_box():
    field = ChebyshevField(BOX, np.array([[1.03]]))
    np.testing.assert_array_equal(field.evaluate(x=[10.0, 50.0, 109.4], y=[20.0, 45.0, 69.0]), 1.03)


def test_polynomial_is_that_of_the_scaled_coordinates():
    # 1 + 0.1 x' + 0.02 T2(y') + 0.03 x' y'
    field = ChebyshevField(BOX, np.array([[1.0, 0.1], [0.0, 0.03], [0.02, 0.0]]))
    x, y = np.meshgrid(np.linspace(9.5, 109.5, 7), np.linspace(19.5, 69.5, 5))
    u, v = (x - 59.5) / 50.0, (y - 44.5) / 25.0
    expected = 1.0 + 0.1 * u + 0.02 * (2.0 * v * v - 1.0) + 0.03 * u * v
    np.testing.assert_allclose(field.evaluate(x=x, y=y), expected, rtol=1e-13)


@pytest.mark.parametrize(("x", "y"), [(9.4, 40.0), (109.6, 40.0), (50.0, 19.0), (50.0, 70.0), (np.nan, 40.0)])
def test_outside_the_box_there_is_no_value(x, y):
    assert np.isnan(ChebyshevField(BOX, np.array([[1.0, 0.1]])).evaluate(x=x, y=y))


@pytest.mark.parametrize("coefficients", [np.ones(3), np.ones((0, 2)), np.array([[1.0, np.nan]])])
def test_coefficients_must_be_a_table_of_numbers(coefficients):
    with pytest.raises(ValueError, match="table of finite numbers"):
        ChebyshevField(BOX, coefficients)


def test_box_must_have_pixels():
    with pytest.raises(ValueError, match="box"):
        ChebyshevField(Box(x_min=5, y_min=5, x_max=5, y_max=9), np.ones((1, 1)))
