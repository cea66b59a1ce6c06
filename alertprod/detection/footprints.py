"""Footprints: the pixels of each detection and the peaks among them, as flat arrays.

Footprints of opposite polarity may overlap when they were not merged, so pixels are lists, not one label image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.geometry.box import Box


@dataclass(frozen=True, slots=True, kw_only=True)
class FootprintSet:
    """Detections of one image in their fixed total order: significance falling, then y, then x of the first peak.

    Sky footprints, where nothing was detected, come after all detections (`concatenate`).

    Parameters
    ----------
    shape
        Rows and columns of the image.
    sigma
        Determinant radius of the PSF they were detected with, pixels.
    pixel_offsets
        Shape ``(n + 1,)``: footprint i owns ``pixels[pixel_offsets[i]:pixel_offsets[i + 1]]``.
    pixels
        Flat indices ``y * n_columns + x``, rising within each footprint.
    peak_offsets
        Shape ``(n + 1,)``, as `pixel_offsets`, into the peak arrays. Every footprint has at least one peak.
    peak_x, peak_y
        Whole pixels.
    peak_significance
        Signed; within a footprint the strongest (of either sign) comes first. 0 for sky.
    x_min, y_min, x_max, y_max
        Bounding boxes, half-open.
    is_sky
        Shape ``(n,)``: footprints placed on empty sky, not detected. Left out, none is.
    """

    shape: tuple[int, int]
    sigma: float
    pixel_offsets: IntArray
    pixels: IntArray
    peak_offsets: IntArray
    peak_x: IntArray
    peak_y: IntArray
    peak_significance: FloatArray
    x_min: IntArray
    y_min: IntArray
    x_max: IntArray
    y_max: IntArray
    is_sky: BoolArray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def __post_init__(self) -> None:
        if len(self.is_sky) != len(self):
            if len(self.is_sky):
                msg = f"is_sky has {len(self.is_sky)} entries, there are {len(self)} footprints"
                raise ValueError(msg)
            object.__setattr__(self, "is_sky", np.zeros(len(self), dtype=bool))

    def __len__(self) -> int:
        return len(self.peak_offsets) - 1

    @property
    def area(self) -> IntArray:
        """Number of pixels of each footprint, shape ``(n,)``."""
        return np.diff(self.pixel_offsets)

    @property
    def n_peaks(self) -> IntArray:
        """Number of peaks of each footprint."""
        return np.diff(self.peak_offsets)

    @property
    def x(self) -> IntArray:
        """Column of each footprint's strongest peak."""
        return self.peak_x[self.peak_offsets[:-1]]

    @property
    def y(self) -> IntArray:
        """Row of each footprint's strongest peak."""
        return self.peak_y[self.peak_offsets[:-1]]

    @property
    def significance(self) -> FloatArray:
        """Absolute significance of each footprint's strongest peak."""
        return np.abs(self.peak_significance[self.peak_offsets[:-1]])

    @property
    def is_negative(self) -> BoolArray:
        """Footprints with negative peaks only."""
        return ~self._any_peak(self.peak_significance >= 0)

    @property
    def has_both_signs(self) -> BoolArray:
        """Footprints with a positive and a negative peak: dipoles, perhaps."""
        return self._any_peak(self.peak_significance > 0) & self._any_peak(self.peak_significance < 0)

    def _any_peak(self, condition: BoolArray) -> BoolArray:
        if len(self) == 0:
            return np.zeros(0, dtype=bool)
        return np.logical_or.reduceat(condition, self.peak_offsets[:-1])

    def strongest_peak(self, *, positive: bool) -> tuple[IntArray, IntArray]:
        """Return (x, y) of each footprint's strongest peak of one sign; (-1, -1) where it has none."""
        x = np.full(len(self), -1, dtype=np.int64)
        y = np.full(len(self), -1, dtype=np.int64)
        owner = np.repeat(np.arange(len(self)), self.n_peaks)
        chosen = np.flatnonzero(self.peak_significance > 0 if positive else self.peak_significance < 0)[::-1]
        # Backwards, so that the first of each footprint, the strongest, is written last.
        x[owner[chosen]] = self.peak_x[chosen]
        y[owner[chosen]] = self.peak_y[chosen]
        return x, y

    def box(self, i: int) -> Box:
        """Return the bounding box of footprint `i`."""
        return Box(
            x_min=int(self.x_min[i]), y_min=int(self.y_min[i]), x_max=int(self.x_max[i]), y_max=int(self.y_max[i])
        )

    def footprint_pixels(self, i: int) -> tuple[IntArray, IntArray]:
        """Return (y, x) of the pixels of footprint `i`, ready to index an image."""
        flat = self.pixels[self.pixel_offsets[i] : self.pixel_offsets[i + 1]]
        return flat // self.shape[1], flat % self.shape[1]

    def any_peak_on(self, mask: IntArray, bits: int) -> BoolArray:
        """Say of each footprint whether any of its peaks lies on a pixel of a mask, shape of the image, with these bits."""
        return self._any_peak((mask[self.peak_y, self.peak_x] & bits) != 0)

    def select(self, rows: BoolArray | IntArray) -> "FootprintSet":
        """Return the footprints that a mask or indices pick, in the picked order."""
        index = np.arange(len(self))[rows]
        pixel_index, pixel_offsets = _gather(self.pixel_offsets, index)
        peak_index, peak_offsets = _gather(self.peak_offsets, index)
        return FootprintSet(
            shape=self.shape,
            sigma=self.sigma,
            pixel_offsets=pixel_offsets,
            pixels=self.pixels[pixel_index],
            peak_offsets=peak_offsets,
            peak_x=self.peak_x[peak_index],
            peak_y=self.peak_y[peak_index],
            peak_significance=self.peak_significance[peak_index],
            x_min=self.x_min[index],
            y_min=self.y_min[index],
            x_max=self.x_max[index],
            y_max=self.y_max[index],
            is_sky=self.is_sky[index],
        )

    @classmethod
    def concatenate(cls, sets: "Sequence[FootprintSet]") -> "FootprintSet":
        """Return the footprints of several sets of one image, in the order given; `sigma` is the first set's.

        Raises
        ------
        ValueError
            Raised if there is no set, or the sets are of images of different shapes.
        """
        if not sets or any(one.shape != sets[0].shape for one in sets):
            msg = f"footprints of one image are needed, these are of shapes {[one.shape for one in sets]}"
            raise ValueError(msg)

        def join_offsets(name: str) -> IntArray:
            lengths = np.concatenate([np.diff(getattr(one, name)) for one in sets])
            return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

        plain = (
            "pixels", "peak_x", "peak_y", "peak_significance", "x_min", "y_min", "x_max", "y_max", "is_sky",
        )  # fmt: skip
        return cls(
            shape=sets[0].shape,
            sigma=sets[0].sigma,
            pixel_offsets=join_offsets("pixel_offsets"),
            peak_offsets=join_offsets("peak_offsets"),
            **{name: np.concatenate([getattr(one, name) for one in sets]) for name in plain},
        )

    def compute_labels(self) -> IntArray:
        """Return an int32 image of footprint number + 1, 0 elsewhere; of overlapping footprints the later shows."""
        labels = np.zeros(self.shape, dtype=np.int32)
        labels.reshape(-1)[self.pixels] = np.repeat(np.arange(1, len(self) + 1, dtype=np.int32), self.area)
        return labels


