"""The three planes of an image: image, mask, variance."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alertprod._bands import map_bands
from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.geometry.box import Box
from alertprod.images import _loops
from alertprod.images.mask import plane_bits


@dataclass(slots=True)
class MaskedImage:
    """Image, mask and variance of one shape.

    Parameters
    ----------
    image
        float32, shape ``(ny, nx)``; a pixel without data is NaN and has NO_DATA set.
    mask
        int32, bits as in `alertprod.images.mask.MASK_PLANES`.
    variance
        float32, the image's unit squared. Values that are not positive and finite mean "no weight".

    Raises
    ------
    ValueError
        Raised if the planes are not of one two-dimensional shape, or hold no real numbers, or the mask no integers.

    Notes
    -----
    Not copied on construction: `cutout` gives views, `copy` gives fresh arrays. Numbers of another type or byte order,
    which compiled loops do not take, are converted to a copy: what is beyond float32 becomes infinite.
    """

    image: FloatArray
    mask: IntArray
    variance: FloatArray

    def __post_init__(self) -> None:
        if not (self.image.shape == self.mask.shape == self.variance.shape) or self.image.ndim != 2:
            msg = (
                f"planes of shapes {self.image.shape}, {self.mask.shape}, {self.variance.shape};"
                " one two-dimensional shape is needed"
            )
            raise ValueError(msg)
        self.image, self.variance = (_convert(plane, np.float32, "biuf") for plane in (self.image, self.variance))
        self.mask = _convert(self.mask, np.int32, "biu")

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> "MaskedImage":
        """Return an image without data: NaN, NO_DATA, infinite variance."""
        return cls(
            image=np.full(shape, np.nan, dtype=np.float32),
            mask=np.full(shape, plane_bits("NO_DATA"), dtype=np.int32),
            variance=np.full(shape, np.inf, dtype=np.float32),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def box(self) -> Box:
        """The pixels' box, from (0, 0)."""
        return Box.from_shape(self.shape)

    def copy(self) -> "MaskedImage":
        """Return fresh, writable arrays."""
        return MaskedImage(self.image.copy(), self.mask.copy(), self.variance.copy())

    def scaled(self, factor: float) -> "MaskedImage":
        """Return fresh arrays, the image times `factor` and the variance times its square."""
        return MaskedImage(self.image * np.float32(factor), self.mask.copy(), self.variance * np.float32(factor**2))

    def cutout(self, box: Box) -> "MaskedImage":
        """Return views of the pixels of `box`, which must lie inside."""
        rows, columns = box.slices
        return MaskedImage(self.image[rows, columns], self.mask[rows, columns], self.variance[rows, columns])

    def usable(self, bad_planes: int) -> BoolArray:
        """Return where a pixel is finite, has a positive finite variance and none of `bad_planes`' bits."""
        good: BoolArray
        if all(plane.flags.c_contiguous for plane in (self.image, self.mask, self.variance)):
            good = np.empty(self.shape, dtype=np.bool_)

            def find(first: int, last: int) -> None:
                rows = slice(first, last)
                _loops.find_usable(self.image[rows], self.mask[rows], self.variance[rows], bad_planes, good[rows])

            map_bands(find, self.shape[0])
            return good
        # Views of a part: small, and of too many kinds to compile a loop for each.
        good = (self.mask & bad_planes) == 0
        good &= np.isfinite(self.image) & np.isfinite(self.variance)
        good &= self.variance > 0
        return good


def _convert(plane: NDArray[Any], dtype: type[np.generic], kinds: str) -> NDArray[Any]:
    """Return a plane as native `dtype`: itself where it is that."""
    if plane.dtype == dtype:
        return plane
    if plane.dtype.kind not in kinds:
        msg = f"a plane of {plane.dtype}; {np.dtype(dtype)} is needed"
        raise ValueError(msg)
    with np.errstate(over="ignore"):
        return plane.astype(dtype)
