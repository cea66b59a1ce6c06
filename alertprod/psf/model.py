"""The one interface of point spread functions: an image at x, y.

Two images, two methods: the **kernel image** is centred on its middle pixel, the **stellar image**
is centred on the star, whose position is not a whole pixel. Mixing them up shifts everything by
up to half a pixel.
"""

from abc import ABC, abstractmethod

import numpy as np

from alertprod._typing import FloatArray
from alertprod.geometry.box import Box

FWHM_PER_SIGMA = 2.0 * float(np.sqrt(2.0 * np.log(2.0)))
"""FWHM of a Gaussian of unit sigma."""


class PointSpreadFunction(ABC):
    """A position-dependent PSF on the pixel grid of one exposure; immutable and picklable."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Side of the images in pixels, odd."""

    @property
    @abstractmethod
    def average_position(self) -> tuple[float, float]:
        """A representative (x, y) in pixels: usually the middle of the detector."""

    @abstractmethod
    def compute_offset_image(self, *, x: float, y: float, dx: float, dy: float) -> FloatArray:
        """Return the PSF at (x, y) drawn with its centre `dx`, `dy` pixels off the middle pixel.

        Returns
        -------
        FloatArray
            float64, shape ``(size, size)``, sum 1. Offsets are meant to be within half a pixel.
        """

    def compute_kernel_image(self, *, x: float, y: float) -> FloatArray:
        """Return the PSF at (x, y) centred on the middle pixel: float64, ``(size, size)``, sum 1."""
        return self.compute_offset_image(x=x, y=y, dx=0.0, dy=0.0)

    def compute_stellar_image(self, *, x: float, y: float) -> tuple[FloatArray, Box]:
        """Return the image of a star of unit flux at (x, y), and the pixels it covers.

        The box may reach beyond the detector; the caller clips.
        """
        column, row = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        image = self.compute_offset_image(x=x, y=y, dx=x - column, dy=y - row)
        half = self.size // 2
        box = Box(x_min=column - half, y_min=row - half, x_max=column + half + 1, y_max=row + half + 1)
        return image, box

    def compute_offset_images(self, *, x: FloatArray, y: FloatArray, dx: FloatArray, dy: FloatArray) -> FloatArray:
        """Return `compute_offset_image` at many positions, ``(n, size, size)``; NaN where there is no image.

        Notes
        -----
        One after the other, but for those models that draw many in little more time than one.
        """
        images = np.full((len(x), self.size, self.size), np.nan)
        for i in np.flatnonzero(np.isfinite(x) & np.isfinite(y)):
            try:
                images[i] = self.compute_offset_image(x=float(x[i]), y=float(y[i]), dx=float(dx[i]), dy=float(dy[i]))
            except ValueError:
                # How a PSF says that it is not defined here: off a template's tiles, far outside a fit's stars.
                continue
        return images

    def compute_kernel_images(self, *, x: FloatArray, y: FloatArray) -> FloatArray:
        """Return `compute_kernel_image` at many positions, ``(n, size, size)``; NaN where there is none."""
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        return self.compute_offset_images(x=x, y=y, dx=np.zeros_like(x), dy=np.zeros_like(y))

    def compute_stellar_images(self, *, x: FloatArray, y: FloatArray) -> FloatArray:
        """Return stars of unit flux at many positions, on the pixels of `compute_stellar_image`; NaN where there is none."""
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        with np.errstate(invalid="ignore"):  # of an infinite position there is no fraction, and no star
            dx, dy = x - np.floor(x + 0.5), y - np.floor(y + 0.5)
        return self.compute_offset_images(x=x, y=y, dx=dx, dy=dy)

    def compute_moments(self, *, x: float, y: float) -> tuple[float, float, float]:
        """Return adaptive (Gaussian-weighted) second moments ``(Ixx, Iyy, Ixy)`` at (x, y), pixels squared."""
        return adaptive_moments(self.compute_kernel_image(x=x, y=y))

    def compute_sigma(self, *, x: float | None = None, y: float | None = None) -> float:
        """Return the determinant radius ``(Ixx Iyy - Ixy^2)^(1/4)`` in pixels, at `average_position` by default."""
        if x is None or y is None:
            x, y = self.average_position
        ixx, iyy, ixy = self.compute_moments(x=x, y=y)
        return float((ixx * iyy - ixy * ixy) ** 0.25)

    def compute_fwhm(self, *, x: float | None = None, y: float | None = None) -> float:
        """Return the FWHM in pixels of the Gaussian of the same determinant radius."""
        return FWHM_PER_SIGMA * self.compute_sigma(x=x, y=y)


def adaptive_moments(
    image: FloatArray, *, max_iterations: int = 100, tolerance: float = 1e-6
) -> tuple[float, float, float]:
    """Measure Gaussian-weighted second moments of a centred, noise-free image.

    Parameters
    ----------
    image
        Shape ``(n, n)``, n odd, centred on the middle pixel, background-free.

    Returns
    -------
    tuple
        ``(Ixx, Iyy, Ixy)`` in pixels squared: the elliptical Gaussian weight that reproduces itself.

    Raises
    ------
    ValueError
        Raised if the iteration leaves the positive-definite matrices: the image is not star-like.

    Notes
    -----
    Bernstein & Jarvis (2002), section 3.1: with the weight equal to the object's own best Gaussian, the
    weighted moments are half of the object's; iterate ``M = 2 M_w`` to the fixed point.
    """
    half = image.shape[0] // 2
    v, u = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
    ixx = iyy = max(1.0, (image.shape[0] / 8.0) ** 2)
    ixy = 0.0
    for _ in range(max_iterations):
        determinant = ixx * iyy - ixy * ixy
        if not (determinant > 0 and ixx > 0):
            msg = f"adaptive moments did not converge: Ixx {ixx:.3g}, Iyy {iyy:.3g}, Ixy {ixy:.3g}"
            raise ValueError(msg)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            # Of a needle, or of nothing: what is not finite ends in the error above.
            weight = np.exp(-0.5 * (iyy * u * u - 2.0 * ixy * u * v + ixx * v * v) / determinant) * image
            total = weight.sum()
            new = (
                2.0 * float((weight * u * u).sum() / total),
                2.0 * float((weight * v * v).sum() / total),
                2.0 * float((weight * u * v).sum() / total),
            )
        change = max(abs(new[0] - ixx), abs(new[1] - iyy), abs(new[2] - ixy))
        ixx, iyy, ixy = new
        if change < tolerance * (ixx + iyy):
            break
    return ixx, iyy, ixy
