"""Measure DiaSources: from footprints on a difference to rows of the catalog."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from alertprod._typing import BoolArray, FloatArray
from alertprod.detection.footprints import FootprintSet
from alertprod.geometry.sphere import ARCSEC_PER_DEG
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog
from alertprod.measurement.centroid import Centroids, fit_centroids
from alertprod.measurement.dipole import DipoleConfig, Dipoles, fit_dipoles
from alertprod.measurement.flags import FLAG_NAMES, PixelFlags, measure_pixel_flags
from alertprod.measurement.flux import APERTURE_RADIUS, PsfFluxes, measure_aperture_flux, measure_psf_flux
from alertprod.measurement.shape import Shapes, measure_shapes
from alertprod.measurement.stamps import draw_psfs
from alertprod.psf.model import PointSpreadFunction

_CATALOG_FLAGS = {
    "bad": "bad",
    "cr": "cr",
    "crCenter": "cr_center",
    "edge": "edge",
    "nodata": "nodata",
    "nodataCenter": "nodata_center",
    "interpolated": "interpolated",
    "interpolatedCenter": "interpolated_center",
    "offimage": "offimage",
    "saturated": "saturated",
    "saturatedCenter": "saturated_center",
    "suspect": "suspect",
    "suspectCenter": "suspect_center",
    "streak": "streak",
    "streakCenter": "streak_center",
    "injected": "injected",
    "injectedCenter": "injected_center",
    "injected_template": "injected_template",
    "injected_templateCenter": "injected_template_center",
}
"""Pixel flags that are columns, and the end of the column's name after ``pixel_flags_``."""


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

    def __post_init__(self) -> None:
        unknown = set(self.bad_flags) - FLAG_NAMES
        if unknown:
            msg = f"bad_flags names flags that do not exist: {', '.join(sorted(unknown))}"
            raise ValueError(msg)
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
    ``time_processed_mjd_tai``, associations, reliability and the trail columns are left blank: they are for others
    to fill. Dipoles have the middle of their lobes as centroid, all else the point-source fit's.
    """
    config = config or MeasurementConfig()
    if difference.psf is None:
        msg = "the difference has no PSF to measure with"
        raise ValueError(msg)
    ids = np.array([id_factory() for _ in range(len(footprints))], dtype=np.int64)
    rejected = footprints.any_peak_on((difference.mask & plane_bits(*config.rejected_peak_planes)) != 0)
    footprints, ids = footprints.select(~rejected), ids[~rejected]

    bad_planes = plane_bits(*config.excluded_planes)
    psf_of_template = _template_psf(science, matched_template, template_psf)
    is_negative = footprints.is_negative
    centroids, dipoles = _find_positions(
        footprints, difference, difference.psf, science, matched_template, psf_of_template, bad_planes, config
    )
    catalog = Catalog(DIA_SOURCE_COLUMNS, len(footprints))
    catalog["dia_source_id"] = ids
    catalog["is_negative"] = is_negative
    catalog["snr"] = footprints.significance
    _fill_exposure_facts(catalog, difference)
    _fill_positions(catalog, centroids, difference)
    x, y = centroids.x, centroids.y

    njy = difference.photo_calib.njy_per_count
    psf_images = draw_psfs(difference.psf, x=x, y=y)
    fluxes = measure_psf_flux(
        difference.masked_image, difference.psf, x=x, y=y, bad_planes=bad_planes, psf_images=psf_images
    )
    _fill_psf_flux(catalog, fluxes, njy)
    aperture = measure_aperture_flux(
        difference.masked_image, difference.psf, x=x, y=y, psf_flux=fluxes.flux, radius=APERTURE_RADIUS,
        bad_planes=bad_planes, psf_images=psf_images,
    )  # fmt: skip
    catalog["ap_flux"], catalog["ap_flux_err"] = aperture.flux * njy, aperture.flux_err * njy
    catalog["ap_flux_flag"], catalog["ap_flux_flag_aperture_truncated"] = aperture.flag, aperture.flag_truncated
    if config.force:
        _fill_forced_fluxes(catalog, science, matched_template, psf_of_template, x, y, bad_planes)
    shapes = measure_shapes(
        difference.masked_image, difference.psf, x=x, y=y, is_negative=fluxes.flux < 0, bad_planes=bad_planes,
        psf_images=psf_images,
    )  # fmt: skip
    _fill_shapes(catalog, shapes, footprints, difference)
    if dipoles is not None:
        _fill_dipoles(catalog, dipoles, difference)
    flags = measure_pixel_flags(footprints, difference.mask, x=x, y=y)
    for name, column in _CATALOG_FLAGS.items():
        catalog[f"pixel_flags_{column}"] = flags.get(name)
    catalog["bbox_size"] = _bbox_sizes(footprints, x, y)
    return _remove_flagged(catalog, footprints, flags, int(rejected.sum()), config)


def _template_psf(
    science: Exposure | None, matched_template: Exposure | None, template_psf: PointSpreadFunction | None
) -> PointSpreadFunction | None:
    if matched_template is not None and matched_template.psf is not None:
        return matched_template.psf
    if template_psf is not None:
        return template_psf
    return science.psf if science is not None else None


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
    """Return centroids, those of dipoles replaced by the middle of their lobes."""
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
    merged = Centroids(
        x=np.where(chosen, dipoles.x, centroids.x),
        y=np.where(chosen, dipoles.y, centroids.y),
        x_err=np.where(chosen, dipoles.x_err, centroids.x_err),
        y_err=np.where(chosen, dipoles.y_err, centroids.y_err),
        x_y_cov=np.where(chosen, dipoles.x_y_cov, centroids.x_y_cov),
        flag=centroids.flag & ~chosen,
    )
    return merged, dipoles


def _fill_exposure_facts(catalog: Catalog, difference: Exposure) -> None:
    info = difference.info
    catalog["visit"] = 0 if info.visit is None else info.visit
    catalog["detector"] = 0 if info.detector is None else info.detector
    catalog["band"] = info.band
    if info.midpoint_mjd_tai is not None:
        catalog["midpoint_mjd_tai"] = info.midpoint_mjd_tai
    if info.exposure_time_s is not None:
        catalog["exposure_time_s"] = info.exposure_time_s


def _fill_positions(catalog: Catalog, centroids: Centroids, difference: Exposure) -> None:
    catalog["x"], catalog["y"] = centroids.x, centroids.y
    catalog["x_err"], catalog["y_err"], catalog["x_y_cov"] = centroids.x_err, centroids.y_err, centroids.x_y_cov
    catalog["centroid_flag"] = centroids.flag
    if difference.wcs is None or catalog.n_rows == 0:
        return
    catalog["ra_deg"], catalog["dec_deg"] = difference.wcs.pixel_to_sky(x=centroids.x, y=centroids.y)
    jacobian = difference.wcs.compute_jacobian(x=centroids.x, y=centroids.y)
    pixel = np.empty((catalog.n_rows, 2, 2))
    pixel[:, 0, 0], pixel[:, 1, 1] = centroids.x_err**2, centroids.y_err**2
    pixel[:, 0, 1] = pixel[:, 1, 0] = centroids.x_y_cov
    sky = jacobian @ pixel @ np.swapaxes(jacobian, 1, 2)
    catalog["ra_err_deg"], catalog["dec_err_deg"] = np.sqrt(sky[:, 0, 0]), np.sqrt(sky[:, 1, 1])
    catalog["ra_dec_cov_deg2"] = sky[:, 0, 1]


def _fill_psf_flux(catalog: Catalog, fluxes: PsfFluxes, njy: float) -> None:
    catalog["psf_flux"], catalog["psf_flux_err"] = fluxes.flux * njy, fluxes.flux_err * njy
    catalog["psf_chi2"] = fluxes.chi2
    # Up to the constant of the noise, which does not depend on the model.
    catalog["psf_ln_l"] = -0.5 * fluxes.chi2
    catalog["psf_ndata"] = fluxes.n_data
    catalog["psf_flux_flag"], catalog["psf_flux_flag_edge"] = fluxes.flag, fluxes.flag_edge
    catalog["psf_flux_flag_no_good_pixels"] = fluxes.flag_no_good_pixels


def _fill_forced_fluxes(
    catalog: Catalog,
    science: Exposure | None,
    matched_template: Exposure | None,
    template_psf: PointSpreadFunction | None,
    x: FloatArray,
    y: FloatArray,
    bad_planes: int,
) -> None:
    if science is not None and science.psf is not None:
        njy = science.photo_calib.njy_per_count
        forced = measure_psf_flux(science.masked_image, science.psf, x=x, y=y, bad_planes=bad_planes)
        catalog["science_flux"], catalog["science_flux_err"] = forced.flux * njy, forced.flux_err * njy
        catalog["forced_psf_flux_flag"], catalog["forced_psf_flux_flag_edge"] = forced.flag, forced.flag_edge
        catalog["forced_psf_flux_flag_no_good_pixels"] = forced.flag_no_good_pixels
    else:
        catalog["forced_psf_flux_flag"] = True
    if matched_template is not None and template_psf is not None:
        njy = matched_template.photo_calib.njy_per_count
        forced = measure_psf_flux(matched_template.masked_image, template_psf, x=x, y=y, bad_planes=bad_planes)
        catalog["template_flux"], catalog["template_flux_err"] = forced.flux * njy, forced.flux_err * njy


def _fill_shapes(catalog: Catalog, shapes: Shapes, footprints: FootprintSet, difference: Exposure) -> None:
    scale2 = np.full(catalog.n_rows, np.nan)
    if difference.wcs is not None and catalog.n_rows:
        scale2 = difference.wcs.compute_pixel_area_arcsec2(x=shapes.x, y=shapes.y)
    catalog["ixx"], catalog["iyy"], catalog["ixy"] = shapes.ixx * scale2, shapes.iyy * scale2, shapes.ixy * scale2
    catalog["ixx_psf"], catalog["iyy_psf"] = shapes.psf_ixx * scale2, shapes.psf_iyy * scale2
    catalog["ixy_psf"] = shapes.psf_ixy * scale2
    catalog["extendedness"] = shapes.compute_extendedness()
    outside = (shapes.x < footprints.x_min - 0.5) | (shapes.x >= footprints.x_max - 0.5)
    outside |= (shapes.y < footprints.y_min - 0.5) | (shapes.y >= footprints.y_max - 0.5)
    catalog["shape_flag"] = shapes.flag | outside
    catalog["shape_flag_no_pixels"] = shapes.flag_no_pixels
    catalog["shape_flag_not_contained"] = outside


def _fill_dipoles(catalog: Catalog, dipoles: Dipoles, difference: Exposure) -> None:
    njy = difference.photo_calib.njy_per_count
    catalog["dipole_fit_attempted"], catalog["is_dipole"] = dipoles.attempted, dipoles.is_dipole
    catalog["dipole_mean_flux"], catalog["dipole_mean_flux_err"] = dipoles.flux * njy, dipoles.flux_err * njy
    catalog["dipole_flux_diff"] = dipoles.flux_difference * njy
    catalog["dipole_flux_diff_err"] = dipoles.flux_difference_err * njy
    catalog["dipole_chi2"], catalog["dipole_ndata"] = dipoles.chi2_per_dof, dipoles.n_data
    fitted = np.flatnonzero(np.isfinite(dipoles.x))
    if difference.wcs is None or len(fitted) == 0:
        return
    jacobian = difference.wcs.compute_jacobian(x=dipoles.x[fitted], y=dipoles.y[fitted])
    vector = np.stack([dipoles.x_positive - dipoles.x_negative, dipoles.y_positive - dipoles.y_negative], axis=-1)
    east, north = (jacobian @ vector[fitted, :, None])[:, :, 0].T
    catalog["dipole_length_arcsec"][fitted] = np.hypot(east, north) * ARCSEC_PER_DEG
    catalog["dipole_angle_deg"][fitted] = np.degrees(np.arctan2(east, north)) % 360.0


def _bbox_sizes(footprints: FootprintSet, x: FloatArray, y: FloatArray) -> FloatArray:
    """Return the side of the square about each centroid that holds the footprint, at most twice its longer side."""
    reach = np.max(
        [
            x - (footprints.x_min - 0.5),
            footprints.x_max - 0.5 - x,
            y - (footprints.y_min - 0.5),
            footprints.y_max - 0.5 - y,
        ],
        axis=0,
    )
    longest = np.maximum(footprints.x_max - footprints.x_min, footprints.y_max - footprints.y_min)
    return np.minimum(np.ceil(2.0 * reach), 2 * longest).astype(np.int64)


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
