"""Pixel flags: which mask planes a source's footprint, and the 3 x 3 pixels about its centroid, touch."""

from dataclasses import dataclass

import numpy as np

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.detection.footprints import FootprintSet
from alertprod.images.mask import plane_bits
from alertprod.measurement import _loops
from alertprod.measurement.stamps import nearest_pixels

_OFF_IMAGE_BITS = plane_bits("EDGE", "NO_DATA")
"""What a pixel beyond the border counts as."""

_PLANES = {
    "bad": "BAD",
    "cr": "CR",
    "edge": "EDGE",
    "nodata": "NO_DATA",
    "interpolated": "INTRP",
    "saturated": "SAT",
    "suspect": "SUSPECT",
    "streak": "STREAK",
    "injected": "INJECTED",
    "injected_template": "INJECTED_TEMPLATE",
    "high_variance": "HIGH_VARIANCE",
    "sat_template": "SAT_TEMPLATE",
    "spike": "SPIKE",
}
"""Flag name and the plane it stands for."""

FLAG_NAMES = frozenset({"offimage"} | {name + end for name in _PLANES for end in ("", "Center", "CenterAll")})
"""Every flag `PixelFlags.get` knows: ``bad`` anywhere, ``badCenter`` any and ``badCenterAll`` all of the 3 x 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelFlags:
    """Or-ed mask bits per source, each of shape ``(n,)``.

    `anywhere` over the footprint, `center_any` and `center_all` over the 3 x 3 pixels about the centroid.
    """

    anywhere: IntArray
    center_any: IntArray
    center_all: IntArray
    off_image: BoolArray

    def get(self, name: str) -> BoolArray:
        """Return one flag by its name in `FLAG_NAMES`; `KeyError` for others."""
        if name == "offimage":
            return self.off_image
        for end, bits in (("CenterAll", self.center_all), ("Center", self.center_any), ("", self.anywhere)):
            if name.endswith(end):
                plane = _PLANES[name.removesuffix(end)]
                return (bits & plane_bits(plane)) != 0
        raise KeyError(name)


def measure_pixel_flags(footprints: FootprintSet, mask: IntArray, *, x: FloatArray, y: FloatArray) -> PixelFlags:
    """Collect the mask bits of each footprint and about each centroid.

    Parameters
    ----------
    footprints
        n footprints.
    mask
        Mask plane of the image they were found on.
    x, y
        Centroids, shape ``(n,)``; not finite counts as off the image.
    """
    n = len(footprints)
    anywhere, center_any, center_all = (np.zeros(n, dtype=np.int64) for _ in range(3))
    _loops.or_footprints(mask, footprints.pixel_offsets, footprints.pixels, anywhere)
    column, row = nearest_pixels(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
    _loops.or_and_centers(mask, column, row, _OFF_IMAGE_BITS, center_any, center_all)
    ny, nx = mask.shape
    off_image = (column < 0) | (row < 0) | (column >= nx) | (row >= ny)
    anywhere[off_image] |= plane_bits("EDGE")
    return PixelFlags(anywhere=anywhere, center_any=center_any, center_all=center_all, off_image=off_image)
