"""Synthetic images with known stars."""

import pytest
from drawn_stars import make_image

from alertprod.psf.analytic import GaussianPsf
from alertprod.psf.model import FWHM_PER_SIGMA, PointSpreadFunction

__all__ = ["make_image"]


@pytest.fixture
def psf() -> PointSpreadFunction:
    return GaussianPsf(fwhm=1.8 * FWHM_PER_SIGMA, size=25)
