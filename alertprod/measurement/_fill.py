"""From what was measured to columns of the catalog: units, the sky, names."""

import itertools

import numpy as np

from alertprod._typing import FloatArray, IntArray
from alertprod.detection.footprints import FootprintSet
from alertprod.geometry.sphere import ARCSEC_PER_DEG
from alertprod.images.exposure import Exposure
from alertprod.measurement.catalog import Catalog
from alertprod.measurement.centroid import Centroids
from alertprod.measurement.dipole import Dipoles, NaiveDipoles
from alertprod.measurement.flags import PixelFlags
from alertprod.measurement.flux import ApertureFluxes, PeakLikelihoodFluxes, PsfFluxes
from alertprod.measurement.shape import Shapes
from alertprod.measurement.trail import Trails

_PIXEL_FLAGS = {
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
    "badCenter": "bad_center",
    "edgeCenter": "edge_center",
    "interpolatedCenterAll": "interpolated_center_all",
    "high_variance": "high_variance",
    "high_varianceCenter": "high_variance_center",
    "high_varianceCenterAll": "high_variance_center_all",
    "sat_template": "sat_template",
    "sat_templateCenter": "sat_template_center",
    "spike": "spike",
    "spikeCenter": "spike_center",
}
"""Pixel flags that are columns, and the end of the column's name after ``pixel_flags_``."""

_CENTROID_FLAGS = (
    "flag_edge",
    "flag_near_edge",
    "flag_no_second_derivative",
    "flag_almost_no_second_derivative",
    "flag_not_at_maximum",
    "flag_not_converged",
    "flag_reset_to_peak",
)

_TRAIL_FLAGS = (
    "flag_shape",
    "flag_no_converge",
    "flag_no_flux",
    "flag_no_sigma",
    "flag_nan",
    "flag_point_like",
    "flag_edge",
    "flag_off_image",
    "flag_suspect_long_trail",
)


def fill_exposure_facts(catalog: Catalog, difference: Exposure) -> None:
    """Fill what is the same in every row: visit, times, calibration."""
    info, calib = difference.info, difference.photo_calib
    catalog["visit"] = 0 if info.visit is None else info.visit
    catalog["detector"] = 0 if info.detector is None else info.detector
    catalog["band"] = info.band
    if info.midpoint_mjd_tai is not None:
        catalog["midpoint_mjd_tai"] = info.midpoint_mjd_tai
    if info.exposure_time_s is not None:
        catalog["exposure_time_s"] = info.exposure_time_s
    catalog["local_photo_calib"] = calib.njy_per_count
    if calib.njy_per_count_err is not None:
        catalog["local_photo_calib_err"] = calib.njy_per_count_err


def fill_positions(catalog: Catalog, centroids: Centroids, difference: Exposure) -> None:
    """Fill the centroids in pixels and, with world coordinates, on the sky."""
    catalog["x"], catalog["y"] = centroids.x, centroids.y
    catalog["x_err"], catalog["y_err"], catalog["x_y_cov"] = centroids.x_err, centroids.y_err, centroids.x_y_cov
    for name in ("flag", *_CENTROID_FLAGS):
        catalog[f"centroid_{name}"] = getattr(centroids, name)
    if difference.wcs is None or catalog.n_rows == 0:
        return
    catalog["ra_deg"], catalog["dec_deg"] = difference.wcs.pixel_to_sky(x=centroids.x, y=centroids.y)
    jacobian = difference.wcs.compute_jacobian(x=centroids.x, y=centroids.y)
    for i, j in itertools.product(range(2), range(2)):
        catalog[f"local_wcs_cd_{i + 1}_{j + 1}"] = jacobian[:, i, j]
    sky = _rotate(jacobian, np.stack([centroids.x_err**2, centroids.y_err**2, centroids.x_y_cov], axis=-1))
    catalog["ra_err_deg"], catalog["dec_err_deg"] = np.sqrt(sky[:, 0]), np.sqrt(sky[:, 1])
    catalog["ra_dec_cov_deg2"] = sky[:, 2]


