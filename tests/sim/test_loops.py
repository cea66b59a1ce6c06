"""The compiled drawing against NumPy, and against what a Moffat profile is."""

import numpy as np
import pytest

from alertprod.sim._loops import draw_moffats


def draw(shape, *, x, y, flux=1.0, fwhm=4.0, beta=3.0, e1=0.0, e2=0.0, radius=1e9):
    image = np.zeros(shape)
    draw_moffats(image, *(np.array([value]) for value in (x, y, flux, fwhm, beta, e1, e2, radius)))
    return image


def moffat(x, y, *, fwhm, beta, e1, e2):
    """The profile of Moffat (1969) of unit flux, from its ellipse's matrix."""
    e, theta = np.hypot(e1, e2), 0.5 * np.arctan2(e2, e1)
    scale = 0.5 * fwhm / np.sqrt(2.0 ** (1.0 / beta) - 1.0)
    a, b = scale * ((1 + e) / (1 - e)) ** 0.25, scale * ((1 - e) / (1 + e)) ** 0.25
    rotation = np.array([[np.cos(theta), np.sin(theta)], [-np.sin(theta), np.cos(theta)]])
    inverse = rotation.T @ np.diag([a**-2, b**-2]) @ rotation
    r2 = inverse[0, 0] * x**2 + 2 * inverse[0, 1] * x * y + inverse[1, 1] * y**2
    return (beta - 1) / (np.pi * a * b) * (1 + r2) ** -beta


@pytest.mark.parametrize(
    ("fwhm", "beta", "e1", "e2"), [(2.0, 2.5, 0.0, 0.0), (4.4, 3.2, 0.05, -0.1), (7.0, 4.0, -0.2, 0.0)]
)
def test_pixels_are_integrals_of_the_profile(fwhm, beta, e1, e2):
    x, y = 20.3, 17.8
    image = draw((36, 41), x=x, y=y, flux=1000.0, fwhm=fwhm, beta=beta, e1=e1, e2=e2)
    nodes, weights = np.polynomial.legendre.leggauss(9)
    v, u = np.mgrid[:36, :41].astype(float)
    twin = sum(
        wy * wx / 4 * moffat(u - x + dx / 2, v - y + dy / 2, fwhm=fwhm, beta=beta, e1=e1, e2=e2)
        for dy, wy in zip(nodes, weights, strict=True)
        for dx, wx in zip(nodes, weights, strict=True)
    )
    # Three Gauss points a side within two FWHM, the pixel's middle beyond.
    near = np.hypot(u - x, v - y) <= 2 * fwhm
    peak = 1000.0 * twin.max()
    np.testing.assert_allclose(image[near], 1000.0 * twin[near], atol=1e-4 * peak)
    np.testing.assert_allclose(image[~near], 1000.0 * twin[~near], atol=1e-3 * peak)


def test_flux_is_that_of_the_whole_plane():
    side, fwhm, beta = 401, 4.0, 3.0
    image = draw((side, side), x=200.0, y=200.0, fwhm=fwhm, beta=beta)
    scale = 0.5 * fwhm / np.sqrt(2.0 ** (1.0 / beta) - 1.0)
    # Outside a circle of radius R lies (1 + R^2 / scale^2)^(1 - beta); the square holds a little more than its circle.
    outside = (1 + (side / 2 / scale) ** 2) ** (1 - beta)
    assert image.sum() == pytest.approx(1.0, abs=1e-3 + outside)


def test_fwhm_is_the_width_at_half_the_peak():
    image = draw((101, 101), x=50.0, y=50.0, fwhm=20.0, beta=3.0)
    profile = image[50] / image[50, 50]
    width = 2 * np.interp(-0.5, -profile[50:], np.arange(51))
    assert width == pytest.approx(20.0, abs=0.1)


def test_drawing_adds_and_clips_at_the_edges():
    image = np.full((10, 12), 3.0)
    two = [
        np.array(v, float)
        for v in ([0.0, 11.0], [0.0, 9.0], [5.0, 7.0], [3.0, 3.0], [3.0, 3.0], [0, 0], [0, 0], [50, 50])
    ]
    draw_moffats(image, *two)
    alone = draw((10, 12), x=0.0, y=0.0, flux=5.0, fwhm=3.0) + draw((10, 12), x=11.0, y=9.0, flux=7.0, fwhm=3.0)
    np.testing.assert_allclose(image, 3.0 + alone)


def test_nothing_is_drawn_beyond_the_radius():
    image = draw((21, 21), x=10.0, y=10.0, radius=4.0)
    assert np.count_nonzero(image) == 81
    assert image[6, 6] > 0
    assert image[5, 10] == 0


def test_axes_swap_with_the_ellipticity():
    image = draw((21, 21), x=10.0, y=10.0, e1=0.3)
    np.testing.assert_allclose(image.T, draw((21, 21), x=10.0, y=10.0, e1=-0.3), atol=1e-12)
    v, u = np.mgrid[:21, :21] - 10.0
    assert (image * u * u).sum() > (image * v * v).sum()
