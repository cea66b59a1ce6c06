"""Which pixels and stars a score looks at, by the truth alone: the same for every method."""

from dataclasses import dataclass

import numpy as np
from benchmarks.quality.render import Field
from benchmarks.quality.scene import compute_saturated_flux, compute_sky_variance
from benchmarks.quality.truth import Truth
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from alertprod.images.mask import plane_bits

BRIGHT_SNR, BRIGHT_REACH = 300.0, 26.0
"""What lies so near (pixels) a star of this signal-to-noise is counted as near a bright star: a kernel wrong by 1 % leaves
3 sigma of it."""

SATURATED_REACH = 60.0
GALAXY_SNR, GALAXY_REACH = 50.0, 12.0
DEFECT_REACH = 5.0

PLACES = ("near saturated stars", "near defects", "near bright stars", "near galaxies", "elsewhere")
"""Where false DiaSources lie; the first that applies."""


@dataclass(slots=True)
class Regions:
    """The places of an image, as numbers into `PLACES`."""

    label: np.ndarray

    def look_up(self, x, y):
        ny, nx = self.label.shape
        column, row = np.rint(np.asarray(x)).astype(int), np.rint(np.asarray(y)).astype(int)
        return self.label[np.clip(row, 0, ny - 1), np.clip(column, 0, nx - 1)]

    def shares(self) -> dict[str, float]:
        counts = np.bincount(self.label.ravel(), minlength=len(PLACES))
        return {name: float(count / self.label.size) for name, count in zip(PLACES, counts, strict=True)}


def make_regions(made: Field) -> Regions:
    """Say of each pixel which place it belongs to."""
    scene = made.scene
    label = np.full(made.science.shape, PLACES.index("elsewhere"), dtype=np.uint8)
    galaxies = scene.galaxies
    bright = galaxies.flux > GALAXY_SNR * scene.point_noise
    _paint(label, galaxies.x[bright], galaxies.y[bright], GALAXY_REACH, PLACES.index("near galaxies"))
    stars, full = scene.stars, compute_saturated_flux(scene.parameters)
    bright = (stars.flux > BRIGHT_SNR * scene.point_noise) & (stars.flux < full)
    _paint(label, stars.x[bright], stars.y[bright], BRIGHT_REACH, PLACES.index("near bright stars"))
    defects = (made.science.mask & plane_bits("CR", "BAD", "NO_DATA")) != 0
    defects |= (made.template.mask & plane_bits("BAD", "NO_DATA")) != 0
    _paint_mask(label, defects, DEFECT_REACH, PLACES.index("near defects"))
    saturated = stars.flux >= full
    number = PLACES.index("near saturated stars")
    _paint(label, stars.x[saturated], stars.y[saturated], SATURATED_REACH, number)
    wells = ((made.science.mask | made.template.mask) & plane_bits("SAT")) != 0
    _paint_mask(label, wells, 10.0, number)
    return Regions(label)


def _paint(label, x, y, radius: float, number: int) -> None:
    half = int(np.ceil(radius))
    for xi, yi in zip(x, y, strict=True):
        rows = slice(max(0, int(yi) - half), max(0, int(yi) + half + 2))
        columns = slice(max(0, int(xi) - half), max(0, int(xi) + half + 2))
        part = label[rows, columns]
        if part.size:
            v, u = np.mgrid[rows.start : rows.start + part.shape[0], columns.start : columns.start + part.shape[1]]
            part[np.hypot(u - xi, v - yi) <= radius] = number


def _paint_mask(label, mask, radius: float, number: int) -> None:
    if mask.any():
        label[distance_transform_edt(~mask) <= radius] = number


def find_sky(made: Field, truth: Truth):
    """Return pixels with no light to speak of in either image, by the truth alone."""
    sigma = float(np.sqrt(compute_sky_variance(made.scene.parameters)))
    sky = made.static < 0.2 * sigma
    _blank_changes(sky, made, truth)
    return sky


def find_sources(made: Field, truth: Truth):
    """Return pixels on stars and galaxies that did not change."""
    sigma = float(np.sqrt(compute_sky_variance(made.scene.parameters)))
    lit = made.static > sigma
    _blank_changes(lit, made, truth)
    return lit


def _blank_changes(mask, made: Field, truth: Truth) -> None:
    changes = made.scene.changes
    ny, nx = mask.shape
    for i in range(len(changes)):
        reach = int(16 + 0.5 * np.hypot(changes.trail_x[i], changes.trail_y[i]) + 6 * (truth.snr[i] > 50))
        column, row = round(changes.x[i]), round(changes.y[i])
        mask[max(0, row - reach) : min(ny, row + reach + 1), max(0, column - reach) : min(nx, column + reach + 1)] = (
            False
        )


def choose_stars(made: Field):
    """Return the brightest stars that are saturated in neither image, whole and alone: indices, brightest first."""
    scene, stars = made.scene, made.scene.stars
    wanted = int(np.clip(round(100 * scene.parameters.scale(scene.size)), 12, 100))
    size = scene.size
    reach = 10
    inside = (stars.x > 30) & (stars.x < size - 31) & (stars.y > 30) & (stars.y < size - 31)
    alone = inside & (stars.flux < compute_saturated_flux(scene.parameters))
    if len(scene.changes):
        alone &= (
            cKDTree(np.stack([scene.changes.x, scene.changes.y], axis=-1)).query(np.stack([stars.x, stars.y], axis=-1))[
                0
            ]
            > 30.0
        )
    bits = plane_bits("SAT", "BAD", "CR", "NO_DATA")
    chosen = []
    for i in np.argsort(-stars.flux):
        if not alone[i]:
            continue
        rows = slice(round(stars.y[i]) - reach, round(stars.y[i]) + reach + 1)
        columns = slice(round(stars.x[i]) - reach, round(stars.x[i]) + reach + 1)
        if ((made.science.mask[rows, columns] | made.template.mask[rows, columns]) & bits).any():
            continue
        chosen.append(int(i))
        if len(chosen) == wanted:
            break
    return chosen
