"""From measured sources to alert packets: association, forced photometry, cutouts. No database, no Kafka."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from alertprod.alerts.cutouts import CutoutConfig, Cutouts, make_cutouts
from alertprod.alerts.packet import PacketInfo, make_packets
from alertprod.association.associate import Association, AssociationConfig, associate
from alertprod.association.forced import ExposureFacts
from alertprod.association.history import History
from alertprod.service.differencing import Differenced


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """An exposure's association and what its packets are made from."""

    association: Association
    cutouts: Cutouts
    info: PacketInfo
    counts: dict[str, int]
    """By kind, for the visit summary."""

    def packets(self) -> Iterator[dict[str, Any]]:
        """Yield the packets, in the order of ``association.sources``."""
        return make_packets(self.association, self.cutouts.triplets, self.info)


def package_alerts(
    differenced: Differenced,
    history: History,
    *,
    facts: ExposureFacts,
    info: PacketInfo,
    forced_id_factory: Callable[[], int],
    association: AssociationConfig,
    cutouts: CutoutConfig,
) -> Packaged:
    """Associate an exposure's sources with their history and cut out their pictures.

    Notes
    -----
    Nothing of `differenced` is changed, so it can be called again when the history moved.
    """
    sources = differenced.sources.select(np.arange(differenced.sources.n_rows))
    sources["time_processed_mjd_tai"] = facts.time_processed_mjd_tai
    associated = associate(
        sources,
        history,
        facts,
        measure_forced=differenced.photometer,
        forced_id_factory=forced_id_factory,
        config=association,
    )
    made = make_cutouts(
        associated.sources,
        difference=differenced.difference,
        science=differenced.science,
        template=differenced.template,
        config=cutouts,
    )
    counts = Counter(
        dia_sources=sources.n_rows,
        new_objects=associated.n_new,
        matched_objects=associated.n_matched,
        solar_system=associated.n_solar_system,
        forced_sources=associated.forced.n_rows,
        missing_cutouts=made.n_missing,
    )
    counts.update({f"dropped_{reason}": n for reason, n in associated.dropped.items()})
    return Packaged(association=associated, cutouts=made, info=info, counts=dict(counts))
