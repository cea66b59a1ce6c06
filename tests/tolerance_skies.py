"""The simulation that the reference task's own tests draw: few point sources, Gaussian PSFs, white noise, one grid.

256 x 256 pixels, 20 sources of flux 500 to 1000, noise 1, variance plane sqrt(|image|) + noise². The pixels have none of
the sources' own noise, so the plane is too large under them, as it is there. Its templates reach 20 pixels beyond the
science image; here both have one box.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev

from alertprod._typing import FloatArray
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import PhotoCalib
from alertprod.measurement.catalog import Catalog
from alertprod.psf.analytic import GaussianPsf
from alertprod.tasks.source_detection import SourceDetectionTask
from alertprod.tasks.sources import make_source_catalog

GOOD, MID, BAD = 2.0, 2.4, 2.8
"""Sigmas of the PSFs, pixels."""

SHAPE = (256, 256)
KERNEL_STAMP = 31
"""Sources stay half of it off the edges."""

FLUX_LEVEL, FLUX_RANGE = 500.0, 2.0

BACKGROUND = (2.2, 2.1, 2.0, 1.2, 1.1, 1.0)
"""Parameters of the order-2 Chebyshev background, by rising degree: 1; x, y; x², xy, y²."""

_BACKGROUND_DEGREES = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))


@dataclass(frozen=True)
class MadeSky:
    """An exposure and what is in it: every source's x, y and flux."""

    exposure: Exposure
    sources: Catalog


def make_sky(
    *,
    psf_sigma: float = GOOD,
    noise: float = 1.0,
    seed: int = 5,
    noise_seed: int = 6,
    n_sources: int = 20,
    flux_level: float = FLUX_LEVEL,
    flux_range: float = FLUX_RANGE,
    shape: tuple[int, int] = SHAPE,
    shift: tuple[float, float] = (0.0, 0.0),
    x: FloatArray | None = None,
    y: FloatArray | None = None,
    background: Sequence[float] | None = None,
    njy_per_count: float = 1.0,
    band: str = "r",
) -> MadeSky:
    """Draw the simulation.

    Parameters
    ----------
    seed, noise_seed
        Of places and fluxes, and of the noise: images that share the first show one sky.
    shift
        Of all sources (x, y), pixels.
    x, y
        Places instead of random ones, shape ``(n_sources,)``.
    background
        Parameters of an order-2 Chebyshev surface to add.
    """
    rng = np.random.RandomState(seed)  # the reference's generator: its seeds give its skies
    margin = KERNEL_STAMP / 2 + 1
    random_x = margin + rng.rand(n_sources) * (shape[1] - 2 * margin)
    random_y = margin + rng.rand(n_sources) * (shape[0] - 2 * margin)
    flux = flux_level * (1.0 + rng.rand(n_sources) * (flux_range - 1.0))
    x = (random_x if x is None else x) + shift[0]
    y = (random_y if y is None else y) + shift[1]
    psf = GaussianPsf.from_sigma(psf_sigma)
    image = draw_sources(shape, psf, x=x, y=y, flux=flux)
    variance = np.sqrt(np.abs(image)) + noise**2
    grain = np.random.default_rng(noise_seed).normal(0.0, 1.0, shape)
    image = image + noise * (grain - grain.mean())
    exposure = Exposure(
        masked_image=MaskedImage(image.astype(np.float32), np.zeros(shape, np.int32), variance.astype(np.float32)),
        wcs=SkyWcs.from_tangent(
            ra_deg=245.0, dec_deg=-45.0, x=(shape[1] - 1) / 2, y=(shape[0] - 1) / 2, scale_arcsec=0.2, rotation_deg=0.0
        ),
        psf=psf,
        photo_calib=PhotoCalib(njy_per_count),
        info=ExposureInfo(
            instrument="TestCam", visit=1234, detector=5, band=band, physical_filter=f"{band}_03",
            shutter_open_mjd_tai=61000.0, exposure_time_s=30.0,
        ),
    )  # fmt: skip
    SourceDetectionTask().run(exposure)
    exposure.mask[...] &= np.int32(~plane_bits("EDGE"))
    if background is not None:
        exposure.image[...] += draw_background(shape, background).astype(np.float32)
    return MadeSky(exposure, make_source_catalog(x=x, y=y, flux=flux))


def draw_sources(
    shape: tuple[int, int], psf: GaussianPsf, *, x: FloatArray, y: FloatArray, flux: FloatArray
) -> FloatArray:
    """Return an image of point sources without noise; they may stand on the border or beyond it."""
    pad = psf.size
    canvas = np.zeros((shape[0] + 2 * pad, shape[1] + 2 * pad))
    for one_x, one_y, one_flux in zip(x, y, flux, strict=True):
        stamp, box = psf.compute_stellar_image(x=float(one_x), y=float(one_y))
        canvas[box.y_min + pad : box.y_max + pad, box.x_min + pad : box.x_max + pad] += one_flux * stamp
    return canvas[pad:-pad, pad:-pad]


def draw_background(shape: tuple[int, int], parameters: Sequence[float]) -> FloatArray:
    """Return the order-2 Chebyshev surface on an image whose pixels' centres span [-1, 1]."""
    matrix = np.zeros((3, 3))
    for value, degrees in zip(parameters, _BACKGROUND_DEGREES, strict=True):
        matrix[degrees] = value
    u, v = (np.linspace(-1.0, 1.0, n) for n in shape[::-1])
    return chebyshev.chebgrid2d(u, v, matrix).T
