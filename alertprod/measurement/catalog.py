"""The one list of DiaSource columns, and the table type that carries them.

A `Catalog` is plain arrays of one length under fixed names. Floats that nobody measured are NaN,
ids that do not apply are 0, flags are plain booleans; the packet turns NaN and such ids into nulls.
Columns that are not `stored` live in the catalog of the exposure only: neither the database nor the packet has them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alertprod._typing import BoolArray, IntArray


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, NumPy dtype, unit ("" for none) and meaning, and whether the database keeps it."""

    name: str
    dtype: str
    unit: str
    meaning: str
    stored: bool = True


_F4, _F8, _I4, _I8, _B, _S = "f4", "f8", "i4", "i8", "?", "O"

DIA_SOURCE_COLUMNS: tuple[Column, ...] = (
    Column("dia_source_id", _I8, "", "id of the detection"),
    Column("visit", _I8, "", "visit"),
    Column("detector", _I4, "", "detector"),
    Column("dia_object_id", _I8, "", "DiaObject it was associated with; 0 for none"),
    Column("ss_object_id", _I8, "", "Solar System object it was matched with; 0 for none"),
    Column("parent_dia_source_id", _I8, "", "parent before deblending; 0 for none"),
    Column("midpoint_mjd_tai", _F8, "d", "middle of the exposure, MJD TAI"),
    Column("exposure_time_s", _F4, "s", "exposure time"),
    Column("ra_deg", _F8, "deg", "right ascension of the centroid, ICRS"),
    Column("ra_err_deg", _F4, "deg", "standard error of RA times cos(dec)"),
    Column("dec_deg", _F8, "deg", "declination of the centroid, ICRS"),
    Column("dec_err_deg", _F4, "deg", "standard error of dec"),
    Column("ra_dec_cov_deg2", _F4, "deg**2", "covariance of RA cos(dec) and dec"),
    Column("x", _F4, "pixel", "column of the centroid, first pixel's centre 0"),
    Column("x_err", _F4, "pixel", "standard error of x"),
    Column("y", _F4, "pixel", "row of the centroid"),
    Column("y_err", _F4, "pixel", "standard error of y"),
    Column("x_y_cov", _F4, "pixel**2", "covariance of x and y; not in the packet"),
    Column("centroid_flag", _B, "", "centroid failed; x and y are the peak's"),
    Column("ap_flux", _F4, "nJy", "difference flux within 12 pixels of the centroid"),
    Column("ap_flux_err", _F4, "nJy", "its standard error"),
    Column("ap_flux_flag", _B, "", "aperture flux failed"),
    Column("ap_flux_flag_aperture_truncated", _B, "", "the aperture reaches off the image"),
    Column("is_negative", _B, "", "detected as negative only"),
    Column("snr", _F4, "", "significance of the strongest peak in the detection image"),
    Column("psf_flux", _F4, "nJy", "point-source flux on the difference"),
    Column("psf_flux_err", _F4, "nJy", "its standard error"),
    Column("psf_ln_l", _F4, "", "log likelihood of the point-source fit"),
    Column("psf_chi2", _F4, "", "chi squared of the point-source fit"),
    Column("psf_ndata", _I4, "", "pixels in the point-source fit"),
    Column("psf_flux_flag", _B, "", "point-source flux failed"),
    Column("psf_flux_flag_edge", _B, "", "the PSF image reaches off the image"),
    Column("psf_flux_flag_no_good_pixels", _B, "", "no usable pixel under the PSF"),
    Column("trail_flux", _F4, "nJy", "flux of the trail model"),
    Column("trail_flux_err", _F4, "nJy", "its standard error"),
    Column("trail_ra_deg", _F8, "deg", "right ascension of the trail's middle"),
    Column("trail_ra_err_deg", _F4, "deg", "standard error of trail RA times cos(dec)"),
    Column("trail_dec_deg", _F8, "deg", "declination of the trail's middle"),
    Column("trail_dec_err_deg", _F4, "deg", "standard error of trail dec"),
    Column("trail_length_arcsec", _F4, "arcsec", "length of the trail"),
    Column("trail_length_err_arcsec", _F4, "arcsec", "its standard error"),
    Column("trail_angle_deg", _F4, "deg", "position angle of the trail, east of north"),
    Column("trail_angle_err_deg", _F4, "deg", "its standard error"),
    Column("trail_chi2", _F4, "", "chi squared of the trail fit"),
    Column("trail_ndata", _I4, "", "pixels in the trail fit; 0 where none was made"),
    Column("trail_flag_edge", _B, "", "the trail touches the image's edge"),
    Column("trail_flag", _B, "", "no trail: a fit was tried and failed"),
    Column("dipole_mean_flux", _F4, "nJy", "mean of the lobes' absolute fluxes"),
    Column("dipole_mean_flux_err", _F4, "nJy", "its standard error"),
    Column("dipole_flux_diff", _F4, "nJy", "absolute flux of the positive less that of the negative lobe"),
    Column("dipole_flux_diff_err", _F4, "nJy", "its standard error"),
    Column("dipole_length_arcsec", _F4, "arcsec", "separation of the lobes"),
    Column("dipole_angle_deg", _F4, "deg", "position angle from the negative to the positive lobe, east of north"),
    Column("dipole_chi2", _F4, "", "reduced chi squared of the dipole fit"),
    Column("dipole_ndata", _I4, "", "pixels in the dipole fit; 0 where none was made"),
    Column("science_flux", _F4, "nJy", "point-source flux forced at the centroid on the science image"),
    Column("science_flux_err", _F4, "nJy", "its standard error"),
    Column("forced_psf_flux_flag", _B, "", "forced flux on the science image failed"),
    Column("forced_psf_flux_flag_edge", _B, "", "forced flux: the PSF image reaches off the image"),
    Column("forced_psf_flux_flag_no_good_pixels", _B, "", "forced flux: no usable pixel"),
    Column("template_flux", _F4, "nJy", "point-source flux forced at the centroid on the matched template"),
    Column("template_flux_err", _F4, "nJy", "its standard error"),
    Column("ixx", _F4, "arcsec**2", "second moment of the source, pixel axes"),
    Column("iyy", _F4, "arcsec**2", "second moment of the source"),
    Column("ixy", _F4, "arcsec**2", "second moment of the source"),
    Column("ixx_psf", _F4, "arcsec**2", "second moment of the PSF, pixel axes"),
    Column("iyy_psf", _F4, "arcsec**2", "second moment of the PSF"),
    Column("ixy_psf", _F4, "arcsec**2", "second moment of the PSF"),
    Column("shape_flag", _B, "", "shape failed"),
    Column("shape_flag_no_pixels", _B, "", "no pixel for a shape"),
    Column("shape_flag_not_contained", _B, "", "the shape's centre left the footprint's box"),
    Column("shape_flag_parent_source", _B, "", "shape of a blend's parent"),
    Column("extendedness", _F4, "", "0 like a point, 1 extended, from size against the PSF's"),
    Column("reliability", _F4, "", "real/bogus score, 0 to 1; NaN without a scorer"),
    Column("reliability_version", _S, "", "what gave the score; None without a scorer"),
    Column("band", _S, "", "band"),
    Column("is_dipole", _B, "", "a dipole describes it well"),
    Column("dipole_fit_attempted", _B, "", "a dipole fit was made"),
    Column("time_processed_mjd_tai", _F8, "d", "when the row was made, MJD TAI"),
    Column("bbox_size", _I4, "pixel", "side of the square about the centroid that holds the footprint"),
    Column("pixel_flags", _B, "", "pixel flags failed"),
    Column("pixel_flags_bad", _B, "", "bad pixel in the footprint"),
    Column("pixel_flags_cr", _B, "", "cosmic ray in the footprint"),
    Column("pixel_flags_cr_center", _B, "", "cosmic ray within the central 3x3 pixels"),
    Column("pixel_flags_edge", _B, "", "unusable border in the footprint"),
    Column("pixel_flags_nodata", _B, "", "pixel without data in the footprint"),
    Column("pixel_flags_nodata_center", _B, "", "pixel without data within the central 3x3 pixels"),
    Column("pixel_flags_interpolated", _B, "", "interpolated pixel in the footprint"),
    Column("pixel_flags_interpolated_center", _B, "", "interpolated pixel within the central 3x3 pixels"),
    Column("pixel_flags_offimage", _B, "", "centroid off the image"),
    Column("pixel_flags_saturated", _B, "", "saturated pixel in the footprint"),
    Column("pixel_flags_saturated_center", _B, "", "saturated pixel within the central 3x3 pixels"),
    Column("pixel_flags_suspect", _B, "", "suspect pixel in the footprint"),
    Column("pixel_flags_suspect_center", _B, "", "suspect pixel within the central 3x3 pixels"),
    Column("pixel_flags_streak", _B, "", "streak in the footprint"),
    Column("pixel_flags_streak_center", _B, "", "streak within the central 3x3 pixels"),
    Column("pixel_flags_injected", _B, "", "injected source in the footprint"),
    Column("pixel_flags_injected_center", _B, "", "injected source within the central 3x3 pixels"),
    Column("pixel_flags_injected_template", _B, "", "source injected in the template in the footprint"),
    Column("pixel_flags_injected_template_center", _B, "", "the same within the central 3x3 pixels"),
    Column("glint_trail", _B, "", "one of a line of satellite glints"),
    # From here on: what the exposure's own catalog holds beside.
    Column("sky_source", _B, "", "an empty place that was measured like a source", stored=False),
    Column("ref_match_id", _I8, "", "source of the reference catalogue at this place; 0 for none", stored=False),
    Column("src_match_id", _I8, "", "source of the science image at this place; 0 for none", stored=False),
    Column("centroid_flag_edge", _B, "", "centroid failed beside the border", stored=False),
    Column("centroid_flag_near_edge", _B, "", "the fitted disk reaches off the image", stored=False),
    Column(
        "centroid_flag_no_second_derivative", _B, "", "centroid failed: the pixels determine no position", stored=False
    ),
    Column(
        "centroid_flag_almost_no_second_derivative", _B, "", "error of the position above a PSF sigma", stored=False
    ),
    Column("centroid_flag_not_at_maximum", _B, "", "centroid failed: flux of the wrong sign", stored=False),
    Column("centroid_flag_not_converged", _B, "", "centroid failed: out of iterations", stored=False),
    Column("centroid_flag_reset_to_peak", _B, "", "centroid failed: it left the peak, and was put back", stored=False),
    Column("psf_flux_area", _F4, "pixel", "effective area of the PSF, sum(P)^2 / sum(P^2)", stored=False),
    Column("psf_flux_ap_corr", _F4, "", "aperture correction in the flux; NaN for none", stored=False),
    Column("psf_flux_ap_corr_err", _F4, "", "its standard error", stored=False),
    Column("psf_flux_flag_ap_corr", _B, "", "aperture correction failed; the flux is as it was", stored=False),
    Column("gaussian_flux", _F4, "nJy", "flux of a Gaussian of the source's own moments", stored=False),
    Column("gaussian_flux_err", _F4, "nJy", "its standard error", stored=False),
    Column("gaussian_flux_flag", _B, "", "Gaussian flux failed", stored=False),
    Column("gaussian_flux_ap_corr", _F4, "", "aperture correction in the flux; NaN for none", stored=False),
    Column("gaussian_flux_ap_corr_err", _F4, "", "its standard error", stored=False),
    Column("gaussian_flux_flag_ap_corr", _B, "", "aperture correction failed; the flux is as it was", stored=False),
    Column("peak_likelihood_flux", _F4, "nJy", "point-source likelihood image at the centroid", stored=False),
    Column("peak_likelihood_flux_err", _F4, "nJy", "its standard error", stored=False),
    Column("peak_likelihood_flux_flag", _B, "", "peak likelihood flux failed", stored=False),
    Column("forced_psf_flux_area", _F4, "pixel", "effective area of the science PSF", stored=False),
    Column("forced_template_psf_flux_area", _F4, "pixel", "effective area of the template PSF", stored=False),
    Column("forced_template_psf_flux_flag", _B, "", "forced flux on the template failed", stored=False),
    Column("forced_template_psf_flux_flag_edge", _B, "", "its PSF image reaches off the image", stored=False),
    Column("forced_template_psf_flux_flag_no_good_pixels", _B, "", "no usable pixel for it", stored=False),
    Column("ixx_err", _F4, "arcsec**2", "standard error of ixx", stored=False),
    Column("iyy_err", _F4, "arcsec**2", "standard error of iyy", stored=False),
    Column("ixy_err", _F4, "arcsec**2", "standard error of ixy", stored=False),
    Column("trail_x0", _F4, "pixel", "column of the trail's end with the smaller x", stored=False),
    Column("trail_y0", _F4, "pixel", "row of that end", stored=False),
    Column("trail_x1", _F4, "pixel", "column of the other end", stored=False),
    Column("trail_y1", _F4, "pixel", "row of the other end", stored=False),
    Column("trail_flag_shape", _B, "", "no moments of its own: started from the footprint", stored=False),
    Column("trail_flag_no_converge", _B, "", "the fit did not converge", stored=False),
    Column("trail_flag_no_flux", _B, "", "flux not finite, or of the wrong sign", stored=False),
    Column("trail_flag_no_sigma", _B, "", "no standard errors", stored=False),
    Column("trail_flag_nan", _B, "", "an end of the trail is not finite", stored=False),
    Column("trail_flag_point_like", _B, "", "a point describes it as well", stored=False),
    Column("trail_flag_off_image", _B, "", "an end of the trail lies off the image", stored=False),
    Column("trail_flag_suspect_long_trail", _B, "", "longer than three PSF sigmas", stored=False),
    Column("dipole_fit_flag", _B, "", "a dipole fit was due and failed", stored=False),
    Column("dipole_fit_flag_edge", _B, "", "the dipole's pixels reach the border", stored=False),
    Column("dipole_positive_flux", _F4, "nJy", "flux of the positive lobe of the model", stored=False),
    Column("dipole_positive_flux_err", _F4, "nJy", "its standard error", stored=False),
    Column("dipole_positive_x", _F4, "pixel", "column of the positive lobe", stored=False),
    Column("dipole_positive_x_err", _F4, "pixel", "its standard error", stored=False),
    Column("dipole_positive_y", _F4, "pixel", "row of the positive lobe", stored=False),
    Column("dipole_positive_y_err", _F4, "pixel", "its standard error", stored=False),
    Column("dipole_negative_flux", _F4, "nJy", "flux of the negative lobe of the model, below zero", stored=False),
    Column("dipole_negative_flux_err", _F4, "nJy", "its standard error", stored=False),
    Column("dipole_negative_x", _F4, "pixel", "column of the negative lobe", stored=False),
    Column("dipole_negative_x_err", _F4, "pixel", "its standard error", stored=False),
    Column("dipole_negative_y", _F4, "pixel", "row of the negative lobe", stored=False),
    Column("dipole_negative_y_err", _F4, "pixel", "its standard error", stored=False),
    Column("dipole_separation", _F4, "pixel", "distance of the lobes", stored=False),
    Column("dipole_orientation_deg", _F4, "deg", "angle from +x to the positive lobe, towards +y", stored=False),
    Column("dipole_snr", _F4, "", "signal-to-noise of the dipole on the difference", stored=False),
    Column("naive_dipole_positive_flux", _F4, "nJy", "sum of the footprint's pixels above zero", stored=False),
    Column("naive_dipole_positive_flux_err", _F4, "nJy", "its standard error", stored=False),
    Column("naive_dipole_positive_npix", _I4, "", "number of those pixels", stored=False),
    Column("naive_dipole_negative_flux", _F4, "nJy", "sum of the footprint's pixels below zero", stored=False),
    Column("naive_dipole_negative_flux_err", _F4, "nJy", "its standard error", stored=False),
    Column("naive_dipole_negative_npix", _I4, "", "number of those pixels", stored=False),
    Column("pixel_flags_bad_center", _B, "", "bad pixel within the central 3x3 pixels", stored=False),
    Column("pixel_flags_edge_center", _B, "", "unusable border within the central 3x3 pixels", stored=False),
    Column("pixel_flags_interpolated_center_all", _B, "", "all central 3x3 pixels interpolated", stored=False),
    Column("pixel_flags_high_variance", _B, "", "template pixel of high variance in the footprint", stored=False),
    Column("pixel_flags_high_variance_center", _B, "", "the same within the central 3x3 pixels", stored=False),
    Column("pixel_flags_high_variance_center_all", _B, "", "the same for all central 3x3 pixels", stored=False),
    Column("pixel_flags_sat_template", _B, "", "saturated template pixel in the footprint", stored=False),
    Column("pixel_flags_sat_template_center", _B, "", "the same within the central 3x3 pixels", stored=False),
    Column("pixel_flags_spike", _B, "", "diffraction spike in the footprint", stored=False),
    Column("pixel_flags_spike_center", _B, "", "the same within the central 3x3 pixels", stored=False),
    Column("local_photo_calib", _F8, "nJy", "nJy of one image unit at the centroid", stored=False),
    Column("local_photo_calib_err", _F8, "nJy", "its standard error; NaN where nobody says", stored=False),
    Column("local_wcs_cd_1_1", _F8, "deg / pixel", "d(east)/dx at the centroid", stored=False),
    Column("local_wcs_cd_1_2", _F8, "deg / pixel", "d(east)/dy at the centroid", stored=False),
    Column("local_wcs_cd_2_1", _F8, "deg / pixel", "d(north)/dx at the centroid", stored=False),
    Column("local_wcs_cd_2_2", _F8, "deg / pixel", "d(north)/dy at the centroid", stored=False),
)
"""Every column of a DiaSource: first those that are stored, in the packet's order, then those that are not."""

