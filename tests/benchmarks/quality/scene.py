"""What is in a simulated field: stars, galaxies, what changed between the two images, and how often a perfect method sees it."""

from dataclasses import dataclass, field

import numpy as np
from benchmarks.quality.optics import Optics
from scipy.spatial import cKDTree

REFERENCE_SIDE = 4096
"""Counts of a scene are those of an image of this side and go with the area."""

EDGE = 45
"""No change is closer to the edge: kernels and PSFs reach over it."""

SEPARATION = 45.0
"""Changes are at least this far apart: what is counted is changes, not blends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneParameters:
    """All that makes a regime; counts for an image of 4096 x 4096 pixels, fluxes in counts, lengths in pixels."""

    n_stars: int = 4000
    n_galaxies: int = 2000
    n_saturated: int = 2
    """At least one in images of any size."""
    n_transients: int = 300
    n_variables: int = 20
    """Stars that changed by 10 to 50 %: kernels are fitted on them unless somebody notices."""
    n_proper_motion: int = 40
    """Stars that moved by 0.3 to 2 pixels: dipoles."""
    n_trails: int = 24
    """Asteroids that moved by 4 to 20 pixels during the exposure."""
    least_transients: int = 60
    """Small images have as many changes as this all the same."""
    faintest_star_snr: float = 4.0
    star_slope: float = 0.6
    """Numbers of stars brighter than F go with F ** -star_slope."""
    transient_snr: tuple[float, float] = (3.0, 100.0)
    """Log-uniform, in units of the noise of a point source on empty sky."""
    science: Optics = field(default_factory=Optics)
    template: Optics = field(
        default_factory=lambda: Optics(fwhm=3.4, e1=-0.01, e2=0.02, defocus=-0.3, coma=0.3, astigmatism=0.2)
    )
    sky: float = 700.0
    gain: float = 2.0
    """Electrons per count."""
    read_noise: float = 6.0
    """Electrons."""
    saturation: float = 55_000.0
    template_depth: float = 10.0
    """The template is the mean of so many exposures like the science image."""
    sky_residual: float = 0.3
    """Rms of what the sky subtraction left in the science image, in units of a pixel's noise."""
    misregistration: tuple[float, float] = (0.0, 0.0)
    """How far the template's world coordinates are off."""
    template_coverage: float = 1.0
    """Share of the science image under which there is a template."""
    template_rotation_deg: float = 28.0
    """Between the two pixel grids."""
    n_cosmic_rays: int = 200
    masked_cosmic_rays: float = 1.0
    """Share that the reduction of the science image has masked."""
    n_bad_columns: int = 8
    given_psf: bool = True
    """The exposures carry their PSF, as calibrated ones do; else it is the product's to find."""
    variance_from_pixels: bool = False
    """The variance plane is made of the noisy pixels, as reductions do it, and not of the truth."""
    njy_per_count: float = 5.0

    def scale(self, size: int) -> float:
        """Return the area of an image in units of that which counts are for."""
        return (size / REFERENCE_SIDE) ** 2


REGIMES: dict[str, SceneParameters] = {
    "ordinary": SceneParameters(),
    "crowded": SceneParameters(n_stars=40_000),
    "sparse": SceneParameters(n_stars=30, n_saturated=0, n_variables=2, n_proper_motion=2),
    "sharper_science": SceneParameters(
        science=Optics(fwhm=3.4), template=Optics(fwhm=4.0, e1=-0.01, e2=0.02, defocus=-0.3)
    ),
    "equal_widths": SceneParameters(
        science=Optics(fwhm=3.8), template=Optics(fwhm=3.8, e1=-0.01, e2=0.02, defocus=-0.3)
    ),
    "tracking_error": SceneParameters(science=Optics(drift_x=4.0, drift_y=2.0)),
    "misregistered": SceneParameters(misregistration=(0.24, -0.18)),
    "differential_background": SceneParameters(sky_residual=5.0),
    "template_missing": SceneParameters(template_coverage=0.8),
    "template_shallow": SceneParameters(template_depth=0.1),
    "template_same_depth": SceneParameters(template_depth=1.0),
    "fitted_psf": SceneParameters(given_psf=False),
    "noisy_variance": SceneParameters(variance_from_pixels=True),
    "unmasked_cosmics": SceneParameters(masked_cosmic_rays=0.0),
}
"""Every regime by name. The template with a tenth of the depth has ten times the variance of the science image."""


