"""Synthetic images with stars where a test wants them; a fixture that folders import into their conftest."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from alertprod.images.masked_image import MaskedImage
from alertprod.psf.model import PointSpreadFunction


@pytest.fixture
def make_image() -> Callable[..., MaskedImage]:
    """Return a function that draws stars (x, y, flux) on noise of a given sigma, variance plane to match."""

    def make(
        shape: tuple[int, int],
        psf: PointSpreadFunction,
        stars: Iterable[tuple[float, float, float]] = (),
        *,
        noise: float = 1.0,
        seed: int | None = None,
    ) -> MaskedImage:
        image = np.zeros(shape) if seed is None else np.random.default_rng(seed).normal(0.0, noise, shape)
        margin = psf.size
        canvas = np.pad(image, margin)
        for x, y, flux in stars:
            stamp, box = psf.compute_stellar_image(x=x, y=y)
            # Stars may stand on or just beyond the border.
            canvas[box.y_min + margin : box.y_max + margin, box.x_min + margin : box.x_max + margin] += flux * stamp
        image = canvas[margin:-margin, margin:-margin]
        return MaskedImage(
            image.astype(np.float32), np.zeros(shape, dtype=np.int32), np.full(shape, noise**2, dtype=np.float32)
        )

    return make
