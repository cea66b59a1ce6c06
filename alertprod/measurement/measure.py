"""Measure DiaSources: from footprints on a difference to rows of the catalog."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from alertprod._typing import BoolArray
from alertprod.detection.footprints import FootprintSet
from alertprod.errors import ConfigError
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.measurement._fill import (
    compute_bbox_sizes,
    fill_dipoles,
    fill_exposure_facts,
    fill_fluxes,
    fill_naive_dipoles,
    fill_pixel_flags,
    fill_positions,
    fill_shapes,
    fill_trails,
)
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog
from alertprod.measurement.centroid import CENTROID_FAILURES, Centroids, fit_centroids
from alertprod.measurement.dipole import DipoleConfig, Dipoles, fit_dipoles, measure_naive_dipoles
from alertprod.measurement.flags import FLAG_NAMES, PixelFlags, measure_pixel_flags
from alertprod.measurement.flux import (
    APERTURE_RADIUS,
    measure_aperture_flux,
    measure_peak_likelihood,
    measure_psf_flux,
)
from alertprod.measurement.forced import choose_template_psf, fill_forced_fluxes
from alertprod.measurement.shape import measure_shapes
from alertprod.measurement.stamps import draw_psfs
from alertprod.measurement.trail import TrailConfig, fit_trails
from alertprod.psf.model import PointSpreadFunction


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementConfig:
    """How DiaSources are measured, and which are removed."""

    excluded_planes: tuple[str, ...] = ("NO_DATA", "BAD", "SAT", "CR", "EDGE")
    """Pixels of these planes have no weight in any fit."""

    rejected_peak_planes: tuple[str, ...] = ("NO_DATA", "BAD", "SAT", "EDGE")
    """A source with any peak on such a pixel is dropped before it is measured."""

    bad_flags: tuple[str, ...] = (
        "offimage",
        "interpolatedCenterAll",
        "badCenter",
        "edgeCenter",
        "nodataCenter",
        "saturatedCenter",
        "sat_templateCenter",
        "spikeCenter",
    )
    """A source with any of these pixel flags is dropped after it is measured."""

    fit_dipoles: bool = True
    """Fit footprints with peaks of both signs as dipoles."""

    force: bool = True
    """Measure science and template fluxes at the centroids."""

    dipole: DipoleConfig = field(default_factory=DipoleConfig)
    """The dipole fit."""

    fit_trails: bool = True
    """Fit elongated sources as trails."""

    trail: TrailConfig = field(default_factory=TrailConfig)
    """The trail fit."""

    def __post_init__(self) -> None:
        unknown = set(self.bad_flags) - FLAG_NAMES
        if unknown:
            raise ConfigError(
                "measurement", "bad_flags", f"names flags that do not exist: {', '.join(sorted(unknown))}"
            )
        plane_bits(*self.excluded_planes, *self.rejected_peak_planes)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiaSourceMeasurement:
    """DiaSources that were kept, and what was removed.

    Parameters
    ----------
    catalog
        Rows in the footprints' order, columns `DIA_SOURCE_COLUMNS`.
    footprints
        The footprints of the rows.
    n_rejected_bad_peaks
        Sources dropped before measurement for a peak on a bad pixel.
    n_removed_bad_flags
        Sources dropped after it for a bad pixel flag.
    n_removed_by_flag
        The same by flag; a source with several counts under each.
    """

    catalog: Catalog
    footprints: FootprintSet
    n_rejected_bad_peaks: int
    n_removed_bad_flags: int
    n_removed_by_flag: dict[str, int]


def measure_dia_sources(
    footprints: FootprintSet,
    difference: Exposure,
    science: Exposure | None = None,
    matched_template: Exposure | None = None,
    *,
    template_psf: PointSpreadFunction | None = None,
    id_factory: Callable[[], int],
    config: MeasurementConfig | None = None,
) -> DiaSourceMeasurement:
    """Measure the sources detected on a difference.

    Parameters
    ----------
    footprints
        From `alertprod.detection.detect`, on the same pixels.
    difference
        Background-free, decorrelated, with its PSF. Its `photo_calib` takes fluxes to nJy, its `wcs` positions
        to the sky (without one, sky columns are NaN), its `info` fills visit, detector, band and times.
    science, matched_template
        The images it is the difference of, for forced fluxes and dipoles; without them those columns stay blank.
    template_psf
        PSF of `matched_template` where that has none of its own; the science PSF failing both.
    id_factory
        Called once per footprint, in order, before anything is removed: ids do not depend on `bad_flags`.
    config
        `MeasurementConfig`.

    Returns
    -------
    DiaSourceMeasurement

    Raises
    ------
    ValueError
        Raised if the difference has no PSF.

    Notes
    -----
    ``time_processed_mjd_tai``, associations, matches, reliability, aperture corrections and ``glint_trail`` are left
    blank: they are for others to fill. Dipoles have the middle of their lobes as centroid, sky sources their place
    (a fit would walk to the next bump of noise), all else the point-source fit's.
    """
    config = config or MeasurementConfig()
    if difference.psf is None:
        msg = "the difference has no PSF to measure with"
        raise ValueError(msg)
    ids = np.array([id_factory() for _ in range(len(footprints))], dtype=np.int64)
    rejected = footprints.any_peak_on(difference.mask, plane_bits(*config.rejected_peak_planes))
    footprints, ids = footprints.select(~rejected), ids[~rejected]

    bad_planes = plane_bits(*config.excluded_planes)
    psf_of_template = choose_template_psf(science, matched_template, template_psf)
    is_negative = footprints.is_negative & ~footprints.is_sky
    centroids, dipoles = _find_positions(
        footprints, difference, difference.psf, science, matched_template, psf_of_template, bad_planes, config
    )
    catalog = Catalog(DIA_SOURCE_COLUMNS, len(footprints))
    catalog["dia_source_id"] = ids
    catalog["is_negative"] = is_negative
    catalog["sky_source"] = footprints.is_sky
    catalog["snr"] = footprints.significance
    fill_exposure_facts(catalog, difference)
    fill_positions(catalog, centroids, difference)
    x, y = centroids.x, centroids.y

    images = difference.masked_image
    psf_images = draw_psfs(difference.psf, x=x, y=y)
    fluxes = measure_psf_flux(
        images,
        difference.psf,
        x=x,
        y=y,
        bad_planes=bad_planes,
        psf_images=psf_images,
        noise=difference.correlated_noise,
    )
    aperture = measure_aperture_flux(
        images, difference.psf, x=x, y=y, psf_flux=fluxes.flux, radius=APERTURE_RADIUS, bad_planes=bad_planes,
        psf_images=psf_images,
    )  # fmt: skip
    peaks = measure_peak_likelihood(images, difference.psf, x=x, y=y, bad_planes=bad_planes)
    shapes = measure_shapes(
        images, difference.psf, x=x, y=y, is_negative=fluxes.flux < 0, bad_planes=bad_planes, psf_images=psf_images
    )
    fill_fluxes(catalog, fluxes, aperture, peaks, difference)
    fill_shapes(catalog, shapes, footprints, difference)
    if config.force:
        fill_forced_fluxes(catalog, science, matched_template, psf_of_template, x=x, y=y, bad_planes=bad_planes)
    if dipoles is not None:
        fill_dipoles(catalog, dipoles, difference)
        fill_naive_dipoles(catalog, measure_naive_dipoles(footprints, images, bad_planes=bad_planes), difference)
    if config.fit_trails:
        skipped = dipoles.is_dipole if dipoles is not None else None
        trails = fit_trails(
            footprints, images, difference.psf, shapes, is_negative=fluxes.flux < 0, skipped=skipped,
            config=config.trail, bad_planes=bad_planes,
        )  # fmt: skip
        fill_trails(catalog, trails, difference)
    flags = measure_pixel_flags(footprints, difference.mask, x=x, y=y)
    fill_pixel_flags(catalog, flags)
    catalog["bbox_size"] = compute_bbox_sizes(footprints, x=x, y=y)
    return _remove_flagged(catalog, footprints, flags, int(rejected.sum()), config)


def _find_positions(
    footprints: FootprintSet,
    difference: Exposure,
    psf: PointSpreadFunction,
    science: Exposure | None,
    matched_template: Exposure | None,
    template_psf: PointSpreadFunction | None,
    bad_planes: int,
    config: MeasurementConfig,
) -> tuple[Centroids, Dipoles | None]:
    """Return centroids, those of dipoles replaced by the middle of their lobes, those of sky sources by their place."""
    centroids = fit_centroids(
        difference.masked_image,
        psf,
        x=footprints.x.astype(float),
        y=footprints.y.astype(float),
        # The sign of the strongest peak, which is where the fit starts.
        is_negative=footprints.peak_significance[footprints.peak_offsets[:-1]] < 0,
        sigma=footprints.sigma,
        bad_planes=bad_planes,
    )
    if footprints.is_sky.any():
        centroids = _put_back(centroids, footprints)
    if not config.fit_dipoles:
        return centroids, None
    dipoles = fit_dipoles(
        footprints,
        difference.masked_image,
        psf,
        science=science.masked_image if science is not None else None,
        science_psf=science.psf if science is not None else None,
        template=matched_template.masked_image if matched_template is not None else None,
        template_psf=template_psf,
        config=config.dipole,
        bad_planes=bad_planes,
    )
    chosen = dipoles.is_dipole
    merged = replace(
        centroids,
        x=np.where(chosen, dipoles.x, centroids.x),
        y=np.where(chosen, dipoles.y, centroids.y),
        x_err=np.where(chosen, dipoles.x_err, centroids.x_err),
        y_err=np.where(chosen, dipoles.y_err, centroids.y_err),
        x_y_cov=np.where(chosen, dipoles.x_y_cov, centroids.x_y_cov),
        **{name: getattr(centroids, name) & ~chosen for name in CENTROID_FAILURES},
    )
    return merged, dipoles


def _put_back(centroids: Centroids, footprints: FootprintSet) -> Centroids:
    """Return centroids with sky sources at the pixel they were placed on: no fit, no error, no failure."""
    is_sky = footprints.is_sky
    return replace(
        centroids,
        x=np.where(is_sky, footprints.x, centroids.x),
        y=np.where(is_sky, footprints.y, centroids.y),
        **{name: np.where(is_sky, np.nan, getattr(centroids, name)) for name in ("x_err", "y_err", "x_y_cov")},
        **{name: getattr(centroids, name) & ~is_sky for name in CENTROID_FAILURES},
    )


def _remove_flagged(
    catalog: Catalog, footprints: FootprintSet, flags: PixelFlags, n_rejected: int, config: MeasurementConfig
) -> DiaSourceMeasurement:
    removed: BoolArray = np.zeros(catalog.n_rows, dtype=np.bool_)
    by_flag = {}
    for name in config.bad_flags:
        is_set = flags.get(name)
        by_flag[name] = int(is_set.sum())
        removed |= is_set
    return DiaSourceMeasurement(
        catalog=catalog.select(~removed),
        footprints=footprints.select(~removed),
        n_rejected_bad_peaks=n_rejected,
        n_removed_bad_flags=int(removed.sum()),
        n_removed_by_flag=by_flag,
    )
