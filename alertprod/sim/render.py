"""From a scene to the pixels of one exposure: PSF, photons, defects, and what the reduction would have masked."""

from dataclasses import dataclass, field

import numpy as np

from alertprod._typing import FloatArray, IntArray
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import PhotoCalib
from alertprod.psf.model import PointSpreadFunction
from alertprod.sim._loops import draw_moffats
from alertprod.sim.scene import Sources


@dataclass(frozen=True, slots=True)
class Seeing:
    """The PSF of one exposure: a Moffat core plus an off-axis halo, varying over the field.

    Widths in pixels. `variation` is the relative change of the FWHM from one corner to the other.
    """

    fwhm: float = 4.4
    beta: float = 3.2
    e1: float = 0.03
    e2: float = -0.02
    variation: float = 0.08
    halo_fraction: float = 0.10
    halo_scale: float = 1.7
    halo_beta: float = 2.5


class SimulatedPsf(PointSpreadFunction):
    """The true PSF of a simulated exposure.

    The halo is drawn on opposite sides of the core, so that the centroid stays where the star is. A star's flux is
    that within the PSF's image, which has unit sum: else what a PSF fit measures would be a third of a per cent below
    the truth, for the light of the wings outside.
    """

    def __init__(self, seeing: Seeing, shape: tuple[int, int], size: int = 41) -> None:
        self.seeing = seeing
        self._shape = shape
        self._size = size
        self._enclosed = 1.0
        x, y = self.average_position
        # It varies with the seeing over the field, by less than 1e-3.
        self._enclosed = float(self._draw_stamp(x=x, y=y, dx=0.0, dy=0.0).sum())

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self._size

    @property
    def average_position(self) -> tuple[float, float]:
        """The middle of the image."""
        return (self._shape[1] - 1) / 2, (self._shape[0] - 1) / 2

    def compute_offset_image(self, *, x: float, y: float, dx: float, dy: float) -> FloatArray:
        """Return the PSF at (x, y); see `PointSpreadFunction`."""
        image = self._draw_stamp(x=x, y=y, dx=dx, dy=dy)
        return image / image.sum()

    def _draw_stamp(self, *, x: float, y: float, dx: float, dy: float) -> FloatArray:
        image = np.zeros((self._size, self._size))
        half = self._size // 2
        one = np.ones(1)
        self.draw(
            image, x=one * (half + dx), y=one * (half + dy), flux=one, radius=one * self._size, at=(one * x, one * y)
        )
        return image

    def draw(
        self,
        image: FloatArray,
        *,
        x: FloatArray,
        y: FloatArray,
        flux: FloatArray,
        radius: FloatArray,
        at: tuple[FloatArray, FloatArray] | None = None,
    ) -> None:
        """Add stars to `image` in place; `at` are the positions whose PSF is meant, where not (x, y)."""
        seeing = self.seeing
        px, py = (x, y) if at is None else at
        u = 2.0 * px / self._shape[1] - 1.0
        v = 2.0 * py / self._shape[0] - 1.0
        fwhm = seeing.fwhm * (1.0 + 0.25 * seeing.variation * (u + v))
        e1 = seeing.e1 + 0.02 * u
        e2 = seeing.e2 - 0.02 * v
        one = np.ones_like(x, dtype=float)
        flux = flux / self._enclosed
        core = 1.0 - seeing.halo_fraction
        draw_moffats(image, x, y, flux * core, fwhm, one * seeing.beta, e1, e2, radius)
        for side in (-1.0, 1.0):
            offset = side * 0.35 * fwhm
            draw_moffats(
                image,
                x + offset,
                y + 0.5 * offset,
                flux * 0.5 * seeing.halo_fraction,
                fwhm * seeing.halo_scale,
                one * seeing.halo_beta,
                e1,
                e2,
                radius,
            )


@dataclass(frozen=True, slots=True)
class Detector:
    """The camera's side of an exposure; image units are counts."""

    njy_per_count: float = 5.0
    gain: float = 2.0
    """Electrons per count."""
    read_noise: float = 6.0
    """Electrons."""
    sky_counts: float = 700.0
    saturation_counts: float = 55_000.0
    n_cosmic_rays: int = 12
    n_bad_columns: int = 1
    depth: float = 1.0
    """How many such exposures the image is the mean of: noise variance is divided by it."""
    provenance: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Rendering:
    """An exposure and what only the simulation knows: the noise-free image and its variance, in counts."""

    exposure: Exposure
    true_image: FloatArray
    true_variance: FloatArray


