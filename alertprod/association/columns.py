"""The columns of DiaObjects and DiaForcedSources: the packet and the SQL tables are made from these lists.

The fluxes of a DiaObject are summaries over the *loaded* history (12 months) and the new source, not
over the object's whole life. Bands other than `BANDS` have no summary columns in the packet's schema;
their sources count for position and `n_dia_sources` alone.
"""

from alertprod.measurement.catalog import Column

BANDS = ("u", "g", "r", "i", "z", "y")
"""The bands that the packet's DiaObject has columns for, in its order."""

_F4, _F8, _I4, _I8, _S = "f4", "f8", "i4", "i8", "O"


def _point_source_columns(band: str) -> tuple[Column, ...]:
    return (
        Column(f"{band}_psf_flux_mean", _F4, "nJy", f"inverse-variance mean of psf_flux in {band}"),
        Column(f"{band}_psf_flux_mean_err", _F4, "nJy", "its standard error, 1 / sqrt(sum of weights)"),
        Column(f"{band}_psf_flux_sigma", _F4, "nJy", f"sample standard deviation (n - 1) of psf_flux in {band}"),
        Column(f"{band}_psf_flux_ndata", _I4, "", f"number of usable psf_flux in {band}"),
        Column(f"{band}_fp_flux_mean", _F4, "nJy", f"inverse-variance mean of the forced psf_flux in {band}"),
        Column(f"{band}_fp_flux_mean_err", _F4, "nJy", "its standard error, 1 / sqrt(sum of weights)"),
    )


def _science_columns(band: str) -> tuple[Column, ...]:
    return (
        Column(f"{band}_science_flux_mean", _F4, "nJy", f"inverse-variance mean of science_flux in {band}"),
        Column(f"{band}_science_flux_mean_err", _F4, "nJy", "its standard error, 1 / sqrt(sum of weights)"),
    )


def _range_columns(band: str) -> tuple[Column, ...]:
    return (
        Column(f"{band}_psf_flux_min", _F4, "nJy", f"smallest psf_flux in {band}"),
        Column(f"{band}_psf_flux_max", _F4, "nJy", f"largest psf_flux in {band}"),
        Column(f"{band}_psf_flux_max_slope", _F4, "nJy/d", f"largest signed slope between consecutive {band} sources"),
        Column(f"{band}_psf_flux_err_mean", _F4, "nJy", f"plain mean of psf_flux_err in {band}"),
    )


DIA_OBJECT_COLUMNS: tuple[Column, ...] = (
    Column("dia_object_id", _I8, "", "id of the object: that of its first DiaSource"),
    Column("validity_start_mjd_tai", _F8, "d", "when this version was stored, MJD TAI"),
    Column("ra_deg", _F8, "deg", "right ascension of the mean position of its sources, ICRS"),
    Column("ra_err_deg", _F4, "deg", "standard error of RA times cos(dec)"),
    Column("dec_deg", _F8, "deg", "declination of the mean position, ICRS"),
    Column("dec_err_deg", _F4, "deg", "standard error of dec"),
    Column("ra_dec_cov_deg2", _F4, "deg**2", "covariance of RA cos(dec) and dec"),
    *(column for band in BANDS for column in _point_source_columns(band)),
    *(column for band in BANDS for column in _science_columns(band)),
    *(column for band in BANDS for column in _range_columns(band)),
    Column("first_dia_source_mjd_tai", _F8, "d", "midpoint of its first source, MJD TAI"),
    Column("last_dia_source_mjd_tai", _F8, "d", "midpoint of its latest source, MJD TAI"),
    Column("n_dia_sources", _I4, "", "number of its sources in the loaded history, the new one included"),
    Column("repeated_mjd_tai", _F8, "d", "midpoint of its latest good source but one, MJD TAI; not in the packet"),
)
"""Every column of a DiaObject, in the packet's order. `repeated_mjd_tai` says whether it is worth following, without
its light curve: NaN where it was never seen twice."""

KNOWN_OBJECT_COLUMNS: tuple[Column, ...] = tuple(
    column
    for column in DIA_OBJECT_COLUMNS
    if column.name.startswith(("dia_object_id", "ra_", "dec_"))
    or column.name in ("first_dia_source_mjd_tai", "last_dia_source_mjd_tai", "repeated_mjd_tai")
)
"""What association must know of every object of a region: where it is and whether it is followed. Its statistics are
made anew when it is seen."""

DIA_FORCED_SOURCE_COLUMNS: tuple[Column, ...] = (
    Column("dia_forced_source_id", _I8, "", "id of the measurement"),
    Column("dia_object_id", _I8, "", "object that was measured"),
    Column("ra_deg", _F8, "deg", "right ascension of the position measured at, ICRS"),
    Column("dec_deg", _F8, "deg", "declination of the position measured at, ICRS"),
    Column("visit", _I8, "", "visit"),
    Column("detector", _I4, "", "detector"),
    Column("psf_flux", _F4, "nJy", "point-source flux forced at the object's position on the difference"),
    Column("psf_flux_err", _F4, "nJy", "its standard error"),
    Column("midpoint_mjd_tai", _F8, "d", "middle of the exposure, MJD TAI"),
    Column("science_flux", _F4, "nJy", "point-source flux forced at the object's position on the science image"),
    Column("science_flux_err", _F4, "nJy", "its standard error"),
    Column("band", _S, "", "band"),
    Column("time_processed_mjd_tai", _F8, "d", "when the row was made, MJD TAI"),
)
"""Every column of a DiaForcedSource, in the packet's order."""
