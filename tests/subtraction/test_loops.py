import numpy as np
from scipy.signal import correlate2d

from alertprod.images.mask import plane_bits
from alertprod.subtraction import _loops


def complex_noise(rng, shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def test_spectra_are_scaled_and_added_as_numpy_would(rng):
    first, second, total = (complex_noise(rng, (9, 5)) for _ in range(3))
    factors = rng.normal(size=9).astype(np.float32)
    scaled = _loops.scale_rows(first, factors)
    assert scaled.dtype == np.complex64
    np.testing.assert_allclose(scaled, first * factors[:, None], rtol=1e-6)
    expected = total + first * second
    _loops.add_product(total, first, second)
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-6)


def test_rows_are_correlated_as_scipy_would(rng):
    rows, kernel = rng.normal(size=(11, 20)).astype(np.float32), rng.normal(size=(5, 6)).astype(np.float32)
    found = np.empty((7, 15), np.float32)
    _loops.correlate(rows, kernel, found)
    np.testing.assert_allclose(found, correlate2d(rows, kernel, mode="valid"), rtol=1e-5, atol=1e-5)


def test_products_of_few_terms_are_matrix_products(rng):
    rows, columns = rng.normal(size=(7, 3)).astype(np.float32), rng.normal(size=(3, 11)).astype(np.float32)
    np.testing.assert_allclose(_loops.multiply_out(rows, columns), rows @ columns, rtol=1e-5, atol=1e-6)


def test_planes_are_subtracted_as_numpy_would(rng):
    shape = (20, 30)
    image, other, background = (rng.normal(size=shape).astype(np.float32) for _ in range(3))
    variance, other_variance = (rng.uniform(1, 2, shape).astype(np.float32) for _ in range(2))
    mask, other_mask = (rng.integers(0, 64, shape).astype(np.int32) for _ in range(2))
    image[3, 4] = np.nan
    other_variance[5, 6] = np.inf
    cleared, no_data = plane_bits("DETECTED"), plane_bits("NO_DATA")
    found_image, found_variance = np.empty_like(image), np.empty_like(image)
    found_mask = np.empty_like(mask)
    _loops.subtract_planes(
        image,
        mask,
        variance,
        other,
        other_mask,
        other_variance,
        background,
        cleared,
        no_data,
        found_image,
        found_mask,
        found_variance,
    )
    unknown = np.zeros(shape, dtype=bool)
    unknown[3, 4] = unknown[5, 6] = True
    np.testing.assert_allclose(found_image, np.where(unknown, np.nan, image - other - background), rtol=1e-6)
    np.testing.assert_allclose(found_variance, np.where(unknown, np.inf, variance + other_variance), rtol=1e-6)
    assert np.array_equal(found_mask, ((mask | other_mask) & ~cleared) | np.where(unknown, no_data, 0))
