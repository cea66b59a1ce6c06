import numpy as np
import pytest

from alertprod.view.stretch import compute_center_and_noise, stretch_sky


def test_stars_and_holes_do_not_move_center_and_noise():
    rng = np.random.default_rng(1)
    values = rng.normal(100.0, 5.0, 20_000)
    values[:400] = 1e6
    values[400:600] = np.nan
    center, noise = compute_center_and_noise(values)
    # 2 % of stars move a median by 0.025 sigma, its error is 1.25 / sqrt(n).
    assert center == pytest.approx(100.0, abs=5.0 * (0.03 + 5 * 1.25 / 20_000**0.5))
    assert noise == pytest.approx(5.0, rel=0.07)


@pytest.mark.parametrize("values", [np.full(10, np.nan), np.full(10, 3.0), np.array([])])
def test_noise_is_never_zero(values):
    assert compute_center_and_noise(values)[1] > 0


def test_stretch_is_linear_in_the_noise_and_monotonic():
    values = np.array([-100.0, 99.9, 100.0, 100.1, 1e6, np.nan])
    stretched = stretch_sky(values, center=100.0, noise=5.0)
    assert stretched[2] == 0.0
    assert stretched[3] == pytest.approx(0.1 / 20.0, rel=1e-4)
    assert np.all(np.diff(stretched[:5]) > 0)
    assert np.isnan(stretched[5])
