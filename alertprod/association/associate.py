"""From detections and history to objects: filter, match, make new objects, summarise, measure forced fluxes.

No pixels are read here but by the callable that measures forced fluxes, and no database: the same
sources and history give the same answer whatever the order of their rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from alertprod._typing import BoolArray
from alertprod.association.columns import DIA_FORCED_SOURCE_COLUMNS
from alertprod.association.forced import (
    ExposureFacts,
    ForcedConfig,
    MeasureForced,
    measure_forced_sources,
    select_objects,
)
from alertprod.association.history import History
from alertprod.association.match import UNMATCHED, match_one_to_one
from alertprod.association.objects import summarize_objects
from alertprod.measurement.catalog import Catalog

_NEW_OBJECT_FLAGS = (
    "centroid_flag",
    "pixel_flags_cr_center",
    "pixel_flags_nodata_center",
    "pixel_flags_interpolated_center",
    "pixel_flags_saturated_center",
    "pixel_flags_suspect_center",
    "pixel_flags_streak_center",
    "glint_trail",
)
"""A source with one of these may belong to a known object, but is no evidence of a new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationConfig:
    """What is taken for the same object, and what is not taken at all."""

    radius_arcsec: float = 1.0
    """Several times the position error of a faint source, far less than the distance of two objects."""

    min_science_snr: float = -2.0
    """A forced flux on the science image that is more negative than noise allows marks an artefact."""

    max_trail_rate_arcsec_per_s: float = 10.0 * 3600.0 / 86400.0
    """10 degrees a day: faster is a satellite. Times the exposure time it is the longest trail kept."""

    min_new_object_reliability: float = 0.1
    """Sources scored below make no new object; sources nobody scored do."""

    forced: ForcedConfig = field(default_factory=ForcedConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Association:
    """What became of an exposure's sources.

    Parameters
    ----------
    sources
        `DIA_SOURCE_COLUMNS`, by increasing id: the sources that stay, each with its object's id (or a Solar System
        object's). Each makes one alert.
    objects
        `DIA_OBJECT_COLUMNS`, by increasing id: the new versions of the objects of `sources`.
    forced
        `DIA_FORCED_SOURCE_COLUMNS`, by increasing object id: this exposure's measurements.
    history
        The earlier rows that were used: what was handed in, less what this very exposure wrote before.
    n_matched, n_new, n_solar_system
        Sources by what they were associated with.
    dropped
        Number of sources that were not kept, by reason.
    """

    sources: Catalog
    objects: Catalog
    forced: Catalog
    history: History
    n_matched: int
    n_new: int
    n_solar_system: int
    dropped: Mapping[str, int]


def associate(
    sources: Catalog,
    history: History,
    facts: ExposureFacts,
    *,
    measure_forced: MeasureForced,
    forced_id_factory: Callable[[], int],
    config: AssociationConfig | None = None,
) -> Association:
    """Associate an exposure's sources with their history.

    Parameters
    ----------
    sources
        `DIA_SOURCE_COLUMNS` of one exposure; left as they are.
    history
        Everything known around the exposure. Rows that this very exposure wrote before are ignored.
    measure_forced
        Measures at pixel positions of the exposure.
    forced_id_factory
        Ids of the forced sources; a factory of its own, so these ids may equal those of DiaSources.

    Notes
    -----
    A new object takes the id of its source. Forced fluxes are measured for objects of the history too that were not
    detected this time.
    """
    config = config or AssociationConfig()
    sources = sources.select(np.argsort(sources["dia_source_id"], kind="stable"))
    history = _earlier_rows(history, sources, facts)
    reasons = _reasons_to_drop(sources, config)
    kept = ~np.any(list(reasons.values()), axis=0)
    dropped = _count_first(reasons)
    sources = sources.select(kept)

    solar_system = sources["ss_object_id"] != 0
    candidates = np.flatnonzero(~solar_system)
    matched = match_one_to_one(
        source_ra_deg=sources["ra_deg"][candidates],
        source_dec_deg=sources["dec_deg"][candidates],
        object_ra_deg=history.objects["ra_deg"],
        object_dec_deg=history.objects["dec_deg"],
        radius_arcsec=config.radius_arcsec,
    )
    known = candidates[matched != UNMATCHED]
    sources["dia_object_id"] = 0
    sources["dia_object_id"][known] = history.objects["dia_object_id"][matched[matched != UNMATCHED]]
    alone = candidates[matched == UNMATCHED]
    worthy = _may_found_an_object(sources, config)[alone]
    sources["dia_object_id"][alone[worthy]] = sources["dia_source_id"][alone[worthy]]
    dropped["unfit_for_new_object"] = int((~worthy).sum())
    sources = sources.select(solar_system | (sources["dia_object_id"] != 0))

    with_object = sources.select(sources["dia_object_id"] != 0)
    everything = Catalog.concatenate([history.sources, with_object])
    objects = summarize_objects(
        everything.select(np.isin(everything["dia_object_id"], with_object["dia_object_id"])),
        history.objects,
        validity_start_mjd_tai=facts.time_processed_mjd_tai,
    )
    return Association(
        sources=sources,
        objects=objects,
        forced=_measure_followed_objects(
            objects, history, everything, facts, measure_forced, forced_id_factory, config
        ),
        history=history,
        n_matched=len(known),
        n_new=int(worthy.sum()),
        n_solar_system=int(solar_system.sum()),
        dropped={reason: count for reason, count in dropped.items() if count},
    )


def _earlier_rows(history: History, sources: Catalog, facts: ExposureFacts) -> History:
    """Return the history in a fixed order of rows, without what this exposure wrote."""
    objects, forced = history.objects, history.forced
    past = history.sources.select(~np.isin(history.sources["dia_source_id"], sources["dia_source_id"]))
    same = (forced["visit"] == facts.visit) & (forced["detector"] == facts.detector)
    return History(
        objects=objects.select(np.argsort(objects["dia_object_id"], kind="stable")),
        sources=past,
        forced=forced.select(~same),
    )


def _reasons_to_drop(sources: Catalog, config: AssociationConfig) -> dict[str, BoolArray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        science_snr = sources["science_flux"] / sources["science_flux_err"]
    longest = config.max_trail_rate_arcsec_per_s * sources["exposure_time_s"]
    return {
        "no_position": ~(np.isfinite(sources["ra_deg"]) & np.isfinite(sources["dec_deg"])),
        "centroid_failed": sources["centroid_flag"],
        "cosmic_ray": sources["pixel_flags_cr_center"],
        "negative_science_flux": science_snr < config.min_science_snr,
        "long_trail": sources["trail_length_arcsec"] >= longest,
    }


def _count_first(reasons: Mapping[str, BoolArray]) -> dict[str, int]:
    """Count each row under its first reason only, so that the counts add up."""
    counts, seen = {}, None
    for reason, rows in reasons.items():
        counts[reason] = int((rows if seen is None else rows & ~seen).sum())
        seen = rows if seen is None else seen | rows
    return counts


def _may_found_an_object(sources: Catalog, config: AssociationConfig) -> BoolArray:
    flagged = np.any([sources[name] for name in _NEW_OBJECT_FLAGS], axis=0)
    worthy: BoolArray = ~flagged & ~(sources["reliability"] < config.min_new_object_reliability)
    return worthy


def _measure_followed_objects(
    updated: Catalog,
    history: History,
    sources: Catalog,
    facts: ExposureFacts,
    measure: MeasureForced,
    id_factory: Callable[[], int],
    config: AssociationConfig,
) -> Catalog:
    rest = history.objects.select(~np.isin(history.objects["dia_object_id"], updated["dia_object_id"]))
    current = Catalog.concatenate([updated, rest]) if rest.n_rows else updated
    followed = current.select(select_objects(current, sources, config.forced))
    if not followed.n_rows:
        return Catalog(DIA_FORCED_SOURCE_COLUMNS, 0)
    return measure_forced_sources(followed, facts, measure, id_factory)