def _gather(offsets: IntArray, index: IntArray) -> tuple[IntArray, IntArray]:
    lengths = np.diff(offsets)[index]
    new_offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    shift = np.repeat(offsets[:-1][index] - new_offsets[:-1], lengths)
    return np.arange(new_offsets[-1]) + shift, new_offsets


def build_footprints(
    *,
    shape: tuple[int, int],
    sigma: float,
    pixels: IntArray,
    owner: IntArray,
    peak_pixels: IntArray,
    peak_owner: IntArray,
    peak_significance: FloatArray,
    is_sky: bool = False,
) -> FootprintSet:
    """Order pixels and peaks by footprint, and footprints by significance.

    Parameters
    ----------
    shape
        Rows and columns of the image.
    sigma
        PSF sigma in pixels.
    pixels, owner
        Flat indices and the number of the footprint of each, any order.
    peak_pixels, peak_owner, peak_significance
        The same for peaks. A footprint without a peak is dropped.
    is_sky
        Whether these are placed on empty sky, not detected.
    """
    n_columns = shape[1]
    # Strongest first within a footprint, ties by raster order: the total order of everything downstream.
    order = np.lexsort((peak_pixels, -np.abs(peak_significance), peak_owner))
    peak_pixels, peak_owner, peak_significance = peak_pixels[order], peak_owner[order], peak_significance[order]
    owners, first_peaks = np.unique(peak_owner, return_index=True)
    rank = np.lexsort((peak_pixels[first_peaks], -np.abs(peak_significance[first_peaks])))
    n = len(owners)
    new_number = np.full(int(max(owner.max(initial=-1), peak_owner.max(initial=-1))) + 1, -1, dtype=np.int64)
    new_number[owners[rank]] = np.arange(n)

    kept = new_number[owner] >= 0
    pixels, pixel_owner = pixels[kept], new_number[owner[kept]]
    order = np.lexsort((pixels, pixel_owner))
    pixels, pixel_owner = pixels[order], pixel_owner[order]
    pixel_offsets = np.searchsorted(pixel_owner, np.arange(n + 1)).astype(np.int64)

    peak_owner = new_number[peak_owner]
    order = np.argsort(peak_owner, kind="stable")
    peak_pixels, peak_owner, peak_significance = peak_pixels[order], peak_owner[order], peak_significance[order]
    peak_offsets = np.searchsorted(peak_owner, np.arange(n + 1)).astype(np.int64)

    y, x = pixels // n_columns, pixels % n_columns
    starts = pixel_offsets[:-1]
    if n == 0:
        empty = np.zeros(0, dtype=np.int64)
        x_min = y_min = x_max = y_max = empty
    else:
        x_min, y_min = np.minimum.reduceat(x, starts), np.minimum.reduceat(y, starts)
        x_max, y_max = np.maximum.reduceat(x, starts) + 1, np.maximum.reduceat(y, starts) + 1
    return FootprintSet(
        shape=shape,
        sigma=sigma,
        pixel_offsets=pixel_offsets,
        pixels=pixels,
        peak_offsets=peak_offsets,
        peak_x=peak_pixels % n_columns,
        peak_y=peak_pixels // n_columns,
        peak_significance=peak_significance,
        x_min=x_min,
        y_min=y_min,
        x_max=x_max,
        y_max=y_max,
        is_sky=np.full(n, is_sky),
    )
