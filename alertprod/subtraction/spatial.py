"""What varies over an image: Chebyshev polynomials, kernels and backgrounds built on them.

Coordinates are mapped from the image's box to [-1, 1] in each axis. Terms are ordered by total degree, within a degree
by falling power of x: 1; x, y; x², xy, y². A kernel belongs to the place of the light, not to the pixel where
that light ends up: all of a star is convolved with the kernel at the star.
"""

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev, polynomial

from alertprod._typing import FloatArray, IntArray
from alertprod.geometry.box import Box
from alertprod.subtraction import _loops
from alertprod.subtraction.config import SpatialModel


def term_degrees(order: int) -> list[tuple[int, int]]:
    """Return the degrees (in x, in y) of the ``(order + 1)(order + 2)/2`` terms."""
    return [(total - j, j) for total in range(order + 1) for j in range(total + 1)]


def count_terms(order: int) -> int:
    """Return the number of terms up to total degree `order`."""
    return (order + 1) * (order + 2) // 2


def normalised_axes(box: Box, *, x: FloatArray | IntArray, y: FloatArray | IntArray) -> tuple[FloatArray, FloatArray]:
    """Map pixels to [-1, 1] between the centres of the first and the last pixel of each axis."""
    ny, nx = box.shape
    u = 2.0 * (np.asarray(x, dtype=float) - box.x_min) / max(1, nx - 1) - 1.0
    v = 2.0 * (np.asarray(y, dtype=float) - box.y_min) / max(1, ny - 1) - 1.0
    return u, v


def spatial_terms(
    order: int, box: Box, *, x: FloatArray, y: FloatArray, model: SpatialModel = "chebyshev1"
) -> FloatArray:
    """Evaluate every term at points: float64, shape ``(n_points, n_terms)``.

    A plain "polynomial" has powers of the same coordinates, from -1 to 1, in the place of Chebyshev polynomials.
    """
    u, v = normalised_axes(box, x=np.atleast_1d(x), y=np.atleast_1d(y))
    vander = chebyshev.chebvander if model == "chebyshev1" else polynomial.polyvander
    powers_u, powers_v = vander(u, order), vander(v, order)
    return np.stack([powers_u[:, i] * powers_v[:, j] for i, j in term_degrees(order)], axis=1)


def chebyshev_from(model: SpatialModel, order: int) -> FloatArray:
    """Return the matrix, ``(n_terms, n_terms)``, that makes Chebyshev coefficients of those of a model."""
    if model == "chebyshev1":
        return np.eye(count_terms(order))
    axis = np.array([np.pad(chebyshev.poly2cheb(power), (0, order + 1))[: order + 1] for power in np.eye(order + 1)])
    degrees = term_degrees(order)
    return np.array([[axis[i, k] * axis[j, m] for i, j in degrees] for k, m in degrees])


def evaluate_polynomial(coefficients: FloatArray, order: int, box: Box, *, rows: slice | None = None) -> FloatArray:
    """Return the sum of the terms at every pixel of the box, or of some of its rows: float32."""
    ny, nx = box.shape
    u, v = normalised_axes(box, x=np.arange(nx) + box.x_min, y=np.arange(ny) + box.y_min)
    powers_u, powers_v = chebyshev.chebvander(u, order), chebyshev.chebvander(v, order)
    matrix = np.zeros((order + 1, order + 1))
    for value, (i, j) in zip(coefficients, term_degrees(order), strict=True):
        matrix[j, i] = value
    if rows is not None:
        powers_v = powers_v[rows]
    return _loops.multiply_out((powers_v @ matrix).astype(np.float32), powers_u.T.astype(np.float32, order="C"))


