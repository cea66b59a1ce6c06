"""Star fields with known truth."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from alertprod._typing import FloatArray
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.analytic import GaussianPsf
from alertprod.psf.model import PointSpreadFunction


@dataclass(frozen=True)
class StarField:
    """Positions and fluxes of stars, to be drawn through any PSF."""

    shape: tuple[int, int]
    x: FloatArray
    y: FloatArray
    flux: FloatArray

    @classmethod
    def scattered(
        cls,
        rng: np.random.Generator,
        *,
        shape: tuple[int, int] = (256, 256),
        n: int = 20,
        flux: tuple[float, float] = (500.0, 1000.0),
    ) -> "StarField":
        # Stars near the rim serve no fit, so they are few enough to leave out.
        return cls(
            shape,
            rng.uniform(24, shape[1] - 25, n),
            rng.uniform(24, shape[0] - 25, n),
            rng.uniform(*flux, n),
        )

    def draw(self, psf: PointSpreadFunction, *, flux_scale: float = 1.0) -> FloatArray:
        """Return the noise-free image, float64."""
        half = psf.size // 2
        padded = np.zeros((self.shape[0] + 2 * half, self.shape[1] + 2 * half))
        for x, y, flux in zip(self.x, self.y, self.flux, strict=True):
            image, box = psf.compute_stellar_image(x=x, y=y)
            padded[box.y_min + half : box.y_max + half, box.x_min + half : box.x_max + half] += flux * image
        return padded[half:-half, half:-half] * flux_scale

    def observe(
        self,
        psf: PointSpreadFunction,
        *,
        noise: float,
        rng: np.random.Generator,
        flux_scale: float = 1.0,
        background: FloatArray | float = 0.0,
    ) -> MaskedImage:
        """Return the image with white noise and its true variance."""
        image = self.draw(psf, flux_scale=flux_scale) + background + rng.normal(0.0, noise, self.shape)
        return as_masked_image(image, noise**2)


def as_masked_image(image: FloatArray, variance: FloatArray | float) -> MaskedImage:
    return MaskedImage(
        image.astype(np.float32),
        np.zeros(image.shape, dtype=np.int32),
        np.broadcast_to(np.asarray(variance, dtype=np.float32), image.shape).copy(),
    )


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260731)


@pytest.fixture
def make_field() -> Callable[..., StarField]:
    return StarField.scattered


@pytest.fixture
def make_image() -> Callable[..., MaskedImage]:
    return as_masked_image


@pytest.fixture
def make_psf() -> Callable[[float], GaussianPsf]:
    return GaussianPsf.from_sigma
