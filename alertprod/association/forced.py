"""Forced photometry of known DiaObjects on one exposure: fluxes where nothing need have been detected."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from alertprod._typing import BoolArray, FloatArray
from alertprod.association.columns import DIA_FORCED_SOURCE_COLUMNS
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure
from alertprod.measurement.catalog import Catalog
from alertprod.measurement.flux import measure_psf_flux


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposureFacts:
    """What association must know of the exposure; times are MJD in TAI."""

    visit: int
    detector: int
    band: str
    midpoint_mjd_tai: float
    time_processed_mjd_tai: float
    """When the rows are made; also the start of validity of the objects' new versions."""
    wcs: SkyWcs
    shape: tuple[int, int]
    """Rows and columns of the difference."""


@dataclass(frozen=True, slots=True)
class ForcedFluxes:
    """Point-source fluxes at given positions, nJy, shape ``(n,)`` each; NaN where there is no usable pixel."""

    psf_flux: FloatArray
    psf_flux_err: FloatArray
    science_flux: FloatArray
    science_flux_err: FloatArray


class MeasureForced(Protocol):
    """Measures at pixel positions, shape ``(n,)``, on the difference and on the science image."""

    def __call__(self, *, x: FloatArray, y: FloatArray) -> ForcedFluxes:
        """Return the fluxes in the order of the positions."""
        ...


@dataclass(frozen=True, slots=True)
class PsfPhotometer:
    """The usual `MeasureForced`: point-source fluxes on a decorrelated difference and on the science image.

    Parameters
    ----------
    difference, science
        Background-free, on one pixel grid, both with a PSF.
    """

    difference: Exposure
    science: Exposure

    def __call__(self, *, x: FloatArray, y: FloatArray) -> ForcedFluxes:
        """Measure; see `MeasureForced`."""
        return ForcedFluxes(*_measure_njy(self.difference, x, y), *_measure_njy(self.science, x, y))


def _measure_njy(exposure: Exposure, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    if exposure.psf is None:
        msg = "forced photometry needs a PSF on both images"
        raise ValueError(msg)
    fluxes = measure_psf_flux(exposure.masked_image, exposure.psf, x=x, y=y, noise=exposure.correlated_noise)
    scale = exposure.photo_calib.njy_per_count
    return fluxes.flux * scale, fluxes.flux_err * scale


@dataclass(frozen=True, slots=True, kw_only=True)
class ForcedConfig:
    """Which sources are good ones: an object with two of them within the history is followed, one may be an artefact."""

    min_reliability: float = 0.5
    """A source counts as good from here; sources nobody scored count as good."""

    max_trail_length_arcsec: float = 1.4
    """A longer trail moves on: its place will be empty next time."""


def is_good(sources: Catalog, config: ForcedConfig) -> BoolArray:
    """Say which sources, `STORED_DIA_SOURCE_COLUMNS`, speak for an object that stays where it is, shape ``(n,)``."""
    good = ~(sources["glint_trail"] | sources["is_dipole"])
    good &= ~(sources["reliability"] < config.min_reliability)
    good &= ~(sources["trail_length_arcsec"] > config.max_trail_length_arcsec)
    return np.asarray(good)


def is_followed(objects: Catalog, *, since_mjd_tai: float) -> BoolArray:
    """Say which objects, `KNOWN_OBJECT_COLUMNS`, have two good sources since an epoch, shape ``(n,)``."""
    return np.asarray(objects["repeated_mjd_tai"] >= since_mjd_tai)


def measure_forced_sources(
    objects: Catalog, facts: ExposureFacts, measure: MeasureForced, id_factory: Callable[[], int]
) -> Catalog:
    """Measure the flux at the place of each object that lies on the exposure.

    Parameters
    ----------
    objects
        `DIA_OBJECT_COLUMNS`: those to measure.
    id_factory
        Gives the ids, in the order of the objects' ids.

    Returns
    -------
    Catalog
        `DIA_FORCED_SOURCE_COLUMNS`, by increasing object id. An object off the image has no row, nor has one where
        neither image has a usable pixel: there is nothing to tell.
    """
    objects = objects.select(np.argsort(objects["dia_object_id"], kind="stable"))
    x, y = facts.wcs.sky_to_pixel(ra_deg=objects["ra_deg"], dec_deg=objects["dec_deg"])
    ny, nx = facts.shape
    inside = (x >= -0.5) & (x < nx - 0.5) & (y >= -0.5) & (y < ny - 0.5)
    objects, x, y = objects.select(inside), x[inside], y[inside]
    fluxes = measure(x=x, y=y)
    known = np.isfinite(fluxes.psf_flux) | np.isfinite(fluxes.science_flux)
    forced = Catalog(DIA_FORCED_SOURCE_COLUMNS, int(known.sum()))
    for name in ("dia_object_id", "ra_deg", "dec_deg"):
        forced[name] = objects[name][known]
    for name in ("psf_flux", "psf_flux_err", "science_flux", "science_flux_err"):
        forced[name] = getattr(fluxes, name)[known]
    for name in ("visit", "detector", "band", "midpoint_mjd_tai", "time_processed_mjd_tai"):
        forced[name] = getattr(facts, name)
    forced["dia_forced_source_id"] = [id_factory() for _ in range(forced.n_rows)]
    return forced
