"""From a scene to two exposures: what a camera and its reduction make of it, and the truth beside it."""

from dataclasses import dataclass, replace

import numpy as np
from benchmarks.quality.optics import Optics, TruePsf, choose_stamp_side, draw_stamp, to_field
from benchmarks.quality.scene import Changes, Scene, compute_sky_variance
from scipy.ndimage import maximum_filter

from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import PhotoCalib
from alertprod.resample.merge import merge_tiles
from alertprod.resample.warp import warp_exposure

SCALE_ARCSEC = 0.2
RA, DEC = 150.0, -31.2

LEAST_LIGHT = 0.003
"""Stars are drawn out to where a pixel gets this share of its noise."""

SKY_WAVELENGTHS = (700.0, 1500.0)
"""Of what a sky subtraction leaves, pixels: it follows the sky on smaller scales."""


@dataclass(slots=True, kw_only=True)
class Field:
    """Two exposures of one scene and the truth; arrays on the science image's pixels, counts.

    `model` is the scene as it was when the template was taken, as the science image would have shown it: without noise,
    with the sky residual of the science image. `science` less `model` is all that changed, and noise.
    """

    scene: Scene
    science: Exposure
    template: Exposure
    """Warped, merged: as it is subtracted."""
    template_noise: MaskedImage
    """The template's noise alone on the science image's pixels; mask and variance are those of `template`."""
    static: np.ndarray
    """Stars and galaxies alone."""
    model: np.ndarray
    science_variance: np.ndarray
    template_variance: np.ndarray
    """Of the template before it was warped, on its own pixels."""
    to_template: "Pixels"
    """From the science image's pixels to the template's own."""
    enclosed: float
    """Share of a star's light that counts as its flux: that within the image of its PSF."""

    @property
    def size(self) -> int:
        return self.scene.size


def make_field(scene: Scene) -> Field:
    """Render a scene."""
    parameters, size = scene.parameters, scene.size
    middle = (size - 1) / 2
    wcs = SkyWcs.from_tangent(ra_deg=RA, dec_deg=DEC, x=middle, y=middle, scale_arcsec=SCALE_ARCSEC, rotation_deg=20.0)
    changes, shape = scene.changes, (size, size)
    science_psf = TruePsf(parameters.science, shape)

    static = np.zeros(shape)
    here = Pixels.identity()
    _draw_static(static, scene, parameters.science, here, sigma=np.sqrt(compute_sky_variance(parameters)))
    now = static.copy()
    _draw_changes(now, changes, parameters.science, here, scene, which="science")
    model = static.copy()
    _draw_changes(model, changes, parameters.science, here, scene, which="template as the science image would show it")
    sky = _make_sky_residual(scene)
    science, science_variance = _expose(
        now, sky, parameters, np.random.default_rng([scene.seed, size, 2]), depth=1.0, is_science=True
    )
    info = ExposureInfo(
        instrument="simulated", visit=scene.seed, detector=0, band="r", shutter_open_mjd_tai=61000.0,
        exposure_time_s=30.0, gain=parameters.gain, read_noise=parameters.read_noise, saturation=parameters.saturation,
    )  # fmt: skip
    calib = PhotoCalib(parameters.njy_per_count)
    psf = science_psf if parameters.given_psf else None
    exposure = Exposure(masked_image=science, wcs=wcs, psf=psf, photo_calib=calib, info=info)
    template, noise, variance, pixels = _make_template(scene, wcs, calib)
    return Field(
        scene=scene,
        science=exposure,
        template=template,
        template_noise=noise,
        static=static.astype(np.float32),
        model=(model + sky).astype(np.float32),
        science_variance=science_variance.astype(np.float32),
        template_variance=variance.astype(np.float32),
        to_template=pixels,
        enclosed=science_psf.compute_enclosed(),
    )


def _make_template(scene: Scene, wcs: SkyWcs, calib: PhotoCalib):
    parameters, size = scene.parameters, scene.size
    rotation = 20.0 + parameters.template_rotation_deg
    cos, sin = np.abs(np.cos(np.radians(rotation - 20.0))), np.abs(np.sin(np.radians(rotation - 20.0)))
    side = int(np.ceil(size * (cos + sin))) + 40
    middle = (side - 1) / 2
    claimed = SkyWcs.from_tangent(
        ra_deg=RA, dec_deg=DEC, x=middle, y=middle, scale_arcsec=SCALE_ARCSEC, rotation_deg=rotation
    )
    pixels = Pixels.between(wcs, claimed, (size - 1) / 2, parameters.misregistration)
    sigma = np.sqrt(compute_sky_variance(parameters) / parameters.template_depth)
    image = np.zeros((side, side))
    _draw_static(image, scene, parameters.template, pixels, sigma=sigma)
    _draw_changes(image, scene.changes, parameters.template, pixels, scene, which="template")
    rng = np.random.default_rng([scene.seed, size, 3])
    planes, variance = _expose(image, 0.0, parameters, rng, depth=parameters.template_depth, is_science=False)
    _cut_off(planes, pixels, scene)
    noise = planes.image - image.astype(np.float32)
    noise[(planes.mask & plane_bits("SAT", "NO_DATA")) != 0] = 0.0
    psf = TruePsf(parameters.template, (side, side)) if parameters.given_psf else None
    tile = Exposure(
        masked_image=planes, wcs=claimed, psf=psf, photo_calib=calib,
        info=ExposureInfo(band="r", instrument="simulated"),
    )  # fmt: skip
    shape = (size, size)
    warped = merge_tiles([warp_exposure(tile, wcs, shape, n_threads=2)])
    noise_tile = replace(tile, psf=None, masked_image=MaskedImage(noise, planes.mask, planes.variance))
    warped_noise = warp_exposure(noise_tile, wcs, shape, n_threads=2).masked_image
    warped_noise = MaskedImage(warped_noise.image, warped.mask, warped.variance)
    return warped, warped_noise, variance, pixels


