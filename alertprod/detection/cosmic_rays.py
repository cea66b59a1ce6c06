"""Cosmic rays by their sharpness: no star changes faster between pixels than the PSF does."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation

from alertprod._bands import map_bands
from alertprod._ranges import require_ranges
from alertprod._typing import BoolArray
from alertprod.detection import _loops
from alertprod.errors import UnusableExposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.model import PointSpreadFunction
from alertprod.subtraction.convolve import fill_bad_pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class CosmicRayConfig:
    """What is too sharp for a star."""

    min_sigma: float = 6.0
    """Signal-to-noise of a single pixel, the reference's."""

    psf_factor: float = 0.35
    """A pair of neighbours this much fainter than the PSF makes them is no star's, the reference's for differences."""

    noise_factor: float = 2.0
    """Standard deviations of that comparison which are forgiven."""

    n_iterations: int = 6
    """Times that pixels touching a hit are looked at again, the hit taken as sky: tracks are longer than a pixel."""

    min_total: float = 0.0
    """Least sum over the touching pixels of one hit, image units: a particle leaves hundreds of electrons, noise does
    not. 0 asks for nothing, since a unit is not known here."""

    excluded_planes: tuple[str, ...] = ("NO_DATA", "BAD", "SAT", "EDGE")
    """Pixels of these planes are neither hit nor compared with."""

    def __post_init__(self) -> None:
        require_ranges(
            self,
            min_sigma=(0.1, 1e6),
            psf_factor=(0.0, 1e6),
            noise_factor=(0.0, 1e6),
            n_iterations=(0, 1000),
            min_total=(0.0, 1e30),
        )
        plane_bits(*self.excluded_planes)


def find_cosmic_rays(
    masked_image: MaskedImage,
    psf: PointSpreadFunction,
    *,
    config: CosmicRayConfig | None = None,
    set_planes: bool = False,
) -> BoolArray:
    """Find positive pixels that are too sharp to be a star's.

    Parameters
    ----------
    masked_image
        Background-free image and its variance: best an exposure before it is matched. On a difference the residuals
        in the cores of bright stars are as sharp as cosmic rays, and are taken for them.
    psf
        Its point spread function; its image at `average_position` is the sharpest that a star is taken to be.
    config
        `CosmicRayConfig`.
    set_planes
        Set CR on what is found, in place. Pixel values stay as they are.

    Returns
    -------
    BoolArray
        True on cosmic rays, shape of the image.

    Notes
    -----
    A star centred on a pixel has the faintest neighbours, relative to the pixel, that the PSF allows: off the centre
    the mean of two opposite neighbours only gains. The comparison along columns, rows and diagonals is that of the
    SDSS photometric pipeline (Lupton et al. 2001).
    """
    config = config or CosmicRayConfig()
    x, y = psf.average_position
    kernel = psf.compute_kernel_image(x=x, y=y)
    m = kernel.shape[0] // 2
    if not kernel[m, m] > 0:
        raise UnusableExposure("science", "psf", f"its image is {kernel[m, m]} at its centre, x {x:.1f}, y {y:.1f}")
    pairs = ((0, 1), (1, 0), (1, 1), (1, -1))
    ratios = np.array([0.5 * (kernel[m + j, m + i] + kernel[m - j, m - i]) / kernel[m, m] for j, i in pairs])
    usable = masked_image.usable(plane_bits(*config.excluded_planes))
    judge = (
        masked_image.image,
        masked_image.variance,
        usable,
        ratios,
        config.min_sigma,
        config.psf_factor,
        config.noise_factor,
    )
    hits, none = np.zeros((2, *masked_image.shape), dtype=np.bool_)
    map_bands(lambda first, last: _loops.find_cosmic_rays(*judge, none, first, last, hits), len(hits))
    latest = np.flatnonzero(hits)
    for _ in range(config.n_iterations):
        latest = np.unique(_loops.grow_cosmic_rays(*judge, hits, latest))
        if latest.size == 0:
            break
    if config.min_total > 0:
        pixels, owner, count = _loops.label_pixels(hits.view(np.uint8), 1)
        totals = np.bincount(owner, weights=masked_image.image.reshape(-1)[pixels], minlength=count)
        hits.reshape(-1)[pixels[totals[owner] < config.min_total]] = False
    if set_planes:
        masked_image.mask[hits] |= plane_bits("CR")
    return hits


def repair_cosmic_rays(masked_image: MaskedImage) -> int:
    """Replace what is marked as a cosmic ray by its neighbours, in place; return how many pixels that were.

    Notes
    -----
    Pixels with CR and without INTRP; they get INTRP beside it. Those with both were repaired before, as Rubin's
    calibrated exposures are. Image and variance: the light of a particle is in the latter where it was made of pixels.
    Where some of the eight neighbours are good they alone count: in a star's wing what is farther is something else.
    """
    mask = masked_image.mask
    bits, repaired = plane_bits("CR", "INTRP"), plane_bits("INTRP")
    broken = (mask & bits) == plane_bits("CR")
    if not broken.any():
        return 0
    unusable = broken | ~masked_image.usable(plane_bits("NO_DATA", "BAD"))
    alone = broken & ~binary_dilation(~unusable, np.ones((3, 3)))
    for plane in (masked_image.image, masked_image.variance):
        filled = fill_bad_pixels(plane, unusable, radius=1)
        if alone.any():
            filled[alone] = fill_bad_pixels(plane, unusable)[alone]
        plane[broken] = filled[broken]
    mask[broken] |= np.int32(repaired)
    return int(np.count_nonzero(broken))