def fill_fluxes(
    catalog: Catalog, psf: PsfFluxes, aperture: ApertureFluxes, peaks: PeakLikelihoodFluxes, difference: Exposure
) -> None:
    """Fill what was measured with the PSF and with an aperture on the difference."""
    njy = difference.photo_calib.njy_per_count
    catalog["psf_flux"], catalog["psf_flux_err"] = psf.flux * njy, psf.flux_err * njy
    catalog["psf_chi2"] = psf.chi2
    # Up to the constant of the noise, which does not depend on the model.
    catalog["psf_ln_l"] = -0.5 * psf.chi2
    catalog["psf_ndata"] = psf.n_data
    catalog["psf_flux_area"] = psf.area
    catalog["psf_flux_flag"], catalog["psf_flux_flag_edge"] = psf.flag, psf.flag_edge
    catalog["psf_flux_flag_no_good_pixels"] = psf.flag_no_good_pixels
    catalog["ap_flux"], catalog["ap_flux_err"] = aperture.flux * njy, aperture.flux_err * njy
    catalog["ap_flux_flag"], catalog["ap_flux_flag_aperture_truncated"] = aperture.flag, aperture.flag_truncated
    catalog["peak_likelihood_flux"], catalog["peak_likelihood_flux_err"] = peaks.flux * njy, peaks.flux_err * njy
    catalog["peak_likelihood_flux_flag"] = peaks.flag


def fill_shapes(catalog: Catalog, shapes: Shapes, footprints: FootprintSet, difference: Exposure) -> None:
    """Fill moments, extendedness, and the flux of the Gaussian of these moments."""
    scale2 = np.full(catalog.n_rows, np.nan)
    if difference.wcs is not None and catalog.n_rows:
        scale2 = difference.wcs.compute_pixel_area_arcsec2(x=shapes.x, y=shapes.y)
    catalog["ixx"], catalog["iyy"], catalog["ixy"] = shapes.ixx * scale2, shapes.iyy * scale2, shapes.ixy * scale2
    catalog["ixx_psf"], catalog["iyy_psf"] = shapes.psf_ixx * scale2, shapes.psf_iyy * scale2
    catalog["ixy_psf"] = shapes.psf_ixy * scale2
    for name, error in zip(("ixx", "iyy", "ixy"), shapes.compute_errors(), strict=True):
        catalog[f"{name}_err"] = error * scale2
    njy = difference.photo_calib.njy_per_count
    catalog["gaussian_flux"], catalog["gaussian_flux_err"] = shapes.flux * njy, shapes.flux_err * njy
    catalog["gaussian_flux_flag"] = ~np.isfinite(shapes.flux)
    catalog["extendedness"] = shapes.compute_extendedness()
    outside = (shapes.x < footprints.x_min - 0.5) | (shapes.x >= footprints.x_max - 0.5)
    outside |= (shapes.y < footprints.y_min - 0.5) | (shapes.y >= footprints.y_max - 0.5)
    catalog["shape_flag"] = shapes.flag | outside
    catalog["shape_flag_no_pixels"] = shapes.flag_no_pixels
    catalog["shape_flag_not_contained"] = outside


def fill_dipoles(catalog: Catalog, dipoles: Dipoles, difference: Exposure) -> None:
    """Fill the dipole fits, lobes in pixels and the vector between them on the sky."""
    njy = difference.photo_calib.njy_per_count
    catalog["dipole_fit_attempted"], catalog["is_dipole"] = dipoles.attempted, dipoles.is_dipole
    catalog["dipole_mean_flux"], catalog["dipole_mean_flux_err"] = dipoles.flux * njy, dipoles.flux_err * njy
    catalog["dipole_flux_diff"] = dipoles.flux_difference * njy
    catalog["dipole_flux_diff_err"] = dipoles.flux_difference_err * njy
    catalog["dipole_chi2"], catalog["dipole_ndata"] = dipoles.chi2_per_dof, dipoles.n_data
    catalog["dipole_fit_flag"], catalog["dipole_fit_flag_edge"] = dipoles.flag, dipoles.flag_edge
    for lobe, end in itertools.product(("positive", "negative"), ("", "_err")):
        catalog[f"dipole_{lobe}_flux{end}"] = getattr(dipoles, f"flux_{lobe}{end}") * njy
        for axis in ("x", "y"):
            catalog[f"dipole_{lobe}_{axis}{end}"] = getattr(dipoles, f"{axis}_{lobe}{end}")
    catalog["dipole_separation"], catalog["dipole_orientation_deg"] = dipoles.separation, dipoles.orientation_deg
    catalog["dipole_snr"] = dipoles.signal_to_noise
    fitted = np.flatnonzero(np.isfinite(dipoles.x))
    if difference.wcs is None or len(fitted) == 0:
        return
    jacobian = difference.wcs.compute_jacobian(x=dipoles.x[fitted], y=dipoles.y[fitted])
    vector = np.stack([dipoles.x_positive - dipoles.x_negative, dipoles.y_positive - dipoles.y_negative], axis=-1)
    east, north = (jacobian @ vector[fitted, :, None])[:, :, 0].T
    catalog["dipole_length_arcsec"][fitted] = np.hypot(east, north) * ARCSEC_PER_DEG
    catalog["dipole_angle_deg"][fitted] = np.degrees(np.arctan2(east, north)) % 360.0


