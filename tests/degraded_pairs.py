"""Pairs of exposures with something wrong: what cameras, pipelines and callers have been seen to hand in.

A pair is drawn, then one to three degradations are put on one of its images or on both, all from one seed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from tolerance_skies import draw_sources

from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import PhotoCalib
from alertprod.measurement.catalog import Catalog
from alertprod.psf.analytic import GaussianPsf, MoffatPsf
from alertprod.psf.model import PointSpreadFunction
from alertprod.tasks.sources import make_source_catalog

SHAPES = ((224, 224), (224, 224), (192, 256), (231, 197), (320, 240))
SMALL_SHAPES = ((64, 64), (16, 16), (1, 1), (5, 300), (300, 5), (33, 48), (2, 2), (128, 31))

Change = Callable[[np.random.Generator, Exposure], Exposure]


@dataclass(frozen=True)
class DegradedPair:
    """Two exposures, stars to fit on where the caller gives any, and what was done to them."""

    science: Exposure
    template: Exposure
    stars: Catalog | None
    history: list[str] = field(default_factory=list)


def make_degraded_pair(seed: int) -> DegradedPair:
    """Draw a pair and degrade it."""
    rng = np.random.default_rng(seed)
    n_stars = int(rng.choice([0, 1, 5, 5000])) if rng.random() < 0.15 else None
    shape = SMALL_SHAPES[rng.integers(len(SMALL_SHAPES))] if rng.random() < 0.12 else SHAPES[rng.integers(len(SHAPES))]
    x, y = _place_stars(rng, shape, n_stars)
    exposures = dict(zip(("science", "template"), _draw_pair(rng, shape, x, y), strict=True))
    history = [f"{shape[0]} x {shape[1]} pixels, {len(x)} stars"]
    names = sorted(DEGRADATIONS)
    for name in rng.choice(names, size=int(rng.choice([1, 1, 2, 3])), replace=False):
        which = ("science",), ("template",), ("science", "template")
        for side in which[rng.choice(3, p=[0.4, 0.4, 0.2])]:
            # Copied first: planes of one exposure may be views of the other's.
            exposures[side] = DEGRADATIONS[name](rng, exposures[side].copy())
            history.append(f"{side}: {name}")
    stars = None
    if rng.random() < 0.2:
        stars = _stars_at(x, y)
    elif rng.random() < 0.3:
        kind = sorted(STARS)[rng.integers(len(STARS))]
        stars = STARS[kind](rng, shape)
        history.append(f"stars: {kind}")
    return DegradedPair(exposures["science"], exposures["template"], stars, history)


def _place_stars(rng: np.random.Generator, shape: tuple[int, int], n_stars: int | None) -> tuple[NDArray, NDArray]:
    """Return positions anywhere, or on a jittered grid, on which a kernel can be fitted, where no number is given."""
    if n_stars is not None:
        return rng.uniform(0, shape[1] - 1, n_stars), rng.uniform(0, shape[0] - 1, n_stars)
    rows, columns = np.meshgrid(*(np.arange(12, length, 24) for length in shape), indexing="ij")
    return columns.ravel() + rng.uniform(-3, 3, rows.size), rows.ravel() + rng.uniform(-3, 3, rows.size)


def _draw_pair(rng: np.random.Generator, shape: tuple[int, int], x: NDArray, y: NDArray) -> tuple[Exposure, Exposure]:
    flux = 10.0 ** rng.uniform(3.5, 5.0, len(x))
    wcs = SkyWcs.from_tangent(
        ra_deg=359.999, dec_deg=-30.0, x=shape[1] / 2, y=shape[0] / 2, scale_arcsec=0.3, rotation_deg=20.0
    )
    pair = []
    for fwhm, noise in ((4.4, 5.0), (3.6, 2.0)):
        psf = GaussianPsf(fwhm=fwhm)
        change = rng.uniform(0, shape[1] - 1, 3), rng.uniform(0, shape[0] - 1, 3), np.array([4000.0, 2000.0, 1000.0])
        image = draw_sources(
            shape, psf, x=np.append(x, change[0]), y=np.append(y, change[1]), flux=np.append(flux, change[2])
        )
        variance = noise**2 + image
        image = image + np.sqrt(variance) * rng.standard_normal(shape)
        planes = MaskedImage(image.astype(np.float32), np.zeros(shape, np.int32), variance.astype(np.float32))
        info = ExposureInfo(
            instrument="TestCam", visit=7, detector=4, band="r", shutter_open_mjd_tai=61000.0, exposure_time_s=30.0
        )
        pair.append(Exposure(masked_image=planes, wcs=wcs, psf=psf, photo_calib=PhotoCalib(1.0), info=info))
    return pair[0], pair[1]


# -- planes --


def _draw_region(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Return a block, a stripe, a scatter or a half."""
    ny, nx = shape
    kind = rng.integers(5)
    if kind == 0:
        y, x = rng.integers(0, ny), rng.integers(0, nx)
        return slice(y, y + rng.integers(1, 80)), slice(x, x + rng.integers(1, 80))
    if kind == 1:
        return slice(None), slice(None, None, int(rng.integers(2, 9)))
    if kind == 2:
        return slice(None, None, int(rng.integers(2, 9))), slice(None, None, int(rng.integers(2, 9)))
    if kind == 3:
        return (slice(None, ny // 2), slice(None)) if rng.random() < 0.5 else (slice(None), slice(nx // 2, None))
    return slice(None), slice(None)


def _fill(plane: str, *values: float) -> Change:
    def change(rng: np.random.Generator, exposure: Exposure) -> Exposure:
        with np.errstate(over="ignore"):
            getattr(exposure, plane)[_draw_region(rng, exposure.shape)] = np.float32(rng.choice(values))
        return exposure

    return change


def _mark(*planes: str) -> Change:
    def change(rng: np.random.Generator, exposure: Exposure) -> Exposure:
        exposure.mask[_draw_region(rng, exposure.shape)] |= np.int32(plane_bits(str(rng.choice(planes))))
        return exposure

    return change


def _scale(plane: str, *factors: float) -> Change:
    def change(rng: np.random.Generator, exposure: Exposure) -> Exposure:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            getattr(exposure, plane)[...] *= np.float32(rng.choice(factors))
        return exposure

    return change


def _saturate(rng: np.random.Generator, exposure: Exposure) -> Exposure:
    level = np.float32(rng.choice([500.0, 5000.0]))
    hot = exposure.image > level
    exposure.image[hot] = level
    exposure.mask[hot] |= np.int32(plane_bits("SAT"))
    return exposure


def _tilt(rng: np.random.Generator, exposure: Exposure) -> Exposure:
    ny, nx = exposure.shape
    slope = rng.choice([1e2, 1e5, -1e5])
    exposure.image[...] += (slope * np.linspace(0, 1, nx)[None, :] * np.linspace(0.5, 1, ny)[:, None]).astype("f4")
    return exposure


def _stripe(rng: np.random.Generator, exposure: Exposure) -> Exposure:
    exposure.image[:, :: int(rng.integers(2, 20))] += np.float32(rng.choice([10.0, 1e3, 1e6]))
    return exposure


def _strike(rng: np.random.Generator, exposure: Exposure) -> Exposure:
    n = int(rng.choice([1, 30, 3000]))
    rows, columns = rng.integers(0, exposure.shape[0], n), rng.integers(0, exposure.shape[1], n)
    exposure.image[rows, columns] = (rng.choice([-1.0, 1.0], n) * 10.0 ** rng.uniform(2, 20, n)).astype("f4")
    return exposure


def _flatten(rng: np.random.Generator, exposure: Exposure) -> Exposure:
    exposure.image[...] = rng.choice([0.0, 7.0, -1e6])
    return exposure


def _roll(rng: np.random.Generator, exposure: Exposure) -> Exposure:
    exposure.image[...] = np.roll(exposure.image, rng.integers(1, 60, 2), axis=(0, 1))
    return exposure


def _randomize_mask(rng: np.random.Generator, exposure: Exposure) -> Exposure:
    exposure.mask[...] = rng.integers(0, 1 << 17, exposure.shape) * (rng.random(exposure.shape) < rng.choice([0.02, 1]))
    return exposure


def _undefined_bits(rng: np.random.Generator, exposure: Exposure) -> Exposure:
    exposure.mask[_draw_region(rng, exposure.shape)] = np.int32(rng.choice([1 << 30, -1, -(2**31)]))
    return exposure


# -- arrays that are not what a plane should be --


def _retype(function: Callable[[NDArray], NDArray], *planes: str) -> Change:
    def change(rng: np.random.Generator, exposure: Exposure) -> Exposure:
        del rng
        old = exposure.masked_image
        new = {name: function(getattr(old, name)) if name in planes else getattr(old, name) for name in _PLANES}
        return replace(exposure, masked_image=MaskedImage(**new))

    return change


_PLANES = ("image", "mask", "variance")


def _spread(array: NDArray) -> NDArray:
    """Return a view of every second column of a wider array."""
    wide = np.zeros((array.shape[0], 2 * array.shape[1]), array.dtype)
    wide[:, ::2] = array
    return wide[:, ::2]


def _freeze(array: NDArray) -> NDArray:
    frozen = array.copy()
    frozen.setflags(write=False)
    return frozen


def _to_integers(array: NDArray) -> NDArray:
    return np.nan_to_num(np.clip(np.nan_to_num(array), -30000, 30000)).astype(np.int16)


# -- point spread functions --


class ArrayPsf(PointSpreadFunction):
    """Whatever a fit left behind: one array for every place, or for the places where it is meant to be known."""

    def __init__(self, image: NDArray, known: Callable[[float, float], bool] = lambda x, y: True) -> None:  # noqa: ARG005
        self._image, self._known = image, known

    @property
    def size(self) -> int:
        return self._image.shape[0]

    @property
    def average_position(self) -> tuple[float, float]:
        return 20.0, 20.0

    def compute_offset_image(self, *, x: float, y: float, dx: float, dy: float) -> NDArray:
        del dx, dy
        return self._image.copy() if self._known(x, y) else np.full_like(self._image, np.nan)


def _draw_gaussian(size: int, sigma: float, dx: float = 0.0, dy: float = 0.0) -> NDArray:
    v, u = np.mgrid[:size, :size] - size // 2
    image = np.exp(-0.5 * ((u - dx) ** 2 + (v - dy) ** 2) / sigma**2)
    return image / image.sum()


def _is_left(x: float, y: float) -> bool:
    del y
    return x < 100.0


def _make_psf(kind: int) -> PointSpreadFunction | None:
    broad = _draw_gaussian(25, 1.8)
    spoiled = broad.copy()
    spoiled[3, 3] = np.nan
    kinds: list[PointSpreadFunction | None] = [
        None,
        GaussianPsf(fwhm=0.3),
        GaussianPsf(fwhm=25.0),
        GaussianPsf(fwhm=80.0),
        GaussianPsf(fwhm=4.0, ellipticity=0.9),
        MoffatPsf(fwhm=4.0, beta=2.0),
        ArrayPsf(spoiled),
        ArrayPsf(-broad),
        ArrayPsf(broad - broad.mean()),
        ArrayPsf(2.0 * broad),
        ArrayPsf(np.zeros((25, 25))),
        ArrayPsf(np.full((25, 25), 1 / 625)),
        ArrayPsf(_draw_gaussian(25, 1.8, 5.0, -4.0)),
        ArrayPsf(_draw_gaussian(25, 1.8, 11.0, 11.0)),
        ArrayPsf(_draw_gaussian(25, 0.05)),
        ArrayPsf(np.ones((1, 1))),
        ArrayPsf(_draw_gaussian(3, 1.8)),
        ArrayPsf(_draw_gaussian(24, 1.8)),
        ArrayPsf(broad[:, :21]),
        ArrayPsf(broad.astype(np.float32)),
        ArrayPsf(broad * np.random.default_rng(3).uniform(-1, 3, broad.shape)),
        ArrayPsf(broad, _is_left),
    ]
    return kinds[kind % len(kinds)]


def _replace_psf(rng: np.random.Generator, exposure: Exposure) -> Exposure:
    return replace(exposure, psf=_make_psf(int(rng.integers(1000))))


# -- world coordinates, calibration, facts --


def _replace_wcs(rng: np.random.Generator, exposure: Exposure) -> Exposure:
    at = {"ra_deg": 359.999, "dec_deg": -30.0, "x": 112.0, "y": 112.0, "scale_arcsec": 0.3, "rotation_deg": 20.0}
    others = (
        {"rotation_deg": 200.0},
        {"rotation_deg": 20.02},
        {"scale_arcsec": 0.6},
        {"scale_arcsec": 0.003},
        {"scale_arcsec": 300.0},
        {"dec_deg": 89.999},
        {"dec_deg": -90.0},
        {"ra_deg": 180.0, "dec_deg": 30.0},
        {"east_left": False},
        {"x": 112.4},
        {"x": 117.0, "y": 99.0},
        {"x": 300.0},
        {"x": 9e9},
    )
    kind = int(rng.integers(len(others) + 1))
    if kind == len(others):
        return replace(exposure, wcs=None)
    return replace(exposure, wcs=SkyWcs.from_tangent(**{**at, **others[kind]}))


def _cut(rng: np.random.Generator, exposure: Exposure) -> Exposure:
    ny, nx = exposure.shape
    rows, columns = slice(0, max(1, ny - int(rng.integers(1, 120)))), slice(0, max(1, nx - int(rng.integers(0, 120))))
    planes = exposure.masked_image
    cut = MaskedImage(planes.image[rows, columns], planes.mask[rows, columns], planes.variance[rows, columns])
    return replace(exposure, masked_image=cut, wcs=exposure.wcs if rng.random() < 0.8 else None)


def _recalibrate(rng: np.random.Generator, exposure: Exposure) -> Exposure:
    calib = PhotoCalib(float(rng.choice([1e-30, 1e-3, 40.0, 1e30])), is_nominal=bool(rng.random() < 0.5))
    return replace(exposure, photo_calib=calib)


def _forget(rng: np.random.Generator, exposure: Exposure) -> Exposure:
    del rng
    return replace(exposure, info=ExposureInfo())


def _misstate(rng: np.random.Generator, exposure: Exposure) -> Exposure:
    facts = (
        {"band": "g"},
        {"gain": 0.0},
        {"gain": float("nan")},
        {"saturation": -1.0},
        {"exposure_time_s": -3.0},
        {"shutter_open_mjd_tai": float("nan")},
        {"visit": -5, "detector": -1},
        {"visit": 2**62, "detector": 2**31 - 1},
    )
    return replace(exposure, info=replace(exposure.info, **facts[rng.integers(len(facts))]))


DEGRADATIONS: dict[str, Change] = {
    "image not finite": _fill("image", np.nan, np.inf, -np.inf),
    "image huge": _fill("image", 1e30, -1e30, 3e38),
    "image scaled": _scale("image", 1e30, 1e-30, 1e-42, -1.0, 0.0, 1e4),
    "image of one value": _flatten,
    "image elsewhere": _roll,
    "gradient": _tilt,
    "columns": _stripe,
    "hits": _strike,
    "saturated": _saturate,
    "variance unusable": _fill("variance", 0.0, -4.0, np.nan, np.inf),
    "variance mismatched": _scale("variance", 1e-4, 1e4, 1e-30, 1e30, 1e-42),
    "variance of part": _fill("variance", 1e-20, 1e20, 1.0),
    "no data": _mark("NO_DATA"),
    "masked": _mark("BAD", "SAT", "EDGE", "CR", "INTRP", "DETECTED", "DETECTED_NEGATIVE", "HIGH_VARIANCE", "STREAK"),
    "mask at random": _randomize_mask,
    "mask with bits of nobody": _undefined_bits,
    "doubles": _retype(lambda plane: plane.astype(np.float64), "image", "variance"),
    "big-endian": _retype(lambda plane: plane.astype(plane.dtype.newbyteorder(">")), *_PLANES),
    "integers": _retype(_to_integers, "image", "variance"),
    "half precision": _retype(lambda plane: np.clip(plane, -6e4, 6e4).astype(np.float16), "image"),
    "narrow mask": _retype(lambda plane: plane.astype(np.uint8), "mask"),
    "wide mask": _retype(lambda plane: plane.astype(np.int64), "mask"),
    "columns apart in memory": _retype(_spread, *_PLANES),
    "Fortran order": _retype(np.asfortranarray, *_PLANES),
    "read-only": _retype(_freeze, *_PLANES),
    "psf": _replace_psf,
    "psf once more": _replace_psf,
    "wcs": _replace_wcs,
    "cut": _cut,
    "calibration": _recalibrate,
    "facts forgotten": _forget,
    "facts misstated": _misstate,
}
"""What can be wrong with one exposure; each gives a new one, or changes the copy it is given."""


# -- stars that callers give --


def _stars_at(x: NDArray, y: NDArray, flux: NDArray | float = 1e4) -> Catalog:
    return make_source_catalog(x=x, y=y, flux=np.broadcast_to(flux, np.shape(x)))


STARS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Catalog]] = {
    "none": lambda *_: _stars_at(np.zeros(0), np.zeros(0)),
    "nowhere": lambda *_: _stars_at(np.full(30, np.nan), np.full(30, np.inf)),
    "far away": lambda *_: _stars_at(np.full(30, 1e30), np.full(30, -1e30)),
    "in one place": lambda _, shape: _stars_at(np.full(50, shape[1] / 2), np.full(50, shape[0] / 2)),
    "anywhere": lambda rng, shape: _stars_at(
        rng.uniform(-20, shape[1] + 20, 300), rng.uniform(-20, shape[0] + 20, 300)
    ),
    "without flux": lambda rng, shape: _stars_at(
        rng.uniform(0, shape[1], 60), rng.uniform(0, shape[0], 60), rng.choice([np.nan, 0.0, -1e4, np.inf], 60)
    ),
    "thousands": lambda rng, shape: _stars_at(rng.uniform(0, shape[1], 5000), rng.uniform(0, shape[0], 5000)),
}
"""Kinds of tables of stars, none of which are stars of the image."""