@dataclass(slots=True)
class Stars:
    """Point sources; positions on the science image, pixels, fluxes in counts."""

    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray

    def __len__(self) -> int:
        return len(self.x)


@dataclass(slots=True)
class Galaxies(Stars):
    """Exponential discs; `shape` of (n, 2, 2) takes the disc of unit scale length to each of them."""

    shape: np.ndarray


@dataclass(slots=True)
class Changes:
    """What is not the same in the two images, one entry each.

    Positions and lengths in pixels of the science image, fluxes in counts. A trail is there in the science image only; a
    star of proper motion is at (x, y) in the science image and at (x_template, y_template) in the template.
    """

    kind: np.ndarray
    """``transient``, ``variable``, ``proper_motion``, ``trail``."""
    x: np.ndarray
    y: np.ndarray
    x_template: np.ndarray
    y_template: np.ndarray
    flux_science: np.ndarray
    flux_template: np.ndarray
    trail_x: np.ndarray
    trail_y: np.ndarray

    @property
    def flux(self):
        """The change of flux, signed."""
        return self.flux_science - self.flux_template

    def __len__(self) -> int:
        return len(self.x)


@dataclass(slots=True)
class Scene:
    """A field of view of `size` pixels squared."""

    seed: int
    size: int
    parameters: SceneParameters
    stars: Stars
    galaxies: Galaxies
    changes: Changes
    point_noise: float
    """Standard error of a point source's flux on empty sky of the science image, counts."""


def make_scene(seed: int, size: int, parameters: SceneParameters) -> Scene:
    """Draw a scene; the same seed and parameters give the same."""
    rng = np.random.default_rng([seed, size, 1])
    noise = compute_point_noise(parameters)
    stars = _make_stars(rng, size, parameters, noise)
    galaxies = _make_galaxies(rng, size, parameters, noise)
    changes = _make_changes(rng, size, parameters, noise, stars, galaxies)
    return Scene(seed, size, parameters, stars, galaxies, changes, noise)


def compute_point_noise(parameters: SceneParameters) -> float:
    """Return the standard error of a point source's flux on empty sky in the middle of the science image, counts."""
    f = np.arange(-32, 32) / 64
    power = np.abs(parameters.science.compute_separable_transfer(f, f, u=0.0, v=0.0)) ** 2
    return float(np.sqrt(compute_sky_variance(parameters) / power.mean()))


def compute_sky_variance(parameters: SceneParameters) -> float:
    """Return the variance of a pixel of empty sky of the science image, counts squared."""
    return parameters.sky / parameters.gain + (parameters.read_noise / parameters.gain) ** 2


def compute_saturated_flux(parameters: SceneParameters) -> float:
    """Return the flux of a star whose peak is at the saturation level on the sharper of the two images, counts."""
    f = np.arange(-32, 32) / 64
    peaks = [
        np.abs(optics.compute_separable_transfer(f, f, u=0.0, v=0.0)).mean()
        for optics in (parameters.science, parameters.template)
    ]
    return float((parameters.saturation - parameters.sky) / max(peaks))


def _make_stars(rng, size, parameters, noise) -> Stars:
    margin = 60
    area = (size + 2 * margin) ** 2 / size**2 * parameters.scale(size)
    full = compute_saturated_flux(parameters)
    n = round(parameters.n_stars * area)
    low, high = noise * parameters.faintest_star_snr, 0.8 * full
    flux = (low**-parameters.star_slope * (1 - (q := rng.uniform(size=n))) + high**-parameters.star_slope * q) ** (
        -1.0 / parameters.star_slope
    )
    x, y = rng.uniform(-margin, size + margin, size=(2, n))
    n_saturated = max(1, round(parameters.n_saturated * parameters.scale(size))) if parameters.n_saturated else 0
    bright = full * 10 ** rng.uniform(np.log10(2.0), np.log10(12.0), n_saturated)
    bright_x, bright_y = rng.uniform(0.1 * size, 0.9 * size, size=(2, n_saturated))
    return Stars(np.append(x, bright_x), np.append(y, bright_y), np.append(flux, bright))


