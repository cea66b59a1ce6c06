"""Fields with injected changes of both signs, and what the task finds on them."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from alertprod.factory import create_task
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import ExposureInfo
from alertprod.images.mask import plane_bits
from alertprod.resample.merge import merge_tiles
from alertprod.resample.warp import warp_exposure
from alertprod.service.differencing import Differenced, difference_exposures
from alertprod.sim.render import Detector, Seeing, render_exposure
from alertprod.sim.scene import Scene, SceneConfig, Sources

SIDE = 768
SEEDS = (101, 102, 103)
TEMPLATE_DEPTH = 10.0
RA, DEC = 0.0, -31.2
EDGE = 40
MATCH_PIXELS = 3.0
BRIGHT_NJY = 1e6
"""Photons know such a star to better than a thousandth: the kernel does not."""
STAR_REACH = 30.0
"""Further out not even the halo of the brightest is above the noise."""

QUIET_SKY = SceneConfig(transients_per_arcmin2=0.0, variables_per_arcmin2=0.0, n_movers=0)
"""Stars and galaxies as in a night, and nothing that changes but what is injected."""


SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the folder of real images, {SHARED_DATA}, is not there")
    return SHARED_DATA


@dataclass(frozen=True)
class Field:
    """One field: the truth of what was injected, and the result.

    Arrays have one entry an injected change; `snr` is what a perfect method would see, `flux_njy` is signed. `row` is
    the row of the catalog within `MATCH_PIXELS`, -1 for none. Rows at no change are counted apart: `n_false_by_stars`
    lie within `STAR_REACH` pixels of a star brighter than `BRIGHT_NJY`, `n_false` anywhere else.
    """

    x: np.ndarray
    y: np.ndarray
    flux_njy: np.ndarray
    snr: np.ndarray
    row: np.ndarray
    n_false: int
    n_false_by_stars: int
    differenced: Differenced


def make_field(seed: int, *, science_fwhm: float = 4.4, template_fwhm: float = 3.1, mode: str | None = None) -> Field:
    """Render, subtract and match; widths in pixels of each image."""
    rng = np.random.default_rng([seed, 77])
    steady = Scene(replace(QUIET_SKY, seed=seed), ra_deg=RA, dec_deg=DEC, width_arcsec=260.0).at(0.0)
    middle = (SIDE - 1) / 2
    wcs = SkyWcs.from_tangent(ra_deg=RA, dec_deg=DEC, x=middle, y=middle, scale_arcsec=0.2, rotation_deg=20.0)
    # On a jittered grid, so that no two changes are blended.
    steps = np.linspace(EDGE + 15, SIDE - EDGE - 15, 8)
    x, y = (axis.ravel() + rng.uniform(-15, 15, steps.size**2) for axis in np.meshgrid(steps, steps))
    ra, dec = wcs.pixel_to_sky(x=x, y=y)
    # A point source of S/N 1 on the sky has about 660 nJy; from well below S/N 7 to about 100.
    flux = 10.0 ** rng.uniform(np.log10(2.5e3), np.log10(7e4), x.size) * rng.choice([-1.0, 1.0], x.size)

    detector, seeing = Detector(), Seeing(fwhm=science_fwhm)
    science = render_exposure(
        _add(steady, ra, dec, np.maximum(flux, 0.0)),
        wcs=wcs,
        shape=(SIDE, SIDE),
        seeing=seeing,
        detector=detector,
        info=ExposureInfo(visit=seed, detector=0, band="r", shutter_open_mjd_tai=61000.0, exposure_time_s=30.0),
        rng=np.random.default_rng([seed, 1]),
    )
    side = 960
    template = render_exposure(
        _add(steady, ra, dec, np.maximum(-flux, 0.0)),
        wcs=SkyWcs.from_tangent(ra_deg=RA, dec_deg=DEC, x=side / 2, y=side / 2, scale_arcsec=0.2333, rotation_deg=-8.0),
        shape=(side, side),
        seeing=Seeing(fwhm=template_fwhm, e1=0.01, e2=0.015, variation=0.03),
        detector=Detector(
            depth=TEMPLATE_DEPTH, sky_counts=detector.sky_counts * (0.2333 / 0.2) ** 2, n_cosmic_rays=0, n_bad_columns=0
        ),
        info=ExposureInfo(band="r"),
        rng=np.random.default_rng([seed, 2]),
    )
    exposure = science.exposure
    warped = merge_tiles([warp_exposure(template.exposure, wcs, exposure.shape, n_threads=2)])
    task = create_task({"subtract.al.mode": mode}, source="test")
    differenced = difference_exposures(task, exposure, warped, id_factory=task.makeIdFactory(seed, 44))

    column, line = np.round(x).astype(int), np.round(y).astype(int)
    around = np.array([exposure.mask[j - 1 : j + 2, i - 1 : i + 2] for i, j in zip(column, line, strict=True)])
    measurable = ~((around & plane_bits("SAT", "BAD", "CR", "NO_DATA")) != 0).any(axis=(1, 2))
    power = np.array([(exposure.psf.compute_kernel_image(x=i, y=j) ** 2).sum() for i, j in zip(x, y, strict=True)])
    variance = science.true_variance[line, column] * (1.0 + 1.0 / TEMPLATE_DEPTH)
    sigma_njy = np.sqrt(variance / power) * detector.njy_per_count
    x, y, flux, sigma_njy = (values[measurable] for values in (x, y, flux, sigma_njy))

    sources = differenced.sources
    distance = np.hypot(sources["x"][:, None] - x, sources["y"][:, None] - y)
    row = np.where(distance.min(axis=0) < MATCH_PIXELS, distance.argmin(axis=0), -1)
    # Where a change lies on a defect, what is detected there is not false.
    everything = np.hypot(sources["x"][:, None] - column, sources["y"][:, None] - line)
    is_false = everything.min(axis=1) >= MATCH_PIXELS + 1
    bright = steady.flux_njy > BRIGHT_NJY
    star_x, star_y = wcs.sky_to_pixel(ra_deg=steady.ra_deg[bright], dec_deg=steady.dec_deg[bright])
    beside = (np.hypot(sources["x"][:, None] - star_x, sources["y"][:, None] - star_y) < STAR_REACH).any(axis=1)
    return Field(
        x=x,
        y=y,
        flux_njy=flux,
        snr=np.abs(flux) / sigma_njy,
        row=row,
        n_false=int((is_false & ~beside).sum()),
        n_false_by_stars=int((is_false & beside).sum()),
        differenced=differenced,
    )


def _add(steady: Sources, ra, dec, flux) -> Sources:
    shines = flux > 0
    n = int(shines.sum())
    return Sources(
        ra_deg=np.append(steady.ra_deg, ra[shines]),
        dec_deg=np.append(steady.dec_deg, dec[shines]),
        flux_njy=np.append(steady.flux_njy, flux[shines]),
        template_flux_njy=np.append(steady.flux_njy, np.zeros(n)),
        kind=np.append(steady.kind, np.full(n, "transient", dtype=object)),
        number=np.append(steady.number, np.arange(n)),
    )


@pytest.fixture(scope="session")
def sharp_field() -> Field:
    """A science image sharper than its template: auto convolves the science image."""
    return make_field(104, science_fwhm=3.6, template_fwhm=4.2, mode="auto")


@pytest.fixture(scope="session")
def fields() -> list[Field]:
    """Three fields of 64 changes each."""
    return [make_field(seed) for seed in SEEDS]
