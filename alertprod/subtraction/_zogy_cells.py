"""Kernels known at the corners of cells and interpolated between them, so that no seam shows.

As with `SpatialKernel`, light is spread by the kernel of the place where it comes from. Unlike a polynomial, a grid of
cells follows whatever the PSF does, to the cells' size.
"""

from dataclasses import dataclass

import numpy as np

from alertprod._typing import FloatArray
from alertprod.geometry.box import Box
from alertprod.subtraction._filters import crop_kernels
from alertprod.subtraction.convolve import convolve_image
from alertprod.subtraction.spatial import SpatialKernel


@dataclass(frozen=True, slots=True)
class CellKernel:
    """A convolution kernel that is interpolated linearly, in x and in y, between the corners of cells.

    Parameters
    ----------
    images
        float64, shape ``(n_y, n_x, size, size)``, size odd: the kernel at each corner.
    x, y
        Where the corners are, ``(n_x,)`` and ``(n_y,)``, rising. Beyond the outermost ones the kernel does not vary; a
        single one is a kernel that does not vary at all.
    """

    images: FloatArray
    x: FloatArray
    y: FloatArray

    @property
    def size(self) -> int:
        """Side of the kernel images in pixels, odd."""
        return self.images.shape[-1]

    def __call__(self, x: float, y: float) -> FloatArray:
        """Return the kernel for light at (x, y): ``(size, size)``, origin in the middle pixel."""
        weights_x = _hat_weights(self.x, np.array([x]))[:, 0]
        weights_y = _hat_weights(self.y, np.array([y]))[:, 0]
        return np.einsum("j,i,jivu->vu", weights_y, weights_x, self.images)

    def turned(self) -> "CellKernel":
        """Return the kernel turned by 180 degrees: convolving with it is correlating with this one."""
        return CellKernel(self.images[:, :, ::-1, ::-1], self.x, self.y)

    def scaled(self, factors: FloatArray) -> "CellKernel":
        """Return the kernel times a number for each corner, ``(n_y, n_x)``."""
        return CellKernel(self.images * factors[:, :, None, None], self.x, self.y)

    def squared(self, truncation: float) -> "CellKernel":
        """Return the kernel that propagates variance: each corner's pixelwise square, `truncation` of it cut off.

        Notes
        -----
        The sums are kept. Between corners the square is interpolated, not the kernel: neighbours differ too little
        for the difference to show.
        """
        images = self.images.reshape(-1, self.size, self.size) ** 2
        cropped = crop_kernels(images, truncation)
        cropped = cropped * (images.sum(axis=(1, 2)) / cropped.sum(axis=(1, 2)))[:, None, None]
        return CellKernel(cropped.reshape(*self.images.shape[:2], *cropped.shape[1:]), self.x, self.y)

    def compute_extent(self, fraction: float) -> float:
        """Return the radius in pixels beyond which each corner's kernel stays below `fraction` of its peak."""
        magnitude = np.abs(self.images)
        peak = magnitude.max(axis=(2, 3), keepdims=True)
        above = np.any(magnitude >= fraction * peak, axis=(0, 1))
        half = self.size // 2
        v, u = np.mgrid[-half : half + 1, -half : half + 1]
        return float(np.sqrt((u * u + v * v)[above].max()))

    def convolve(self, image: FloatArray, *, mirrored: bool, n_threads: int) -> FloatArray:
        """Convolve an image.

        Parameters
        ----------
        image
            Finite everywhere; its first pixel is (0, 0).
        mirrored
            Take the image as mirrored beyond its borders, otherwise as zero there.

        Returns
        -------
        FloatArray
            float32, the shape of `image`.
        """
        if len(self.x) == len(self.y) == 1 and mirrored:
            return _convolve_piece(image, self.images[0, 0], n_threads)
        half = self.size // 2
        ny, nx = image.shape
        rim = half if mirrored else 0
        source = np.pad(image.astype(np.float32, copy=False), rim, mode="symmetric") if rim else image
        weights_y = _hat_weights(self.y, np.arange(-rim, ny + rim)).astype(np.float32)
        weights_x = _hat_weights(self.x, np.arange(-rim, nx + rim)).astype(np.float32)
        total = np.zeros((ny + 2 * (rim + half), nx + 2 * (rim + half)), dtype=np.float32)
        for j, weight_y in enumerate(weights_y):
            rows = _support(weight_y)
            for i, weight_x in enumerate(weights_x):
                columns = _support(weight_x)
                piece = source[rows, columns] * weight_y[rows, None] * weight_x[columns]
                spread = _convolve_piece(np.pad(piece, half), self.images[j, i], n_threads)
                total[rows.start : rows.stop + 2 * half, columns.start : columns.stop + 2 * half] += spread
        inner = slice(rim + half, -(rim + half) or None)
        return np.ascontiguousarray(total[inner, inner])


def _convolve_piece(piece: FloatArray, kernel: FloatArray, n_threads: int) -> FloatArray:
    return convolve_image(piece, SpatialKernel.constant(kernel, Box.from_shape(piece.shape)), n_threads=n_threads)


def _hat_weights(nodes: FloatArray, at: FloatArray) -> FloatArray:
    """Return the weight of each node at each point, ``(n_nodes, n_points)``; they add up to 1 at every point."""
    return np.array([np.interp(at, nodes, row) for row in np.eye(len(nodes))])


def _support(weights: FloatArray) -> slice:
    """Return where weights are not zero: a hat has one such interval."""
    inside = np.flatnonzero(weights)
    return slice(int(inside[0]), int(inside[-1]) + 1)
