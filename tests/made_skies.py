"""Small skies that several folders of tests subtract: a Gaussian pair on one grid, and a simulated night of two visits."""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.table import vstack

from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import PhotoCalib
from alertprod.images.profile import NATIVE_PROFILE, PROFILES_DIRECTORY
from alertprod.measurement.catalog import Catalog
from alertprod.psf.analytic import GaussianPsf
from alertprod.sim.night import Night, NightConfig
from alertprod.sim.scene import SceneConfig
from alertprod.tasks.reference_loader import REFERENCE_COLUMNS

NOISE = 5.0
"""Of a sky pixel of the Gaussian pair's science image."""

TRANSIENTS = ((70.3, 90.2, 4000.0), (150.6, 60.4, -3000.0), (100.1, 170.7, 2000.0))
"""x, y and change of flux of what differs between the two."""

SHAPE = (224, 224)


@dataclass(frozen=True)
class Pair:
    """Two exposures of one grid, Gaussian PSFs, gain 1."""

    science: Exposure
    template: Exposure
    star_x: np.ndarray
    star_y: np.ndarray
    star_flux: np.ndarray


class PairReference:
    """A reference catalogue of every star of a pair, blue ones left of red ones."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair

    def load_circle(self, **circle: float) -> Catalog:
        assert circle["radius_arcsec"] > 0.3 * SHAPE[0] / 2
        pair = self._pair
        objects = Catalog(REFERENCE_COLUMNS, len(pair.star_x))
        objects["reference_id"] = np.arange(1, objects.n_rows + 1)
        objects["ra_deg"], objects["dec_deg"] = pair.science.wcs.pixel_to_sky(x=pair.star_x, y=pair.star_y)
        objects["g_minus_r"] = np.interp(pair.star_x, [0.0, SHAPE[1]], [-0.5, 2.0])
        return objects


def make_pair(
    *,
    seed: int = 1,
    science_fwhm: float = 4.4,
    template_fwhm: float = 3.6,
    template_noise: float = 2.0,
    transients=TRANSIENTS,
    flux_scale: float = 1.0,
    visit: int = 1,
) -> Pair:
    """Stars on a jittered grid, and transients that are positive in the science image or in the template."""
    rng = np.random.default_rng(seed)
    steps = np.arange(24, SHAPE[0] - 20, 22)
    x, y = (axis.ravel() + rng.uniform(-3.0, 3.0, steps.size**2) for axis in np.meshgrid(steps, steps))
    flux = 10.0 ** rng.uniform(3.7, 5.0, x.size)
    clear = np.all([np.hypot(x - tx, y - ty) > 20.0 for tx, ty, _ in transients] or [np.full(x.size, True)], axis=0)
    x, y, flux = x[clear], y[clear], flux[clear]
    new = [(tx, ty, df) for tx, ty, df in transients if df > 0]
    gone = [(tx, ty, -df) for tx, ty, df in transients if df < 0]
    science = _draw(_append(x, y, flux, new), science_fwhm, NOISE, rng, flux_scale)
    template = _draw(_append(x, y, flux, gone), template_fwhm, template_noise, rng, flux_scale)
    info = ExposureInfo(
        instrument="TestCam",
        visit=visit,
        detector=4,
        band="r",
        shutter_open_mjd_tai=61000.0 + visit,
        exposure_time_s=30.0,
    )
    return Pair(replace(science, info=info), template, x, y, flux)


def _append(x, y, flux, more):
    if not more:
        return x, y, flux
    return tuple(np.append(old, new) for old, new in zip((x, y, flux), zip(*more, strict=True), strict=True))


def _draw(stars, fwhm: float, noise: float, rng: np.random.Generator, flux_scale: float) -> Exposure:
    psf = GaussianPsf(fwhm=fwhm)
    image = np.zeros(SHAPE)
    for x, y, flux in zip(*stars, strict=True):
        stamp, box = psf.compute_stellar_image(x=x, y=y)
        inside = box.intersection(MaskedImage.empty(SHAPE).box)
        rows, columns = inside.slices
        image[rows, columns] += (
            flux
            * stamp[
                inside.y_min - box.y_min : inside.y_max - box.y_min, inside.x_min - box.x_min : inside.x_max - box.x_min
            ]
        )
    variance = noise**2 + image
    image = (image + np.sqrt(variance) * rng.standard_normal(SHAPE)) * flux_scale
    planes = MaskedImage(
        image.astype(np.float32), np.zeros(SHAPE, np.int32), (variance * flux_scale**2).astype(np.float32)
    )
    wcs = SkyWcs.from_tangent(ra_deg=359.999, dec_deg=-30.0, x=111.5, y=111.5, scale_arcsec=0.3, rotation_deg=20.0)
    return Exposure(masked_image=planes, wcs=wcs, psf=psf, photo_calib=PhotoCalib(1.0 / flux_scale))


NIGHT = NightConfig(
    seed=11,
    n_visits=2,
    n_detectors=1,
    size=448,
    template_size=420,
    template_overlap=50,
    scene=SceneConfig(transients_per_arcmin2=8.0, star_flux_njy=(3e3, 2e6)),
)
"""Two visits of a camera of one detector; four template tiles under it."""


def render_night(directory: Path, config: NightConfig = NIGHT) -> Night:
    """Render a night in this process: what `make_night` does with processes of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    native = (PROFILES_DIRECTORY / f"{NATIVE_PROFILE}.toml").read_text()
    (directory / "profile.toml").write_text(f'{native}\n[ids]\npacker = "rubin"\n')
    night = Night(directory, config)
    for name, wcs in night.tiles():
        night.render_tile(name, wcs)
    exposures = itertools.product(range(config.n_visits), range(config.n_detectors))
    truth = [night.render_visit(visit, detector)[1] for visit, detector in exposures]
    vstack(truth).write(directory / "truth.ecsv")
    return night