STORED_DIA_SOURCE_COLUMNS: tuple[Column, ...] = tuple(column for column in DIA_SOURCE_COLUMNS if column.stored)
"""What the database keeps of a DiaSource, and the packet is made from; a history has no more."""


class Catalog(Mapping[str, NDArray[Any]]):
    """Named columns of one length.

    Parameters
    ----------
    columns
        The list of columns; all are present from the start.
    n
        Number of rows; floats start as NaN, integers as 0, flags as False, text as None.
    """

    def __init__(self, columns: Iterable[Column], n: int) -> None:
        self.columns = tuple(columns)
        self._data: dict[str, NDArray[Any]] = {column.name: _blank(column, n) for column in self.columns}
        self._n = n

    @classmethod
    def from_rows(cls, columns: Iterable[Column], rows: Iterable[Mapping[str, Any]]) -> "Catalog":
        """Build from mappings by column name; keys that are no column are ignored, missing ones stay blank."""
        rows = list(rows)
        catalog = cls(columns, len(rows))
        for column in catalog.columns:
            values = catalog._data[column.name]
            for i, row in enumerate(rows):
                value = row.get(column.name)
                if value is not None:
                    values[i] = value
        return catalog

    @property
    def n_rows(self) -> int:
        """Number of rows (``len`` counts columns, as for any mapping)."""
        return self._n

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._data[name]

    def __setitem__(self, name: str, values: Any) -> None:
        """Fill an existing column, in place; values are cast to its dtype, infinite beyond its range, and broadcast."""
        with np.errstate(over="ignore"):
            self._data[name][...] = values

    def __iter__(self) -> Any:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def select(self, rows: BoolArray | IntArray) -> "Catalog":
        """Return a new catalog of the rows that a mask or indices pick."""
        picked = Catalog(self.columns, 0)
        picked._data = {name: values[rows] for name, values in self._data.items()}
        picked._n = len(next(iter(picked._data.values()))) if picked._data else 0
        return picked

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows as dictionaries of Python scalars."""
        names = list(self._data)
        return [
            dict(zip(names, values, strict=True))
            for values in zip(*(self._data[n].tolist() for n in names), strict=True)
        ]

    @classmethod
    def concatenate(cls, parts: Iterable["Catalog"]) -> "Catalog":
        """Return the rows of all `parts` one after another, with the columns of the first; others are left out.

        Raises
        ------
        KeyError
            Raised if a part lacks one of them.
        """
        parts = list(parts)
        joined = cls(parts[0].columns, 0)
        joined._data = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        joined._n = sum(part.n_rows for part in parts)
        return joined


def _blank(column: Column, n: int) -> NDArray[Any]:
    dtype = np.dtype(column.dtype)
    if dtype.kind == "f":
        return np.full(n, np.nan, dtype=dtype)
    return np.zeros(n, dtype=dtype) if dtype.kind != "O" else np.full(n, None, dtype=object)
