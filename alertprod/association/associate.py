"""From detections and history to objects: match, make new objects, summarise, measure forced fluxes.

No pixels are read here but by the callable that measures forced fluxes, and no database: the same
sources and history give the same answer whatever the order of their rows.

What is stored of an object is made of all that is known of it. What a packet says of it is made of what was observed
no later than the exposure: an exposure that is processed late knows nothing of what came after it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from alertprod._typing import BoolArray, IntArray
from alertprod.association.columns import DIA_FORCED_SOURCE_COLUMNS
from alertprod.association.config import AssociationConfig
from alertprod.association.forced import ExposureFacts, MeasureForced, is_followed, measure_forced_sources
from alertprod.association.history import History
from alertprod.association.match import UNMATCHED, find_near, match_one_to_one
from alertprod.association.objects import fill_forced_means, summarize_objects
from alertprod.association.positions import Positions
from alertprod.association.solar_system import SolarSystemMatches
from alertprod.measurement.catalog import Catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class Association:
    """What became of an exposure's sources.

    Parameters
    ----------
    sources
        `DIA_SOURCE_COLUMNS`, by increasing id: the sources that stay, each with its object's id (or a Solar System
        object's). Each makes one alert.
    objects
        `DIA_OBJECT_COLUMNS`, by increasing id: the new versions of the objects of `sources`, to be stored.
    packet_objects
        The same objects as they were known at the time of the exposure, to be sent. Another version where the history
        holds something observed later.
    forced
        `DIA_FORCED_SOURCE_COLUMNS`, by increasing object id: this exposure's measurements.
    history
        The earlier rows of the objects of `sources`, as far back as the configuration says: none of this very exposure,
        none observed later.
    solar_system
        Predictions and orbits of the sources that are known bodies.
    n_matched, n_new, n_solar_system
        Sources by what they were associated with.
    dropped
        Number of sources that were not kept, by reason.
    """

    sources: Catalog
    objects: Catalog
    packet_objects: Catalog
    forced: Catalog
    history: History
    solar_system: SolarSystemMatches = field(default_factory=SolarSystemMatches.none)
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
    solar_system: SolarSystemMatches | None = None,
    config: AssociationConfig | None = None,
) -> Association:
    """Associate an exposure's sources with their history.

    Parameters
    ----------
    sources
        `DIA_SOURCE_COLUMNS` of one exposure, those worth an alert (`select_sources`); left as they are.
    history
        All objects around the exposure, and the light curves at least of those that `find_known` names. Rows that
        this very exposure wrote before are ignored.
    measure_forced
        Measures at pixel positions of the exposure.
    forced_id_factory
        Ids of the forced sources; a factory of its own, so these ids may equal those of DiaSources.
    solar_system
        What the sources with an `ss_object_id` are; they belong to no object.

    Notes
    -----
    A new object takes the id of its source. Forced fluxes are measured for objects of the history too that were not
    detected this time.
    """
    config = config or AssociationConfig()
    sources = sources.select(np.argsort(sources["dia_source_id"], kind="stable"))
    history = _other_rows(history, sources, facts)

    is_known_body = sources["ss_object_id"] != 0
    candidates = np.flatnonzero(~is_known_body)
    matched = match_one_to_one(
        Positions.from_catalog(sources).select(candidates),
        Positions.from_catalog(history.objects),
        radius_arcsec=config.radius_arcsec,
        systematic_err_arcsec=config.systematic_err_arcsec,
    )
    sources["dia_object_id"] = 0
    known = candidates[matched != UNMATCHED]
    sources["dia_object_id"][known] = history.objects["dia_object_id"][matched[matched != UNMATCHED]]
    alone = candidates[matched == UNMATCHED]
    worthy = _may_found_an_object(sources, config)[alone]
    sources["dia_object_id"][alone[worthy]] = sources["dia_source_id"][alone[worthy]]
    unfit = int((~worthy).sum())
    sources = sources.select(is_known_body | (sources["dia_object_id"] != 0))

    with_object = sources.select(sources["dia_object_id"] != 0)
    ids = with_object["dia_object_id"]
    light_curves = _of_objects(Catalog.concatenate([history.sources, with_object]), ids)
    objects = _summarize(light_curves, history.objects, facts, config)
    forced = _measure_followed_objects(objects, history, facts, measure_forced, forced_id_factory, config)
    all_forced = Catalog.concatenate([_of_objects(history.forced, ids), forced])
    fill_forced_means(objects, all_forced, window_days=config.history_days)
    past = History(
        objects=history.objects,
        sources=_past(_of_objects(history.sources, ids), facts, config),
        forced=_past(_of_objects(history.forced, ids), facts, config),
    )
    return Association(
        sources=sources,
        objects=objects,
        packet_objects=_describe_as_of(facts, objects, light_curves, all_forced, history.objects, config),
        forced=forced,
        history=past,
        solar_system=solar_system or SolarSystemMatches.none(),
        n_matched=len(known),
        n_new=int(worthy.sum()),
        n_solar_system=int(is_known_body.sum()),
        dropped={"unfit_for_new_object": unfit} if unfit else {},
    )


def find_known(sources: Catalog, objects: Catalog, *, radius_arcsec: float) -> IntArray:
    """Return the ids of the objects that a source might be: those whose light curves `associate` needs."""
    rows = find_near(Positions.from_catalog(sources), Positions.from_catalog(objects), radius_arcsec=radius_arcsec)
    return np.sort(objects["dia_object_id"][rows])


def _other_rows(history: History, sources: Catalog, facts: ExposureFacts) -> History:
    """Return the history in a fixed order of rows, without what this exposure wrote."""

    def of_this_exposure(rows: Catalog) -> BoolArray:
        # Two cameras may number alike, but hardly for one moment.
        same = (rows["visit"] == facts.visit) & (rows["detector"] == facts.detector)
        return np.asarray(same & (rows["midpoint_mjd_tai"] == facts.midpoint_mjd_tai))

    written = of_this_exposure(history.sources) | np.isin(history.sources["dia_source_id"], sources["dia_source_id"])
    return History(
        objects=history.objects.select(np.argsort(history.objects["dia_object_id"], kind="stable")),
        sources=history.sources.select(~written),
        forced=history.forced.select(~of_this_exposure(history.forced)),
    )


def _may_found_an_object(sources: Catalog, config: AssociationConfig) -> BoolArray:
    worthy: BoolArray = ~(sources["reliability"] < config.min_new_object_reliability)
    for flag in config.new_object_flags:
        worthy = worthy & ~sources[flag]
    return worthy


def _of_objects(rows: Catalog, ids: IntArray) -> Catalog:
    return rows.select(np.isin(rows["dia_object_id"], ids))


def _past(rows: Catalog, facts: ExposureFacts, config: AssociationConfig) -> Catalog:
    """Return the rows that a packet of this exposure may know of."""
    days = facts.midpoint_mjd_tai - rows["midpoint_mjd_tai"]
    return rows.select((days >= 0.0) & (days <= config.history_days))


def _summarize(sources: Catalog, previous: Catalog, facts: ExposureFacts, config: AssociationConfig) -> Catalog:
    return summarize_objects(
        sources,
        previous,
        validity_start_mjd_tai=facts.time_processed_mjd_tai,
        window_days=config.history_days,
        config=config.forced,
    )


def _measure_followed_objects(
    updated: Catalog,
    history: History,
    facts: ExposureFacts,
    measure: MeasureForced,
    id_factory: Callable[[], int],
    config: AssociationConfig,
) -> Catalog:
    rest = history.objects.select(~np.isin(history.objects["dia_object_id"], updated["dia_object_id"]))
    current = Catalog.concatenate([rest, updated])
    since = facts.midpoint_mjd_tai - config.history_days
    followed = current.select(is_followed(current, since_mjd_tai=since))
    if not followed.n_rows:
        return Catalog(DIA_FORCED_SOURCE_COLUMNS, 0)
    return measure_forced_sources(followed, facts, measure, id_factory)


def _describe_as_of(
    facts: ExposureFacts,
    objects: Catalog,
    light_curves: Catalog,
    forced: Catalog,
    previous: Catalog,
    config: AssociationConfig,
) -> Catalog:
    """Return the objects without what was observed after the exposure."""
    later = light_curves["midpoint_mjd_tai"] > facts.midpoint_mjd_tai
    forced_later = forced["midpoint_mjd_tai"] > facts.midpoint_mjd_tai
    changed = np.union1d(light_curves["dia_object_id"][later], forced["dia_object_id"][forced_later])
    if not len(changed):
        return objects
    then = _summarize(_past(_of_objects(light_curves, changed), facts, config), previous, facts, config)
    # What was seen last so far lies in the future of this exposure.
    then["last_dia_source_mjd_tai"] = facts.midpoint_mjd_tai
    fill_forced_means(then, _past(_of_objects(forced, changed), facts, config))
    rest = objects.select(~np.isin(objects["dia_object_id"], changed))
    merged = Catalog.concatenate([then, rest])
    return merged.select(np.argsort(merged["dia_object_id"], kind="stable"))