@dataclass(frozen=True, slots=True)
class Pixels:
    """From pixels of the science image to those of the image that is drawn; a plane is an affine map to 1e-6."""

    origin: np.ndarray
    offset: np.ndarray
    jacobian: np.ndarray
    """d(drawn pixel) / d(science pixel)."""

    @classmethod
    def identity(cls) -> "Pixels":
        return cls(np.zeros(2), np.zeros(2), np.eye(2))

    @classmethod
    def between(cls, science: SkyWcs, template: SkyWcs, middle: float, shift) -> "Pixels":
        """Linearise about the middle; the two tangent planes touch the sky at one point, so nothing is lost."""
        x, y = np.array([middle, middle + 100.0, middle]), np.array([middle, middle, middle + 100.0])
        ra, dec = science.pixel_to_sky(x=x, y=y)
        tx, ty = template.sky_to_pixel(ra_deg=ra, dec_deg=dec)
        jacobian = np.array([[tx[1] - tx[0], tx[2] - tx[0]], [ty[1] - ty[0], ty[2] - ty[0]]]) / 100.0
        return cls(np.array([middle, middle]), np.array([tx[0] + shift[0], ty[0] + shift[1]]), jacobian)

    def transform(self, x, y):
        """Return x and y of the drawn image."""
        u, v = x - self.origin[0], y - self.origin[1]
        j = self.jacobian
        return self.offset[0] + j[0, 0] * u + j[0, 1] * v, self.offset[1] + j[1, 0] * u + j[1, 1] * v

    def transform_back(self, x, y):
        """Return x and y of the science image."""
        u, v = np.linalg.solve(self.jacobian, np.stack([np.ravel(x - self.offset[0]), np.ravel(y - self.offset[1])]))
        return u + self.origin[0], v + self.origin[1]


def _draw_static(image, scene: Scene, optics: Optics, pixels: Pixels, *, sigma: float) -> None:
    x, y = pixels.transform(scene.stars.x, scene.stars.y)
    for xi, yi, flux in zip(x, y, scene.stars.flux, strict=True):
        _draw(image, optics, xi, yi, flux, sigma)
    galaxies = scene.galaxies
    x, y = pixels.transform(galaxies.x, galaxies.y)
    for xi, yi, flux, shape in zip(x, y, galaxies.flux, galaxies.shape, strict=True):
        _draw(image, optics, xi, yi, flux, sigma, galaxy=pixels.jacobian @ shape)


def _draw_changes(image, changes: Changes, optics: Optics, pixels: Pixels, scene: Scene, *, which: str) -> None:
    sigma = np.sqrt(compute_sky_variance(scene.parameters))
    is_now = which == "science"
    place = (changes.x, changes.y) if is_now else (changes.x_template, changes.y_template)
    x, y = pixels.transform(*place)
    flux = changes.flux_science if is_now else changes.flux_template
    for i in np.flatnonzero(flux > 0):
        trail = pixels.jacobian @ np.array([changes.trail_x[i], changes.trail_y[i]])
        _draw(image, optics, x[i], y[i], flux[i], 0.2 * sigma, trail=trail if trail.any() else None)


def _draw(image, optics: Optics, x: float, y: float, flux: float, sigma: float, *, galaxy=None, trail=None) -> None:
    """Add one source in place, where any of its light falls on the image."""
    side = choose_stamp_side(LEAST_LIGHT * sigma / flux)
    if galaxy is not None or trail is not None:
        side = max(side, 64)
    column, row = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
    ny, nx = image.shape
    left, bottom = column - side // 2, row - side // 2
    if left >= nx or bottom >= ny or left + side <= 0 or bottom + side <= 0:
        return
    u, v = to_field(x, y, image.shape)
    stamp = draw_stamp(optics, u=u, v=v, dx=x - column, dy=y - row, n=side, galaxy=galaxy, trail=trail)
    rows = slice(max(0, bottom), min(ny, bottom + side))
    columns = slice(max(0, left), min(nx, left + side))
    inner = stamp[rows.start - bottom : rows.stop - bottom, columns.start - left : columns.stop - left]
    image[rows, columns] += flux * inner


