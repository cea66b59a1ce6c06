"""One small exposure through every compiled loop, so that the first real one is as quick as the second."""

import numpy as np

from alertprod._typing import FloatArray
from alertprod.alerts.cutouts import CutoutConfig
from alertprod.alerts.packet import PacketInfo
from alertprod.association.config import AssociationConfig
from alertprod.association.forced import ExposureFacts
from alertprod.association.history import History
from alertprod.association.reliability import ReliabilityScorer
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.analytic import GaussianPsf
from alertprod.resample.merge import merge_tiles
from alertprod.resample.warp import warp_exposure
from alertprod.service.differencing import difference_exposures
from alertprod.service.packaging import package_alerts, prepare_sources
from alertprod.tasks.image_difference import ImageDifferenceTask

_SIDE = 320
_NOISE = 5.0


def warm_up(task: ImageDifferenceTask, *, n_threads: int = 1, scorer: ReliabilityScorer | None = None) -> int:
    """Subtract, detect, measure, score, associate and encode a made-up exposure; return how many alerts it gave.

    Notes
    -----
    Loops are compiled for the kinds of arrays they meet, and some only where there is something for them: so the
    template is read-only, as the cache's tiles are, both images have bad pixels, the science exposure has no PSF, one
    star has moved, which makes a dipole, something fast has left a trail, a satellite a streak, and there is a patch of
    light that is wider than a star.
    """
    rng = np.random.default_rng(1)
    steps = np.arange(30, _SIDE - 30, 32)
    x, y = (axis.ravel() + rng.uniform(-3, 3, steps.size**2) for axis in np.meshgrid(steps, steps))
    flux = rng.uniform(3e4, 9e4, x.size)
    moved = np.array([175.0]), np.array([145.0]), np.array([5e4])
    template = _make_exposure(*_with(x, y, flux, *moved), fwhm=3.6, rng=rng)
    for plane in (template.image, template.mask, template.variance):
        plane.setflags(write=False)
    trail = np.linspace(98.0, 122.0, 13)
    appeared = (
        np.concatenate([[178.0, 110.0], trail]),
        np.concatenate([[145.0, 112.0], 207.0 + 0.1 * (trail - 110.0)]),
        np.concatenate([[5e4, 2e4], np.full(trail.size, 3e3)]),
    )
    science = _make_exposure(*_with(x, y, flux, *appeared), fwhm=4.4, rng=rng)
    _add_satellite(science)
    _add_cloud(science)
    science.psf = None
    assert science.wcs is not None  # just made
    # Of a tile that reaches beyond the exposure some columns are read: another kind of array than the whole.
    warp_exposure(template, science.wcs, (64, 64), n_threads=n_threads)
    warped = merge_tiles([warp_exposure(template, science.wcs, science.shape, n_threads=n_threads)])
    differenced = difference_exposures(task, science, warped, id_factory=task.makeIdFactory(1, 44))
    facts = ExposureFacts(
        visit=1,
        detector=0,
        band="r",
        midpoint_mjd_tai=60000.0,
        time_processed_mjd_tai=60000.0,
        wcs=science.wcs,
        shape=science.shape,
    )
    association = AssociationConfig()
    packaged = package_alerts(
        prepare_sources(differenced, facts, association=association, cutouts=CutoutConfig(), scorer=scorer),
        History.empty(),
        differenced,
        facts=facts,
        info=PacketInfo(),
        forced_id_factory=task.makeIdFactory(1, 44),
        association=association,
    )
    # Forced photometry is for objects seen twice; here it is only compiled.
    differenced.photometer(x=np.array([20.0]), y=np.array([20.0]))
    return sum(1 for _ in packaged.messages())


def _add_satellite(science: Exposure) -> None:
    """Draw a streak from edge to edge, between the stars."""
    columns = np.arange(_SIDE)
    middle = 270.0 + columns / 100.0
    distance = np.arange(_SIDE)[:, None] - middle
    science.image[...] += np.float32(8.0 * _NOISE) * np.exp(-0.5 * (distance / 1.9) ** 2).astype(np.float32)


def _add_cloud(science: Exposure) -> None:
    """Draw a round patch that is wider than any star."""
    v, u = np.mgrid[:_SIDE, :_SIDE].astype(np.float32)
    science.image[...] += np.float32(4.0 * _NOISE) * np.exp(-0.5 * ((u - 230.0) ** 2 + (v - 80.0) ** 2) / 9.0**2)


def _with(x: FloatArray, y: FloatArray, flux: FloatArray, *more: FloatArray) -> list[FloatArray]:
    return [np.append(ours, theirs) for ours, theirs in zip((x, y, flux), more, strict=True)]


def _make_exposure(
    x: FloatArray, y: FloatArray, flux: FloatArray, *, fwhm: float, rng: np.random.Generator
) -> Exposure:
    psf = GaussianPsf(fwhm=fwhm)
    image = rng.normal(0.0, _NOISE, (_SIDE, _SIDE))
    variance = np.full(image.shape, _NOISE**2)
    for star_x, star_y, star_flux in zip(x, y, flux, strict=True):
        stamp, box = psf.compute_stellar_image(x=star_x, y=star_y)
        inside = box.intersection(MaskedImage.empty(image.shape).box)
        rows, columns = inside.slices
        cut = stamp[
            inside.y_min - box.y_min : inside.y_max - box.y_min, inside.x_min - box.x_min : inside.x_max - box.x_min
        ]
        image[rows, columns] += star_flux * cut
        variance[rows, columns] += star_flux * cut
    planes = MaskedImage(image.astype(np.float32), np.zeros(image.shape, np.int32), variance.astype(np.float32))
    planes.mask[40, 200] = plane_bits("BAD")
    planes.image[200, 40], planes.mask[200, 40] = np.nan, plane_bits("NO_DATA")
    wcs = SkyWcs.from_tangent(ra_deg=10.0, dec_deg=0.0, x=_SIDE / 2, y=_SIDE / 2, scale_arcsec=0.3)
    info = ExposureInfo(instrument="warm-up", visit=1, detector=0, band="r", shutter_open_mjd_tai=60000.0)
    info.exposure_time_s = 30.0
    return Exposure(masked_image=planes, wcs=wcs, psf=psf, info=info)