def render_exposure(
    sources: Sources,
    *,
    wcs: SkyWcs,
    shape: tuple[int, int],
    seeing: Seeing,
    detector: Detector,
    info: ExposureInfo,
    rng: np.random.Generator,
) -> Rendering:
    """Draw one calibrated, sky-subtracted exposure.

    Returns
    -------
    Rendering
        Planes in counts; SAT where the well overflowed (with bleeding along columns), CR and BAD where
        a reduction would have found cosmic rays and bad columns.
    """
    x, y = wcs.sky_to_pixel(ra_deg=sources.ra_deg, dec_deg=sources.dec_deg)
    counts = sources.flux_njy / detector.njy_per_count
    near = (x > -60) & (x < shape[1] + 60) & (y > -60) & (y < shape[0] + 60) & (counts > 0)
    x, y, counts = x[near], y[near], counts[near]
    psf = SimulatedPsf(seeing, shape)
    sky_sigma = np.sqrt(detector.sky_counts / detector.gain / detector.depth)
    # Draw each star out to where its halo is a hundredth of the noise of a pixel.
    peak = counts / (seeing.fwhm**2)
    radius = np.clip(seeing.fwhm * (peak / (0.01 * sky_sigma)) ** (1.0 / (2.0 * seeing.halo_beta)), 8.0, 220.0)
    image = np.zeros(shape)
    psf.draw(image, x=x, y=y, flux=counts, radius=radius)

    true_variance = (np.maximum(image, 0.0) + detector.sky_counts) / detector.gain
    true_variance += (detector.read_noise / detector.gain) ** 2
    true_variance /= detector.depth
    noisy = image + rng.normal(size=shape) * np.sqrt(true_variance)
    mask = np.zeros(shape, dtype=np.int32)
    _saturate(noisy, mask, detector)
    _strike(noisy, mask, rng, detector)
    variance = true_variance.astype(np.float32)
    calib = PhotoCalib(detector.njy_per_count)
    planes = MaskedImage(noisy.astype(np.float32), mask, variance)
    info.gain, info.read_noise, info.saturation = detector.gain, detector.read_noise, detector.saturation_counts
    return Rendering(
        Exposure(masked_image=planes, wcs=wcs, psf=psf, photo_calib=calib, info=info), image, true_variance
    )


def _saturate(image: FloatArray, mask: IntArray, detector: Detector) -> None:
    """Clip full wells and bleed what is over the brim up and down the column, in place."""
    full = detector.saturation_counts
    over = image > full
    for column in np.flatnonzero(over.any(axis=0)):
        rows = np.flatnonzero(over[:, column])
        spill = float((image[rows, column] - full).sum()) / full
        reach = int(np.ceil(spill / 2.0))
        first, last = max(0, rows[0] - reach), min(image.shape[0], rows[-1] + reach + 1)
        image[first:last, column] = full
        mask[first:last, column] |= plane_bits("SAT")


def _strike(image: FloatArray, mask: IntArray, rng: np.random.Generator, detector: Detector) -> None:
    """Add cosmic-ray tracks and bad columns, marked as a reduction would mark them, in place."""
    ny, nx = image.shape
    for _ in range(detector.n_cosmic_rays):
        length, angle = rng.integers(3, 20), rng.uniform(0.0, np.pi)
        steps = np.arange(length)
        columns = np.round(rng.uniform(0, nx) + steps * np.cos(angle)).astype(int)
        rows = np.round(rng.uniform(0, ny) + steps * np.sin(angle)).astype(int)
        inside = (columns >= 0) & (columns < nx) & (rows >= 0) & (rows < ny)
        image[rows[inside], columns[inside]] += rng.uniform(500, 5000)
        mask[rows[inside], columns[inside]] |= plane_bits("CR")
    for _ in range(detector.n_bad_columns):
        column = rng.integers(0, nx)
        image[:, column] = 0.0
        mask[:, column] |= plane_bits("BAD")
