"""What the database says of a night afterwards: its exposures, and where its best alerts lie. Reads only."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from alertprod.store.database import Database
from alertprod.store.ledger import LedgerRow, LedgerState, _row
from alertprod.store.outbox import OutboxMessage, read_outbox
from alertprod.store.tables import DIA_SOURCE, EXPOSURE_LEDGER

_MAX_PARAMETERS: Final = 5000
"""Below the limits of SQLite and PostgreSQL."""

_PER_OBJECT: Final = 20
"""How many more sources than asked for are looked at, since an object is shown once however often it was seen."""

_BAD_FLAGS: Final = ("is_dipole", "centroid_flag", "psf_flux_flag", "glint_trail", "pixel_flags_streak_center")
"""What has one of these is not among the best, however significant."""


@dataclass(frozen=True, slots=True)
class BestSource:
    """A DiaSource that is worth a look."""

    dia_source_id: int
    visit: int
    detector: int
    snr: float
    reliability: float | None


class NightLog:
    """The exposures of a stretch of time.

    Parameters
    ----------
    database
        Where the ledger is.

    Notes
    -----
    Every method may raise `StoreUnavailable`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def read_exposures(self, *, since_unix_s: float, until_unix_s: float) -> list[LedgerRow]:
        """Return the exposures first claimed in this time, oldest first; seconds UTC since 1970, half-open."""
        ledger = EXPOSURE_LEDGER.c
        query = (
            sa.select(EXPOSURE_LEDGER)
            .where(ledger.first_claimed_unix_s >= since_unix_s, ledger.first_claimed_unix_s < until_unix_s)
            .order_by(ledger.first_claimed_unix_s, ledger.instrument, ledger.visit, ledger.detector)
        )
        with self._database.read() as connection:
            return [_row(row) for row in connection.execute(query)]

    def find_best(self, exposures: Collection[LedgerRow], *, most: int) -> list[BestSource]:
        """Return the best DiaSources of published exposures: the most reliable, then the most significant.

        Notes
        -----
        Each object once. Dipoles, streaks and failed measurements are left out.
        """
        wanted = {(row.key.visit, row.key.detector) for row in exposures if row.state is LedgerState.PUBLISHED}
        visits = sorted({visit for visit, _ in wanted})
        source = DIA_SOURCE.c
        columns = (source.dia_source_id, source.visit, source.detector, source.snr, source.reliability)
        objects = (source.dia_object_id, source.ss_object_id)
        found: list[tuple[BestSource, tuple[int, int]]] = []
        with self._database.read() as connection:
            for start in range(0, len(visits), _MAX_PARAMETERS):
                query = (
                    sa.select(*columns, *objects)
                    .where(
                        source.visit.in_(visits[start : start + _MAX_PARAMETERS]),
                        source.snr.is_not(None),
                        *(source[flag].is_(False) for flag in _BAD_FLAGS),
                    )
                    .order_by(sa.func.coalesce(source.reliability, 0.0).desc(), source.snr.desc())
                    .limit(most * _PER_OBJECT)
                )
                for source_id, visit, detector, snr, reliability, *ids in connection.execute(query):
                    if (visit, detector) in wanted:
                        best = BestSource(source_id, visit, detector, snr, reliability)
                        found.append((best, (ids[0], ids[1])))
        found.sort(key=lambda pair: (-(pair[0].reliability or 0.0), -pair[0].snr, pair[0].dia_source_id))
        once = {ids: best for best, ids in reversed(found)}  # the best of each object, written last
        return sorted(once.values(), key=lambda best: (-(best.reliability or 0.0), -best.snr, best.dia_source_id))[
            :most
        ]

    @staticmethod
    def read_alerts(exposures: Sequence[LedgerRow], sources: Collection[BestSource]) -> Iterator[OutboxMessage]:
        """Yield the stored alerts of these sources, exposure by exposure.

        Raises
        ------
        CorruptOutbox
            Raised if a file is gone or altered.
        """
        ids = {str(source.dia_source_id).encode() for source in sources}
        places = {(source.visit, source.detector) for source in sources}
        for row in exposures:
            if (row.key.visit, row.key.detector) not in places or row.outbox_uri is None:
                continue
            for message in read_outbox(row.outbox_uri, row.outbox_sha256):
                if dict(message.headers).get("diaSourceId") in ids:
                    yield message