def _make_galaxies(rng, size, parameters, noise) -> Galaxies:
    n = round(parameters.n_galaxies * parameters.scale(size))
    x, y = rng.uniform(0, size, size=(2, n))
    flux = noise * 10 ** rng.uniform(np.log10(8.0), np.log10(300.0), n)
    scale, ratio, angle = rng.uniform(0.6, 2.8, n), rng.uniform(0.25, 1.0, n), rng.uniform(0.0, np.pi, n)
    cos, sin = np.cos(angle), np.sin(angle)
    shape = np.empty((n, 2, 2))
    shape[:, 0, 0], shape[:, 0, 1] = scale * cos, -scale * ratio * sin
    shape[:, 1, 0], shape[:, 1, 1] = scale * sin, scale * ratio * cos
    return Galaxies(x, y, flux, shape)


def _make_changes(rng, size, parameters, noise, stars, galaxies) -> Changes:
    scale = parameters.scale(size)
    n_transients = max(round(parameters.n_transients * scale), parameters.least_transients)
    # The others go with the number of transients, so that small images have some of each.
    share = n_transients / max(parameters.n_transients, 1)
    n_variables, n_moving, n_trails = (
        round(n * share) for n in (parameters.n_variables, parameters.n_proper_motion, parameters.n_trails)
    )
    places = _Places(size)
    snr = 10 ** rng.uniform(*np.log10(parameters.transient_snr), n_transients)
    sign = np.where(rng.uniform(size=n_transients) < 0.5, -1.0, 1.0)
    hosts = rng.permutation(len(galaxies))
    rows = []
    for i in range(n_transients):
        candidates = rng.uniform(EDGE, size - EDGE, (2000, 2))
        # Every other one sits in a galaxy, while there are any that are free.
        if i % 2:
            in_hosts = np.stack([galaxies.x[hosts], galaxies.y[hosts]], axis=-1)
            candidates = np.concatenate([in_hosts + rng.normal(0, 2.0, in_hosts.shape), candidates])
        place = places.take(candidates)
        flux = snr[i] * noise
        now, before = (flux, 0.0) if sign[i] > 0 else (0.0, flux)
        rows.append(("transient", *place, *place, now, before, 0.0, 0.0))
    full = compute_saturated_flux(parameters)
    for _ in range(n_variables):
        place = places.take(rng.uniform(EDGE, size - EDGE, (2000, 2)))
        before = min(noise * 10 ** rng.uniform(1.5, 3.0), 0.5 * full)
        now = before * (1.0 + rng.choice([-1.0, 1.0]) * rng.uniform(0.1, 0.5))
        rows.append(("variable", *place, *place, now, before, 0.0, 0.0))
    for _ in range(n_moving):
        place = places.take(rng.uniform(EDGE, size - EDGE, (2000, 2)))
        flux = min(noise * 10 ** rng.uniform(1.6, 3.0), 0.3 * full)
        step, angle = rng.uniform(0.3, 2.0), rng.uniform(0, 2 * np.pi)
        moved = place + step * np.array([np.cos(angle), np.sin(angle)])
        rows.append(("proper_motion", *place, *moved, flux, flux, 0.0, 0.0))
    for _ in range(n_trails):
        place = places.take(rng.uniform(EDGE, size - EDGE, (2000, 2)))
        length, angle = rng.uniform(4.0, 20.0), rng.uniform(0, np.pi)
        flux = noise * 10 ** rng.uniform(np.log10(15.0), np.log10(120.0))
        rows.append(("trail", *place, *place, flux, 0.0, length * np.cos(angle), length * np.sin(angle)))
    columns = list(zip(*rows, strict=True)) if rows else [()] * 9
    kind = np.array(columns[0], dtype=object)
    return Changes(kind, *(np.array(column, dtype=float) for column in columns[1:]))


class _Places:
    """Hands out places that keep their distance from one another and from the edge."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken: list[np.ndarray] = []

    def take(self, candidates):
        inside = np.all((candidates >= EDGE) & (candidates <= self._size - EDGE), axis=1)
        if self._taken:
            inside &= cKDTree(np.array(self._taken)).query(candidates)[0] >= SEPARATION
        if not inside.any():
            msg = f"no room for another change among {len(self._taken)} in {self._size} x {self._size} pixels"
            raise ValueError(msg)
        place = candidates[np.argmax(inside)]
        self._taken.append(place)
        return place
