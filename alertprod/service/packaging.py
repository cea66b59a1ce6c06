"""From measured sources to alert packets: selection, scores, association, forced photometry, cutouts.

No database, no Kafka. What needs no history is prepared once, however often the history moves before it is stored.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog

from alertprod._typing import FloatArray
from alertprod.alerts.cutouts import CutoutConfig, CutoutTriplet, make_cutouts
from alertprod.alerts.packet import AlertMessage, PacketInfo, make_messages, make_packets
from alertprod.association.associate import Association, associate
from alertprod.association.config import AssociationConfig
from alertprod.association.forced import ExposureFacts, ForcedFluxes, MeasureForced
from alertprod.association.history import History
from alertprod.association.reliability import ReliabilityScorer, ScorerFailed, score_sources
from alertprod.association.selection import select_reliable, select_sources
from alertprod.association.solar_system import Ephemerides, SolarSystemConfig, SolarSystemMatches, match_solar_system
from alertprod.errors import AlertprodError
from alertprod.measurement.catalog import Catalog
from alertprod.service.differencing import Differenced
from alertprod.service.stopwatch import Stopwatch

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An exposure's sources as far as they can be told without a history.

    Parameters
    ----------
    sources
        Those worth an alert, scored, known bodies named.
    cutouts
        One triplet a source.
    solar_system
        What the known bodies are.
    counts
        By kind, for the visit summary.
    """

    sources: Catalog
    cutouts: list[CutoutTriplet]
    solar_system: SolarSystemMatches
    counts: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """An exposure's association and what its packets are made from."""

    association: Association
    cutouts: list[CutoutTriplet]
    """One triplet a source of the association."""
    info: PacketInfo
    counts: dict[str, int]
    """By kind, for the visit summary."""

    def messages(
        self, *, producer_timestamp_ms: int | None = None, max_bytes: int | None = None
    ) -> Iterator[AlertMessage]:
        """Yield the alerts as they go on their topic, in the order of ``association.sources``."""
        return make_messages(
            self.association,
            self.cutouts,
            self.info,
            producer_timestamp_ms=producer_timestamp_ms,
            max_bytes=max_bytes,
        )

    def packets(self) -> Iterator[dict[str, Any]]:
        """Yield the packets, in the order of ``association.sources``."""
        return make_packets(self.association, self.cutouts, self.info)


def prepare_sources(
    differenced: Differenced,
    facts: ExposureFacts,
    *,
    association: AssociationConfig,
    cutouts: CutoutConfig,
    scorer: ReliabilityScorer | None = None,
    expected: Ephemerides | None = None,
    solar_system: SolarSystemConfig | None = None,
    watch: Stopwatch | None = None,
) -> Prepared:
    """Select an exposure's sources, have them scored, name the known bodies, and cut out their pictures.

    Parameters
    ----------
    scorer
        Gives `reliability`; None: nobody does.
    expected
        Solar System bodies where they are at mid-exposure; None: unknown.

    Notes
    -----
    Nothing of `differenced` is changed. A scorer that fails costs the scores (``scorer_failed`` is counted), never the
    exposure; nothing is then dropped for a low score.
    """
    watch = watch or Stopwatch()
    ny, nx = facts.shape
    scale = facts.wcs.compute_pixel_scale_arcsec(x=(nx - 1) / 2, y=(ny - 1) / 2)
    selected = select_sources(differenced.sources, pixel_scale_arcsec=scale, config=association)
    sources = selected.sources
    sources["midpoint_mjd_tai"] = facts.midpoint_mjd_tai
    counts = Counter(dia_sources=differenced.sources.n_rows)
    counts.update({f"dropped_{reason}": n for reason, n in selected.dropped.items()})
    if scorer is not None:
        with watch.stage("score"):
            counts["scorer_failed"] = int(not _score(sources, scorer, differenced))
        reliable = select_reliable(sources, min_reliability=association.min_reliability)
        sources = reliable.sources
        counts.update({f"dropped_{reason}": n for reason, n in reliable.dropped.items()})
    matches = SolarSystemMatches.none()
    if expected is not None:
        sources, matches = match_solar_system(sources, expected, config=solar_system)
        counts["solar_system_expected"] = matches.n_predicted
    with watch.stage("cutouts"):
        made = make_cutouts(
            sources,
            difference=differenced.difference,
            science=differenced.science,
            template=differenced.template,
            config=cutouts,
        )
    counts["missing_cutouts"] = made.n_missing
    counts["cutouts_without_psf"] = made.n_without_psf
    counts["cutouts_without_wcs"] = made.n_without_wcs
    return Prepared(sources=sources, cutouts=made.triplets, solar_system=matches, counts=dict(counts))


