import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alertprod.psf.analytic import GaussianPsf, MoffatPsf
from alertprod.psf.model import FWHM_PER_SIGMA


def half_maximum_width(profile):
    """Return the FWHM of a finely sampled, single-peaked row, by linear interpolation; samples."""
    above = np.flatnonzero(profile >= 0.5 * profile.max())
    i, j = above[0], above[-1]
    left = i - (profile[i] - 0.5 * profile.max()) / (profile[i] - profile[i - 1])
    right = j + (profile[j] - 0.5 * profile.max()) / (profile[j] - profile[j + 1])
    return right - left


@pytest.mark.parametrize("make", [GaussianPsf, lambda **k: MoffatPsf(beta=2.5, **k)])
@pytest.mark.parametrize("ellipticity", [0.0, 0.3])
def test_the_profile_has_the_width_it_says_along_both_axes(make, ellipticity):
    # So wide that whole pixels sample it finely: linear interpolation errs by less than 1e-3.
    psf = make(fwhm=40.0, ellipticity=ellipticity, size=201)
    image = psf.compute_kernel_image(x=0, y=0)
    root = np.sqrt(1.0 - ellipticity)
    assert half_maximum_width(image[100]) == pytest.approx(40.0 / root, rel=2e-3)
    assert half_maximum_width(image[:, 100]) == pytest.approx(40.0 * root, rel=2e-3)


def test_a_gaussian_has_the_moments_of_its_sigma():
    psf = GaussianPsf.from_sigma(2.0)
    assert psf.fwhm == pytest.approx(2.0 * FWHM_PER_SIGMA)
    assert psf.compute_sigma() == pytest.approx(2.0, rel=1e-4)
    assert psf.compute_moments(x=5, y=6) == pytest.approx((4.0, 4.0, 0.0), abs=1e-3)


def test_a_moffat_of_great_beta_is_a_gaussian():
    moffat = MoffatPsf(fwhm=4.0, beta=3000.0, size=31).compute_kernel_image(x=0, y=0)
    gaussian = GaussianPsf(fwhm=4.0, size=31).compute_kernel_image(x=0, y=0)
    # The two differ by a few over beta of the peak.
    np.testing.assert_allclose(moffat, gaussian, atol=1e-3 * gaussian.max())


def test_the_position_angle_turns_from_x_to_y():
    psf = GaussianPsf(fwhm=4.0, ellipticity=0.4, position_angle_deg=30.0)
    ixx, iyy, ixy = psf.compute_moments(x=0, y=0)
    assert np.degrees(0.5 * np.arctan2(2 * ixy, ixx - iyy)) == pytest.approx(30.0, abs=1e-3)


def test_turning_by_a_right_angle_transposes():
    along_x = MoffatPsf(fwhm=3.0, ellipticity=0.3).compute_offset_image(x=0, y=0, dx=0.2, dy=-0.4)
    along_y = MoffatPsf(fwhm=3.0, ellipticity=0.3, position_angle_deg=90.0)
    np.testing.assert_allclose(along_y.compute_offset_image(x=0, y=0, dx=-0.4, dy=0.2), along_x.T, atol=1e-15)


@settings(max_examples=30, deadline=None)
@given(x=st.floats(-50, 5000), y=st.floats(-50, 5000))
def test_a_stellar_image_is_centred_on_the_star(x, y):
    psf = GaussianPsf(fwhm=3.5, size=41)
    image, box = psf.compute_stellar_image(x=x, y=y)
    assert image.sum() == pytest.approx(1.0)
    columns, rows = np.arange(box.x_min, box.x_max), np.arange(box.y_min, box.y_max)
    assert (image.sum(axis=0) * columns).sum() == pytest.approx(x, abs=1e-3)
    assert (image.sum(axis=1) * rows).sum() == pytest.approx(y, abs=1e-3)


def test_kernel_image_and_stellar_image_are_two_things():
    psf = GaussianPsf(fwhm=3.0)
    kernel = psf.compute_kernel_image(x=10.4, y=10.0)
    star, _ = psf.compute_stellar_image(x=10.4, y=10.0)
    np.testing.assert_allclose(kernel, kernel[:, ::-1])
    assert not np.allclose(star, star[:, ::-1], atol=1e-3)


def test_a_psf_is_pickled():
    psf = MoffatPsf(fwhm=3.3, beta=2.8, ellipticity=0.1, position_angle_deg=12.0, average_position=(3.0, 4.0))
    again = pickle.loads(pickle.dumps(psf))
    assert again.average_position == (3.0, 4.0)
    np.testing.assert_array_equal(again.compute_kernel_image(x=0, y=0), psf.compute_kernel_image(x=0, y=0))


@pytest.mark.parametrize(
    "arguments",
    [
        {"fwhm": 0.0},
        {"fwhm": float("nan")},
        {"fwhm": 3.0, "ellipticity": 1.0},
        {"fwhm": 3.0, "ellipticity": -0.1},
        {"fwhm": 3.0, "position_angle_deg": float("inf")},
        {"fwhm": 3.0, "size": 20},
        {"fwhm": 3.0, "size": 100001},
        {"fwhm": 3.0, "beta": 1.0},
    ],
)
def test_parameters_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="is"):
        MoffatPsf(**arguments)


def test_an_absurd_width_does_not_ask_for_absurd_memory():
    assert GaussianPsf(fwhm=1e9).size <= 1025
