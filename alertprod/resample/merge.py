"""Merging warped tiles into one template."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from alertprod._bands import map_threads, row_bands
from alertprod._typing import FloatArray
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.model import PointSpreadFunction
from alertprod.psf.transformed import MosaicPsf
from alertprod.resample._loops import accumulate_tile, finish_merge
from alertprod.resample.warp import WarpedTile

_BLOCK = 32
"""Pixels of a side of the blocks in which the PSF remembers who contributed: about the size of a PSF image."""


def merge_tiles(tiles: Iterable[Exposure | WarpedTile], *, n_threads: int = 1) -> Exposure:
    """Merge exposures of one grid into one.

    Parameters
    ----------
    tiles
        Warped tiles of one grid and one band, whole images or the boxes they cover; taken one after the other,
        so that a generator that warps them needs the memory of one. Pixels with NO_DATA, not finite, or without
        a positive finite variance do not count.
    n_threads
        Threads to share the rows.

    Returns
    -------
    Exposure
        Fresh planes in the units of the first tile, with its world coordinates and facts; where no tile
        has data: NaN, NO_DATA, infinite variance. The PSF is that of the tiles which contribute at a point; None
        where a tile has none. The calibration is nominal where any tile's is.

    Raises
    ------
    ValueError
        Raised if there are no tiles, or their shapes or bands differ.

    Notes
    -----
    Weights are ``w = V^-1/2``: ``image = sum(w I)/sum(w)``, ``variance = sum(w V)/sum(w)``. Overlapping tiles of
    one survey show the same data twice, so variances are averaged and not added as of independent images; and
    a softer weight than 1/V leaves smaller steps at tile borders. The mask is that of all contributors.
    """
    sums: _Sums | None = None
    for tile in tiles:
        part = tile if isinstance(tile, WarpedTile) else WarpedTile(exposure=tile, box=tile.box, shape=tile.shape)
        sums = _Sums(part, n_threads) if sums is None else sums
        sums.add(part)
    if sums is None:
        msg = "no tiles to merge"
        raise ValueError(msg)
    return sums.finish()


class _Sums:
    """Weighted sums of the tiles so far; `first` gives shape, units and facts."""

    def __init__(self, first: WarpedTile, n_threads: int) -> None:
        self._first = first.exposure
        self._n_threads = n_threads
        self._planes = MaskedImage(
            np.zeros(first.shape, dtype=np.float32),
            np.zeros(first.shape, dtype=np.int32),
            np.zeros(first.shape, dtype=np.float32),
        )
        self._weight = np.zeros(first.shape, dtype=np.float32)
        self._psfs: list[PointSpreadFunction | None] = []
        self._block_weights: list[FloatArray] = []
        self._noise_kernels: list[FloatArray | None] = []
        self._is_nominal = False

    def add(self, tile: WarpedTile) -> None:
        """Add a tile.

        Raises
        ------
        ValueError
            Raised if its shape or band is not the first one's.
        """
        exposure, shape, band = tile.exposure, self._planes.shape, self._first.info.band
        if tile.shape != shape or exposure.info.band != band:
            msg = f"tiles of shape {tile.shape}, band {exposure.info.band} and shape {shape}, band {band} cannot be merged"
            raise ValueError(msg)
        blocks = np.zeros([-(-length // _BLOCK) for length in shape], dtype=np.float32)
        image, variance = (np.ascontiguousarray(p, dtype=np.float32) for p in (exposure.image, exposure.variance))
        mask = np.ascontiguousarray(exposure.mask, dtype=np.int32)
        scale = exposure.photo_calib.njy_per_count / self._first.photo_calib.njy_per_count

        def accumulate(rows: slice) -> None:
            accumulate_tile(
                image[rows],
                mask[rows],
                variance[rows],
                scale,
                plane_bits("NO_DATA"),
                self._planes.image,
                self._planes.variance,
                self._weight,
                self._planes.mask,
                tile.box.x_min,
                tile.box.y_min + rows.start,
                _BLOCK,
                blocks,
            )

        # Bands of whole blocks: no two threads add to one.
        map_threads(
            accumulate, row_bands(len(image), height=2 * _BLOCK, first=tile.box.y_min), n_threads=self._n_threads
        )
        self._is_nominal |= exposure.photo_calib.is_nominal
        if blocks.any():
            self._psfs.append(exposure.psf)
            self._noise_kernels.append(exposure.noise_kernel)
            self._block_weights.append(blocks)

    def finish(self) -> Exposure:
        """Return the means; the sums are gone then."""
        planes = self._planes

        def finish(rows: slice) -> None:
            finish_merge(
                planes.image[rows], planes.variance[rows], self._weight[rows], planes.mask[rows], plane_bits("NO_DATA")
            )

        map_threads(finish, row_bands(planes.shape[0]), n_threads=self._n_threads)
        return replace(
            self._first,
            masked_image=planes,
            psf=_merge_psfs(self._psfs, np.array(self._block_weights), planes.shape),
            photo_calib=replace(self._first.photo_calib, is_nominal=self._is_nominal),
            info=replace(self._first.info),
            noise_kernel=_merge_noise(self._noise_kernels, np.array(self._block_weights)),
        )


def _merge_noise(kernels: list[FloatArray | None], weights: FloatArray) -> FloatArray | None:
    """Return the mean kernel of the tiles' noise, None where one is not known: tiles of one coadd differ little in it."""
    known = [kernel for kernel in kernels if kernel is not None]
    if not known or len(known) < len(kernels):
        return None
    side = max(kernel.shape[0] for kernel in known)
    padded = [np.pad(kernel, (side - kernel.shape[0]) // 2) for kernel in known]
    return np.average(padded, axis=0, weights=weights.sum(axis=(1, 2)))


def _merge_psfs(
    psfs: list[PointSpreadFunction | None], weights: FloatArray, shape: tuple[int, int]
) -> PointSpreadFunction | None:
    known = [psf for psf in psfs if psf is not None]
    if not known or len(known) < len(psfs):
        return None
    rows, columns = np.nonzero(weights.sum(axis=0) > 0)
    middle = ((columns.mean() + 0.5) * _BLOCK - 0.5, (rows.mean() + 0.5) * _BLOCK - 0.5)
    middle = (float(min(middle[0], shape[1] - 1)), float(min(middle[1], shape[0] - 1)))
    return MosaicPsf(known, weights, block=_BLOCK, average_position=middle)