def package_alerts(
    prepared: Prepared,
    history: History,
    differenced: Differenced,
    *,
    facts: ExposureFacts,
    info: PacketInfo,
    forced_id_factory: Callable[[], int],
    association: AssociationConfig,
) -> Packaged:
    """Associate an exposure's sources with their history.

    Parameters
    ----------
    history
        All objects about the exposure, and the light curves of those that `find_known` names.

    Notes
    -----
    Nothing of `prepared` is changed, so it can be called again when the history moved. Forced photometry that fails
    costs this exposure's forced fluxes (``forced_failed`` is counted), never the exposure.
    """
    sources = prepared.sources.select(np.arange(prepared.sources.n_rows))
    sources["time_processed_mjd_tai"] = facts.time_processed_mjd_tai
    measure_forced = _FailsafePhotometer(differenced.photometer)
    associated = associate(
        sources,
        history,
        facts,
        measure_forced=measure_forced,
        forced_id_factory=forced_id_factory,
        solar_system=prepared.solar_system,
        config=association,
    )
    counts = Counter(prepared.counts)
    counts.update(
        new_objects=associated.n_new,
        matched_objects=associated.n_matched,
        solar_system=associated.n_solar_system,
        forced_sources=associated.forced.n_rows,
        forced_without_pixels=measure_forced.n_without_pixels,
        forced_failed=measure_forced.n_failed,
    )
    counts.update({f"dropped_{reason}": n for reason, n in associated.dropped.items()})
    rows = np.searchsorted(sources["dia_source_id"], associated.sources["dia_source_id"])
    return Packaged(
        association=associated,
        cutouts=[prepared.cutouts[row] for row in rows.tolist()],
        info=info,
        counts=dict(counts),
    )


class _FailsafePhotometer:
    """Counts what the photometer cannot tell: places without a usable pixel, and those at which it fails altogether."""

    def __init__(self, measure: MeasureForced) -> None:
        self._measure = measure
        self.n_without_pixels = self.n_failed = 0

    def __call__(self, *, x: FloatArray, y: FloatArray) -> ForcedFluxes:
        try:
            fluxes = self._measure(x=x, y=y)
        except (AlertprodError, ArithmeticError, ValueError, LookupError) as error:  # a PSF that cannot be drawn there
            log.warning("forced photometry failed, alerts go out without it", problem=repr(error), exc_info=error)
            self.n_failed += len(x)
            return ForcedFluxes(*(np.full(len(x), np.nan) for _ in range(4)))
        unknown = ~(np.isfinite(fluxes.psf_flux) | np.isfinite(fluxes.science_flux))
        self.n_without_pixels += int(unknown.sum())
        return fluxes


def _score(sources: Catalog, scorer: ReliabilityScorer, differenced: Differenced) -> bool:
    """Fill in the scores; say whether there are any."""
    if not sources.n_rows:
        return True
    try:
        answer = score_sources(
            scorer,
            sources,
            difference=differenced.difference,
            science=differenced.science,
            template=differenced.template,
        )
    except ScorerFailed as error:
        log.warning("the scorer failed, alerts go out without scores", problem=str(error), exc_info=error.__cause__)
        return False
    sources["reliability"] = answer.scores
    sources["reliability_version"] = answer.version
    return True
