"""Which detections are worth an alert: what needs no history to tell, and is told before anything is associated."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from alertprod._typing import BoolArray
from alertprod.association.config import AssociationConfig
from alertprod.measurement.catalog import Catalog

_SHORTEST_TRAIL_SIGMAS = 2.0 * 2.3548
"""Two full widths of the PSF: what is shorter may be any elongated thing."""

_POINT_FOOTPRINT_SIGMAS = 14.0
"""Side of the footprint of the brightest unsaturated star: 4.5 sigma to where it fades, 2.4 grown, on each side."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The sources that stay, by increasing id, and the number of those that do not, by reason."""

    sources: Catalog
    dropped: Mapping[str, int]


def select_sources(
    sources: Catalog, *, pixel_scale_arcsec: float, config: AssociationConfig | None = None
) -> Selection:
    """Leave out what is no detection of anything in the sky.

    Parameters
    ----------
    sources
        `DIA_SOURCE_COLUMNS` of one exposure; left as they are.
    pixel_scale_arcsec
        Side of a pixel.

    Notes
    -----
    Reasons: ``no_position``; the name of a flag of ``config.excluded_flags``; ``negative_science_flux``;
    ``long_trail``, of something that left the image, or is longer than what moves at ``max_trail_rate_arcsec_per_s``
    can be, and than two widths of the PSF; where the fit of a trail failed, its footprint's square tells its length.
    Each source counts under its first reason. Dipoles stay: they are flagged for whoever wants none.
    """
    config = config or AssociationConfig()
    sources = sources.select(np.argsort(sources["dia_source_id"], kind="stable"))
    return _leave_out(sources, _reasons_to_drop(sources, pixel_scale_arcsec, config))


def select_reliable(sources: Catalog, *, min_reliability: float | None) -> Selection:
    """Leave out what was scored below a limit: ``low_reliability``; what nobody scored stays."""
    if min_reliability is None:
        return Selection(sources, {})
    return _leave_out(sources, {"low_reliability": sources["reliability"] < min_reliability})


def _reasons_to_drop(sources: Catalog, pixel_scale_arcsec: float, config: AssociationConfig) -> dict[str, BoolArray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        science_snr = sources["science_flux"] / sources["science_flux_err"]
    too_long = _is_long_trail(sources, pixel_scale_arcsec, config)
    return {
        "no_position": ~(np.isfinite(sources["ra_deg"]) & np.isfinite(sources["dec_deg"])),
        **{flag: sources[flag] for flag in config.excluded_flags},
        "negative_science_flux": science_snr < config.min_science_snr,
        "long_trail": too_long,
    }


def _is_long_trail(sources: Catalog, pixel_scale_arcsec: float, config: AssociationConfig) -> BoolArray:
    second_moment = 0.5 * (sources["ixx_psf"].astype(float) + sources["iyy_psf"].astype(float))
    psf_sigma = np.sqrt(np.where(second_moment > 0.0, second_moment, 0.0))
    # In a short exposure 10 degrees a day are less than the seeing.
    reach = np.asarray(config.max_trail_rate_arcsec_per_s * sources["exposure_time_s"].astype(float))
    longest = np.maximum(reach, _SHORTEST_TRAIL_SIGMAS * psf_sigma)  # NaN where the exposure time is not known
    extent = sources["bbox_size"] * pixel_scale_arcsec - _POINT_FOOTPRINT_SIGMAS * psf_sigma
    long_trail: BoolArray = sources["trail_length_arcsec"] >= longest
    long_trail = long_trail | (sources["trail_flag"] & (extent >= longest)) | sources["trail_flag_off_image"]
    return long_trail | (sources["trail_flag_suspect_long_trail"] & sources["trail_flag_edge"])


def _leave_out(sources: Catalog, reasons: Mapping[str, BoolArray]) -> Selection:
    """Drop the rows that have a reason; count each under its first one only, so that the counts add up."""
    counts, seen = {}, np.zeros(sources.n_rows, dtype=np.bool_)
    for reason, rows in reasons.items():
        counts[reason] = int((rows & ~seen).sum())
        seen |= rows
    return Selection(sources.select(~seen), {reason: count for reason, count in counts.items() if count})
