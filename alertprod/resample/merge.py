"""Merging warped tiles into one template."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.model import PointSpreadFunction
from alertprod.psf.transformed import MosaicPsf
from alertprod.resample._loops import accumulate_tile, finish_merge

_BLOCK = 32
"""Pixels of a side of the blocks in which the PSF remembers who contributed: about the size of a PSF image."""


def merge_tiles(tiles: Iterable[Exposure]) -> Exposure:
    """Merge exposures of one grid into one.

    Parameters
    ----------
    tiles
        Warped tiles with planes of one shape and one band; taken one after the other, so that a generator
        that warps them needs the memory of one. Pixels with NO_DATA, not finite, or without a positive finite
        variance do not count.

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
    first: Exposure | None = None
    planes: MaskedImage | None = None
    sum_weight = np.empty((0, 0), dtype=np.float32)
    psfs: list[PointSpreadFunction | None] = []
    block_weights = []
    is_nominal = False
    no_data = plane_bits("NO_DATA")
    for tile in tiles:
        if first is None or planes is None:
            first = tile
            planes = MaskedImage(
                np.zeros(tile.shape, dtype=np.float32),
                np.zeros(tile.shape, dtype=np.int32),
                np.zeros(tile.shape, dtype=np.float32),
            )
            sum_weight = np.zeros(tile.shape, dtype=np.float32)
        if tile.shape != planes.shape or tile.info.band != first.info.band:
            msg = (
                f"tiles of shape {tile.shape}, band {tile.info.band} and shape {planes.shape}, band {first.info.band}"
                " cannot be merged"
            )
            raise ValueError(msg)
        blocks = np.zeros([-(-length // _BLOCK) for length in tile.shape], dtype=np.float32)
        accumulate_tile(
            np.ascontiguousarray(tile.image, dtype=np.float32),
            np.ascontiguousarray(tile.mask, dtype=np.int32),
            np.ascontiguousarray(tile.variance, dtype=np.float32),
            tile.photo_calib.njy_per_count / first.photo_calib.njy_per_count,
            no_data,
            planes.image,
            planes.variance,
            sum_weight,
            planes.mask,
            _BLOCK,
            blocks,
        )
        is_nominal |= tile.photo_calib.is_nominal
        if blocks.any():
            psfs.append(tile.psf)
            block_weights.append(blocks)
    if first is None or planes is None:
        msg = "no tiles to merge"
        raise ValueError(msg)
    finish_merge(planes.image, planes.variance, sum_weight, planes.mask, no_data)
    return replace(
        first,
        masked_image=planes,
        psf=_merge_psfs(psfs, np.array(block_weights), planes.shape),
        photo_calib=replace(first.photo_calib, is_nominal=is_nominal),
        info=replace(first.info),
    )


def _merge_psfs(
    psfs: list[PointSpreadFunction | None], weights: np.ndarray, shape: tuple[int, int]
) -> PointSpreadFunction | None:
    known = [psf for psf in psfs if psf is not None]
    if not known or len(known) < len(psfs):
        return None
    rows, columns = np.nonzero(weights.sum(axis=0) > 0)
    middle = ((columns.mean() + 0.5) * _BLOCK - 0.5, (rows.mean() + 0.5) * _BLOCK - 0.5)
    middle = (float(min(middle[0], shape[1] - 1)), float(min(middle[1], shape[0] - 1)))
    return MosaicPsf(known, weights, block=_BLOCK, average_position=middle)
