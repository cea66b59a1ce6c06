"""`read_alerts`: for those who have alerts and want to work with them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alertprod.alerts.alert import Alert, AlertFilter
from alertprod.alerts.tables import make_alert_table
from alertprod.service.alert_sources import find_alerts

if TYPE_CHECKING:
    from astropy.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertReader:
    """Alerts of one or more places; each iteration reads them anew. See `read_alerts`."""

    sources: tuple[str | Path, ...]
    filter: AlertFilter
    options: Mapping[str, Any]

    def __iter__(self) -> Iterator[Alert]:
        """Yield the alerts, one by one."""
        for found in find_alerts(*self.sources, options=self.options):
            packet = found.take()
            if self.filter.takes(packet):
                yield Alert(packet)

    def tables(self, n_rows: int = 1000) -> Iterator[Table]:
        """Yield tables of up to `n_rows` alerts: what does not fit into memory can be worked through."""
        alerts = iter(self)
        while batch := list(itertools.islice(alerts, n_rows)):
            yield make_alert_table(batch)

    def table(self) -> Table:
        """Return all of them as one table, a row an alert: its source and a little of its object, with units."""
        return make_alert_table(self)


def read_alerts(
    sources: str | Path | Iterable[str | Path],
    *,
    since_mjd_tai: float | None = None,
    until_mjd_tai: float | None = None,
    object_ids: Iterable[int] = (),
    min_snr: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> AlertReader:
    """Read alerts from files, folders or topics.

    Parameters
    ----------
    sources
        One or more of: an Avro container, a file with one message, an outbox; a folder, for all of these below it;
        ``kafka://HOST:PORT/TOPIC``, for all that is there now.
    since_mjd_tai, until_mjd_tai
        Only alerts whose midpoint is in this half-open range.
    object_ids
        Only these DiaObjects or Solar System bodies.
    min_snr
        Only detections at least so significant.
    options
        librdkafka settings for topics: security, as a rule.

    Returns
    -------
    AlertReader
        Iterate over it for `Alert`; or ask for ``table()``, or for ``tables()`` of a thousand at a time.

    Raises
    ------
    SchemaMismatch
        Raised on the way if something is no alert.
    FileNotFoundError
        Raised on the way if a file is not there.

    Examples
    --------
    >>> for alert in read_alerts("alerts.avro", min_snr=10):  # doctest: +SKIP
    ...     print(alert.id, len(alert.sources), alert.cutout("difference").data.max())
    >>> read_alerts("night/").table()["diaObjectId", "psfFlux"]  # doctest: +SKIP
    """
    several = (sources,) if isinstance(sources, str | Path) else tuple(sources)
    wanted = AlertFilter(
        since_mjd_tai=since_mjd_tai, until_mjd_tai=until_mjd_tai, object_ids=frozenset(object_ids), min_snr=min_snr
    )
    return AlertReader(sources=several, filter=wanted, options=options or {})
