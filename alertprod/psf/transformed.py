"""Point spread functions made from others: warped to another grid, of a mosaic, convolved.

What is drawn is what the pixels of a warped, merged or convolved image show, interpolation included.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import numpy as np
from scipy.ndimage import distance_transform_edt

from alertprod._typing import FloatArray
from alertprod.psf._lanczos import kernel_table
from alertprod.psf._loops import resample_stamps
from alertprod.psf.convolution import convolve_full
from alertprod.psf.model import PointSpreadFunction

_MAX_STRETCH = 8.0
"""A PSF drawn on pixels eight times smaller than its own says nothing more."""


class PointMapping(Protocol):
    """Where points of the target grid lie on the source grid."""

    def evaluate(self, *, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the source positions of target positions, pixels; NaN where there is none."""

    def compute_jacobian(self, *, x: FloatArray, y: FloatArray) -> FloatArray:
        """Return d(source x, y)/d(target x, y) at target positions, shape ``(n, 2, 2)``."""


class _DrawnTogether(PointSpreadFunction):
    """A PSF that draws one place as it draws many."""

    _WHY_NONE: ClassVar[str]
    """What is wrong with a place where there is none."""

    def compute_offset_image(self, *, x: float, y: float, dx: float, dy: float) -> FloatArray:
        """Return the PSF at (x, y), sum 1; see `PointSpreadFunction`.

        Raises
        ------
        ValueError
            Raised if it is not defined there.
        """
        (image,) = self.compute_offset_images(x=np.array([x]), y=np.array([y]), dx=np.array([dx]), dy=np.array([dy]))
        if not np.isfinite(image).all():
            msg = f"x {x:.1f}, y {y:.1f} {self._WHY_NONE}"
            raise ValueError(msg)
        return image

    @abstractmethod
    def compute_offset_images(self, *, x: FloatArray, y: FloatArray, dx: FloatArray, dy: FloatArray) -> FloatArray:
        """Return the PSF at many places; see `PointSpreadFunction`."""


