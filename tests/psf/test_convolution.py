import numpy as np
import pytest
from scipy.signal import fftconvolve

from alertprod.psf.convolution import convolve_full


@pytest.mark.parametrize(("first", "second"), [((5, 7), (3, 3)), ((41, 41), (21, 23)), ((1, 1), (4, 2))])
def test_a_convolution_is_that_of_scipy(first, second):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=first), rng.normal(size=second)
    np.testing.assert_allclose(convolve_full(a, b), fftconvolve(a, b), atol=1e-13 * a.size**0.5)


def test_one_kernel_serves_a_stack():
    rng = np.random.default_rng(2)
    stack, kernel = rng.normal(size=(4, 9, 9)), rng.normal(size=(1, 5, 5))
    together = convolve_full(stack, kernel)
    for image, convolved in zip(stack, together, strict=True):
        np.testing.assert_allclose(convolved, convolve_full(image, kernel[0]), atol=1e-14)


def test_a_point_is_replaced_by_the_kernel():
    point, kernel = np.zeros((3, 3)), np.arange(9.0).reshape(3, 3)
    point[1, 1] = 2.0
    np.testing.assert_allclose(convolve_full(point, kernel)[1:4, 1:4], 2.0 * kernel, atol=1e-14)