def _make_sky_residual(scene: Scene):
    """Return a smooth sky that was not taken off the science image: a curved plane and long waves, no polynomial of low order.

    Of zero mean, counts.
    """
    rng = np.random.default_rng([scene.seed, scene.size, 4])
    parameters, size = scene.parameters, scene.size
    steps = np.linspace(-1.0, 1.0, size)
    u, v = steps[None, :], steps[:, None]
    plane = sum(a * term for a, term in zip(rng.normal(size=5), (u, v, u * u, u * v, v * v), strict=True))
    waves = np.zeros((size, size))
    for _ in range(4):
        length, angle, phase = rng.uniform(*SKY_WAVELENGTHS), rng.uniform(0.0, np.pi), rng.uniform(0.0, 2.0 * np.pi)
        k = np.pi * size / length
        waves += np.cos(k * (u * np.cos(angle) + v * np.sin(angle)) + phase)
    sky = (plane - plane.mean()) / plane.std() + (waves - waves.mean()) / waves.std()
    sigma = np.sqrt(compute_sky_variance(parameters))
    return sky * (parameters.sky_residual * sigma / max(float(sky.std()), 1e-9))


def _expose(light, residual, parameters, rng, *, depth: float, is_science: bool):
    """Return planes of an exposure and the true variance."""
    true_variance = (np.maximum(light + residual, 0.0) + parameters.sky) / parameters.gain
    true_variance += (parameters.read_noise / parameters.gain) ** 2
    true_variance /= depth
    image = light + residual + rng.normal(size=light.shape) * np.sqrt(true_variance)
    mask = np.zeros(light.shape, dtype=np.int32)
    variance = true_variance
    if parameters.variance_from_pixels:
        variance = (np.maximum(image, -0.5 * parameters.sky) + parameters.sky) / (parameters.gain * depth)
        variance += (parameters.read_noise / parameters.gain) ** 2 / depth
    variance = variance.astype(np.float32)
    _saturate(image, mask, parameters)
    if is_science:
        _strike(image, mask, rng, parameters)
    return MaskedImage(image.astype(np.float32), mask, variance), true_variance


def _saturate(image, mask, parameters) -> None:
    """Clip full wells, let what is over the brim bleed along columns, mark it all and its neighbours."""
    full = parameters.saturation - parameters.sky
    over = image > full
    if not over.any():
        return
    for column in np.flatnonzero(over.any(axis=0)):
        rows = np.flatnonzero(over[:, column])
        # Several stars of one column bleed each for itself.
        for group in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
            spill = float((image[group, column] - full).sum()) / full
            reach = int(np.ceil(spill / 2.0))
            first, last = max(0, group[0] - reach), min(image.shape[0], group[-1] + reach + 1)
            over[first:last, column] = True
            image[first:last, column] = full
    mask[maximum_filter(over, size=3)] |= plane_bits("SAT")


def _strike(image, mask, rng, parameters) -> None:
    """Add cosmic-ray tracks and bad columns."""
    ny, nx = image.shape
    scale = parameters.scale(ny)
    for _ in range(round(parameters.n_cosmic_rays * scale)):
        length, angle = rng.uniform(2, 20), rng.uniform(0.0, np.pi)
        steps = np.arange(0.0, length, 0.5)
        columns = np.rint(rng.uniform(0, nx) + steps * np.cos(angle)).astype(int)
        rows = np.rint(rng.uniform(0, ny) + steps * np.sin(angle)).astype(int)
        inside = (columns >= 0) & (columns < nx) & (rows >= 0) & (rows < ny)
        track = np.unique(np.stack([rows[inside], columns[inside]], axis=-1), axis=0)
        image[track[:, 0], track[:, 1]] += rng.uniform(300, 5000)
        if rng.uniform() < parameters.masked_cosmic_rays:
            mask[track[:, 0], track[:, 1]] |= plane_bits("CR")
    for _ in range(max(1, round(parameters.n_bad_columns * scale)) if parameters.n_bad_columns else 0):
        column, first = rng.integers(0, nx), rng.integers(0, ny)
        image[first:, column] = 0.0
        mask[first:, column] |= plane_bits("BAD")


def _cut_off(planes: MaskedImage, pixels: Pixels, scene: Scene) -> None:
    """Take away the template under a slanted strip of the science image, in place."""
    missing = 1.0 - scene.parameters.template_coverage
    if missing <= 0:
        return
    side = planes.shape[0]
    columns = np.arange(side, dtype=float)
    for row in range(side):
        x, y = pixels.transform_back(columns, np.full(side, float(row)))
        # A strip along the right edge whose width changes from nothing to twice its mean.
        gone = x > scene.size * (1.0 - 2.0 * missing * y / scene.size)
        planes.image[row, gone], planes.variance[row, gone] = np.nan, np.inf
        planes.mask[row, gone] |= plane_bits("NO_DATA")