class WarpedPsf(_DrawnTogether):
    """The PSF of an image that was interpolated onto another grid.

    Parameters
    ----------
    psf
        PSF on the source grid.
    mapping
        From target to source pixels; picklable and immutable, like the PSF itself.
    average_position
        The middle of the target image, ``(x, y)``.
    kernel
        The interpolation the image was warped with.
    size
        Side of the images, odd; by default as large as `psf` is on the target grid.

    Notes
    -----
    A star is drawn on the source grid where it really falls between pixels, and this image is
    interpolated as `alertprod.resample` does. So the broadening by the kernel is in it, and its
    dependence on the star's place within the source pixel too. The mapping is linear across the stamp.
    """

    _WHY_NONE = "does not map to the source grid, or there is no PSF there"

    def __init__(
        self,
        psf: PointSpreadFunction,
        mapping: PointMapping,
        *,
        average_position: tuple[float, float],
        kernel: str = "lanczos3",
        size: int | None = None,
    ) -> None:
        self._psf = psf
        self._mapping = mapping
        self._average_position = (float(average_position[0]), float(average_position[1]))
        self._kernel = kernel
        if size is None:
            x, y = np.array(self._average_position)[:, None]
            (jacobian,) = mapping.compute_jacobian(x=x, y=y)
            # A place that maps nowhere says nothing about the scale.
            smallest = float(np.linalg.svd(jacobian, compute_uv=False)[-1]) if np.isfinite(jacobian).all() else 0.0
            stretch = min(1.0 / smallest, _MAX_STRETCH) if smallest > 0 else 1.0
            # A millipixel less, so that rounding of a unit scale does not add a rim of zeros.
            size = 2 * int(np.ceil(psf.size // 2 * stretch - 1e-3)) + 1
        self._size = size

    @property
    def size(self) -> int:
        """Side of the images in pixels, odd."""
        return self._size

    @property
    def average_position(self) -> tuple[float, float]:
        """The middle of the target image."""
        return self._average_position

    def compute_offset_images(self, *, x: FloatArray, y: FloatArray, dx: FloatArray, dy: FloatArray) -> FloatArray:
        """Return many warped PSFs at once; see `PointSpreadFunction`."""
        images = np.full((len(x), self._size, self._size), np.nan)
        x_source, y_source = self._mapping.evaluate(x=x, y=y)
        jacobians = self._mapping.compute_jacobian(x=x, y=y)
        known = np.isfinite(x_source) & np.isfinite(y_source) & np.isfinite(jacobians).all(axis=(1, 2))
        x_source, y_source = x_source[known], y_source[known]
        stamps = self._psf.compute_stellar_images(x=x_source, y=y_source)
        half = self._psf.size // 2
        drawn = resample_stamps(
            stamps,
            np.ascontiguousarray(jacobians[known]),
            x_source - (np.floor(x_source + 0.5) - half),
            y_source - (np.floor(y_source + 0.5) - half),
            np.ascontiguousarray(dx[known], dtype=float),
            np.ascontiguousarray(dy[known], dtype=float),
            self._size,
            kernel_table(self._kernel),
        )
        images[known] = drawn / drawn.sum(axis=(1, 2), keepdims=True)
        return images


_BATCH = 64
"""PSFs that are convolved at once: their transforms take 10 MB."""


class MosaicPsf(_DrawnTogether):
    """The PSF of an image merged from tiles: at a point the weighted mean of the tiles that contribute there.

    Parameters
    ----------
    psfs
        One PSF per tile, all on the merged image's grid.
    weights
        Shape ``(n_tiles, ny_blocks, nx_blocks)``: mean weight of each tile in each block of pixels, 0 where
        it has none. Where no tile has any, the nearest block that has counts.
    block
        Side of a block in pixels; block (0, 0) starts at pixel (0, 0).
    average_position
        The middle of the merged image, ``(x, y)``.

    Raises
    ------
    ValueError
        Raised if the shapes do not fit one another or no tile has any weight.
    """

    _WHY_NONE = "is on a tile without a PSF"

    def __init__(
        self,
        psfs: Sequence[PointSpreadFunction],
        weights: FloatArray,
        *,
        block: int,
        average_position: tuple[float, float],
    ) -> None:
        weights = np.array(weights, dtype=np.float32)
        if weights.ndim != 3 or weights.shape[0] != len(psfs) or not psfs or block < 1:
            msg = f"{len(psfs)} PSFs and weights of shape {weights.shape} do not fit one another"
            raise ValueError(msg)
        covered = weights.sum(axis=0) > 0
        if not covered.any():
            msg = "no tile has any weight"
            raise ValueError(msg)
        if not covered.all():
            nearest = distance_transform_edt(~covered, return_distances=False, return_indices=True)
            weights = weights[:, nearest[0], nearest[1]]
        weights.flags.writeable = False
        self._psfs = tuple(psfs)
        self._weights = weights
        self._block = block
        self._average_position = (float(average_position[0]), float(average_position[1]))
        self._size = max(psf.size for psf in psfs)

    @property
    def size(self) -> int:
        """Side of the images in pixels, odd: that of the largest tile's PSF."""
        return self._size

    @property
    def average_position(self) -> tuple[float, float]:
        """The middle of the merged image."""
        return self._average_position

    def compute_offset_images(self, *, x: FloatArray, y: FloatArray, dx: FloatArray, dy: FloatArray) -> FloatArray:
        """Return many mean PSFs at once; see `PointSpreadFunction`."""
        images = np.zeros((len(x), self._size, self._size))
        known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        _, n_rows, n_columns = self._weights.shape
        rows = np.clip((y[known] + 0.5) // self._block, 0, n_rows - 1).astype(int)
        columns = np.clip((x[known] + 0.5) // self._block, 0, n_columns - 1).astype(int)
        for psf, weights in zip(self._psfs, self._weights, strict=True):
            weight = weights[rows, columns]
            of_tile = known[weight > 0]
            rim = (self._size - psf.size) // 2
            inner = slice(rim, self._size - rim)
            images[of_tile, inner, inner] += weight[weight > 0, None, None] * psf.compute_offset_images(
                x=x[of_tile], y=y[of_tile], dx=dx[of_tile], dy=dy[of_tile]
            )
        totals = images.sum(axis=(1, 2), keepdims=True)
        return np.divide(images, totals, out=np.full_like(images, np.nan), where=totals > 0)


class ConvolvedPsf(PointSpreadFunction):
    """A PSF convolved with a kernel that depends on the position.

    Parameters
    ----------
    psf
        PSF before the convolution.
    kernel_at
        Returns the kernel's image at ``kernel_at(x, y)``: shape ``(ny, nx)``, both odd, centred on the middle
        pixel, of any sum but 0. Picklable where the PSF has to be: a function of a module or an object.
    size
        Side of the images, odd; by default that of `psf`. What lies outside is cut off.
    """

    def __init__(
        self, psf: PointSpreadFunction, kernel_at: Callable[[float, float], FloatArray], *, size: int | None = None
    ) -> None:
        self._psf = psf
        self._kernel_at = kernel_at
        self._size = psf.size if size is None else size
        if self._size % 2 == 0:
            msg = f"size is {self._size}; an odd number is needed"
            raise ValueError(msg)

    @property
    def size(self) -> int:
        """Side of the images in pixels, odd."""
        return self._size

    @property
    def average_position(self) -> tuple[float, float]:
        """That of the PSF before the convolution."""
        return self._psf.average_position

    def compute_offset_image(self, *, x: float, y: float, dx: float, dy: float) -> FloatArray:
        """Return the convolved PSF at (x, y), sum 1; see `PointSpreadFunction`.

        Raises
        ------
        ValueError
            Raised if the kernel's sides are not odd, or the PSF before has no finite image here.
        """
        kernel = np.asarray(self._kernel_at(x, y), dtype=float)
        if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
            msg = f"the kernel has shape {kernel.shape}; odd sides are needed"
            raise ValueError(msg)
        before = self._psf.compute_offset_image(x=x, y=y, dx=dx, dy=dy)
        if not np.isfinite(before).all():
            msg = f"the PSF to convolve is not finite at x {x:.1f}, y {y:.1f}"
            raise ValueError(msg)
        image = self._convolve(before, kernel)
        return image / image.sum()

    def compute_offset_images(self, *, x: FloatArray, y: FloatArray, dx: FloatArray, dy: FloatArray) -> FloatArray:
        """Return many convolved PSFs at once; see `PointSpreadFunction`.

        Notes
        -----
        Together where the kernel has a method ``compute_images(x, y)``: ``(n, ny, nx)``.
        """
        compute_kernels = getattr(self._kernel_at, "compute_images", None)
        if compute_kernels is None:
            return super().compute_offset_images(x=x, y=y, dx=dx, dy=dy)
        images = np.full((len(x), self._size, self._size), np.nan)
        known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        for start in range(0, len(known), _BATCH):
            part = known[start : start + _BATCH]
            before = self._psf.compute_offset_images(x=x[part], y=y[part], dx=dx[part], dy=dy[part])
            convolved = self._convolve(before, compute_kernels(x=x[part], y=y[part]))
            images[part] = convolved / convolved.sum(axis=(1, 2), keepdims=True)
        return images

    def _convolve(self, before: FloatArray, kernels: FloatArray) -> FloatArray:
        """Return images, or stacks of them, convolved and of our size; not normalised."""
        full = convolve_full(before, kernels)
        image = np.zeros((*full.shape[:-2], self._size, self._size))
        inside, outside = [], []
        for length in full.shape[-2:]:
            half = min(length, self._size) // 2
            inside.append(slice(self._size // 2 - half, self._size // 2 + half + 1))
            outside.append(slice(length // 2 - half, length // 2 + half + 1))
        image[..., inside[0], inside[1]] = full[..., outside[0], outside[1]]
        return image