def fill_naive_dipoles(catalog: Catalog, lobes: NaiveDipoles, difference: Exposure) -> None:
    """Fill the sums over each footprint's pixels of either sign."""
    njy = difference.photo_calib.njy_per_count
    for k, lobe in enumerate(("positive", "negative")):
        catalog[f"naive_dipole_{lobe}_flux"] = lobes.flux[:, k] * njy
        catalog[f"naive_dipole_{lobe}_flux_err"] = lobes.flux_err[:, k] * njy
        catalog[f"naive_dipole_{lobe}_npix"] = lobes.n_pixels[:, k]


def fill_trails(catalog: Catalog, trails: Trails, difference: Exposure) -> None:
    """Fill the trail fits: ends in pixels; middle, length and position angle (0 to 180 degrees) on the sky."""
    njy = difference.photo_calib.njy_per_count
    catalog["trail_flux"], catalog["trail_flux_err"] = trails.flux * njy, trails.flux_err * njy
    catalog["trail_chi2"], catalog["trail_ndata"] = trails.chi2, trails.n_data
    for name in ("flag", *_TRAIL_FLAGS):
        catalog[f"trail_{name}"] = getattr(trails, name)
    for end, sign in ((0, -1.0), (1, 1.0)):
        catalog[f"trail_x{end}"] = trails.x + sign * trails.vector_x
        catalog[f"trail_y{end}"] = trails.y + sign * trails.vector_y
    fitted = np.flatnonzero(np.isfinite(trails.x))
    if difference.wcs is None or len(fitted) == 0:
        return
    x, y = trails.x[fitted], trails.y[fitted]
    catalog["trail_ra_deg"][fitted], catalog["trail_dec_deg"][fitted] = difference.wcs.pixel_to_sky(x=x, y=y)
    jacobian = difference.wcs.compute_jacobian(x=x, y=y)
    middle = _rotate(jacobian, trails.position_covariance[fitted])
    catalog["trail_ra_err_deg"][fitted], catalog["trail_dec_err_deg"][fitted] = (
        np.sqrt(middle[:, 0]),
        np.sqrt(middle[:, 1]),
    )
    vector = np.stack([trails.vector_x, trails.vector_y], axis=-1)[fitted]
    east, north = (jacobian @ vector[:, :, None])[:, :, 0].T
    ee, nn, en = _rotate(jacobian, trails.vector_covariance[fitted]).T
    half2 = east**2 + north**2
    # The vector leads to one end only: the length is twice its own, the angle the same.
    catalog["trail_length_arcsec"][fitted] = 2.0 * np.sqrt(half2) * ARCSEC_PER_DEG
    along = (east**2 * ee + north**2 * nn + 2.0 * east * north * en) / half2
    catalog["trail_length_err_arcsec"][fitted] = 2.0 * np.sqrt(along) * ARCSEC_PER_DEG
    catalog["trail_angle_deg"][fitted] = np.degrees(np.arctan2(east, north)) % 180.0
    across = (north**2 * ee + east**2 * nn - 2.0 * east * north * en) / half2**2
    catalog["trail_angle_err_deg"][fitted] = np.degrees(np.sqrt(across))


def _rotate(jacobian: FloatArray, covariance: FloatArray) -> FloatArray:
    """Return covariances ``(n, 3)`` (xx, yy, xy) under linear maps ``(n, 2, 2)``."""
    matrix = np.empty((len(covariance), 2, 2))
    matrix[:, 0, 0], matrix[:, 1, 1] = covariance[:, 0], covariance[:, 1]
    matrix[:, 0, 1] = matrix[:, 1, 0] = covariance[:, 2]
    mapped = jacobian @ matrix @ np.swapaxes(jacobian, 1, 2)
    return np.stack([mapped[:, 0, 0], mapped[:, 1, 1], mapped[:, 0, 1]], axis=-1)


def fill_pixel_flags(catalog: Catalog, flags: PixelFlags) -> None:
    """Fill the pixel flags that are columns."""
    for name, column in _PIXEL_FLAGS.items():
        catalog[f"pixel_flags_{column}"] = flags.get(name)


def compute_bbox_sizes(footprints: FootprintSet, *, x: FloatArray, y: FloatArray) -> IntArray:
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
