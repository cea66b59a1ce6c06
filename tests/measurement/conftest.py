"""Synthetic exposures with known sources."""

from collections.abc import Callable

import numpy as np
import pytest
from drawn_stars import make_image

from alertprod.psf.analytic import GaussianPsf
from alertprod.psf.model import FWHM_PER_SIGMA, PointSpreadFunction

__all__ = ["make_image"]

SIGMA = 1.8


@pytest.fixture
def psf() -> PointSpreadFunction:
    return GaussianPsf(fwhm=SIGMA * FWHM_PER_SIGMA, size=31)


@pytest.fixture
def scattered() -> Callable[..., np.ndarray]:
    """Return a function that spreads n isolated positions with random fractions of a pixel: shape (n, 2)."""

    def scatter(n: int, *, spacing: int, seed: int) -> np.ndarray:
        side = int(np.ceil(np.sqrt(n)))
        rng = np.random.default_rng(seed)
        grid = spacing * (0.5 + np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2))
        return (grid + rng.uniform(-0.5, 0.5, grid.shape))[:n]

    return scatter
