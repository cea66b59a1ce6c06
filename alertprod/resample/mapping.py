"""From the pixels of one grid to those of another: exact at the nodes of a lattice, bilinear between.

World coordinates cost a microsecond a point; an image has 10^7. The lattice is made finer until the
error, measured against the full transformation between the nodes, is within a stated bound.
"""

import copy

import numpy as np
from scipy.interpolate import RectBivariateSpline

from alertprod._typing import FloatArray
from alertprod.geometry.box import Box
from alertprod.geometry.sphere import ARCSEC_PER_DEG, separation_arcsec
from alertprod.geometry.wcs import SkyWcs

_LADDER = ((128, 16), (64, 16), (32, 8), (16, 4), (8, 4), (4, 2), (2, 1))
"""Spacings in pixels: of exact nodes and of the lattice a spline through them fills; tried in this order."""

_SAFETY = 2.0
"""The error is measured at some points, so it must be this much below the bound."""

_ROUND_TRIP_PIXELS = 0.01
"""Back on the sky, a source position must return to where it came from this well, or there is no such position."""


class PixelMapping:
    """Where the pixels of a target image lie on a source grid; immutable and picklable.

    Parameters
    ----------
    x_nodes, y_nodes
        Source positions, pixels, at target positions ``(step * i, step * j)``; shape ``(n_rows, n_columns)``, at
        least 3 each way. NaN where the target has no counterpart.
    step
        Target pixels between nodes.
    shape
        Rows and columns of the target image, which the nodes cover.
    max_error_pixels
        What the maker vouches for, in source pixels.

    Raises
    ------
    ValueError
        Raised if the nodes do not cover the target image.
    """

    def __init__(
        self,
        x_nodes: FloatArray,
        y_nodes: FloatArray,
        *,
        step: int,
        shape: tuple[int, int],
        max_error_pixels: float = 0.0,
    ) -> None:
        x_nodes, y_nodes = np.array(x_nodes, dtype=np.float64), np.array(y_nodes, dtype=np.float64)
        if x_nodes.shape != y_nodes.shape or x_nodes.ndim != 2 or min(x_nodes.shape) < 3:
            msg = f"nodes of shapes {x_nodes.shape} and {y_nodes.shape}; one shape of at least (3, 3) is needed"
            raise ValueError(msg)
        if any((count - 1) * step < length - 1 for count, length in zip(x_nodes.shape, shape, strict=True)):
            msg = f"{x_nodes.shape} nodes in steps of {step} do not cover an image of shape {shape}"
            raise ValueError(msg)
        dx_dy, dx_dx = np.gradient(x_nodes, step, edge_order=2)
        dy_dy, dy_dx = np.gradient(y_nodes, step, edge_order=2)
        self._x_nodes, self._y_nodes = x_nodes, y_nodes
        self._area_nodes = np.abs(dx_dx * dy_dy - dx_dy * dy_dx)
        for nodes in (self._x_nodes, self._y_nodes, self._area_nodes):
            nodes.flags.writeable = False
        self._step = int(step)
        self._shape = (int(shape[0]), int(shape[1]))
        self._max_error_pixels = float(max_error_pixels)

    @classmethod
    def between(
        cls,
        target_wcs: SkyWcs,
        source_wcs: SkyWcs,
        shape: tuple[int, int],
        *,
        max_error_pixels: float = 1e-3,
        source_shape: tuple[int, int] | None = None,
    ) -> "PixelMapping":
        """Build from two world coordinate systems.

        Parameters
        ----------
        shape
            Rows and columns of the target image.
        max_error_pixels
            Largest distance, in source pixels, between `evaluate` and the full transformation.
        source_shape
            Where given, the bound is kept on this image alone: far outside, distortion polynomials run wild.

        Raises
        ------
        ValueError
            Raised if no lattice keeps the bound.
        """
        error = np.inf
        for coarse, step in _LADDER:
            counts = tuple(max(3, -(-(length - 1) // step) + 1) for length in shape)
            nodes = _fill_lattice(target_wcs, source_wcs, counts, step=step, coarse=coarse)
            mapping = cls(*nodes, step=step, shape=shape, max_error_pixels=max_error_pixels)
            error = mapping._measure_error(target_wcs, source_wcs, coarse, source_shape)
            if error * _SAFETY <= max_error_pixels:
                return mapping
        msg = f"the mapping between the grids is off by {error:.2g} pixels at best, {max_error_pixels:.2g} is allowed"
        raise ValueError(msg)

    @classmethod
    def from_affine(cls, matrix: FloatArray, *, x: float, y: float, shape: tuple[int, int]) -> "PixelMapping":
        """Build the linear mapping that takes target (0, 0) to source (x, y).

        Parameters
        ----------
        matrix
            d(source x, y)/d(target x, y), shape ``(2, 2)``.
        """
        matrix = np.asarray(matrix, dtype=float)
        step = 16
        counts = tuple(max(3, -(-(length - 1) // step) + 1) for length in shape)
        v, u = np.mgrid[: counts[0], : counts[1]] * float(step)
        return cls(
            x + matrix[0, 0] * u + matrix[0, 1] * v,
            y + matrix[1, 0] * u + matrix[1, 1] * v,
            step=step,
            shape=shape,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the target image."""
        return self._shape

    @property
    def step(self) -> int:
        """Target pixels between nodes."""
        return self._step

    @property
    def nodes(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Source x, source y (pixels) and area ratio at the nodes, read-only, shape ``(n_rows, n_columns)`` each."""
        return self._x_nodes, self._y_nodes, self._area_nodes

    @property
    def max_error_pixels(self) -> float:
        """Bound of the distance to the full transformation, source pixels."""
        return self._max_error_pixels

    def evaluate(self, *, x: FloatArray | float, y: FloatArray | float) -> tuple[FloatArray, FloatArray]:
        """Return source positions of target positions; beyond the nodes the last cell is extended."""
        x, y = np.broadcast_arrays(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
        return self._interpolate(self._x_nodes, x, y), self._interpolate(self._y_nodes, x, y)

    def compute_area_ratio(self, *, x: FloatArray | float, y: FloatArray | float) -> FloatArray:
        """Return the area of a target pixel in source pixels."""
        x, y = np.broadcast_arrays(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
        return self._interpolate(self._area_nodes, x, y)

    def compute_jacobian(self, *, x: FloatArray | float, y: FloatArray | float) -> FloatArray:
        """Return d(source x, y)/d(target x, y), shape ``(..., 2, 2)``: the mean over a cell about each (x, y)."""
        half = 0.5 * self._step
        steps_x, steps_y = np.array([[half, -half, 0.0, 0.0], [0.0, 0.0, half, -half]])
        ends = self.evaluate(x=np.asarray(x)[..., None] + steps_x, y=np.asarray(y)[..., None] + steps_y)
        return np.stack([source[..., 0::2] - source[..., 1::2] for source in ends], axis=-2) / (2.0 * half)

    def crop_to_source(self, source_shape: tuple[int, int]) -> tuple[Box, "PixelMapping"] | None:
        """Return the part of the mapping that matters for a source image.

        Returns
        -------
        tuple or None
            A box of target pixels outside which none lies on the source, and the mapping of its pixels, the
            first of which becomes (0, 0). None where no pixel does.
        """
        ny, nx = source_shape
        corners = [
            np.stack([nodes[:-1, :-1], nodes[1:, :-1], nodes[:-1, 1:], nodes[1:, 1:]])
            for nodes in (self._x_nodes, self._y_nodes)
        ]
        # A cell that maps nowhere has NaN in a corner, and so in its extremes, which compare as False.
        (x_low, y_low), (x_high, y_high) = ([c.min(axis=0) for c in corners], [c.max(axis=0) for c in corners])
        meets = (x_high >= -0.5) & (x_low <= nx - 0.5) & (y_high >= -0.5) & (y_low <= ny - 0.5)
        rows, columns = np.flatnonzero(meets.any(axis=1)), np.flatnonzero(meets.any(axis=0))
        if rows.size == 0:
            return None
        box = Box(
            x_min=int(columns[0]) * self._step,
            y_min=int(rows[0]) * self._step,
            x_max=min((int(columns[-1]) + 1) * self._step, self._shape[1]),
            y_max=min((int(rows[-1]) + 1) * self._step, self._shape[0]),
        )
        if box.area == 0:
            return None
        part = copy.copy(self)
        nodes_inside = slice(rows[0], rows[-1] + 2), slice(columns[0], columns[-1] + 2)
        part._x_nodes = self._x_nodes[nodes_inside]  # noqa: SLF001  one of this class
        part._y_nodes = self._y_nodes[nodes_inside]  # noqa: SLF001  one of this class
        part._area_nodes = self._area_nodes[nodes_inside]  # noqa: SLF001  one of this class
        part._shape = box.shape  # noqa: SLF001  one of this class
        return box, part

    def _interpolate(self, nodes: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
        u, v = x / self._step, y / self._step
        column = np.clip(np.floor(u), 0, nodes.shape[1] - 2).astype(int)
        row = np.clip(np.floor(v), 0, nodes.shape[0] - 2).astype(int)
        u, v = u - column, v - row
        lower = nodes[row, column] + u * (nodes[row, column + 1] - nodes[row, column])
        upper = nodes[row + 1, column] + u * (nodes[row + 1, column + 1] - nodes[row + 1, column])
        return lower + v * (upper - lower)

    def _measure_error(
        self, target_wcs: SkyWcs, source_wcs: SkyWcs, coarse: int, source_shape: tuple[int, int] | None
    ) -> float:
        """Return the largest distance to the full transformation, at points far from all nodes."""
        ny, nx = self._shape
        # Middle of lattice cells next to the middle of coarse cells, where spline and bilinear errors are largest.
        shift = 0.5 * coarse - 0.5 * self._step
        spacing = max(coarse, (max(ny, nx) // 48 // self._step) * self._step)
        v, u = np.meshgrid(_probes(ny, shift, spacing), _probes(nx, shift, spacing), indexing="ij")
        x, y = _transform(target_wcs, source_wcs, u, v)
        x_here, y_here = self.evaluate(x=u, y=v)
        distance = np.hypot(x - x_here, y - y_here)
        counts = np.isfinite(distance)
        if source_shape is not None:
            margin = 8.0
            counts &= (x > -margin) & (x < source_shape[1] + margin) & (y > -margin) & (y < source_shape[0] + margin)
        return float(distance[counts].max()) if counts.any() else 0.0


def _probes(length: int, shift: float, spacing: int) -> FloatArray:
    places = np.arange(shift, length - 1, spacing)
    return np.append(places, (length - 1) / 2) if places.size else np.array([(length - 1) / 2])


def _transform(target_wcs: SkyWcs, source_wcs: SkyWcs, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return exact source positions; NaN where there are none."""
    ra, dec = target_wcs.pixel_to_sky(x=x, y=y)
    x_source, y_source = source_wcs.sky_to_pixel(ra_deg=ra, dec_deg=dec)
    # The other half of the sky, and wherever an inverted distortion did not converge, comes back elsewhere.
    with np.errstate(invalid="ignore"):
        ra_back, dec_back = source_wcs.pixel_to_sky(x=x_source, y=y_source)
        jacobian = source_wcs.compute_jacobian(x=x_source, y=y_source)
        scale_arcsec = np.sqrt(np.abs(np.linalg.det(jacobian))) * ARCSEC_PER_DEG
        lost = ~(separation_arcsec(ra, dec, ra_back, dec_back) < _ROUND_TRIP_PIXELS * scale_arcsec)
    return np.where(lost, np.nan, x_source), np.where(lost, np.nan, y_source)


def _fill_lattice(
    target_wcs: SkyWcs, source_wcs: SkyWcs, counts: tuple[int, ...], *, step: int, coarse: int
) -> tuple[FloatArray, FloatArray]:
    """Return source positions at the lattice's nodes: cubic splines through the exact ones of a coarser lattice."""
    fine = [np.arange(count) * float(step) for count in counts]
    if min(counts) * step >= 4 * coarse:
        rough = [np.arange(-(-axis[-1] // coarse) + 1) * float(coarse) for axis in fine]
        v, u = np.meshgrid(*rough, indexing="ij")
        exact = _transform(target_wcs, source_wcs, u, v)
        if np.isfinite(exact).all():
            x_nodes, y_nodes = (RectBivariateSpline(*rough, values)(*fine) for values in exact)
            return x_nodes, y_nodes
    # A small image, or one that reaches where the source's projection does not: no spline runs across that.
    v, u = np.meshgrid(*fine, indexing="ij")
    return _transform(target_wcs, source_wcs, u, v)
