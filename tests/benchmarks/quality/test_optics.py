"""The renderer against brute force: light is neither lost nor displaced, pixels are integrated, not sampled."""

import numpy as np
import pytest
from benchmarks.quality.optics import Optics, TruePsf, choose_stamp_side, draw_stamp

PLAIN = {"wing_fraction": 0.0, "e1": 0.0, "e2": 0.0, "defocus": 0.0, "astigmatism": 0.0, "coma": 0.0, "trefoil": 0.0}


def integrate_moffat(*, fwhm, dx, dy, n, fine=61):
    """Return a Moffat of beta 3.5 integrated over pixels by summing a fine grid."""
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / 3.5) - 1))
    steps = (np.arange(n * fine) + 0.5) / fine - 0.5 - n // 2
    v, u = np.meshgrid(steps - dy, steps - dx, indexing="ij")
    density = 2.5 / (np.pi * alpha**2) * (1 + (u * u + v * v) / alpha**2) ** -3.5
    return density.reshape(n, fine, n, fine).mean(axis=(1, 3))


@pytest.mark.parametrize("fwhm", [2.5, 4.2])
def test_a_star_is_its_profile_integrated_over_pixels(fwhm):
    n = 48
    stamp = draw_stamp(Optics(fwhm=fwhm, variation=0.0, **PLAIN), u=0.0, v=0.0, dx=0.3, dy=-0.45, n=n)
    expected = integrate_moffat(fwhm=fwhm, dx=0.3, dy=-0.45, n=n)
    # What lies beyond the stamp is wrapped round its edge: (1 + r^2 / alpha^2)^-2.5 of the light, spread over the stamp.
    assert stamp.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(stamp, expected, atol=1e-4 * expected.max(), rtol=1e-3 if fwhm > 4 else 0)


def test_light_is_kept_and_centred_whatever_the_aberrations_and_the_place():
    n = 128
    for u, v in ((0.0, 0.0), (-0.9, 0.7)):
        stamp = draw_stamp(Optics(drift_x=2.0), u=u, v=v, dx=0.2, dy=0.4, n=n)
        assert stamp.sum() == pytest.approx(1.0, abs=1e-10)
        assert stamp.min() > -1e-6 * stamp.max()
        yy, xx = np.mgrid[:n, :n] - n // 2
        # The mean is that of all light; the wings of a Moffat within the stamp keep it to a hundredth of a pixel.
        assert (stamp * xx).sum() == pytest.approx(0.2, abs=0.01)
        assert (stamp * yy).sum() == pytest.approx(0.4, abs=0.01)


def test_a_galaxy_is_the_star_convolved_with_its_disc():
    n, shape = 64, np.array([[2.0, 0.5], [0.0, 1.0]])
    galaxy = draw_stamp(Optics(), u=0.1, v=0.1, dx=0.0, dy=0.0, n=n, galaxy=shape)
    rng = np.random.default_rng(3)
    # Points of an exponential disc: a radius of Gamma(2) and an angle.
    radius, angle = rng.gamma(2.0, size=4000), rng.uniform(0, 2 * np.pi, 4000)
    x, y = shape @ np.stack([radius * np.cos(angle), radius * np.sin(angle)])
    star = np.fft.rfft2(draw_stamp(Optics(), u=0.1, v=0.1, dx=0.0, dy=0.0, n=n))
    fy, fx = np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :]
    points = np.zeros_like(star)
    for xi, yi in zip(x, y, strict=True):
        points += np.exp(-2j * np.pi * (fx * xi + fy * yi)) / len(x)
    drawn = np.fft.irfft2(star * points, s=(n, n))
    assert galaxy.sum() == pytest.approx(1.0, abs=1e-10)
    # Monte Carlo of 4000 points.
    assert np.abs(galaxy - drawn).max() < 5 * galaxy.max() / np.sqrt(4000)


def test_a_trail_is_as_long_as_it_says():
    n = 64
    yy, xx = np.mgrid[:n, :n] - n // 2
    star = draw_stamp(Optics(**PLAIN), u=0.0, v=0.0, dx=0.0, dy=0.0, n=n)
    trail = draw_stamp(Optics(**PLAIN), u=0.0, v=0.0, dx=0.0, dy=0.0, n=n, trail=(12.0, 0.0))
    # A line of length L adds L^2 / 12 to the second moment along it.
    assert ((trail - star) * xx**2).sum() == pytest.approx(12.0, rel=0.01)
    assert ((trail - star) * yy**2).sum() == pytest.approx(0.0, abs=0.05)


def test_the_psf_of_an_exposure_is_a_star_on_it():
    psf = TruePsf(Optics(), (400, 400))
    stamp = draw_stamp(Optics(), u=2 * 100.5 / 400 - 1, v=2 * 300.5 / 400 - 1, dx=0.25, dy=0.0, n=64)
    image = psf.compute_offset_image(x=100.0, y=300.0, dx=0.25, dy=0.0)
    inner = stamp[12:53, 12:53]
    np.testing.assert_allclose(image, inner / inner.sum(), atol=1e-12)
    assert 0.995 < psf.compute_enclosed() < 1.0


def test_bright_stars_get_stamps_beyond_which_there_is_no_light_to_speak_of():
    for share in (1e-7, 1e-9):
        side = choose_stamp_side(share)
        stamp = draw_stamp(Optics(), u=0.0, v=0.0, dx=0.0, dy=0.0, n=2 * side)
        # A Moffat's scale is 20 % larger than what the estimate takes, and the wrapped light adds to the true.
        assert stamp[side, side + side // 2] < 3 * share
