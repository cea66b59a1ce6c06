"""Kernel stars: which of the given positions have stamps fit to solve for the kernel, spread over the image."""

from dataclasses import dataclass

import numpy as np

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.subtraction.config import MatchConfig

_FAR_AWAY = 1e6
"""Pixels: where a star without a position, or one off any image, is taken to be."""


@dataclass(frozen=True, slots=True)
class StampGeometry:
    """Half sides of the squares around a kernel star, in pixels."""

    convolved: int
    """Of the stamp of the image to convolve: the fitted region and half a kernel more."""

    fitted: int
    """Of the region whose residuals are minimised."""

    @classmethod
    def for_kernel(cls, size: int) -> "StampGeometry":
        """Return the reference's stamps: twice the kernel's side, of which the convolution leaves the inner part."""
        return cls(convolved=size, fitted=size - size // 2)


class CandidateList:
    """Usable kernel stars in the order in which each cell offers them.

    Parameters
    ----------
    convolved, reference
        The image to be convolved, and the one it shall look like.
    x, y
        Star positions, shape ``(n,)``, pixels.
    flux
        Rank of the stars, brightest first; by default their light in 3 x 3 pixels of `reference`.

    Attributes
    ----------
    column, row, cell
        Each star's nearest pixel, and its cell as (row, column), shape ``(n, 2)``.
    refused
        Why stars were passed over when their turn came, by index.

    Notes
    -----
    A star whose fitted region shares its middle with that of a better one is not offered: its pixels would count twice.
    """

    def __init__(
        self,
        convolved: MaskedImage,
        reference: MaskedImage,
        *,
        x: FloatArray,
        y: FloatArray,
        flux: FloatArray | None,
        geometry: StampGeometry,
        config: MatchConfig,
    ) -> None:
        self.geometry = geometry
        self._bad_bits = plane_bits(*config.bad_mask_planes)
        self._convolved, self._reference, self._config = convolved, reference, config
        near = (np.abs(x) < _FAR_AWAY) & (np.abs(y) < _FAR_AWAY)
        self.column = np.floor(np.where(near, x, -_FAR_AWAY) + 0.5).astype(np.int64)
        self.row = np.floor(np.where(near, y, -_FAR_AWAY) + 0.5).astype(np.int64)
        self.cell = np.stack([self.row // config.size_cell_y, self.column // config.size_cell_x], axis=1)
        self.refused: dict[int, str] = {}
        ny, nx = convolved.shape
        margin = geometry.convolved
        inside = (self.column >= margin) & (self.column < nx - margin)
        inside &= (self.row >= margin) & (self.row < ny - margin)
        brightness = self._measure_brightness(inside) if flux is None else np.asarray(flux, dtype=float)
        brightness = np.where(np.isfinite(brightness), brightness, -np.inf)
        # Ties are broken by position, so that the order of the input does not matter.
        order = np.lexsort((self.column, self.row, -brightness))
        self._queues: dict[tuple[int, int], list[int]] = {}
        for index in order[inside[order]]:
            self._queues.setdefault(self._cell_of(index), []).append(int(index))
        self.refused |= dict.fromkeys(np.flatnonzero(~inside).tolist(), "edge")
        self._brightness = brightness
        self._taken: dict[tuple[int, int], list[int]] = {}

    def take(self, in_use: IntArray) -> IntArray:
        """Fill the cells up: return indices of stars not offered before, given those in use now."""
        config = self._config
        limit = config.n_star_per_cell if config.n_star_per_cell >= 0 else len(self.column)
        room = dict.fromkeys(self._queues, limit)
        for index in in_use:
            room[self._cell_of(index)] -= 1
        offered: list[tuple[int, int]] = []
        for cell, queue in self._queues.items():
            rank = limit - room[cell]
            while room[cell] > 0 and queue and len(in_use) + len(offered) < 4 * config.max_kernel_sources:
                index = queue.pop(0)
                if not self._is_clear(index):
                    self.refused[index] = "crowded"
                elif not self._is_clean(index):
                    self.refused[index] = "masked"
                else:
                    self._taken.setdefault(self._bin(index), []).append(index)
                    offered.append((rank, index))
                    rank += 1
                    room[cell] -= 1
        # Under the limit on the whole image, the best of each cell come first.
        offered.sort(key=lambda entry: (entry[0], -self._brightness[entry[1]], self.row[entry[1]]))
        n = max(0, config.max_kernel_sources - len(in_use))
        return np.array([index for _, index in offered[:n]], dtype=np.int64)

    def find_clean(self) -> IntArray:
        """Return the indices of all stars that have a clean stamp, however many and however close, in their order."""
        clean = []
        for index in sorted(index for queue in self._queues.values() for index in queue):
            if self._is_clean(index):
                clean.append(index)
            else:
                self.refused[index] = "masked"
        return np.array(clean, dtype=np.int64)

    def extract(self, indices: IntArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, BoolArray]:
        """Return the stamps of stars.

        Returns
        -------
        convolved, convolved_variance
            float64, shape ``(n, s, s)`` with s the stamp's side.
        reference, reference_variance
            float64, shape ``(n, f, f)`` with f the fitted region's side; bad pixels are 0, their variance 1.
        good
            Shape ``(n, f, f)``: where the reference image is usable.
        """
        outer, inner = self.geometry.convolved, self.geometry.fitted
        source = self._stack(self._convolved.image, indices, outer)
        source_variance = self._stack(self._convolved.variance, indices, inner)
        target = self._stack(self._reference.image, indices, inner)
        target_variance = self._stack(self._reference.variance, indices, inner)
        good = (self._stack(self._reference.mask, indices, inner).astype(np.int64) & self._bad_bits) == 0
        good &= np.isfinite(target) & np.isfinite(target_variance) & (target_variance > 0)
        return source, source_variance, np.where(good, target, 0.0), np.where(good, target_variance, 1.0), good

    def _stack(self, plane: FloatArray | IntArray, indices: IntArray, half: int) -> FloatArray:
        span = np.arange(-half, half + 1)
        rows = self.row[indices, None, None] + span[None, :, None]
        columns = self.column[indices, None, None] + span[None, None, :]
        return plane[rows, columns].astype(np.float64)

    def _measure_brightness(self, inside: BoolArray) -> FloatArray:
        brightness = np.full(len(inside), -np.inf)
        indices = np.flatnonzero(inside)
        brightness[indices] = self._stack(self._reference.image, indices, 1).sum(axis=(1, 2))
        return brightness

    def _cell_of(self, index: int) -> tuple[int, int]:
        return int(self.cell[index, 0]), int(self.cell[index, 1])

    def _bin(self, index: int) -> tuple[int, int]:
        side = self.geometry.fitted
        return int(self.row[index]) // side, int(self.column[index]) // side

    def _is_clear(self, index: int) -> bool:
        side = self.geometry.fitted
        row, column = self._bin(index)
        return not any(
            abs(self.row[other] - self.row[index]) < side and abs(self.column[other] - self.column[index]) < side
            for j in (row - 1, row, row + 1)
            for i in (column - 1, column, column + 1)
            for other in self._taken.get((j, i), ())
        )

    def _is_clean(self, index: int) -> bool:
        row, column = int(self.row[index]), int(self.column[index])

        def bad_pixels(image: MaskedImage, half: int) -> BoolArray:
            window = (slice(row - half, row + half + 1), slice(column - half, column + half + 1))
            bad: BoolArray = (image.mask[window] & self._bad_bits) != 0
            bad |= ~np.isfinite(image.image[window])
            bad |= ~((image.variance[window] > 0) & np.isfinite(image.variance[window]))
            return bad

        if bad_pixels(self._convolved, self.geometry.convolved).any():
            return False
        bad = bad_pixels(self._reference, self.geometry.fitted)
        core, middle = self._config.candidate_core_radius, self.geometry.fitted
        if bad[middle - core : middle + core + 1, middle - core : middle + core + 1].any():
            return False
        return float(bad.mean()) <= self._config.max_bad_fraction
