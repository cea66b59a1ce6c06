import numpy as np
import pytest
from scipy.signal import convolve2d

from alertprod.subtraction.basis import convolve_stamps
from alertprod.subtraction.delta_basis import make_delta_basis


def test_there_is_a_kernel_for_every_pixel():
    assert make_delta_basis(7).images.shape == (49, 7, 7)


@pytest.mark.parametrize("led", [False, True])
def test_first_kernel_alone_carries_flux_and_the_others_have_unit_norm(led):
    lead = np.outer([1.0, 2.0, 3.0, 2.0, 1.0], [1.0, 4.0, 6.0, 4.0, 1.0]) if led else None
    basis = make_delta_basis(5, lead=lead)
    sums = basis.images.sum(axis=(1, 2))
    assert sums[0] == pytest.approx(1.0, abs=1e-14)
    np.testing.assert_allclose(sums[1:], 0.0, atol=1e-14)
    np.testing.assert_allclose((basis.images[1:] ** 2).sum(axis=(1, 2)), 1.0, atol=1e-14)
    if led:
        np.testing.assert_allclose(basis.images[0], lead / lead.sum(), atol=1e-15)


def test_it_spans_every_kernel(rng):
    wanted = rng.normal(size=(7, 7))
    basis = make_delta_basis(7)
    found = np.linalg.solve(basis.images.reshape(49, 49).T, wanted.ravel())
    np.testing.assert_allclose(np.tensordot(found, basis.images, axes=1), wanted, atol=1e-10)
    assert found[0] == pytest.approx(wanted.sum())


def test_stamps_are_convolved_with_each_of_its_kernels(rng):
    basis = make_delta_basis(5, lead=rng.uniform(size=(5, 5)))
    stamps = rng.normal(size=(2, 13, 13))
    found = convolve_stamps(stamps, basis, 9)
    for n in range(2):
        for i, kernel in enumerate(basis.images):
            np.testing.assert_allclose(found[n, i], convolve2d(stamps[n], kernel, mode="valid"), atol=1e-12)


@pytest.mark.parametrize("size", [1, 8])
def test_a_side_without_a_middle_pixel_is_refused(size):
    with pytest.raises(ValueError, match="odd"):
        make_delta_basis(size)