@dataclass(frozen=True, slots=True)
class SpatialKernel:
    """A convolution kernel that varies over an image as a polynomial.

    Parameters
    ----------
    terms
        float64, shape ``(n_terms, size, size)``, size odd: the kernel that goes with each spatial term.
    order
        Highest total degree.
    box
        The image on which the polynomials are defined.
    """

    terms: FloatArray
    order: int
    box: Box

    @classmethod
    def constant(cls, image: FloatArray, box: Box) -> "SpatialKernel":
        """Return a kernel that does not vary."""
        return cls(np.asarray(image, dtype=float)[None], 0, box)

    @classmethod
    def fit(cls, images: FloatArray, *, x: FloatArray, y: FloatArray, order: int, box: Box) -> "SpatialKernel":
        """Fit kernels known at points, shape ``(n, size, size)``, by least squares; n at least the number of terms."""
        design = spatial_terms(order, box, x=x, y=y)
        flat = np.linalg.lstsq(design, images.reshape(len(images), -1), rcond=None)[0]
        return cls(flat.reshape(-1, *images.shape[1:]), order, box)

    @property
    def size(self) -> int:
        """Side of the kernel images in pixels, odd."""
        return self.terms.shape[1]

    @property
    def centre(self) -> tuple[float, float]:
        """The middle (x, y) of the box."""
        return (self.box.x_min + self.box.x_max - 1) / 2, (self.box.y_min + self.box.y_max - 1) / 2

    def compute_image(self, *, x: float, y: float) -> FloatArray:
        """Return the kernel for light at (x, y): float64, ``(size, size)``, origin in the middle pixel."""
        weights = spatial_terms(self.order, self.box, x=np.array([x]), y=np.array([y]))[0]
        return np.tensordot(weights, self.terms, axes=1)

    def compute_images(self, *, x: FloatArray, y: FloatArray) -> FloatArray:
        """Return `compute_image` at many points: float64, ``(n, size, size)``."""
        return np.tensordot(spatial_terms(self.order, self.box, x=x, y=y), self.terms, axes=1)

    def __call__(self, x: float, y: float) -> FloatArray:
        """Return `compute_image`, for those who take a function of position."""
        return self.compute_image(x=x, y=y)

    def kernel_sum(self, *, x: float | None = None, y: float | None = None) -> float:
        """Return the sum of the kernel, at the middle of the image by default."""
        if x is None or y is None:
            x, y = self.centre
        weights = spatial_terms(self.order, self.box, x=np.array([x]), y=np.array([y]))[0]
        return float(weights @ self.terms.sum(axis=(1, 2)))

    def sample(self, n_side: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return kernel images ``(n, size, size)`` and their x, y on `n_side` x `n_side` Chebyshev nodes."""
        nodes = np.cos(np.pi * (np.arange(n_side) + 0.5) / n_side)
        ny, nx = self.box.shape
        grid_x, grid_y = np.meshgrid(
            self.box.x_min + (nodes + 1) / 2 * (nx - 1), self.box.y_min + (nodes + 1) / 2 * (ny - 1)
        )
        x, y = grid_x.ravel(), grid_y.ravel()
        weights = spatial_terms(self.order, self.box, x=x, y=y)
        return np.tensordot(weights, self.terms, axes=1), x, y

    def squared(self) -> "SpatialKernel":
        """Return the kernel that propagates variance: the pixelwise square, exact at twice the order."""
        order = 2 * self.order
        images, x, y = self.sample(order + 1)
        return SpatialKernel.fit(images**2, x=x, y=y, order=order, box=self.box)

    def scaled(self, factor: float) -> "SpatialKernel":
        """Return the kernel times a number."""
        return SpatialKernel(self.terms * factor, self.order, self.box)

    def compute_extent(self, fraction: float) -> float:
        """Return the radius in pixels beyond which the kernel stays below `fraction` of its peak, over the image."""
        images, _, _ = self.sample(max(2, self.order + 1))
        magnitude = np.abs(images)
        peak = magnitude.max(axis=(1, 2), keepdims=True)
        if not np.all(peak > 0):
            return 0.0
        above = np.any(magnitude >= fraction * peak, axis=0)
        half = self.size // 2
        v, u = np.mgrid[-half : half + 1, -half : half + 1]
        return float(np.sqrt((u * u + v * v)[above].max()))


@dataclass(frozen=True, slots=True)
class SpatialBackground:
    """A smooth background over an image.

    Parameters
    ----------
    coefficients
        float64, shape ``(n_terms,)``, of the Chebyshev terms in the order of `term_degrees`; the image's unit.
    coefficient_errors
        Their standard errors from the fit's weights.
    order
        Highest total degree.
    box
        The image on which the polynomials are defined.
    """

    coefficients: FloatArray
    coefficient_errors: FloatArray
    order: int
    box: Box

    def evaluate(self, *, x: FloatArray, y: FloatArray) -> FloatArray:
        """Return the background at points, shape as `x`."""
        values = spatial_terms(self.order, self.box, x=np.ravel(x), y=np.ravel(y)) @ self.coefficients
        return values.reshape(np.shape(x))

    def compute_image(self, *, rows: slice | None = None) -> FloatArray:
        """Return the background of every pixel, or of some of the box's rows: float32."""
        return evaluate_polynomial(self.coefficients, self.order, self.box, rows=rows)

    def scaled(self, factor: float) -> "SpatialBackground":
        """Return the background times a number."""
        return SpatialBackground(
            self.coefficients * factor, self.coefficient_errors * abs(factor), self.order, self.box
        )
